"""The peers' part of the report, from made-up results: who is compared with whom, and who wins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shmbroker.perf import page
from shmbroker.perf.compare import compare
from shmbroker.perf.devices.results import DeviceResults, PeerResults, Results, load
from shmbroker.perf.peers import pictures, registry, tables
from shmbroker.perf.peers.compared import lines, read_lines, systems
from shmbroker.perf.peers.goals import verdicts
from shmbroker.perf.peers.units import said
from shmbroker.perf.report import Row

_CLASSES = ("durable", "memory", "none")


def system(name: str, speed: float, modes: tuple[str, ...], fastest: float = 0.0) -> PeerResults:
    """`speed`: thousands of records a second, and of latencies' inverse."""
    found = PeerResults(
        name,
        f"{name} <x>",
        {"python": "py", "fastest": "C client"} if fastest else {"python": "py"},
        [{"case": m, "acks": m.partition("-")[0], "words": f"words of {m}"} for m in modes],
        versions={name: "1.0"},
    )
    for mode in modes:
        rates = (speed * 1e3, speed * 1.1e3, speed * 1.2e3)
        rows = [Row(f"many-{size}-{mode}", "m", "records/s", rates) for size in (100, 1024)]
        rows.append(Row(f"each-100-{mode}", "e", "records/s", (speed * 500,)))
        rows.append(Row(f"latency-1000-{mode}", "l", "us", (1e5 / speed,),
                        more={"p99 us": 3e5 / speed, "max us": 1e6 / speed}))  # fmt: skip
        rows.append(Row(f"memory-{mode}", "r", "bytes", (1e9 / speed,)))
        if fastest:
            rows.append(Row(f"fastest-100-{mode}", "f", "records/s", (fastest * 1e3,)))
        found.cases[mode] = rows
    if "memory" in modes:
        rows = found.cases["memory"]
        rows.append(Row("values-100", "v", "records/s", (speed * 2e3,)))
        rows.append(Row("records-100", "o", "records/s", (speed * 1e3,)))
    return found


@pytest.fixture
def device() -> DeviceResults:
    found = DeviceResults("SSD", "/d", line="ext4 on /dev/x")
    found.peers = [
        system("shmbroker", 1000.0, _CLASSES),
        system("kafka", 50.0, ("durable", "memory"), fastest=80.0),
        system("redis", 100.0, ("memory", "memory-everysec")),
        system("pyzmq", 2000.0, ("none",)),
    ]
    found.peers[2].cases["memory"].append(
        Row("each-1-memory", "what failed", "", (), met=False, note="failed: <no luck>")
    )
    return found


def test_systems_are_compared_within_their_class_of_durability(device: DeviceResults) -> None:
    assert [s.peer.name for s in systems(device, "durable")] == ["shmbroker", "kafka"]
    titles = [s.title for s in systems(device, "memory")]
    assert titles == ["shmbroker <x>", "kafka <x>", "redis <x>", "redis <x> (everysec)"]
    for acks in _CLASSES:
        for line in lines(device, acks):
            assert {cell.system.mode.partition("-")[0] for cell in line.cells} == {acks}


def winners(device: DeviceResults, acks: str) -> dict[str, list[str]]:
    return {
        line.title: [cell.system.peer.name for cell in line.cells if cell.wins]
        for line in lines(device, acks)
    }


def test_the_winner_of_each_row_is_marked_whoever_it_is(device: DeviceResults) -> None:
    assert set(map(tuple, winners(device, "none").values())) == {("pyzmq",)}
    found = winners(device, "memory")
    assert found["end to end at 1,000 records/s, p99"] == ["shmbroker"]  # less is better
    device.peers[0].cases["memory"][0] = Row("many-100-memory", "m", "records/s", (1.0,))
    changed = winners(device, "memory")
    assert changed["produce 100 B, batched, Python"] == ["redis", "redis"]  # two modes, equal
    assert changed["produce 100 B, its fastest client in any language"] == ["redis", "redis"]
    device.peers = device.peers[:1]
    assert set(map(tuple, winners(device, "durable").values())) == {()}  # alone, nobody wins


def test_the_fastest_client_is_the_python_one_where_none_is_faster(device: DeviceResults) -> None:
    line = next(line for line in lines(device, "durable") if line.name == "fastest-100")
    found = {cell.system.peer.name: (cell.value, cell.client) for cell in line.cells}
    assert found == {"shmbroker": (1.1e6, "py"), "kafka": (80e3, "C client")}
    device.peers[1] = system("kafka", 90.0, ("durable",), fastest=80.0)
    line = next(line for line in lines(device, "durable") if line.name == "fastest-100")
    assert line.cells[1].client == "py"


def test_goals_are_held_against_the_best_of_those_they_name(device: DeviceResults) -> None:
    found = {one.text.partition(",")[0] + f" {one.factor:g}": one for one in verdicts(device)}
    durable = found["durable produce 15"]
    assert (durable.best.value, durable.ratio, durable.met) == (80e3, 1.1e6 / 80e3, False)
    networked = found["durable produce 10"]
    assert networked.best.system.peer.name == "redis"
    assert found["durable produce 3"].met
    memory = found["resident memory against Kafka's 5"]
    assert memory.ratio == pytest.approx(20.0)
    device.peers[2].networked = False
    (other,) = [one for one in verdicts(device) if one.factor == 10 and "network" in one.text]
    assert other.best.system.peer.name == "kafka"
    device.peers = device.peers[:1]
    assert verdicts(device) == []


def test_the_tables_say_durability_in_words_and_why_a_figure_is_missing(
    device: DeviceResults,
) -> None:
    text = tables.part(device)
    for words in ("words of durable", "words of memory-everysec", "C client", "failed: &lt;no luck",
                  "redis 1.0", "missed", "kafka &lt;x&gt;"):  # fmt: skip
        assert words in text
    assert "<x>" not in text
    assert text.count("class='n win'") == sum(
        cell.wins for acks in _CLASSES for line in lines(device, acks) for cell in line.cells
    ) + sum(cell.wins for line in read_lines(device) for cell in line.cells)
    device.peers = []
    assert tables.part(device) == ""


def run_of(device: DeviceResults) -> Results:
    return Results("quick", [device], ["shmbroker", "perf"], {}, "4 cores", {}, finished_s=1.0)


def test_every_picture_of_the_peers_is_drawn_and_shows_a_system_in_its_one_colour(
    device: DeviceResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1]
    )
    page.write(run_of(device), tmp_path)
    names = {f"peers-{name}.png" for name, *_ in pictures.ALL}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    assert len(drawn) == len(names)
    for figure in drawn:
        for axis in figure.axes:
            assert axis.get_xlabel()
            if axis.get_ylabel() or (axis is not figure.axes[0] and figure.axes[0].get_ylabel()):
                continue  # a system is a line there, named in the legend
            ticks = zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
            labels = {round(at, 2): label.get_text() for at, label in ticks}
            for line in axis.lines:
                if len(line.get_ydata()) == 1 and (round(line.get_ydata()[0], 2)) in labels:
                    name = labels[round(line.get_ydata()[0], 2)].partition(" ")[0]
                    assert to_hex(line.get_color()) == pictures.COLOURS[name]
            bars = [bar for box in axis.containers for bar in box]
            first = {name.partition(" ")[0]: at for at, name in labels.items()}
            for name, at in first.items():
                near = [b for b in bars if abs(b.get_y() + b.get_height() / 2 - at) <= 1.01]
                if near:
                    dark = min(near, key=lambda bar: sum(bar.get_facecolor()[:3]))
                    assert to_hex(dark.get_facecolor()) == pictures.COLOURS[name]
        for legend in figure.legends:
            for text, handle in zip(legend.get_texts(), legend.get_lines(), strict=True):
                name = text.get_text().partition(" ")[0]
                if name in pictures.COLOURS:
                    assert to_hex(handle.get_color()) == pictures.COLOURS[name]


def test_no_words_of_a_bar_run_into_the_edge_or_each_other(device: DeviceResults) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kept: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        save = Figure.savefig
        patch.setattr(
            Figure, "savefig", lambda self, *a, **k: (kept.append(self), save(self, *a, **k))[1]
        )
        assert pictures.produce(device)
        assert pictures.catch_up(device)
        assert pictures.memory(device)
    for figure in kept:
        renderer = FigureCanvasAgg(figure).get_renderer()
        for axis in figure.axes:
            boxes = [text.get_window_extent(renderer) for text in axis.texts if text.get_text()]
            assert all(box.x1 <= figure.bbox.x1 for box in boxes)
            for n, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[n + 1 :])


def test_every_system_has_a_colour_of_its_own() -> None:
    assert len(set(pictures.COLOURS.values())) == len(pictures.COLOURS)
    assert {peer.name for peer in registry.ALL} <= set(pictures.COLOURS)


def test_systems_come_back_from_the_file_and_are_compared(
    device: DeviceResults, tmp_path: Path
) -> None:
    results = run_of(device)
    results.save(tmp_path / "r.json")
    assert load(tmp_path / "r.json") == results
    slower = load(tmp_path / "r.json")
    slower.devices[0].peers[1] = system("kafka", 20.0, ("durable", "memory"), fastest=80.0)
    found = {(one.device, one.case, one.verdict) for one in compare(results, slower)}
    assert ("SSD: kafka <x>", "many-100-durable", "slower") in found
    assert ("SSD: redis <x>", "many-100-memory", "same") in found
    assert ("SSD: kafka <x>", "fastest-100-durable", "same") in found


def test_results_without_peers_are_still_read(device: DeviceResults, tmp_path: Path) -> None:
    device.peers = []
    results = run_of(device)
    path = tmp_path / "r.json"
    results.save(path)
    path.write_text(re.sub(r',\s*"peers": \[\]', "", path.read_text()))
    assert "peers" not in path.read_text()
    assert load(path) == results


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12_345_678.0, "records/s", "12.35 M/s"),
        (45_678.0, "records/s", "46 k/s"),
        (987.4, "records/s", "987 /s"),
        (4.25, "us", "4.2 us"),
        (4250.0, "us", "4.2 ms"),
        (3e6, "us", "3.00 s"),
        (200 << 20, "bytes", "200 MiB"),
    ],
)
def test_figures_are_said_in_the_unit_of_their_size(value: float, unit: str, text: str) -> None:
    assert said(value, unit) == text
