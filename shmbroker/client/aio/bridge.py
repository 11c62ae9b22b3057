"""How C threads wake an event loop: one eventfd, watched by the loop.

Owns: the eventfd of one asyncio client and who in the loop wants to know of its wakes. C threads of
this process write 8 bytes to `fd`, without the GIL, after they have published what they know; the
loop empties it and then runs every listener, which looks for itself what is new. So a wake may come
for nothing and several may be one, but none is lost: a write after the emptying makes `fd`
readable again.

Everything but `wake` and writes to `fd` is for the loop's thread. Whoever writes must have stopped
before `close`. In a forked child nothing here touches the loop, whose epoll object is the parent's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress

_log = logging.getLogger("shmbroker")


class Bridge:
    """One per event loop and asyncio client; made and closed in the loop's thread."""

    fd: int  # eventfd, non-blocking, close-on-exec
    loop: asyncio.AbstractEventLoop

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has `loop` watch a new eventfd."""
        self.loop = loop
        self._pid = os.getpid()
        self._listeners: list[Callable[[], None]] = []
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            loop.add_reader(self.fd, self._woken)
        except BaseException:
            os.close(self.fd)
            raise

    def on_wake(self, fn: Callable[[], None]) -> None:
        """Runs `fn` in the loop after each wake; what it raises is logged."""
        self._listeners.append(fn)

    def off_wake(self, fn: Callable[[], None]) -> None:
        """Undoes one `on_wake(fn)`; nothing without one."""
        with suppress(ValueError):
            self._listeners.remove(fn)

    def wake(self) -> None:
        """What a C thread does: has the listeners run soon. Any thread, but not beside `close`."""
        if self.fd >= 0:
            os.eventfd_write(self.fd, 1)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self.fd < 0

    def close(self) -> None:
        """Runs no listener any more; twice is fine."""
        if self.fd < 0 or os.getpid() != self._pid:
            return
        if not self.loop.is_closed():
            self.loop.remove_reader(self.fd)
        os.close(self.fd)
        self.fd = -1
        self._listeners.clear()

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        for fn in tuple(self._listeners):  # one of them may take itself or another off
            try:
                fn()
            except Exception:
                _log.exception("an event loop's listener failed")


__all__ = ["Bridge"]
