"""Network addresses as people write them: `tcp://127.0.0.1:9300`, `tcp://[::1]:9300`, `tcp://*:0`.

Owns: what such an address may be, and its one written form. Resolves no name, opens nothing.
"""

from __future__ import annotations

import re
from typing import Final

ADDRESS_ALLOWED: Final = (
    "tcp://HOST:PORT, as in tcp://127.0.0.1:9300; * is every IPv4 address, [::] any"
)
ANY_HOST: Final = "*"
PORT_MAX: Final = 65_535
_TCP: Final = re.compile(
    r"tcp://(?:\[(?P<six>[0-9a-fA-F:.]+(?:%[\w.-]+)?)\]|(?P<host>\*|[\w.-]+)):(?P<port>[0-9]{1,5})",
    re.ASCII,
)


def parse_tcp(text: str) -> tuple[str, int]:
    """Host (IPv6 without brackets; `*` is every address) and port; ValueError if it is neither."""
    match = _TCP.fullmatch(text.strip())
    if match is None or int(match["port"]) > PORT_MAX:
        raise ValueError(f"{text!r} is no address")
    return match["six"] or match["host"], int(match["port"])


def format_tcp(host: str, port: int) -> str:
    """The address in the one form that `parse_tcp` and ZeroMQ read."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def parse_address(raw: object) -> str:
    """An address in its one form; ValueError says what is wrong with it."""
    if not isinstance(raw, str):
        raise ValueError(f"{raw!r} is no address")
    return format_tcp(*parse_tcp(raw))


def is_loopback(host: str) -> bool:
    """Whether only this host can reach `host`; a name other than localhost counts as reachable."""
    name = host.lower()
    return name in ("localhost", "::1") or re.fullmatch(r"127(\.[0-9]{1,3}){3}", name) is not None


__all__ = [
    "ADDRESS_ALLOWED",
    "ANY_HOST",
    "PORT_MAX",
    "format_tcp",
    "is_loopback",
    "parse_address",
    "parse_tcp",
]
