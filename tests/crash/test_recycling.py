"""Segments are retired and written again while somebody reads them: never a foreign byte.

Readers by pread and by sendfile, patient ones and killed ones (invariant 14; recycle.py and
reader.py).
"""

from __future__ import annotations

import multiprocessing as mp
import os
import random
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from log_rig import Rig
from recycling_readers import Bounds, by_pread, by_sendfile, checked, pattern

from shmbroker._core.batch import encode_batch
from shmbroker.errors import OffsetOutOfRange
from shmbroker.log.reader import SegmentReader, open_shared
from shmbroker.topic_settings import TopicSettings

SEGMENT = 128 << 10
SETTINGS = TopicSettings(segment_bytes=SEGMENT, retention_bytes=3 * SEGMENT)
NOW = 2_000
_spawn = mp.get_context("spawn")


class Log(Rig):
    """A partition of values that say their offset."""

    def fill(self, bounds: Bounds | None = None) -> None:
        """One segment, then the next one, and what retention no longer keeps goes."""
        while self.position < SEGMENT - 16_000:
            records = [(1000, None, pattern(self.offset + n), ()) for n in range(10)]
            self.write(
                encode_batch(records, base_offset=self.offset, leader_epoch=self.log.leader_epoch)
            )
            self.offset += len(records)
        self.roll()
        if bounds is not None:
            bounds.end = self.offset
        self.log.retire(NOW, self.offset)

    def turn_over(self, rounds: int = 8) -> None:
        """Until every retired segment that may be used again has been, more than once."""
        for _ in range(rounds):
            self.fill()

    @property
    def waiting(self) -> int:
        """Retired segments that wait to be used again."""
        return len(list(self.path.glob("recycled-*")))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path, SETTINGS)
    assert made.io.direct, "recycling needs direct I/O; put the tests' directory on such a disk"
    yield made
    made.crash()


def inode(log: Log, base: int) -> int:
    return os.stat(log.file(base)).st_ino


def test_a_segment_that_nobody_reads_is_used_again(log: Log) -> None:
    """What the other tests rely on."""
    log.fill()
    first = inode(log, 0)
    log.turn_over()
    assert first in {p.stat().st_ino for p in log.path.glob("*.log*")}
    start = log.log.log_start_offset
    with SegmentReader(str(log.path)) as reader:
        while data := reader.fetch(start, 1 << 20, (log.active.base_offset, 0)):
            start = checked(data, start)
    assert start == log.offset


def test_a_reader_by_pread_gets_to_the_end_of_its_segment(log: Log) -> None:
    log.fill()
    following = log.offset
    with SegmentReader(str(log.path)) as reader:
        offset = checked(reader.fetch(0, 20_000, (following, 0)), 0)
        assert 0 < offset < following
        log.turn_over()
        assert not log.file(0).exists()
        while offset < following:
            data = reader.fetch(offset, 20_000, (following, 0))
            assert data, "the rest of an open segment is there"
            offset = checked(data, offset)
        assert offset == following
        with pytest.raises(OffsetOutOfRange):  # it is told of what it missed
            reader.fetch(offset, 20_000, (log.active.base_offset, 0))


def test_without_the_lock_foreign_bytes_come(log: Log) -> None:
    """So the test above would notice."""
    log.fill()
    fd = os.open(log.file(0), os.O_RDONLY)
    try:
        before = os.pread(fd, SEGMENT, 0)
        log.turn_over()
        after = os.pread(fd, SEGMENT, 0)
    finally:
        os.close(fd)
    assert checked(before, 0) > 0
    with pytest.raises(AssertionError, match="stands where"):
        checked(after, 0)


def queue(path: Path, left: socket.socket) -> int:
    """Puts as much of a file into a socket as it takes; its lock is let go."""
    fd = open_shared(str(path))
    assert fd >= 0
    left.setblocking(False)
    sent, size = 0, os.fstat(fd).st_size
    try:
        while sent < size:
            sent += os.sendfile(left.fileno(), fd, sent, min(16384, size - sent))
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
    return sent


def test_what_sendfile_has_taken_arrives_though_the_file_is_written_again(log: Log) -> None:
    log.fill()
    first, content = inode(log, 0), log.file(0).read_bytes()
    left, right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with left, right:
        sent = queue(log.file(0), left)
        assert sent > 30_000
        log.turn_over()
        assert first in {p.stat().st_ino for p in log.path.glob("*.log*")}, "it was used again"
        got = b""
        while len(got) < sent:
            got += right.recv(1 << 16)
    assert got == content[:sent]


def in_a_process(target: Callable[..., None], *args: object) -> tuple[BaseProcess, Connection]:
    """Spawned; its report comes through the pipe."""
    ours, theirs = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=target, args=(*args, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def hold(path: str, pipe: Connection) -> None:
    """Opens a segment, says so, and waits to be killed."""
    fd = open_shared(path)
    pipe.send(fd)
    import signal

    signal.pause()


def test_a_killed_reader_holds_nothing_back_and_never_did_harm(log: Log) -> None:
    log.fill()
    first = inode(log, 0)
    process, pipe = in_a_process(hold, str(log.file(0)))
    try:
        assert pipe.recv() >= 0
        while log.file(0).exists():
            log.fill()
        assert first not in {p.stat().st_ino for p in log.path.glob("*.log*")}, "it was read"
        oldest = min(int(p.name[:20]) for p in log.path.glob("*.log"))
        second = inode(log, oldest)
        other, other_pipe = in_a_process(hold, str(log.file(oldest)))
        assert other_pipe.recv() >= 0
        other.kill()
        other.join()
        other_pipe.close()
        while log.file(oldest).exists():
            log.fill()
        assert second in {p.stat().st_ino for p in log.path.glob("*.log*")}, "nobody reads it"
    finally:
        process.kill()
        process.join()
        pipe.close()


def storm(log: Log, tmp_path: Path, seed: int, fills: int) -> None:
    """Readers of both kinds, some of them killed, while segments go round."""
    rng = random.Random(seed)
    page = tmp_path / "bounds"
    bounds = Bounds(page)
    kinds = (by_pread, by_sendfile)
    running = []

    def begin(n: int) -> None:
        running.append(in_a_process(kinds[n % 2], str(log.path), page, rng.random()))

    try:
        log.fill(bounds)
        for n in range(4):
            begin(n)
        reused: set[int] = set()
        seen: set[int] = set()
        for n in range(fills):
            log.fill(bounds)
            number = log.active.path
            inode_now = os.stat(number).st_ino
            (reused if inode_now in seen else seen).add(inode_now)
            if n % (fills // 4) == fills // 8:
                process, pipe = running.pop(rng.randrange(len(running)))
                process.kill()
                process.join()
                assert not pipe.poll() or _eof(pipe), f"seed {seed}: it found a fault before"
                pipe.close()
                begin(n)
        assert reused, "segments were used again"
        bounds.stop()
        read = []
        for process, pipe in running:
            read.append(pipe.recv())
            process.join()
        assert all(isinstance(n, int) for n in read), f"seed {seed}: {read}"
        assert sum(read) > SEGMENT, "somebody read something"
    finally:
        for process, pipe in running:
            process.kill()
            process.join()
            pipe.close()
        bounds.close()


def _eof(pipe: Connection) -> bool:
    try:
        return isinstance(pipe.recv(), int)
    except EOFError:
        return True


@pytest.mark.parametrize("seed", range(2))
def test_no_reader_ever_sees_a_foreign_byte(log: Log, tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    storm(log, tmp_path, seed, 100)


@pytest.mark.crash_long
@pytest.mark.parametrize("seed", range(10, 16))
def test_no_reader_ever_sees_a_foreign_byte_at_length(log: Log, tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    storm(log, tmp_path, seed, 1000)
