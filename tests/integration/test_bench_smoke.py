"""Every benchmark runs at its smallest size, so that none can rot. No speed is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from shmbroker.perf import core
from shmbroker.perf.case import SMOKE, Bench, Case
from shmbroker.perf.cases import ALL
from shmbroker.perf.report import Limit, Row, shown, table
from shmbroker.perf.rounds import Plan, against_limit, percentile, why_thrown
from shmbroker.perf.values import ValueSpec, checksum_of

ROOT = Path(__file__).parents[2]


def _quiet(tmp_path: Path) -> Console:
    return Console(file=(tmp_path / "said").open("w"), width=200)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_the_smoke_size_of_each_case_runs_and_its_checksums_agree(
    case: Case, tmp_path: Path, isolated_env: dict[str, str]
) -> None:
    cores = os.sched_getaffinity(0)
    options = core.Options(
        directory=tmp_path / "bench", smoke=True, cases=(case.name,), json=tmp_path / "out.json"
    )
    console = _quiet(tmp_path)
    rows = core.run(options, console)
    console.file.close()
    assert rows
    said = (tmp_path / "said").read_text()
    assert all(row.values for row in rows), said
    assert os.sched_getaffinity(0) == cores
    assert list((tmp_path / "bench").iterdir()) == []
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["case"] for row in written["rows"]] == [row.case for row in rows]
    assert written["machine"]["file_system"]


def test_a_round_is_thrown_away_when_its_limit_moved_or_was_passed() -> None:
    assert why_thrown(80.0, 100.0, 100.0) is None
    assert why_thrown(80.0, 100.0, 81.0) is None
    assert "moved" in (why_thrown(10.0, 100.0, 80.0) or "")
    assert "120%" in (why_thrown(120.0, 100.0, 100.0) or "")


def test_rounds_that_were_thrown_away_are_tried_again() -> None:
    limits = iter([100.0, 50.0, 100.0, 100.0, 100.0, 100.0])
    values = iter([1.0, 60.0, 70.0, 80.0])  # the first is the warm-up
    found = against_limit(lambda: next(values), lambda: next(limits), Plan(2, 1))
    assert found.values == [70.0, 80.0]
    assert found.shares == [0.7, 0.8]
    assert len(found.thrown) == 1
    assert found.steady


def test_a_series_without_a_valid_round_says_so() -> None:
    found = against_limit(lambda: 2.0, lambda: 1.0, Plan(rounds=2, warmups=0, tries=2))
    assert not found.steady
    assert found.values == [2.0] * 4


def test_values_are_distinct_of_their_size_and_the_same_when_shuffled() -> None:
    plain = ValueSpec(3000).make()
    assert len(set(plain)) == 3000
    assert {len(value) for value in plain} == {100}
    assert plain == sorted(plain)
    shuffled = ValueSpec(3000, shuffled=True).make()
    assert shuffled != plain
    assert sorted(shuffled) == plain
    assert checksum_of([shuffled]) != checksum_of([plain])
    assert checksum_of([plain[:7], plain[7:]]) == checksum_of([plain])


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0], 0.99) == 1.0


def test_a_row_is_shown_in_units_for_people() -> None:
    row = Row("c", "list[bytes]", "records/s", (2e6,), Limit("bare", 4e9, "bytes/s"), 0.5)
    assert shown(row.median, row.unit) == "2.00 M/s"
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table([row]))
    console.file.close()
    text = console.export_text()
    assert "list[bytes]" in text
    assert "bare: 4,000 MB/s" in text


def test_a_case_that_lacks_disk_space_is_refused_by_name(
    tmp_path: Path, isolated_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_bench: Bench) -> list[Row]:
        raise AssertionError("it ran")

    huge = Case("huge", "more than there is", never, lambda _sizes: 1 << 60)
    monkeypatch.setattr(core, "ALL", (huge,))
    console = _quiet(tmp_path)
    rows = core.run(core.Options(directory=tmp_path / "bench", smoke=True), console)
    console.file.close()
    assert "--dir" in rows[0].note
    assert not rows[0].values


def test_an_unknown_case_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="idle"):
        core.chosen(["idel"])
    assert [case.name for case in core.chosen(["idle"])] == ["idle"]
    assert SMOKE.smoke


@pytest.mark.leaves_processes
def test_ctrl_c_ends_every_process_and_removes_the_data(
    tmp_path: Path, isolated_env: dict[str, str]
) -> None:
    program = [sys.executable, "-m", "shmbroker.perf", "core", "--case", "idle"]
    bench = subprocess.Popen(
        [*program, "--dir", str(tmp_path / "bench")],
        cwd=ROOT,
        env=isolated_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert bench.stdout is not None
    with bench.stdout:
        assert "idle" in bench.stdout.readline()  # it is at work
        bench.send_signal(signal.SIGINT)
        said = bench.stdout.read()
    assert bench.wait(40) == 130, said
    assert list((tmp_path / "bench").iterdir()) == []
