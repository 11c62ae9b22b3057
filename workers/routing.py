"""ROUTER sockets of the acceptor: bound, read and written without ever waiting."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

import zmq

from shmbroker.workers.logs import get_logger

AT_ONCE: Final = 256  # messages taken of one socket before the others are looked at
_log = get_logger("shmbroker.sockets")


def bind_unix(sock: zmq.Socket[bytes], address: str) -> None:
    """Binds to `ipc://…`; only this user can connect, from the first moment on."""
    before = os.umask(0o177)
    try:
        sock.bind(address)
    finally:
        os.umask(before)


def send(sock: zmq.Socket[bytes], identity: bytes, message: bytes) -> bool:
    """To one peer; False when it has no room for it. A peer that is gone gets nothing."""
    try:
        sock.send_multipart([identity, message], zmq.NOBLOCK)
    except zmq.Again:  # a peer that does not read: its answer is lost, not our time
        _log.warning("answer dropped", reason="its queue is full")
        return False
    except zmq.ZMQError as error:
        if error.errno != errno.EHOSTUNREACH:
            raise
    return True


def received(sock: zmq.Socket[bytes], most: int = AT_ONCE) -> Iterator[tuple[bytes, bytes]]:
    """What has come: (identity, message). Messages of another form are dropped."""
    for _ in range(most):
        try:
            frames = sock.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if len(frames) == 2:
            yield frames[0], frames[1]


__all__ = ["AT_ONCE", "bind_unix", "received", "send"]
