"""What a consumer does when reading is not just reading.

Owns: the way out of everything that ends `RecordStream._quick`: records that are in the files and
not in the ring, a broker that is gone, a partition that moved, went offline or was deleted, records
that retention took, records that the host lost. `_slow` returns with records or with an error.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shmbroker._core import reader as core
from shmbroker._core import shm
from shmbroker._core.batch import RecordBatch as KafkaBatch
from shmbroker._core.reader import PartitionReader, RecordBatch, RecordStream
from shmbroker.client.metadata import PartitionInfo, TopicPartition
from shmbroker.client.partition_files import PartitionFiles
from shmbroker.errors import (
    ClosedError,
    CorruptBatch,
    LogTruncated,
    OffsetOutOfRange,
    PartitionOffline,
    ShmbrokerError,
    TimedOut,
    UnknownTopic,
)

if TYPE_CHECKING:
    from shmbroker.client.client import Client

#: A fetch takes whole batches up to this, or one larger one: so much that batch and values stay in
#: a core's cache (measured, 100 B records: 256 KiB 31 ns, 1 MiB 42 ns each).
RING_FETCH_BYTES: Final = 256 << 10
FILE_FETCH_BYTES: Final = 512 << 10
_HEAP_BYTES: Final = 4 << 20
NEVER_NS: Final = core.deadline(None)
#: What is visible and found nowhere for so long is damage, not a race: with a segment that is being
#: retired, or with a writer that was killed in the middle of that and is on its way back.
_PATIENCE_NS: Final = 2_000_000_000
_YIELDS: Final = 100  # before each further look is a millisecond apart


class Reading(RecordStream):
    """A RecordStream with its other half. Not for users: see Consumer."""

    reader_kind: type[PartitionReader] = PartitionReader

    def __init__(self, client: Client, earliest_on_gap: bool, spin_ns: int) -> None:
        """Attached, and without partitions yet."""
        self._client, self._connection = client, client.connection
        self._earliest_on_gap = earliest_on_gap
        self._spin_ns = spin_ns
        self._most = RING_FETCH_BYTES
        self._epoch = self._connection.epoch
        self._seen = self._connection.attached()
        self._park_map = self._connection.park
        self._park = self._park_map.address
        self._turn_slow = 0
        self._files: dict[TopicPartition, PartitionFiles] = {}
        # glibc maps blocks past 128 KiB anew each time (70 ns a record for page faults, against
        # 31), until it has seen one as large freed: after this one, fetches come from the heap.
        bytes(_HEAP_BYTES)

    def _slow(self, deadline_ns: int) -> RecordBatch | None:
        """RecordStream's other half: sorts out why nothing came, until something does."""
        while True:
            if self._stopped:
                raise ClosedError("this consumer is closed")
            try:
                batch = self._look_everywhere()
            except TimedOut:
                if not self._epoch.value & 1:
                    raise
                batch = None  # the broker went away while it was asked: that is waited for below
            if batch is not None:
                return batch
            if self._epoch.value & 1:
                if not self._await_broker(deadline_ns):
                    return None
                continue
            if deadline_ns <= core.monotonic_ns():
                return None
            batch = self._quick(deadline_ns)
            if batch is not None:
                return batch

    def _look_everywhere(self) -> RecordBatch | None:
        """What any partition has for us, in turn, after an attach from its new place."""
        epoch = self._epoch.value
        if not epoch & 1 and epoch != self._seen:
            self._rebind(epoch)
        readers = self._readers
        for n in range(len(readers)):
            batch = self._fetch_slow(readers[(self._turn_slow + n) % len(readers)])
            if batch is not None:
                self._turn_slow += n + 1
                return batch
        return None

    def _fetch_slow(self, reader: PartitionReader) -> RecordBatch | None:
        """What the partition has for us, wherever it is; None when there is nothing (yet)."""
        if reader.leader_epoch >= 0 and reader.recovery != reader.recovered:
            self._verify(reader)
        since_ns = core.monotonic_ns()
        for n in itertools.count():
            if n:
                if self._stopped:
                    raise ClosedError("this consumer is closed")
                if core.monotonic_ns() - since_ns > _PATIENCE_NS:
                    break
                time.sleep(0 if n < _YIELDS else 0.001)
            try:
                batch = reader.fetch(self._most)
                if batch is None and reader.bound and reader.look() != "opening":
                    if reader.position >= reader.end:
                        self._at_end(reader)
                        return None
                    batch = self._files_of(reader).fetch(reader, self._file_bytes())
            except OffsetOutOfRange as gap:
                start = reader.log_start_offset
                if reader.position < start and self._earliest_on_gap:
                    reader.seek(start)
                elif reader.position < start or gap.log_end_offset >= 0:
                    raise
                continue  # a segment is gone, and the log start is about to be seen to move
            if batch is not None:
                return batch
            if not reader.bound:
                self._bind(reader, self._client.metadata.refresh(reader.topic).partitions)
                if not reader.bound:  # its writer has yet to take it up: wait for that
                    reader.unborn = True
                    return None
            elif reader.look() == "opening":
                return None
        if self._epoch.value != self._seen:
            return None
        raise CorruptBatch(
            f"{reader.topic}-{reader.partition} says that it has records up to {reader.end}, but "
            f"offset {reader.position} is neither in memory nor on disk; look with: "
            f"shmbroker log dump"
        )

    def _file_bytes(self) -> int:
        return FILE_FETCH_BYTES if self._most > 1 else 1

    def _at_end(self, reader: PartitionReader) -> None:
        """Whether waiting for more makes sense in the state that the partition is in."""
        state = reader.look()
        if state == "offline":
            raise PartitionOffline(reader.topic, reader.partition, self._reason(reader))
        if state in ("closed", "free"):
            if not self._connection.closing and self._epoch.value == self._seen:
                places = self._client.metadata.refresh(reader.topic).partitions  # or UnknownTopic
                self._bind(reader, places)
                reader.look()
            reader.settled = core.STATE_NAMES.index(state)

    def _reason(self, reader: PartitionReader) -> str:
        try:
            answer = self._connection.request(
                "partition_state", topic=reader.topic, partition=reader.partition
            )
            return str(answer.get("reason") or f"error {reader.reason}")
        except ShmbrokerError:
            return f"error {reader.reason}"

    def _await_broker(self, deadline_ns: int) -> bool:
        left = None
        if deadline_ns != NEVER_NS:
            left = max(0.0, (deadline_ns - core.monotonic_ns()) / 1e9)
        try:
            self._connection.attached(left, lambda: self._stopped)
        except TimedOut:
            return False
        return True

    def _verify(self, reader: PartitionReader) -> None:
        """After a recovery from disk: is the record before our position still the one we read?"""
        position, epoch, recovery = reader.position, reader.leader_epoch, reader.recovery
        if reader.look() in ("opening", "free") or not reader.bound:
            return
        recovered, end = reader.recovered, min(position, reader.log_end_offset)
        while end > reader.log_start_offset:
            batch = self._batch_at(reader, end - 1)
            if batch is None or batch.leader_epoch == epoch:
                break
            end = batch.base_offset  # of another epoch: go back to where ours ends
        reader.seek(position)
        reader.leader_epoch, reader.recovery = epoch, recovery
        if end < position and position > reader.log_start_offset:
            raise LogTruncated(
                f"{reader.topic}-{reader.partition} lost the records from offset {end} on with the "
                f"host, before they were durable; this consumer had read up to {position}: undo "
                f"what they did and seek({end})",
                topic=reader.topic,
                partition=reader.partition,
                offset=position,
                end_offset=end,
            )
        reader.recovery = recovered

    def check_epoch(self, offset: int, leader_epoch: int) -> None:
        """Whether the record before `offset` of the one partition still is the one that was read
        under that leader epoch; LogTruncated if it isn't. Moves the reader."""
        (reader,) = self._all
        reader.seek(offset)
        reader.leader_epoch, reader.recovery = leader_epoch, -1
        self._verify(reader)

    def _batch_at(self, reader: PartitionReader, offset: int) -> KafkaBatch | None:
        """The Kafka batch that holds `offset`. Moves the reader."""
        reader.seek(offset)
        reader.leader_epoch = -1
        found = self._fetch_one(reader)
        return None if found is None else found.batches()[0]

    def _fetch_one(self, reader: PartitionReader) -> RecordBatch | None:
        most, self._most = self._most, 1  # one Kafka batch, however large
        try:
            return self._fetch_slow(reader)
        finally:
            self._most = most

    # --- places --------------------------------------------------------------------------------

    def _rebind(self, epoch: int) -> None:
        """After an attach: everything may be somewhere else."""
        self._park_map = self._connection.park
        self._park = self._park_map.address
        for reader in self._all:
            self._bind(reader, self._client.metadata.get(reader.topic).partitions)
        self._seen = epoch

    def _reader(self, place: PartitionInfo, appended: bool) -> PartitionReader:
        return self.reader_kind(
            place.topic,
            place.partition,
            writer=place.writer,
            slot=place.slot,
            slot_epoch=place.slot_epoch,
            table=self._connection.table(place.writer),
            open_ring=self._open_ring(place),
            appended=appended,
            position=NEVER_NS,  # past every end, until `start` says where
        )

    def _bind(self, reader: PartitionReader, places: tuple[PartitionInfo, ...]) -> None:
        if reader.partition >= len(places):
            raise UnknownTopic(reader.topic, reader.partition, len(places))
        place = places[reader.partition]
        table = self._connection.table(place.writer)
        reader.bind(place.writer, place.slot, place.slot_epoch, table, self._open_ring(place))
        files = self._files.get(key_of(reader))
        if files is not None and files.directory != place.directory:
            files.close()
            del self._files[key_of(reader)]

    def _open_ring(self, place: PartitionInfo) -> Callable[[int], shm.ShmObject]:
        connection, name = self._connection, f"l{place.writer}.{place.slot}"
        return lambda generation: connection.open_object(f"{name}.{generation}", shm.KIND_LOG)

    def _files_of(self, reader: PartitionReader) -> PartitionFiles:
        found = self._files.get(key_of(reader))
        if found is None:
            place = self._client.metadata.partition(reader.topic, reader.partition)
            found = self._files[key_of(reader)] = PartitionFiles(place.directory)
        return found


def key_of(reader: PartitionReader) -> TopicPartition:
    """What a reader reads."""
    return TopicPartition(reader.topic, reader.partition)


__all__ = ["NEVER_NS", "Reading", "key_of"]
