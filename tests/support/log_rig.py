"""What the tests of shmbroker.log share: a partition that is written without the engine.

`Rig` does with os.pwritev what the appender does: whole aligned blocks, the partial last one again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmbroker._core import scan
from shmbroker._core.batch import encode_batch
from shmbroker.log.iomode import IoMode, detect_io_mode
from shmbroker.log.partition import PartitionLog
from shmbroker.topic_settings import TopicSettings

TOPIC_ID = "0123456789abcdef"
REACH = 16 << 10  # of a write; what the tests write at once is smaller


def batch(
    offset: int,
    count: int = 3,
    *,
    epoch: int = 0,
    size: int = 100,
    timestamp: int = -1,
    **more: int,
) -> bytes:
    """Records from `offset` on; timestamps are 1000 + offset unless given."""
    first = 1000 + offset if timestamp < 0 else timestamp
    records = [(first + n, None, bytes([65 + n % 26]) * size, ()) for n in range(count)]
    return encode_batch(records, base_offset=offset, leader_epoch=epoch, **more)


class Rig:
    """One partition in `directory`, opened and written as a writer process would."""

    def __init__(
        self,
        directory: Path,
        settings: TopicSettings | None = None,
        io: IoMode | None = None,
        *,
        reach: int = REACH,
        begin: bool = True,
    ) -> None:
        self.path = directory / "t-0"
        self.io = io or detect_io_mode(str(directory))
        self.settings = settings or TopicSettings(segment_bytes=1 << 20)
        self.reach = reach
        self.batches: list[tuple[int, int, bytes]] = []  # segment, position, bytes
        self.max_timestamp = -1
        self.log: PartitionLog = None  # type: ignore[assignment]
        self.open(begin=begin)

    def open(self, *, begin: bool = True, known: tuple[int, int] | None = None) -> PartitionLog:
        if self.log is not None:
            self.crash()
        self.log = PartitionLog.open(
            self.path,
            TOPIC_ID,
            "t",
            0,
            self.settings,
            self.io,
            write_reach_bytes=self.reach,
            known_durable=known,
            create=True,
            clock=lambda: 1.0,
        )
        self.offset = self.log.log_end_offset
        self.position = self.log.active.length if self.log.active else 0
        if begin and self.log.recovery.state == "online":
            self.log.before_first_append()
        return self.log

    def append(self, *counts: int, size: int = 100, **more: int) -> None:
        """One batch a count, all in one write."""
        data = b""
        for count in counts or (3,):
            encoded = batch(self.offset, count, epoch=self.log.leader_epoch, size=size, **more)
            base = self.active.base_offset
            self.batches.append((base, self.position + len(data), encoded))
            data += encoded
            self.offset += count
            self.max_timestamp = max(self.max_timestamp, 999 + self.offset)
        self.write(data)

    def write(self, data: bytes) -> None:
        unit = self.io.unit
        start = self.position // unit * unit
        head = self.log.read_block(start, self.position - start) if self.position > start else b""
        size = -(-(len(head) + len(data)) // unit) * unit
        self.log.extend(start + size)
        with mmap.mmap(-1, size) as block:
            block[: len(head) + len(data)] = head + data
            os.pwritev(self.active.fd, [block], start)
        self.position += len(data)

    def roll(self, *, seal: bool = True) -> None:
        before, length = self.active, self.position
        self.log.roll(self.offset)
        self.position = 0
        if seal:
            fd = os.open(before.path, os.O_RDONLY)
            found = scan.scan_segment(
                fd,
                position=0,
                limit=length,
                expected_offset=before.base_offset,
                index_interval_bytes=self.settings.index_interval_bytes,
            )
            os.close(fd)
            self.log.add_index_entries(before.base_offset, found.entries)
            self.log.seal(before, length, found.max_timestamp)

    def checkpoint(self) -> None:
        self.log.write_checkpoint(self.offset, self.position, max_timestamp=self.max_timestamp)

    def crash(self) -> None:
        """The process is gone; nothing is said to anybody."""
        for segment in self.log.segments:
            segment.close()
        if self.log.has_next:
            os.close(self.log._next._fd)
            self.log._next._fd = -1

    def close(self) -> None:
        self.log.close(self.offset, self.position, max_timestamp=self.max_timestamp)

    @property
    def active(self):  # type: ignore[no-untyped-def]
        assert self.log.active is not None
        return self.log.active

    def file(self, base: int, suffix: str = ".log") -> Path:
        return self.path / f"{base:020d}{suffix}"

    def content(self) -> bytes:
        """All batches of the log, as a reader finds them."""
        return read_all(self.path)

    def written(self) -> bytes:
        return b"".join(data for _, _, data in self.batches)


def read_all(path: Path, start: int = 0) -> bytes:
    """Everything from offset `start` on."""
    from shmbroker._core.batch import batch_headers
    from shmbroker.log.reader import SegmentReader

    found = b""
    with SegmentReader(str(path)) as reader:
        while data := reader.fetch(start, 64 << 10):
            found += data
            start = list(batch_headers(data))[-1].last_offset + 1
    return found


MakeRig = Callable[..., Rig]


@pytest.fixture(name="make")
def make_fixture(tmp_path: Path) -> Iterator[MakeRig]:
    """Makes rigs in the test's directory and closes their files behind it."""
    rigs: list[Rig] = []

    def make(
        settings: TopicSettings | None = None, io: IoMode | None = None, **more: int | bool
    ) -> Rig:
        rigs.append(Rig(tmp_path, settings, io, **more))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.crash()
