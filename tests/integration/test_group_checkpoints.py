"""Checkpoints through shared memory with a real broker: what a kill -9 of anybody leaves."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_member import CheckpointMember, committed
from waiting import eventually

from shmbroker import errors
from shmbroker._core import shm
from shmbroker.client.checkpoints import MemberCheckpoints
from shmbroker.client.client import Client

SCRIPT = Path(__file__).parents[1] / "support" / "checkpoint_member.py"
CONFIG = """
[listen]
address = "tcp://127.0.0.1:0"

[groups]
session_timeout_ms = "20s"
"""


@pytest.fixture
def broker_config() -> str:
    return CONFIG


@pytest.fixture
def client(broker: Any) -> Iterator[Client]:
    with broker.client() as made:
        made.create_topic("t", partitions=2)
        with made.producer() as producer:
            for n in range(20):
                producer.send("t", b"%d" % n, partition=n % 2)
            producer.flush()
        yield made


def objects(client: Client) -> list[str]:
    prefix = client.connection.attachment.prefix
    return [name for name in shm.list_prefix(prefix) if name.startswith(f"{prefix}-k")]


@contextlib.contextmanager
def member_process(broker: Any, client: Client) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(SCRIPT), broker.instance, "m"]
    process = subprocess.Popen(
        command, env=broker.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def works(process: subprocess.Popen[str], records: int) -> dict[int, int]:
    """It reads so many records; returns the offset behind each partition's last."""
    assert process.stdin is not None
    assert process.stdout is not None
    stored: dict[int, int] = {}
    for n in range(records):
        if n:
            process.stdin.write("on\n")
            process.stdin.flush()
        partition, offset = map(int, process.stdout.readline().split())
        stored[partition] = offset + 1
    return stored


def test_the_successor_of_a_killed_member_begins_where_its_last_checkpoint_was(
    broker: Any, client: Client
) -> None:
    with member_process(broker, client) as process:
        stored = works(process, 7)
        process.kill()
        process.wait()
        found = committed(client)
        assert {n: offset for n, (offset, _) in found.items()} == stored
        assert {epoch for _, epoch in found.values()} == {0}
    eventually(lambda: not objects(client), lambda: objects(client))  # its hang-up was seen


def test_a_kill_of_everything_keeps_what_stood_in_shared_memory(
    broker: Any, client: Client
) -> None:
    with member_process(broker, client) as process:
        stored = works(process, 5)
        broker.kill9(everything=True)
        process.kill()
        process.wait()
        broker.start()
        eventually(
            lambda: {n: offset for n, (offset, _) in committed(client).items()} == stored,
            lambda: (stored, committed(client)),
        )


def test_a_member_goes_on_in_the_same_memory_after_its_broker_was_killed_or_restarted(
    broker: Any, client: Client
) -> None:
    member = CheckpointMember(client, "one")
    member.join(2)
    assert member.store(0, 1)
    broker.kill9()
    assert member.store(0, 2)  # while there is nobody to look
    broker.start()
    client.connection.attached(20)
    eventually(lambda: committed(client).get(0) == (2, -1), lambda: committed(client))
    member.beat()
    assert len(objects(client)) == 1
    assert member.store(0, 3)
    broker.restart()  # in order: what was stored is durable, and its memory is gone
    client.connection.attached(20)
    assert committed(client)[0] == (3, -1)
    member.store(0, 4)
    member.beat()
    eventually(lambda: committed(client)[0] == (4, -1), lambda: committed(client))
    member.leave()


def test_checkpoints_are_durable_soon_also_if_nobody_asks_and_idle_ones_write_nothing(
    broker: Any, client: Client
) -> None:
    member = CheckpointMember(client, "one")
    member.join(2)
    store = sqlite3.connect(f"file:{broker.places.data_dir}/meta.db?mode=ro", uri=True)
    query = "SELECT partition, offset FROM group_offsets"
    try:
        for offset in range(1, 10):
            member.store(1, offset)
            eventually(
                lambda at=offset: store.execute(query).fetchall() == [(1, at)],  # type: ignore[misc]
                lambda: store.execute(query).fetchall(),
            )
    finally:
        store.close()
    broker.stop()  # all of it is durable, and no object is left
    assert objects(client) == []
    broker.start()
    client.connection.attached(20)
    assert committed(client) == {1: (9, -1)}
    member.consumer.close()


class TestWithoutRounds:
    """The broker looks by itself once a minute only: what counts is a look before it acts."""

    @pytest.fixture
    def broker_config(self) -> str:
        return CONFIG + 'offsets_flush_ms = "60s"\n'

    def test_who_is_put_out_for_its_silence_loses_no_checkpoint(
        self, broker: Any, client: Client
    ) -> None:
        member = CheckpointMember(client, "one")
        member.join(2, session_timeout_ms=1_000)
        store = sqlite3.connect(f"file:{broker.places.data_dir}/meta.db?mode=ro", uri=True)
        try:
            assert member.store(1, 5)
            eventually(  # asking the broker would have it look
                lambda: store.execute("SELECT member_id FROM group_members").fetchall() == [],
                lambda: store.execute("SELECT member_id FROM group_members").fetchall(),
            )
            found = store.execute("SELECT partition, offset FROM group_offsets").fetchall()
        finally:
            store.close()
        assert found == [(1, 5)]
        member.consumer.close()


def test_a_late_checkpoint_of_a_revoked_partition_counts_for_nothing(client: Client) -> None:
    one, two = CheckpointMember(client, "one"), CheckpointMember(client, "two")
    one.join(2)
    one.store(0, 1)
    one.store(1, 1)
    slots = {n: one.checkpoints.slots.note("t", n, 0, 0) for n in range(2)}
    two.join(0)
    eventually(lambda: (one.beat(), bool(one.lost))[1], lambda: one.has)
    (lost,) = one.lost
    one.store(lost, 2)  # in time: it has yet to let go
    one.let_go()
    two.beat_until(1)
    assert committed(client)[lost] == (2, 0)
    assert not one.store(lost, 3)
    kept = slots[lost]
    assert kept is not None
    assert not kept.held
    two.store(lost, 4)
    eventually(lambda: committed(client)[lost] == (4, -1), lambda: committed(client))
    two.leave()
    assert committed(client)[lost] == (4, -1)
    one.beat_until(2)
    assert one.store(lost, 5)
    assert committed(client)[lost][0] == 5
    one.leave()


def test_a_program_elsewhere_is_told_that_it_has_no_shared_memory(
    broker: Any, client: Client
) -> None:
    broker.reach = "tcp"
    with broker.client() as remote:
        with (
            remote.consumer("t") as consumer,
            pytest.raises(errors.NotSupported, match=r"shared memory.*use commit\(\)"),
        ):
            MemberCheckpoints(remote.connection, consumer, "g")
        with pytest.raises(errors.NotSupported):
            remote.consumer("t", group="r", auto_checkpoint=True)
        with remote.consumer("t", group="r") as member:
            assert member.poll(20) is not None
            with pytest.raises(errors.NotSupported):
                member.checkpoint()
        with pytest.raises(errors.AuthorizationFailed):
            remote.connection.request("open_checkpoints", group="g", member="r", epoch=1, slots=1)


def test_a_consumers_checkpoint_is_where_its_successor_begins(client: Client) -> None:
    with client.consumer("t", group="c") as consumer:
        seen = [consumer.poll(20) for _ in range(7)]
        last = seen[3]
        assert last is not None
        consumer.checkpoint(last)
        assert consumer.committed()[last.topic, last.partition] == last.offset + 1
        consumer.checkpoint()
        positions = {p: consumer.position(p) for p in consumer.assignment()}
        assert {p: at or 0 for p, at in consumer.committed().items()} == positions
        assert sum(positions.values()) == 7
        batch = consumer.poll_batch(20)
        assert batch is not None
        consumer.checkpoint(batch)
        assert consumer.committed()[batch.topic, batch.partition] == batch.next_offset
        consumer.checkpoint({("t", 0): 2, ("t", 1): 1})
        assert consumer.committed() == {("t", 0): 2, ("t", 1): 1}
        consumer.commit({("t", 0): 1})
        assert consumer.committed() == {("t", 0): 1, ("t", 1): 1}
        with pytest.raises(errors.StaleMemberEpoch, match="t-9 is not this member's"):
            consumer.checkpoint({("t", 9): 1})
    with client.consumer("t", group="c") as consumer:
        record = consumer.poll(20)
        assert record is not None
        assert record.offset == 1
    with pytest.raises(errors.ClosedError):
        consumer.checkpoint()


def test_by_itself_what_was_asked_past_is_stored_and_on_revoke_may_store_more(
    client: Client,
) -> None:
    stored: list[int] = []

    def on_revoke(partitions: list[Any]) -> None:
        one.checkpoint()
        stored.extend(partition for _, partition in partitions)

    with client.consumer("t", group="c", auto_checkpoint=True, on_revoke=on_revoke) as one:
        for _ in range(5):
            assert one.poll(20) is not None
        assert sum(at or 0 for at in one.committed().values()) == 4
        assert one.poll(20) is not None
        assert sum(at or 0 for at in one.committed().values()) == 5
        with client.consumer("t", group="c") as two:
            eventually(lambda: (one.poll(0), len(one.assignment()) == 1)[1], one.assignment)
            eventually(lambda: (two.poll(0), len(two.assignment()) == 1)[1], two.assignment)
            assert len(stored) == 1
    with pytest.raises(ValueError, match="choose one"):
        client.consumer("t", group="c", auto_checkpoint=True, auto_commit_ms=5)


def test_a_consumer_that_was_put_out_checkpoints_again_when_it_is_back(
    broker: Any, client: Client
) -> None:
    with client.consumer("t", group="c", auto_checkpoint=True) as consumer:
        assert consumer.poll(20) is not None
        before = consumer.member_id
        leave = {"group": "c", "member": before, "comes_back": False}
        client.connection.request("group_leave", **leave)
        eventually(  # its heart hears of it at the next beat; stores until then count for nothing
            lambda: (
                (consumer._heart.wake(), consumer._member.soon(), consumer.poll(0))
                and consumer.member_id != before
                and len(consumer.assignment()) == 2
            ),
            lambda: consumer.member_id,
        )
        for _ in range(3):
            assert consumer.poll(20) is not None
        assert sum(at or 0 for at in consumer.committed().values()) >= 2
        broker.restart()
        for _ in range(2):
            assert consumer.poll(20) is not None
        assert sum(at or 0 for at in consumer.committed().values()) >= 4


NONSENSE: tuple[dict[str, Any], ...] = (
    {"group": "g", "member": "one", "epoch": 1, "slots": 0},
    {"group": "g", "member": "one", "epoch": 1, "slots": 1 << 40},
    {"group": "g", "member": "one", "epoch": "x", "slots": 1},
    {"group": "", "member": "one", "epoch": 1, "slots": 1},
    {"group": "nobody's", "member": "one", "epoch": 1, "slots": 1},
)


def test_nonsense_makes_no_object(client: Client) -> None:
    for args in NONSENSE:
        with pytest.raises(errors.ShmbrokerError):
            client.connection.request("open_checkpoints", **args)
    assert objects(client) == []
