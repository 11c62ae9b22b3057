"""The sockets that consumers connect to.

Owns: binding, accepting, and who is turned away before anything is read. A TCP port is shared by
all reader processes (SO_REUSEPORT: the kernel deals connections out among them); a Unix socket is
one reader's, 0600.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmbroker.workers.streams.transport import Plain, Tls, Transport

if TYPE_CHECKING:
    from shmbroker.control.listening import TlsFiles

_BACKLOG: Final = 1024
_ACCEPTS: Final = 64  # at a time, so that a flood doesn't keep the others waiting
#: The connection was gone again before it was accepted, or there is nothing to accept.
_PASSING: Final = {errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.EPROTO}


class Door:
    """One listening socket."""

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext | None,
        at: str,
        path: Path | None,
    ) -> None:
        self._socket: Final = listening
        self._context: Final = context
        self._path: Final = path
        self.at: Final = at

    def fileno(self) -> int:
        """For epoll."""
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """Of TCP, as the kernel chose it."""
        return int(self._socket.getsockname()[1])

    def accept(self) -> list[tuple[socket.socket, str]]:
        """Who has come. Raises OSError when this process has no descriptor left for them."""
        found: list[tuple[socket.socket, str]] = []
        while len(found) < _ACCEPTS:
            try:
                connection, address = self._socket.accept()
            except OSError as error:
                if error.errno in _PASSING or found:
                    break
                raise
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            found.append((connection, f"{address[0]}:{address[1]}" if address else "unix"))
        return found

    def transport(self, connection: socket.socket) -> Transport:
        """What its bytes go through."""
        return Plain(connection) if self._context is None else Tls(connection, self._context)

    def turn_away(self, connection: socket.socket, last_words: bytes) -> None:
        """Closes it; under TLS without a word, since that would take a handshake."""
        with connection, contextlib.suppress(OSError):
            if self._context is None:
                connection.send(last_words)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(4096)  # unread bytes would make a reset of it, and eat the words

    def close(self) -> None:
        """Nobody comes any more."""
        self._socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def open_tcp(host: str, port: int, tls: TlsFiles | None) -> Door:
    """Binds a shared port; `host` "*" is every address. Raises OSError, which names the address."""
    any_host = host == "*"
    family = socket.AF_INET6 if any_host and socket.has_dualstack_ipv6() else socket.AF_INET
    address: tuple[str, int] = ("::" if family == socket.AF_INET6 else "0.0.0.0", port)
    if not any_host:
        (family, *_, found), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        address = (str(found[0]), int(found[1]))
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if any_host and family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        return _listen(listening, None if tls is None else _context(tls), f"tcp://{host}:{port}")
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"{error.strerror}: tcp://{host}:{port}") from None
    except BaseException:
        listening.close()
        raise


def open_unix(path: Path) -> Door:
    """Binds a socket that only this user may connect to, in place of a dead reader's."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        os.chmod(path, 0o600)  # nobody can connect before `listen`
        return _listen(listening, None, f"unix://{path}", path)
    except BaseException:
        listening.close()
        raise


def _listen(
    listening: socket.socket, context: ssl.SSLContext | None, at: str, path: Path | None = None
) -> Door:
    listening.setblocking(False)
    listening.listen(_BACKLOG)
    return Door(listening, context, at, path)


def _context(tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody resumes; they would be written before anything is asked
    context.load_cert_chain(tls.certificate, tls.key)
    return context


__all__ = ["Door", "open_tcp", "open_unix"]
