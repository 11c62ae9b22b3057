"""Kafka's fastest Python client, confluent-kafka, in a process of its own.

Batches are librdkafka's own: `produce` in a loop is the fastest way in, as its `produce_batch`,
which takes a dict a record, measured slower. A delivery report comes for failures only, so a record
costs no callback. Settings beside the defaults are librdkafka's advice for throughput (larger
batches, a longer linger, a deeper queue) and for latency (no linger, `enable.idempotence`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode

_THROUGHPUT: Final = {"batch.size": 1_000_000, "batch.num.messages": 100_000,
                      "queue.buffering.max.messages": 2_000_000,
                      "queue.buffering.max.kbytes": 1 << 20, "linger.ms": 10}  # fmt: skip
#: The Java client's default since 3.0: at most 5 requests on their way, so what a slow disk holds
#: up is gathered into the next; librdkafka's own default makes a request, and an fsync, a record.
_LATENCY: Final = {"linger.ms": 0, "enable.idempotence": True}
_READ: Final = {"fetch.wait.max.ms": 100, "queued.max.messages.kbytes": 1 << 20,
                "queued.min.messages": 1_000_000, "enable.auto.commit": False,
                "auto.offset.reset": "earliest"}  # fmt: skip
_QUIETLY: Final = {"log_level": 2}  # it writes to stderr; errors come back by callbacks anyway
_LIMIT_S: Final = 240.0
_MANY: Final = 10_000  # records of one call of consume
_LOOK_S: Final = 0.1
_QUIET: Final = 200  # empty looks, after which nothing more comes


class KafkaClient(Client):
    """Producers and consumers by librdkafka."""

    def __init__(self, address: str) -> None:
        self._servers = address
        self._producers: dict[str, Any] = {}
        self._failed: list[str] = []

    def _producer(self, kind: str, mode: Mode, settings: dict[str, Any]) -> Any:
        """One for throughput and one for latency, made once."""
        if kind not in self._producers:
            from confluent_kafka import Producer

            acks = {"none": "0", "memory": "all", "durable": "all"}[mode.acks]
            self._producers[kind] = Producer(
                {"bootstrap.servers": self._servers, "acks": acks, **_QUIETLY, **settings,
                 "delivery.report.only.error": True, "on_delivery": self._delivered,
                 "error_cb": self._note}
            )  # fmt: skip
        return self._producers[kind]

    def _note(self, error: Any) -> None:
        if error.fatal():
            self._failed.append(str(error))

    def _delivered(self, error: Any, _message: Any) -> None:
        if error is not None:
            self._failed.append(str(error))

    def _make_room(self, producer: Any, topic: str, value: bytes) -> None:
        until = time.monotonic() + _LIMIT_S
        while time.monotonic() < until and not self._failed:
            producer.poll(0.01)
            with contextlib.suppress(BufferError):
                producer.produce(topic, value)
                return
        raise RuntimeError(f"no room in the producer's queue; {self._failed[:1]}")

    def _end(self, producer: Any) -> None:
        left = producer.flush(_LIMIT_S)
        if left or self._failed:
            raise RuntimeError(f"{left} records not delivered; {self._failed[:1]}")

    def create(self, topic: str, mode: Mode) -> None:
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self._servers, **_QUIETLY})
        new = NewTopic(topic, num_partitions=1, replication_factor=1, config=dict(mode.settings))
        for done in admin.create_topics([new]).values():
            done.result(_LIMIT_S)

    def send_many(self, topic: str, values: list[bytes], mode: Mode) -> None:
        self.send_each(topic, values, mode)

    def send_each(self, topic: str, values: list[bytes], mode: Mode) -> None:
        producer = self._producer("throughput", mode, _THROUGHPUT)
        produce = producer.produce
        for value in values:
            try:
                produce(topic, value)
            except BufferError:  # as many as it may hold are on their way
                self._make_room(producer, topic, value)
        self._end(producer)

    def sender(self, topic: str, mode: Mode) -> Callable[[bytes], None]:
        producer = self._producer("latency", mode, _LATENCY)
        produce, poll = producer.produce, producer.poll

        def one(value: bytes) -> None:
            produce(topic, value)
            poll(0)

        return one

    def _consumer(self, topic: str, offset: int, settings: dict[str, Any]) -> Any:
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self._servers, "group.id": "measured",
                             **_QUIETLY, **settings})  # fmt: skip
        consumer.assign([TopicPartition(topic, 0, offset)])
        return consumer

    def tail(self, topic: str, mode: Mode) -> Iterator[list[bytes]]:
        from confluent_kafka import TopicPartition

        consumer = self._consumer(topic, 0, _READ)
        try:
            end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=_LIMIT_S)[1]
            consumer.assign([TopicPartition(topic, 0, end)])
            yield []
            while True:
                # One blocks until the first is there; the rest of what is there comes with it.
                message = consumer.poll(_LOOK_S)
                if message is None:
                    yield []
                    continue
                yield _values([message, *consumer.consume(_MANY, 0)])
        finally:
            consumer.close()

    def values(self, topic: str, count: int) -> Iterator[list[bytes]]:
        """The same as `records`: this client has no way to values without an object each."""
        return self.records(topic, count)

    def records(self, topic: str, count: int) -> Iterator[list[bytes]]:
        consumer = self._consumer(topic, 0, _READ)
        quiet = 0
        try:
            while count > 0 and quiet < _QUIET:
                messages = consumer.consume(_MANY, _LOOK_S)
                quiet = 0 if messages else quiet + 1
                values = _values(messages)
                count -= len(values)
                yield values
        finally:
            consumer.close()

    def close(self) -> None:
        for producer in self._producers.values():
            producer.flush(1)


def _values(messages: list[Any]) -> list[bytes]:
    """Of records that came; reads each one's offset, as a program that commits does."""
    values = []
    for message in messages:
        if message.error() is not None:
            raise RuntimeError(str(message.error()))
        message.offset()
        values.append(message.value())
    return values


__all__ = ["KafkaClient"]
