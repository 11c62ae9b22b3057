"""What a peer's socket can do: take bytes, take bytes of a file, give bytes; none of them waits.

Owns: the difference between a plain socket, to which the kernel moves a file's pages itself, and
one under TLS, for which they are read and encrypted here, a piece at a time.

Invariants: what `send` and `sendfile` say they took goes out before anything that is given later;
a plain socket keeps nothing in user memory, one under TLS at most one piece.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final, Protocol

_PIECE_BYTES: Final = 64 << 10  # four TLS records: what a peer that doesn't read may cost


class Transport(Protocol):
    """Non-blocking. Everything may raise OSError when the peer is gone."""

    def fileno(self) -> int:
        """For epoll."""

    def greet(self) -> bool:
        """Goes on with what precedes the first byte; True when it is done."""

    def receive(self, size: int) -> bytes | None:
        """What came, b"" at the end, None when nothing is there (yet)."""

    def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> int:
        """How many bytes were taken. `more`: others follow at once."""

    def sendfile(self, fd: int, position: int, size: int) -> int:
        """How many bytes of the file were taken; OSError when it ends before the first."""

    def flush(self) -> bool:
        """Whether everything that was taken is the kernel's by now."""

    def close(self) -> None:
        """Ends it, whatever is on its way."""


class Plain:
    """A TCP or Unix socket as it is."""

    __slots__ = ("_socket",)

    def __init__(self, connection: socket.socket) -> None:
        self._socket: Final = connection

    def fileno(self) -> int:
        return self._socket.fileno()

    def greet(self) -> bool:
        return True

    def receive(self, size: int) -> bytes | None:
        try:
            return self._socket.recv(size)
        except BlockingIOError:
            return None

    def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> int:
        try:
            return self._socket.send(data, socket.MSG_MORE if more else 0)
        except BlockingIOError:
            return 0

    def sendfile(self, fd: int, position: int, size: int) -> int:
        try:
            sent = os.sendfile(self._socket.fileno(), fd, position, size)
        except BlockingIOError:
            return 0
        return _some(sent)

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        self._socket.close()


class Tls:
    """A TCP socket under TLS: copies. OpenSSL wants a write that did not fit repeated as it was, so
    the piece is kept here until it is gone."""

    __slots__ = ("_left", "_socket")

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._socket: Final = context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        self._left: bytes = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def greet(self) -> bool:
        try:
            self._socket.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    def receive(self, size: int) -> bytes | None:
        try:
            return self._socket.recv(size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> int:
        if not self.flush():
            return 0
        self._left = bytes(data[:_PIECE_BYTES])
        taken = len(self._left)
        self.flush()
        return taken

    def sendfile(self, fd: int, position: int, size: int) -> int:
        if not self.flush():
            return 0
        data = os.pread(fd, min(size, _PIECE_BYTES), position)
        return self.send(data[: _some(len(data))])

    def flush(self) -> bool:
        if self._left:
            try:
                self._left = self._left[self._socket.send(self._left) :]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
        return not self._left

    def close(self) -> None:
        self._left = b""
        self._socket.close()


def _some(sent: int) -> int:
    if not sent:
        raise OSError("the segment ends before what it is said to hold")
    return sent


__all__ = ["Plain", "Tls", "Transport"]
