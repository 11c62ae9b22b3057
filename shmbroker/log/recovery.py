"""What opening a partition finds on disk, and what it does about it (invariant 13).

    checkpoint ──► scan ──► where the valid prefix ends, and why ──► torn tail or damage?

A scan reads from the checkpoint's position on, or from the log's start where there is no usable
one. It ends at the first thing that is no next batch. Behind that point may stand
  - nothing that is valid, or valid batches no further than one write reaches: a torn write. The
    tail is cut, physically and durably, later segments are unlinked, the leader epoch is raised in
    the checkpoint. Where nothing but zeros is behind, nothing changes on disk until the first
    append raises it there: with 1,000 partitions the syncs are what recovery waits for.
  - a valid batch further on than one write, or in a later segment: acknowledged records are behind
    the failure. So it is when the file ends below the checkpoint's durable position. The
    partition opens read-only up to there and nothing on disk changes; `shmbroker log repair` cuts
    it (repair.py).

A clean marker needs no scan. With `known_durable` (a killed writer is replaced and its ring is
still there) the scan goes exactly to that position: nothing is cut, the epoch stays. Between a
checkpoint and the next all batches bear the checkpoint's leader epoch, so the scan takes no other:
whatever an earlier recovery cut off can't come back. Runs in the writer process, one partition a
call, before anything is appended. See DESIGN.md, "Death of the host".
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from shmbroker._core.scan import ProducerTable
from shmbroker.errors import DamagedLog, PartitionOffline
from shmbroker.log import checkpoint, epochs, names
from shmbroker.log.checkpoint import Checkpoint
from shmbroker.log.index import SegmentIndex
from shmbroker.log.iomode import IoMode
from shmbroker.log.logscan import EPOCH_MAX, Failure, LogScan, Place, reading


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """What a user may want to know; part of `status`."""

    state: str  # "online" or "readonly"
    reason: str = ""  # why read-only, or what was found and mended
    scanned_bytes: int = 0
    cut_bytes: int = 0  # of a torn write
    duration_s: float = 0.0
    clean: bool = False  # the clean marker stood: nothing was read


@dataclass(slots=True)
class Recovered:
    """The log as found. Positions are bytes into the segment `segment`, exclusive ends."""

    result: RecoveryResult
    logs: list[int]  # base offsets of the segments that count, rising
    log_start_offset: int
    log_end_offset: int
    leader_epoch: int
    epochs: epochs.Epochs
    segment: int  # base offset of the one that the log ends in, -1: there is none
    position: int
    max_timestamp: int
    created_ms: int
    producers: ProducerTable
    checkpoint: Checkpoint | None  # as on disk now
    sealing: dict[int, int] = field(default_factory=dict)  # rolled, not cut to their length yet
    recycled: list[str] = field(default_factory=list)


def recover(
    directory: str,
    topic_id: str,
    topic: str,
    partition: int,
    io: IoMode,
    *,
    write_reach_bytes: int,
    index_interval_bytes: int,
    known_durable: tuple[int, int] | None = None,
) -> Recovered:
    """Opens what is on disk; see the module. Returns after everything it changed is durable.

    Raises DataDirVersion for a newer checkpoint, PartitionOffline when the files belong to another
    topic, DiskFull, OSError.
    """
    started = time.perf_counter()
    run = LogScan(
        directory,
        io,
        write_reach_bytes=write_reach_bytes,
        index_interval_bytes=index_interval_bytes,
        known_durable=known_durable,
    )
    note = ""
    try:
        point = checkpoint.load(directory) if run.listing.checkpoint else None
        if point is None and run.logs:
            note = "there was no checkpoint: the whole log was read"
    except DamagedLog as error:
        point, note = None, f"{error}: the whole log was read"
    if point is not None and point.topic_id != topic_id:
        raise PartitionOffline(
            topic, partition, f"{directory} belongs to topic id {point.topic_id}, not {topic_id}"
        )
    if point is not None and known_durable is None and _is_clean(run, point):
        return _as_checkpointed(run, point, note, started)
    if point is None and not run.logs:
        return _empty(run, started)
    if point is not None:
        run.reach = max(point.write_reach_bytes, run.io.unit)
    return _recover_unclean(run, topic_id, partition, point, note, started)


def _recover_unclean(
    run: LogScan,
    topic_id: str,
    partition: int,
    point: Checkpoint | None,
    note: str,
    started: float,
) -> Recovered:
    new_reach = run.reach if point is None else max(point.write_reach_bytes, run.reach)
    if point is not None and point.segment < 0 and not run.logs:
        return _as_checkpointed(run, point, note, started)
    if run.known is not None and point is not None:
        durable = (point.segment, point.file_position)
        run.known = max(run.known, durable)  # a seal says more than the last flush did
    place, failure = starting_place(run, point)
    max_epoch = point.leader_epoch if point is not None else EPOCH_MAX
    if failure is None:
        failure = run.walk(place, max_epoch)
    if failure is not None and run.known is not None:
        raise DamagedLog(
            f"{run.path(place.n)} should be whole up to where the ring begins (segment "
            f"{run.known[0]}, byte {run.known[1]}), and ends at byte {place.position}: "
            f"{failure.damage or failure.text}",
            path=run.path(place.n),
            position=place.position,
        )
    log_start = point.log_start_offset if point is not None else run.logs[0]
    cut = 0
    if failure is not None and not failure.damage:
        cut = run.judge(failure, max_epoch)
    epoch = max(place.epoch, point.leader_epoch if point is not None else 0)
    found = Recovered(
        result=RecoveryResult("online", note),
        logs=run.logs,
        log_start_offset=min(log_start, place.offset),
        log_end_offset=place.offset,
        leader_epoch=epoch,
        epochs=run.epochs,
        segment=run.logs[place.n],
        position=place.position,
        max_timestamp=place.max_timestamp,
        created_ms=point.created_ms if point and point.segment == run.logs[place.n] else 0,
        producers=run.producers,
        checkpoint=point,
        recycled=run.listing.recycled,
    )
    if failure is not None and failure.damage:
        file = names.file_name(run.logs[place.n], names.LOG)
        reason = (
            f"damage in {file} at byte {place.position}, before offset {place.offset} "
            f"({failure.text}): {failure.damage}"
        )
        found.result = RecoveryResult("readonly", f"{note}; {reason}" if note else reason)
        found.logs = run.logs[: place.n + 1]
    elif failure is not None:
        changed = run.cut_tail(place, truncate=cut >= 0) or point is None
        run.mend_indexes(point)
        found.leader_epoch = epoch + 1
        found.epochs = epochs.begin(epochs.cut(run.epochs, place.offset), epoch + 1, place.offset)
        if changed:  # otherwise the first append does it, and until then the same is found again
            found.checkpoint = _store(run, topic_id, partition, found, new_reach)
        if cut > 0:
            file = names.file_name(run.logs[place.n], names.LOG)
            torn = f"a torn write ({failure.text}) was cut off {file} at byte {place.position}"
            note = f"{note}; {torn}" if note else torn
        found.result = RecoveryResult("online", note, cut_bytes=max(cut, 0))
    else:
        run.mend_indexes(point)
    found.sealing = _unsealed(run, point, found)
    found.result = _timed(found.result, run, started)
    return found


def starting_place(run: LogScan, point: Checkpoint | None) -> tuple[Place, Failure | None]:
    """Where the scan begins; a failure when the checkpoint's own segment is not there."""
    if point is None or point.segment < 0:
        return Place(0, 0, run.logs[0], 0), None
    run.epochs = point.epochs
    try:
        run.producers.load(point.producers)
    except ValueError:
        run.producers = ProducerTable()  # its CRC was right, its version is not: start anew
    if point.segment in run.logs:
        n = run.logs.index(point.segment)
        epoch = point.leader_epoch
        timestamp = point.max_timestamp
        return Place(n, point.file_position, point.durable_offset, epoch, timestamp), None
    missing = names.file_name(point.segment, names.LOG)
    before = [base for base in run.logs if base < point.segment]
    if not before:
        raise DamagedLog(
            f"{missing} in {run.directory} is missing and so is everything before it; put it back, "
            "or delete the topic",
            path=os.path.join(run.directory, missing),
        )
    place = Place(len(before) - 1, 0, before[-1], 0)
    with reading(run.path(place.n)) as fd:
        size = os.fstat(fd).st_size
        run.scan(place, fd, size, EPOCH_MAX)
    return place, Failure(place, "end of the file", size, damage=f"{missing} is missing")


def _store(run: LogScan, topic_id: str, partition: int, found: Recovered, reach: int) -> Checkpoint:
    point = Checkpoint(
        topic_id=topic_id,
        partition=partition,
        clean=False,
        log_start_offset=found.log_start_offset,
        durable_offset=found.log_end_offset,
        segment=found.segment,
        file_position=found.position,
        leader_epoch=found.leader_epoch,
        epochs=epochs.retire(found.epochs, found.log_start_offset),
        write_reach_bytes=reach,
        unit=run.io.unit,
        max_timestamp=found.max_timestamp,
        created_ms=found.created_ms,
        index_bytes=SegmentIndex(run.directory, found.segment).sizes(),
        producers=found.producers.export(found.log_end_offset),
    )
    checkpoint.store(run.directory, point)
    return point


def _unsealed(run: LogScan, point: Checkpoint | None, found: Recovered) -> dict[int, int]:
    """Segments before the last one whose file may be longer than its batches."""
    lengths = dict(point.sealing) if point is not None else {}
    for base, (valid_end, _) in run.ends.items():
        lengths[base] = valid_end
    return {b: n for b, n in lengths.items() if b in found.logs and b != found.logs[-1]}


def _is_clean(run: LogScan, point: Checkpoint) -> bool:
    if not point.clean:
        return False
    if point.segment < 0:
        return not run.logs
    if not run.logs or run.logs[-1] != point.segment:
        return False
    return os.stat(run.path(len(run.logs) - 1)).st_size == point.file_position


def _as_checkpointed(run: LogScan, point: Checkpoint, note: str, started: float) -> Recovered:
    run.producers.load(point.producers)
    result = RecoveryResult("online", note, clean=point.clean)
    return Recovered(
        result=_timed(result, run, started),
        logs=run.logs,
        log_start_offset=point.log_start_offset,
        log_end_offset=point.durable_offset,
        leader_epoch=point.leader_epoch,
        epochs=point.epochs,
        segment=point.segment,
        position=point.file_position,
        max_timestamp=point.max_timestamp,
        created_ms=point.created_ms,
        producers=run.producers,
        checkpoint=point,
        sealing=dict(point.sealing),
        recycled=run.listing.recycled,
    )


def _empty(run: LogScan, started: float) -> Recovered:
    result = _timed(RecoveryResult("online", clean=True), run, started)
    return Recovered(
        result, [], 0, 0, 0, (), -1, 0, -1, 0, run.producers, None, {}, run.listing.recycled
    )


def _timed(result: RecoveryResult, run: LogScan, started: float) -> RecoveryResult:
    return RecoveryResult(
        result.state,
        result.reason,
        run.scanned,
        result.cut_bytes,
        time.perf_counter() - started,
        result.clean,
    )
