"""Who a client is to a broker elsewhere, and where it is: the address, a token, CURVE keys.

Owns: where they are looked for. A token: `token=`, `token_file=`, SHMBROKER_TOKEN, and for a broker
of this user on this host the file that it has written (control/tokens.py). Keys: `keys=`, the
directory that `shmbroker keys generate --client NAME` has made for this program, or SHMBROKER_KEYS.

    server.key          the broker's public key
    client.key_secret   the client's own pair, 0600
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmbroker.addresses import ADDRESS_ALLOWED, ANY_HOST, format_tcp, parse_tcp
from shmbroker.control.keys import read_pair, read_secret
from shmbroker.control.tokens import find_token
from shmbroker.errors import ConfigError

if TYPE_CHECKING:
    import zmq

_IPC: Final = "ipc://"
_TCP: Final = "tcp://"
_CONTROL: Final = "remote-control"  # the socket's name in a runtime directory
_TOKEN_BYTES_MAX: Final = 256
_EVERYWHERE: Final = ("0.0.0.0", "::", ANY_HOST)


@dataclass(frozen=True, slots=True)
class Curve:
    """Keys in Z85."""

    server: bytes
    public: bytes
    secret: bytes


@dataclass(frozen=True, slots=True)
class Credentials:
    """What control and ingress are shown."""

    address: str  # of control, in its one form
    token: str | None = None
    curve: Curve | None = None

    @classmethod
    def find(
        cls,
        address: str,
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        keys: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Credentials:
        """Arguments before environment before what lies on this host. ConfigError names what can't
        be read or is no address."""
        env = os.environ if env is None else env
        address = _written(address)
        directory = keys or env.get("SHMBROKER_KEYS")
        if token is None and token_file is not None:
            token = _read_token(Path(token_file))
        token = token or env.get("SHMBROKER_TOKEN") or find_token(address, env)
        return cls(address, token, _curve(Path(directory)) if directory else None)

    def secure(self, sock: zmq.Socket[bytes]) -> None:
        """Sets the keys, if there are any, on a socket that has not connected."""
        if self.curve is not None and self.address.startswith(_TCP):
            sock.curve_serverkey = self.curve.server
            sock.curve_publickey = self.curve.public
            sock.curve_secretkey = self.curve.secret

    def reached(self, endpoint: str) -> str:
        """An endpoint of the broker's as it is reached from here: on the host, or in the
        directory, where control was reached."""
        scheme, _, rest = endpoint.partition("://")
        if scheme in ("ipc", "unix"):
            if not self.address.startswith(_IPC):
                return endpoint
            here = Path(self.address.removeprefix(_IPC)).parent
            return f"{scheme}://{here / Path(rest).name}"
        host, port = parse_tcp(endpoint)
        if host in _EVERYWHERE and self.address.startswith(_TCP):
            host = parse_tcp(self.address)[0]
        return format_tcp(host, port)


def is_remote(address: str) -> bool:
    """Whether it is the address of a broker over the network, not a name or a directory."""
    return "://" in address


def _written(address: str) -> str:
    if address.startswith(_IPC):
        path = Path(os.path.abspath(address.removeprefix(_IPC)))
        return f"{_IPC}{path / _CONTROL if path.is_dir() else path}"
    try:
        host, port = parse_tcp(address)
    except ValueError:
        host, port = "", 0
    if not port or host == ANY_HOST:
        raise ConfigError(
            f"{address!r} is no address of a broker",
            file="connect()",
            allowed=f"{ADDRESS_ALLOWED.partition(';')[0]}, or ipc:///path/of/remote-control",
        )
    return format_tcp(host, port)


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_TOKEN_BYTES_MAX + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no token"
        raise ConfigError(f"can't be read: {why}", file=str(path)) from None


def _curve(directory: Path) -> Curve:
    server = read_pair(directory / "server.key").public
    return Curve(server, *read_secret(directory / "client.key_secret"))


__all__ = ["Credentials", "Curve", "is_remote"]
