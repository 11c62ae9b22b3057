"""What systemd is told of a broker that runs as a service (`Type=notify`, sd_notify(3)).

One datagram a message to the socket that `NOTIFY_SOCKET` names: a path, or `@name` for an abstract
one. Without the variable nothing is sent. The variable is taken out of the environment when it is
read: a worker's messages would not be the service's.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

_VARIABLE: Final = "NOTIFY_SOCKET"


class Notify:
    """Tells; never waits, and never fails: who started us may be gone."""

    def __init__(self) -> None:
        name = os.environ.pop(_VARIABLE, "")
        self._address = "\0" + name[1:] if name.startswith("@") else name

    def ready(self, status: str) -> None:
        """The broker takes clients."""
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        """It has begun to stop."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def status(self, text: str, extend_s: float = 0.0) -> None:
        """What it does now; `extend_s`: TimeoutStopSec shall not strike for so long."""
        more = f"\nEXTEND_TIMEOUT_USEC={int(extend_s * 1e6)}" if extend_s else ""
        self._send(f"STATUS={text}{more}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)
            sock.sendto(message.encode(), self._address)


__all__ = ["Notify"]
