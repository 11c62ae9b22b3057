"""The relay against a fake writer: whole batches of others, in order, without ever blocking."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from producer_fake import Broker, FakeClient

from shmbroker import errors
from shmbroker._core.batch import RecordBatch, encode_values
from shmbroker.client import relay as module
from shmbroker.client.relay import Relay

NONE, MEMORY, DURABLE = 0, 1, 2
PATIENCE_S = 10.0


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker(
        {"one": (2, {}), "other": (1, {}), "big": (1, {"max.message.bytes": 6 << 20})},
        keep_bytes=32 << 20,
    )
    yield made
    made.close()


class Rig:
    """A relay, and all that it ever said."""

    def __init__(self, broker: Broker, **options: Any) -> None:
        self.broker = broker
        self.relay = Relay(FakeClient(broker), **options)
        self.left: list[Any] = []
        self.done: dict[Any, int] = {}
        self.failed: dict[Any, Exception] = {}
        self.tags = 0
        self.sequences: dict[tuple[str, int, int, int], int] = {}

    def batch(self, producer: int = 7, *, epoch: int = 0, sequence: int | None = None,
              topic: str = "one", partition: int = 0, size: int = 10) -> bytes:  # fmt: skip
        """Two records; the next of its producer and partition unless `sequence` says which."""
        at = topic, partition, producer, epoch
        if sequence is None:
            sequence = self.sequences.get(at, 0)
            self.sequences[at] = sequence + 2
        values = [(b"%d:%d" % (producer, sequence + n)).ljust(size // 2) for n in range(2)]
        if producer < 0:
            return encode_values(values, 1)
        return encode_values(
            values, 1, producer_id=producer, producer_epoch=epoch, base_sequence=sequence
        )

    def put(self, batch: bytes | None = None, *, acks: int = DURABLE, topic: str = "one",
            partition: int = 0, owner: Any = None, **about: Any) -> int:  # fmt: skip
        """One batch; its tag."""
        batch = batch or self.batch(topic=topic, partition=partition, **about)
        self.tags += 1
        topic_id = bytes.fromhex(self.broker.id_of(topic))
        self.relay.put(topic_id, partition, batch, acks, self.tags, owner)
        return self.tags

    def look(self, wait_s: float = 0.0) -> None:
        """Takes what there is, after its eventfd said so."""
        poller = select.poll()
        poller.register(self.relay.fd, select.POLLIN)
        woken = bool(poller.poll(wait_s * 1000))
        taken = self.relay.take(woken)
        self.left += taken.left
        for tag, offset in taken.done:
            assert tag not in self.done
            self.done[tag] = offset
        for tag, error in taken.failed:
            assert tag not in self.failed
            self.failed[tag] = error

    def until(self, done: Callable[[], bool]) -> None:
        """Looks until; nothing but the eventfd wakes it."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, (self.left, self.done, self.failed)
            self.look(deadline - time.monotonic())

    def settled(self) -> None:
        self.look()
        self.until(lambda: not self.relay.unsettled)
        assert sorted(self.left) == sorted(set(self.left))
        assert self.relay.held_bytes == 0

    def first(self) -> None:
        """Opens the ring, and settles."""
        self.put(topic="other", producer=1000)
        self.settled()

    def logged(self) -> list[str]:
        """The first value of each batch, in the order of the log."""
        raw, found = self.broker.logged(), []
        while raw:
            size = int.from_bytes(raw[8:12], "big") + 12
            found.append(next(iter(RecordBatch(raw[:size]).records())).value.decode().strip())
            raw = raw[size:]
        return [value for value in found if not value.startswith("1000:")]


@pytest.fixture
def rig(broker: Broker) -> Iterator[Rig]:
    made = Rig(broker)
    yield made
    made.relay.close()


def pause(rig: Rig) -> None:
    rig.first()
    rig.broker.writer.paused = 1


def resume(rig: Rig) -> None:
    rig.broker.writer.paused = 0
    rig.broker.ring()


def test_batches_are_published_as_they_are_and_each_has_one_outcome(rig: Rig) -> None:
    batches = [rig.batch() for _ in range(6)]
    tags = [rig.put(batch, acks=n % 3) for n, batch in enumerate(batches)]
    rig.settled()
    assert rig.done == dict(zip(tags, [-1, 2, 4, -1, 8, 10], strict=True))
    assert sorted(rig.left) == tags
    stamped = rig.broker.logged()  # base offset and leader epoch are the log's, the rest ours
    at = 0
    for batch in batches:
        assert stamped[at + 16 : at + len(batch)] == batch[16:]
        at += len(batch)


def test_what_comes_twice_is_appended_once_and_says_where_it_is(rig: Rig) -> None:
    batches = [rig.batch() for _ in range(3)]
    tags = [rig.put(batch) for batch in [*batches, *batches]]
    rig.settled()
    assert [rig.done[tag] for tag in tags] == [0, 2, 4, 0, 2, 4]
    assert rig.logged() == ["7:0", "7:2", "7:4"]


def test_a_full_ring_waits_in_a_line_and_wakes_by_the_eventfd(rig: Rig) -> None:
    pause(rig)
    tags = [rig.put(size=500_000) for _ in range(20)]
    rig.until(lambda: bool(rig.relay.describe()))
    taken = len(rig.left) - 1
    assert 0 < taken < 20
    (line,) = rig.relay.describe()
    assert (line["batches"], line["topic"], line["writer"]) == (20 - taken, "one", 0)
    assert rig.relay.held_bytes == line["bytes"] > 0
    resume(rig)
    rig.settled()
    assert [rig.done[tag] for tag in tags] == list(range(0, 40, 2))
    assert rig.logged() == [f"7:{n}" for n in range(0, 40, 2)]
    assert rig.relay.describe() == []


def test_no_more_are_in_flight_than_a_partition_remembers_of_a_producer(rig: Rig) -> None:
    pause(rig)
    for _ in range(100):
        rig.put()
    rig.until(lambda: bool(rig.relay.describe()))
    assert len(rig.left) == 1 + 64
    resume(rig)
    rig.settled()
    assert rig.logged() == [f"7:{n}" for n in range(0, 200, 2)]


def test_durable_is_told_when_it_is_durable_and_memory_when_it_is_appended(rig: Rig) -> None:
    rig.first()
    rig.broker.writer.not_durable = 1
    durable, memory, none = rig.put(), rig.put(acks=MEMORY), rig.put(acks=NONE)
    rig.until(lambda: memory in rig.done)
    assert rig.done[none] == -1
    assert durable not in rig.done
    rig.broker.writer.not_durable = 0
    later = rig.put()
    rig.settled()
    assert (rig.done[durable], rig.done[memory], rig.done[later]) == (0, 2, 6)


def test_a_rejection_takes_the_rest_of_its_producer_and_nobody_elses(rig: Rig) -> None:
    pause(rig)
    first = rig.put(rig.batch(8, sequence=0))
    culprit = rig.put(rig.batch(8, sequence=10))  # a gap
    behind = [rig.put(rig.batch(8, sequence=12)), rig.put(rig.batch(8, sequence=2))]
    others = [rig.put(producer=9), rig.put(producer=-1, owner="a")]
    others.append(rig.put(producer=8, partition=1))
    resume(rig)
    rig.settled()
    assert type(rig.failed.pop(culprit)) is errors.OutOfOrderSequence
    behind.append(rig.put(rig.batch(8, sequence=2)))
    rig.settled()
    for tag in behind:
        assert type(rig.failed.pop(tag)) is errors.EarlierRejected
    assert not rig.failed
    assert {first, *others} <= rig.done.keys()


def test_after_a_rejection_nothing_of_that_epoch_is_published_until_it_rises(rig: Rig) -> None:
    rig.first()
    rig.broker.writer.reject = errors.InvalidRecord.kafka_code
    culprit = rig.put(acks=MEMORY)
    rig.settled()
    rig.broker.writer.reject = 0
    behind = rig.put()
    again = rig.put(rig.batch(sequence=0))  # its answer was lost: the same answer again
    raised = rig.put(epoch=1)
    rig.settled()
    assert type(rig.failed[culprit]) is errors.InvalidRecord
    assert type(rig.failed[behind]) is errors.EarlierRejected
    assert type(rig.failed[again]) is errors.InvalidRecord
    assert rig.done[raised] == 0


def test_unchained_batches_are_judged_by_their_sequences_alone(broker: Broker) -> None:
    rig = Rig(broker, chained=False)
    try:
        rig.first()
        rig.broker.writer.reject = errors.InvalidRecord.kafka_code
        culprit = rig.put()
        rig.settled()
        rig.broker.writer.reject = 0
        adjusted = rig.put(rig.batch(sequence=0))  # as Kafka's Java client does
        rig.settled()
        assert type(rig.failed[culprit]) is errors.InvalidRecord
        assert rig.done[adjusted] == 0
    finally:
        rig.relay.close()


def test_what_there_is_no_topic_for_is_refused_and_holds_nothing_up(rig: Rig) -> None:
    no_topic = 77
    rig.relay.put(bytes(15) + b"\1", 0, rig.batch(), DURABLE, no_topic)
    no_partition = rig.put(partition=5)
    good = rig.put(producer=9)
    rig.settled()
    for tag in (no_topic, no_partition):
        assert type(rig.failed[tag]) is errors.UnknownTopic
    assert "has no partition 5" in str(rig.failed[no_partition])
    assert good in rig.done


def test_a_topic_made_anew_under_its_name_is_another_one(rig: Rig) -> None:
    rig.put()
    rig.settled()
    old = bytes.fromhex(rig.broker.id_of("one"))
    rig.broker.makings["one"] = 1
    rig.broker.slot_of["one", 0] = (20, 8)
    rig.broker.lib.fake_slot_init(rig.broker.table, 20, 8)
    rig.relay._metadata.on_topics(frozenset({"one"}))
    new = rig.put(rig.batch(sequence=0), acks=MEMORY)
    rig.settled()
    assert rig.done[new] == 0
    rig.relay.put(old, 1, rig.batch(partition=1), DURABLE, 99)
    rig.settled()
    assert type(rig.failed[99]) is errors.UnknownTopic


def test_a_batch_larger_than_the_ring_gets_a_larger_one_and_stays_in_its_place(rig: Rig) -> None:
    tags = [rig.put(topic="big", size=size) for size in (10, 10, 5 << 20, 10, 10)]
    others = [rig.put(producer=8) for _ in range(5)]
    rig.settled()
    assert [rig.done[tag] for tag in tags] == [0, 2, 4, 6, 8]
    assert not rig.failed
    assert [rig.done[tag] for tag in others] == [0, 2, 4, 6, 8]
    assert [op for op, _ in rig.broker.requests].count("close_ingress") == 1


def test_a_batch_larger_than_its_topic_allows_is_refused_before_a_ring_is_made(rig: Rig) -> None:
    tag = rig.put(size=5 << 20)
    rig.settled()
    assert type(rig.failed[tag]) is errors.RecordTooLarge
    assert rig.broker.next_ingress == 1


def test_what_was_in_a_lost_ring_is_published_again_in_order(rig: Rig) -> None:
    pause(rig)
    tags = [rig.put(producer=7 + n % 2) for n in range(20)]
    rig.until(lambda: len(rig.left) == 21)
    ring = rig.broker.next_ingress
    rig.broker.connection.lose()
    late = [rig.put(producer=7 + n % 2) for n in range(6)]
    rig.broker.fakes[ring].stop = 1
    for suffix in ("i", "r"):
        name = f"{rig.broker.prefix}-{suffix}{ring}"
        Path(f"/dev/shm{name}").unlink()
        rig.broker.names.remove(name)
    rig.broker.connection.come_back()
    rig.settled()
    assert not rig.failed
    assert sorted(rig.done[tag] for tag in [*tags, *late]) == [*range(0, 52, 2)]
    for producer in (7, 8):
        mine = [value for value in rig.logged() if value.startswith(f"{producer}:")]
        assert mine == [f"{producer}:{n}" for n in range(0, 26, 2)]


def test_dropped_batches_are_heard_of_no_more(rig: Rig) -> None:
    pause(rig)
    for _ in range(20):
        rig.put(size=500_000)
    rig.until(lambda: bool(rig.relay.describe()))
    waiting = rig.relay.describe()[0]["batches"]
    rig.relay.drop(lambda tag: tag not in rig.left)
    assert rig.relay.held_bytes == 0
    resume(rig)
    rig.settled()
    assert len(rig.done) == 1 + 20 - waiting
    assert rig.logged() == [f"7:{n}" for n in range(0, 40 - 2 * waiting, 2)]


def test_producers_that_fell_silent_are_forgotten(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for producer in range(50):
        rig.put(producer=producer)
    rig.settled()
    monkeypatch.setattr(module, "_IDLE_S", -1.0)
    rig.relay.sweep()
    rig.relay.sweep()
    assert not rig.relay._ways
    tag = rig.put(producer=3)
    rig.settled()
    assert tag in rig.done


def test_memory_that_is_no_batch_is_refused_at_once(rig: Rig) -> None:
    with pytest.raises(errors.InvalidRecord):
        rig.put(b"x" * 60)
    assert rig.relay.unsettled == 0


def test_a_partition_that_moves_while_its_batches_wait_keeps_their_order(broker: Broker) -> None:
    rig = Rig(broker, chained=False)
    try:
        pause(rig)
        tags = [rig.put(size=500_000) for _ in range(12)]
        others = [rig.put(producer=9, partition=1, size=500_000) for _ in range(4)]
        rig.until(lambda: bool(rig.relay.describe()))
        taken = len(rig.left) - 1
        broker.slot_of["one", 0] = (20, 8)
        broker.lib.fake_slot_init(broker.table, 20, 8)
        broker.lib.fake_slot_init(broker.table, broker.slot_of["one", 1][0] - 1, 9)  # its old slot
        resume(rig)
        rig.settled()
        assert {type(rig.failed[tag]) for tag in tags[:taken]} == {errors.UnknownTopic}
        assert [rig.done[tag] for tag in tags[taken:]] == list(range(0, 2 * (12 - taken), 2))
        assert [rig.done[tag] for tag in others] == [0, 2, 4, 6]
    finally:
        rig.relay.close()
