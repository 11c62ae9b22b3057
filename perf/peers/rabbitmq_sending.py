"""Sending by rstream: confirms that are waited for, and records one at a time at their times.

`Paced` has a producer on an event loop in a thread of its own, as a program has that gets its
records elsewhere. Each record goes into a frame at once, with those that came while the last frame
was made. A loop that runs only within each call was no sooner at 1,000 records a second, and did
not hold 10,000.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

LOGIN: Final = {"username": "guest", "password": "guest"}  # the server's own, for the loopback
_LIMIT_S: Final = 240.0


class Confirms:
    """Called for each publishing id that the server confirmed or refused; waits for all."""

    def __init__(self, expected: int) -> None:
        self._left = expected
        self._done = asyncio.Event()
        self._refused: list[int] = []

    def __call__(self, status: Any) -> None:
        if not status.is_confirmed:
            self._refused.append(status.response_code)
        self._left -= 1
        if self._left <= 0:
            self._done.set()

    async def all(self) -> None:
        """Returns when every one is confirmed; raises RuntimeError when one is not."""
        try:
            await asyncio.wait_for(self._done.wait(), _LIMIT_S)
        except TimeoutError:
            raise RuntimeError(f"{self._left} not confirmed after {_LIMIT_S:.0f} s") from None
        self.check()

    def check(self) -> None:
        """Raises RuntimeError when one was refused."""
        if self._refused:
            raise RuntimeError(f"refused by the server with code {self._refused[0]}")


class Paced:
    """A producer that sends what it is given as soon as it can; `close` ends its thread."""

    def __init__(self, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="rstream-paced", daemon=True
        )
        self._thread.start()
        self._confirms = Confirms(0)
        self._failed: list[BaseException] = []
        self._forwarding: list[asyncio.Task[None]] = []
        self._producer: Any = self._call(self._open(port))

    def _call(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(_LIMIT_S)

    async def _open(self, port: int) -> Any:
        from rstream import Producer

        producer = Producer("127.0.0.1", port, **LOGIN)
        await producer.start()
        return producer

    def sender(self, topic: str) -> Callable[[bytes], None]:
        """A function that hands a value to the loop; raises when one before was not taken."""
        waiting: deque[bytes] = deque()
        came = asyncio.Event()
        wake, wakes = self._loop.call_soon_threadsafe, came.set

        def one(value: bytes) -> None:
            waiting.append(value)
            wake(wakes)
            if self._failed:
                raise self._failed[0]
            self._confirms.check()

        self._call(self._start(topic, waiting, came))
        return one

    async def _start(self, topic: str, waiting: deque[bytes], came: asyncio.Event) -> None:
        task = self._loop.create_task(self._forward(topic, waiting, came))
        self._forwarding.append(task)

    async def _forward(self, topic: str, waiting: deque[bytes], came: asyncio.Event) -> None:
        """Until it is cancelled: a frame of whatever has come."""
        try:
            while await came.wait():
                came.clear()
                values = [waiting.popleft() for _ in range(len(waiting))]
                if values:
                    await self._producer.send_batch(
                        topic, values, on_publish_confirm=self._confirms
                    )
        except Exception as error:
            self._failed.append(error)

    async def _end(self) -> None:
        for task in self._forwarding:
            task.cancel()
        await self._producer.close()
        await end_the_rest()

    def close(self) -> None:
        """Ends the connection and the thread."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def end_the_rest() -> None:
    """All other tasks of this loop: rstream leaves some of connections that are closed."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


__all__ = ["LOGIN", "Confirms", "Paced", "end_the_rest"]
