"""The files of one partition, as the writer process's housekeeper sees them.

The engine sequences batches in shared memory and writes them to `active.fd`; this class does all
else about the files: opening and recovery, space ahead, rolling, indexes, checkpoints, retention.

    sealed segments … │ sealing (rolled, last write under way) │ active │ next (prepared)
    0                 log_start_offset                          durable_offset     log_end_offset

Who writes: one thread of one writer process at a time (not thread-safe). Only `producers` is used
by another thread meanwhile, the sequencer. Readers of the files: reader.py. What each call has made
durable when it returns is said with it. Nothing is written, and nothing preallocated, before
`before_first_append`. A read-only partition (recovery.state) refuses every change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from shmbroker.errors import DiskFull, OffsetOutOfRange
from shmbroker.log import (
    allocate,
    checkpoint,
    epochs,
    files,
    index,
    names,
    recovery,
    retention,
    snapshot,
)
from shmbroker.log.iomode import IoMode
from shmbroker.log.reader import Limit, SegmentReader
from shmbroker.log.recycle import retire
from shmbroker.log.segment import Segment
from shmbroker.log.segments import SegmentedLog
from shmbroker.topic_settings import TopicSettings


class PartitionLog(SegmentedLog):
    """One partition's files. Made by `PartitionLog.open`."""

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        topic_id: str,
        topic: str,
        partition: int,
        settings: TopicSettings,
        io_mode: IoMode,
        *,
        write_reach_bytes: int,
        known_durable: tuple[int, int] | None = None,
        create: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> PartitionLog:
        """Opens the partition and recovers it (recovery.py); `create` makes a missing directory.

        write_reach_bytes: the longest single write the appender will do, all blocks of it.
        known_durable: (segment base offset, file position) when the ring of a killed writer is
        still there; the caller then goes on from it, and rolled segments stay in `sealing`.
        Returns after all that recovery changed is durable. Raises DataDirVersion, PartitionOffline,
        DamagedLog, DiskFull (try again with space), OSError.
        """
        directory = os.fspath(directory)
        if create and not os.path.isdir(directory):
            os.mkdir(directory, 0o700)
            files.sync_directory(os.path.dirname(os.path.abspath(directory)))
        found = recovery.recover(
            directory,
            topic_id,
            topic,
            partition,
            io_mode,
            write_reach_bytes=write_reach_bytes,
            index_interval_bytes=settings.index_interval_bytes,
            known_durable=known_durable,
        )
        log = cls(
            directory,
            topic_id,
            topic,
            partition,
            settings,
            io_mode,
            write_reach_bytes,
            found,
            clock,
        )
        if log.recovery.state == "online":  # the engine seals the one that it still writes
            log._finish_sealing(None if known_durable is None else found.segment)
        return log

    # --- the active segment ---

    @property
    def has_next(self) -> bool:
        """Whether `roll` would find a prepared file."""
        return self._next.ready

    @property
    def next_bytes(self) -> int:
        """Space reserved in the prepared file; 0 when there is none."""
        return self._next.allocated_bytes

    def read_block(self, position: int, size: int) -> bytes:
        """Up to `size` bytes of the active segment's file from `position` (a multiple of io.unit),
        short at the file's end: the partial last block, for the ring."""
        return self._active().read(position, size)

    def before_first_append(self) -> Segment:
        """To be called once before the engine writes. Returns the active segment, made if there was
        none, after the clean marker is gone from disk and the leader epoch is there. Raises
        PartitionReadOnly, DiskFull, OSError."""
        self._refuse_readonly()
        self.settle()
        if not self.segments:
            segment = Segment.create(self.directory, self.log_end_offset, self.io, self._now_ms())
            self.segments.append(segment)
            self._durable = (self.log_end_offset, segment.base_offset, 0)
            if not self.epoch_history:
                self.epoch_history = epochs.begin((), self.leader_epoch, self.log_end_offset)
        active = self._active()
        if not active.created_ms:
            active.created_ms = self._now_ms()
        point = self._on_disk
        if not self._started or point is None or point.write_reach_bytes < self._reach:
            offset, base, position = self._durable
            durable_in = next(s for s in self.segments if s.base_offset == base)
            self._store(self._point(offset, durable_in, position, clean=False))
        self._started = True
        return active

    def extend(self, needed_end_bytes: int) -> int:
        """Reserves space in the active segment up to needed_end_bytes at least, in doubling steps;
        returns the new allocated_bytes. Raises DiskFull (nothing changed), OSError."""
        return self._active().extend(needed_end_bytes, self._ceiling(), self.sharers)

    def prepare_next(self) -> None:
        """Makes the next segment's file ready: a recycled one, or a fresh one with its first space
        (as much as the active one has). Idempotent. Raises DiskFull, OSError."""
        self._refuse_readonly()
        first = self._active().allocated_bytes if self.segments else allocate.STEP_MIN_BYTES
        self._next.prepare(min(first, allocate.STEP_MAX_BYTES), self._ceiling(), self.sharers)

    def roll(self, base_offset: int) -> Segment:
        """The prepared file becomes the active segment; returns when its name is durable. The one
        before it waits in `sealing` until its last write is durable and `seal` is called."""
        before = self._active()
        assert base_offset > before.base_offset, "a segment holds a record at least"
        self.prepare_next()
        segment = self._next.become(base_offset, self._now_ms())
        before.length = -1  # `seal` says it
        self.sealing.append(before)
        self.segments.append(segment)
        self.log_end_offset = max(self.log_end_offset, base_offset)
        return segment

    def seal(self, segment: Segment, length_bytes: int, max_timestamp: int) -> None:
        """Ends a rolled segment whose last write is durable: cuts it to its length, syncs its
        indexes, writes the producer snapshot of its end and a checkpoint; returns when all of that
        is durable."""
        self.settle()
        following = next(s for s in self.segments if s.base_offset > segment.base_offset)
        segment.max_timestamp = max(segment.max_timestamp, max_timestamp)
        self._seal_files(segment, length_bytes, following.base_offset)
        table = self.producers.export(following.base_offset)
        snapshot.store(self.directory, following.base_offset, table)
        self.sealing = [s for s in self.sealing if s is not segment]
        point = self._on_disk
        if point is None or point.durable_offset <= following.base_offset:
            self._store(self._point(following.base_offset, following, 0, clean=False))
        else:
            self._store(self._changed(point))

    def add_index_entries(self, segment_base: int, entries: bytes | memoryview) -> None:
        """Takes packed native-endian {int64 offset of the batch's last record; int64 file position;
        int64 largest timestamp up to it} for a segment; on disk with the next checkpoint."""
        self._index(segment_base).append(entries)
        if len(entries) >= index.ENTRY.size and segment_base == self._active().base_offset:
            newest = index.ENTRY.unpack(bytes(entries[-index.ENTRY.size :]))[2]
            self._active().max_timestamp = max(self._active().max_timestamp, newest)

    # --- the end ---

    def close(
        self,
        durable_offset: int | None = None,
        file_position: int | None = None,
        *,
        max_timestamp: int = -1,
    ) -> None:
        """Closes all files. With the durable end of a drained partition it is a clean close: rolled
        segments are sealed, the active one is cut to its length, the snapshot and the clean marker
        are durable on return. Without, everything stays as it is on disk."""
        self._next.close()
        try:
            self.settle()
            if durable_offset is None or file_position is None or not self._started:
                return
            active = self._active()
            active.max_timestamp = max(active.max_timestamp, max_timestamp)
            self._finish_sealing()
            self._seal_files(active, file_position, durable_offset)
            table = self.producers.export(durable_offset)
            snapshot.store(self.directory, durable_offset, table)
            self.log_end_offset = durable_offset
            self._store(self._point(durable_offset, active, file_position, clean=True))
        finally:
            for segment in self.segments:
                segment.close()

    # --- retention ---

    def retire(
        self, now_ms: int, durable_offset: int, on_start: Callable[[int], None] = lambda start: None
    ) -> int | None:
        """Retires what retention.ms, retention.bytes and delete_records allow; returns the new log
        start offset, or None when nothing changed. The new start is durable, and `on_start` was
        told of it, before a file goes. Does nothing while a checkpoint is on its way."""
        if self.recovery.state != "online" or len(self.segments) < 2 or not self.settled:
            return None
        self.settle()
        recovers_from = self._on_disk.segment if self._on_disk is not None else 0
        sealed = [
            s for s in self.segments[:-1] if s not in self.sealing and s.base_offset < recovers_from
        ]
        count = retention.count_to_retire(
            [self._facts(n) for n in range(len(sealed))],
            sum(s.size for s in self.segments[len(sealed) :]),
            now_ms=now_ms,
            durable_offset=durable_offset,
            log_start_offset=self.log_start_offset,
            retention_ms=self.settings.retention_ms,
            retention_bytes=self.settings.retention_bytes,
        )
        if not count:
            return None
        start = max(self.log_start_offset, self.segments[count].base_offset)
        moved = start != self.log_start_offset
        self._move_start_at_any_rate(start)
        if moved:
            on_start(start)
        for segment in self.segments[:count]:
            recycle = segment.size >= self.settings.segment_bytes // 2
            retire(segment, recycle=recycle, kept=self._recycled)
            self._index(segment.base_offset).remove()
            del self._indexes[segment.base_offset]
        del self.segments[:count]
        files.sync_directory(self.directory)
        return start if moved else None

    def delete_records(self, before_offset: int, durable_offset: int) -> int:
        """Moves the log start offset up to before_offset (at most durable_offset), durably; whole
        segments below go with the next `retire`. Returns the log start offset."""
        self._refuse_readonly()
        self.settle()
        if before_offset > durable_offset:
            raise OffsetOutOfRange(
                self.topic, self.partition, before_offset, self.log_start_offset, durable_offset
            )
        if before_offset > self.log_start_offset:
            self._move_start_at_any_rate(before_offset)
        return self.log_start_offset

    # --- questions ---

    def end_offset_for_epoch(
        self, epoch: int, log_end_offset: int | None = None
    ) -> tuple[int, int]:
        """Kafka's OffsetForLeaderEpoch: (largest known epoch up to `epoch`, its end offset,
        exclusive), (-1, -1) where that is unknown. log_end_offset: the engine's, which is newer
        than ours."""
        end = self.log_end_offset if log_end_offset is None else log_end_offset
        return epochs.end_offset(self.epoch_history, epoch, end)

    def offset_for_time(
        self, timestamp: int, durable_limit: Limit | None = None
    ) -> tuple[int, int] | None:
        """See `SegmentReader.offset_for_time`; never below the log start offset."""
        for index_file in self._indexes.values():
            index_file.flush()
        with SegmentReader(self.directory) as reader:
            found = reader.offset_for_time(timestamp, durable_limit)
        if found is None:
            return None
        return max(found[0], self.log_start_offset), found[1]

    def disk_bytes(self) -> int:
        """What the segments take, preallocated space and waiting files included."""
        total = sum(s.allocated_bytes for s in self.segments)
        for name in [*self._recycled, names.NEXT]:
            try:
                total += os.stat(os.path.join(self.directory, name)).st_size
            except FileNotFoundError:
                continue
        return total

    def describe(self) -> dict[str, Any]:
        """For `status`: plain values."""
        return {
            "directory": self.directory,
            "io_mode": self.io.mode,
            "state": self.recovery.state,
            "reason": self.recovery.reason,
            "log_start_offset": self.log_start_offset,
            "log_end_offset": self.log_end_offset,
            "leader_epoch": self.leader_epoch,
            "disk_bytes": self.disk_bytes(),
            "recycled": len(self._recycled),
            "segments": [
                {
                    "base_offset": s.base_offset,
                    "bytes": s.size,
                    "allocated_bytes": s.allocated_bytes,
                    "state": self._state_of(s),
                }
                for s in self.segments
            ],
        }

    def set_settings(self, settings: TopicSettings, write_reach_bytes: int) -> None:
        """Takes altered topic settings; they hold from the next roll, extension or retention on.

        A longer reach of one write is durable on return. Raises DiskFull, OSError, and then the
        settings are as they were.
        """
        reach = max(self._reach, write_reach_bytes)  # what was written so far stays as it is
        self.settle()
        point = self._on_disk if self.recovery.state == "online" else None
        if point is not None and reach > point.write_reach_bytes:
            self._store(self._changed(checkpoint.replace(point, write_reach_bytes=reach)))
        self._reach = reach
        self.settings = settings

    # --- inside ---

    def _facts(self, n: int) -> retention.SegmentFacts:
        segment = self.segments[n]
        if segment.max_timestamp < 0:
            last = self._index(segment.base_offset).last_time()
            written_ms = os.stat(segment.path).st_mtime_ns // 1_000_000
            segment.max_timestamp = last[0] if last else written_ms
        return retention.SegmentFacts(
            segment.base_offset,
            self.segments[n + 1].base_offset,
            segment.size,
            segment.max_timestamp,
        )

    def _move_start_at_any_rate(self, offset: int) -> None:
        try:
            self._move_start(offset)
        except DiskFull:  # what was kept for later makes the room that freeing needs
            self._next.close()
            while self._recycled:
                os.unlink(os.path.join(self.directory, self._recycled.pop()))
            self._move_start(offset)

    def _move_start(self, offset: int) -> None:
        self.log_start_offset = offset
        self.epoch_history = epochs.retire(self.epoch_history, offset)
        if self._on_disk is not None:
            self._store(self._changed(self._on_disk))
