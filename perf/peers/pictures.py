"""The peers' pictures, as PNG: produce, sizes, latencies, catch-up, memory.

A system has one colour in all of them (`COLOURS`); classes of durability have panels of their own.
Bars lie, so that names are read without turning the head; axes are logarithmic and have units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from shmbroker.perf.devices.results import DeviceResults
from shmbroker.perf.drawing import bytes_of, figure_of, log_y, stacked
from shmbroker.perf.peers.compared import (
    CLASSES,
    Line,
    System,
    lines,
    read_lines,
    readers,
    systems,
)
from shmbroker.perf.peers.units import said

#: By the name of the system; the Okabe-Ito palette, with black and grey.
COLOURS: Final = {
    "shmbroker": "#0072b2",
    "kafka": "#000000",
    "redis": "#d55e00",
    "nats": "#009e73",
    "rabbitmq": "#e69f00",
    "pyzmq": "#cc79a7",
    "mpqueue": "#999999",
    "iceoryx2": "#56b4e9",
}
_OTHER: Final = "#8c6d31"
_ROW: Final = 0.27  # inches of a bar
_PALE: Final = 0.45
_ROOM: Final = 0.45  # of the axis, in decades it has
_MARKS: Final = {"p50": "o", "p99": "D", "p99.9": "s", "max": ">"}
_STYLES: Final = ("-", "--", ":")  # of a system's modes
_SHORT: Final = {
    "durable": "outlives the host",
    "memory": "from memory",
    "none": "not acknowledged, received",
}
Picture = Callable[[DeviceResults], "bytes | None"]


def colour_of(system: str) -> str:
    """Of a system by its name."""
    return COLOURS.get(system, _OTHER)


def _log_x(axis: Any, text: str, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(numticks=7))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _at: _tick(value, unit)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="#dddddd", linewidth=0.8)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(f"{text} (logarithmic)", fontsize=9)


def _tick(value: float, unit: str) -> str:
    for divisor, text in ((1e6, {"records/s": "M", "us": " s"}), (1e3, {"records/s": "k",
                          "us": " ms"})):  # fmt: skip
        if unit in text and value >= divisor:
            return f"{value / divisor:,.10g}{text[unit]}"
    return f"{value:,.10g}" + (" us" if unit == "us" else "")


def _bars(axis: Any, columns: Sequence[System], found: Sequence[Line], names: Sequence[str]) -> int:
    """A group a system, a bar a line in the system's colour, paler from line to line."""
    at, ticks, labels, most = 0.0, [], [], 0.0
    for column in columns:
        cells = [(n, line.of(column)) for n, line in enumerate(found)]
        there = [(n, cell) for n, cell in cells if cell is not None]
        if not there:
            continue
        ticks.append(at + (len(there) - 1) / 2)
        labels.append(column.title)
        for n, cell in there:
            bar = axis.barh(at, cell.value, 0.86, color=colour_of(column.peer.name),
                            alpha=_PALE ** n, edgecolor="white")  # fmt: skip
            text = f"{said(cell.value, found[n].unit)}{' ★' if cell.wins else ''}"
            axis.bar_label(bar, [text + (f"  {names[n]}" if names[n] else "")], fontsize=7,
                           padding=3)  # fmt: skip
            most = max(most, cell.value)
            at += 1
        at += 0.6
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.invert_yaxis()
    return round(at)


def _inches(columns: Sequence[System], found: Sequence[Line]) -> float:
    """That `_bars` needs for these."""
    bars = sum(line.of(column) is not None for column in columns for line in found)
    return (bars + 0.6 * len(columns)) * _ROW


def _by_class(device: DeviceResults, names: Sequence[str]) -> list[tuple[str, list[Line]]]:
    """By class, the lines of these names that have figures, as many as there are."""
    made = []
    for acks in CLASSES:
        there = {line.name: line for line in lines(device, acks)}
        if found := [there[name] for name in names if name in there]:
            made.append((acks, found))
    return made


def _barred(
    panels: Sequence[tuple[str, Sequence[System], Sequence[Line]]],
    words: dict[str, str],
    text: str,
) -> bytes:
    """Panels above each other on one axis; `words` says what each line's bars are."""
    figure, axes = stacked([_inches(columns, found) for _, columns, found in panels])
    unit = panels[0][2][0].unit
    for axis, (title, columns, found) in zip(axes, panels, strict=True):
        _bars(axis, columns, found, [words.get(_how(line.name), "") for line in found])
        axis.set_title(title, fontsize=10, loc="left")
        _log_x(axis, text, unit)
        axis.tick_params(labelbottom=True)
    left, right = axes[0].get_xlim()  # room for the words behind the longest bar
    axes[0].set_xlim(left, right * (right / left) ** _ROOM)
    return bytes_of(figure)


def _how(name: str) -> str:
    """The workload of a line's name, without its number."""
    return name.rstrip("0123456789").rstrip("-")


def produce(device: DeviceResults) -> bytes | None:
    """Records a second of the smallest values, by class."""
    sizes = _sizes(device)
    if not sizes:
        return None
    names = [f"{how}-{sizes[0]}" for how in ("fastest", "many", "each")]
    panels = [(CLASSES[acks], systems(device, acks), found)
              for acks, found in _by_class(device, names)]  # fmt: skip
    words = {"fastest": "fastest client of all", "many": "Python, batched",
             "each": "Python, one call a record"}  # fmt: skip
    return _barred(panels, words, f"records of {sizes[0]} B a second")


def catch_up(device: DeviceResults) -> bytes | None:
    """Records a second that are read again."""
    found = [line for line in read_lines(device) if line.cells]
    if not found:
        return None
    words = {"values": "Python, values", "records": "Python, an object a record",
             "fastest-read": "fastest client of all"}  # fmt: skip
    size = found[0].name.rpartition("-")[2]
    panels = [("From the beginning of a topic that was just written", readers(device), found)]
    return _barred(panels, words, f"records of {size} B a second")


def memory(device: DeviceResults) -> bytes | None:
    """The most that the servers held."""
    panels = [(CLASSES[acks], systems(device, acks), found)
              for acks, found in _by_class(device, ["memory"])]  # fmt: skip
    return _barred(panels, {}, "resident memory under load, MiB") if panels else None


def latency(device: DeviceResults) -> bytes | None:
    """p50 to the largest, of the lowest rate."""
    rates = sorted({int(line.name.split("-")[1]) for acks in CLASSES for line in
                    lines(device, acks) if line.name.startswith("latency-")})  # fmt: skip
    if not rates:
        return None
    panels = _by_class(device, [f"latency-{rates[0]}"])
    figure, axes = stacked([len(found[0].cells) * _ROW * 1.6 for _, found in panels])
    for axis, (acks, (line, *_)) in zip(axes, panels, strict=True):
        for at, cell in enumerate(line.cells):
            points = {"p50": cell.value} | {
                name.removesuffix(" us"): value for name, value in cell.row.more.items()
                if name.removesuffix(" us") in _MARKS
            }  # fmt: skip
            colour = colour_of(cell.system.peer.name)
            axis.plot([min(points.values()), max(points.values())], [at, at], color=colour,
                      linewidth=2, alpha=_PALE)  # fmt: skip
            for name, value in points.items():
                axis.plot([value], [at], _MARKS[name], color=colour, markersize=6)
            text = said(cell.value, "us") + (" ★" if cell.wins else "")
            axis.annotate(text, (cell.value, at), xytext=(0, 6), textcoords="offset points",
                          fontsize=7, ha="center")  # fmt: skip
        axis.set_yticks(range(len(line.cells)), [c.system.title for c in line.cells], fontsize=8)
        axis.set_ylim(len(line.cells) - 0.5, -0.6)
        axis.set_title(CLASSES[acks], fontsize=10, loc="left")
        _log_x(axis, "from when a record was due until it was read", "us")
        axis.tick_params(labelbottom=True)
    _legend_of_marks(figure)
    return bytes_of(figure)


def _legend_of_marks(figure: Any) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color="#444444", marker=mark, linestyle="", label=name)
             for name, mark in _MARKS.items()]  # fmt: skip
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)


def sizes(device: DeviceResults) -> bytes | None:
    """MB/s of values by the size of one, by class; only where there is more than one size."""
    there = _sizes(device)
    if len(there) < 2:
        return None
    panels = _by_class(device, [f"many-{size}" for size in there])
    figure, axes = figure_of(len(panels))
    seen: dict[str, Any] = {}
    for axis, (acks, found) in zip(axes, panels, strict=True):
        for column in systems(device, acks):
            points = [(int(line.name.rpartition("-")[2]), cell.value) for line in found
                      if (cell := line.of(column)) is not None]  # fmt: skip
            if points:
                style = _STYLES[sum(column.peer.title == t.partition(" (")[0] for t in seen) % 3]
                rates = [rate * size / 1e6 for size, rate in points]
                (drawn,) = axis.plot([size for size, _ in points], rates, style, marker="o",
                                     markersize=4, color=colour_of(column.peer.name))  # fmt: skip
                seen.setdefault(column.title, drawn)
        axis.set_xscale("log", base=2)
        axis.set_xticks(there, [f"{size:,} B" for size in there], fontsize=8)
        axis.minorticks_off()
        axis.set_title(_SHORT[acks], fontsize=10)
        axis.set_xlabel("bytes a value (logarithmic)", fontsize=9)
    log_y(axes[0], "MB/s of values, batched, Python (logarithmic)")
    figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=4, frameon=False,
                  fontsize=8)  # fmt: skip
    return bytes_of(figure)


def _sizes(device: DeviceResults) -> list[int]:
    """Of values, for which something was produced."""
    return sorted({int(line.name.rpartition("-")[2]) for acks in CLASSES
                   for line in lines(device, acks) if line.name.startswith("many-")})  # fmt: skip


#: file name, title, what is seen, how it is drawn
ALL: Final[tuple[tuple[str, str, str, Picture], ...]] = (
    ("produce", "Produce", "The longer the better; ★ wins. Darkest: the fastest client in any "
     "language; then Python's, batched, and Python's with one call a record.", produce),
    ("latency", "End-to-end latency", "The further left the better; ★ has the lowest median, "
     "which is the figure. Open loop: a record that waits behind a stall is charged for it.",
     latency),
    ("catch-up", "Catch-up reads", "The longer the better; ★ wins.", catch_up),
    ("sizes", "By the size of a value", "The higher the better: bytes of values, batched, by the "
     "fastest Python client.", sizes),
    ("memory", "Resident memory", "The shorter the better; ★ wins. The server's processes, clients "
     "not among them; for shmbroker with all of its shared memory.", memory),
)  # fmt: skip

__all__ = ["ALL", "COLOURS", "colour_of"]
