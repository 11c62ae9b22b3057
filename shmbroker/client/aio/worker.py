"""The threads that block for an event loop: two a client, whatever the number of waits.

Owns: one thread for requests to the broker and one for what consumers do besides waiting (opening,
reading segment files, finding a partition again). Waiting for records takes neither: that is the
watcher of `_core/watch.h`.

A cancelled `await` leaves its call to end by itself; `undo` then takes back what it made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """One thread, started by the first call. For the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"shmbroker-{name}")

    def start(self, fn: Callable[[], T]) -> asyncio.Future[T]:
        """Calls `fn` in the thread, after what was started before."""
        future = self._loop.run_in_executor(self._pool, fn)
        future.add_done_callback(look)
        return future

    async def run(self, fn: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """What `fn` returns. Cancelled, it passes a result that comes later to `undo`."""
        future = self.start(fn)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(lambda f: _undo(f, undo))
            raise

    def close(self) -> None:
        """Takes no more calls; does not wait for the present one. Twice is fine."""
        self._pool.shutdown(wait=False)


def look(future: asyncio.Future[Any]) -> None:
    """An error that nobody waits for any more is nobody's: the call may be repeated."""
    if not future.cancelled():
        future.exception()


def _undo(future: asyncio.Future[T], undo: Callable[[T], object]) -> None:
    if not future.cancelled() and future.exception() is None:
        undo(future.result())


__all__ = ["Worker", "look"]
