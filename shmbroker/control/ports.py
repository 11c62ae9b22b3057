"""Which TCP ports a broker listens on, and what it keeps of that over restarts.

Owns: `listen.json` (0600) in the data directory: the ports that were picked for port 0, and the
token that clients show. Both stay the same while the data directory does, so that clients
elsewhere find a broker again that was restarted.

A port that is picked lies below the kernel's ephemeral range: none of our own outgoing connections,
and no other program's, can have it by accident. Whether a port is free is tried by binding it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shmbroker.addresses import ANY_HOST, PORT_MAX, format_tcp
from shmbroker.config import LoadedConfig
from shmbroker.control.keys import write_private

LISTEN_FILE: Final = "listen.json"
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST: Final = 10_000  # below it stand the ports that other programs have by name
_TRIES: Final = 1_000
_PREDECESSOR_S: Final = 1.0
_LOOK_EVERY_S: Final = 0.02
NAMES: Final = ("control", "ingress", "data", "events")
_KEYS: Final = {
    "control": "listen.address",
    "ingress": "listen.ingress_port",
    "data": "listen.data_port",
    "events": "listen.events_port",
}


@dataclass(frozen=True, slots=True)
class Ports:
    """One each; all on the same host."""

    control: int
    ingress: int
    data: int
    events: int


class ListenFile:
    """`listen.json` of one data directory; the broker that holds its lock writes it."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / LISTEN_FILE
        self._found: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self._found = found if isinstance(found, dict) else {}

    def token(self) -> str:
        """The token of this data directory; made when there is none."""
        token = self._found.get("token")
        if not isinstance(token, str) or len(token) < 32:
            token = self._keep("token", secrets.token_hex(16))
        return str(token)

    def ports(self, loaded: LoadedConfig, host: str) -> Ports:
        """The four ports, free at this moment. ConfigError names the one that is not.

        `host`: as a number; `*` for every address. Waits a moment for a port in use: a killed
        broker's workers give theirs back when they are gone, a little after it.
        """
        asked = _asked(loaded)
        kept = self._found.get("ports")
        chosen: dict[str, int] = {}
        for name in NAMES:
            port = asked[name]
            if port == 0:
                old = kept.get(name) if isinstance(kept, dict) else None
                port = _pick(loaded, host, {*chosen.values(), *asked.values()}, old)
            elif port in chosen.values():
                raise loaded.refused(_KEYS[name], f"port {port} is asked for twice")
            else:
                _wait_free(host, port)
                _require_free(loaded, host, port, _KEYS[name])
            chosen[name] = port
        if 0 in asked.values():
            self._keep("ports", chosen)
        return Ports(**chosen)

    def check(self, loaded: LoadedConfig, host: str) -> None:
        """ConfigError if a port that is asked for by its number is not free now."""
        for name, port in _asked(loaded).items():
            if port:
                _require_free(loaded, host, port, _KEYS[name])

    def _keep(self, name: str, value: Any) -> Any:
        if self._found.get(name) != value:
            self._found[name] = value
            write_private(self._path, json.dumps(self._found).encode() + b"\n")
        return value


def _asked(loaded: LoadedConfig) -> dict[str, int]:
    """By name; 0: any."""
    listen = loaded.config.listen
    assert listen.tcp is not None
    first = listen.tcp[1]
    asked = {"control": first}
    others = {
        "ingress": listen.ingress_port, "data": listen.data_port, "events": listen.events_port,
    }  # fmt: skip
    for steps, (name, port) in enumerate(others.items(), start=1):
        asked[name] = (first + steps if first else 0) if port == "auto" else port
        if asked[name] > PORT_MAX:
            raise loaded.refused(
                _KEYS[name],
                f"port {first} of listen.address leaves none behind it",
                f"a port of its own: {_KEYS[name]} = 9301",
            )
    return asked


def _pick(loaded: LoadedConfig, host: str, taken: set[int], old: object) -> int:
    if isinstance(old, int) and old not in taken and _wait_free(host, old):
        return old
    for port in _candidates():
        if port not in taken and _problem(host, port) is None:
            return port
    raise loaded.refused(
        "listen.address",
        f"no free port was found below the ephemeral range on {host}",
        "a port that you choose: tcp://127.0.0.1:9300",
    )


def _candidates() -> Iterator[int]:
    below = 32_768
    with contextlib.suppress(OSError, ValueError):
        below = int(_EPHEMERAL.read_text(encoding="ascii").split()[0])
    low, high = (_LOWEST, below) if below > _LOWEST + _TRIES else (1_024, max(2_048, below))
    for _ in range(_TRIES):
        yield random.randrange(low, high)


def _require_free(loaded: LoadedConfig, host: str, port: int, key: str) -> None:
    error = _problem(host, port)
    if error is None:
        return
    way_out = f"another port ({key}), or port 0, which picks a free one"
    reason = f"can't be bound: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        reason = f"is in use by another program (who: ss -ltnp 'sport = :{port}')"
    elif error.errno == errno.EACCES:
        reason = "is one that only root may bind"
    elif error.errno == errno.EADDRNOTAVAIL:
        key, way_out = "listen.address", "an address of this host; * is every one"
        reason = f"can't be bound: {host} is no address of this host"
    raise loaded.refused(key, f"{format_tcp(host, port)} {reason}", way_out)


def _wait_free(host: str, port: int) -> bool:
    """Whether the port is free, or is so before long."""
    deadline = time.monotonic() + _PREDECESSOR_S
    while (error := _problem(host, port)) is not None:
        if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_EVERY_S)
    return True


def _problem(host: str, port: int) -> OSError | None:
    """Why the port can't be bound now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            # As ZeroMQ does: connections of before that still linger are in nobody's way.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("" if host == ANY_HOST else host, port))
            sock.listen(1)
    except OSError as error:
        return error
    return None


def resolve(loaded: LoadedConfig, host: str) -> str:
    """The host's address as a number, `*` unchanged. ConfigError for a name that leads nowhere."""
    if host == ANY_HOST:
        return host
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise loaded.refused(
            "listen.address", f"{host!r} is no address and no name that leads to one: {error}"
        ) from None
    return str(found[0][4][0])


__all__ = ["LISTEN_FILE", "NAMES", "ListenFile", "Ports", "resolve"]
