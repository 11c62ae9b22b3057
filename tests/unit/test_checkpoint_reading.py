"""What a consumer's hand-outs become in its member's checkpoints, over a fake broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from consumer_fakes import FakeBroker, FakePartition

from shmbroker._core import shm
from shmbroker._core.checkpoint import Checkpoints, CheckpointsView
from shmbroker._core.reader import Mapping
from shmbroker.client.client import Client
from shmbroker.client.consumer import Consumer
from shmbroker.client.local_connection import LocalConnection
from shmbroker.control.sharedmem import boot_id

RING = 1 << 16
TOPIC = bytes(range(16))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBroker]:
    with FakeBroker(tmp_path, partitions=2) as broker:
        for partition in broker.partitions:
            partition.make_ring(RING)
        yield broker


@pytest.fixture
def client(fake: FakeBroker) -> Iterator[Client]:
    with Client(LocalConnection(fake.places, timeout=5.0, reconnect_s=10.0)) as made:
        yield made


class Slots:
    """Slots of both partitions, and what the acceptor would see there."""

    def __init__(self, fake: FakeBroker) -> None:
        ids, size = (boot_id(), bytes(16)), shm.checkpoints_bytes(2)
        name = fake.prefix + "-k1"
        made = shm.create(name, shm.KIND_CHECKPOINTS, 1, size, *ids, group="g", member="m")
        self.view = CheckpointsView(name, made.fileno())
        self.ours = Checkpoints()
        self.ours.add(Mapping(name, made.fileno(), writable=True))
        made.unlink()
        made.close()
        for number in range(2):
            self.ours.take("t", TOPIC, number, 3)
        self.found: dict[int, tuple[int, int]] = {}

    def look(self) -> dict[int, tuple[int, int]]:
        """Partition -> (offset, leader epoch), as stored so far."""
        for _, topic, number, epoch, offset, leader_epoch in self.view.look():
            assert (topic, epoch) == (TOPIC.hex(), 3)
            self.found[number] = offset, leader_epoch
        return dict(self.found)

    def by_hand(self, consumer: Consumer) -> Checkpoints:
        consumer._checkpoints = self.ours
        return self.ours

    def by_itself(self, consumer: Consumer) -> None:
        consumer._checkpoints, consumer._stores_itself = self.ours, True


@pytest.fixture
def slots(fake: FakeBroker) -> Iterator[Slots]:
    made = Slots(fake)
    yield made
    made.view.close()


def filled(log: FakePartition, *epochs: int, each: int = 2) -> None:
    """Batches of `each` records, one for each of these leader epochs."""
    for epoch in epochs:
        log.append(*[b"x"] * each, epoch=epoch)
    log.flush()


def test_what_was_asked_past_is_stored_and_not_what_was_handed_out_last(
    fake: FakeBroker, client: Client, slots: Slots
) -> None:
    filled(fake.partitions[0], 0, 0)
    with client.consumer("t", start="earliest") as consumer:
        slots.by_itself(consumer)
        records = iter(consumer)
        next(records)
        assert slots.look() == {}
        next(records)
        assert slots.look() == {0: (1, 0)}
        next(records)
        next(records)
        assert slots.look() == {0: (3, 0)}
        assert consumer.poll(0) is None  # asked past the last one
        assert slots.look() == {0: (4, 0)}
        filled(fake.partitions[0], 0)
        next(records)
    assert slots.look() == {0: (4, 0)}  # closed: nobody asked past record 4


def test_each_position_is_stored_with_the_leader_epoch_of_the_record_before(
    fake: FakeBroker, client: Client, slots: Slots
) -> None:
    filled(fake.partitions[0], 0, 0, 2, 5)
    seen = []
    with client.consumer("t", start="earliest") as consumer:
        slots.by_itself(consumer)
        for _ in range(8):
            consumer.poll(0)
            seen.append(slots.look().get(0))
        consumer.poll(0)
        seen.append(slots.look().get(0))
    assert seen == [
        *[None, (1, 0), (2, 0), (3, 0), (4, 0)],
        *[(5, 2), (6, 2), (7, 5), (8, 5)],
    ]


def test_batches_of_one_leader_epoch_only(fake: FakeBroker, client: Client, slots: Slots) -> None:
    filled(fake.partitions[0], 0, 0, 2)
    with client.consumer("t", start="earliest") as consumer:
        slots.by_itself(consumer)
        batches = consumer.batches(timeout=0)
        assert [(b.base_offset, b.next_offset, b.leader_epoch) for b in [next(batches)]] == [
            (0, 4, 0)
        ]
        assert slots.look() == {}
        assert next(batches).leader_epoch == 2
        assert slots.look() == {0: (4, 0)}
        assert consumer.poll_batch(0) is None
        assert slots.look() == {0: (6, 2)}


def test_records_given_back_are_not_stored(fake: FakeBroker, client: Client, slots: Slots) -> None:
    filled(fake.partitions[0], 0, each=4)
    with client.consumer("t", start="earliest") as consumer:
        slots.by_itself(consumer)
        assert consumer.poll(0) is not None
        batch = consumer.poll_batch(0)  # records 1 to 3: they were fetched and given back
        assert batch is not None
        assert batch.base_offset == 1
        assert slots.look() == {0: (1, 0)}
        assert consumer.poll_batch(0) is None
        assert slots.look() == {0: (4, 0)}


def test_a_seek_stores_nothing_and_positions_follow_it_back(
    fake: FakeBroker, client: Client, slots: Slots
) -> None:
    filled(fake.partitions[0], 0, 1, 2)
    with client.consumer("t", partitions=[0], start="earliest") as consumer:
        slots.by_itself(consumer)
        for _ in range(6):
            consumer.poll(0)
        assert slots.look() == {0: (5, 2)}
        consumer.seek(1)
        consumer.poll(0)
        assert slots.look() == {0: (5, 2)}
        consumer.poll(0)
        assert slots.look() == {0: (2, 0)}


def test_by_hand_all_that_was_handed_out_is_stored_for_each_partition(
    fake: FakeBroker, client: Client, slots: Slots
) -> None:
    for log in fake.partitions:
        filled(log, 0, 1)
    with client.consumer("t", start="earliest") as consumer:
        checkpoints = slots.by_hand(consumer)
        for _ in range(3):
            consumer.poll(0)
        assert slots.look() == {}
        checkpoints.store_handed()
        handed = slots.look()
        assert sum(offset for offset, _ in handed.values()) == 3
        checkpoints.store_handed()
        assert not slots.view.stirred
        while consumer.poll(0) is not None:
            pass
        checkpoints.store_handed()
        assert slots.look() == {0: (4, 1), 1: (4, 1)}


def test_a_record_that_was_handed_out_before_is_stored_with_its_own_epoch(
    fake: FakeBroker, client: Client, slots: Slots
) -> None:
    filled(fake.partitions[0], 0, 3, 4)
    with client.consumer("t", partitions=[0], start="earliest") as consumer:
        checkpoints = slots.by_hand(consumer)
        for _ in range(6):
            consumer.poll(0)
        for offset, leader_epoch in ((6, 4), (4, 3), (1, 0), (5, 4)):
            assert checkpoints.store("t", 0, offset)
            assert slots.look() == {0: (offset, leader_epoch)}


def test_a_partition_that_was_let_go_is_read_on_and_not_stored(
    fake: FakeBroker, client: Client, slots: Slots
) -> None:
    filled(fake.partitions[0], 0, 0)
    with client.consumer("t", start="earliest") as consumer:
        slots.by_itself(consumer)
        consumer.poll(0)
        consumer.poll(0)
        slots.ours.drop("t", 0)
        consumer.poll(0)
        consumer.poll(0)
        assert consumer.poll(0) is None
    assert slots.look() == {0: (1, 0)}


def test_a_commit_by_another_way_moves_a_slot_that_was_used_and_no_other(slots: Slots) -> None:
    slots.ours.store("t", 0, 5)
    slots.ours.committed("t", 0, 3)
    slots.ours.committed("t", 1, 3)
    slots.ours.committed("t", 9, 3)
    assert slots.look() == {0: (3, -1)}
