"""What the reader's thread can't wait for: calls that ask the acceptor or search segments.

Owns: one thread, and the eventfd that says that a call is done. Calls are made one after the other,
in the order in which they were asked for; what they return is handed on in the reader's thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

Done = Callable[[Any, Exception | None], None]


class Jobs:
    """`ask` and `deliver` belong to the reader's thread."""

    def __init__(self) -> None:
        self.fd: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Done] | None] = queue.SimpleQueue()
        self._done: deque[tuple[Done, Any, Exception | None]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="shmbroker-jobs", daemon=True)
        self._thread.start()

    def ask(self, call: Callable[[], Any], done: Done) -> None:
        """`done(result, None)` or `done(None, error)` follows, from `deliver`."""
        self._asked.put((call, done))

    def tell(self, done: Callable[[], None]) -> None:
        """Any thread: `done` is called from `deliver`."""
        self._done.append((lambda _result, _error: done(), None, None))
        os.eventfd_write(self.fd, 1)

    def deliver(self) -> None:
        """Hands on what is done; call it when `fd` can be read."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        while self._done:
            done, result, error = self._done.popleft()
            done(result, error)

    def close(self) -> None:
        """Waits for the call that is under way; others are dropped."""
        self._closing = True
        self._asked.put(None)
        self._thread.join()
        os.close(self.fd)

    def _run(self) -> None:
        while (job := self._asked.get()) is not None and not self._closing:
            call, done = job
            result, failed = None, None
            try:
                result = call()
            except Exception as error:
                failed = error
            self._done.append((done, result, failed))
            os.eventfd_write(self.fd, 1)


__all__ = ["Done", "Jobs"]
