"""`shmbroker log repair`: cutting a damaged partition, after saying what that loses.

LogScan never cuts where acknowledged records may be behind the damage (recovery.py); a person
decides. `plan_repair` reads and changes nothing. `execute` cuts there: later segments are
unlinked, the segment is truncated, indexes follow, the leader epoch is raised in the checkpoint,
and all of it is durable on return. The caller holds the data directory's lock, so no broker runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from shmbroker._core import scan
from shmbroker.errors import DamagedLog
from shmbroker.log import checkpoint, epochs, names, recovery
from shmbroker.log.index import SegmentIndex
from shmbroker.log.iomode import IoMode
from shmbroker.log.logscan import EPOCH_MAX, Failure, LogScan, Place, reading

_REACH_BYTES = 4096  # nothing is in flight: what stands behind the failure counts as lost


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What a repair of one partition would do. Ends are exclusive."""

    directory: str
    needed: bool
    reason: str  # what is wrong
    segment: int  # base offset of the segment that would be cut, -1: none
    cut_position: int  # bytes of it that stay
    end_offset: int  # of the log after the repair
    lost_batches: int  # valid ones behind the damage
    lost_offsets: tuple[int, int]  # first that is missing, end of the last valid batch behind
    lost_bytes: int  # of files, from the cut on
    files: tuple[str, ...]  # that would be unlinked

    def describe(self) -> str:
        """For a person, in one line."""
        if not self.needed:
            return f"{self.directory}: nothing to repair"
        first, end = self.lost_offsets
        lost = f"offsets {first} to {end - 1}" if end > first else "no whole batch"
        also = f", and unlinks {', '.join(self.files)}" if self.files else ""
        return (
            f"{self.directory}: {self.reason}. A repair cuts "
            f"{names.file_name(self.segment, names.LOG)} at byte {self.cut_position}{also}; it "
            f"loses {lost} ({self.lost_batches} readable batches, {self.lost_bytes} bytes)"
        )


def plan_repair(directory: str, *, whole: bool = True) -> RepairPlan:
    """Reads the log from its start (or, with whole=False, from the checkpoint) and says where it
    would be cut. Changes nothing. Raises DamagedLog when there is no segment at all,
    DataDirVersion, OSError.
    """
    run, place, failure, point = _examine(directory, whole)
    max_epoch = point.leader_epoch if point is not None else EPOCH_MAX
    if failure is None or (not failure.damage and _is_end(run, failure, max_epoch, point)):
        return RepairPlan(
            directory, False, "", -1, -1, place.offset, 0, (place.offset, place.offset), 0, ()
        )
    batches, end, size = _count_lost(run, failure, max_epoch)
    doomed = tuple(names.file_name(base, names.LOG) for base in run.logs[place.n + 1 :])
    file = names.file_name(run.logs[place.n], names.LOG)
    reason = f"{file} ends at byte {place.position}, before offset {place.offset} ({failure.text}"
    reason += f"; {failure.damage})" if failure.damage else ")"
    return RepairPlan(
        directory,
        True,
        reason,
        run.logs[place.n],
        place.position,
        place.offset,
        batches,
        (place.offset, end),
        size,
        doomed,
    )


def execute(plan: RepairPlan, topic_id: str, partition: int) -> None:
    """Does what the plan says; returns when it is durable. Raises OSError, DiskFull."""
    if not plan.needed:
        return
    run, place, _, point = _examine(plan.directory, True)
    if (run.logs[place.n], place.position) != (plan.segment, plan.cut_position):
        raise DamagedLog(
            f"{plan.directory} has changed since the plan was made: make it again",
            path=plan.directory,
        )
    run.cut_tail(place, truncate=True)
    run.mend_indexes(None)
    before = point.leader_epoch if point is not None else place.epoch
    epoch = max(before, place.epoch) + 1
    history = epochs.begin(epochs.cut(run.epochs, place.offset), epoch, place.offset)
    start = point.log_start_offset if point is not None else run.logs[0]
    checkpoint.store(
        plan.directory,
        checkpoint.Checkpoint(
            topic_id=topic_id,
            partition=partition,
            clean=True,
            log_start_offset=min(start, place.offset),
            durable_offset=place.offset,
            segment=plan.segment,
            file_position=plan.cut_position,
            leader_epoch=epoch,
            epochs=history,
            write_reach_bytes=point.write_reach_bytes if point is not None else _REACH_BYTES,
            unit=point.unit if point is not None else _REACH_BYTES,
            max_timestamp=place.max_timestamp,
            index_bytes=SegmentIndex(plan.directory, plan.segment).sizes(),
            producers=run.producers.export(place.offset),
        ),
    )


def _examine(
    directory: str, whole: bool
) -> tuple[LogScan, Place, Failure | None, checkpoint.Checkpoint | None]:
    run = LogScan(
        directory, IoMode("buffered"), write_reach_bytes=_REACH_BYTES, index_interval_bytes=4096
    )
    try:
        point = checkpoint.load(directory)
    except DamagedLog:
        point = None
    if not run.logs:
        raise DamagedLog(f"{directory} holds no segment: nothing can be repaired", path=directory)
    if whole or point is None:
        place: Place = Place(0, 0, run.logs[0], 0)
        failure = None
    else:
        place, failure = recovery.starting_place(run, point)
    if failure is None:
        failure = run.walk(place, point.leader_epoch if point is not None else EPOCH_MAX)
    if failure is not None and point is not None and place.offset < point.durable_offset:
        failure.damage = failure.damage or f"offset {point.durable_offset} was durable"
    return run, place, failure, point


def _is_end(
    run: LogScan, failure: Failure, max_epoch: int, point: checkpoint.Checkpoint | None
) -> bool:
    """Whether a failure is just the log's end, or a torn tail that recovery cuts by itself."""
    if point is not None:
        run.reach = point.write_reach_bytes
    run.judge(failure, max_epoch)
    return not failure.damage


def _count_lost(run: LogScan, failure: Failure, max_epoch: int) -> tuple[int, int, int]:
    """Valid batches behind the failure, the end offset of the last one, and the bytes cut."""
    place = failure.place
    batches, end, size = 0, place.offset, 0
    for n in range(place.n, len(run.logs)):
        with reading(run.path(n)) as fd:
            length = os.fstat(fd).st_size
            at = place.position + 1 if n == place.n else 0
            size += max(0, length - at + (1 if n == place.n else 0))
            while at < length:
                search = scan.find_batch_after(
                    fd,
                    at,
                    length,
                    min_offset=place.offset,
                    min_epoch=place.epoch,
                    max_epoch=max_epoch,
                )
                if search.found is None:
                    break
                batches += 1
                at = search.found.position + search.found.size_bytes
                located = scan.locate(fd, search.found.position, at, 0)
                if located is not None:
                    end = max(end, located.last_offset + 1)
    return batches, end, size
