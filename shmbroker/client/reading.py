"""What a consumer does when reading is not just reading.

Owns: the way out of everything that ends `RecordStream._quick`: records that are not in the ring, a
broker that is gone, records that retention took, records that the host lost. What depends on where
the broker is (its files, or a stream of its) is the Source's. `_slow` returns with records or with
an error.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Final

from shmbroker._core import reader as core
from shmbroker._core.batch import RecordBatch as KafkaBatch
from shmbroker._core.reader import PartitionReader, RecordBatch, RecordStream
from shmbroker.errors import (
    ClosedError,
    CorruptBatch,
    LogTruncated,
    OffsetOutOfRange,
    TimedOut,
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

    def __init__(self, client: Client, earliest_on_gap: bool) -> None:
        """Attached, and without partitions yet; parks at once where there is nothing."""
        self._client, self._connection = client, client.connection
        self._earliest_on_gap = earliest_on_gap
        self._spin_ns = 0
        self._most = RING_FETCH_BYTES
        self._epoch = self._connection.epoch
        self._seen = self._connection.attached()
        self._park_map = self._connection.park
        self._park = self._park_map.address
        self._turn_slow = 0
        self._source = self._connection.source(client.metadata)
        # glibc maps blocks past 128 KiB anew each time (70 ns a record for page faults, against
        # 31), until it has seen one as large freed: after this one, fetches come from the heap.
        bytes(_HEAP_BYTES)

    def _slow(self, deadline_ns: int) -> RecordBatch | None:
        """RecordStream's other half: sorts out why nothing came, until something does."""
        while True:
            if self._stopped:
                raise ClosedError("this consumer is closed")
            try:
                if self._called:
                    self._attend()
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

    def _attend(self) -> None:
        """Sees to what another thread has asked for (`_call`), before the next record."""
        self._answer_call()

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
                        self._source.at_end(reader)
                        return None
                    batch = self._source.fetch(reader, self._file_bytes())
            except OffsetOutOfRange as gap:
                told = gap.log_end_offset >= 0  # by the partition; a segment that is gone tells not
                start = gap.log_start_offset if told else reader.log_start_offset
                if reader.position < start and self._earliest_on_gap:
                    self._source.seek(reader, start)
                elif reader.position < start or told:
                    raise
                continue  # a segment is gone, and the log start is about to be seen to move
            if batch is not None:
                return batch
            if not reader.bound:
                self._source.find(reader)
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

    def _check_epoch(self, offset: int, leader_epoch: int) -> None:
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

    def _rebind(self, epoch: int) -> None:
        """After an attach: everything may be somewhere else."""
        self._park_map = self._connection.park
        self._park = self._park_map.address
        for reader in self._all:
            self._source.bind(reader)
        self._seen = epoch


__all__ = ["NEVER_NS", "Reading"]
