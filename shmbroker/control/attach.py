"""The attach socket: who is connected, and the notice of their death.

Owns: the listening Unix SEQPACKET socket and one connection a client, from the one message that
attaches it to its hang-up (form: `docs/ARCHITECTURE.md`, Attach). Knows nothing of rings and
tokens; the acceptor decides through the callbacks.

Invariants: a peer of another uid is turned away before it is heard; a connection attaches at most
one client; a client's hang-up is reported once; nothing here waits.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from shmbroker import errors
from shmbroker.control import messages

_MESSAGE_MAX: Final = 64 << 10
_CATCH_UP_S: Final = 0.5  # between two attempts to tell who has missed events
_SILENCE_MAX_S: Final = 5.0  # from connecting to the attach message
_UCRED: Final = struct.Struct("3i")


class Cancellable(Protocol):
    """A timer that can be taken back."""

    def cancel(self) -> None: ...


class Watcher(Protocol):
    """The part of an event loop that is needed here."""

    def watch(self, source: int, callback: Callable[[], None]) -> None: ...
    def unwatch(self, source: int) -> None: ...
    def after(self, seconds: float, callback: Callable[[], None]) -> Cancellable: ...


class Connection:
    """One peer. `client` is set once it is attached."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock, self.pid = sock, pid
        self.client: int | None = None
        self.timer: Cancellable | None = None
        self.missed: bytes | None = None  # an event to be sent when the peer has room

    def send(self, message: bytes) -> bool:
        """Sends if the peer has room; False if it has none. Who reads nothing costs us no time."""
        try:
            self.sock.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            pass  # its hang-up is on the way
        return True


OnAttach = Callable[[Connection, messages.Request], Mapping[str, Any]]


class AttachServer:
    """Listens at `path`. `on_attach` answers or raises; `on_hangup` is told of attached ones."""

    def __init__(
        self,
        path: str,
        watcher: Watcher,
        on_attach: OnAttach,
        on_hangup: Callable[[Connection], None],
    ) -> None:
        self._path, self._watcher = path, watcher
        self._on_attach, self._on_hangup = on_attach, on_hangup
        self._connections: set[Connection] = set()
        Path(path).unlink(missing_ok=True)  # of a killed broker; the caller holds the instance
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        before = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(before)
        self._listener.listen(512)
        watcher.watch(self._listener.fileno(), self._accept)

    def tell_all(self, message: bytes, instead: bytes | None = None) -> None:
        """Sends an event to every attached client.

        Who has no room for it (a stopped process) misses it; `instead` is what it is told as soon
        as it has read something: one event for all that it missed.
        """
        for connection in self._connections:
            if connection.client is None or connection.missed is not None:
                continue
            if not connection.send(message) and instead is not None:
                connection.missed = instead
                self._catch_up(connection)

    def _catch_up(self, connection: Connection) -> None:
        if connection not in self._connections or connection.missed is None:
            return
        if connection.send(connection.missed):
            connection.missed = None
        else:
            self._watcher.after(_CATCH_UP_S, lambda: self._catch_up(connection))

    def drop(self, connection: Connection) -> None:
        """Closes a connection without `on_hangup`."""
        if connection in self._connections:
            self._forget(connection)

    def close(self) -> None:
        """Hangs up on everybody and removes the socket."""
        for connection in list(self._connections):
            self._forget(connection)
        self._watcher.unwatch(self._listener.fileno())
        self._listener.close()
        Path(self._path).unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        sock.setblocking(False)
        pid, uid, _ = _UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        connection = Connection(sock, pid)
        self._connections.add(connection)
        if uid != os.geteuid():
            self._refuse(
                connection,
                errors.InvalidRequest(
                    f"uid {uid} may not attach to a broker of uid {os.geteuid()}"
                ),
            )
            return
        self._watcher.watch(sock.fileno(), lambda: self._readable(connection))
        connection.timer = self._watcher.after(_SILENCE_MAX_S, lambda: self.drop(connection))

    def _readable(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(_MESSAGE_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or connection.client is not None:  # after the attach message all is silence
            self._forget(connection)
            if connection.client is not None:
                self._on_hangup(connection)
            return
        try:
            request = messages.decode_request(data)
            if request.op != "attach":
                raise errors.InvalidRequest(f"{request.op!r} on the attach socket; allowed: attach")
            answer = self._on_attach(connection, request)
        except errors.ShmbrokerError as error:
            self._refuse(connection, error)
            return
        if connection.timer is not None:
            connection.timer.cancel()
        connection.send(messages.encode_reply(None, answer))

    def _refuse(self, connection: Connection, error: errors.ShmbrokerError) -> None:
        connection.send(messages.encode_error(None, error))
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if connection.timer is not None:
            connection.timer.cancel()
        self._watcher.unwatch(connection.sock.fileno())
        connection.sock.close()


__all__ = ["AttachServer", "Connection"]
