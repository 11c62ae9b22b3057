"""A partition's segments as a local consumer reads them, up to where its ring goes on.

Owns: the open files of one partition in one consumer, and the seam between file and ring: the block
at the durable end is being rewritten in the file and stands whole in the ring (invariant 6), so a
batch that reaches into it is put together from both. Not thread-safe.
"""

from __future__ import annotations

import os
from typing import Protocol

from shmbroker._core.reader import PartitionReader, RecordBatch, SharedReader
from shmbroker.log import names
from shmbroker.log.reader import OPEN_MAX, SegmentReader, Span, open_shared


class Limits(Protocol):
    """What says how far a partition's files may be read."""

    @property
    def end(self) -> int: ...
    def file_limit(self) -> tuple[int, int, int, int]: ...


class PartitionFiles:
    """The segments of one partition, for what is no longer in its ring."""

    def __init__(self, directory: str, open_max: int = OPEN_MAX) -> None:
        """Opens nothing yet, and at most `open_max` segments at a time."""
        self.directory = directory
        self._segments = SegmentReader(directory, open_max)

    def close(self) -> None:
        """Closes all files; what comes after opens them again."""
        self._segments.close()

    def fetch(self, reader: PartitionReader, most: int) -> RecordBatch | None:
        """The next records from the files, or from where file and ring meet; moves the reader."""
        base, end, _, generation = reader.file_limit()
        raw = self._segments.fetch(reader.position, most, (base, end))
        return reader.take(raw, generation) if raw else self.seam(reader)

    def span(self, reader: SharedReader, offset: int, most: int) -> Span | None:
        """Where the next batches stand, for sendfile; None where `seam` may have the next one. The
        descriptor is good until the next call. Doesn't move the reader."""
        base, end, _, generation = reader.file_limit()
        found = self._segments.span(offset, most, (base, end))
        return found if reader.generation == generation else None

    def seam(self, reader: PartitionReader) -> RecordBatch | None:
        """The records of the batch where file and ring meet; moves the reader. None elsewhere: what
        is missing in an older segment is damage, and nothing behind it stands in for it."""
        base, end, ring_position, generation = reader.file_limit()
        if reader.position < base:
            return None
        # The batch ends in the block that is being rewritten: its head is in the file, its rest in
        # the ring, whose index may know nothing of it when the ring is new.
        head = self._head(reader.position, base, end)
        return reader.take(head, generation, ring_position)

    def where(self, reader: PartitionReader, offset: int) -> tuple[str, int]:
        """(path, position) of where the batch of `offset` should begin, for an error."""
        base, end, _, _ = reader.file_limit()
        _, position = self._whole_until(offset, base, end)
        return os.path.join(self.directory, names.file_name(base, names.LOG)), position

    def offset_for_time(self, reader: Limits, timestamp_ms: int) -> int:
        """An offset not far in front of the first record of that time, if there is one."""
        base, end, _, _ = reader.file_limit()
        found = self._segments.offset_for_time(timestamp_ms, (base, end))
        if found is not None:
            return found[0]
        return self._whole_until(reader.end, base, end)[0]

    def _head(self, offset: int, base: int, end: int) -> bytes:
        """The bytes from the last batch boundary at or before `offset` to the limit."""
        _, position = self._whole_until(offset, base, end)
        fd = open_shared(os.path.join(self.directory, names.file_name(base, names.LOG)))
        if fd < 0:
            return b""
        try:
            return os.pread(fd, max(0, end - position), position)
        finally:
            os.close(fd)

    def _whole_until(self, offset: int, base: int, end: int) -> tuple[int, int]:
        """(offset, position) behind the last batch that ends before both `offset` and the limit."""
        low, high, following, position = base, offset, base, 0
        while low < high:
            middle = (low + high) // 2
            found = self._segments.locate(middle, (base, end))
            if found is None or found[0] != base or found[1].last_offset >= offset:
                high = middle
            else:
                following, position = (
                    found[1].last_offset + 1,
                    found[1].position + found[1].size_bytes,
                )
                low = max(middle + 1, following)
        return following, position


__all__ = ["Limits", "PartitionFiles"]
