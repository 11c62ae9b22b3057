"""Checkpoints through shared memory: what counts, who loses nothing, and what is unlinked when.

The shared memory is real; the coordinator and its store are those of the acceptor, its loop's
timers are called by hand.
"""

from __future__ import annotations

import os
import secrets
import signal
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from group_members import FakeMember, GroupBroker, settle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmbroker import errors
from shmbroker._core import shm
from shmbroker._core.checkpoint import Checkpoints as Writer
from shmbroker._core.checkpoint import CheckpointsView
from shmbroker._core.reader import Mapping
from shmbroker.config import MemorySection
from shmbroker.control.groups.checkpoint_messages import CheckpointsOpened, OpenCheckpoints
from shmbroker.control.groups.values import Partition
from shmbroker.control.sharedmem import SharedMemory, boot_id
from shmbroker.workers.checkpoints import Checkpoints

CLIENT = 7


class FakeLoop:
    """The timers of a loop, called by `Rig.round`."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def after(self, seconds: float, callback: Callable[[], None]) -> Any:
        self.timers.append((seconds, callback))
        return self

    def cancel(self) -> None:
        self.timers.clear()


class Rig:
    """An acceptor's half over a GroupBroker, and members that store."""

    def __init__(self, broker: GroupBroker) -> None:
        self.broker = broker
        self.prefix = f"/shmb-{os.getuid()}-{secrets.token_hex(4)}"
        self.ids = boot_id(), os.urandom(16)
        self.memory = self._memory()
        self.memory.make_table(0, 8)
        self.start()

    def _memory(self) -> SharedMemory:
        memory = SharedMemory(self.prefix, *self.ids, MemorySection())
        memory.take_over()
        return memory

    def start(self) -> None:
        self.loop = FakeLoop()
        self.flushes = 0
        self.checkpoints = Checkpoints(
            self.memory,
            self.broker.coordinator,
            self.broker.gathering,
            self.broker.durable_end,
            self.loop,  # type: ignore[arg-type]
            self.asked_to_flush,
        )
        self.checkpoints.restore()
        self.flush()

    def asked_to_flush(self) -> None:
        self.flushes += 1

    def flush(self) -> None:
        self.broker.gathering.flush(self.broker.now_ms)

    def round(self) -> None:
        """`offsets_flush_ms` have passed."""
        timers, self.loop.timers = self.loop.timers, []
        for _, callback in timers:
            callback()
        self.flush()

    def killed_and_started_again(self) -> None:
        """SIGKILL of the acceptor: nothing is closed in order, and the next one adopts."""
        self.checkpoints.unmap()
        self.memory.close(unlink=False)
        self.broker.restart()
        self.memory = self._memory()
        self.start()

    def objects(self) -> list[str]:
        return [n for n in shm.list_prefix(self.prefix) if n.startswith(f"{self.prefix}-k")]

    def open(self, member: FakeMember, slots: int = 4, client: int = CLIENT) -> Writer:
        writer = Writer()
        writer.add(self.map(member, slots, client))
        return writer

    def map(self, member: FakeMember, slots: int = 4, client: int = CLIENT) -> Mapping:
        asked = OpenCheckpoints(member.group, member.member_id, member.epoch, slots)
        opened = CheckpointsOpened.from_ok(self.checkpoints.open(client, asked))
        assert opened.slots >= slots
        found = shm.open_existing(
            f"{self.prefix}-{opened.suffix}", shm.KIND_CHECKPOINTS, *self.ids, writable=True
        )
        try:
            return Mapping(found.name, found.fileno(), writable=True)
        finally:
            found.close()

    def committed(self, number: int, group: str = "g") -> tuple[int, int] | None:
        found = self.broker.store.committed(group).get(self.tp(number))
        return None if found is None else (found.offset, found.leader_epoch)

    def tp(self, number: int) -> Partition:
        return self.broker.meta.topic("t").topic_id, number

    def take(self, writer: Writer, member: FakeMember, *numbers: int) -> None:
        for number in numbers:
            writer.take("t", bytes.fromhex(self.tp(number)[0]), number, member.epoch)

    def close(self) -> None:
        self.checkpoints.unmap()
        self.memory.close(unlink=True)


@pytest.fixture
def rig(broker: GroupBroker) -> Iterator[Rig]:
    made = Rig(broker)
    yield made
    made.close()


def alone(rig: Rig, name: str = "a") -> tuple[FakeMember, Writer]:
    """A member that has all four partitions, and their slots."""
    member = FakeMember(rig.broker, name)
    settle([member])
    writer = rig.open(member)
    rig.take(writer, member, 0, 1, 2, 3)
    return member, writer


def test_what_was_stored_is_durable_after_one_round_with_its_leader_epoch(rig: Rig) -> None:
    _, writer = alone(rig)
    writer.note("t", 1, 0, 4)
    assert writer.store("t", 1, 10)
    assert rig.committed(1) is None
    rig.round()
    assert rig.committed(1) == (10, 4)
    writer.store("t", 1, 12)
    writer.note("t", 1, 12, 5)
    writer.store("t", 1, 13)
    writer.store("t", 1, 12)  # back: the record before is of the old epoch again
    rig.round()
    assert rig.committed(1) == (12, 4)
    assert rig.committed(0) is None


def test_a_round_in_which_nothing_was_stored_asks_for_no_flush(rig: Rig) -> None:
    _, writer = alone(rig)
    rig.round()
    writer.store("t", 0, 1)
    rig.round()
    before, statements = rig.flushes, list[str]()
    rig.broker.meta.connection.set_trace_callback(statements.append)
    rig.round()
    rig.broker.meta.connection.set_trace_callback(None)
    assert (rig.flushes, statements) == (before, [])


def test_without_an_object_there_is_no_timer(rig: Rig) -> None:
    assert rig.loop.timers == []
    member, _ = alone(rig)
    assert [seconds for seconds, _ in rig.loop.timers] == [0.1]
    rig.checkpoints.look("g")
    member.leave()
    rig.round()
    assert rig.loop.timers == []
    assert rig.objects() == []


def test_a_checkpoint_of_a_partition_that_the_member_lost_counts_for_nothing(rig: Rig) -> None:
    a, writer = alone(rig)
    b = FakeMember(rig.broker, "b")
    settle([a, b])
    lost = next(n for n in range(4) if rig.tp(n) in b.holds)
    kept = next(n for n in range(4) if rig.tp(n) in a.holds)
    b.commit(rig.tp(lost), 5)
    writer.store("t", lost, 3)  # late
    writer.store("t", kept, 7)
    rig.round()
    assert rig.committed(lost) == (5, 0)
    assert rig.committed(kept) == (7, -1)


def test_a_slot_of_an_earlier_possession_counts_for_nothing_until_it_is_taken_anew(
    rig: Rig,
) -> None:
    a, writer = alone(rig)
    b = FakeMember(rig.broker, "b")
    settle([a, b])
    lost = next(n for n in range(4) if rig.tp(n) in b.holds)
    b.commit(rig.tp(lost), 5)
    b.leave()
    settle([a])
    assert rig.tp(lost) in a.holds
    writer.store("t", lost, 3)  # under the epoch of before
    rig.round()
    assert rig.committed(lost) == (5, 0)
    rig.take(writer, a, lost)
    rig.round()
    assert rig.committed(lost) == (5, 0)
    writer.store("t", lost, 6)
    rig.round()
    assert rig.committed(lost) == (6, -1)


def test_what_is_stored_before_a_partition_is_let_go_counts(rig: Rig) -> None:
    a, writer = alone(rig)
    b = FakeMember(rig.broker, "b")
    b.beat()
    a.beat()
    (number, *_) = sorted(n for _, n in a.revoke)
    writer.store("t", number, 9)
    rig.checkpoints.look("g")  # as the acceptor does before every heartbeat of the group
    a.let_go()
    a.beat()
    assert rig.committed(number) == (9, -1)


def test_a_member_that_is_put_out_loses_nothing_and_then_its_object_is_gone(rig: Rig) -> None:
    _, writer = alone(rig)
    writer.store("t", 2, 8)
    rig.checkpoints.look()  # as before every tick
    rig.broker.sleep(60_000)
    rig.flush()
    assert rig.committed(2) == (8, -1)
    rig.round()
    assert rig.objects() == []
    writer.store("t", 2, 9)  # into memory that nobody looks at any more
    rig.round()
    assert rig.committed(2) == (8, -1)


def test_the_end_of_a_client_makes_its_last_checkpoint_durable_before_it_unlinks(rig: Rig) -> None:
    _, writer = alone(rig)
    other = FakeMember(rig.broker, "x", group="h")
    settle([other])
    rig.open(other, client=CLIENT + 1)
    writer.store("t", 2, 8)
    rig.checkpoints.client_gone(CLIENT)
    assert len(rig.objects()) == 2  # not durable yet
    rig.flush()
    assert rig.committed(2) == (8, -1)
    assert len(rig.objects()) == 1  # the other client's


def test_a_store_that_fails_is_tried_again_in_each_round(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, writer = alone(rig)
    writer.store("t", 2, 8)

    def full(*args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(rig.broker.store, "write", full)
        rig.checkpoints.client_gone(CLIENT)
        rig.flush()
        rig.round()
    assert len(rig.objects()) == 1
    rig.round()
    assert rig.committed(2) == (8, -1)
    assert rig.objects() == []


def test_behind_the_durable_end_a_checkpoint_follows_it(rig: Rig) -> None:
    _, writer = alone(rig)
    rig.broker.ends[rig.tp(0)] = 10
    writer.store("t", 0, 25)
    rig.round()
    assert rig.committed(0) == (10, -1)
    before = rig.flushes
    rig.round()
    assert rig.flushes == before  # nothing new, and no transaction for it
    rig.broker.ends[rig.tp(0)] = 20
    rig.round()
    assert rig.committed(0) == (20, -1)
    rig.broker.ends[rig.tp(0)] = 30
    rig.round()
    assert rig.committed(0) == (25, -1)
    before = rig.flushes
    rig.round()
    assert rig.flushes == before


def test_the_successor_of_a_killed_acceptor_keeps_what_stood_in_shared_memory(rig: Rig) -> None:
    member, writer = alone(rig)
    writer.store("t", 0, 3)
    rig.round()
    writer.store("t", 0, 5)
    writer.store("t", 3, 6)
    rig.killed_and_started_again()
    assert rig.committed(0) == (5, -1)
    assert rig.committed(3) == (6, -1)
    writer.store("t", 3, 7)  # the client goes on in the same object
    rig.round()
    assert rig.committed(3) == (7, -1)
    member.beat()
    rig.checkpoints.client_gone(CLIENT)
    rig.flush()
    assert rig.objects() == []


def test_a_successor_sweeps_objects_of_nobody_and_rubbish(rig: Rig) -> None:
    member, writer = alone(rig)
    writer.store("t", 0, 3)
    stray = FakeMember(rig.broker, "s", group="s")
    settle([stray])
    rubbish = rig.map(stray)
    # What no acceptor wrote: lengths of names that can't be.
    with open(f"/dev/shm{rubbish.name}", "r+b") as file:
        file.seek(128 + 12)
        file.write(struct.pack("<I", 1 << 31))
    member.leave()  # nobody looked before: the killed acceptor had no time
    rig.killed_and_started_again()
    rig.round()
    assert rig.objects() == []
    assert rig.committed(0) is None


def test_a_slot_that_holds_no_checkpoint_ends_the_object_and_nothing_else(rig: Rig) -> None:
    member, writer = alone(rig)
    writer.store("t", 0, 3)
    rig.round()
    writer.store("t", 1, 2)
    with open(f"/dev/shm{writer.mappings[0].name}", "r+b") as file:
        file.seek(2048 + 128 * 1 + 64 + 36)  # slot 1's odd pair: a leader epoch below -1
        file.write(struct.pack("<i", -5))
    rig.round()
    assert rig.objects() == []
    assert rig.committed(0) == (3, -1)
    assert rig.committed(1) is None
    again = rig.open(member)
    rig.take(again, member, 1)
    again.store("t", 1, 4)
    rig.round()
    assert rig.committed(1) == (4, -1)


def test_a_client_whose_object_is_gone_stores_all_of_it_again(rig: Rig) -> None:
    member, writer = alone(rig)
    writer.store("t", 0, 3)
    rig.round()
    rig.checkpoints.client_gone(CLIENT)  # its socket broke; it attaches again
    rig.flush()
    writer.store("t", 0, 4)
    writer.store("t", 2, 2)
    assert not writer.mappings[0].current
    writer.replace(rig.map(member))
    rig.round()
    assert rig.committed(0) == (4, -1)
    assert rig.committed(2) == (2, -1)
    assert rig.committed(1) is None


def test_who_is_no_member_gets_no_object(rig: Rig) -> None:
    member, _ = alone(rig)
    with pytest.raises(errors.GroupNotFound):
        rig.checkpoints.open(CLIENT, OpenCheckpoints("nobody", "a", 1, 4))
    with pytest.raises(errors.UnknownMember):
        rig.checkpoints.open(CLIENT, OpenCheckpoints("g", "b", member.epoch, 4))
    with pytest.raises(errors.FencedMemberEpoch):
        rig.checkpoints.open(CLIENT, OpenCheckpoints("g", "a", member.epoch + 1, 4))
    assert len(rig.objects()) == 1


def test_objects_stay_within_the_budget_and_most_members_take_one_page(rig: Rig) -> None:
    member, _ = alone(rig)
    (name,) = rig.objects()
    path = Path(f"/dev/shm{name}")
    assert path.stat().st_size == shm.PAGE_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    rig.memory.budget_bytes = 4 * (rig.memory.ingress_used_bytes + shm.PAGE_BYTES)
    rig.map(member)
    with pytest.raises(errors.MemoryBudget, match="checkpoints of another group member"):
        rig.map(member)
    assert shm.checkpoints_bytes(1_000) <= 3 * shm.PAGE_BYTES


def test_a_member_with_more_partitions_than_slots_gets_another_object(rig: Rig) -> None:
    member, writer = alone(rig)
    topic = bytes.fromhex(rig.tp(0)[0])
    while writer.room:
        writer.take("u", topic, writer.room, member.epoch)
    with pytest.raises(ValueError, match="no slot"):
        writer.take("v", topic, 0, member.epoch)
    writer.add(rig.map(member))
    writer.take("v", topic, 0, member.epoch)
    while writer.room:
        writer.take("w", topic, writer.room, member.epoch)
    writer.drop("u", 5)
    writer.recycle()  # the broker knows nothing of it yet
    assert writer.room == 0
    writer.recycle()
    assert writer.room == 1
    writer.take("u", topic, 5, member.epoch)
    writer.store("t", 3, 1)
    assert writer.store("v", 0, 1)
    rig.round()
    assert rig.committed(3) == (1, -1)


def test_nothing_is_stored_for_what_the_member_has_not(rig: Rig) -> None:
    _, writer = alone(rig)
    assert not writer.store("t", 9, 1)
    kept = writer.note("t", 2, 0, 0)
    assert kept is not None
    assert kept.held
    writer.drop("t", 2)
    writer.drop("t", 2)
    assert not writer.store("t", 2, 1)
    assert not kept.held
    rig.round()
    assert rig.committed(2) is None
    with pytest.raises(ValueError, match="begin at 0"):
        writer.store("t", 1, -1)


def store_for_ever(
    name: str, ids: tuple[bytes, bytes], topic: bytes, epoch: int, told: Any
) -> None:
    """A member's process: stores 1, 2, 3 …, another leader epoch every 7, and says how far."""
    found = shm.open_existing(name, shm.KIND_CHECKPOINTS, *ids, writable=True)
    writer = Writer()
    writer.add(Mapping(found.name, found.fileno(), writable=True))
    found.close()
    for number in range(4):
        writer.take("t", topic, number, epoch)
    for offset in range(1, 1 << 40):
        for number in range(4):
            if offset % 7 == 1:
                writer.note("t", number, offset - 1, offset // 7)
            writer.store("t", number, offset)
        told.value = offset


def test_a_member_killed_while_it_stores_leaves_its_last_checkpoints_whole(rig: Rig) -> None:
    """A process stores without a pause; whatever is committed is a pair that it stored, never goes
    back, and after its SIGKILL is at least the last that it knows to have stored."""
    rig.broker.durable_end = lambda _: 1 << 62  # type: ignore[method-assign]
    rig.close()
    rig.memory = rig._memory()
    rig.memory.make_table(0, 8)
    rig.start()
    member = FakeMember(rig.broker, "a")
    settle([member])
    mapped = rig.map(member)
    context = get_context("spawn")
    told = context.Value("q", 0, lock=False)
    process = context.Process(
        target=store_for_ever,
        args=(mapped.name, rig.ids, bytes.fromhex(rig.tp(0)[0]), member.epoch, told),
        daemon=True,
    )
    process.start()
    try:
        before, rounds = [0] * 4, 0
        until = time.monotonic() + 30
        while rounds < 200 and time.monotonic() < until:
            rig.round()
            found = [rig.committed(n) for n in range(4)]
            if None in found:
                continue
            rounds += 1
            for n, pair in enumerate(found):
                assert pair is not None
                assert pair[1] == (pair[0] - 1) // 7
                assert pair[0] >= before[n]
                before[n] = pair[0]
        assert rounds == 200
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        stored = told.value
        rig.checkpoints.client_gone(CLIENT)
        rig.flush()
        for n in range(4):
            last = rig.committed(n)
            assert last is not None
            assert last[0] in (stored, stored + 1)
            assert last[1] == (last[0] - 1) // 7
        assert rig.objects() == []
    finally:
        process.kill()
        process.join()
        process.close()


def shown(view: CheckpointsView) -> dict[int, tuple[int, int, int]]:
    rows = view.look()
    assert {topic for _, topic, *_ in rows} <= {bytes(16).hex()}
    return {number: (epoch, offset, leader) for _, _, number, epoch, offset, leader in rows}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(0, 3), st.integers(0, 40)),
        st.tuples(st.just("note"), st.integers(0, 3), st.integers(0, 40), st.integers(0, 3)),
        st.tuples(st.just("take"), st.integers(0, 3), st.integers(1, 5)),
        st.tuples(st.just("drop"), st.integers(0, 3)),
        st.tuples(
            st.just("look"),
        ),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_a_view_always_shows_the_last_that_was_stored_of_what_changed(
    steps: list[tuple[Any, ...]],
) -> None:
    """Any sequence of what a client does, against a model: partition -> (epoch, offset, leader)."""
    ids = boot_id(), bytes(16)
    name = f"/shmb-{os.getuid()}-{secrets.token_hex(4)}-k1"
    made = shm.create(
        name, shm.KIND_CHECKPOINTS, 1, shm.checkpoints_bytes(4), *ids, group="g", member="m"
    )
    try:
        view = CheckpointsView(name, made.fileno())
        assert (view.group, view.member, view.slots) == ("g", "m", 496)
        writer = Writer()
        writer.add(Mapping(name, made.fileno(), writable=True))
        held: dict[int, int] = {}
        notes: dict[int, list[tuple[int, int]]] = {}
        said: dict[int, tuple[int, int, int]] = {}  # what the slots say of each partition
        seen: dict[int, tuple[int, int, int]] = {}
        for step, *rest in [*steps, ("look",)]:
            if step == "take":
                number, epoch = rest
                if held.get(number, 0) < epoch:
                    held[number], notes[number] = epoch, []
                writer.take("t", bytes(16), number, epoch)
            elif step == "drop":  # the acceptor looks before it knows: the slot is given on
                seen |= shown(view)
                held.pop(rest[0], None)
                writer.drop("t", rest[0])
                writer.recycle()
                writer.recycle()
            elif step == "note":
                number, first, leader = rest
                assert (writer.note("t", number, first, leader) is not None) == (number in held)
                if number in held and (
                    not notes[number]
                    or notes[number][-1][0] > first
                    or notes[number][-1][1] != leader
                ):
                    kept = [note for note in notes[number] if note[0] < first]
                    notes[number] = [*kept, (first, leader)]
            elif step == "store":
                number, offset = rest
                assert writer.store("t", number, offset) == (number in held)
                if number in held:
                    leader = next((e for f, e in reversed(notes[number]) if f <= offset - 1), -1)
                    said[number] = held[number], offset, leader
            else:
                seen |= shown(view)
                assert seen == said
                assert not view.stirred
                assert view.look(True) == []
        view.close()
    finally:
        made.unlink()
        made.close()
