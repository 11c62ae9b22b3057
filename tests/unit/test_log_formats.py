"""The small formats and the pure rules: indexes, checkpoint, snapshot, epochs, retention, space."""

from __future__ import annotations

import struct
from pathlib import Path

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbroker._core.scan import ProducerTable
from shmbroker.errors import DamagedLog, DataDirVersion
from shmbroker.log import allocate, checkpoint, epochs, index, names, retention, snapshot

MIB = 1 << 20


# --- indexes -------------------------------------------------------------------------------------


def packed(*entries: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("=qqq", *entry) for entry in entries)


def test_index_files_parse_as_kafkas_do(tmp_path: Path) -> None:
    written = index.SegmentIndex(str(tmp_path), 1000)
    written.append(packed((1009, 4096, 50), (1019, 8192, 50), (1029, 12288, 70)))
    written.sync()
    data = (tmp_path / "00000000000000001000.index").read_bytes()
    assert list(struct.iter_unpack(">ii", data)) == [(9, 4096), (19, 8192), (29, 12288)]
    data = (tmp_path / "00000000000000001000.timeindex").read_bytes()
    assert list(struct.iter_unpack(">qi", data)) == [(50, 9), (70, 29)]


def test_index_goes_back_to_a_checkpoint_and_on(tmp_path: Path) -> None:
    written = index.SegmentIndex(str(tmp_path), 0)
    written.append(packed((9, 4096, 50)))
    written.sync()
    sizes = written.sizes()
    assert sizes == (8, 12)
    written.append(packed((19, 8192, 60)))
    written.sync()
    again = index.SegmentIndex(str(tmp_path), 0)
    again.truncate(sizes)
    again.append(packed((15, 7000, 55)))
    again.sync()
    assert index.read_entries(again.offset_path, index.OFFSET_ENTRY) == [(9, 4096), (15, 7000)]
    assert index.read_entries(again.time_path, index.TIME_ENTRY) == [(50, 9), (55, 15)]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(0, 3000))
def test_index_look_ups_agree_with_a_linear_search(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], target: int
) -> None:
    directory = tmp_path_factory.mktemp("index")
    entries, offset = [], 99
    for n, step in enumerate(steps):
        offset += step
        entries.append((offset, 100 * n, 10 * offset))
    written = index.SegmentIndex(str(directory), 100)
    written.append(packed(*entries))
    written.sync()
    below = [(o, p) for o, p, _ in entries if o <= target]
    assert list(index.offset_positions(written.offset_path, 100, target)) == below[::-1]
    older = [o for o, _, t in entries if t < target]
    expected = older[-1] + 1 if older else 100
    assert index.offset_before_time(written.time_path, 100, target) == expected


def test_what_kafkas_index_cannot_say_is_left_out(tmp_path: Path) -> None:
    written = index.SegmentIndex(str(tmp_path), 0)
    written.append(packed((1 << 31, 4096, 50), (5, 1 << 31, 60)))
    written.sync()
    assert written.sizes() == (0, 0)


def test_names_round_trip_and_others_are_no_segments() -> None:
    assert names.file_name(42, ".log") == "00000000000000000042.log"
    assert names.parse("00000000000000000042.timeindex") == (42, ".timeindex")
    for other in ("42.log", "0000000000000000004x.log", "next.log.free", "recycled-0.log.free"):
        assert names.parse(other) is None
    assert names.split_directory("/data/my-topic-12") == ("my-topic", 12)


# --- checkpoint ----------------------------------------------------------------------------------


def point(**changes: object) -> checkpoint.Checkpoint:
    made = checkpoint.Checkpoint(
        topic_id="id",
        partition=3,
        clean=True,
        log_start_offset=5,
        durable_offset=77,
        segment=42,
        file_position=4097,
        leader_epoch=2,
        epochs=((0, 5), (2, 60)),
        write_reach_bytes=MIB,
        unit=4096,
        max_timestamp=99,
        sealing=((5, 1000),),
        index_bytes=(16, 24),
        producers=b"\0\1",
    )
    return checkpoint.replace(made, **changes)


def test_a_checkpoint_round_trips(tmp_path: Path) -> None:
    assert checkpoint.load(str(tmp_path)) is None
    checkpoint.store(str(tmp_path), point())
    assert checkpoint.load(str(tmp_path)) == point()
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


def test_every_flip_and_cut_of_a_checkpoint_is_noticed() -> None:
    data = checkpoint.encode(point())
    for n in range(len(data)):
        with pytest.raises(DamagedLog, match="checkpoint here is damaged"):
            checkpoint.decode(data[:n], "here")
        wrong = bytearray(data)
        wrong[n] ^= 1
        with pytest.raises(DamagedLog):
            checkpoint.decode(bytes(wrong), "here")


def test_a_newer_checkpoint_names_both_versions(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", 3)
        data = checkpoint.encode(point())
    with pytest.raises(DataDirVersion, match="version 3, this shmbroker knows 1"):
        checkpoint.decode(data, "here")


# --- producers -----------------------------------------------------------------------------------


def test_the_producer_table_follows_kafkas_rules() -> None:
    table = ProducerTable()
    assert table.check(1, 0, 500, 5) == ("ok", -1)  # unknown: any sequence
    table.record(1, 0, 0, 5, 100, 1)
    table.record(1, 0, 5, 5, 200, 2)
    assert table.check(1, 0, 10, 1) == ("ok", -1)
    assert table.check(1, 0, 0, 5) == ("duplicate", 100)
    assert table.check(1, 0, 5, 5) == ("duplicate", 200)
    assert table.check(1, 0, 11, 1)[0] == "out-of-order"
    assert table.check(1, 0, 5, 4)[0] == "out-of-order"  # the same place, another batch
    assert table.check(1, 1, 3, 1)[0] == "out-of-order"  # a higher epoch begins with 0
    assert table.check(1, 1, 0, 1)[0] == "ok"
    table.record(1, 1, 0, 1, 300, 3)
    assert table.check(1, 0, 10, 1)[0] == "fenced"
    table.record(2, 0, 2**31 - 3, 3, 400, 4)
    assert table.check(2, 0, 0, 1)[0] == "ok"  # sequences wrap


def test_batches_longer_ago_than_the_table_remembers_are_stale() -> None:
    table = ProducerTable()
    for n in range(70):
        table.record(1, 0, n, 1, n, n)
    assert table.check(1, 0, 6, 1) == ("duplicate", 6)
    assert table.check(1, 0, 5, 1)[0] == "stale"


def test_an_export_holds_the_table_as_of_an_offset() -> None:
    table = ProducerTable()
    for n in range(100):
        table.record(n % 7, 0, n // 7, 1, n, n)
    again = ProducerTable()
    again.load(table.export(50))
    for n in range(50):
        assert again.check(n % 7, 0, n // 7, 1) == ("duplicate", n)
    assert again.check(0, 0, 8, 1)[0] == "ok"
    for wrong in (b"", b"junk", table.export()[:-1], table.export() + b"x"):
        if wrong:
            with pytest.raises(ValueError):
                ProducerTable().load(wrong)


def test_idle_producers_are_forgotten() -> None:
    table = ProducerTable(expiration_ms=100)
    table.record(1, 0, 0, 1, 0, 1000)
    table.record(2, 0, 0, 1, 0, 1100)
    assert table.expire(1150) == 1
    assert table.check(2, 0, 0, 1)[0] == "duplicate"
    assert table.check(1, 0, 7, 1)[0] == "ok"


def test_a_full_table_drops_those_idle_longest() -> None:
    table = ProducerTable(max_count=100)
    now = 4_000_000_000_000
    for n in range(1000):
        table.record(n, 0, 0, 1, n, now + n)
    assert len(table) <= 100
    assert table.check(999, 0, 0, 1) == ("duplicate", 999)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**63 - 1),
            st.integers(0, 2**15 - 1),
            st.integers(0, 2**31 - 1),
            st.integers(1, 1000),
            st.integers(0, 2**40),
            st.integers(0, 2**40),
        ),
        unique_by=lambda t: t[0],
        max_size=30,
    )
)
def test_a_snapshot_round_trips_and_its_checksum_is_kafkas(
    producers: list[tuple[int, int, int, int, int, int]],
) -> None:
    table = ProducerTable(expiration_ms=2**60)
    for producer in producers:
        table.record(*producer)
    entries = snapshot.entries_of(table.export())
    data = snapshot.encode(entries)
    assert snapshot.decode(data) == entries
    assert {e.producer_id for e in entries} == {p[0] for p in producers}
    version, checksum, count = struct.unpack_from(">hIi", data)
    assert (version, count) == (1, len(producers))
    assert checksum == crc32c.crc32c(data[6:])
    assert len(data) == 10 + 46 * count
    for cut in range(0, len(data), 7):
        with pytest.raises(DamagedLog):
            snapshot.decode(data[:cut])


# --- rules ---------------------------------------------------------------------------------------


def test_epochs_answer_as_kafkas_cache_does() -> None:
    history = epochs.begin(epochs.begin(epochs.begin((), 0, 0), 2, 10), 5, 30)
    assert history == ((0, 0), (2, 10), (5, 30))
    assert epochs.end_offset(history, 0, 40) == (0, 10)
    assert epochs.end_offset(history, 1, 40) == (0, 10)
    assert epochs.end_offset(history, 2, 40) == (2, 30)
    assert epochs.end_offset(history, 4, 40) == (2, 30)
    assert epochs.end_offset(history, 5, 40) == (5, 40)
    assert epochs.end_offset(history, 6, 40) == (-1, -1)
    assert epochs.end_offset((), 0, 40) == (-1, -1)
    assert epochs.begin(history, 6, 30) == ((0, 0), (2, 10), (6, 30))
    assert epochs.retire(history, 15) == ((2, 15), (5, 30))
    assert epochs.cut(history, 30) == ((0, 0), (2, 10))


def facts(*timestamps: int, size: int = 100) -> list[retention.SegmentFacts]:
    return [
        retention.SegmentFacts(10 * n, 10 * n + 10, size, timestamp)
        for n, timestamp in enumerate(timestamps)
    ]


RULE = {
    "now_ms": 1000,
    "durable_offset": 10**9,
    "log_start_offset": 0,
    "retention_ms": -1,
    "retention_bytes": -1,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0),
        ({"retention_ms": 500}, 2),  # 499 < 500 at the second: older than 500 ms are 100 and 400
        ({"retention_ms": 600}, 1),  # 400 is exactly 600 old: it stays
        ({"retention_ms": 0}, 4),
        ({"retention_bytes": 450}, 0),  # 500 in all: without one it would be below
        ({"retention_bytes": 400}, 1),
        ({"retention_bytes": 0}, 4),  # never the active one
        ({"log_start_offset": 20}, 2),
        ({"log_start_offset": 19}, 1),
        ({"retention_ms": 0, "durable_offset": 15}, 1),
        ({"retention_bytes": 0, "retention_ms": 5000}, 4),
    ],
)
def test_retention_follows_kafkas_rules(changes: dict[str, int], expected: int) -> None:
    sealed = facts(100, 400, 900, 450)
    assert retention.count_to_retire(sealed, 100, **(RULE | changes)) == expected


def test_a_young_segment_keeps_the_older_ones_behind_it() -> None:
    rule = RULE | {"retention_ms": 500}
    assert retention.count_to_retire(facts(900, 100), 100, **rule) == 0


@given(
    allocated=st.integers(0, 600 * MIB),
    ahead=st.integers(1, 64 * MIB),
    free=st.integers(0, 10_000 * MIB),
    ceiling=st.integers(MIB, 512 * MIB),
)
def test_space_ahead_grows_within_its_bounds(
    allocated: int, ahead: int, free: int, ceiling: int
) -> None:
    needed = allocated + ahead
    end = allocate.next_end(allocated, needed, ceiling, free, 4096)
    least = allocate.align_up(needed, 4096)
    assert end >= least
    assert end % 4096 == 0
    if end > least:
        assert end - allocated <= max(free // 4, 0) + 4096
        assert end <= allocate.align_up(ceiling, 4096)
        assert end - allocated <= allocate.STEP_MAX_BYTES
