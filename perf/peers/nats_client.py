"""NATS JetStream's fastest Python client, in a process of its own: its protocol on a plain socket.

nats-py, the official client, is asyncio: on the machine that this was written on its
`publish_async` made 34,000 records a second and core publish with counted acknowledgements 108,000,
the protocol on a socket (`nats_wire.py`) 180,000 with an acknowledgement each and 200,000 to
235,000 with one each 2,000, whose sequence says that all before it are stored. It read 22,000
records a second as objects, by `fetch` of 5,000; the socket ten times as many. So all is the
socket's.

In the durable mode the server syncs each message for itself, about 3,000 a second whatever is on
its way, but an atomic batch (1,000 messages at most, allowed by `allow_atomic`) once, before it
acknowledges (strace: 4 fsyncs a batch): 25,000 to 100,000. Without syncs they are the slowest.
Catch-up is by pulls of 5,000 without acknowledgements, the next asked for before the last is there:
by Go's `nats bench` 527,000 a second, where an ordered consumer had 387,000 and the batched direct
get 213,000. The tail is pushed: its p50 was 5 to 8 % lower than with pulls.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.nats_wire import Record, Wire, of_batch, publication

_ATOMIC: Final = 1000  # messages of an atomic batch, the server's most
_GROUP: Final = 2000  # records that one acknowledgement stands for
_GROUP_BYTES: Final = 4 << 20
_SOME: Final = 200  # records acknowledged each that are written together, as clients' buffers do
_BATCHES_AHEAD: Final = 8
_ACKS_AHEAD: Final = 4000  # what nats-py and nats.go allow
_PULL: Final = 5000
_LOOK_S: Final = 0.1
_QUIET: Final = 200  # empty looks, after which nothing more comes


class Publisher:
    """Sends to one subject, groups of records at a time, and counts acknowledgements."""

    def __init__(self, wire: Wire, topic: str) -> None:
        self._wire, self._subject = wire, topic.encode()
        self._sent = 0  # the only sender: the stream's last sequence when all are stored
        self._waiting: deque[int] = deque()  # sequences to be acknowledged, in this order

    def each_acked(self, values: list[bytes]) -> None:
        """An acknowledgement each."""
        inbox, subject = self._wire.inbox, self._subject
        self._put([publication(subject, value, inbox) for value in values], len(values))

    def last_acked(self, values: list[bytes]) -> None:
        """One, for the last, after which all are stored."""
        subject = self._subject
        frames = [publication(subject, value) for value in values[:-1]]
        self._put([*frames, publication(subject, values[-1], self._wire.inbox)], 1)

    def atomic(self, values: list[bytes]) -> None:
        """One, for all or none of them."""
        batch, subject, last = uuid.uuid4().hex.encode(), self._subject, len(values)
        inbox = self._wire.inbox
        frames = [of_batch(subject, value, batch, number, inbox if number == last else b"")
                  for number, value in enumerate(values, 1)]  # fmt: skip
        self._put(frames, 1)

    def _put(self, frames: list[bytes], acks: int) -> None:
        ahead = _ACKS_AHEAD if acks == len(frames) else _BATCHES_AHEAD
        while len(self._waiting) >= ahead:
            self.take(wait=True)
        self._sent += len(frames)
        self._waiting.extend(range(self._sent - acks + 1, self._sent + 1))
        self._wire.send(b"".join(frames))

    def take(self, wait: bool) -> None:
        """What was acknowledged; raises RuntimeError when that is not what was sent."""
        for found in self._wire.acks(wait):
            if found != (wanted := self._waiting.popleft()):
                raise RuntimeError(f"sequence {found} was acknowledged instead of {wanted}")

    def end(self) -> None:
        """Returns when all are acknowledged."""
        while self._waiting:
            self.take(wait=True)

    def close(self) -> None:
        """Hangs up."""
        self._wire.close()


class NatsClient(Client):
    """Sockets of its own for control, for each topic that is sent to, and for each reader."""

    def __init__(self, address: int) -> None:
        self._port = address
        self._control = Wire(address)
        self._publishers: dict[str, Publisher] = {}

    def create(self, topic: str, mode: Mode) -> None:
        self._control.request(f"$JS.API.STREAM.CREATE.{topic}", {
            "name": topic, "subjects": [topic], "storage": "file", "num_replicas": 1,
            "allow_atomic": True, "allow_batched": True,
        })  # fmt: skip

    def forget(self, topic: str) -> None:
        """Its stream goes, with all that the server holds for it."""
        if (publisher := self._publishers.pop(topic, None)) is not None:
            publisher.close()
        self._control.request(f"$JS.API.STREAM.DELETE.{topic}", {})

    def _publisher(self, topic: str) -> Publisher:
        if topic not in self._publishers:
            self._publishers[topic] = Publisher(Wire(self._port), topic)
        return self._publishers[topic]

    def send_many(self, topic: str, values: list[bytes], mode: Mode) -> None:
        publisher, durable = self._publisher(topic), mode.acks == "durable"
        send, most = (publisher.atomic, _ATOMIC) if durable else (publisher.last_acked, _GROUP)
        fit = max(1, min(most, _GROUP_BYTES // max(1, len(values[0]))))
        for at in range(0, len(values), fit):
            send(values[at : at + fit])
        publisher.end()

    def send_each(self, topic: str, values: list[bytes], mode: Mode) -> None:
        """Durable: a call adds to an atomic batch, and the full one is committed."""
        publisher, durable = self._publisher(topic), mode.acks == "durable"
        send, most = (publisher.atomic, _ATOMIC) if durable else (publisher.each_acked, _SOME)
        group: list[bytes] = []

        def one(value: bytes) -> None:
            group.append(value)
            if len(group) == most:
                send(group)
                group.clear()

        for value in values:
            one(value)
        if group:
            send(group)
        publisher.end()

    def sender(self, topic: str, mode: Mode) -> Callable[[bytes], None]:
        publisher = self._publisher(topic)

        def one(value: bytes) -> None:
            publisher.each_acked([value])
            publisher.take(wait=False)

        return one

    def tail(self, topic: str, mode: Mode) -> Iterator[list[bytes]]:
        wire = Wire(self._port, _LOOK_S)
        try:
            self._control.consumer(topic, "new", wire.inbox)
            yield []
            while True:
                yield wire.values()
        finally:
            wire.close()

    def _pulled(
        self, topic: str, count: int, heads: list[bytes] | None = None
    ) -> Iterator[list[bytes]]:
        """The first `count` values in lists; ends when nothing comes. `heads` as of `Wire`."""
        name = self._control.consumer(topic, "all")
        wire = Wire(self._port, _LOOK_S)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{topic}.{name}".encode()
        asked = found = quiet = 0
        try:
            while found < count and quiet < _QUIET:
                while asked - found <= _PULL and asked < count:
                    more = min(_PULL, count - asked)
                    ask = json.dumps({"batch": more}).encode()
                    wire.send(publication(subject, ask, wire.inbox))
                    asked += more
                values = wire.values(heads)
                found += len(values)
                quiet = 0 if values else quiet + 1
                yield values
        finally:
            wire.close()  # without it the consumer goes by itself

    def values(self, topic: str, count: int) -> Iterator[list[bytes]]:
        yield from self._pulled(topic, count)

    def records(self, topic: str, count: int) -> Iterator[list[bytes]]:
        heads: list[bytes] = []
        for values in self._pulled(topic, count, heads):
            yield [_read(Record(*each)) for each in zip(heads, values, strict=True)]
            heads.clear()

    def close(self) -> None:
        for publisher in self._publishers.values():
            publisher.close()
        self._control.close()


def _read(record: Record) -> bytes:
    """The value of a record; reads its offset, as a program that keeps its place does."""
    record.sequence  # noqa: B018  (reading it is part of what is measured)
    return record.value


__all__ = ["NatsClient"]
