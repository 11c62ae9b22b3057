"""Puts into the queue in one process, gets from it in another.

Batches are lists, 1,000 values in each (100 to 10,000 were tried); one call a record is a `put`
each. The reader calls `get()` without a timeout, which is twice as fast as one with: that makes a
selector for every value. So that it can end nevertheless, a thread of its process puts a None when
there was nothing for a while.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from typing import Final

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode

_BATCH: Final = 1000
_BATCH_BYTES: Final = 1 << 20  # of the values in a list, at most
_LOOK_S: Final = 0.1


class QueueClient(Client):
    """The one queue, whatever the topic: these follow each other, each read to its end."""

    def __init__(self, address: Queue[bytes | list[bytes] | None]) -> None:
        self._queue = address

    def create(self, topic: str, mode: Mode) -> None:
        """It is there."""

    def send_many(self, topic: str, values: list[bytes], mode: Mode) -> None:
        put = self._queue.put
        count = min(_BATCH, max(1, _BATCH_BYTES // len(values[0]))) if values else 1
        for at in range(0, len(values), count):
            put(values[at : at + count])

    def send_each(self, topic: str, values: list[bytes], mode: Mode) -> None:
        put = self._queue.put
        for value in values:
            put(value)

    def sender(self, topic: str, mode: Mode) -> Callable[[bytes], None]:
        return self._queue.put

    def tail(self, topic: str, mode: Mode) -> Iterator[list[bytes]]:
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(done,), name="ticker", daemon=True)
        ticker.start()
        try:
            yield []
            get = self._queue.get
            while True:
                found = get()
                if found is None:
                    yield []
                else:
                    yield found if isinstance(found, list) else [found]
        finally:
            done.set()
            ticker.join()

    def _tick(self, done: threading.Event) -> None:
        while not done.wait(_LOOK_S):
            if not self._queue.qsize():
                self._queue.put(None)

    def close(self) -> None:
        self._queue.cancel_join_thread()  # what nobody reads any more need not go out
        self._queue.close()


__all__ = ["QueueClient"]
