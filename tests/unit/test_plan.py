"""The plan: which slot of which writer is which partition. Plain values, no process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbroker.control.plan import (
    SLOTS_MIN,
    Plan,
    cores_for_writers,
    table_slots_for,
    writers_at_start,
    writers_limit,
)
from shmbroker.errors import InvalidPartitions

A, B = "a" * 32, "b" * 32


def no_epoch(_writer: int, _slot: int) -> int:
    return 0


def table(slots_max: int, *slots: tuple[int, str, int, int, str]) -> dict[str, object]:
    keys = ("slot", "topic_id", "partition", "slot_epoch", "state")
    return {"slots_max": slots_max, "slots": [dict(zip(keys, s, strict=True)) for s in slots]}


def test_a_partition_gets_a_process_of_its_own_while_there_are_cores() -> None:
    plan = Plan(writers_limit=3, table_slots=8)
    made = plan.place(A, "a", range(7), no_epoch)
    assert [p.writer for p in made] == [0, 1, 2, 0, 1, 2, 0]
    assert [p.slot for p in made] == [0, 0, 0, 1, 1, 1, 2]
    assert all(p.slot_epoch == 1 for p in made)


def test_a_freed_slot_is_given_again_under_a_higher_epoch() -> None:
    plan = Plan(writers_limit=1, table_slots=8)
    first, second = plan.place(A, "a", range(2), no_epoch)
    plan.release(first)
    (third,) = plan.place(B, "b", [0], lambda _writer, slot: 5 if slot == 0 else 0)
    assert (third.slot, third.slot_epoch) == (0, 6)
    assert plan.of_writer(0) == [third, second]
    assert plan.of_topic(A) == [second]


def test_a_topic_too_large_for_the_tables_is_refused_and_nothing_changes() -> None:
    plan = Plan(writers_limit=2, table_slots=4)
    plan.place(A, "a", range(3), no_epoch)
    with pytest.raises(InvalidPartitions, match="room for 5"):
        plan.place(B, "b", range(6), no_epoch)
    assert len(plan.places) == 3
    assert len(plan.place(B, "b", range(5), no_epoch)) == 5


def test_adoption_keeps_the_places_that_the_tables_hold() -> None:
    plan = Plan(writers_limit=1, table_slots=8)
    tables = {
        0: table(8, (3, A, 0, 7, "online"), (4, "c" * 32, 0, 1, "online")),  # c is deleted
        2: table(16, (0, A, 1, 1, "offline"), (1, A, 9, 1, "online")),  # a has no partition 9
    }
    plan.adopt(tables, {A: ("a", 3)})
    assert {(p.partition, p.writer, p.slot, p.slot_epoch) for p in plan.of_topic(A)} == {
        (0, 0, 3, 7),
        (1, 2, 0, 1),
    }
    assert plan.writers == {0, 2}
    (missing,) = plan.place(A, "a", [2], no_epoch)
    assert missing.writer in (0, 2)  # the limit is lower than what there is: none is added


def test_one_partition_in_two_slots_is_taken_once() -> None:
    plan = Plan(writers_limit=2, table_slots=8)
    tables = {0: table(8, (0, A, 0, 1, "online")), 1: table(8, (0, A, 0, 1, "online"))}
    plan.adopt(tables, {A: ("a", 1)})
    assert [p.writer for p in plan.of_topic(A)] == [0]


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.booleans(), st.integers(1, 6)), max_size=30),
)
def test_no_place_is_ever_given_twice_and_loads_stay_even(
    limit: int, steps: list[tuple[bool, int]]
) -> None:
    plan = Plan(limit, table_slots=1000)
    topics: list[str] = []
    for n, (make, partitions) in enumerate(steps):
        if make or not topics:
            topic_id = f"{n:032x}"
            topics.append(topic_id)
            for place in plan.place(topic_id, str(n), range(partitions), no_epoch):
                if place.writer not in plan.writers:
                    plan.add_writer(place.writer)
        else:
            for place in plan.of_topic(topics.pop()):
                plan.release(place)
        used = [(p.writer, p.slot) for p in plan.places.values()]
        assert len(used) == len(set(used))
        assert len(plan.writers) <= limit
        assert all(p.partition == n for t in topics for n, p in enumerate(plan.of_topic(t)))


@pytest.mark.parametrize(
    ("setting", "cores", "limit"),
    [("auto", 1, 1), ("auto", 2, 1), ("auto", 4, 3), ("auto", 256, 62), (2, 64, 2), (200, 4, 62)],
)
def test_the_number_of_writers(setting: object, cores: int, limit: int) -> None:
    assert writers_limit(setting, cores) == limit  # type: ignore[arg-type]


def test_an_idle_broker_starts_one_writer_unless_told_a_number() -> None:
    assert writers_at_start("auto", 3, 0) == 1
    assert writers_at_start("auto", 3, 2) == 2
    assert writers_at_start("auto", 3, 100) == 3
    assert writers_at_start(2, 2, 0) == 2


def test_tables_have_twice_the_room_that_is_needed() -> None:
    assert table_slots_for(0, 1) == SLOTS_MIN
    assert table_slots_for(1000, 1) == 2048
    assert table_slots_for(1000, 3) == SLOTS_MIN
    assert table_slots_for(100_000, 1) == 8192


def test_the_first_core_is_left_to_others_and_nothing_is_pinned_without_room() -> None:
    assert cores_for_writers((4, 6, 5, 7), 3, "auto") == {0: (6,), 1: (5,), 2: (7,)}
    assert cores_for_writers((0,), 1, True) == {}
    assert cores_for_writers((0, 1), 2, "auto") == {}
    assert cores_for_writers((0, 1, 2), 1, False) == {}
