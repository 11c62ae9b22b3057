"""A partition's files over their life: written, rolled, read, retired, recycled, full."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import subprocess
import threading
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest
from aiokafka.record.memory_records import MemoryRecords as AiokafkaMemoryRecords
from log_rig import TOPIC_ID, MakeRig, Rig, batch, make_fixture, read_all  # noqa: F401

from shmbroker._core.batch import batch_headers
from shmbroker.errors import DiskFull, OffsetOutOfRange
from shmbroker.log import checkpoint, snapshot
from shmbroker.log.dump import dump
from shmbroker.log.iomode import IoMode, detect_io_mode
from shmbroker.log.partition import PartitionLog
from shmbroker.log.reader import SegmentReader, open_shared
from shmbroker.topic_settings import TopicSettings

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.record.memory_records import MemoryRecords as KafkaMemoryRecords

SMALL = TopicSettings(segment_bytes=64 << 10)
MODES = [IoMode("direct"), IoMode("buffered")]


def fill(rig: Rig, segments: int = 3, batches: int = 10) -> None:
    for _ in range(segments):
        for _ in range(batches):
            rig.append(5, size=1000)
        rig.roll()
    rig.append(5)


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", MODES, ids=lambda io: io.mode)
def test_segments_are_written_rolled_sealed_and_read_back(make: MakeRig, io: IoMode) -> None:
    rig = make(SMALL, io)
    fill(rig)
    assert rig.content() == rig.written()
    for segment in rig.log.segments[:-1]:
        assert os.path.getsize(segment.path) == segment.size
    rig.close()
    log = rig.open()
    assert log.recovery.clean
    assert rig.content() == rig.written()
    assert log.log_end_offset == rig.offset


def test_nothing_is_preallocated_before_the_first_append_then_in_steps(make: MakeRig) -> None:
    rig = make(TopicSettings(segment_bytes=16 << 20))
    assert rig.active.allocated_bytes == 0
    sizes = []
    while rig.active.allocated_bytes < 16 << 20:
        sizes.append(rig.log.extend(rig.active.allocated_bytes + 1) >> 20)
    assert sizes == [1, 2, 4, 8, 16]


def test_roll_uses_the_file_that_was_prepared(make: MakeRig) -> None:
    rig = make(SMALL)
    rig.append(3)
    rig.log.prepare_next()
    rig.log.prepare_next()
    assert rig.log.has_next
    inode = (rig.path / "next.log.free").stat().st_ino
    rig.roll()
    assert rig.file(3).stat().st_ino == inode
    assert not rig.log.has_next


def test_a_sealed_segment_parses_to_its_end_with_other_clients_classes(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig, segments=1)
    data = rig.file(0).read_bytes()
    for records in (AiokafkaMemoryRecords(data), KafkaMemoryRecords(data)):
        offsets = []
        while records.has_next():
            parsed = records.next_batch()
            assert parsed.validate_crc()
            offsets += [record.offset for record in parsed]
        assert offsets == list(range(50))


def test_the_snapshot_of_a_roll_holds_the_producers_as_of_it(make: MakeRig) -> None:
    rig = make(SMALL)
    rig.append(5, producer_id=7, producer_epoch=2, base_sequence=0)
    rig.log.producers.record(7, 2, 0, 5, 0, 1)
    rig.log.producers.record(7, 2, 5, 5, 5, 1)  # in the next segment already
    rig.roll()
    (entry,) = snapshot.decode(rig.file(5, ".snapshot").read_bytes())
    assert (entry.producer_id, entry.epoch, entry.last_sequence, entry.last_offset) == (7, 2, 4, 4)
    assert entry.offset_delta == 4


def test_a_checkpoint_leaves_out_what_is_not_durable_yet(make: MakeRig) -> None:
    rig = make(SMALL)
    rig.append(5)
    rig.log.producers.record(7, 0, 0, 5, 0, 1)
    rig.log.producers.record(7, 0, 5, 5, 5, 1)
    rig.checkpoint()
    point = checkpoint.load(str(rig.path))
    assert point is not None
    (producer,) = snapshot.parse_table(point.producers)
    assert producer.batches == [(0, 5, 0)]


# --- reading -------------------------------------------------------------------------------------


def test_fetch_begins_with_the_batch_of_the_offset_wherever_it_is(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    with SegmentReader(str(rig.path)) as reader:
        for offset in random.Random(1).sample(range(rig.offset), 60):
            data = reader.fetch(offset, 3000)
            first = next(batch_headers(data))
            assert first.base_offset <= offset <= first.last_offset
            assert len(data) <= max(3000, first.size)


def test_fetch_gives_a_batch_larger_than_asked_for(make: MakeRig) -> None:
    rig = make()
    rig.append(40, size=1000)
    rig.append(1)
    with SegmentReader(str(rig.path)) as reader:
        assert reader.fetch(3, 100) == rig.batches[0][2]
        assert reader.fetch(40, 100) == rig.batches[1][2]


def test_fetch_reads_nothing_at_or_past_the_limit(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig, segments=2)
    base, position, data = rig.batches[15]
    with SegmentReader(str(rig.path)) as reader:
        for limit, expected in ((position, 75), (position + len(data) - 1, 75)):
            offset = 0
            while data := reader.fetch(offset, 4096, (base, limit)):
                offset = list(batch_headers(data))[-1].last_offset + 1
            assert offset == expected
        assert reader.fetch(0, 4096, (0, 0)) == b""


def test_fetch_follows_a_segment_that_grows_and_rolls(make: MakeRig) -> None:
    rig = make(SMALL)
    with SegmentReader(str(rig.path)) as reader:
        assert reader.fetch(0) == b""
        rig.append(3)
        assert reader.fetch(0) == rig.batches[0][2]
        assert reader.fetch(3) == b""
        rig.append(3)
        assert reader.fetch(3) == rig.batches[1][2]
        rig.roll()
        assert reader.fetch(6) == b""
        rig.append(4)
        assert reader.fetch(6) == rig.batches[2][2]


def test_fetch_goes_past_what_was_allocated_when_the_segment_was_opened(make: MakeRig) -> None:
    rig = make(TopicSettings(segment_bytes=8 << 20))
    rig.append(3)
    with SegmentReader(str(rig.path)) as reader:
        assert reader.fetch(0) == rig.batches[0][2]
        for _ in range(30):
            rig.append(50, size=1000)
        assert rig.active.allocated_bytes > 1 << 20
        rig.roll()
        rig.append(3)
        offset = 3
        while data := reader.fetch(offset, 100_000, (rig.active.base_offset, rig.position)):
            offset = list(batch_headers(data))[-1].last_offset + 1
        assert offset == rig.offset


def test_a_clean_close_seals_what_the_engine_had_not_sealed_yet(make: MakeRig) -> None:
    rig = make(SMALL)
    rig.append(5, 5, size=1000)
    length = rig.position
    rig.roll(seal=False)
    rig.append(5)
    rig.close()
    assert rig.file(0).stat().st_size == length
    log = rig.open(begin=False)
    assert log.recovery.clean
    assert rig.content() == rig.written()


def test_fetch_below_the_first_segment_says_so(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    rig.log.set_settings(TopicSettings(segment_bytes=64 << 10, retention_bytes=0), rig.reach)
    assert rig.log.retire(0, rig.offset) == 150
    with (
        SegmentReader(str(rig.path)) as reader,
        pytest.raises(OffsetOutOfRange, match="starts at 150"),
    ):
        reader.fetch(10)


@pytest.mark.parametrize("damage", ["missing", "shifted", "zeros", "cut"])
def test_a_wrong_index_costs_time_and_no_data(make: MakeRig, damage: str) -> None:
    rig = make(SMALL)
    fill(rig, segments=1, batches=12)
    path = rig.file(0, ".index")
    data = path.read_bytes()
    assert len(data) >= 16
    if damage == "missing":
        path.unlink()
    elif damage == "shifted":
        path.write_bytes(
            b"".join(
                data[n : n + 4]
                + (int.from_bytes(data[n + 4 : n + 8], "big") + 7).to_bytes(4, "big")
                for n in range(0, len(data), 8)
            )
        )
    elif damage == "zeros":
        path.write_bytes(data + bytes(64))
    else:
        path.write_bytes(data[:-3])
    with SegmentReader(str(rig.path)) as reader:
        for offset in range(0, 60, 7):
            first = next(batch_headers(reader.fetch(offset, 2000)))
            assert first.base_offset <= offset <= first.last_offset


def test_offset_for_time_finds_the_first_batch_that_is_young_enough(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    for offset in (0, 3, 49, 50, 77, 154):
        found = rig.log.offset_for_time(1000 + offset)
        assert found is not None
        assert found[0] <= offset <= found[0] + 4
    assert rig.log.offset_for_time(5000) is None
    assert rig.log.offset_for_time(0) == (0, 1004)


# --- checkpoints that another thread waits for ----------------------------------------------------


def test_a_roll_does_not_wait_for_a_checkpoint_that_is_slow(
    make: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes its time over one sync must not hold up the flushers of any partition."""
    rig = make(SMALL)
    rig.append(10)
    rig.log.prepare_next()
    reached, go_on = threading.Event(), threading.Event()
    sync = os.fsync

    def slow(fd: int) -> None:
        if threading.current_thread().name == "checkpoints":
            reached.set()
            assert go_on.wait(40)
        sync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    pending = rig.log.begin_checkpoint(rig.offset, rig.position)
    assert pending is not None
    thread = threading.Thread(target=pending.run, name="checkpoints")
    thread.start()
    assert reached.wait(40)
    length = rig.position
    rig.log.roll(rig.offset)
    assert rig.log.retire(1 << 50, rig.offset) is None, "nor does retention wait: it comes again"
    assert not rig.log.settled
    go_on.set()
    rig.log.seal(rig.log.sealing[0], length, 1009)  # this does, since it writes a newer one
    thread.join()
    assert rig.log.settled
    point = checkpoint.load(str(rig.path))
    assert point is not None
    assert (point.segment, point.file_position) == (rig.offset, 0), "the newer one is not undone"


def test_a_checkpoint_that_failed_is_told_of_and_its_indexes_are_synced_again(
    make: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make(SMALL)
    rig.append(10)
    rig.log.add_index_entries(0, struct.pack("=3q", 9, 0, 1009))
    before = checkpoint.load(str(rig.path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", Mock(side_effect=OSError(errno.EIO, "the disk is broken")))
        pending = rig.log.begin_checkpoint(rig.offset, rig.position)
        assert pending is not None
        pending.run()
        with pytest.raises(OSError, match="broken"):
            rig.log.settle()
    assert checkpoint.load(str(rig.path)) == before
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd))
    )
    rig.checkpoint()
    assert any(path.endswith(".index") for path in synced)


# --- retention and recycling ---------------------------------------------------------------------


def test_retention_moves_the_log_start_before_files_go(make: MakeRig, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    rig = make(SMALL)
    fill(rig)
    rig.log.set_settings(TopicSettings(segment_bytes=64 << 10, retention_ms=1000), rig.reach)

    def stop(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("shmbroker.log.partition.retire", stop)
        told: list[int] = []  # as readers are, who else would look for a file that is gone
        with pytest.raises(RuntimeError):
            rig.log.retire(1000 + 99 + 1001, rig.offset, told.append)
    assert told == [100]
    rig.crash()
    log = rig.open()
    assert log.log_start_offset == 100
    log.retire(0, rig.offset)
    assert [s.base_offset for s in log.segments] == [100, 150]
    assert not rig.file(0, ".index").exists()


def test_delete_records_hides_at_once_and_segments_go_with_the_next_retire(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    rig.checkpoint()
    assert rig.log.delete_records(60, rig.offset) == 60
    assert rig.log.delete_records(10, rig.offset) == 60
    with pytest.raises(OffsetOutOfRange):
        rig.log.delete_records(rig.offset + 1, rig.offset)
    assert checkpoint.load(str(rig.path)).log_start_offset == 60  # type: ignore[union-attr]
    assert rig.log.retire(0, rig.offset) is None  # the start does not move again
    assert [s.base_offset for s in rig.log.segments] == [50, 100, 150]


def test_a_longer_reach_of_a_write_is_durable_before_the_first_such_write(make: MakeRig) -> None:
    """Recovery must not take the torn end of a larger batch for damage."""
    rig = make(SMALL)
    fill(rig)
    rig.checkpoint()
    before = checkpoint.load(str(rig.path))
    assert before is not None
    rig.log.set_settings(SMALL, 4 * rig.reach)
    after = checkpoint.load(str(rig.path))
    assert after is not None
    assert after.write_reach_bytes == 4 * rig.reach
    assert after.durable_offset == before.durable_offset
    rig.log.set_settings(SMALL, rig.reach)  # what was written so far reaches as far as it did
    again = checkpoint.load(str(rig.path))
    assert again is not None
    assert again.write_reach_bytes == 4 * rig.reach


def test_a_retired_segment_becomes_the_next_one(make: MakeRig) -> None:
    rig = make(TopicSettings(segment_bytes=64 << 10, retention_bytes=0), IoMode("direct"))
    fill(rig)
    inodes = {rig.file(base).stat().st_ino for base in (0, 50)}
    rig.log.retire(0, rig.offset)
    assert len(list(rig.path.glob("recycled-*.log.free"))) == 2
    rig.roll()
    assert os.stat(rig.active.path).st_ino in inodes
    rig.append(5)
    assert read_all(rig.path, 150) == b"".join(data for _, _, data in rig.batches[30:])


def test_in_buffered_mode_nothing_is_recycled(make: MakeRig) -> None:
    rig = make(TopicSettings(segment_bytes=64 << 10, retention_bytes=0), IoMode("buffered"))
    fill(rig)
    rig.log.retire(0, rig.offset)
    assert list(rig.path.glob("recycled-*")) == []
    assert [s.base_offset for s in rig.log.segments] == [150]


def test_a_segment_that_is_read_is_unlinked_instead_and_read_to_its_end(make: MakeRig) -> None:
    rig = make(TopicSettings(segment_bytes=64 << 10, retention_bytes=0), IoMode("direct"))
    fill(rig)
    expected = rig.file(0).read_bytes()
    with SegmentReader(str(rig.path)) as reader:
        got = reader.fetch(0, 6000)
        rig.log.retire(0, rig.offset)
        assert "recycled" in str(list(rig.path.iterdir()))
        for _ in range(3):
            rig.roll()
            rig.append(9, size=1000)
        offset = 5 * len(list(batch_headers(got)))
        while offset < 50:
            data = reader.fetch(offset, 6000)
            got += data
            offset += 5 * len(list(batch_headers(data)))
        assert got == expected


def test_a_reader_that_locks_after_the_rename_lets_go(make: MakeRig, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    rig = make(TopicSettings(segment_bytes=64 << 10, retention_bytes=0), IoMode("direct"))
    fill(rig)
    path, lock = str(rig.file(0)), fcntl.flock

    def late(fd: int, how: int) -> None:
        if how == fcntl.LOCK_SH and rig.file(0).exists():
            monkeypatch.setattr(fcntl, "flock", lock)
            rig.log.retire(0, rig.offset)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert open_shared(path) == -1
    assert list(rig.path.glob("recycled-*"))


# --- the disk is full ----------------------------------------------------------------------------


def test_a_full_disk_is_a_typed_error_and_passes(make: MakeRig, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    rig = make()
    rig.append(3)
    before = rig.active.allocated_bytes

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shmbroker._core.scan.fallocate", full)
        with pytest.raises(DiskFull, match="goes on by itself") as caught:
            rig.log.extend(before + 1)
        assert caught.value.retriable
        with pytest.raises(DiskFull):
            rig.log.prepare_next()
        assert not rig.log.has_next
    assert rig.active.allocated_bytes == before
    assert rig.log.extend(before + 1) > before
    rig.append(3)
    assert rig.content() == rig.written()


@pytest.mark.root
def test_a_really_full_disk(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(mount)], check=True)
    try:
        rig = Rig(mount)
        assert rig.io.mode == "buffered"
        assert "tmpfs" in rig.io.reason
        rig.append(3)
        assert rig.active.allocated_bytes < 1 << 20  # a quarter of what is free at most
        with pytest.raises(DiskFull):
            rig.log.extend(8 << 20)
        rig.append(3)
        assert rig.content() == rig.written()
        (mount / "ballast").write_bytes(b"x" * (os.statvfs(mount).f_bavail * 4096))
        with pytest.raises(DiskFull):
            rig.checkpoint()
        (mount / "ballast").unlink()
        rig.close()
        assert rig.open().recovery.clean
        rig.crash()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_file_system_without_fallocate_gets_real_zeros(make: MakeRig, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("shmbroker._core.scan.fallocate", refuse)
    rig = make()
    rig.append(3)
    assert rig.active.allocated_bytes == 1 << 20
    assert os.stat(rig.active.path).st_blocks * 512 >= 1 << 20
    assert rig.content() == rig.written()


def test_the_io_mode_is_tried_and_leaves_nothing_behind(tmp_path: Path) -> None:
    io = detect_io_mode(str(tmp_path))
    assert io.unit >= 4096
    assert list(tmp_path.iterdir()) == []
    assert detect_io_mode("/dev/shm").mode == "buffered"


# --- dump ----------------------------------------------------------------------------------------


def test_dump_verifies_all_files_of_a_sound_partition(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    rig.close()
    items = list(dump(str(rig.path)))
    assert [i for i in items if i["kind"] == "problem"] == []
    assert sum(i["kind"] == "batch" for i in items) == len(rig.batches)
    assert {i["kind"] for i in items} >= {"checkpoint", "batch", "index", "timeindex", "end"}
    (point,) = dump(str(rig.path / "checkpoint"))
    assert point["topic_id"] == TOPIC_ID


def test_dump_names_what_is_wrong(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig)
    rig.crash()
    _, position, _ = rig.batches[3]
    with rig.file(0).open("r+b") as file:
        file.seek(position + 99)
        file.write(b"\xff")
    data = bytearray(rig.file(50, ".index").read_bytes())
    data[7] ^= 1
    rig.file(50, ".index").write_bytes(data)
    rig.file(50, ".snapshot").write_bytes(b"junk")
    problems = {i["file"][-12:]: i for i in dump(str(rig.path)) if i["kind"] == "problem"}
    assert problems["00000000.log"]["position"] == position
    assert "checksum" in problems["00000000.log"]["text"]
    assert "000050.index" in problems
    assert "cut off" in problems["050.snapshot"]["text"]


def test_dump_stops_at_the_durable_end(make: MakeRig) -> None:
    rig = make(SMALL)
    rig.append(3)
    durable = rig.position
    rig.append(3)
    items = list(dump(str(rig.file(0)), limit=durable))
    assert [i["kind"] for i in items] == ["batch", "end"]


def test_describe_names_every_segment(make: MakeRig) -> None:
    rig = make(SMALL)
    fill(rig, segments=1)
    told = rig.log.describe()
    assert [s["state"] for s in told["segments"]] == ["sealed", "active"]
    assert told["disk_bytes"] == rig.log.disk_bytes() >= sum(s["bytes"] for s in told["segments"])
    assert batch(0) != b""


def test_an_index_interval_of_zero_indexes_every_batch(make: MakeRig) -> None:
    rig = make(TopicSettings(segment_bytes=64 << 10, index_interval_bytes=0))
    rig.append(3, 3, 3, 3)
    rig.crash()
    log = PartitionLog.open(rig.path, TOPIC_ID, "t", 0, rig.settings, rig.io, write_reach_bytes=1)
    assert len(rig.file(0, ".index").read_bytes()) == 3 * 8
    log.close()
