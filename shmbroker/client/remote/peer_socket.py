"""A DEALER to a broker elsewhere, and the monitor that tells when it has connected or was cut.

Owns: the options that keep a dead peer from holding anything: nothing lingers, queues are bounded,
ZeroMQ's own heartbeats close connections of hosts that vanished. One thread uses it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

_QUEUED: Final = 1024  # messages: more than what one session may have on its way
_RETRY_MS: Final = 50  # between two attempts to connect, doubling up to …
_RETRY_LAST_MS: Final = 500
_EVENTS: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
)


class Change(enum.Enum):
    """What the monitor tells."""

    CONNECTED = "it was reached and says nothing"
    READY = "it was reached and does not answer"
    CUT = "the connection was cut"
    REFUSED = "it does not take this client's key, or this client has the wrong server.key"


class PeerSocket:
    """See the module."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        secure: Callable[[zmq.Socket[bytes]], None],
        heartbeat_ms: int,
        dead_ms: int,
        largest_bytes: int,
    ) -> None:
        """Begins to connect; ZeroMQ goes on with that by itself."""
        self.address: Final = address
        self.socket = context.socket(zmq.DEALER)
        try:
            self.socket.linger = 0
            self.socket.set_hwm(_QUEUED)
            self.socket.setsockopt(zmq.IPV6, 1)
            self.socket.setsockopt(zmq.RECONNECT_IVL, _RETRY_MS)
            self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RETRY_LAST_MS)
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, dead_ms)
            self.socket.setsockopt(zmq.MAXMSGSIZE, largest_bytes)
            secure(self.socket)
            self.monitor = self.socket.get_monitor_socket(_EVENTS)
            self.socket.connect(address)
        except BaseException:
            self.close()
            raise

    def changes(self) -> list[Change]:
        """What has happened to the connection, in order."""
        found = []
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor, zmq.NOBLOCK)["event"]
            if event == zmq.EVENT_CONNECTED:
                found.append(Change.CONNECTED)
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                found.append(Change.READY)
            elif event == zmq.EVENT_DISCONNECTED:
                found.append(Change.CUT)
            else:
                found.append(Change.REFUSED)
        return found

    def close(self, linger_ms: int = 0) -> None:
        """Lets go of it without waiting; what was said goes out for so long in ZeroMQ's thread."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.socket.close(linger=linger_ms)


__all__ = ["Change", "PeerSocket"]
