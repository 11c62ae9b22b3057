"""The asyncio member of a group: a synchronous GroupConsumer whose callbacks run in the loop.

Owns: when what the group asks of a member (`GroupConsumer._attending`) is done: by a task of its
own, which a read starts and waits for. What may block of it runs in the client's reading thread,
the program's callbacks between that in the loop, be they coroutines or not. A cancelled read leaves
the task to end by itself, so no callback is cut in half by a timeout; the next call waits for it.

Heartbeats are the connection's heart's, on a thread of its own: a loop that is held up loses no
membership, and what it holds up is only the giving up of what the member has lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from shmbroker.client.aio.consumer import Consumer
from shmbroker.client.aio.worker import look
from shmbroker.client.consumer import Consumer as SyncConsumer
from shmbroker.client.group_consumer import LEAVE_S, Done, Steps, check_sharing
from shmbroker.client.group_consumer import GroupConsumer as SyncGroupConsumer
from shmbroker.errors import ClosedError, ConcurrentUse, TimedOut

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmbroker.client.aio.client import Client
    from shmbroker.client.metadata import TopicPartition

T = TypeVar("T")
_CHECKED: Final = ("pattern", "start", "auto_commit_ms", "auto_checkpoint")


class GroupConsumer(Consumer):
    """Made by `Client.consumer(group=…)`; joins at `async with` or `await`, or with the first call.

    As `shmbroker.GroupConsumer`. `on_assign`, `on_revoke` and `on_lost` are functions or coroutine
    functions; they run in the loop while a read waits for them, and may commit and seek, not read.
    """

    _kind: ClassVar[type[SyncConsumer]] = SyncGroupConsumer
    _stream: SyncGroupConsumer | None

    def __init__(self, client: Client, topics: tuple[str, ...], **options: Any) -> None:
        self._group: Final[str] = options["group"]
        self._attending: asyncio.Task[None] | None = None
        super().__init__(client, topics, **options)

    def _check_options(self, topics: tuple[str, ...], options: dict[str, Any]) -> None:
        super()._check_options(topics or ("",), options)
        asked = {k: options[k] for k in _CHECKED if k in options}
        check_sharing(topics, **asked)

    # --- the group: as of shmbroker.GroupConsumer ----------------------------------------------

    @property
    def group(self) -> str:
        """Its name."""
        return self._group

    @property
    def member_id(self) -> str:
        """Who this is in the group; "" before it has joined."""
        return "" if self._stream is None else self._stream.member_id

    async def commit(
        self, what: Done | None = None, *, metadata: str = ""
    ) -> dict[TopicPartition, int]:
        """Keeps how far the group has come; durable when it returns.

        Cancelled, it may count or not.
        """
        return await self._call_group(lambda s: s.commit(what, metadata=metadata))

    async def committed(self) -> dict[TopicPartition, int | None]:
        """The committed offset of each partition that this member has; None: there is none."""
        return await self._call_group(lambda s: s.committed())

    async def checkpoint(self, what: Done | None = None) -> None:
        """Keeps how far the group has come, in shared memory; as of GroupConsumer."""
        stream = self._stream
        blocks = stream is None or stream._checkpoints is None
        await self._call(lambda s: s.checkpoint(what), blocks)  # type: ignore[attr-defined]

    async def _call_group(self, call: Callable[[SyncGroupConsumer], T]) -> T:
        return await self._call(call, True)  # type: ignore[arg-type]

    # --- one task at a time, and its callbacks -------------------------------------------------

    @property
    def _calls_back(self) -> bool:
        """Whether the caller is a callback of this consumer's."""
        return self._attending is not None and asyncio.current_task() is self._attending

    async def _enter(self) -> SyncGroupConsumer:
        if self._calls_back:
            raise ConcurrentUse(
                "a consumer's callback can't read from it: it is inside a read; seek, commit and "
                "the like are fine"
            )
        stream = await super()._enter()
        assert isinstance(stream, SyncGroupConsumer)
        return stream

    def _unfinished(self) -> asyncio.Future[Any] | None:
        if self._attending is not None and not self._attending.done():
            return self._attending
        return super()._unfinished()

    async def _call(self, call: Callable[[SyncConsumer], T], blocks: bool) -> T:
        if not self._calls_back:
            return await super()._call(call, blocks)
        stream = self._stream
        assert stream is not None
        return await self._to_its_end(partial(call, stream)) if blocks else call(stream)

    async def _to_its_end(self, fn: Callable[[], T]) -> T:
        """`fn` in the reading thread, for who is inside already."""
        pending: asyncio.Future[Any] = self._client._reading.start(fn)
        self._pending = pending
        result: T = await asyncio.shield(pending)
        self._pending = None
        return result

    # --- what the group asks -------------------------------------------------------------------

    def _is_called(self, stream: SyncConsumer) -> bool:
        return stream._called or self._attending is not None

    async def _attend(self, stream: SyncConsumer) -> None:
        assert isinstance(stream, SyncGroupConsumer)
        attending = self._attending
        if attending is None:
            walk = self._walk(stream, stream._attending())
            attending = self._attending = self._client._loop.create_task(walk)
            attending.add_done_callback(look)
        await asyncio.wait({attending, self._ending}, return_when=asyncio.FIRST_COMPLETED)
        if self._closed:
            raise ClosedError("this consumer was closed meanwhile")
        self._attending = None
        try:
            attending.result()
        except TimedOut:
            if not self._client.connection.epoch.value & 1:
                raise

    async def _walk(self, stream: SyncGroupConsumer, steps: Steps) -> None:
        """Through all of it, with the program's code where it is asked for."""
        failed: BaseException | None = None
        while call := await self._to_its_end(partial(stream._step, steps, failed)):
            callback, partitions = call
            failed = None
            try:
                said = callback(partitions)
                if inspect.isawaitable(said):
                    await said
            except BaseException as error:
                failed = error

    # --- its life ------------------------------------------------------------------------------

    def _begun(self, stream: SyncConsumer) -> None:
        if not self._closed:
            super()._begun(stream)
        else:  # it joined after all: it leaves again, in the thread
            with contextlib.suppress(RuntimeError):  # the client is closed as well
                self._client._reading.start(stream.close)

    async def _say_farewell(self) -> None:
        """Commits if that happens by itself, and leaves the group; some seconds at most."""
        stream = self._stream
        if stream is None:
            return
        stream._heart.remove(stream._member)
        try:
            async with asyncio.timeout(2 * LEAVE_S):
                if not self._calls_back:
                    await self._left.wait()
                    while (left := self._unfinished()) is not None:
                        await asyncio.wait({left})
                    if stream._may_speak():
                        self._attending = asyncio.current_task()
                        await self._walk(stream, stream._part(stream._asked_past()))
                if stream._may_speak():
                    await self._to_its_end(stream._leave_group)
        except TimeoutError:
            self._stop_attending()
        except ClosedError:
            pass

    def _stop_attending(self) -> None:
        """A callback takes longer than a close may."""
        attending, self._attending = self._attending, None
        if attending is not None and attending is not asyncio.current_task():
            attending.cancel()

    def _end(self) -> None:
        self._closed = True
        if self._waiter is not None:
            self._waiter.off()
        if self._stream is not None and os.getpid() == self._pid:
            self._stream._heart.remove(self._stream._member)
            SyncConsumer.close(self._stream)  # what could be said was said: nothing blocks here


__all__ = ["GroupConsumer"]
