"""Recovery tells a torn tail from damage, and does to the disk what it may: invariant 13."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from log_rig import REACH, TOPIC_ID, MakeRig, batch, make_fixture, read_all  # noqa: F401

from shmbroker._core.batch import batch_headers
from shmbroker.errors import (
    DamagedLog,
    DataDirVersion,
    PartitionOffline,
    PartitionReadOnly,
)
from shmbroker.log import checkpoint, dump, repair
from shmbroker.log.iomode import IoMode
from shmbroker.topic_settings import TopicSettings


def flip(path: Path, position: int, data: bytes | None = None) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        old = file.read(1)
        file.seek(position)
        file.write(data if data is not None else bytes([old[0] ^ 0x40]))


def tree(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_a_partition_that_was_never_written_opens_online_and_writes_nothing(make: MakeRig) -> None:
    rig = make(begin=False)
    assert (rig.log.recovery.state, rig.log.log_end_offset) == ("online", 0)
    assert rig.log.active is None
    assert list(rig.path.iterdir()) == []


def test_a_clean_close_is_opened_without_reading_the_log(make: MakeRig) -> None:
    rig = make()
    rig.append(3, 4, 5)
    rig.close()
    assert rig.file(0).stat().st_size == rig.position
    log = rig.open(begin=False)
    assert log.recovery.clean
    assert log.recovery.scanned_bytes == 0
    assert (log.log_end_offset, log.leader_epoch) == (12, 0)


def test_the_clean_marker_is_gone_before_the_first_append(make: MakeRig) -> None:
    rig = make()
    rig.append()
    rig.close()
    assert checkpoint.load(str(rig.path)).clean  # type: ignore[union-attr]
    rig.open(begin=False)
    assert checkpoint.load(str(rig.path)).clean  # type: ignore[union-attr]
    rig.log.before_first_append()
    assert not checkpoint.load(str(rig.path)).clean  # type: ignore[union-attr]


def test_recovery_finds_all_that_was_written_and_raises_the_epoch(make: MakeRig) -> None:
    rig = make()
    for n in range(1, 40):
        rig.append(n)
    rig.crash()
    log = rig.open()
    assert log.recovery.state == "online"
    assert not log.recovery.clean
    assert log.log_end_offset == sum(range(1, 40))
    assert log.leader_epoch == 1
    assert log.epoch_history == ((0, 0), (1, log.log_end_offset))
    assert rig.content() == rig.written()
    rig.append(7)
    rig.crash()
    log = rig.open()
    assert log.leader_epoch == 2
    assert rig.content() == rig.written()
    assert log.end_offset_for_epoch(0) == (0, sum(range(1, 40)))
    assert log.end_offset_for_epoch(1) == (1, sum(range(1, 40)) + 7)
    assert log.end_offset_for_epoch(9) == (-1, -1)


def test_with_nothing_to_cut_the_epoch_is_raised_on_disk_by_the_first_append(
    make: MakeRig,
) -> None:
    rig = make()
    rig.append(5)
    rig.crash()
    before = tree(rig.path)
    for _ in range(2):  # as often as it crashes before it appends
        log = rig.open(begin=False)
        assert (log.leader_epoch, log.log_end_offset) == (1, 5)
        assert tree(rig.path) == before
    log.before_first_append()
    point = checkpoint.load(str(rig.path))
    assert point is not None
    assert (point.leader_epoch, point.epochs, point.durable_offset) == (1, ((0, 0), (1, 5)), 5)


def test_recovery_reads_from_the_checkpoint_on_and_nothing_else(make: MakeRig) -> None:
    rig = make()
    for _ in range(50):
        rig.append(3, size=1000)
    rig.checkpoint()
    before = rig.position
    rig.append(2)
    rig.crash()
    flip(rig.file(0), before - 500)  # not read: below the checkpoint
    log = rig.open()
    assert log.recovery.state == "online"
    assert log.log_end_offset == 152
    assert log.recovery.scanned_bytes < 8192


def test_recovery_truncates_a_torn_tail(make: MakeRig) -> None:
    rig = make()
    for _ in range(10):
        rig.append(5, size=1000)
    whole, end = rig.position, rig.offset
    rig.append(5, 5, size=1000)
    rig.crash()
    flip(rig.file(0), whole + 700)  # the first of two batches; the second is valid
    log = rig.open(begin=False)
    assert log.recovery.state == "online"
    assert "torn write" in log.recovery.reason
    assert log.recovery.cut_bytes == rig.position - whole or log.recovery.cut_bytes > 5000
    assert (log.log_end_offset, rig.position) == (end, whole)
    assert rig.file(0).stat().st_size == whole
    log.before_first_append()
    log.extend(whole + 100_000)
    assert not any(rig.file(0).read_bytes()[whole:])  # what was cut reads as zeros


def test_damage_before_the_last_write_opens_read_only_and_changes_nothing(make: MakeRig) -> None:
    rig = make()
    for _ in range(40):
        rig.append(5, size=1000)
    rig.crash()
    base, position, _ = rig.batches[7]
    flip(rig.file(base), position + 300)
    before = tree(rig.path)
    log = rig.open()
    assert log.recovery.state == "readonly"
    assert f"byte {position}" in log.recovery.reason
    assert "checksum" in log.recovery.reason
    assert "further than one write" in log.recovery.reason
    assert log.log_end_offset == 35
    with pytest.raises(PartitionReadOnly, match="log repair"):
        log.before_first_append()
    assert log.retire(10**15, 35) is None
    log.close(35, position)
    assert tree(rig.path) == before


def test_a_file_that_ends_below_the_checkpoint_is_damage(make: MakeRig) -> None:
    rig = make()
    for _ in range(10):
        rig.append(5, size=1000)
    rig.checkpoint()
    rig.crash()
    base, position, _ = rig.batches[6]
    os.truncate(rig.file(base), position + 10)
    log = rig.open()
    assert log.recovery.state == "readonly"
    assert "were durable" in log.recovery.reason
    assert log.log_end_offset == 30


def test_a_missing_segment_is_damage(make: MakeRig) -> None:
    rig = make()
    rig.append(5)
    rig.roll()
    rig.append(5)
    rig.checkpoint()
    rig.crash()
    rig.file(5).unlink()
    log = rig.open()
    assert log.recovery.state == "readonly"
    assert "is missing" in log.recovery.reason
    assert log.log_end_offset == 5


def test_a_valid_batch_in_a_later_segment_makes_a_failure_damage(make: MakeRig) -> None:
    rig = make()
    for _ in range(3):
        rig.append(5)
    rig.roll(seal=False)
    rig.append(5)
    rig.crash()
    flip(rig.file(0), rig.batches[1][1] + 100)
    log = rig.open()
    assert log.recovery.state == "readonly"
    assert "later segment 00000000000000000015.log" in log.recovery.reason
    assert [s.base_offset for s in log.segments] == [0]


def test_a_torn_tail_before_a_named_but_unwritten_segment_is_cut_and_that_unlinked(
    make: MakeRig,
) -> None:
    rig = make()
    rig.append(5)
    end = rig.position
    rig.append(5)
    rig.roll(seal=False)
    rig.crash()
    flip(rig.file(0), end + 100)
    log = rig.open(begin=False)
    assert log.recovery.state == "online"
    assert log.log_end_offset == 5
    assert not rig.file(10).exists()


def test_recovery_goes_on_over_the_end_of_an_unsealed_segment(make: MakeRig) -> None:
    rig = make()
    rig.append(5, 6)
    length = rig.position
    rig.roll(seal=False)
    rig.append(7)
    rig.crash()
    log = rig.open()
    assert (log.recovery.state, log.log_end_offset) == ("online", 18)
    assert rig.file(0).stat().st_size == length  # the seal was made up for
    assert log.sealing == []
    assert rig.content() == rig.written()


@pytest.mark.parametrize("what", ["missing", "corrupt", "cut"])
def test_without_a_usable_checkpoint_the_whole_log_is_read(make: MakeRig, what: str) -> None:
    rig = make()
    rig.append(5, producer_id=9, producer_epoch=1, base_sequence=0)
    rig.roll()
    rig.append(6)
    rig.crash()
    path = rig.path / "checkpoint"
    if what == "missing":
        path.unlink()
    elif what == "corrupt":
        flip(path, 40)
    else:
        os.truncate(path, 30)
    log = rig.open()
    assert (log.recovery.state, log.log_end_offset) == ("online", 11)
    assert "the whole log was read" in log.recovery.reason
    assert (str(path) in log.recovery.reason) == (what != "missing")
    assert log.producers.check(9, 1, 0, 5) == ("duplicate", 0)
    assert rig.content() == rig.written()


def test_a_checkpoint_of_a_newer_version_is_refused(make: MakeRig, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    rig = make()
    rig.append()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", 7)
        rig.checkpoint()
    rig.crash()
    with pytest.raises(DataDirVersion, match="version 7"):
        rig.open()


def test_files_of_another_topic_are_refused(make: MakeRig) -> None:
    rig = make()
    rig.append()
    rig.checkpoint()
    rig.crash()
    point = checkpoint.load(str(rig.path))
    assert point is not None
    checkpoint.store(str(rig.path), checkpoint.replace(point, topic_id="another"))
    with pytest.raises(PartitionOffline, match=f"another, not {TOPIC_ID}"):
        rig.open()


# --- a killed writer is replaced ---------------------------------------------------------------


def test_known_durable_scans_exactly_there_and_changes_no_log(make: MakeRig) -> None:
    rig = make()
    rig.append(5, producer_id=4, producer_epoch=0, base_sequence=0)
    durable = rig.position
    rig.append(5)
    rig.crash()
    before = rig.file(0).read_bytes()
    log = rig.open(begin=False, known=(0, durable))
    assert log.recovery.state == "online"
    assert (log.log_end_offset, log.leader_epoch, log.active.length) == (5, 0, durable)  # type: ignore[union-attr]
    assert log.producers.check(4, 0, 0, 5) == ("duplicate", 0)
    assert rig.file(0).read_bytes() == before
    rig.open(begin=False, known=(0, durable + 400))  # a batch may go on in the ring
    assert rig.log.log_end_offset == 5


def test_known_durable_with_a_roll_under_way_keeps_the_rolled_segment_unsealed(
    make: MakeRig,
) -> None:
    rig = make()
    rig.append(5)
    durable = rig.position
    rig.roll(seal=False)
    rig.crash()
    log = rig.open(known=(0, durable))
    assert [s.base_offset for s in log.sealing] == [0]
    assert log.active is not None
    assert (log.active.base_offset, log.active.length) == (5, 0)
    log.seal(log.sealing[0], durable, 1004)
    assert rig.file(0).stat().st_size == durable
    assert checkpoint.load(str(rig.path)).segment == 5  # type: ignore[union-attr]


def test_known_durable_after_a_seal_is_where_the_checkpoint_says(make: MakeRig) -> None:
    rig = make()
    rig.append(5)
    durable = rig.position
    rig.roll()
    rig.crash()
    log = rig.open(known=(0, durable))
    assert (log.log_end_offset, log.active.base_offset) == (5, 5)  # type: ignore[union-attr]


def test_known_durable_that_the_file_does_not_reach_is_refused(make: MakeRig) -> None:
    rig = make()
    rig.append(5, 5)
    rig.crash()
    flip(rig.file(0), 100)
    with pytest.raises(DamagedLog, match="where the ring begins"):
        rig.open(known=(0, rig.position))


def test_known_durable_on_a_clean_partition_still_removes_the_marker(make: MakeRig) -> None:
    rig = make()
    rig.append(5)
    rig.close()
    rig.open(known=(0, rig.position))
    assert not checkpoint.load(str(rig.path)).clean  # type: ignore[union-attr]


# --- ghosts and stale bytes ----------------------------------------------------------------------


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "epoch rule alone"])
def test_a_batch_that_was_cut_never_comes_back(make: MakeRig, monkeypatch, cut: bool) -> None:  # type: ignore[no-untyped-def]
    rig = make()
    rig.append(3)
    torn = rig.position
    rig.append(3, 3, 3)  # one write of several batches, its first torn
    rig.crash()
    flip(rig.file(0), torn + 80)
    if not cut:  # the file keeps the later two, as a disk that lost the truncation would
        monkeypatch.setattr(
            "shmbroker.log.segment.Segment.cut",
            lambda self, length: setattr(self, "length", length),
        )
    rig.open()
    assert rig.offset == 3
    encoded = batch(3, 3, epoch=rig.log.leader_epoch)
    assert len(encoded) == len(rig.batches[1][2])
    if cut:
        rig.append(3)
    else:  # put it exactly over the torn one: what stands behind it would follow by offset
        with rig.file(0).open("r+b") as file:
            file.seek(torn)
            file.write(encoded)
    rig.crash()
    log = rig.open()
    assert log.recovery.state == "online"
    assert log.log_end_offset == 6
    epochs = [h.leader_epoch for h in batch_headers(read_all(rig.path)[: torn + len(encoded)])]
    assert epochs == [0, 1]


def test_stale_bytes_of_a_recycled_segment_are_never_taken_for_data(make: MakeRig) -> None:
    settings = TopicSettings(segment_bytes=64 << 10, retention_bytes=1)
    rig = make(settings, IoMode("direct"))
    for _ in range(4):
        for _ in range(11):
            rig.append(5, size=1000)
        rig.log.prepare_next()
        rig.roll()
        rig.log.retire(10**15, rig.offset)
    assert rig.log.describe()["recycled"] >= 1
    rig.append(2, size=1000)
    end, position = rig.offset, rig.position
    assert rig.file(rig.active.base_offset).stat().st_size > 50_000
    assert any(rig.file(rig.active.base_offset).read_bytes()[8192:])  # old batches are there
    assert list(batch_headers(read_all(rig.path, rig.log.log_start_offset)))[-1].last_offset == (
        end - 1
    )
    rig.crash()
    log = rig.open()
    assert (log.recovery.state, log.log_end_offset) == ("online", end)
    assert log.recovery.cut_bytes == 0
    assert log.active is not None
    assert log.active.length == position


# --- repair --------------------------------------------------------------------------------------


def test_repair_says_what_it_loses_and_then_cuts(make: MakeRig) -> None:
    rig = make()
    for _ in range(40):
        rig.append(5, size=1000)
    rig.crash()
    base, position, _ = rig.batches[7]
    flip(rig.file(base), position + 300)
    before = tree(rig.path)
    plan = repair.plan_repair(str(rig.path))
    assert tree(rig.path) == before
    assert plan.needed
    assert (plan.segment, plan.cut_position, plan.end_offset) == (0, position, 35)
    assert plan.lost_offsets == (35, 200)
    assert plan.lost_batches == 32  # the damaged one is not readable
    assert "loses offsets 35 to 199" in plan.describe()
    repair.execute(plan, TOPIC_ID, 0)
    log = rig.open()
    assert (log.recovery.state, log.log_end_offset, log.leader_epoch) == ("online", 35, 1)
    assert not repair.plan_repair(str(rig.path)).needed


def test_nothing_of_what_a_repair_cut_stays_behind_in_other_files(make: MakeRig) -> None:
    rig = make()
    for _ in range(20):
        rig.append(5, size=1000)
    rig.roll()
    for _ in range(40):
        rig.append(5, size=1000)
    rig.close()  # its clean close writes the last segment's indexes and a snapshot of its end
    base, position, _ = rig.batches[20]
    assert position == 0
    flip(rig.file(base), 100)
    repair.execute(repair.plan_repair(str(rig.path), whole=True), TOPIC_ID, 0)
    damaged = [found for found in dump.dump(str(rig.path)) if found.get("error")]
    assert damaged == []
    snapshots = [int(path.stem) for path in rig.path.glob("*.snapshot")]
    assert max(snapshots, default=0) <= 100
    assert (
        not rig.file(base, ".timeindex").exists() or not rig.file(base, ".timeindex").stat().st_size
    )


def test_repair_of_a_sound_partition_does_nothing(make: MakeRig) -> None:
    rig = make()
    rig.append(5)
    rig.crash()
    plan = repair.plan_repair(str(rig.path))
    assert not plan.needed
    before = tree(rig.path)
    repair.execute(plan, TOPIC_ID, 0)
    assert tree(rig.path) == before


def test_the_reach_of_the_writer_that_died_counts(make: MakeRig) -> None:
    rig = make(reach=64 << 10)
    for _ in range(10):
        rig.append(5, size=1000)
    rig.crash()
    flip(rig.file(0), rig.batches[3][1] + 100)  # 35 KiB before the end
    rig.reach = REACH
    assert rig.open().recovery.state == "online"
