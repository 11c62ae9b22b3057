"""The report of a run over devices, and two runs beside each other; from made-up results."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from shmbroker.cli.main import app
from shmbroker.perf import page, pictures
from shmbroker.perf.compare import Difference, compare, table
from shmbroker.perf.devices.figures import busy
from shmbroker.perf.devices.fio import BLOCKS, Job, command, jobs
from shmbroker.perf.devices.results import DeviceResults, Results, Unusable, load
from shmbroker.perf.devices.workloads import ACKS, PARTITIONS, VALUE_BYTES
from shmbroker.perf.report import Limit, Row


def made_up(speed: float = 1.0, rounds: int = 3) -> Results:
    def values(base: float) -> tuple[float, ...]:
        return tuple(base * speed * (1 + 0.01 * n) for n in range(rounds))

    devices = []
    for name, model, scale in (("Fast <b>", "", 10.0), ("HDD", "modelled: 150 MB/s", 1.0)):
        raw = [Row(job.case, job.figure, "bytes/s", values(scale * job.block_bytes * 100))
               for job in jobs(BLOCKS)]  # fmt: skip
        limit = Limit("bare writes", 1e8, "bytes/s")
        produce = [
            Row(f"produce-{size}-{acks}-{parts}", f"{size} {acks}", "records/s",
                values(1e8 * scale / size), limit, 0.5)
            for size in VALUE_BYTES for acks in ACKS for parts in PARTITIONS
        ]  # fmt: skip
        settings = [Row("settings-a", "1 KiB: depth 1, 4 MiB", "records/s", values(1e4))]
        one = [Row("durable-one", "one record", "us", values(100.0))]
        more = {"p90 us": 150.0, "p99 us": 900.0, "p99.9 us": 2_000.0, "max us": 9_000.0}
        latency = [Row(f"latency-{rate}-{acks}", f"{rate} {acks}", "us", values(80.0), more=more)
                   for acks in ("durable", "memory") for rate in (1_000, 10_000)]  # fmt: skip
        fans = [Row(f"fan-out-{n}", f"to {n}", "records/s", values(5e6 * n), more=busy(n + 2))
                for n in (1, 4)]  # fmt: skip
        growth = [Row(f"growth-{kind}-{n}", f"{n} {kind}", "records/s", values(5e6), limit, 0.7,
                      ">= 0.80", False)
                  for kind in ("partitions", "data", "read") for n in (1, 10)]  # fmt: skip
        device = DeviceResults(name, f"/{name}", model, line="ext4 on /dev/x")
        device.cases = {"fio": raw, "produce-100": produce, "settings": settings, "one": one,
                        "latency": latency, "fan-out": fans, "growth": growth}  # fmt: skip
        devices.append(device)
    command = ["shmbroker", "perf", "--ssd", "a b"]
    return Results("quick", devices, command, {}, "4 cores",
                   {"shmbroker": "0.1", "fio": "fio-3.33"}, finished_s=1.0)  # fmt: skip


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    results = made_up()
    results.save(tmp_path / "r.json")
    assert load(tmp_path / "r.json") == results
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 9, "kind": "devices"}'])
def test_a_file_that_holds_no_results_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(Unusable, match=r"r\.json"):
        load(path)


def test_the_page_needs_no_other_file_and_says_what_was_measured_how(tmp_path: Path) -> None:
    results = made_up()
    text = page.write(results, tmp_path).read_text()
    for said in ("4 cores", "fio-3.33", "shmbroker perf --ssd &#x27;a b&#x27;",
                 "modelled: 150 MB/s", "spread", "acks durable: on stable storage"):  # fmt: skip
        assert said in text
    assert "Fast &lt;b&gt;" in text
    assert "Fast <b>" not in text
    cores = len(os.sched_getaffinity(0))
    assert f"3 busy on {cores}" in text
    assert "0.70<br>&gt;= 0.80: <b>missed</b>" in text
    assert not re.search(r"""(src|href)=['"]?(?!['"]?data:)""", text)
    headings = re.findall(r"<h2>(HDD[^<]*)", text)
    assert headings == ["HDD (modelled)"]
    names = {name for name, *_ in pictures.ALL}
    assert {path.stem for path in tmp_path.glob("*.png")} == names
    assert text.count("data:image/png;base64,") == len(names)


def test_every_picture_has_axes_with_units_and_the_same_colour_for_the_same_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1]
    )
    for _, _, _, draw in pictures.ALL:
        assert draw(made_up())
    assert len(drawn) == len(pictures.ALL)
    for figure in drawn:
        labels = [axis.get_xlabel() + axis.get_ylabel() for axis in figure.axes]
        assert all(labels) or any(axis.get_title() for axis in figure.axes)
        assert any(
            unit in "".join(labels) for unit in ("MB/s", "%", "throughput", "us ", "records/s")
        )
        for axis in figure.axes:
            handles, names = axis.get_legend_handles_labels()
            for handle, name in zip(handles, names, strict=True):
                color = handle[0].get_facecolor() if hasattr(handle, "patches") else None
                found = to_hex(color) if color is not None else to_hex(handle.get_color())
                assert found == pictures.COLOURS["HDD" in name]
                if "HDD" in name:
                    assert "modelled" in name


def test_a_picture_without_anything_to_show_is_not_drawn(tmp_path: Path) -> None:
    results = made_up()
    for device in results.devices:
        device.cases = {"one": device.cases["one"]}
    text = page.write(results, tmp_path).read_text()
    assert "data:image" not in text
    assert not list(tmp_path.glob("*.png"))


def test_without_matplotlib_the_page_has_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    text = page.write(made_up(), tmp_path).read_text()
    assert "pip install &#x27;shmbroker[perf]&#x27;" in text
    assert "produce-100" in text


def verdicts(before: Results, after: Results) -> set[tuple[str, str]]:
    return {(one.case, one.verdict) for one in compare(before, after) if one.verdict != "same"}


def test_compare_finds_what_became_slower_in_either_unit() -> None:
    assert verdicts(made_up(), made_up()) == set()
    assert verdicts(made_up(), made_up(0.95)) == set()  # within what rounds scatter
    slow = dict(verdicts(made_up(), made_up(0.8)))
    assert slow["fio-random-read-4k"] == "slower"
    assert slow["durable-one"] == "faster"  # microseconds: less is better
    assert dict(verdicts(made_up(), made_up(1.3)))["durable-one"] == "slower"


def test_a_single_round_has_to_differ_by_more() -> None:
    assert verdicts(made_up(rounds=1), made_up(0.8, rounds=1)) == set()
    assert verdicts(made_up(rounds=1), made_up(0.6, rounds=1))


def test_what_is_gone_or_new_is_said() -> None:
    before, after = made_up(), made_up()
    del after.devices[0].cases["one"]
    found: list[Difference] = compare(before, after)
    assert [(one.case, one.verdict) for one in found if one.verdict != "same"] == [
        ("durable-one", "gone")
    ]
    assert ("durable-one", "new") in verdicts(after, before)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(found))
    console.file.close()
    assert "gone" in console.export_text()


def test_the_command_compare_ends_with_1_when_something_became_slower(tmp_path: Path) -> None:
    made_up().save(tmp_path / "a.json")
    made_up(0.5).save(tmp_path / "b.json")
    names = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert CliRunner().invoke(app, ["perf", "compare", names[0], names[0]]).exit_code == 0
    slower = CliRunner().invoke(app, ["perf", "compare", *names])
    assert slower.exit_code == 1
    assert "slower" in slower.output
    (tmp_path / "b.json").write_text("{}")
    broken = CliRunner().invoke(app, ["perf", "compare", *names])
    assert broken.exit_code == 1
    assert "not the results" in broken.output


def test_every_kind_of_raw_limit_is_asked_of_fio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmbroker.perf.devices.fio.require", lambda tool, _packages: tool)
    found = list(jobs(BLOCKS))
    assert len({job.case for job in found}) == len(found) == 7 * len(BLOCKS)
    words = command(Job("random", "write", 4096, sync=True), Path("/d/f"), 0.25, 1 << 20, True)
    for word in ("--rw=randwrite", "--bs=4096", "--direct=1", "--sync=dsync", "--runtime=250ms"):
        assert word in words
    buffered = command(Job("sequential", "read", 4096, direct=False), Path("/f"), 1, 1, True)
    assert "--direct=0" in buffered
