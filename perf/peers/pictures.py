"""The peers' pictures, as PNG: produce, sizes, latencies, catch-up, memory.

A system has one colour in all of them (`COLOURS`); classes of durability have panels of their own.
Bars lie, so that names are read without turning the head; axes are logarithmic and have units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from shmbroker.perf.devices.results import DeviceResults
from shmbroker.perf.drawing import bytes_of, figure_of, log_y, stacked
from shmbroker.perf.peers.compared import (
    CLASSES,
    Cell,
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
_GAP: Final = 0.6  # between systems, in bars
_ROOM: Final = 0.5  # of the longest bar, for the words behind it
_MARKS: Final = {"p50": "o", "p99": "D", "p99.9": "s", "max": ">"}
_STYLES: Final = ("-", "--", ":")  # of a system's modes
_SHORT: Final = {
    "durable": "outlives the host",
    "memory": "from memory",
    "none": "not acknowledged, received",
}
_HOW: Final = {  # how a row's name begins
    "fastest": "{client}",
    "many": "{client}, batched",
    "each": "{client}, one call a record",
    "values": "{client}, values",
    "records": "{client}, an object a record",
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
    _linear_x(axis, f"{text} (logarithmic)")


def _linear_x(axis: Any, text: str) -> None:
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="#dddddd", linewidth=0.8)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(text, fontsize=9)


def _tick(value: float, unit: str) -> str:
    for divisor, text in ((1e6, {"records/s": "M", "us": " s"}), (1e3, {"records/s": "k",
                          "us": " ms"})):  # fmt: skip
        if unit in text and value >= divisor:
            return f"{value / divisor:,.10g}{text[unit]}"
    return f"{value:,.10g}" + (" us" if unit == "us" else "")


def _bars(axis: Any, columns: Sequence[System], found: Sequence[Line], per: float) -> None:
    """A group a system, a bar a figure in the system's colour, paler from bar to bar; in `per`."""
    at, ticks, labels = 0.0, [], []
    for column in columns:
        there = _distinct(column, found)
        if not there:
            continue
        ticks.append(at + (len(there) - 1) / 2)
        labels.append(column.title)
        for n, (cell, unit) in enumerate(there):
            bar = axis.barh(at, cell.value / per, 0.86, color=_paler(column.peer.name, n))
            text = f"{said(cell.value, unit)}{' ★' if cell.wins else ''}  {_words(cell)}"
            axis.bar_label(bar, [text.rstrip()], fontsize=7, padding=3)
            at += 1
        at += _GAP
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.set_ylim(at - 0.5 - _GAP / 2, -0.5 - _GAP / 2)  # as high a bar in all panels


def _distinct(column: System, found: Sequence[Line]) -> list[tuple[Cell, str]]:
    """A system's figures with their units, each once: the fastest client may be the Python one."""
    there: dict[str, tuple[Cell, str]] = {}
    for line in found:
        if (cell := line.of(column)) is not None:
            there.setdefault(cell.row.case, (cell, line.unit))
    return list(there.values())


def _words(cell: Cell) -> str:
    """What a bar is, behind its figure."""
    how = max((name for name in _HOW if cell.row.case.startswith(name)), key=len, default="")
    return _HOW.get(how, "").format(client=cell.client)


def _paler(system: str, steps: int) -> Any:
    """The system's colour, mixed with white once a step."""
    from matplotlib.colors import to_rgb

    keep = _PALE**steps
    return tuple(1 - (1 - part) * keep for part in to_rgb(colour_of(system)))


def _inches(columns: Sequence[System], found: Sequence[Line]) -> float:
    """That `_bars` needs for these."""
    bars = [len(_distinct(column, found)) for column in columns]
    return sum(each + _GAP for each in bars if each) * _ROW


def _by_class(device: DeviceResults, names: Sequence[str]) -> list[tuple[str, list[Line]]]:
    """By class, the lines of these names that have figures, as many as there are."""
    made = []
    for acks in CLASSES:
        there = {line.name: line for line in lines(device, acks)}
        if found := [there[name] for name in names if name in there]:
            made.append((acks, found))
    return made


_Panel = tuple[str, Sequence[System], Sequence[Line]]  # title, columns, lines


def _barred(panels: Sequence[_Panel], text: str, log: bool = True, per: float = 1.0) -> bytes:
    """Panels above each other on one axis."""
    figure, axes = stacked([_inches(columns, found) for _, columns, found in panels])
    values = [cell.value / per for _, _, found in panels for line in found for cell in line.cells]
    for axis, (title, columns, found) in zip(axes, panels, strict=True):
        _bars(axis, columns, found, per)
        axis.set_title(title, fontsize=10, loc="left")
        if log:
            _log_x(axis, text, found[0].unit)
        else:
            _linear_x(axis, text)
        axis.tick_params(labelbottom=True)
    if log:  # from a whole decade on; room for the words behind the longest bar
        left = 10.0 ** math.floor(math.log10(min(values) / 1.5))
        axes[0].set_xlim(left, max(values) * (max(values) / left) ** _ROOM)
    else:
        axes[0].set_xlim(0, max(values) * (1 + _ROOM))
    return bytes_of(figure)


def produce(device: DeviceResults) -> bytes | None:
    """Records a second of the smallest values, by class."""
    there = _sizes(device)
    if not there:
        return None
    names = [f"{how}-{there[0]}" for how in ("fastest", "many", "each")]
    panels = [(CLASSES[acks], systems(device, acks), found)
              for acks, found in _by_class(device, names)]  # fmt: skip
    return _barred(panels, f"records of {there[0]} B a second")


def catch_up(device: DeviceResults) -> bytes | None:
    """Records a second that are read again."""
    found = sorted(read_lines(device), key=lambda line: not line.name.startswith("fastest"))
    if not found:
        return None
    size = found[0].name.rpartition("-")[2]
    panels = [("From the beginning of a topic that was just written", readers(device), found)]
    return _barred(panels, f"records of {size} B a second")


def memory(device: DeviceResults) -> bytes | None:
    """The most that the servers held."""
    panels = [(CLASSES[acks], systems(device, acks), found)
              for acks, found in _by_class(device, ["memory"])]  # fmt: skip
    if not panels:
        return None
    return _barred(panels, "MiB, resident under load", log=False, per=1 << 20)


def latency(device: DeviceResults) -> bytes | None:
    """p50 to the largest, of the lowest rate."""
    rates = sorted({int(line.name.split("-")[1]) for acks in CLASSES for line in
                    lines(device, acks) if line.name.startswith("latency-")})  # fmt: skip
    if not rates:
        return None
    panels = _by_class(device, [f"latency-{rates[0]}"])
    figure, axes = stacked([len(found[0].cells) * _ROW * 1.6 for _, found in panels])
    shown: set[str] = set()
    for axis, (acks, (line, *_)) in zip(axes, panels, strict=True):
        for at, cell in enumerate(line.cells):
            points = {"p50": cell.value} | {
                name.removesuffix(" us"): value for name, value in cell.row.more.items()
                if name.removesuffix(" us") in _MARKS
            }  # fmt: skip
            shown |= points.keys()
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
    _legend_of_marks(figure, shown)
    return bytes_of(figure)


def _legend_of_marks(figure: Any, shown: set[str]) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color="#444444", marker=mark, linestyle="", label=name)
             for name, mark in _MARKS.items() if name in shown]  # fmt: skip
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
        drawn_here: list[System] = []
        for column in systems(device, acks):
            points = [(int(line.name.rpartition("-")[2]), cell.value) for line in found
                      if (cell := line.of(column)) is not None]  # fmt: skip
            if points:
                before = [other.peer.name for other in drawn_here]
                style = _STYLES[before.count(column.peer.name) % len(_STYLES)]
                drawn_here.append(column)
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
    ("produce", "Produce", "The longer the better; ★ wins. Darkest: the system's fastest "
     "client in any language.", produce),
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
