"""Readers of a partition whose segments are retired and used again under them; each in a process.

Every value says its own offset, over and over, so one foreign byte is enough to be noticed.
`Bounds` is a page that the writer keeps: what may be read (whole segments below `end`), and when to
stop.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from shmbroker._core.batch import decode_values, next_batch
from shmbroker.errors import OffsetOutOfRange
from shmbroker.log import names
from shmbroker.log.reader import SegmentReader, open_shared


def pattern(offset: int, size: int = 700) -> bytes:
    """The only right value of that offset."""
    return (struct.pack("<Q", offset * 0x9E3779B97F4A7C15 % 2**64) * (size // 8 + 1))[:size]


def checked(data: bytes, offset: int) -> int:
    """Parses whole batches, of which the first holds `offset`; returns the offset behind them."""
    at = 0
    while at < len(data):
        info = next_batch(data, at)  # length, magic, checksum
        assert info is not None, f"no batch at byte {at}, offset {offset}"
        assert info.base_offset <= offset <= info.last_offset, (
            f"{info.base_offset}..{info.last_offset} stands where {offset} should"
        )
        values = decode_values(data[at : at + info.size])
        assert len(values) == info.count
        for n, value in enumerate(values):
            assert value == pattern(info.base_offset + n), (
                f"foreign bytes at {info.base_offset + n}"
            )
        offset = info.last_offset + 1
        at += info.size
    return offset


class Bounds:
    """See the module. One writer of the page, many readers."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._fd, 4096)
        self._page = mmap.mmap(self._fd, 4096)

    @property
    def end(self) -> int:
        """Base offset of the active segment: what is below may be read."""
        return int(struct.unpack_from("<Q", self._page)[0])

    @end.setter
    def end(self, offset: int) -> None:
        struct.pack_into("<Q", self._page, 0, offset)

    @property
    def over(self) -> bool:
        """Whether the readers are to stop."""
        return self._page[8] != 0

    def stop(self) -> None:
        """They are."""
        self._page[8] = 1

    def close(self) -> None:
        self._page.close()
        os.close(self._fd)


@contextlib.contextmanager
def reported(pipe: Connection) -> Iterator[list[int]]:
    """Sends how much was read, or what was wrong."""
    read = [0]
    try:
        yield read
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
    pipe.send(read[0])
    pipe.close()


def by_pread(directory: str, page: Path, seed: int, pipe: Connection) -> None:
    """Fetches forward in pieces of random size, sometimes from elsewhere, until told to stop."""
    rng, bounds = random.Random(seed), Bounds(page)
    with reported(pipe) as read, SegmentReader(directory) as reader:
        offset = 0
        while not bounds.over:
            try:
                data = reader.fetch(offset, rng.choice((1, 4096, 60_000)), (bounds.end, 0))
            except OffsetOutOfRange:
                offset = names.list_directory(directory).logs[0]
                continue
            if data:
                first = next_batch(data)
                assert first is not None
                if first.base_offset > offset:  # a gap is right only where retention has been
                    assert names.list_directory(directory).logs[0] > offset
                    offset = first.base_offset
                offset = checked(data, offset)
                read[0] += len(data)
            if not data or rng.random() < 0.01:
                logs = [n for n in names.list_directory(directory).logs if n < bounds.end]
                offset = rng.choice(logs) if logs else 0


def by_sendfile(directory: str, page: Path, seed: int, pipe: Connection) -> None:
    """Sends whole segments from the page cache into a socket whose other end is read late, and
    closes the file (which lets go of the lock) when the kernel has taken its last byte."""
    rng, bounds = random.Random(seed), Bounds(page)
    with reported(pipe) as read:
        while not bounds.over:
            logs = [n for n in names.list_directory(directory).logs if n < bounds.end]
            if not logs:
                continue
            base = rng.choice(logs[:2])
            fd = open_shared(os.path.join(directory, names.file_name(base, names.LOG)))
            if fd < 0:
                continue
            size = os.fstat(fd).st_size
            data = through_a_socket(fd, size, rng.choice((4096, 1 << 20)))
            assert len(data) == size
            checked(data, base)
            read[0] += size


def through_a_socket(fd: int, size: int, piece: int) -> bytes:
    """The file's bytes, as they come out of a socket after the file was closed."""
    ours, theirs = socket.socketpair()
    got: list[bytes] = []

    def receive() -> None:
        with theirs:
            while data := theirs.recv(8192):
                got.append(data)

    receiver = threading.Thread(target=receive)
    with ours:
        at = 0
        started = False
        while at < size:
            ours.settimeout(None if started else 0)
            try:
                at += os.sendfile(ours.fileno(), fd, at, min(piece, size - at))
            except BlockingIOError:
                receiver.start()
                ours.setblocking(True)
                started = True
        os.close(fd)
        if not started:
            receiver.start()
    receiver.join()
    return b"".join(got)
