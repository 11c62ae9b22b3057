"""How an asyncio consumer reads: without a thread a wait, one task at a time, nothing lost.

Owns: where each step runs. What is in the rings is fetched in the loop (a copy of up to 256 KiB);
waiting for more is the watcher's (`_core/watch.h`), which wakes the loop; everything else that a
consumer does (segment files, finding a partition again, offsets by time) runs in the client's
reading thread, one call after the other, since a cold read may take milliseconds, and the way there
and back some 0.1 ms for each 512 KiB.

No record is lost by a cancelled `await`: records are taken after the last suspension only, and a
call in the reading thread goes on to its end, where its records are kept for the next call.

A fetch gives way to the loop once, before it looks; records that were fetched already come without
any suspension. So a consumer that is never out of records lets others run after each 256 KiB.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from shmbroker._core import reader as core
from shmbroker._core.batch import Record
from shmbroker._core.reader import AsyncRecords, RecordBatch
from shmbroker.client.consumer import Consumer as SyncConsumer
from shmbroker.client.consumer import check_options
from shmbroker.client.reading import NEVER_NS
from shmbroker.errors import ClosedError, ConcurrentUse, ForkedError

if TYPE_CHECKING:
    from shmbroker.client.aio.client import Client

T = TypeVar("T")


class Reading(AsyncRecords):
    """A synchronous Consumer, read from an event loop. Not for users: see Consumer."""

    _kind: ClassVar[type[SyncConsumer]] = SyncConsumer
    _stream: SyncConsumer | None  # None: not begun

    def __init__(self, client: Client, topics: tuple[str, ...], **options: Any) -> None:
        self._closed = True  # until it is whole, for __del__
        self._check_options(topics, options)
        self._client = client
        self._pid = os.getpid()
        self._make = partial(self._kind, client._sync, topics, idle="park", **options)
        self._topics = topics
        self._inside = False  # a task is
        self._left = asyncio.Event()  # it is not
        self._left.set()
        self._ended_inside = False  # closed while a task was inside: its iteration ends
        self._wake: asyncio.Future[bool] | None = None  # of the wait that is under way
        self._waiter: core.Waiter | None = None
        self._pending: asyncio.Future[Any] | None = None  # in the reading thread
        self._ending: asyncio.Future[Any] = client._loop.create_future()  # done by close()
        self._closed = False

    def _check_options(self, topics: tuple[str, ...], options: dict[str, Any]) -> None:
        check_options(
            topics,
            options.get("partitions"),
            options.get("isolation", "durable"),
            options.get("on_gap", "error"),
        )

    async def _next(self) -> Record:
        while True:
            try:
                await self._fill(NEVER_NS)
            except ClosedError:
                if not self._ended_inside:
                    raise
                self._ended_inside = False
                raise StopAsyncIteration from None
            record = self._take()
            if record is not None:
                return record

    # --- one task at a time --------------------------------------------------------------------

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ForkedError("this consumer")
        if self._closed:
            raise ClosedError("this consumer is closed")
        self._client.check()

    async def _enter(self) -> SyncConsumer:
        """Begins a call that is not for two tasks at once; makes the inner consumer if need be."""
        self._check()
        if self._inside:
            raise ConcurrentUse(
                "two tasks are inside one consumer, which belongs to one at a time: give each "
                "task a consumer of its own"
            )
        self._inside = True
        self._left.clear()
        try:
            while (left := self._unfinished()) is not None:
                await asyncio.wait({left, self._ending}, return_when=asyncio.FIRST_COMPLETED)
                self._check()
            if self._stream is None:
                self._stream = await self._in_thread(self._make, keep=self._begun)
            return self._stream
        except BaseException:
            self._leave()
            raise

    def _unfinished(self) -> asyncio.Future[Any] | None:
        """What a call that was cancelled has left to end by itself."""
        return None if self._pending is None or self._pending.done() else self._pending

    def _leave(self) -> None:
        self._inside = False
        self._left.set()

    async def _call(self, call: Callable[[SyncConsumer], T], blocks: bool) -> T:
        stream = await self._enter()
        try:
            return await self._in_thread(partial(call, stream)) if blocks else call(stream)
        finally:
            self._leave()

    def _begun(self, stream: SyncConsumer) -> None:
        self._stream = stream
        if self._closed:
            stream.close()

    async def _in_thread(self, fn: Callable[[], T], keep: Callable[[T], object] | None = None) -> T:
        """`fn` in the reading thread. Cancelled, it goes on, and `keep` gets what it returns."""
        pending: asyncio.Future[Any] = self._client._reading.start(fn)
        self._pending = pending
        try:
            await asyncio.wait({pending, self._ending}, return_when=asyncio.FIRST_COMPLETED)
            if self._closed:
                raise ClosedError("this consumer was closed meanwhile")
            self._pending = None
            result: T = pending.result()
            return result
        except (asyncio.CancelledError, ClosedError):
            if pending.done():
                self._settle(keep, pending)
            else:
                pending.add_done_callback(partial(self._settle, keep))
            raise

    def _settle(self, keep: Callable[[T], object] | None, pending: asyncio.Future[T]) -> None:
        self._pending = None
        if keep is not None and not pending.cancelled() and pending.exception() is None:
            keep(pending.result())

    # --- fetching ------------------------------------------------------------------------------

    async def _fill(self, deadline_ns: int) -> None:
        """Has records for `_take`, or none until the deadline."""
        batch = await self._fetch(deadline_ns, records=True)
        if batch is not None:
            self._keep(batch)

    def _keep(self, batch: RecordBatch | None) -> None:
        if batch is not None and self._stream is not None:
            self._stream._buffer(batch)

    def _handed(self, batch: RecordBatch | None) -> RecordBatch | None:
        """What `_fetch` gave goes to the user, whole."""
        if batch is not None and self._stream is not None:
            self._stream._hand_out(batch)
        return batch

    async def _fetch(self, deadline_ns: int, records: bool = False) -> RecordBatch | None:
        """The next batch, or None at the deadline; with `records` also when there are some left."""
        stream = await self._enter()
        try:
            await asyncio.sleep(0)
            if records and stream._next_buffered is not None and not stream._called:
                return None  # what a cancelled call left
            stream._ask()
            stream._unbuffer()
            connection, again = self._client.connection, True
            while not self._closed:
                if self._is_called(stream) and not connection.epoch.value & 1:
                    await self._attend(stream)
                    continue
                found = stream._try()
                if found:
                    return found
                if found is None:
                    if not await self._sleep(deadline_ns, stream):
                        return None
                elif connection.epoch.value & 1:
                    if connection.look(again) is None and not await self._sleep(deadline_ns):
                        return None
                    again = False
                else:
                    batch = await self._in_thread(partial(stream._next_batch, 0), keep=self._keep)
                    if batch is not None or deadline_ns <= core.monotonic_ns():
                        return batch
            raise ClosedError("this consumer was closed meanwhile")
        finally:
            self._leave()

    def _is_called(self, stream: SyncConsumer) -> bool:
        """Whether there is something to be seen to before the next record."""
        return stream._called

    async def _attend(self, stream: SyncConsumer) -> None:
        """Sees to it."""
        stream._answer_call()

    async def _sleep(self, deadline_ns: int, stream: SyncConsumer | None = None) -> bool:
        """Until `stream` has something to look at, or else the broker; False at the deadline."""
        left_s = (deadline_ns - core.monotonic_ns()) / 1e9
        if left_s <= 0:
            return False
        loop, bridge = self._client._loop, self._client._bridge
        wake: asyncio.Future[bool] = loop.create_future()
        self._wake = wake
        timer = None
        bridge.on_wake(self._woken)
        try:
            if stream is not None:
                self._waiter = self._client._watcher.watch(stream)
            if deadline_ns != NEVER_NS:
                timer = loop.call_later(left_s, self._time_out)
            return await wake
        finally:
            bridge.off_wake(self._woken)
            self._wake = None
            if self._waiter is not None:
                self._waiter.off()
                self._waiter = None
            if timer is not None:
                timer.cancel()

    def _woken(self) -> None:
        if self._waiter is None or self._waiter.fired:
            self._end_sleep(True)

    def _time_out(self) -> None:
        self._end_sleep(False)

    def _end_sleep(self, woken: bool) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(woken)


__all__ = ["Reading"]
