"""Cut and flip anywhere: recovery yields the valid prefix, or opens read-only and says why."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_rig import TOPIC_ID, Rig, batch, read_all

from shmbroker.log.iomode import IoMode
from shmbroker.log.partition import PartitionLog
from shmbroker.topic_settings import TopicSettings

UNIT = 4096
BUFFERED = IoMode("buffered")
SETTINGS = TopicSettings(segment_bytes=1 << 20)


class Log:
    """A segment written in equal aligned writes, kept as bytes, so that damage is cheap to try."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "t-0"
        self.ends = [0]  # of batches
        self.offsets = [0]
        rig = Rig(directory, SETTINGS, BUFFERED, reach=2 * UNIT)
        for n in range(30):
            rig.append(1 + n % 4, size=700)
            self.ends.append(rig.position)
            self.offsets.append(rig.offset)
        rig.crash()
        self.end = rig.position
        self.log = rig.file(0).read_bytes()
        self.checkpoint = (self.path / "checkpoint").read_bytes()

    def restore(self, data: bytes) -> Path:
        shutil.rmtree(self.path)
        self.path.mkdir()
        (self.path / "00000000000000000000.log").write_bytes(data)
        (self.path / "checkpoint").write_bytes(self.checkpoint)
        return self.path

    def recover(self) -> PartitionLog:
        log = PartitionLog.open(
            self.path, TOPIC_ID, "t", 0, SETTINGS, BUFFERED, write_reach_bytes=2 * UNIT
        )
        log.close()
        return log

    def prefix(self, position: int) -> tuple[int, int]:
        """End and next offset of the batches that are whole before `position`."""
        n = max(k for k, end in enumerate(self.ends) if end <= position)
        return self.ends[n], self.offsets[n]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("log"))


COMMON = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@COMMON
@given(at=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_a_torn_tail_in_the_last_write_and_damage_before(
    written: Log, at: float, bit: int
) -> None:
    position = min(int(at * written.end), written.end - 1)
    data = bytearray(written.log)
    data[position] ^= 1 << bit
    path = written.restore(bytes(data))
    before = (path / "00000000000000000000.log").read_bytes()
    log = written.recover()
    end, offset = written.prefix(position)
    assert (log.log_end_offset, log.segments[0].length) == (offset, end)
    behind = [e for e in written.ends if e > written.prefix(position)[0]][1:]
    reach = end // UNIT * UNIT + 2 * UNIT
    if any(e > reach for e in behind):
        assert log.recovery.state == "readonly"
        assert f"byte {end}" in log.recovery.reason
        assert (path / "00000000000000000000.log").read_bytes() == before
        assert (path / "checkpoint").read_bytes() == written.checkpoint
    else:
        assert log.recovery.state == "online"
        assert (log.leader_epoch, log.epoch_history[-1]) == (1, (1, offset))
        assert read_all(path) == written.log[:end]


@COMMON
@given(at=st.floats(0, 1), zeros=st.integers(0, 3 * UNIT))
def test_a_cut_off_file_yields_its_whole_batches(written: Log, at: float, zeros: int) -> None:
    position = int(at * written.end)
    data = written.log[:position] + bytes(zeros)
    path = written.restore(data)
    log = written.recover()
    while data[position : position + 1] == written.log[position : position + 1] != b"":
        position += 1  # a zero that was cut off and stands there again
    end, offset = written.prefix(position)
    assert (log.recovery.state, log.log_end_offset) == ("online", offset)
    assert read_all(path) == written.log[:end]


@COMMON
@given(
    start=st.integers(0, 40),
    sectors=st.lists(st.booleans(), min_size=16, max_size=16),
)
def test_a_write_torn_by_sectors_yields_the_batches_before_it(
    written: Log, start: int, sectors: list[bool]
) -> None:
    """The last write reached the disk in any of its 512-byte sectors; the rest is as before."""
    n = len(written.ends) - 2 - start % 3
    first = written.ends[n] // UNIT * UNIT
    data = bytearray(written.log[: written.ends[n]] + bytes(4 * UNIT))
    whole = written.log[: written.end] + bytes(4 * UNIT)
    for k, arrived in enumerate(sectors):
        at = first + k * 512
        if arrived:
            data[at : at + 512] = whole[at : at + 512]
    path = written.restore(bytes(data[: len(data) // UNIT * UNIT]))
    log = written.recover()
    assert log.recovery.state == "online"
    assert log.log_end_offset >= written.offsets[n]
    assert read_all(path) == written.log[: written.prefix(log.active.length)[0]]  # type: ignore[union-attr]


@COMMON
@given(garbage=st.binary(min_size=1, max_size=9000), fill=st.integers(0, 3))
def test_rubbish_behind_the_end_is_cut(written: Log, garbage: bytes, fill: int) -> None:
    data = written.log[: written.end] + garbage * (1 + fill)
    path = written.restore(data)
    log = written.recover()
    assert log.recovery.state == "online"
    assert log.log_end_offset == written.offsets[-1]
    assert read_all(path) == written.log[: written.end]
    assert os.path.getsize(path / "00000000000000000000.log") in (written.end, len(data))


@COMMON
@given(epoch=st.integers(0, 5), offset=st.integers(0, 200))
def test_a_batch_with_another_epoch_or_offset_does_not_follow(
    written: Log, epoch: int, offset: int
) -> None:
    more = batch(offset, 3, epoch=epoch)
    path = written.restore(written.log[: written.end] + more)
    log = written.recover()
    fits = epoch == 0 and offset == written.offsets[-1]
    assert log.recovery.state == "online"
    assert log.log_end_offset == written.offsets[-1] + 3 * fits
    assert len(read_all(path)) == written.end + len(more) * fits
