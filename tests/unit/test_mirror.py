"""A remote client's own shared memory: places, rings, and receipts in the order of frames."""

from __future__ import annotations

import contextlib
import os
import random
import select
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shmbroker import errors
from shmbroker._core import mirror as core
from shmbroker._core import shm
from shmbroker._core.batch import next_batch
from shmbroker._core.reader import EpochWord, Mapping
from shmbroker.client.metadata import Metadata
from shmbroker.client.producer import Producer, outlets_of
from shmbroker.client.remote.connection import RemoteConnection
from shmbroker.client.remote.mirror import Mirror, Spot

TOPIC = bytes(range(16))


def told(partitions: int = 2, writers: int = 2, topic_id: bytes = TOPIC) -> dict[str, Any]:
    """What a broker answers to `metadata`."""
    return {
        "topics": {
            "t": {
                "id": topic_id.hex(),
                "config": {},
                "partitions": [
                    {"partition": p, "writer": p % writers, "slot": 40 + p, "slot_epoch": 9,
                     "directory": "/x"}
                    for p in range(partitions)
                ],
            }
        }
    }  # fmt: skip


class Here:
    """A connection that is nothing but a mirror; the test is the thread behind it."""

    ring_bytes, batch_bytes = 1 << 20, 128 << 10
    frames_ahead = RemoteConnection.frames_ahead

    def __init__(self) -> None:
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.mirror = Mirror(self.bell)
        self.park = self.mirror.park
        self.epoch = EpochWord()
        self.topic_listeners: set[Any] = set()
        self.closed = False

    def request(self, op: str, **args: Any) -> dict[str, Any]:
        if op == "open_ingress":
            return self.mirror.open_ingress(**args)
        if op == "close_ingress":
            return self.mirror.close_ingress(args["ingress"])
        answer = {"producer_id": 7} if op == "init_producer" else told()
        return self.mirror.placed(answer)

    def open_object(self, suffix: str, kind: int, *, writable: bool = False) -> shm.ShmObject:
        return self.mirror.open_object(suffix)

    def table(self, writer: int) -> Mapping:
        return self.mirror.table(writer)

    def keeps(self, name: str, inode: int) -> bool:
        return True

    def attached(self, *_: Any) -> int:
        return self.epoch.value

    def listen(self, listener: Any) -> None: ...

    def wake_all(self) -> None: ...

    def notify(self) -> None: ...

    def frames(self) -> list[tuple[core.MirrorRing, int, int, memoryview, Spot]]:
        """All that are published: (ring, sequence, acks, batch, whose)."""
        found = []
        for ring in self.mirror.rings():
            while (slot := ring.next_slot()) >= 0:
                found.append((ring, *ring.take(), self.mirror.spot(ring.writer, slot)))
        return found


@pytest.fixture
def here() -> Iterator[Here]:
    made = Here()
    yield made
    made.mirror.close()
    os.close(made.bell)


def client_of(here: Here) -> Any:
    return SimpleNamespace(connection=here, metadata=Metadata(here))  # type: ignore[arg-type]


@pytest.fixture
def producer(here: Here) -> Iterator[Producer]:
    made = Producer(client_of(here), linger_ms=0)
    yield made
    for ring, seq, *_ in here.frames():
        ring.answer(seq, 0, 0)
    with contextlib.suppress(errors.ShmbrokerError):
        made.close(0)


def test_partitions_get_places_of_their_own_and_keep_them(here: Here) -> None:
    first = here.mirror.placed(told())["topics"]["t"]["partitions"]
    assert [(p["writer"], p["slot"], p["slot_epoch"]) for p in first] == [(0, 0, 1), (1, 0, 1)]
    assert here.mirror.writer_of(Spot(TOPIC, 1)) == 1
    moved = here.mirror.placed(told(3, writers=1))["topics"]["t"]["partitions"]
    assert [(p["writer"], p["slot"]) for p in moved] == [(0, 0), (1, 0), (0, 1)]
    assert here.mirror.writer_of(Spot(TOPIC, 1)) == 0  # whose credit it takes follows the broker
    anew = here.mirror.placed(told(1, topic_id=bytes(16)))["topics"]["t"]["partitions"]
    assert [(p["writer"], p["slot"]) for p in anew] == [(0, 2)]
    assert here.mirror.spot(0, 2) == Spot(bytes(16), 0)


def test_more_partitions_than_a_table_has_slots_are_refused_by_name(here: Here) -> None:
    here.mirror.placed(told(shm.SLOTS_MAX, writers=1))
    with pytest.raises(errors.MemoryBudget, match="connect anew"):
        here.mirror.placed(told(1, writers=1, topic_id=bytes(16)))


def test_what_has_no_topics_is_left_alone(here: Here) -> None:
    assert here.mirror.placed({"topics": 3, "x": 1}) == {"topics": 3, "x": 1}
    assert here.mirror.placed({"producer_id": 1}) == {"producer_id": 1}


def test_only_rings_that_are_there_are_opened(here: Here) -> None:
    made = here.mirror.open_ingress(0, 100_000, 200)
    assert made == {"ingress": 1, "capacity": 131_072, "slots": 256, "bell": here.bell}
    here.mirror.open_object("i1").close()
    for name in ("i2", "r2", "x1", "i", "p", "w0", "l0.0.1"):
        with pytest.raises(FileNotFoundError):
            here.mirror.open_object(name)
    here.mirror.close_ingress(1)
    assert here.mirror.rings() == []
    with pytest.raises(FileNotFoundError):
        here.mirror.open_object("r1")


def test_a_published_frame_rings_the_bell_and_its_answer_settles_the_receipt(
    here: Here, producer: Producer
) -> None:
    first = producer.send("t", b"opens the ring", partition=1)
    ((ring, seq, *_),) = here.frames()
    ring.answer(seq, 0, 1233)
    assert first.result(5).offset == 1233
    os.eventfd_read(here.bell)
    assert not here.mirror.arm()
    receipt = producer.send("t", b"value", partition=1)
    assert select.select([here.bell], [], [], 0)[0]
    ((ring, seq, acks, batch, spot),) = here.frames()
    assert (ring.writer, seq, acks, spot) == (1, 1, 2, Spot(TOPIC, 1))
    assert b"value" in bytes(batch)
    assert (ring.pending_bytes, ring.unanswered) == (0, 1)
    assert not receipt.done()
    ring.answer(seq, 0, 1234)
    assert receipt.result(40).offset == 1234
    assert ring.unanswered == 0
    for wrong in (seq, seq + 1):
        with pytest.raises(ValueError, match="waits for no answer"):
            ring.answer(wrong, 0, 0)


def test_what_was_published_before_the_bell_was_armed_is_told_and_rings_none(
    here: Here, producer: Producer
) -> None:
    producer.send("t", b"value", partition=1)
    os.eventfd_read(here.bell)  # of the ring that was opened
    assert here.mirror.arm()
    assert not here.mirror.arm()  # it was told; it may wait for credit
    ((ring, seq, *_),) = here.frames()
    ring.answer(seq, 0, 0)
    assert not here.mirror.arm()
    assert not select.select([here.bell], [], [], 0)[0]


def test_a_batch_stays_in_its_place_until_it_is_answered(here: Here) -> None:
    room = 1 << 16
    here.mirror.open_ingress(0, room, 8)
    here.ring_bytes = room
    with Producer(client_of(here), linger_ms=0, batch_bytes=8 << 10, on_full="raise") as producer:
        values = [b"%05d" % n + bytes(5_000) for n in range(100)]
        sent = []
        with pytest.raises(errors.BufferFull):
            for value in values:
                sent.append(producer.send("t", value, partition=0))
        frames = here.frames()
        with pytest.raises(errors.BufferFull):  # taken, and not answered: none has made room
            producer.send("t", values[-1], partition=0)
        held = b"".join(bytes(batch) for _, _, _, batch, _ in frames)
        assert all(value[:5] in held for value in values[: len(sent)])
        for ring, seq, *_ in frames:
            ring.answer(seq, 0, seq)
        producer.send("t", values[-1], partition=0)
        for ring, seq, *_ in here.frames():
            ring.answer(seq, 0, seq)


def test_a_lone_record_does_not_wait_for_the_answers_to_those_before(here: Here) -> None:
    with Producer(client_of(here), linger_ms=60_000) as producer:
        assert here.frames_ahead >= 2
        frames = []
        for n in range(here.frames_ahead + 1):
            producer.send("t", b"%d" % n, partition=0)
            frames += here.frames()
            assert len(frames) == n + 1
        producer.send("t", b"so many are on their way that it gathers others", partition=0)
        assert here.frames() == []
        for ring, seq, *_ in frames:
            ring.answer(seq, 0, seq)
        producer._sender_state.publish()
        ((ring, seq, *_),) = here.frames()
        ring.answer(seq, 0, seq)


def test_records_gather_while_the_connection_takes_none(here: Here) -> None:
    with Producer(client_of(here), linger_ms=60_000) as producer:
        for value in (b"leaves at once", b"gathers", b"gathers too"):
            producer.send("t", value, partition=0)
        (counters,) = outlets_of(here).counters().values()
        assert counters["in_flight"] == 1, "who takes it has the others sent"
        producer._sender_state.publish()
        (ring, seq, *_), (_, last, _, batch, _) = here.frames()
        assert b"gathers" in bytes(batch)
        assert b"gathers too" in bytes(batch)
        ring.answer(seq, 0, 0)
        ring.answer(last, 0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_answers_in_any_order_come_as_receipts_in_the_order_of_frames(
    here: Here, producer: Producer, seed: int
) -> None:
    rng = random.Random(seed)
    receipts, frames = [], []
    for n in range(60):
        receipts.append(producer.send("t", b"%d" % n, partition=0))
        producer._sender_state.publish()
        frames += here.frames()
    assert len(frames) == 60
    order = list(range(60))
    rng.shuffle(order)
    answered: set[int] = set()
    for n in order:
        ring, seq, *_ = frames[n]
        ring.answer(seq, 0, 10 * n)
        answered.add(n)
        ready = next(i for i in range(61) if i not in answered)
        assert ring.unanswered == 60 - ready
    for n, receipt in enumerate(receipts):
        assert receipt.result(40).offset == 10 * n


def test_a_refused_batch_fails_by_its_error_and_the_next_chain_begins_anew(
    here: Here, producer: Producer
) -> None:
    receipts, frames = [], []
    for n in range(3):
        receipts.append(producer.send("t", b"%d" % n, partition=0))
        producer._sender_state.publish()
        frames += here.frames()
    codes = (87, errors.EarlierRejected.kafka_code, errors.EarlierRejected.kafka_code)
    for (ring, seq, *_), code in zip(frames, codes, strict=True):
        ring.answer(seq, code, -1)
    with pytest.raises(errors.InvalidRecord):
        receipts[0].result(40)
    with pytest.raises(errors.EarlierRejected):
        receipts[2].result(40)
    receipts[1].exception(40)
    good = producer.send("t", b"good", partition=0)
    ((ring, seq, _, batch, _),) = here.frames()
    raised = next_batch(batch)
    assert raised is not None
    assert (raised.producer_epoch, raised.base_sequence) == (1, 0)  # type: ignore[attr-defined]
    ring.answer(seq, 0, 3)
    assert good.result(40).offset == 3


def test_a_ring_that_nobody_empties_throttles_its_producer(here: Here) -> None:
    slow = Producer(client_of(here), max_block_ms=100)
    value = os.urandom(50_000)
    sent = 0
    with pytest.raises(errors.BufferFull):
        while sent < 1000:
            slow.send("t", value, partition=0)
            sent += 1
    assert 5 <= sent <= 30
    for ring, seq, *_ in here.frames():
        ring.answer(seq, 0, 0)
    slow.send("t", value, partition=0)
    for _ in range(3):
        slow._sender_state.publish()
        for ring, seq, *_ in here.frames():
            ring.answer(seq, 0, 0)
    slow.close(5)
