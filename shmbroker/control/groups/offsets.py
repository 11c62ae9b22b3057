"""Offsets: what of a commit is kept, and how far behind a group is. Pure functions.

An offset is the next to be read. Beside it stands the leader epoch of the record before, so that a
reader who resumes is told if that record was lost with the host, and is never carried past it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shmbroker.control.groups.messages import Commit, CommitAnswer
from shmbroker.control.groups.values import Committed, OffsetCommit, Partition
from shmbroker.errors import ShmbrokerError, UnknownTopic


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a partition's durable log begins and ends now."""

    start: int  # log start offset, inclusive
    end: int  # durable end, exclusive


def judge(
    commit: Commit,
    refused: Mapping[Partition, ShmbrokerError],
    durable_end: Callable[[Partition], int | None],
) -> tuple[list[OffsetCommit], CommitAnswer]:
    """What of a commit is to be stored, and the answer for when it is durable.

    `refused` is `Coordinator.check_commit`'s; `durable_end` says None for a partition that there is
    not, and raises what one is to be refused with. An offset behind the durable end becomes that:
    records up to there can't be lost any more, and the leader epoch, which may be a later one then,
    truncates nothing that is still there.
    """
    kept: list[OffsetCommit] = []
    committed: dict[Partition, int] = {}
    no: dict[Partition, ShmbrokerError] = dict(refused)
    for row in commit.rows:
        if row.partition in no:
            continue
        try:
            end = durable_end(row.partition)
        except ShmbrokerError as error:
            no[row.partition] = error
            continue
        if end is None:
            no[row.partition] = UnknownTopic(*row.partition)
            continue
        offset = min(row.offset, end)
        committed[row.partition] = offset
        kept.append(
            OffsetCommit(commit.group, row.partition, offset, row.leader_epoch, row.metadata)
        )
    return kept, CommitAnswer(committed, no)


def lag(committed: Committed | None, bounds: Bounds) -> int:
    """How many durable records the group has still to read; without a commit all that there are.

    Records that retention has taken meanwhile are not counted: nobody can read them any more.
    """
    first = bounds.start if committed is None else max(committed.offset, bounds.start)
    return max(0, bounds.end - first)


__all__ = ["Bounds", "judge", "lag"]
