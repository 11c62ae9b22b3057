"""One segment file: its descriptor, its length, and the space reserved for it.

    0                       length           allocated_bytes (the file's size)
    +-----------------------+----------------+
    | record batches        | zeros, or the  |     sealed or cleanly closed: cut to `length`
    |                       | stale bytes of |
    |                       | a recycled one |
    +-----------------------+----------------+

Who writes: the engine of the writer process through `fd` (batches), the housekeeper (size). Readers
open the file themselves (reader.py). Only the housekeeper's thread uses an object; the engine gets
the bare descriptor, which stays open until `close`.
"""

from __future__ import annotations

import mmap
import os

from shmbroker.log import allocate, files, names
from shmbroker.log.iomode import IoMode


class Segment:
    """A `.log` file of one partition."""

    __slots__ = (
        "_allocated",
        "_fd",
        "base_offset",
        "created_ms",
        "directory",
        "io",
        "length",
        "max_timestamp",
        "path",
    )

    def __init__(
        self,
        directory: str,
        base_offset: int,
        io: IoMode,
        *,
        length: int = -1,
        max_timestamp: int = -1,
        created_ms: int = 0,
    ) -> None:
        self.directory = directory
        self.base_offset = base_offset  # of its first record
        self.path = os.path.join(directory, names.file_name(base_offset, names.LOG))
        self.io = io
        self.length = length  # bytes that hold batches; -1: sealed, the file's size
        self.max_timestamp = max_timestamp  # ms, -1: not known
        self.created_ms = created_ms
        self._allocated = -1
        self._fd = -1

    @property
    def fd(self) -> int:
        """Read-write, O_DIRECT in direct mode; opened when first asked for. Raises OSError."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | self.io.open_flags)
        return self._fd

    def adopt(self, fd: int) -> None:
        """Takes over an open descriptor of the file."""
        assert self._fd < 0
        self._fd = fd

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    @property
    def allocated_bytes(self) -> int:
        """The file's size: writes up to here need no new space."""
        if self._allocated < 0:
            self._allocated = self._stat_size()
        return self._allocated

    @property
    def size(self) -> int:
        """Bytes of batches."""
        return self.length if self.length >= 0 else self.allocated_bytes

    @classmethod
    def create(cls, directory: str, base_offset: int, io: IoMode, created_ms: int) -> Segment:
        """An empty segment under its name, in a synced directory. Raises DiskFull, OSError."""
        segment = cls(directory, base_offset, io, length=0, created_ms=created_ms)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | io.open_flags
        try:
            segment._fd = os.open(segment.path, flags, 0o600)
            segment._allocated = 0
            files.sync_directory(directory)
        except OSError as error:
            segment.close()
            if error.errno in files.FULL:
                raise files.disk_full(segment.path, "a new segment", error) from error
            raise
        return segment

    def extend(self, needed_end: int, ceiling: int, sharers: int = 1) -> int:
        """Reserves space up to needed_end (bytes) at least; see allocate.py. Returns the new
        allocated_bytes. Raises DiskFull, OSError."""
        allocated = self.allocated_bytes
        if allocated < needed_end or allocated % self.io.unit:
            free = allocate.free_bytes(self.fd) // sharers
            end = allocate.next_end(allocated, needed_end, ceiling, free, self.io.unit)
            allocate.reserve(self.fd, self.path, allocated, end)
            self._allocated = os.fstat(self.fd).st_size
        return self._allocated

    def read(self, position: int, size: int) -> bytes:
        """Bytes of the file; short at its end. `position` is a multiple of io.unit in direct
        mode."""
        if not self.io.direct:
            return os.pread(self.fd, size, position)
        with mmap.mmap(-1, max(allocate.align_up(size, self.io.unit), self.io.unit)) as block:
            got = os.preadv(self.fd, [block], position)
            return block[: min(got, size)]

    def cut(self, length: int) -> None:
        """Truncates the file to `length` bytes and syncs it. Whatever was behind is gone, also
        after a later extension, which reads as zeros. Raises OSError."""
        os.ftruncate(self.fd, length)
        os.fsync(self.fd)
        self.length = self._allocated = length

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _stat_size(self) -> int:
        return os.fstat(self._fd).st_size if self._fd >= 0 else os.stat(self.path).st_size
