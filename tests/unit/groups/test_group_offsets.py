"""Committed offsets: what counts, what is kept, how long, and how they are moved."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from group_members import FakeMember, GroupBroker
from hypothesis import given
from hypothesis import strategies as st

from shmbroker import errors
from shmbroker.control.groups import reset
from shmbroker.control.groups.messages import Commit, CommitRow, Fetch
from shmbroker.control.groups.offsets import Bounds, lag
from shmbroker.control.groups.reset import AtOffset, AtTime, FromEnd
from shmbroker.control.groups.values import Committed, Partition

DAY_MS = 86_400_000
P = ("id", 0)


def tp(broker: GroupBroker, number: int = 0) -> Partition:
    return broker.meta.topic("t").topic_id, number


def alone(broker: GroupBroker, offset: int, group: str = "batch", number: int = 0) -> Any:
    return broker.commit(Commit(group, (CommitRow(tp(broker, number), offset, 4, "why"),)))


def test_a_commit_is_there_after_a_restart_with_its_epoch_and_metadata(broker: GroupBroker) -> None:
    alone(broker, 42)
    broker.restart()
    found = broker.committed("batch")[tp(broker)]
    assert (found.offset, found.leader_epoch, found.metadata) == (42, 4, "why")
    assert broker.committed("batch", [tp(broker), tp(broker, 1)]) == {tp(broker): found}
    assert broker.committed("other") == {}


def test_a_commit_is_capped_at_the_durable_end(broker: GroupBroker) -> None:
    broker.ends[tp(broker)] = 10
    assert alone(broker, 25).committed == {tp(broker): 10}
    assert broker.committed("batch")[tp(broker)].offset == 10


def test_one_refused_partition_does_not_spoil_the_others(broker: GroupBroker) -> None:
    rows = (CommitRow(tp(broker), 1), CommitRow(("nothing", 0), 1), CommitRow(tp(broker, 9), 1))
    answer = broker.commit(Commit("batch", rows))
    assert answer.committed == {tp(broker): 1}
    assert {type(e) for e in answer.refused.values()} == {errors.UnknownTopic}


def test_who_is_no_member_commits_only_while_there_are_none(broker: GroupBroker) -> None:
    alone(broker, 1, "g")
    a = FakeMember(broker, "a")
    a.beat()
    with pytest.raises(errors.GroupNotEmpty, match="no member"):
        alone(broker, 2, "g")
    assert broker.committed("g")[tp(broker)].offset == 1
    a.leave()
    alone(broker, 3, "g")
    assert broker.committed("g")[tp(broker)].offset == 3


def test_many_commits_are_one_transaction_and_answered_when_it_is_durable(
    broker: GroupBroker,
) -> None:
    said: list[Any] = []
    written: list[str] = []
    broker.meta.connection.set_trace_callback(written.append)
    for number in range(50):
        commit = Commit(f"g{number}", (CommitRow(tp(broker), number),))
        broker.gathering.commit(commit, broker.durable_end, said.append)
    assert not said
    broker.gathering.flush(1)
    broker.meta.connection.set_trace_callback(None)
    assert len(said) == 50
    assert written.count("COMMIT") == 1
    assert broker.committed("g49")[tp(broker)].offset == 49


def test_a_store_that_fails_fails_the_commits_and_keeps_what_the_coordinator_did(
    broker: GroupBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = FakeMember(broker, "a")

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(broker.store, "write", full)
        with pytest.raises(errors.StoreFailed, match="disk is full") as caught:
            a.beat()
        assert caught.value.retriable
        with pytest.raises(errors.StoreFailed):
            alone(broker, 7)
    a.beat()  # what was done before is stored now, and only now told
    assert len(a.holds) == 4
    assert broker.committed("batch") == {}
    broker.restart()
    assert a.beat().assignment is None


def test_offsets_of_an_empty_group_expire_and_those_of_a_busy_one_do_not(
    broker: GroupBroker,
) -> None:
    a = FakeMember(broker, "a", session_timeout_ms=1_800_000)
    a.beat()
    a.commit(tp(broker), 3)
    alone(broker, 5)
    began = broker.now_ms
    assert broker.gathering.expire(began + DAY_MS - 1, DAY_MS) == []
    assert broker.gathering.expire(began + DAY_MS, DAY_MS) == ["batch"]
    assert broker.coordinator.names() == ["g"]
    assert broker.committed("g")[tp(broker)].offset == 3
    broker.now_ms += 5_000
    a.leave()
    assert broker.gathering.expire(began + DAY_MS, DAY_MS) == []  # its time begins now
    assert broker.committed("g")
    assert broker.gathering.expire(began + 5_000 + DAY_MS, DAY_MS) == ["g"]
    broker.restart()
    assert broker.coordinator.names() == []


def test_a_commit_keeps_an_empty_group_for_longer(broker: GroupBroker) -> None:
    alone(broker, 5)
    alone(broker, 5, number=1)
    broker.now_ms += 1_000
    alone(broker, 6)
    assert broker.gathering.expire(broker.now_ms - 1_000 + DAY_MS, DAY_MS) == []
    assert list(broker.committed("batch")) == [tp(broker)]


def test_a_fetch_sees_what_was_handed_in_before_it(broker: GroupBroker) -> None:
    said: list[Any] = []
    commit = Commit("batch", (CommitRow(tp(broker), 8),))
    broker.gathering.commit(commit, broker.durable_end, lambda _: None)
    broker.gathering.fetch(Fetch("batch"), said.append)
    broker.gathering.flush(1)
    assert said[0]["offsets"] == [[*tp(broker), 8, -1, "", 1]]


def test_a_store_of_before_there_were_groups_gets_the_tables(tmp_path: Path) -> None:
    from shmbroker.control.meta import MetaStore

    before = MetaStore(tmp_path / "meta.db")
    before.create_topic("t", 1, {})
    before.close()
    broker = GroupBroker(tmp_path / "meta.db")
    alone(broker, 1)
    assert broker.committed("batch")
    broker.close()


# Lag and resets: pure functions


@pytest.mark.parametrize(
    ("committed", "records"), [(None, 90), (10, 90), (3, 90), (40, 60), (100, 0), (120, 0)]
)
def test_lag_counts_the_records_that_can_still_be_read(committed: int | None, records: int) -> None:
    kept = None if committed is None else Committed(committed, 0, "", 0)
    assert lag(kept, Bounds(10, 100)) == records


@pytest.mark.parametrize(
    ("target", "after", "capped"),
    [
        ("earliest", 10, False),
        ("latest", 100, False),
        (AtOffset(50), 50, False),
        (AtOffset(5), 10, True),
        (AtOffset(500), 100, True),
        (FromEnd(30), 70, False),
        (FromEnd(500), 10, True),
        (AtTime(1_000), 64, False),
        (AtTime(9_000), 100, False),
    ],
)
def test_a_reset_says_what_it_would_do(target: reset.Target, after: int, capped: bool) -> None:
    def offset_at(_: Partition, timestamp_ms: int) -> int | None:
        return 64 if timestamp_ms <= 1_000 else None

    before = {P: Committed(40, 2, "", 0)}
    (line,) = reset.plan(target, [P], before, {P: Bounds(10, 100)}, offset_at, lambda _p, _o: 7)
    assert (line.before, line.after, line.capped) == (40, after, capped)
    assert (line.lag_before, line.lag_after) == (60, 100 - after)
    done = reset.commit("g", 0, [line])
    assert done == Commit("g", (CommitRow(P, after, 7),))
    with pytest.raises(errors.GroupNotEmpty, match="moving its offsets"):
        reset.commit("g", 2, [line])


@given(st.integers(0, 50), st.integers(0, 50), st.integers(-5, 200))
def test_a_reset_never_leaves_the_log(start: int, records: int, asked: int) -> None:
    there = Bounds(start, start + records)
    for target in (AtOffset(asked), FromEnd(asked), AtTime(0)):
        (line,) = reset.plan(target, [P], {}, {P: there}, lambda _p, _t: asked)
        assert there.start <= line.after <= there.end
        assert line.before is None


def test_a_reset_of_a_group_that_got_members_meanwhile_is_refused(broker: GroupBroker) -> None:
    alone(broker, 5, "g")
    bounds = {tp(broker): Bounds(0, 1_000)}
    lines = reset.plan("earliest", [tp(broker)], broker.committed("g"), bounds, lambda _p, _t: 0)
    done = reset.commit("g", 0, lines)
    FakeMember(broker, "a").beat()
    with pytest.raises(errors.GroupNotEmpty):
        broker.commit(done)
