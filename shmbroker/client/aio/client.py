"""The asyncio client: a synchronous Client, the loop's bridge, and three threads that serve it.

Owns: the bridge, the watcher (a C thread that waits for all consumers), the two worker threads, and
the list of what was made from the client (closed with it). Belongs to the event loop it was
connected in; nothing here may be used from another thread or loop.

Closing goes from the outside in: what was made, then the attachment (whose thread wakes the
bridge), then the watcher (which writes its eventfd), then the bridge.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
import weakref
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, Unpack, overload

from shmbroker._core.reader import Watcher
from shmbroker.client import client as sync
from shmbroker.client.aio.admin import Admin
from shmbroker.client.aio.bridge import Bridge
from shmbroker.client.aio.consumer import Consumer
from shmbroker.client.aio.producer import Producer
from shmbroker.client.aio.worker import Worker
from shmbroker.errors import ConcurrentUse, ForkedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from types import TracebackType
    from typing import Literal

    from shmbroker.client.aio.group_consumer import GroupConsumer
    from shmbroker.client.aio.serializing import (
        DeserializingConsumer,
        DeserializingGroupConsumer,
        SerializingProducer,
    )
    from shmbroker.client.connection import Connection
    from shmbroker.client.metadata import Metadata, TopicPartition
    from shmbroker.client.positions import Start
    from shmbroker.client.serializing import Deserializer, Partitioner, Serializer

V = TypeVar("V")


class _Reading(TypedDict, total=False):
    """The options of `Client.consumer` beside the deserializers."""

    partitions: list[int] | None
    start: Start
    isolation: Literal["durable", "appended"]
    on_gap: Literal["error", "earliest"]


class _Sharing(TypedDict, total=False):
    """The options of a group's member beside the deserializers."""

    pattern: str | None
    start: Literal["earliest", "latest", "error"] | datetime
    isolation: Literal["durable", "appended"]
    on_gap: Literal["error", "earliest"]
    auto_commit_ms: int | None
    auto_checkpoint: bool
    instance_id: str | None
    assignor: Literal["sticky", "range", "roundrobin"] | None
    session_timeout_ms: int | None
    rebalance_timeout_ms: int | None
    on_assign: Callable[[list[TopicPartition]], object] | None
    on_revoke: Callable[[list[TopicPartition]], object] | None
    on_lost: Callable[[list[TopicPartition]], object] | None


class _Closable(Protocol):
    async def close(self) -> None: ...
    def _end(self) -> None:
        """What close() does without waiting for anything; twice is fine."""


def _kind_of_consumer(shares: bool, decodes: bool) -> Callable[..., Consumer]:
    """Which class; none is imported that is not needed."""
    if decodes:
        from shmbroker.client.aio import serializing

        return (
            serializing.DeserializingGroupConsumer if shares else serializing.DeserializingConsumer
        )
    if shares:
        from shmbroker.client.aio.group_consumer import GroupConsumer

        return GroupConsumer
    return Consumer


def connect(
    instance: str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    timeout: float = 5.0,
    reconnect_s: float = 30.0,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    keys: str | os.PathLike[str] | None = None,
    local: bool = True,
) -> Connecting:
    """As `shmbroker.connect`: `await` it, or use it with `async with`, which closes the client."""
    return Connecting(
        partial(
            sync.connect,
            instance,
            data_dir=data_dir,
            timeout=timeout,
            reconnect_s=reconnect_s,
            token=token,
            token_file=token_file,
            keys=keys,
            local=local,
        )
    )


class Connecting:
    """A client to be: attaches when it is awaited or entered, without blocking the loop."""

    def __init__(self, attach: partial[sync.Client]) -> None:
        self._attach = attach
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._open().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._open()
        return self._client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._client is not None
        await self._client.__aexit__(kind, error, trace)

    async def _open(self) -> Client:
        loop = asyncio.get_running_loop()
        requests = Worker(loop, "requests")
        try:
            attached = await requests.run(self._attach, undo=sync.Client.close)
        except BaseException:
            requests.close()
            raise
        return Client(attached, loop, requests)


class Client(Admin):
    """Made by `shmbroker.aio.connect()`; close it, or use it with `async with`."""

    def __init__(
        self, attached: sync.Client, loop: asyncio.AbstractEventLoop, requests: Worker
    ) -> None:
        """`requests` is the thread that attached."""
        self._pid = os.getpid()
        self._closed = False
        self._sync: sync.Client = attached
        self._loop = loop
        self._requests = requests
        self._reading = Worker(loop, "reading")
        self._bridge = Bridge(loop)
        self._watcher = Watcher(self._bridge.fd)
        self._made: weakref.WeakSet[_Closable] = weakref.WeakSet()
        attached.connection.on_change(self._bridge.wake)

    @property
    def connection(self) -> Connection:
        """The attachment, for producers and consumers."""
        return self._sync.connection

    @property
    def metadata(self) -> Metadata:
        """The cache of topics; asking it may block, so in a thread."""
        return self._sync.metadata

    @property
    def instance(self) -> str:
        """The name of the broker's instance."""
        return self._sync.instance

    @property
    def address(self) -> str:
        """As of `shmbroker.Client`."""
        return self._sync.address

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def check(self) -> None:
        """ForkedError in a forked child, ClosedError, or ConcurrentUse in another event loop."""
        self._sync.connection.check()
        if asyncio.get_running_loop() is not self._loop:
            raise ConcurrentUse(
                "a client of shmbroker.aio belongs to the event loop that it was connected in: "
                "connect once in each loop"
            )

    @overload
    def producer(
        self,
        *,
        partitioner: None = None,
        key_serializer: None = None,
        value_serializer: None = None,
        **options: Any,
    ) -> Producer: ...
    @overload
    def producer(
        self,
        *,
        partitioner: Partitioner | None = None,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
        **options: Any,
    ) -> SerializingProducer: ...
    def producer(
        self,
        *,
        partitioner: Partitioner | None = None,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
        **options: Any,
    ) -> Producer:
        """A Producer, to be used with `async with`; as of `shmbroker.Client.producer`.

        The partitioner and the serializers run in the loop's thread.
        """
        self.check()
        made: Producer
        if partitioner is None and key_serializer is None and value_serializer is None:
            made = Producer(self, self._bridge, **options)
        else:
            from shmbroker.client.aio.serializing import SerializingProducer

            made = SerializingProducer(
                self,
                self._bridge,
                partitioner=partitioner,
                key_serializer=key_serializer,
                value_serializer=value_serializer,
                **options,
            )
        self._made.add(made)
        return made

    @overload
    def consumer(
        self,
        *topics: str,
        group: str,
        value_deserializer: Callable[[bytes], V],
        key_deserializer: Deserializer | None = None,
        **options: Unpack[_Sharing],
    ) -> DeserializingGroupConsumer[V]: ...
    @overload
    def consumer(
        self,
        *topics: str,
        group: str,
        key_deserializer: Deserializer,
        **options: Unpack[_Sharing],
    ) -> DeserializingGroupConsumer[bytes]: ...
    @overload
    def consumer(self, *topics: str, group: str, **options: Unpack[_Sharing]) -> GroupConsumer: ...
    @overload
    def consumer(
        self,
        *topics: str,
        value_deserializer: Callable[[bytes], V],
        key_deserializer: Deserializer | None = None,
        **options: Unpack[_Reading],
    ) -> DeserializingConsumer[V]: ...
    @overload
    def consumer(
        self, *topics: str, key_deserializer: Deserializer, **options: Unpack[_Reading]
    ) -> DeserializingConsumer[bytes]: ...
    @overload
    def consumer(self, *topics: str, **options: Unpack[_Reading]) -> Consumer: ...
    def consumer(
        self,
        *topics: str,
        group: str | None = None,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Callable[[bytes], Any] | None = None,
        **options: Any,
    ) -> Consumer:
        """A Consumer, as of `shmbroker.Client.consumer`; it begins when it is entered or awaited.

        So "latest" is the end as it is then, and a group is joined then. Waits park in the
        watcher's thread: nothing spins. The deserializers and a group's callbacks, which may be
        coroutine functions, run in the loop's thread.
        """
        self.check()
        more = dict[str, Any]()
        if key_deserializer is not None or value_deserializer is not None:
            more = {"key_deserializer": key_deserializer, "value_deserializer": value_deserializer}
        kind = _kind_of_consumer(group is not None, bool(more))
        if group is not None:
            more["group"] = group
        made = kind(self, topics, **options, **more)
        self._made.add(made)
        return made

    async def close(self) -> None:
        """Closes what was made from this client, then hangs up; ends every wait. Twice is fine.

        Raises what a producer's close() raises (DeliveryError), after everything was closed; that
        it was cancelled, too.
        """
        if os.getpid() != self._pid:
            raise ForkedError("this client")
        if self._closed:
            return
        self._closed = True
        failed: BaseException | None = None
        try:
            for made in list(self._made):
                try:
                    await made.close()
                except Exception as error:
                    failed = failed or error
            await self._hang_up()
        finally:
            self._end()
        if failed is not None:
            raise failed

    async def _hang_up(self) -> None:
        closing = Worker(self._loop, "closing")  # the others may be waiting for the broker
        try:
            await closing.run(self._sync.close)
            for worker in (self._requests, self._reading):
                await worker.run(_nothing)  # what they did has ended with the attachment
        finally:
            closing.close()

    def _end(self) -> None:
        for made in list(self._made):  # what close() did not come to, if it was cancelled
            made._end()
        self._sync.close()
        self._watcher.close()
        self._bridge.close()
        self._requests.close()
        self._reading.close()

    async def __aenter__(self) -> Client:
        self.check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.close()
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"closing the client failed too: {second}")

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._pid == os.getpid():
            self._closed = True
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                if not sys.is_finalizing():
                    self._end()

    def __repr__(self) -> str:
        return f"<shmbroker.aio.Client of {self.instance!r}{', closed' if self._closed else ''}>"


def _nothing() -> None:
    """Has its turn when all before it had theirs."""


__all__ = ["Client", "Connecting", "connect"]
