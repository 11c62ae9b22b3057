"""A partition's segments with their indexes, and the checkpoint over them.

Owns: the list of segments, what is known of each, and what the checkpoint on disk says. Checkpoints
are written here, at once or in two halves (pending.py). What happens to a log over its life is
partition.py, which is this with more; the threads and processes are said there.

Invariants: indexes are synced before a checkpoint that covers them; a newer checkpoint is never
overwritten by one that was begun before it.
"""

from __future__ import annotations

from collections.abc import Callable

from shmbroker.errors import PartitionReadOnly
from shmbroker.log import allocate, checkpoint, epochs
from shmbroker.log.checkpoint import Checkpoint
from shmbroker.log.index import SegmentIndex
from shmbroker.log.iomode import IoMode
from shmbroker.log.pending import PendingCheckpoint
from shmbroker.log.reader import SegmentReader
from shmbroker.log.recovery import Recovered
from shmbroker.log.recycle import NextSegment
from shmbroker.log.segment import Segment
from shmbroker.topic_settings import TopicSettings


class SegmentedLog:
    """See the module; made as a `PartitionLog`."""

    def __init__(
        self,
        directory: str,
        topic_id: str,
        topic: str,
        partition: int,
        settings: TopicSettings,
        io: IoMode,
        write_reach_bytes: int,
        found: Recovered,
        clock: Callable[[], float],
    ) -> None:
        self.directory = directory
        self.topic_id, self.topic, self.partition = topic_id, topic, partition
        self.settings, self.io = settings, io
        self.recovery = found.result
        self.producers = found.producers
        self.log_start_offset = found.log_start_offset  # first that may be read, inclusive
        self.log_end_offset = found.log_end_offset  # of the next record, as far as known here
        self.leader_epoch = found.leader_epoch
        self.epoch_history = found.epochs
        self.sealing: list[Segment] = []  # rolled, `seal` is still to come
        self.sharers = 1  # partitions that share the quarter of the free disk that may be reserved
        self._reach = write_reach_bytes
        self._clock = clock
        self._pending: PendingCheckpoint | None = None
        self._on_disk = found.checkpoint
        self._durable = (found.log_end_offset, found.segment, found.position)
        self._recycled = found.recycled
        self._next = NextSegment(directory, io, self._recycled)
        self._indexes: dict[int, SegmentIndex] = {}
        self.segments = [self._make(base, found) for base in found.logs]
        point = found.checkpoint
        # the checkpoint on disk says that appends of this epoch may follow it
        self._started = (
            point is not None
            and not point.clean
            and point.leader_epoch == self.leader_epoch
            and self.recovery.state == "online"
        )

    def _make(self, base: int, found: Recovered) -> Segment:
        segment = Segment(self.directory, base, self.io)
        if base == found.segment:
            segment.length = found.position
            segment.max_timestamp = found.max_timestamp
            segment.created_ms = found.created_ms
        if base == found.logs[-1]:
            segment.length = max(0, segment.length)
        elif base in found.sealing:
            segment.length = found.sealing[base]
            self.sealing.append(segment)
        return segment

    @property
    def active(self) -> Segment | None:
        """The segment that is appended to; None before the first append ever."""
        return self.segments[-1] if self.segments else None

    # --- checkpoints ---

    def write_checkpoint(
        self, durable_offset: int, file_position: int, *, max_timestamp: int = -1
    ) -> None:
        """Says on disk that everything below durable_offset, which ends at file_position of its
        segment, is durable; indexes are synced before. Recovery reads from there on.

        max_timestamp: the largest in that segment (ms), where the caller knows it.
        """
        pending = self.begin_checkpoint(durable_offset, file_position, max_timestamp=max_timestamp)
        if pending is not None:
            pending.run()
            self.settle()

    def begin_checkpoint(
        self, durable_offset: int, file_position: int, *, max_timestamp: int = -1
    ) -> PendingCheckpoint | None:
        """write_checkpoint in two: what is returned is whole, and the caller has it `run`, in which
        thread it likes, and calls `settle` some time after. None: nothing to write."""
        self.settle()
        segment = self._segment_ending(durable_offset, file_position)
        if segment is None:
            return None
        segment.max_timestamp = max(segment.max_timestamp, max_timestamp)
        paths = [path for index in self._indexes.values() for path in index.take_unsynced()]
        self.log_end_offset = max(self.log_end_offset, durable_offset)
        point = self._point(durable_offset, segment, file_position, clean=False)
        self._pending = PendingCheckpoint(self.directory, point, paths)
        return self._pending

    @property
    def settled(self) -> bool:
        """Whether `settle` would not have to wait."""
        return self._pending is None or self._pending.done

    def settle(self) -> None:
        """Waits for a checkpoint that was begun; it counts now. Raises DiskFull, OSError if it
        failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            self._stored(pending.result())
        except BaseException:
            for index_file in self._indexes.values():
                index_file.unsynced()
            raise

    # --- for the class above ---

    def _active(self) -> Segment:
        assert self.segments, "before_first_append() makes the first segment"
        return self.segments[-1]

    def _state_of(self, segment: Segment) -> str:
        if segment is self.active:
            return "active"
        return "sealing" if segment in self.sealing else "sealed"

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _ceiling(self) -> int:
        return allocate.align_up(self.settings.segment_bytes, self.io.unit)

    def _refuse_readonly(self) -> None:
        if self.recovery.state != "online":
            raise PartitionReadOnly(self.topic, self.partition, self.recovery.reason)

    def _index(self, base: int) -> SegmentIndex:
        found = self._indexes.get(base)
        if found is None:
            found = self._indexes[base] = SegmentIndex(self.directory, base)
        return found

    def _segment_ending(self, durable_offset: int, file_position: int) -> Segment | None:
        """The segment that a durable end lies in; at a roll, position 0 is in the later one."""
        for segment in reversed(self.segments):
            if segment.base_offset < durable_offset:
                return segment
            if segment.base_offset == durable_offset and file_position == 0:
                return segment
        return None

    def _seal_files(self, segment: Segment, length: int, end_offset: int) -> None:
        segment.cut(length)
        index_file = self._index(segment.base_offset)
        if segment.max_timestamp >= 0 and end_offset > segment.base_offset:
            index_file.append_time(segment.max_timestamp, end_offset - 1)
        index_file.sync()
        if segment is not self.active:
            segment.close()
            del self._indexes[segment.base_offset]

    def _finish_sealing(self, before: int | None = None) -> None:
        """Seals what was rolled (below base offset `before`), its last write being durable."""
        for segment in list(self.sealing):
            if before is not None and segment.base_offset >= before:
                continue
            following = next(s for s in self.segments if s.base_offset > segment.base_offset)
            length = segment.length
            if length < 0:
                length = self._find_length(segment, following.base_offset)
            if segment.allocated_bytes != length:
                self._seal_files(segment, length, following.base_offset)
            segment.length = length
            self.sealing.remove(segment)

    def _find_length(self, segment: Segment, end_offset: int) -> int:
        """Where the batch before end_offset ends, for a segment nobody told us the length of."""
        self._index(segment.base_offset).flush()
        with SegmentReader(self.directory) as reader:
            found = reader.locate(end_offset - 1)
        assert found is not None, "its last write is durable"
        assert found[0] == segment.base_offset
        return found[1].position + found[1].size_bytes

    def _changed(self, point: Checkpoint) -> Checkpoint:
        """The last checkpoint with what has changed besides the durable end."""
        return checkpoint.replace(
            point,
            log_start_offset=self.log_start_offset,
            epochs=epochs.retire(point.epochs, self.log_start_offset),
            sealing=self._sealing_lengths(),
        )

    def _sealing_lengths(self) -> tuple[tuple[int, int], ...]:
        return tuple((s.base_offset, s.length) for s in self.sealing if s.length > 0)

    def _point(
        self, durable_offset: int, segment: Segment, position: int, *, clean: bool
    ) -> Checkpoint:
        self.epoch_history = epochs.retire(self.epoch_history, self.log_start_offset)
        if segment is self.active:
            segment.length = max(segment.length, position)
        return Checkpoint(
            topic_id=self.topic_id,
            partition=self.partition,
            clean=clean,
            log_start_offset=self.log_start_offset,
            durable_offset=durable_offset,
            segment=segment.base_offset,
            file_position=position,
            leader_epoch=self.leader_epoch,
            epochs=self.epoch_history,
            write_reach_bytes=self._reach,
            unit=self.io.unit,
            max_timestamp=segment.max_timestamp,
            created_ms=segment.created_ms,
            sealing=self._sealing_lengths(),
            index_bytes=self._index(segment.base_offset).sizes(),
            producers=self.producers.export(durable_offset),
        )

    def _store(self, point: Checkpoint) -> None:
        assert self._pending is None, "a newer one must not be overwritten by one that is begun"
        checkpoint.store(self.directory, point)
        self._stored(point)

    def _stored(self, point: Checkpoint) -> None:
        self._on_disk = point
        self._durable = (point.durable_offset, point.segment, point.file_position)
