"""Why a goal is missed: from made-up figures, one reason each."""

from __future__ import annotations

from html import escape

from shmbroker.perf.devices.results import DeviceResults, PeerResults
from shmbroker.perf.peers import tables
from shmbroker.perf.peers.goals import Verdict, verdicts
from shmbroker.perf.report import Row

NOTE = "1,000,000 values a round, until all are acknowledged"


def peer(name: str, **modes: list[Row]) -> PeerResults:
    said = [{"case": mode, "acks": mode, "words": "words"} for mode in modes]
    return PeerResults(name, name, {"python": "py", "fastest": "C"}, said, cases=dict(modes))


def rate(case: str, millions: float, note: str = NOTE) -> Row:
    return Row(case, case, "records/s", (millions * 1e6,), note=note)


def found(ours: dict[str, list[Row]], theirs: dict[str, list[Row]], *own: Row) -> list[Verdict]:
    device = DeviceResults("SSD", "/d", line="a disk", cases={"fio": list(own)})
    device.peers = [peer("shmbroker", **ours), peer("kafka", **theirs)]
    text = tables.part(device)
    every = verdicts(device)
    for one in every:
        assert bool(one.why) != one.met
        assert escape(one.why) in text
    return every


def why(ours: dict[str, list[Row]], theirs: dict[str, list[Row]], *own: Row) -> str:
    return found(ours, theirs, *own)[0].why


def test_a_goal_that_is_met_needs_no_reason() -> None:
    durable = {"durable": [rate("many-100-durable", 15)]}
    (one, *_) = found(durable, {"durable": [rate("many-100-durable", 1)]})
    assert (one.met, one.why) == (True, "")


def test_the_disk_is_named_where_memory_would_do_and_its_limit_is_said() -> None:
    ours = {"durable": [rate("many-100-durable", 1)], "memory": [rate("many-100-memory", 16)]}
    fio = Row("fio-sequential-write-1024k-sync", "w", "bytes/s", (500e6,))
    reads = Row("fio-sequential-read-1024k", "r", "bytes/s", (9e9,))
    said = why(ours, {"durable": [rate("many-100-durable", 1)]}, fio, reads)
    assert "The goal takes 15.00 M/s; ours is 1.00 M/s" in said
    assert "16.00 M/s: the difference is the disk's" in said
    assert "1,740 MB/s of log; this device takes at most 500 MB/s durably (fio), less" in said
    assert "longer effort" not in said


def test_the_disk_is_not_blamed_where_memory_is_too_slow_as_well() -> None:
    ours = {"durable": [rate("many-100-durable", 1)], "memory": [rate("many-100-memory", 2)]}
    said = why(ours, {"durable": [rate("many-100-durable", 1)]})
    assert "so the disk alone is not why" in said
    assert "fio" not in said


def test_a_round_that_is_too_short_to_judge_says_so() -> None:
    ours = {"durable": [rate("many-100-durable", 1, "20,000 values a round, until all")]}
    said = why(ours, {"durable": [rate("many-100-durable", 1)]})
    assert "A round lasts 20 ms" in said


def test_a_slow_p50_is_set_beside_the_other_mode_and_its_own_tail() -> None:
    def paced(mode: str, p50: float, p90: float) -> Row:
        return Row(f"latency-1000-{mode}", "l", "us", (p50,), more={"p90 us": p90})

    ours = {"memory": [paced("memory", 120.0, 900.0)]}
    said = why(ours, {"memory": [paced("memory", 1000.0, 1500.0)]})
    assert "The goal takes 50.0 us; ours is 120 us" in said
    assert "p90 is 8 times its p50: processes waited for cores" in said
    device = DeviceResults("SSD", "/d", line="a disk")
    device.peers = [peer("shmbroker", memory=[paced("memory", 120.0, 130.0)]),
                    peer("kafka", memory=[paced("memory", 1000.0, 1500.0)])]  # fmt: skip
    device.peers[0].modes.append({"case": "memory-spin", "acks": "memory", "words": "words"})
    device.peers[0].cases["memory-spin"] = [paced("memory-spin", 90.0, 95.0)]
    (one,) = verdicts(device)
    assert one.why.endswith("ours is 90.0 us. With processes asleep between records it is 120 us.")


def test_reads_and_memory_say_what_a_record_and_the_processes_cost() -> None:
    def read(millions: float) -> list[Row]:
        return [rate("values-100", millions), Row("memory-durable", "m", "bytes", (1e8,))]

    ours, theirs = {"durable": read(10)}, {"durable": read(2)}
    values, memory = found(ours, theirs)
    assert "takes 100 ns of one Python process" in values.why
    assert "the goal leaves 50 ns" in values.why
    assert "The goal takes 19 MiB; ours is 95 MiB" in memory.why
