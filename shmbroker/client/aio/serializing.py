"""The asyncio twins of the producer and consumer with a program's own functions.

Owns: when the functions of `client/serializing.py` run beside an event loop: in the loop's thread,
between two suspensions. So they hold up other tasks for as long as they take, and one that may
block has no business here. A cancelled `await` loses no record by them: a record is encoded
before it is taken into the ring, and decoded after the last suspension.

A producer or consumer without any of them is the plain class.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shmbroker._core.producer import ProducerBase
from shmbroker.client.aio.consumer import Consumer
from shmbroker.client.aio.group_consumer import GroupConsumer
from shmbroker.client.aio.producer import Producer
from shmbroker.client.serializing import (
    DecodedBatch,
    DecodedRecord,
    Deserializer,
    Incoming,
    Outgoing,
    Partitioner,
    Serializer,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from shmbroker._core.producer import ManyReceipt, Receipt
    from shmbroker._core.reader import RecordBatch

V = TypeVar("V")


class SerializingProducer(Producer):
    """A Producer of whatever its serializers take. They run in the loop's thread."""

    def __init__(
        self,
        client: Any,
        bridge: Any,
        *,
        partitioner: Partitioner | None = None,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
        **options: Any,
    ) -> None:
        self._asks = partitioner is not None
        self._metadata = client.metadata
        self._partitions: dict[str, int] = {}  # of each topic, as of its last record
        self._outgoing = Outgoing(
            self._partitions.__getitem__, partitioner, key_serializer, value_serializer
        )
        super().__init__(client, bridge, **options)
        self._in_thread = ProducerBase()  # for what the core's send_many() can't do in the loop
        self._in_thread._begin(self._sender_state)

    async def send(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        headers: Mapping[str, Buffer | None] | Iterable[tuple[str, Buffer | None]] | None = None,
        partition: int | None = None,
        timestamp: int | datetime | None = None,
    ) -> Receipt:
        """As Producer.send; SerializationError when a function failed, and nothing was sent."""
        if self._asks and partition is None:
            await self._know(topic)
        value, key, partition = self._outgoing.record(topic, value, key, partition)
        return await super().send(topic, value, key, headers, partition, timestamp)

    async def send_many(
        self,
        topic: str,
        values: Any,
        keys: Any = None,
        partition: int | None = None,
        timestamps: Any = None,
    ) -> ManyReceipt:
        """As Producer.send_many; whatever is iterated goes through the serializers one by one.

        All of them before the first is sent, and without a turn for other tasks: give a loop that
        must stay quick thousands at a time. With a partitioner the records go into the ring from a
        thread of the loop's executor, as arrays do: cancelled, it goes on there.
        """
        if self._asks and partition is None:
            await self._know(topic)
        values, keys, each = self._outgoing.many(topic, values, keys, partition)
        if each is None:
            return await super().send_many(topic, values, keys, partition, timestamps)
        send = partial(self._in_thread._send_many, topic, values, keys, None, timestamps, each)
        return await asyncio.get_running_loop().run_in_executor(None, send)

    async def _know(self, topic: str) -> None:
        """Has the topic's number of partitions, as it is now, for the partitioner."""
        self._sender_state.check()
        info = self._metadata.known(topic)
        if info is None:  # asking the broker may block
            loop = asyncio.get_running_loop()
            info = await loop.run_in_executor(None, self._metadata.get, topic)
        self._partitions[topic] = len(info.partitions)


class DeserializingConsumer(Consumer, Generic[V]):
    """A Consumer whose records come decoded. The deserializers run in the loop's thread.

    A record that can't be decoded raises SerializationError after the position has moved behind
    it: the next call goes on with the next record.
    """

    def __init__(
        self,
        *args: Any,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Callable[[bytes], V] | None = None,
        **options: Any,
    ) -> None:
        self._incoming = Incoming(key_deserializer, value_deserializer)
        super().__init__(*args, **options)

    async def __anext__(self) -> DecodedRecord[V]:  # type: ignore[override]
        return self._incoming.record(await super().__anext__())

    async def poll(  # type: ignore[override]
        self, timeout: float | None = None
    ) -> DecodedRecord[V] | None:
        """As Consumer.poll. Raises SerializationError, and goes on behind it."""
        record = await super().poll(timeout)
        return None if record is None else self._incoming.record(record)

    async def poll_batch(  # type: ignore[override]
        self, timeout: float | None = None
    ) -> DecodedBatch[V] | None:
        """As Consumer.poll_batch; the batch decodes when it is asked for its records."""
        batch = await super().poll_batch(timeout)
        return None if batch is None else self._incoming.batch(batch)

    def batches(  # type: ignore[override]
        self, timeout: float | None = None
    ) -> AsyncIterator[DecodedBatch[V]]:
        """As Consumer.batches; a batch decodes when it is asked for its records."""
        return _Batches(super().batches(timeout), self._incoming)


class DeserializingGroupConsumer(DeserializingConsumer[V], GroupConsumer):
    """A GroupConsumer whose records come decoded."""


class _Batches(Generic[V]):
    """What `DeserializingConsumer.batches` returns; no generator, whose end a cancelled step is."""

    def __init__(self, undecoded: AsyncIterator[RecordBatch], incoming: Incoming[V]) -> None:
        self._undecoded, self._incoming = undecoded, incoming

    def __aiter__(self) -> _Batches[V]:
        return self

    async def __anext__(self) -> DecodedBatch[V]:
        return self._incoming.batch(await anext(self._undecoded))


__all__ = ["DeserializingConsumer", "DeserializingGroupConsumer", "SerializingProducer"]
