"""The asyncio consumer: a synchronous Consumer whose waits are the event loop's.

Owns: the calls that a program makes, each of them the synchronous one, and a consumer's end; how it
reads and waits is in `reading.py`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from shmbroker._core import reader as core
from shmbroker._core.batch import Record
from shmbroker._core.reader import RecordBatch
from shmbroker.client.aio.reading import Reading
from shmbroker.client.consumer import Consumer as SyncConsumer
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.positions import Place, Where
from shmbroker.errors import ClosedError, ForkedError

if TYPE_CHECKING:
    from types import TracebackType

P = ParamSpec("P")
T = TypeVar("T")


def _twin(
    method: Callable[Concatenate[SyncConsumer, P], T], *, blocks: bool = True
) -> Callable[Concatenate[Consumer, P], Coroutine[Any, Any, T]]:
    """A call of the synchronous consumer as a coroutine; what may block runs in the thread."""

    @wraps(method)
    async def call(self: Consumer, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._call(lambda stream: method(stream, *args, **kwargs), blocks)

    return call


class Consumer(Reading):
    """Made by `Client.consumer`; begins at `async with` or `await`, or with the first call.

    `async for` gives a Record at a time and waits for more; it ends when another task closes the
    consumer. Reading calls raise as those of `shmbroker.Consumer`. One task at a time, others get
    ConcurrentUse; but `close` may come from any task.
    """

    # --- reading -------------------------------------------------------------------------------

    async def poll(self, timeout: float | None = None) -> Record | None:
        """The next record, or None when there is none within `timeout` seconds (None: waits for
        ever, 0: doesn't wait)."""
        deadline_ns = core.deadline(timeout)
        record = self._take()
        if record is None:
            await self._fill(deadline_ns)
            record = self._take()
        return record

    async def poll_batch(self, timeout: float | None = None) -> RecordBatch | None:
        """The next batch, or None when there is none within `timeout` seconds."""
        return self._handed(await self._fetch(core.deadline(timeout)))

    def batches(self, timeout: float | None = None) -> AsyncIterator[RecordBatch]:
        """Batches of consecutive records of one partition each, up to about 1 MiB.

        Ends after `timeout` seconds without a record (None: never), or when another task closes
        the consumer. A cancelled step may be repeated.
        """
        core.deadline(timeout)  # raises for nonsense now, not at the first batch
        self._check()
        return _Batches(self, timeout)

    # --- positions: those of shmbroker.Consumer ------------------------------------------------

    def assignment(self) -> list[TopicPartition]:
        """What this consumer reads, paused or not; nothing before it has begun."""
        self._check()
        return self._stream.assignment() if self._stream is not None else []

    def paused(self) -> list[TopicPartition]:
        """What `pause` stopped and `resume` didn't start again."""
        self._check()
        return self._stream.paused() if self._stream is not None else []

    async def seek(self, offset: Place, partition: Where | None = None) -> None:
        """Goes on at `offset`: "earliest", "latest", an offset, or the first record from a time on.

        As of `shmbroker.Consumer`.
        """
        await self._call(lambda s: s.seek(offset, partition), not isinstance(offset, int))

    position = _twin(SyncConsumer.position, blocks=False)
    pause = _twin(SyncConsumer.pause, blocks=False)
    resume = _twin(SyncConsumer.resume, blocks=False)
    beginning_offsets = _twin(SyncConsumer.beginning_offsets)
    end_offsets = _twin(SyncConsumer.end_offsets)
    lag = _twin(SyncConsumer.lag)
    offsets_for_time = _twin(SyncConsumer.offsets_for_time)

    # --- its life ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    async def close(self) -> None:
        """Ends the wait of another task in this consumer; twice is fine."""
        if self._pid != os.getpid():
            raise ForkedError("this consumer")
        if self._closed:
            return
        self._closed = True
        self._ended_inside = self._inside
        self._end_sleep(True)
        if not self._ending.done():
            self._ending.set_result(None)
        try:
            await self._say_farewell()
            if self._stream is not None:
                self._stream._stop_waits()
                self._client.connection.notify()
            await self._left.wait()
            if self._pending is not None and self._stream is not None:
                await asyncio.wait({self._pending})
        finally:
            self._end()

    async def _say_farewell(self) -> None:
        """What is to be done while the inner consumer still can."""

    def _end(self) -> None:
        self._closed = True
        if self._waiter is not None:
            self._waiter.off()
        if self._stream is not None:
            self._stream.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        await self._call(lambda stream: None, False)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._pid == os.getpid():
            self._closed = True
            try:
                if self._stream is not None:
                    warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                if not sys.is_finalizing():
                    self._end()

    def __repr__(self) -> str:
        what = f"of {', '.join(self._topics[:4])}"
        return f"<shmbroker.aio.Consumer {what}{', closed' if self._closed else ''}>"


class _Batches:
    """What `Consumer.batches` returns."""

    def __init__(self, consumer: Consumer, timeout: float | None) -> None:
        self._consumer, self._timeout = consumer, timeout

    def __aiter__(self) -> _Batches:
        return self

    async def __anext__(self) -> RecordBatch:
        try:
            consumer = self._consumer
            batch = consumer._handed(await consumer._fetch(core.deadline(self._timeout)))
        except ClosedError:
            if not self._consumer._ended_inside:
                raise
            batch = None
        if batch is None:
            raise StopAsyncIteration
        return batch


__all__ = ["Consumer"]
