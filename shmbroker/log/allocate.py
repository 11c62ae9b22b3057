"""Space ahead of the writer: how much, and how it is reserved.

Used by the writer process's housekeeper, off the write path, since a large fallocate can stall for
half a second. Steps double from 1 MiB to 256 MiB, end at the segment's size, and take at most a
quarter of the free disk; less than what is needed now is never reserved. The file's end moves
along (no KEEP_SIZE): otherwise each synced write would pay for metadata. Reserved space reads as
zeros.
"""

from __future__ import annotations

import errno
import mmap
import os

from shmbroker._core import scan
from shmbroker.log import files

STEP_MIN_BYTES = 1 << 20
STEP_MAX_BYTES = 256 << 20
_ZEROS_BYTES = 1 << 20
_NOT_NATIVE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def align_up(n: int, unit: int) -> int:
    """The next multiple of `unit` (a power of two)."""
    return (n + unit - 1) & ~(unit - 1)


def align_down(n: int, unit: int) -> int:
    """The multiple of `unit` (a power of two) at or below n."""
    return n & ~(unit - 1)


def next_end(allocated: int, needed: int, ceiling: int, free: int, unit: int) -> int:
    """Where the allocation should end (bytes, a multiple of unit), at least `needed`.

    `ceiling` is the segment's full size, `free` what the disk has left for us. Pure.
    """
    needed = align_up(needed, unit)
    step = min(max(allocated, STEP_MIN_BYTES), STEP_MAX_BYTES, free // 4)
    wanted = min(align_down(allocated + step, unit), align_up(ceiling, unit))
    return max(needed, wanted)


def free_bytes(fd: int) -> int:
    """What the file system of `fd` has left for an ordinary user."""
    stat = os.fstatvfs(fd)
    return stat.f_bavail * stat.f_frsize


def reserve(fd: int, path: str, allocated: int, end: int) -> None:
    """Reserves [allocated, end) of the file, so that writes there don't run out of space.

    Raises DiskFull (nothing is lost, try again when there is space), OSError.
    """
    if end <= allocated:
        return
    try:
        scan.fallocate(fd, allocated, end - allocated)
    except OSError as error:
        if error.errno in files.FULL:
            _give_back(fd, allocated)
            raise files.disk_full(path, f"{end - allocated} bytes", error) from error
        if error.errno not in _NOT_NATIVE:
            raise
        _write_zeros(fd, path, allocated, end)


def _write_zeros(fd: int, path: str, start: int, end: int) -> None:
    """What fallocate does, on file systems that lack it: real zeros, from an aligned buffer."""
    position = align_up(start, files_unit := 4096)
    zeros = mmap.mmap(-1, _ZEROS_BYTES)
    try:
        os.ftruncate(fd, position)
        while position < end:
            with memoryview(zeros) as view:
                position += os.pwritev(
                    fd, [view[: min(_ZEROS_BYTES, align_up(end - position, files_unit))]], position
                )
    except OSError as error:
        if error.errno in files.FULL:
            _give_back(fd, start)
            raise files.disk_full(path, f"{end - start} bytes", error) from error
        raise
    finally:
        zeros.close()


def _give_back(fd: int, size: int) -> None:
    """Undoes what a failed allocation got, so that the others may have it."""
    if os.fstat(fd).st_size > size:
        os.ftruncate(fd, size)
