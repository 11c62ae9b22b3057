"""Single records of partitions, looked up for the acceptor: how old one is, where a time begins.

Reads as a consumer of this host does: out of the ring while it is there, else out of the segments,
which may wait for a disk; so it belongs to the thread of offsets.py, and touches nothing of the
acceptor's but names that don't change. What can't be told is None: a partition that is being
opened, a record that retention took.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Self

from shmbroker import errors
from shmbroker._core import shm
from shmbroker._core.reader import Mapping, PartitionReader, RecordBatch
from shmbroker.client.partition_files import PartitionFiles
from shmbroker.control.plan import Place
from shmbroker.control.sharedmem import SharedMemory

_PATIENCE_S: Final = 0.05  # a segment that is being retired, a ring that is being replaced
_CLOSED: Final = ("opening", "free")


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a partition is served and kept."""

    place: Place
    directory: str


class RecordLook:
    """Looks into partitions, one after the other. Use it in a `with` block; not thread-safe."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._tables: dict[int, Mapping] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tables.clear()

    def timestamp_at(self, spot: Spot, offset: int) -> int | None:
        """When the first durable record from `offset` on was made, in ms of Unix time."""
        batch = self._first(spot, offset)
        stamps = batch.timestamps() if batch is not None else ()
        return stamps[0] if stamps and stamps[0] >= 0 else None

    def epoch_before(self, spot: Spot, offset: int) -> int:
        """The leader epoch of the record before `offset`; -1: not known."""
        batch = self._first(spot, offset - 1) if offset > 0 else None
        return -1 if batch is None else batch.leader_epoch

    def offset_at(self, spot: Spot, timestamp_ms: int) -> int | None:
        """The first durable offset whose record is not older; None: there is none (yet)."""
        reader = self._reader(spot)
        files = PartitionFiles(spot.directory)
        try:
            if reader is None:
                raise errors.TimedOut(_being_opened(spot))
            end = reader.end
            first = max(files.offset_for_time(reader, timestamp_ms), reader.log_start_offset)
            reader.seek(first)
            while reader.position < end:
                batch = _next(reader, files)
                if batch is None:
                    raise errors.TimedOut(_being_opened(spot))
                for offset, stamp in zip(batch.offsets(), batch.timestamps(), strict=True):
                    if stamp >= timestamp_ms and offset < end:
                        return offset
            return None
        finally:
            files.close()
            if reader is not None:
                reader.close()

    def _first(self, spot: Spot, offset: int) -> RecordBatch | None:
        reader = self._reader(spot)
        if reader is None:
            return None
        files = PartitionFiles(spot.directory)
        try:
            reader.seek(offset)
            return _next(reader, files)
        except (errors.OffsetOutOfRange, errors.CorruptBatch, OSError):
            return None
        finally:
            files.close()
            reader.close()

    def _reader(self, spot: Spot) -> PartitionReader | None:
        place = spot.place
        try:
            table = self._table(place.writer)
        except FileNotFoundError:
            return None
        reader = PartitionReader(
            place.topic,
            place.partition,
            writer=place.writer,
            slot=place.slot,
            slot_epoch=place.slot_epoch,
            table=table,
            open_ring=lambda generation: self._memory.open_object(
                f"l{place.writer}.{place.slot}.{generation}", shm.KIND_LOG
            ),
        )
        return reader if reader.bound and reader.look() not in _CLOSED else None

    def _table(self, writer: int) -> Mapping:
        found = self._tables.get(writer)
        if found is None:
            opened = self._memory.open_object(f"w{writer}", shm.KIND_WRITER)
            try:
                found = self._tables[writer] = Mapping(opened.name, opened.fileno())
            finally:
                opened.close()
        return found


def _next(reader: PartitionReader, files: PartitionFiles) -> RecordBatch | None:
    """The batch at the reader's position, wherever it is; None where none is to be had."""
    until_s = time.monotonic() + _PATIENCE_S
    while True:
        batch = reader.fetch(1)
        if batch is None and reader.bound and reader.look() not in _CLOSED:
            if reader.position >= reader.end:
                return None
            batch = files.fetch(reader, 1)
        if batch is not None or time.monotonic() > until_s:
            return batch
        time.sleep(0.001)


def _being_opened(spot: Spot) -> str:
    return f"{spot.place.topic}-{spot.place.partition} is still being opened; try again"


__all__ = ["RecordLook", "Spot"]
