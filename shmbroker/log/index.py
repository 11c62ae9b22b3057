"""The sparse indexes of a segment, in Kafka's formats.

    .index      | relative offset u32 | position u32 |            8 bytes an entry
    .timeindex  | timestamp i64, ms   | relative offset u32 |    12 bytes an entry

Big endian, relative to the segment's base offset, both columns rising. An offset entry names the
last offset of the batch at `position`, as Kafka's does; a time entry says that the largest
timestamp up to that offset (inclusive) is `timestamp`. One entry every index.interval.bytes or so.

Who writes: the writer process's housekeeper, buffered; an entry is on disk after `sync`. Who
reads: any process. Nobody trusts an entry: a reader checks the batch it points to and falls back
to the entry before, down to the segment's start. So a lost or torn index costs time and no data.
Source: Kafka's `OffsetIndex` and `TimeIndex`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator

from shmbroker.log import files, names

ENTRY = struct.Struct("=qqq")  # packed entries of the engine and of scans: struct shmb_scan_entry
OFFSET_ENTRY = struct.Struct(">II")
TIME_ENTRY = struct.Struct(">qI")
_RELATIVE_MAX = 0x7FFFFFFF  # Kafka's are signed


class SegmentIndex:
    """Both index files of one segment, for the one process that writes them. Not thread-safe.

    Keeps no file open: entries come every few MiB and are written a few hundred at a time.
    """

    def __init__(self, directory: str, base_offset: int) -> None:
        self.base_offset = base_offset
        self.offset_path = os.path.join(directory, names.file_name(base_offset, names.INDEX))
        self.time_path = os.path.join(directory, names.file_name(base_offset, names.TIMEINDEX))
        self._offsets = bytearray()
        self._times = bytearray()
        self._last_timestamp: int | None = None  # of the last time entry; None: not looked up yet
        self._unsynced = False

    def append(self, entries: bytes | bytearray | memoryview) -> None:
        """Takes packed {int64 last offset; int64 position; int64 max timestamp so far} entries."""
        for offset, position, max_timestamp in ENTRY.iter_unpack(entries):
            relative = offset - self.base_offset
            if not (0 <= relative <= _RELATIVE_MAX and 0 <= position <= _RELATIVE_MAX):
                continue  # can't be said in Kafka's format; look-ups walk a little further
            self._offsets += OFFSET_ENTRY.pack(relative, position)
            self.append_time(max_timestamp, offset)

    def append_time(self, timestamp: int, offset: int) -> None:
        """Notes the largest timestamp up to `offset`, if it is larger than the last one noted."""
        if self._last_timestamp is None:
            last = self.last_time()
            self._last_timestamp = last[0] if last else -1
        relative = offset - self.base_offset
        if timestamp > self._last_timestamp and 0 <= relative <= _RELATIVE_MAX:
            self._times += TIME_ENTRY.pack(timestamp, relative)
            self._last_timestamp = timestamp

    def flush(self) -> None:
        """Hands what is buffered to the kernel."""
        for path, data in ((self.offset_path, self._offsets), (self.time_path, self._times)):
            if data:
                with _opened(path, os.O_WRONLY | os.O_CREAT) as fd:
                    size = os.fstat(fd).st_size
                    try:
                        files.write_all(fd, data, size)
                    except OSError as error:
                        os.ftruncate(fd, size)  # no half entry; it is tried again as it is
                        if error.errno in files.FULL:
                            raise files.disk_full(path, "index entries", error) from error
                        raise
                data.clear()
                self._unsynced = True

    def sync(self) -> None:
        """Returns when all entries are durable (the directory entry needs a directory sync)."""
        self.flush()
        if not self._unsynced:
            return
        for path in (self.offset_path, self.time_path):
            if os.path.exists(path):
                with _opened(path, os.O_RDONLY) as fd:
                    os.fsync(fd)
        self._unsynced = False

    def take_unsynced(self) -> tuple[str, ...]:
        """Flushes, and leaves it to the caller to sync these files (`sync` won't any more)."""
        self.flush()
        taken = (self.offset_path, self.time_path) if self._unsynced else ()
        self._unsynced = False
        return taken

    def unsynced(self) -> None:
        """Syncing what was taken has failed, or nobody can tell."""
        self._unsynced = True

    def last_time(self) -> tuple[int, int] | None:
        """(timestamp, offset) of the last time entry on disk."""
        return last_time_entry(self.time_path, self.base_offset)

    def sizes(self) -> tuple[int, int]:
        """Bytes of both files on disk; for the checkpoint, after `sync`."""
        return _size(self.offset_path), _size(self.time_path)

    def truncate(self, sizes: tuple[int, int]) -> None:
        """Goes back to what the files were at a checkpoint: what is buffered is dropped too."""
        self._offsets.clear()
        self._times.clear()
        self._last_timestamp = None
        for path, size in zip((self.offset_path, self.time_path), sizes, strict=True):
            self._unsynced |= _cut(path, size)

    def rebuild(self, entries: bytes) -> None:
        """Replaces both files by what a scan of the whole segment found."""
        self.remove()
        self._last_timestamp = -1
        self.append(entries)
        self.sync()

    def remove(self) -> None:
        """Unlinks both files."""
        self._offsets.clear()
        self._times.clear()
        files.unlink_quietly(self.offset_path)
        files.unlink_quietly(self.time_path)


def offset_positions(path: str, base_offset: int, target_offset: int) -> Iterator[tuple[int, int]]:
    """(offset, position) of the entries at or before target_offset, the nearest first.

    Found by binary search. The caller takes the first one that the segment confirms.
    """
    yield from _entries_back(path, base_offset, 0, target_offset - base_offset)


def positions_before(path: str, base_offset: int, target: int) -> Iterator[tuple[int, int]]:
    """The same, of the entries whose position is at or before `target`."""
    yield from _entries_back(path, base_offset, 1, target)


def _entries_back(path: str, base_offset: int, column: int, key: int) -> Iterator[tuple[int, int]]:
    with _opened(path, os.O_RDONLY, missing_ok=True) as fd:
        if fd < 0:
            return
        found = _search(fd, OFFSET_ENTRY, column, key, inclusive=True)
        for n in range(found, -1, -1):
            entry = OFFSET_ENTRY.unpack(os.pread(fd, OFFSET_ENTRY.size, n * OFFSET_ENTRY.size))
            yield entry[0] + base_offset, entry[1]


def offset_before_time(path: str, base_offset: int, timestamp: int) -> int:
    """An offset from which the first record with at least `timestamp` (ms) is still ahead.

    All records at and below the one it follows are older, if the index is right.
    """
    with _opened(path, os.O_RDONLY, missing_ok=True) as fd:
        if fd < 0:
            return base_offset
        found = _search(fd, TIME_ENTRY, 0, timestamp, inclusive=False)
        if found < 0:
            return base_offset
        entry = TIME_ENTRY.unpack(os.pread(fd, TIME_ENTRY.size, found * TIME_ENTRY.size))
        return base_offset + int(entry[1]) + 1


def last_time_entry(path: str, base_offset: int) -> tuple[int, int] | None:
    """(timestamp, offset) of a time index's last whole entry, or None."""
    with _opened(path, os.O_RDONLY, missing_ok=True) as fd:
        if fd < 0:
            return None
        count = os.fstat(fd).st_size // TIME_ENTRY.size
        if not count:
            return None
        data = os.pread(fd, TIME_ENTRY.size, (count - 1) * TIME_ENTRY.size)
        timestamp, relative = TIME_ENTRY.unpack(data)
        return timestamp, base_offset + relative


def read_entries(path: str, kind: struct.Struct) -> list[tuple[int, int]]:
    """All whole entries of an index file; none where it is missing."""
    return list(_entries(path, kind))


def _search(fd: int, kind: struct.Struct, column: int, key: int, *, inclusive: bool) -> int:
    """The last entry whose column is below `key` (or equal, if inclusive); -1: none."""
    low, high = 0, os.fstat(fd).st_size // kind.size
    while low < high:
        middle = (low + high) // 2
        data = os.pread(fd, kind.size, middle * kind.size)
        if len(data) < kind.size:  # cut meanwhile
            high = middle
            continue
        value = kind.unpack(data)[column]
        if value < key or (inclusive and value == key):
            low = middle + 1
        else:
            high = middle
    return low - 1


def _entries(path: str, kind: struct.Struct) -> Iterable[tuple[int, int]]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return ()
    return kind.iter_unpack(data[: len(data) // kind.size * kind.size])


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _cut(path: str, size: int) -> bool:
    """Shortens a file to `size` bytes; False when it is not longer."""
    if _size(path) <= size:
        return False
    os.truncate(path, size)
    return True


class _opened:
    """A file descriptor for the length of a block; -1 for a missing file if that is fine."""

    def __init__(self, path: str, flags: int, *, missing_ok: bool = False) -> None:
        self._path, self._flags, self._missing_ok = path, flags, missing_ok
        self._fd = -1

    def __enter__(self) -> int:
        try:
            self._fd = os.open(self._path, self._flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            if not self._missing_ok:
                raise
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
