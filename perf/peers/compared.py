"""Systems beside each other: which may be compared, what is a row of their table, who wins it.

Systems are only compared within one class of durability (`mode.Acks`). A `Line` is a row of a
table or a group of a picture: a `Cell` a system and mode, the best of them marked. The fastest
client of a system is its Python one where no other is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shmbroker.perf.devices.results import DeviceResults, PeerResults
from shmbroker.perf.report import Row

CLASSES: Final = {
    "durable": "Acknowledged when it outlives the host",
    "memory": "Acknowledged from memory: lost with the host",
    "none": "Not acknowledged: measured until another process has received all",
}
_PERCENTILES: Final = ("p99 us", "p99.9 us", "p99.99 us")


@dataclass(frozen=True, slots=True)
class System:
    """A system in one mode: a column."""

    peer: PeerResults
    mode: str  # case of the mode
    title: str  # with the mode where the system has two of a class
    words: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A system's figure in a line; `row` is where it comes from."""

    system: System
    value: float
    row: Row
    client: str
    wins: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was measured of several systems; cells in the order of the columns."""

    name: str
    title: str
    unit: str
    cells: tuple[Cell, ...]

    def of(self, system: System) -> Cell | None:
        """This system's."""
        return next((cell for cell in self.cells if cell.system == system), None)


def systems(device: DeviceResults, acks: str) -> list[System]:
    """Those with a mode of the class, in order."""
    found = []
    for peer in device.peers:
        modes = [mode for mode in peer.modes if mode["acks"] == acks]
        for mode in modes:
            name = mode["case"].partition("-")[2]
            title = f"{peer.title} ({name})" if len(modes) > 1 and name else peer.title
            found.append(System(peer, mode["case"], title, mode["words"]))
    return found


def readers(device: DeviceResults) -> list[System]:
    """One a system that keeps what it takes, for what is read once."""
    return [
        System(peer, "", peer.title, "")
        for peer in device.peers
        if any(row.case.startswith(("values-", "records-")) for row in peer.rows())
    ]


def lines(device: DeviceResults, acks: str) -> list[Line]:
    """Everything that the systems of a class can be compared by."""
    columns = systems(device, acks)
    found = []
    for size in _numbers(columns, "many"):
        one = f"{size:,} B"
        found.append(_line(columns, f"many-{size}", f"produce {one}, batched, Python"))
        found.append(_line(columns, f"each-{size}", f"produce {one}, one call a record, Python"))
        if any(column.peer.row(f"fastest-{size}-{column.mode}") for column in columns):
            title = f"produce {one}, its fastest client in any language"
            found.append(_line(columns, f"fastest-{size}", title, f"many-{size}"))
    for rate in _numbers(columns, "latency"):
        name, text = f"latency-{rate}", f"end to end at {rate:,} records/s"
        found.append(_line(columns, name, f"{text}, p50"))
        for share in _PERCENTILES:
            short = share.split()[0]
            found.append(_line(columns, name, f"{text}, {short}", more=share))
    found.append(_line(columns, "memory", "resident memory of the server, the most under load"))
    return [line for line in found if line.cells]


def read_lines(device: DeviceResults) -> list[Line]:
    """Catch-up reads, of all systems that keep what they take."""
    columns = readers(device)
    found = []
    for size in _numbers(columns, "values"):
        one = f"catch-up, {size:,} B"
        found.append(_line(columns, f"values-{size}", f"{one}, values, Python"))
        found.append(_line(columns, f"records-{size}", f"{one}, an object a record, Python"))
        if any(column.peer.row(f"fastest-read-{size}") for column in columns):
            title = f"{one}, its fastest client in any language"
            found.append(_line(columns, f"fastest-read-{size}", title, f"values-{size}",
                               f"records-{size}"))  # fmt: skip
    return [line for line in found if line.cells]


def _numbers(columns: Sequence[System], how: str) -> list[int]:
    """The sizes or rates that any of them was measured with."""
    found = set()
    for column in columns:
        for row in column.peer.rows():
            name, _, rest = row.case.partition("-")
            if name == how and row.values:
                found.add(int(rest.partition("-")[0]))
    return sorted(found)


def _line(columns: Sequence[System], name: str, title: str, *others: str, more: str = "") -> Line:
    """The best of rows `name` and `others` of each system; or what stands as `more` beside it."""
    cells = []
    for column in columns:
        suffix = f"-{column.mode}" if column.mode else ""
        rows = [column.peer.row(f"{each}{suffix}") for each in (name, *others)]
        found = [(value, row) for row in rows if row and (value := _value(row, more)) is not None]
        if found:
            value, row = max(found, key=lambda pair: pair[0])
            cells.append(Cell(column, value, row, _client(column.peer, row)))
    unit = "us" if more else cells[0].row.unit if cells else ""
    full = f"{name}-{more.split()[0]}" if more else name
    return Line(full, title, unit, _marked(cells, unit))


def _value(row: Row, more: str) -> float | None:
    return row.more.get(more) if more else row.median


def _client(peer: PeerResults, row: Row) -> str:
    return peer.clients["fastest" if row.case.startswith("fastest") else "python"]


def _marked(cells: list[Cell], unit: str) -> tuple[Cell, ...]:
    """A line of one cell has no winner."""
    best: Callable[..., float] = max if unit == "records/s" else min
    if len(cells) < 2:
        return tuple(cells)
    value = best(cell.value for cell in cells)
    return tuple(
        Cell(cell.system, cell.value, cell.row, cell.client, cell.value == value) for cell in cells
    )


__all__ = ["CLASSES", "Cell", "Line", "System", "lines", "read_lines", "readers", "systems"]
