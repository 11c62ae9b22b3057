"""How segments of a data directory are written: with O_DIRECT, or through the page cache.

Asked once at the writer's start and shown by `status`. "direct" is taken only where the kernel's
answer (statx STATX_DIOALIGN, Linux 6.1) and a real write agree, and never on file systems that live
in the page cache, where O_DIRECT is accepted and means nothing: recycling relies on it (invariant
14).
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Literal

from shmbroker._core import scan

UNIT_MIN_BYTES = 4096
_IN_MEMORY = {0x01021994: "tmpfs", 0x858458F6: "ramfs"}


@dataclass(frozen=True, slots=True)
class IoMode:
    """`unit`: what positions, lengths and addresses of writes are multiples of, bytes."""

    mode: Literal["direct", "buffered"]
    unit: int = UNIT_MIN_BYTES
    reason: str = ""

    @property
    def direct(self) -> bool:
        return self.mode == "direct"

    @property
    def open_flags(self) -> int:
        return os.O_DIRECT if self.mode == "direct" else 0


def detect_io_mode(directory: str) -> IoMode:
    """Tries an O_DIRECT write in `directory` and returns what it allows. Raises OSError if nothing
    at all can be written there."""
    path = os.path.join(directory, f".probe-{os.getpid()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        kind = scan.filesystem_type(fd)
        if kind in _IN_MEMORY:
            return IoMode("buffered", reason=f"{_IN_MEMORY[kind]} lives in the page cache")
        alignment = scan.dio_alignment(fd)
        if alignment == (0, 0):
            return IoMode("buffered", reason="the file system says that it has no direct I/O")
        unit = max(UNIT_MIN_BYTES, *(alignment or (0, 0)))
        return _try_direct(path, unit)
    finally:
        os.close(fd)
        os.unlink(path)


def _try_direct(path: str, unit: int) -> IoMode:
    block = mmap.mmap(-1, unit)  # page aligned
    block[:] = b"\xa5" * unit
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        return IoMode("buffered", reason=f"O_DIRECT is refused: {error.strerror}")
    try:
        if os.pwritev(fd, [block], 0) != unit or os.preadv(fd, [block], 0) != unit:
            return IoMode("buffered", reason="an O_DIRECT write came out short")
    except OSError as error:
        return IoMode("buffered", reason=f"an O_DIRECT write failed: {error.strerror}")
    finally:
        os.close(fd)
        block.close()
    return IoMode("direct", unit)
