"""Rows of figures: what one is, its table for a terminal, its JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: unit: (divisor, text after the number, decimals)
_SHOWN: Final = {
    "records/s": (1e6, " M/s", 2),
    "bytes/s": (1e6, " MB/s", 0),
    "bytes": (1 << 20, " MiB", 1),
    "us": (1.0, " us", 1),
    "s": (1.0, " s", 3),
    "commits/s": (1.0, "/s", 0),
    "cores": (0.01, " % of a core", 2),
}


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure is held against, of the same run."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: the values of its rounds, its limit, its target and whether that is met."""

    case: str
    figure: str
    unit: str
    values: tuple[float, ...]
    limit: Limit | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None  # None: only reported, or not valid
    thrown: tuple[str, ...] = ()
    note: str = ""
    more: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float | None:
        """Of the values; None when there are none."""
        return statistics.median(self.values) if self.values else None

    def to_json(self) -> dict[str, Any]:
        """Everything, and the median."""
        return dataclasses.asdict(self) | {"median": self.median}


def against(
    case: str,
    figure: str,
    rates: Sequence[float],
    others: Sequence[float],
    name: str,
    least: float | None,
    note: str,
    more: dict[str, float] | None = None,
) -> Row:
    """Rates (records/s) beside those of `name`, round by round: the ratio is the median of the
    rounds' own, since both sides of a round have the same minute of the machine."""
    ratio = statistics.median(rate / other for rate, other in zip(rates, others, strict=True))
    return Row(
        case=case,
        figure=figure,
        unit="records/s",
        values=tuple(rates),
        limit=Limit(name, statistics.median(others), "records/s"),
        ratio=ratio,
        target="" if least is None else f">= {least:.2f} of it",
        met=None if least is None else ratio >= least,
        note=note,
        more=more or {},
    )


def shown(value: float | None, unit: str) -> str:
    """A value for people."""
    if value is None:
        return "-"
    divisor, text, decimals = _SHOWN.get(unit, (1.0, f" {unit}", 2))
    return f"{value / divisor:,.{decimals}f}{text}"


def _spread(row: Row) -> str:
    if len(row.values) < 2:
        return ""
    low, high = min(row.values), max(row.values)
    return f"{shown(low, row.unit).split()[0]}-{shown(high, row.unit).split()[0]}"


def table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    made = Table(title="core figures: medians, spread, and the limit of the same run")
    for name in ("figure", "median", "spread", "limit", "ratio", "target", "met", "rounds", "note"):
        made.add_column(name, overflow="fold", justify="right" if name in ("median",) else "left")
    for row in rows:
        limit = row.limit and f"{row.limit.name}: {shown(row.limit.value, row.limit.unit)}"
        met = {True: "[green]yes[/]", False: "[red]NO[/]", None: ""}[row.met]
        rounds = f"{len(row.values)}" + (f" (+{len(row.thrown)} thrown)" if row.thrown else "")
        more = ", ".join(f"{name} {value:,.4g}" for name, value in row.more.items())
        made.add_row(
            escape(row.figure),
            shown(row.median, row.unit),
            _spread(row),
            limit or "",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.target,
            met,
            rounds,
            escape("; ".join(filter(None, [row.note, more]))),
        )
    return made


def print_rows(rows: Sequence[Row], machine: str, console: Console) -> None:
    """The machine, then the table."""
    console.print(machine, highlight=False, soft_wrap=True)
    console.print(table(rows))
    for row in rows:
        if row.thrown:
            reasons = ", ".join(row.thrown)
            text = f"{row.figure}: thrown away: {reasons}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)


def write_json(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Machine, command and every value."""
    content = {**about, "rows": [row.to_json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


__all__ = ["Limit", "Row", "against", "print_rows", "shown", "table", "write_json"]
