"""What a reader process sends from segments with sendfile: the batches of `fetch`, unread."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from log_rig import MakeRig, Rig, batch, make_fixture  # noqa: F401

from shmbroker._core import scan
from shmbroker._core.batch import batch_headers
from shmbroker.errors import OffsetOutOfRange
from shmbroker.log.reader import SegmentReader, Span
from shmbroker.topic_settings import TopicSettings

SMALL = TopicSettings(segment_bytes=64 << 10)


def fill(rig: Rig, segments: int = 3) -> None:
    """Batches of very different sizes, so that every window of the walk ends somewhere else."""
    rng = random.Random(7)
    for _ in range(segments):
        for _ in range(12):
            rig.append(rng.randint(1, 9), size=rng.choice([1, 20, 100, 900, 1500]))
        rig.roll()
    rig.append(5)


def bytes_of(span: Span) -> bytes:
    return os.pread(span.fd, span.size_bytes, span.position)


@pytest.mark.parametrize("most", [1, 700, 5000, 1 << 20])
def test_spans_are_the_whole_log_and_what_fetch_gives(make: MakeRig, most: int) -> None:
    rig = make(SMALL)
    fill(rig)
    whole, offset = b"", 0
    with SegmentReader(str(rig.path)) as spans, SegmentReader(str(rig.path)) as fetches:
        while span := spans.span(offset, most):
            data = bytes_of(span)
            assert data == fetches.fetch(offset, most)
            found = list(batch_headers(data))
            assert len(data) <= most or len(found) == 1
            assert span.next_offset == found[-1].last_offset + 1
            whole, offset = whole + data, span.next_offset
        assert fetches.fetch(offset, most) == b""
    assert whole == rig.written()
    assert offset == rig.offset


@pytest.mark.parametrize("most", [100_000, 300_000])
def test_large_spans_end_where_the_index_has_a_batch_and_their_headers_are_not_read(
    make: MakeRig, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make(TopicSettings(segment_bytes=2 << 20))
    for _ in range(2):
        for n in range(1500):
            rig.append(1 + n % 3, size=500)
        rig.roll()
    walked, measure = [0], scan.measure_batches

    def counting(*args: int) -> tuple[int, int, bool]:
        found = measure(*args)
        walked[0] += found[0]
        return found

    monkeypatch.setattr(scan, "measure_batches", counting)
    whole, offset, spans = b"", 0, 0
    with SegmentReader(str(rig.path)) as reader:
        while span := reader.span(offset, most):
            data = bytes_of(span)
            found = list(batch_headers(data))
            assert len(data) <= most
            assert found[0].base_offset == offset
            assert span.next_offset == found[-1].last_offset + 1
            whole, offset, spans = whole + data, span.next_offset, spans + 1
    assert whole == rig.written()
    assert spans < 2.2 * len(whole) / most + 4
    assert walked[0] < len(whole) / 3


def test_an_index_that_lies_costs_time_and_no_batch(make: MakeRig) -> None:
    rig = make(TopicSettings(segment_bytes=2 << 20))
    for _ in range(2000):
        rig.append(1, size=900)
    rig.roll()
    (path, *_) = sorted(rig.path.glob("*.index"))
    entries = bytearray(path.read_bytes())
    for at in range(4, len(entries), 24):
        entries[at + 3] ^= 5  # every third position
    path.write_bytes(entries)
    whole, offset = b"", 0
    with SegmentReader(str(rig.path)) as reader:
        while span := reader.span(offset, 200_000):
            whole, offset = whole + bytes_of(span), span.next_offset
    assert whole == rig.written()


def test_a_span_begins_with_the_batch_of_the_offset_wherever_it_is(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    with SegmentReader(str(rig.path)) as reader:
        for offset in random.Random(1).sample(range(rig.offset), 60):
            span = reader.span(offset, 3000)
            assert span is not None
            first = next(batch_headers(bytes_of(span)))
            assert first.base_offset <= offset <= first.last_offset


def test_no_span_reaches_to_the_limit_or_past_it(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig, segments=2)
    base, position, data = rig.batches[15]
    start = next(batch_headers(data)).base_offset
    with SegmentReader(str(rig.path)) as reader:
        for limit in (position, position + 1, position + len(data) - 1):
            offset = 0
            while span := reader.span(offset, 4096, (base, limit)):
                offset = span.next_offset
            assert offset == start
        whole = reader.span(start, 4096, (base, position + len(data)))
        assert whole is not None
        assert bytes_of(whole) == data


def test_spans_and_fetches_take_turns_on_one_reader(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    whole, offset, rng = b"", 0, random.Random(3)
    with SegmentReader(str(rig.path)) as reader:
        while offset < rig.offset:
            span = reader.span(offset, 2000) if rng.random() < 0.5 else None
            data = bytes_of(span) if span else reader.fetch(offset, 2000)
            whole, offset = whole + data, list(batch_headers(data))[-1].last_offset + 1
    assert whole == rig.written()


def test_a_span_follows_a_segment_that_grows_and_rolls(make: MakeRig) -> None:
    rig = make(SMALL)
    with SegmentReader(str(rig.path)) as reader:
        assert reader.span(0) is None
        for offset, roll in ((0, False), (3, True), (6, False)):
            rig.append(3)
            if roll:
                rig.roll()
            span = reader.span(offset)
            assert span is not None
            assert bytes_of(span) == rig.batches[-1][2]
            assert reader.span(offset + 3) is None


def test_what_is_behind_the_data_belongs_to_no_span(tmp_path: Path) -> None:
    first, second = batch(0, 4), batch(4, 2, size=9000)
    stale = batch(1000, 3)  # of the segment that was recycled into this one
    for behind in (b"", bytes(5000), stale, batch(4, 2)[:100], b"\xff" * 200):
        path = tmp_path / "segment"
        path.write_bytes(first + second + behind)
        fd = os.open(path, os.O_RDONLY)
        try:
            size = len(first + second)
            assert scan.measure_batches(fd, 0, 1 << 40, 1 << 20, 0) == (size, 6, True)
            assert scan.measure_batches(fd, 0, 1 << 40, len(first), 0) == (len(first), 4, False)
            assert scan.measure_batches(fd, 0, size - 1, 1 << 20, 0) == (len(first), 4, True)
            assert scan.measure_batches(fd, 0, 1 << 40, 1 << 20, 3) == (0, 3, True)
            os.truncate(path, size - 1)
            assert scan.measure_batches(fd, 0, 1 << 40, 1 << 20) == (len(first), 4, True)
        finally:
            os.close(fd)


def test_a_file_that_can_not_be_read_says_why() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        scan.measure_batches(-1, 0, 1 << 20, 1 << 20)


def test_a_span_below_the_first_segment_says_so(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    start = rig.active.base_offset
    rig.log.set_settings(TopicSettings(segment_bytes=64 << 10, retention_bytes=0), rig.reach)
    assert rig.log.retire(0, rig.offset) == start
    with (
        SegmentReader(str(rig.path)) as reader,
        pytest.raises(OffsetOutOfRange, match=f"starts at {start}"),
    ):
        reader.span(0)


def test_a_segment_with_a_span_in_use_is_not_recycled(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    with SegmentReader(str(rig.path)) as reader:
        span = reader.span(0, 1 << 20)
        assert span is not None
        kept, data = os.dup(span.fd), bytes_of(span)
    try:
        rig.log.set_settings(TopicSettings(segment_bytes=64 << 10, retention_bytes=0), rig.reach)
        rig.log.retire(0, rig.offset)
        for _ in range(4):  # what could be recycled is written over
            for _ in range(12):
                rig.append(5, size=1500)
            rig.roll()
        assert os.pread(kept, span.size_bytes, span.position) == data
    finally:
        os.close(kept)


PROGRAM = """
import os, sys
from shmbroker.log.reader import SegmentReader
to, offset = int(sys.argv[2]), 0
with SegmentReader(sys.argv[1]) as reader:
    while span := reader.span(offset):
        done = 0
        while done < span.size_bytes:
            done += os.sendfile(to, span.fd, span.position + done, span.size_bytes - done)
        offset = span.next_offset
"""


def test_what_is_sent_from_a_segment_does_not_pass_through_user_memory(
    make: MakeRig, tmp_path: Path
) -> None:
    rig = make(TopicSettings(segment_bytes=4 << 20))
    for _ in range(2):
        for _ in range(20):
            rig.append(64, size=1500)
        rig.roll()
    size, trace = len(rig.written()), tmp_path / "trace"
    calls = "trace=read,pread64,readv,preadv,preadv2,mmap,sendfile"
    near, far = socket.socketpair()
    with near, far:
        sender = subprocess.Popen(
            ["strace", "-qq", "-y", "-o", str(trace), "-e", calls,
             sys.executable, "-c", PROGRAM, str(rig.path), str(near.fileno())],
            pass_fds=[near.fileno()],
        )  # fmt: skip
        near.close()
        whole = b"".join(iter(lambda: far.recv(1 << 20), b""))
        assert sender.wait(40) == 0
    assert whole == rig.written()
    lines = [n for n in trace.read_text().splitlines() if "t-0" in n and ".log>" in n]
    results = [(line.split("(")[0], re.search(r"= (\d+)$", line)) for line in lines]
    sums = {name: 0 for name, _ in results}
    for name, result in results:
        assert result is not None, name
        sums[name] += int(result[1])
    assert sums["sendfile"] == size
    assert sums.keys() <= {"sendfile", "pread64"}
    assert sums["pread64"] < size // 100  # headers
