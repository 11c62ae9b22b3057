"""The broker's Python client, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import shmbroker
from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode

_ACK_S: Final = 240.0
_QUIET_S: Final = 20.0
_LOOK_S: Final = 0.1


class ShmbrokerClient(Client):
    """Local producers and consumers with their defaults."""

    def __init__(self, address: tuple[str, str]) -> None:
        self._client = shmbroker.connect(address[0], data_dir=address[1], timeout=60, local=True)
        self._producer: Any = None

    def _open(self, mode: Mode) -> Any:
        if self._producer is None:
            self._producer = self._client.producer(acks=mode.acks)
        return self._producer

    def create(self, topic: str, mode: Mode) -> None:
        self._client.create_topic(topic)

    def send_many(self, topic: str, values: list[bytes], mode: Mode) -> None:
        self._open(mode).send_many(topic, values).result(_ACK_S)

    def send_each(self, topic: str, values: list[bytes], mode: Mode) -> None:
        producer = self._open(mode)
        send = producer.send
        for value in values:
            send(topic, value)
        producer.flush()  # raises for any that failed

    def sender(self, topic: str, mode: Mode) -> Callable[[bytes], None]:
        send = self._open(mode).send

        def one(value: bytes) -> None:
            send(topic, value)

        return one

    def tail(self, topic: str, mode: Mode) -> Iterator[list[bytes]]:
        seen: Literal["durable", "appended"] = "durable" if mode.acks == "durable" else "appended"
        waits: dict[str, Any] = mode.settings or {}
        with self._client.consumer(topic, start="latest", isolation=seen, **waits) as consumer:
            yield []
            while True:
                for batch in consumer.batches(timeout=_LOOK_S):
                    yield _given(batch)
                yield []

    def values(self, topic: str, count: int) -> Iterator[list[bytes]]:
        for batch in self._batches(topic, count):
            yield _given(batch)

    def records(self, topic: str, count: int) -> Iterator[list[bytes]]:
        for batch in self._batches(topic, count):
            values = []
            for record in batch.records():
                record.offset  # noqa: B018  (reading it is part of what is measured)
                values.append(record.value)
            yield values

    def _batches(self, topic: str, count: int) -> Iterator[Any]:
        with self._client.consumer(topic, start="earliest", isolation="appended") as consumer:
            for batch in consumer.batches(timeout=_QUIET_S):
                yield batch
                if (count := count - len(batch)) <= 0:
                    return

    def close(self) -> None:
        self._client.close()


def _given(batch: Any) -> list[bytes]:
    """No value is None: none was sent."""
    values: list[bytes] = batch.values()
    return values


__all__ = ["ShmbrokerClient"]
