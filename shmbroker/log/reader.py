"""The file side for consumers: whole batches out of a partition's segments.

Used in reader processes, gateways and clients, any number at a time; opens files read-only and
takes part in recycling's rule (recycle.py): a shared flock first, then a second look at the name.
The kernel drops the lock when the process dies.

What may be read is said by the caller as `limit` = (base offset of a segment, position in it), the
exclusive end: for a live partition the durable position, aligned down to the disk unit as long as
the ring still has the rest, since that block is being rewritten (invariant 6). Segments before it
are read to their end. Indexes only speed things up: what they say is checked against the batch
they point to. What comes back is the caller's own memory. Not thread-safe.
"""

from __future__ import annotations

import bisect
import fcntl
import os
from collections.abc import Callable
from typing import NamedTuple

from shmbroker._core import scan
from shmbroker._core.scan import BatchAt
from shmbroker.errors import OffsetOutOfRange
from shmbroker.log import index, names

CHUNK_BYTES = 1 << 20
_JUMP_BYTES = 64 << 10  # below this the headers are walked over: a few reads
OPEN_MAX = 8  # segments kept open; a sequential reader needs two
_NO_LIMIT = 1 << 62

Limit = tuple[int, int]


class _Open(NamedTuple):
    base_offset: int
    fd: int


_Taken = tuple[int, int, bool]  # bytes, the offset that follows, whether no batch is behind them
_Take = Callable[[_Open, int, int, int], _Taken]


class Span(NamedTuple):
    """Whole batches as they stand in a segment."""

    fd: int
    position: int  # bytes into the file, where the first batch begins
    size_bytes: int
    next_offset: int  # of what follows


class SegmentReader:
    """Reads one partition's segments. `close` it, or use it in a `with` block."""

    def __init__(self, directory: str, open_max: int = OPEN_MAX) -> None:
        self.directory = directory
        self._open_max = open_max
        self._bases: list[int] = []
        self._open: dict[int, _Open] = {}
        self._next: tuple[int, int, int] | None = None  # offset, base and position it is at

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files, which lets go of their locks."""
        for segment in self._open.values():
            os.close(segment.fd)
        self._open.clear()
        self._next = None

    def fetch(self, offset: int, max_bytes: int = CHUNK_BYTES, limit: Limit | None = None) -> bytes:
        """Whole batches, the first of which contains `offset`; b"" when nothing stands before
        `limit`.

        At most about max_bytes from one segment, but always one batch if there is one. `limit`
        None:
        everything on disk. Raises OffsetOutOfRange below the first segment (look at the log start
        offset first: retention may have been there), OSError.
        """
        data = b""

        def read(segment: _Open, position: int, end: int, expected: int) -> _Taken:
            nonlocal data
            data, following, at_end = scan.read_batches(
                segment.fd, position, end, max_bytes, expected
            )
            return len(data), following, at_end

        self._next_stretch(offset, limit, read)
        return data

    def span(
        self, offset: int, max_bytes: int = CHUNK_BYTES, limit: Limit | None = None
    ) -> Span | None:
        """Where the batches stand that `fetch` would give, for `sendfile`; None for b"".

        They are not read: only where the index says that a batch begins, that one's header is, and
        the headers behind it. So a span may end before the last batch that `fetch` would give, but
        by less than half of `max_bytes`. Who receives the batches checks them. The descriptor
        stays open until the next call of this reader; a duplicate keeps the file from being
        recycled as long as it is open. Raises as `fetch`.
        """

        def measure(segment: _Open, position: int, end: int, expected: int) -> _Taken:
            if max_bytes >= _JUMP_BYTES:
                at, following = self._jump(segment, position, position + max_bytes, end)
                first = scan.header_at(segment.fd, position, end)
                if (
                    at - position > max_bytes // 2
                    and first is not None
                    and expected in (-1, first.base_offset)
                ):
                    return at - position, following, False
            return scan.measure_batches(segment.fd, position, end, max_bytes, expected)

        return self._next_stretch(offset, limit, measure)

    def _jump(self, segment: _Open, position: int, near: int, end: int) -> tuple[int, int]:
        """(position, base offset) of the last batch that the index tells of before `near`, if the
        segment confirms it before `end`; (position, -1) without one behind `position`."""
        base = segment.base_offset
        path = os.path.join(self.directory, names.file_name(base, names.INDEX))
        for last_offset, at in index.positions_before(path, base, near):
            if at <= position:
                break
            found = scan.header_at(segment.fd, at, end)
            if found is not None and found.last_offset == last_offset:
                return at, found.base_offset
        return position, -1

    def locate(self, offset: int, limit: Limit | None = None) -> tuple[int, BatchAt] | None:
        """(base offset of the segment, the batch that contains `offset` or, where that is missing,
        the next one); None when there is none before `limit`."""
        base = self._base_of(offset)
        while base is not None:
            if self._segment(base) is None:  # retired since it was listed: the offset may be gone
                self._refresh()
                base = self._base_of(offset)
                continue
            found = self._locate_in(base, offset, limit)
            if found is not None:
                return base, found
            base = self._base_after(base, limit)
        return None

    def offset_for_time(self, timestamp: int, limit: Limit | None = None) -> tuple[int, int] | None:
        """(base offset, largest timestamp) of the first batch with a record of at least `timestamp`
        (ms). Earlier records of that batch may be older: who decodes it drops them."""
        self._refresh()
        for n, base in enumerate(self._bases):
            if limit is not None and base > limit[0]:
                return None
            following = self._bases[n + 1] if n + 1 < len(self._bases) else None
            if following is not None and self._all_before(base, timestamp):
                continue
            segment = self._segment(base)
            if segment is None:
                continue
            path = os.path.join(self.directory, names.file_name(base, names.TIMEINDEX))
            start = index.offset_before_time(path, base, timestamp)
            position = self._position_before(segment, start, limit)
            end = self._end_of(segment, limit)
            found = scan.locate(segment.fd, position, end, base, timestamp)
            if found is not None:
                return found.base_offset, found.max_timestamp
        return None

    def _next_stretch(self, offset: int, limit: Limit | None, take: _Take) -> Span | None:
        """What `take` finds (bytes, next offset, at end) in the first segment that has some."""
        place = self._place(offset, limit)
        while place is not None:
            base, position = place
            segment = self._segment(base)
            if segment is None:  # retired meanwhile
                self._refresh()
                place = self._find(offset, limit)
                continue
            expected = offset if self._next and self._next[0] == offset else -1
            end = self._end_of(segment, limit)
            size, following, at_end = take(segment, position, end, expected)
            if size:
                self._next = (following, base, position + size)
                return Span(segment.fd, position, size, following)
            if not at_end:
                return None
            place = self._after(base, offset, limit)
        return None

    # --- where an offset is ---

    def _place(self, offset: int, limit: Limit | None) -> tuple[int, int] | None:
        if self._next is not None and self._next[0] == offset:
            return self._next[1], self._next[2]
        self._next = None
        return self._find(offset, limit)

    def _find(self, offset: int, limit: Limit | None) -> tuple[int, int] | None:
        self._next = None
        located = self.locate(offset, limit)
        return None if located is None else (located[0], located[1].position)

    def _after(self, base: int, offset: int, limit: Limit | None) -> tuple[int, int] | None:
        """The segment behind `base`, if the log goes on there with `offset`."""
        following = self._base_after(base, limit)
        if following is None or following != offset:
            return None
        self._next = (offset, following, 0)
        return following, 0

    def _base_of(self, offset: int) -> int | None:
        if not self._bases or offset >= self._bases[-1]:
            self._refresh()
        n = bisect.bisect_right(self._bases, offset) - 1
        if n >= 0:
            return self._bases[n]
        if not self._bases:
            return None
        topic, partition = names.split_directory(self.directory)
        raise OffsetOutOfRange(topic, partition, offset, self._bases[0], -1)

    def _base_after(self, base: int, limit: Limit | None) -> int | None:
        if limit is not None and base >= limit[0]:
            return None
        if not self._bases or base >= self._bases[-1]:
            self._refresh()
        n = bisect.bisect_right(self._bases, base)
        return self._bases[n] if n < len(self._bases) else None

    def _locate_in(self, base: int, offset: int, limit: Limit | None) -> BatchAt | None:
        segment = self._segment(base)
        if segment is None:
            return None
        end = self._end_of(segment, limit)
        return scan.locate(segment.fd, self._position_before(segment, offset, limit), end, offset)

    def _position_before(self, segment: _Open, offset: int, limit: Limit | None) -> int:
        """Where a batch at or before `offset` begins, by the index if the segment confirms it."""
        base = segment.base_offset
        path = os.path.join(self.directory, names.file_name(base, names.INDEX))
        end = self._end_of(segment, limit)
        for entry_offset, position in index.offset_positions(path, base, offset):
            if position >= end:
                continue
            found = scan.locate(segment.fd, position, end, 0)
            if (
                found is not None
                and found.position == position
                and found.last_offset == entry_offset
                and found.base_offset >= base
            ):
                return position
        return 0

    def _all_before(self, base: int, timestamp: int) -> bool:
        path = os.path.join(self.directory, names.file_name(base, names.TIMEINDEX))
        last = index.last_time_entry(path, base)
        return last is not None and last[0] < timestamp

    # --- files ---

    def _end_of(self, segment: _Open, limit: Limit | None) -> int:
        """Where reading must end. Elsewhere the file does it: by its end, by the zeros or the stale
        batches behind its data. Its size tells nothing, as it is allocated ahead and cut later."""
        if limit is None or segment.base_offset < limit[0]:
            return _NO_LIMIT
        return limit[1] if segment.base_offset == limit[0] else 0

    def _refresh(self) -> None:
        self._bases = names.list_directory(self.directory).logs

    def _segment(self, base: int) -> _Open | None:
        segment = self._open.get(base)
        if segment is not None:
            return segment
        fd = open_shared(os.path.join(self.directory, names.file_name(base, names.LOG)))
        if fd < 0:
            return None
        if len(self._open) >= self._open_max:
            oldest = next(iter(self._open))
            os.close(self._open.pop(oldest).fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # twice as fast from a cold disk
        segment = _Open(base, fd)
        self._open[base] = segment
        return segment


def open_shared(path: str) -> int:
    """Opens a segment for reading, by recycling's rule; -1 when no such segment is there (any
    more).

    As long as the descriptor (or a copy of it, in whatever process) is open, the file is not
    recycled.
    """
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            opened, named = os.fstat(fd), os.stat(path)
        except FileNotFoundError:
            os.close(fd)
            return -1
        except BaseException:
            os.close(fd)
            raise
        if (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino):
            return fd
        os.close(fd)


def fetch(
    directory: str, offset: int, max_bytes: int = CHUNK_BYTES, limit: Limit | None = None
) -> bytes:
    """`SegmentReader.fetch` for a single call."""
    with SegmentReader(directory) as reader:
        return reader.fetch(offset, max_bytes, limit)
