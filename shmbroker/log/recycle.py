"""Retired segments that become new ones, and files made ahead.

Overwriting written extents is about 1.7 times as fast as writing fresh ones, so a segment that
retention has retired is renamed to `recycled-N.log.free` and becomes the next segment of the same
partition. Its old batches stay in it behind the new ones: their offsets are lower, so neither
recovery nor a reader takes them for data.

Nobody may be reading it then (invariant 14). A reader takes a shared flock on its descriptor and
then checks that the name still leads to the same file; we take the exclusive one, rename, and let
go:
  - a reader that locked first makes our LOCK_NB fail, and the file is unlinked instead: it reads
    on;
  - a reader that opened before and locks after the rename finds the name gone, and lets go.
In buffered mode nothing is recycled: `sendfile` may still have the old pages on their way to a
socket. All in the writer process. The directory is synced before the first write in the new role.
"""

from __future__ import annotations

import fcntl
import os

from shmbroker.log import allocate, files, names
from shmbroker.log.iomode import IoMode
from shmbroker.log.segment import Segment

KEEP = 2  # retired segments that wait at most


def retire(segment: Segment, *, recycle: bool, kept: list[str]) -> str:
    """Takes a segment's `.log` out of the log: "recycled" or "unlinked". Not synced yet.

    `kept` lists the names of those that wait; a new one is added. Raises OSError.
    """
    segment.close()
    if recycle and segment.io.direct and len(kept) < KEEP and _rename_unread(segment, kept):
        return "recycled"
    files.unlink_quietly(segment.path)
    return "unlinked"


def _rename_unread(segment: Segment, kept: list[str]) -> bool:
    try:
        fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name = next(n for n in map(names.recycled_name, range(KEEP + 1)) if n not in kept)
        os.rename(segment.path, os.path.join(segment.directory, name))
        kept.append(name)
        return True
    except BlockingIOError:
        return False  # somebody reads it
    finally:
        os.close(fd)


class NextSegment:
    """The file that becomes the next segment: prepared ahead, off the write path."""

    def __init__(self, directory: str, io: IoMode, recycled: list[str]) -> None:
        self._directory = directory
        self._io = io
        self._recycled = recycled  # shared with `retire`
        self._path: str | None = None
        self._fd = -1

    @property
    def ready(self) -> bool:
        return self._fd >= 0

    @property
    def allocated_bytes(self) -> int:
        """Size of the prepared file; 0 when there is none."""
        return os.fstat(self._fd).st_size if self.ready else 0

    def prepare(self, first_bytes: int, ceiling: int, sharers: int = 1) -> None:
        """Opens a recycled file or makes a fresh one, with room for first_bytes at least. Does
        nothing when there is one. Raises DiskFull, OSError."""
        if self.ready:
            return
        path = os.path.join(self._directory, names.NEXT)
        create = os.O_CREAT | os.O_TRUNC
        if self._recycled:
            os.rename(os.path.join(self._directory, self._recycled.pop(0)), path)
            create = 0
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | create | self._io.open_flags, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size > 2 * ceiling:  # segment.bytes was lowered meanwhile
                os.ftruncate(fd, size := allocate.align_up(ceiling, self._io.unit))
            free = allocate.free_bytes(fd) // sharers
            first = min(first_bytes, ceiling, max(free // 4, 1))
            end = allocate.next_end(size, first, ceiling, free, self._io.unit)
            allocate.reserve(fd, path, size, end)
            os.fsync(fd)
        except BaseException:
            os.close(fd)
            files.unlink_quietly(path)
            raise
        self._fd, self._path = fd, path

    def become(self, base_offset: int, created_ms: int) -> Segment:
        """Renames the prepared file to a segment's name and syncs the directory; returns when the
        segment may be written."""
        assert self._path is not None
        segment = Segment(self._directory, base_offset, self._io, length=0, created_ms=created_ms)
        os.rename(self._path, segment.path)
        files.sync_directory(self._directory)
        segment.adopt(self._fd)
        self._fd, self._path = -1, None
        return segment

    def close(self) -> None:
        """Closes and unlinks it."""
        if self._fd >= 0:
            os.close(self._fd)
        if self._path is not None:
            files.unlink_quietly(self._path)
        self._fd, self._path = -1, None
