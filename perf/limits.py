"""Raw limits of this machine, measured in the same run as what is held against them.

The loops are Python around one system call each: 1 MiB takes 300 us and 4 KiB 90 us, the loop
1 us, so it is no cheaper limit than one in C. Files are kept until `close`, so that no deletion of
one (a discard on the device) falls into the next measurement.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from shmbroker.perf.rounds import percentile

Extents = Literal["fresh", "written"]
MIB: Final = 1 << 20
LARGE: Final = 4 << 20
BLOCK: Final = 4096


class RawDisk:
    """Bare writes into files of one directory, the same file system as the broker's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: list[int] = []
        self._written: dict[int, int] = {}  # descriptor by bytes: files written once already
        self._buffer = mmap.mmap(-1, LARGE)
        self._buffer[:] = os.urandom(LARGE)
        self.rates: dict[int, list[float]] = {MIB: [], LARGE: []}  # by bytes of a write
        self.direct = True  # False: the file system refuses O_DIRECT, and so will the broker

    def write_rate(self, nbytes: int, extents: Extents = "fresh") -> float:
        """Bytes a second of O_DIRECT+RWF_DSYNC writes, one after the other.

        "fresh": over fallocated extents of a new file; "written": over those of a file that was
        written before, as a recycled segment was. The better of 1 MiB and 4 MiB a write (the
        broker's largest): on fresh extents each pays for a journal commit, so where commits are
        slow the former is no limit. `rates` keeps both.
        """
        return max(self._write_rate(nbytes, block, extents) for block in self.rates)

    def _write_rate(self, nbytes: int, block: int, extents: Extents) -> float:
        if extents == "fresh":
            fd = self._new_file(nbytes)
        elif nbytes in self._written:
            fd = self._written[nbytes]
        else:
            fd = self._written[nbytes] = self._new_file(nbytes)
            for n in range(nbytes // LARGE):
                os.pwritev(fd, [self._buffer], n * LARGE, os.RWF_DSYNC)
        writes = nbytes // block
        with memoryview(self._buffer)[:block] as piece:
            buffers = [piece]
            began = time.perf_counter()
            for n in range(writes):
                os.pwritev(fd, buffers, n * block, os.RWF_DSYNC)
            rate = writes * block / (time.perf_counter() - began)
        self.rates[block].append(rate)
        return rate

    def small_write_us(self, count: int, extents: Extents) -> float:
        """The p50 in us of 4 KiB RWF_DSYNC writes, one after the other.

        "fresh": each the next block of a fallocated file; "written": the same written block again,
        as the last block of a log is.
        """
        fd = self._new_file(max(count * BLOCK, MIB))
        took = []
        with memoryview(self._buffer)[:BLOCK] as block:
            buffers = [block]
            os.pwritev(fd, buffers, 0, os.RWF_DSYNC)
            for n in range(count):
                offset = n * BLOCK if extents == "fresh" else 0
                began = time.perf_counter_ns()
                os.pwritev(fd, buffers, offset, os.RWF_DSYNC)
                took.append((time.perf_counter_ns() - began) / 1e3)
        return percentile(took, 0.5)

    def _new_file(self, nbytes: int) -> int:
        path = tempfile.mktemp(prefix="raw-", dir=self._directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError:
            self.direct = False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            fd = os.open(path, flags, 0o600)
        os.unlink(path)
        self._files.append(fd)
        os.posix_fallocate(fd, 0, nbytes)
        os.fsync(fd)
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._files:
            os.close(self._files.pop())
        self._buffer.close()


def unpack_rate(value_bytes: int, nbytes: int) -> float:
    """Values a second that `struct` makes out of contiguous bytes: the limit of `values()`.

    One C loop that does nothing but make the objects; each list is dropped before the next.
    """
    count = 10_000
    cut = struct.Struct(f"{value_bytes}s" * count)
    source = os.urandom(value_bytes * count)
    laps = max(1, nbytes // len(source))
    began = time.perf_counter()
    for _ in range(laps):
        cut.unpack(source)
    return laps * count / (time.perf_counter() - began)


def cold_read_rate(paths: list[Path]) -> float:
    """Bytes a second of sequential 1 MiB reads of files that are not in the page cache."""
    forget_pages(paths)
    total, buffer = 0, bytearray(MIB)
    began = time.perf_counter()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # as the reader does
            while got := file.readinto(buffer):
                total += got
    return total / (time.perf_counter() - began)


def forget_pages(paths: list[Path]) -> None:
    """Drops these files' pages from the page cache (dirty ones are written first)."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


__all__ = ["LARGE", "MIB", "Extents", "RawDisk", "cold_read_rate", "forget_pages", "unpack_rate"]
