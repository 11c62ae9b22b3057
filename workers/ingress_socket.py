"""The socket at which remote producers arrive: its options, its addresses, who is let in.

What ROUTER does by default is for peers that are known and well: each option below says which trap
it closes. (IMMEDIATE, CONFLATE and the like are for sockets that connect; these bind.)

Invariants: nothing is bound before its options stand; a Unix socket is 0600 from its first moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Final

import zmq

from shmbroker.control.listening import NetworkSpec
from shmbroker.control.zap import Gate, guard
from shmbroker.wire.native.limits import BATCH_BYTES, IN_FLIGHT

LINGER_MS: Final = 1_000  # for the last answers at the end
_BACKLOG: Final = 1_024  # all clients come again at once after a restart
_HANDSHAKE_MS: Final = 10_000
_UNREAD: Final = 4_096  # messages for a peer that doesn't read; then it is given up
_KEEP_BYTES: Final = 64 << 20  # of free memory at the heap's end; more goes back to the kernel
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_UNTAKEN: Final = 2 * IN_FLIGHT  # frames from a peer that ZeroMQ keeps until we take them


class Door:
    """One ROUTER socket on all the addresses of a NetworkSpec. Belongs to one thread."""

    def __init__(self, spec: NetworkSpec) -> None:
        """Binds. Raises zmq.ZMQError, OSError, ConfigError."""
        self.context = zmq.Context[zmq.Socket[bytes]](io_threads=1)
        self.gate: Gate | None = None
        self._sockets: list[zmq.Socket[bytes]] = []
        self._unix = spec.unix_path
        try:
            if spec.curve is not None and spec.tcp is not None:
                self.gate = Gate(self.context, spec.curve.authorized)
            self.sockets = self._sockets
            if spec.tcp is not None:
                sock = self._make(spec)
                if spec.curve is not None:
                    guard(sock, spec.curve)
                host, port = spec.tcp
                sock.setsockopt(zmq.IPV6, ":" in host)
                sock.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
            if spec.unix_path is not None:
                bind_unix(self._make(spec), spec.unix_path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Sends what is still to be sent, for at most LINGER_MS."""
        for sock in self._sockets:
            sock.close(linger=LINGER_MS)
        if self.gate is not None:
            self.gate.close()
        self.context.term()
        if self._unix is not None:
            with contextlib.suppress(FileNotFoundError):
                self._unix.unlink()

    def _make(self, spec: NetworkSpec) -> zmq.Socket[bytes]:
        sock = self.context.socket(zmq.ROUTER)
        self._sockets.append(sock)
        # Who is gone raises EHOSTUNREACH, and who doesn't read EAGAIN; otherwise answers to both
        # would vanish in silence.
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.SNDHWM, _UNREAD)
        sock.setsockopt(zmq.RCVHWM, _UNTAKEN)
        # A longer frame cuts the connection when its head has come; the default is any length.
        sock.setsockopt(zmq.MAXMSGSIZE, BATCH_BYTES)
        # Who connects and says nothing of ZeroMQ's own greeting.
        sock.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        # A host that vanished: its connection is closed, and sending to it fails, soon after.
        sock.setsockopt(zmq.HEARTBEAT_IVL, spec.listen.heartbeat_ms)
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, spec.listen.dead_ms)
        sock.setsockopt(zmq.BACKLOG, _BACKLOG)
        sock.setsockopt(zmq.LINGER, LINGER_MS)
        return sock


def bind_unix(sock: zmq.Socket[bytes], path: Path) -> None:
    """Binds to a Unix socket that only this user can open; one that a predecessor left goes."""
    before = os.umask(0o177)
    try:
        sock.bind(f"ipc://{path}")
    finally:
        os.umask(before)


def keep_freed_memory() -> None:
    """Lets malloc keep what batches are received into; before any thread starts.

    Each message is a block of its own size. By default glibc gives blocks of that size back to the
    kernel and takes fresh, zeroed pages for the next one: a third of what receiving costs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another libc, which does as it likes
        return
    mallopt(_M_ARENA_MAX, 1)  # ZeroMQ's thread allocates, ours frees
    mallopt(_M_MMAP_THRESHOLD, BATCH_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


__all__ = ["LINGER_MS", "Door", "bind_unix", "keep_freed_memory"]
