"""The token of a broker on this host, as programs of the same user find it by themselves.

Owns: the search. A broker writes its token to `token` in its runtime directory (0600), and what it
listens on to `broker.json` beside it; an address over TCP is looked up in those of all brokers of
this user. Reads files only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shmbroker.addresses import ANY_HOST, is_loopback, parse_tcp
from shmbroker.places import DEFAULT_INSTANCE, Places

_IPC: Final = "ipc://"
_TOKEN_BYTES_MAX: Final = 256
_EVERY: Final = ("0.0.0.0", "::", ANY_HOST)


def find_token(address: str, env: Mapping[str, str] | None = None) -> str | None:
    """The token for `tcp://host:port` or `ipc:///path/of/remote-control`; None where none is found.

    `env` as for `Places.find`. Only brokers on this host are looked at: over TCP an address that
    is not loopback counts if a broker here listens on just that.
    """
    if address.startswith(_IPC):
        return _read(Path(address.removeprefix(_IPC)).parent)
    try:
        asked = parse_tcp(address)
    except ValueError:
        return None
    root = Places.find(DEFAULT_INSTANCE, env=env).runtime_dir.parent
    with contextlib.suppress(OSError):
        for directory in sorted(root.iterdir()):
            if any(_serves(endpoint, asked) for endpoint in _control(directory)):
                return _read(directory)
    return None


def _control(directory: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((directory / "broker.json").read_text(encoding="utf-8"))
        return [str(endpoint) for endpoint in found["listen"]["control"]]
    return []


def _serves(endpoint: str, asked: tuple[str, int]) -> bool:
    try:
        host, port = parse_tcp(endpoint)
    except ValueError:
        return False  # a Unix socket
    if port != asked[1]:
        return False
    return host == asked[0] or (is_loopback(asked[0]) and (host in _EVERY or is_loopback(host)))


def _read(directory: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError), (directory / "token").open("rb") as file:
        return file.read(_TOKEN_BYTES_MAX).decode("ascii").strip() or None
    return None


__all__ = ["find_token"]
