"""What opening a partition finds on disk, and what it does about it (invariant 13).

    checkpoint ──► scan ──► where the valid prefix ends, and why ──► torn tail or damage?

A scan reads from the checkpoint's position on, or from the log's start where there is no usable
one. It ends at the first thing that is no next batch. Behind that point may stand
  - nothing that is valid, or valid batches no further than one write reaches: a torn write. The
    tail is cut, physically and durably, later segments are unlinked, the leader epoch is raised.
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

from shmbroker._core import scan
from shmbroker._core.scan import ProducerTable, ScanResult
from shmbroker.errors import DamagedLog, PartitionOffline
from shmbroker.log import allocate, checkpoint, epochs, files, names
from shmbroker.log.checkpoint import Checkpoint
from shmbroker.log.index import SegmentIndex
from shmbroker.log.iomode import IoMode
from shmbroker.log.segment import Segment

SEARCH_BYTES = 128 << 20  # searched behind a failure; twice what a checkpoint may be behind
EPOCH_MAX = 0x7FFFFFFF


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


@dataclass(slots=True)
class Place:
    """Where a scan stands, and what must come next."""

    n: int  # of the segment in the listing
    position: int
    offset: int
    epoch: int
    max_timestamp: int = -1


@dataclass(slots=True)
class Failure:
    """Where the valid prefix ends."""

    place: Place
    text: str  # what stands there instead of a batch
    size: int  # bytes of that file
    stale: bool = False  # zeros, or a whole batch of before: perhaps nothing was torn
    damage: str = ""  # why it is no torn tail; empty: not found out yet


class Recovery:
    """One run; `recover()` is the way in."""

    def __init__(
        self,
        directory: str,
        io: IoMode,
        *,
        write_reach_bytes: int,
        index_interval_bytes: int,
        known_durable: tuple[int, int] | None = None,
    ) -> None:
        self.directory = directory
        self.io = io
        self.reach = write_reach_bytes
        self.interval = max(1, index_interval_bytes)
        self.known = known_durable
        self.listing = names.list_directory(directory)
        self.logs = self.listing.logs
        self.producers = ProducerTable()
        self.scanned = 0
        self.epochs: epochs.Epochs = ()
        self.entries: dict[int, bytes] = {}
        self.ends: dict[int, tuple[int, int]] = {}  # base offset -> valid bytes, max timestamp

    # --- scanning ---

    def path(self, n: int) -> str:
        return os.path.join(self.directory, names.file_name(self.logs[n], names.LOG))

    def scan(self, place: Place, fd: int, limit: int, max_epoch: int) -> ScanResult:
        """One segment from `place` on; moves it to the end of the valid prefix."""
        result = scan.scan_segment(
            fd,
            position=place.position,
            limit=limit,
            expected_offset=place.offset,
            min_epoch=place.epoch,
            max_epoch=max_epoch,
            index_interval_bytes=self.interval,
            max_timestamp=place.max_timestamp,
            producers=self.producers,
        )
        self.scanned += result.scanned_bytes
        base = self.logs[place.n]
        self.entries[base] = result.entries
        self.ends[base] = (result.valid_end, result.max_timestamp)
        for epoch, start in result.epochs:
            if not self.epochs or epoch > self.epochs[-1][0]:
                self.epochs = epochs.begin(self.epochs, epoch, start)
        place.position, place.offset = result.valid_end, result.next_offset
        place.max_timestamp = result.max_timestamp
        if result.batches:
            place.epoch = result.epoch
        return result

    def walk(self, place: Place, max_epoch: int) -> Failure | None:
        """Scans on from `place` over the ends of segments; moves it to the end of what is valid.

        Returns why it ended there, or None where known_durable was reached.
        """
        while True:
            base = self.logs[place.n]
            with reading(self.path(place.n)) as fd:
                size = os.fstat(fd).st_size
                at_known = self.known is not None and base == self.known[0]
                limit = min(size, self.known[1]) if self.known and at_known else size
                if size < place.position or (self.known and at_known and size < self.known[1]):
                    return self._too_short(place, fd, size)
                result = self.scan(place, fd, limit, max_epoch)
            if at_known and _reached(result, limit):
                return None
            following = self.logs[place.n + 1] if place.n + 1 < len(self.logs) else None
            if following is None or result.next_offset != following:
                stale = result.stop == "zeros" or (
                    result.stop in ("offset", "epoch") and result.stop_offset < place.offset
                )
                failure = Failure(place, _what_stands_there(result, place), size, stale)
                return failure
            place.n, place.position, place.max_timestamp = place.n + 1, 0, -1

    def _too_short(self, place: Place, fd: int, size: int) -> Failure:
        """Acknowledged bytes are gone: the valid prefix must be found from the segment's start."""
        durable = place.position
        base = self.logs[place.n]
        place.position, place.offset, place.epoch, place.max_timestamp = 0, base, 0, -1
        self.scan(place, fd, size, EPOCH_MAX)
        damage = f"the file has {size} bytes, and {durable} were durable"
        return Failure(place, "end of the file", size, damage=damage)

    # --- torn tail or damage ---

    def judge(self, failure: Failure, max_epoch: int) -> int:
        """Fills failure.damage if acknowledged records are behind it. Returns the bytes of the torn
        write that is to be cut, or -1 when there is nothing but zeros."""
        place = failure.place
        if place.n + 1 < len(self.logs) and self.logs[place.n + 1] < place.offset:
            failure.damage = f"segment {self.logs[place.n + 1]} begins before it"
            return 0
        reach_end = allocate.align_down(place.position, self.io.unit) + self.reach
        with reading(self.path(place.n)) as fd:
            end = min(failure.size, reach_end + SEARCH_BYTES)
            found, last_nonzero, read = scan.find_batch_after(
                fd,
                place.position + 1,
                end,
                min_end=reach_end,
                min_offset=place.offset + 1,
                min_epoch=place.epoch,
                max_epoch=max_epoch,
            )
            self.scanned += read
            first = os.pread(fd, 1, place.position)
            torn_end = min(last_nonzero + 1, reach_end)
            if failure.stale:  # what a recycled file still has is no torn write
                behind = scan.find_batch_after(
                    fd,
                    place.position + 1,
                    min(end, reach_end),
                    min_offset=place.offset + 1,
                    min_epoch=place.epoch,
                    max_epoch=max_epoch,
                ).found
                torn_end = behind.position + behind.size_bytes if behind else 0
        if found:
            failure.damage = (
                f"a valid batch (offset {found.base_offset}) stands behind it at byte "
                f"{found.position}, further than one write reaches ({self.reach} bytes)"
            )
            return 0
        for n in range(place.n + 1, len(self.logs)):
            if self._has_batches(n, place.epoch, max_epoch):
                failure.damage = (
                    f"the later segment {names.file_name(self.logs[n], names.LOG)} has batches"
                )
                return 0
        if last_nonzero < 0 and first in (b"", b"\0") and end == failure.size:
            return -1
        return max(0, torn_end - place.position)

    def _has_batches(self, n: int, min_epoch: int, max_epoch: int) -> bool:
        with reading(self.path(n)) as fd:
            end = min(os.fstat(fd).st_size, self.reach + SEARCH_BYTES)
            search = scan.find_batch_after(
                fd, 0, end, min_offset=self.logs[n], min_epoch=min_epoch, max_epoch=max_epoch
            )
        self.scanned += search.read_bytes
        return search.found is not None

    # --- mending ---

    def cut_tail(self, place: Place, *, truncate: bool) -> None:
        """Makes the valid prefix durable and the rest gone: later segments unlinked, the file cut,
        indexes and directory synced."""
        for n in range(len(self.logs) - 1, place.n, -1):
            for suffix in (names.LOG, names.INDEX, names.TIMEINDEX, names.SNAPSHOT):
                path = os.path.join(self.directory, names.file_name(self.logs[n], suffix))
                files.unlink_quietly(path)
        del self.logs[place.n + 1 :]
        segment = Segment(self.directory, self.logs[place.n], self.io)
        try:
            if truncate:
                segment.cut(place.position)
            else:
                os.fdatasync(segment.fd)
        finally:
            segment.close()
        files.sync_directory(self.directory)

    def mend_indexes(self, before: Checkpoint | None) -> None:
        """Brings the indexes of all scanned segments up to what the scan found."""
        for base, entries in self.entries.items():
            if base not in self.logs:
                continue
            index = SegmentIndex(self.directory, base)
            if before is not None and base == before.segment:
                index.truncate(before.index_bytes)
                index.append(entries)
                index.sync()
            elif entries or base in self.listing.indexes:
                index.rebuild(entries)


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
    run = Recovery(
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
    run: Recovery,
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
        run.cut_tail(place, truncate=cut >= 0)
        run.mend_indexes(point)
        found.leader_epoch = epoch + 1
        found.epochs = epochs.begin(epochs.cut(run.epochs, place.offset), epoch + 1, place.offset)
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


def starting_place(run: Recovery, point: Checkpoint | None) -> tuple[Place, Failure | None]:
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


def _store(
    run: Recovery, topic_id: str, partition: int, found: Recovered, reach: int
) -> Checkpoint:
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


def _unsealed(run: Recovery, point: Checkpoint | None, found: Recovered) -> dict[int, int]:
    """Segments before the last one whose file may be longer than its batches."""
    lengths = dict(point.sealing) if point is not None else {}
    for base, (valid_end, _) in run.ends.items():
        lengths[base] = valid_end
    return {b: n for b, n in lengths.items() if b in found.logs and b != found.logs[-1]}


def _is_clean(run: Recovery, point: Checkpoint) -> bool:
    if not point.clean:
        return False
    if point.segment < 0:
        return not run.logs
    if not run.logs or run.logs[-1] != point.segment:
        return False
    return os.stat(run.path(len(run.logs) - 1)).st_size == point.file_position


def _as_checkpointed(run: Recovery, point: Checkpoint, note: str, started: float) -> Recovered:
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


def _empty(run: Recovery, started: float) -> Recovered:
    result = _timed(RecoveryResult("online", clean=True), run, started)
    return Recovered(
        result, [], 0, 0, 0, (), -1, 0, -1, 0, run.producers, None, {}, run.listing.recycled
    )


def _timed(result: RecoveryResult, run: Recovery, started: float) -> RecoveryResult:
    return RecoveryResult(
        result.state,
        result.reason,
        run.scanned,
        result.cut_bytes,
        time.perf_counter() - started,
        result.clean,
    )


def _reached(result: ScanResult, limit: int) -> bool:
    """Whether a scan got to its limit; a batch that crosses it goes on in the ring."""
    return result.valid_end == limit or (
        result.stop == "short" and result.stop_offset in (-1, result.next_offset)
    )


def _what_stands_there(result: ScanResult, place: Place) -> str:
    if result.stop in ("offset", "base-offset"):
        return f"a batch with offset {result.stop_offset} stands there"
    if result.stop == "epoch":
        return f"a batch of leader epoch {result.stop_epoch} stands there, not {place.epoch}"
    return result.stop_text


class reading:
    """A file opened for reading for the length of a block."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # no readahead: it fills unwritten space with zeros, which a search would have to read then
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
