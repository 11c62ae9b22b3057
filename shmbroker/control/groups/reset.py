"""Moving a group's offsets: the plan, as a pure function, to be shown before it is done.

Done is a plan by committing its rows without a member id, which the coordinator refuses while the
group has members (`Coordinator.check_commit`), however long ago the plan was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from shmbroker.control.groups.messages import Commit, CommitRow
from shmbroker.control.groups.offsets import Bounds, lag
from shmbroker.control.groups.values import Committed, Partition
from shmbroker.errors import GroupNotEmpty


@dataclass(frozen=True, slots=True)
class AtOffset:
    """To this offset in each partition."""

    offset: int


@dataclass(frozen=True, slots=True)
class AtTime:
    """To the first record that is not older."""

    timestamp_ms: int  # Unix time


@dataclass(frozen=True, slots=True)
class FromEnd:
    """So that this many records of each partition are read again."""

    records: int


Target = Literal["earliest", "latest"] | AtOffset | AtTime | FromEnd


@dataclass(frozen=True, slots=True)
class ResetLine:
    """What becomes of one partition."""

    partition: Partition
    before: int | None  # the committed offset; None: there is none
    after: int
    lag_before: int
    lag_after: int
    capped: bool  # what was asked for lies outside the log; `after` is the nearest that is in it
    leader_epoch: int  # of the record before `after`; -1: not known


def plan(
    target: Target,
    partitions: Iterable[Partition],
    committed: Mapping[Partition, Committed],
    bounds: Mapping[Partition, Bounds],
    offset_at: Callable[[Partition, int], int | None],
    epoch_before: Callable[[Partition, int], int] = lambda _partition, _offset: -1,
) -> list[ResetLine]:
    """What resetting `partitions` would do, by topic and number.

    `offset_at(partition, timestamp_ms)` is the first offset not older, None if all are; an offset
    outside the log becomes the nearest inside. `epoch_before(partition, offset)` is the leader
    epoch of the record before that offset, -1 if it is not known.
    """
    lines = []
    for partition in sorted(partitions):
        there = bounds[partition]
        asked = _asked(target, partition, there, offset_at)
        after = min(max(asked, there.start), there.end)
        before = committed.get(partition)
        epoch = epoch_before(partition, after)
        moved = Committed(after, epoch, "", 0)
        lines.append(
            ResetLine(
                partition,
                None if before is None else before.offset,
                after,
                lag(before, there),
                lag(moved, there),
                after != asked,
                epoch,
            )
        )
    return lines


def commit(group: str, members: int, lines: Iterable[ResetLine]) -> Commit:
    """The plan as a commit; raises GroupNotEmpty while the group has members."""
    if members:
        raise GroupNotEmpty(group, members, "moving its offsets")
    return Commit(group, tuple(CommitRow(x.partition, x.after, x.leader_epoch) for x in lines))


def _asked(
    target: Target,
    partition: Partition,
    there: Bounds,
    offset_at: Callable[[Partition, int], int | None],
) -> int:
    if isinstance(target, AtOffset):
        return target.offset
    if isinstance(target, FromEnd):
        return there.end - target.records
    if isinstance(target, AtTime):
        found = offset_at(partition, target.timestamp_ms)
        return there.end if found is None else found
    return there.start if target == "earliest" else there.end


__all__ = ["AtOffset", "AtTime", "FromEnd", "ResetLine", "Target", "commit", "plan"]
