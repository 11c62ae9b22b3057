"""Copying a partition's files while its writer rolls, appends and retires."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from log_rig import TOPIC_ID, MakeRig, Rig, make_fixture, read_all  # noqa: F401

from shmbroker._core.batch import batch_headers
from shmbroker.errors import DamagedLog
from shmbroker.log import checkpoint
from shmbroker.log.backup import Progress, Source, copy_partition
from shmbroker.log.manifest import Journal, PartitionEntry
from shmbroker.log.partition import PartitionLog


def _source(rig: Rig) -> Source:
    return Source(
        str(rig.path), "t", TOPIC_ID, 0, rig.log.log_start_offset, rig.offset,
        rig.active.base_offset, rig.position, rig.log.leader_epoch, 256,
    )  # fmt: skip


def _filled(make: MakeRig) -> Rig:
    rig = make()
    for _ in range(4):
        rig.append(3, 3, 3)
        rig.append(3, 3, 3)
        rig.roll()
    rig.append(3, 3)
    return rig


def _copy(source: Source, target: Path, progress: Progress = lambda _n: None) -> PartitionEntry:
    target.mkdir(exist_ok=True)
    journal = Journal(str(target))
    try:
        return copy_partition(source, str(target), journal, progress)[0]
    finally:
        journal.close(done=False)


def _opened(rig: Rig, target: Path) -> PartitionLog:
    return PartitionLog.open(
        target / "t-0", TOPIC_ID, "t", 0, rig.settings, rig.io, write_reach_bytes=rig.reach
    )


def test_a_copy_ends_at_the_durable_end_and_opens_clean_under_a_new_epoch(
    make: MakeRig, tmp_path: Path
) -> None:
    rig = _filled(make)
    rig.log.producers.record(7, 0, 0, 3, rig.offset - 3, 1000)
    source = _source(rig)
    rig.append(3)  # behind the durable end that was read
    entry = _copy(source, tmp_path / "backup")
    assert (entry.log_start_offset, entry.end_offset) == (0, source.end_offset)
    expected = b"".join(data for base, at, data in rig.batches[:-1])
    log = _opened(rig, tmp_path / "backup")
    try:
        assert log.recovery.clean
        assert log.log_end_offset == source.end_offset
        assert log.leader_epoch > rig.log.leader_epoch
        assert log.end_offset_for_epoch(rig.log.leader_epoch) == (
            rig.log.leader_epoch, source.end_offset,
        )  # fmt: skip
    finally:
        log.close()
    assert read_all(tmp_path / "backup" / "t-0") == expected
    for suffix in (".index", ".timeindex"):
        assert (tmp_path / "backup" / "t-0" / f"{0:020}{suffix}").stat().st_size > 0


def test_segments_that_retention_takes_while_copying_leave_no_hole(
    make: MakeRig, tmp_path: Path
) -> None:
    rig = _filled(make)
    source = _source(rig)
    bases = [segment.base_offset for segment in rig.log.segments]
    copied = 0

    def retire(_count: int) -> None:
        nonlocal copied
        copied += 1
        if copied == 1:  # the first is copied: the first three go, one of them is used again
            os.rename(rig.file(bases[1]), rig.path / "recycled-0.log.free")
            rig.file(bases[0]).unlink()
            rig.file(bases[2]).unlink()

    entry = _copy(source, tmp_path / "backup", retire)
    assert (entry.log_start_offset, entry.end_offset) == (bases[3], source.end_offset)
    found = list(batch_headers(read_all(tmp_path / "backup" / "t-0", bases[3])))
    assert found[0].base_offset == bases[3]
    assert found[-1].last_offset + 1 == source.end_offset
    log = _opened(rig, tmp_path / "backup")
    assert (log.log_start_offset, log.recovery.state) == (bases[3], "online")
    log.close()


def test_a_partition_that_was_retired_whole_keeps_its_end(make: MakeRig, tmp_path: Path) -> None:
    rig = _filled(make)
    source = _source(rig)
    rig.roll()
    for segment in rig.log.segments[:-1]:
        os.unlink(segment.path)
    entry = _copy(source, tmp_path / "backup")
    assert (entry.log_start_offset, entry.end_offset) == (source.end_offset, source.end_offset)
    log = _opened(rig, tmp_path / "backup")
    try:
        assert log.log_end_offset == source.end_offset
        assert log.before_first_append().base_offset == source.end_offset
    finally:
        log.close()


def test_a_rolled_segment_that_is_not_cut_yet_is_copied_to_its_length(
    make: MakeRig, tmp_path: Path
) -> None:
    rig = make()
    rig.append(3, 3)
    end, length = rig.offset, rig.position
    rig.roll(seal=False)
    assert rig.file(0).stat().st_size > length
    rig.append(3)
    entry = _copy(_source(rig), tmp_path / "backup")
    assert entry.end_offset == end + 3
    assert (tmp_path / "backup" / "t-0" / rig.file(0).name).stat().st_size == length


def test_damage_in_the_source_is_named_and_not_copied(make: MakeRig, tmp_path: Path) -> None:
    rig = _filled(make)
    victim = rig.file(rig.log.segments[1].base_offset)
    data = bytearray(victim.read_bytes())
    data[-20] ^= 1
    victim.write_bytes(data)
    with pytest.raises(DamagedLog, match="log dump"):
        _copy(_source(rig), tmp_path / "backup")
    active = rig.file(rig.active.base_offset)
    with active.open("r+b") as file:
        file.seek(70)
        file.write(b"\xff\xff")
    victim.unlink()
    with pytest.raises(DamagedLog, match="below its durable end"):
        _copy(_source(rig), tmp_path / "again")


def test_what_an_interrupted_copy_left_behind_goes(make: MakeRig, tmp_path: Path) -> None:
    rig = _filled(make)
    _copy(_source(rig), tmp_path / "backup")
    first = rig.log.segments[0]
    os.unlink(first.path)
    entry = _copy(_source(rig), tmp_path / "backup")
    assert entry.log_start_offset == rig.log.segments[1].base_offset
    target = tmp_path / "backup" / "t-0"
    assert not (target / os.path.basename(first.path)).exists()
    point = checkpoint.load(str(target))
    assert point is not None
    assert point.clean
