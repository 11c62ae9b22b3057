"""Two runs beside each other: what became slower, and what became faster.

A row counts as changed when the medians differ by more than `THRESHOLD` and the rounds of the two
don't overlap; with a single round on a side, by more than `THRESHOLD_ALONE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from rich.markup import escape
from rich.table import Table

from shmbroker.perf.devices.results import Results
from shmbroker.perf.report import Row, shown

THRESHOLD: Final = 0.10
THRESHOLD_ALONE: Final = 0.30
Verdict = Literal["slower", "faster", "same", "gone", "new"]
_LESS_IS_BETTER: Final = frozenset({"us", "s", "bytes", "cores"})
_MARKS: Final = {"slower": "[red]slower[/]", "faster": "[green]faster[/]", "gone": "[red]gone[/]"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One row of both runs; `change` is of the speed: +0.1 is 10 % faster."""

    device: str
    case: str
    figure: str
    before: Row | None
    after: Row | None
    change: float | None
    verdict: Verdict


def compare(before: Results, after: Results) -> list[Difference]:
    """Row by row, by the names of device (and system) and case, in the order of `before`."""
    found = []
    old, new = _by_name(before), _by_name(after)
    for key in {**old, **new}:
        one, other = old.get(key), new.get(key)
        row = one or other
        assert row is not None
        if one is None or other is None:
            verdict: Verdict = "gone" if other is None else "new"
            found.append(Difference(*key, row.figure, one, other, None, verdict))
            continue
        change = _speed_ratio(one, other) - 1.0
        found.append(Difference(*key, row.figure, one, other, change, _verdict(one, other, change)))
    return found


def _by_name(results: Results) -> dict[tuple[str, str], Row]:
    return {
        (title, row.case): row for title, rows in results.sections() for row in rows if row.values
    }


def _speed_ratio(one: Row, other: Row) -> float:
    before, after = one.median or 0.0, other.median or 0.0
    if one.unit in _LESS_IS_BETTER:
        before, after = after, before
    return after / before if before else 1.0


def _verdict(one: Row, other: Row, change: float) -> Verdict:
    alone = min(len(one.values), len(other.values)) < 2
    if abs(change) <= (THRESHOLD_ALONE if alone else THRESHOLD):
        return "same"
    apart = max(one.values) < min(other.values) or max(other.values) < min(one.values)
    if not apart:
        return "same"
    return "faster" if change > 0 else "slower"


def table(found: list[Difference], everything: bool = False) -> Table:
    """What changed, for a terminal; `everything`: also what didn't."""
    made = Table(title="what changed between the two runs")
    for name in ("device", "figure", "before", "after", "speed", ""):
        made.add_column(name, overflow="fold")
    for one in found:
        if one.verdict == "same" and not everything:
            continue
        made.add_row(
            escape(one.device),
            escape(one.figure),
            *(shown(row.median, row.unit) if row else "-" for row in (one.before, one.after)),
            "" if one.change is None else f"{one.change:+.0%}",
            _MARKS.get(one.verdict, one.verdict),
        )
    return made


__all__ = ["Difference", "compare", "table"]
