"""Serializers, deserializers and partitioners: a program's own functions around keys and values.

Owns: when they are called and with what, and the error that says which record one failed on. What
is None is not given to them: it is "no key" or a tombstone on both sides. `Outgoing` and `Incoming`
do the work and know neither producer nor consumer, so that the asyncio twins use them too.

A producer or consumer without any of them is the plain class: its fast path has no branch for this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from inspect import iscoroutinefunction
from operator import index
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shmbroker._core.columns import take
from shmbroker.client.consumer import Consumer
from shmbroker.client.group_consumer import GroupConsumer
from shmbroker.client.producer import Producer
from shmbroker.errors import SerializationError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from shmbroker._core.batch import Record
    from shmbroker._core.producer import ManyReceipt, Receipt
    from shmbroker._core.reader import RecordBatch

Serializer = Callable[[Any], "Buffer | None"]
Deserializer = Callable[[bytes], Any]
Partitioner = Callable[[str, "bytes | None", int], int]
V = TypeVar("V")


# --- on the way in -------------------------------------------------------------------------------


class Outgoing:
    """What is done to records before they are sent. Thread-safe as far as the functions are."""

    def __init__(
        self,
        partitions_of: Callable[[str], int],
        partitioner: Partitioner | None = None,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
    ) -> None:
        """`partitions_of`: how many partitions a topic has. `partitioner(topic, key, partitions)`:
        the partition's number, given the key as it is sent. A serializer returns a contiguous
        buffer, or None."""
        for name, function in (
            ("partitioner", partitioner),
            ("key_serializer", key_serializer),
            ("value_serializer", value_serializer),
        ):
            _callable(name, function)
        self._partitions_of = partitions_of
        self._partitioner = partitioner
        self._key, self._value = key_serializer, value_serializer

    def record(
        self, topic: str, value: Any, key: Any, partition: int | None
    ) -> tuple[Buffer | None, Buffer | None, int | None]:
        """Value, key and partition as `send` takes them. Raises SerializationError."""
        value = _serialized(self._value, value, "value", topic)
        key = _serialized(self._key, key, "key", topic)
        if partition is None and self._partitioner is not None:
            partition = self._partition(topic, key, self._partitions_of(topic))
        return value, key, partition

    def many(
        self, topic: str, values: Any, keys: Any, partition: int | None
    ) -> tuple[Any, Any, list[int] | None]:
        """Values, keys, and each record's partition (None: no partitioner was asked).

        For `_send_many`. Raises SerializationError, before anything is sent.
        """
        if self._value is not None:
            values = _all_serialized(self._value, values, "value", topic)
        if self._key is not None and keys is not None:
            keys = _all_serialized(self._key, keys, "key", topic)
        if partition is not None or self._partitioner is None:
            return values, keys, None
        values, count = _counted(values, "values")
        each: Iterable[Any] = (None,) * count
        if keys is not None:
            keys, _ = _counted(keys, "keys")
            each = keys if isinstance(keys, list) else keys.tolist()
        partitions = self._partitions_of(topic)
        return values, keys, [self._partition(topic, key, partitions) for key in each]

    def _partition(self, topic: str, key: Buffer | None, partitions: int) -> int:
        assert self._partitioner is not None
        owned = key if key is None or isinstance(key, bytes) else bytes(memoryview(key))
        try:
            chosen = index(self._partitioner(topic, owned, partitions))
        except Exception as error:
            raise _failed("the partitioner", topic, error) from error
        if not 0 <= chosen < partitions:
            raise SerializationError(
                f"the partitioner for topic {topic!r} chose partition {chosen}, and it has "
                f"{partitions}: return 0 to {partitions - 1}",
                topic=topic,
                partition=chosen,
            )
        return chosen


def _callable(name: str, function: object) -> None:
    if function is not None and not callable(function):
        raise TypeError(f"{name} is {type(function).__name__}, expected a function")
    if iscoroutinefunction(function):
        raise TypeError(
            f"{name} is a coroutine function, expected a plain one: await before sending, or after "
            "reading"
        )


def _serialized(function: Serializer | None, what: Any, role: str, topic: str, at: str = "") -> Any:
    if function is None or what is None:
        return what
    try:
        made = function(what)
    except Exception as error:
        raise _failed(f"the {role}_serializer", topic, error, at) from error
    if made is None or type(made) is bytes:
        return made
    try:
        memoryview(made)
    except TypeError:
        raise SerializationError(
            f"the {role}_serializer for topic {topic!r} returned {type(made).__name__}{at}, "
            "expected a buffer such as bytes, or None",
            topic=topic,
        ) from None
    return made


def _all_serialized(function: Serializer, what: Iterable[Any], role: str, topic: str) -> list[Any]:
    return [
        _serialized(function, item, role, topic, f" ({role} {number}; none were sent)")
        for number, item in enumerate(what)
    ]


def _failed(what: str, topic: str, error: Exception, at: str = "") -> SerializationError:
    return SerializationError(
        f"{what} for topic {topic!r} failed{at}: {type(error).__name__}: {error}", topic=topic
    )


def _counted(what: Any, role: str) -> tuple[Any, int]:
    """A list or a column, and how many it has; a stream can be read only once."""
    if isinstance(what, (str, bytes, bytearray)):
        raise TypeError(f"{role} is one {type(what).__name__}, expected a list of them")
    column = take(what, role)
    made = column if column is not None else list(what)
    return made, len(made)


class SerializingProducer(Producer):
    """A Producer of whatever its serializers take. As thread-safe as they are."""

    def __init__(
        self,
        client: Any,
        *,
        partitioner: Partitioner | None = None,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
        **options: Any,
    ) -> None:
        def partitions_of(topic: str) -> int:
            return len(client.metadata.get(topic).partitions)

        self._outgoing = Outgoing(partitions_of, partitioner, key_serializer, value_serializer)
        super().__init__(client, **options)

    def send(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        headers: Mapping[str, Buffer | None] | Iterable[tuple[str, Buffer | None]] | None = None,
        partition: int | None = None,
        timestamp: int | datetime | None = None,
    ) -> Receipt:
        """As Producer.send; SerializationError when a function failed, and nothing was sent."""
        value, key, partition = self._outgoing.record(topic, value, key, partition)
        return super().send(topic, value, key, headers, partition, timestamp)

    def send_many(
        self,
        topic: str,
        values: Any,
        keys: Any = None,
        partition: int | None = None,
        timestamps: Any = None,
    ) -> ManyReceipt:
        """As Producer.send_many; whatever is iterated goes through the serializers one by one."""
        values, keys, each = self._outgoing.many(topic, values, keys, partition)
        return self._send_many(topic, values, keys, partition, timestamps, each)


# --- on the way out ------------------------------------------------------------------------------


class DecodedRecord(Generic[V]):
    """A record whose key and value went through the deserializers; `raw` is the record as read."""

    __slots__ = ("key", "raw", "value")

    def __init__(self, raw: Record, key: Any, value: V | None) -> None:
        self.raw, self.key, self.value = raw, key, value

    topic = property(lambda self: self.raw.topic)
    partition = property(lambda self: self.raw.partition)
    offset = property(lambda self: self.raw.offset)
    timestamp = property(lambda self: self.raw.timestamp)
    headers = property(lambda self: self.raw.headers)

    def __repr__(self) -> str:
        raw = self.raw
        where = f"{raw.topic}-{raw.partition}@{raw.offset}"
        return f"<DecodedRecord {where} key={self.key!r} value={self.value!r}>"


class DecodedBatch(Generic[V]):
    """A RecordBatch behind deserializers: `values`, `keys`, `records` and iterating decode.

    Everything else, also `arrow()` and `array()`, is the `undecoded` batch's. An iteration goes on
    behind a record that can't be decoded, if it is asked for the next one.
    """

    def __init__(self, undecoded: RecordBatch, incoming: Incoming[V]) -> None:
        self.undecoded = undecoded
        self._incoming = incoming

    def __len__(self) -> int:
        return len(self.undecoded)

    def __iter__(self) -> Iterator[DecodedRecord[V]]:
        return map(self._incoming.record, self.undecoded.records())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "undecoded":  # not there yet, in a copy being made
            raise AttributeError(name)
        return getattr(self.undecoded, name)

    def __repr__(self) -> str:
        return f"<Decoded{self.undecoded!r}>"

    def records(self) -> list[DecodedRecord[V]]:
        """The records, in order. Raises SerializationError for the first that can't be decoded."""
        return list(self)

    def values(self) -> list[V | None]:
        """The values, in order. Raises as `records`."""
        return self._incoming.column(self.undecoded, self.undecoded.values(), "value")

    def keys(self) -> list[Any]:
        """The keys, in order. Raises as `records`."""
        return self._incoming.column(self.undecoded, self.undecoded.keys(), "key")


class Incoming(Generic[V]):
    """What is done to records after they were read."""

    def __init__(
        self,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Callable[[bytes], V] | None = None,
    ) -> None:
        """A deserializer takes bytes; without one they stay as they are."""
        _callable("key_deserializer", key_deserializer)
        _callable("value_deserializer", value_deserializer)
        self._key, self._value = key_deserializer, value_deserializer

    def record(self, raw: Record) -> DecodedRecord[V]:
        """The record decoded. Raises SerializationError, which has `raw` as its `record`."""
        key = self._decoded(self._key, raw.key, "key", raw)
        return DecodedRecord(raw, key, self._decoded(self._value, raw.value, "value", raw))

    def batch(self, undecoded: RecordBatch) -> DecodedBatch[V]:
        """The batch; decodes nothing yet."""
        return DecodedBatch(undecoded, self)

    def column(self, batch: RecordBatch, items: Sequence[bytes | None], role: str) -> list[Any]:
        """The keys or the values of a batch, decoded."""
        function = self._key if role == "key" else self._value
        if function is None:
            return list(items)
        made: list[Any] = []
        add = made.append
        try:
            for item in items:
                add(None if item is None else function(item))
        except Exception as error:
            raise _undecodable(role, batch.records()[len(made)], error) from error
        return made

    @staticmethod
    def _decoded(function: Deserializer | None, what: bytes | None, role: str, raw: Record) -> Any:
        if function is None or what is None:
            return what
        try:
            return function(what)
        except Exception as error:
            raise _undecodable(role, raw, error) from error


def _undecodable(role: str, raw: Record, error: Exception) -> SerializationError:
    return SerializationError(
        f"the {role} of the record at offset {raw.offset} of {raw.topic}-{raw.partition} can't be "
        f"deserialized: {type(error).__name__}: {error}; it is in `record`, and reading goes on "
        "behind it",
        topic=raw.topic,
        partition=raw.partition,
        offset=raw.offset,
        record=raw,
    )


class DeserializingConsumer(Consumer, Generic[V]):
    """A Consumer whose records come decoded.

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

    def __next__(self) -> DecodedRecord[V]:  # type: ignore[override]
        return self._incoming.record(super().__next__())

    def poll(self, timeout: float | None = None) -> DecodedRecord[V] | None:  # type: ignore[override]
        """As Consumer.poll. Raises SerializationError, and goes on behind it."""
        record = super().poll(timeout)
        return None if record is None else self._incoming.record(record)

    def poll_batch(  # type: ignore[override]
        self, timeout: float | None = None
    ) -> DecodedBatch[V] | None:
        """As Consumer.poll_batch; the batch decodes when it is asked for its records."""
        batch = super().poll_batch(timeout)
        return None if batch is None else self._incoming.batch(batch)

    def batches(  # type: ignore[override]
        self, timeout: float | None = None
    ) -> Iterator[DecodedBatch[V]]:
        """As Consumer.batches; a batch decodes when it is asked for its records."""
        return map(self._incoming.batch, super().batches(timeout))


class DeserializingGroupConsumer(DeserializingConsumer[V], GroupConsumer):
    """A GroupConsumer whose records come decoded."""


__all__ = [
    "DecodedBatch",
    "DecodedRecord",
    "DeserializingConsumer",
    "DeserializingGroupConsumer",
    "Incoming",
    "Outgoing",
    "SerializingProducer",
]
