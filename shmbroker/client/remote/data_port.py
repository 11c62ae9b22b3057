"""Where streams are asked for, and what must be shown there; sockets to it.

Owns: what the answer to a client's hello says of the broker's data ports (docs/protocol.md,
Control), and how a socket to one of them is made without blocking.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DataPort:
    """One broker's, as of its last answer to our hello."""

    endpoints: tuple[str, ...]  # "tcp://host:port", "unix:///path"
    token: bytes  # `data_token`
    data_dir_id: bytes  # of the broker that must answer there
    certificate: str | None = None  # PEM: streams are inside TLS, and this is who must answer
    name: str = ""  # of this program, for `status`


def connect(endpoint: str) -> socket.socket:
    """A socket that connects, or has: it doesn't block, and is writable when it is known.

    Raises OSError at once for what can't be, ValueError for an endpoint of another form."""
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("unix", "ipc"):
        return _begin(socket.AF_UNIX, rest)
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not port.isdecimal():
        raise ValueError(f"{endpoint!r} is no address of a data port")
    failed: OSError | None = None
    host = host.strip("[]")
    for family, _, _, _, address in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
        try:
            made = _begin(family, address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            failed = error
    raise failed or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _begin(family: int, address: str | tuple[Any, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        why = made.connect_ex(address)
        if why not in (0, errno.EINPROGRESS):
            raise OSError(why, os.strerror(why))
    except BaseException:
        made.close()
        raise
    return made


def secured(plain: socket.socket, certificate: str) -> ssl.SSLSocket:
    """`plain`, which has connected, inside TLS; nothing was said yet: `do_handshake`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # whatever names it bears
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context.wrap_socket(plain, do_handshake_on_connect=False)


__all__ = ["DataPort", "connect", "secured"]
