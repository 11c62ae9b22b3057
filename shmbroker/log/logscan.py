"""Scanning a partition's segments to the end of what is valid, and cutting what is behind.

The hands of recovery.py and repair.py; the rules are explained in the former. `LogScan.walk` reads
forward over the ends of segments, `judge` finds out whether what stands behind is a torn tail or
acknowledged records behind damage, `cut_tail` and `mend_indexes` are the only ones that write.
In the writer process, or under the data directory's lock.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from shmbroker._core import scan
from shmbroker._core.scan import ProducerTable, ScanResult
from shmbroker.log import allocate, epochs, files, names
from shmbroker.log.checkpoint import Checkpoint
from shmbroker.log.index import SegmentIndex
from shmbroker.log.iomode import IoMode
from shmbroker.log.segment import Segment

SEARCH_BYTES = 128 << 20  # searched behind a failure; twice what a checkpoint may be behind
EPOCH_MAX = 0x7FFFFFFF


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


class LogScan:
    """One opening's scan of a partition's files, and the cut that may follow."""

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

    def cut_tail(self, place: Place, *, truncate: bool) -> bool:
        """Makes the valid prefix durable and the rest gone: later segments unlinked, the file cut,
        indexes and directory synced. Returns whether anything had to go."""
        doomed = self.logs[place.n + 1 :]
        for base in reversed(doomed):
            for suffix in (names.LOG, names.INDEX, names.TIMEINDEX, names.SNAPSHOT):
                files.unlink_quietly(os.path.join(self.directory, names.file_name(base, suffix)))
        del self.logs[place.n + 1 :]
        segment = Segment(self.directory, self.logs[place.n], self.io)
        try:
            if truncate:
                segment.cut(place.position)
            else:
                os.fdatasync(segment.fd)
        finally:
            segment.close()
        stale = [base for base in self.listing.snapshots if base > place.offset]
        for base in stale:
            files.unlink_quietly(
                os.path.join(self.directory, names.file_name(base, names.SNAPSHOT))
            )
        if truncate:
            self.entries.setdefault(self.logs[place.n], b"")  # also when nothing of it is left
        if doomed or stale:
            files.sync_directory(self.directory)
        return truncate or bool(doomed)

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
            elif entries or base in self.listing.indexes or os.path.exists(index.time_path):
                index.rebuild(entries)


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
