"""The broker against what it set out to be, beside the best of its peers in the same run.

A goal is a factor between a figure of ours and the best of the others': those that sync for a
durable one, those on the network where the goal says so. A goal for which the run has no pair of
figures is left out; one that is missed says why (`reasons.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shmbroker.perf.devices.results import DeviceResults
from shmbroker.perf.peers import reasons
from shmbroker.perf.peers.compared import Cell, Line, lines, read_lines
from shmbroker.perf.peers.reasons import Missed

OURS: Final = "shmbroker"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, our figure, the best of the others and how many times better ours is."""

    text: str
    factor: float  # that was wanted
    ours: Cell
    best: Cell
    ratio: float
    unit: str
    why: str  # it is missed; "" where it is met

    @property
    def met(self) -> bool:
        """Whether it is at least the factor."""
        return self.ratio >= self.factor


@dataclass(frozen=True, slots=True)
class _Goal:
    text: str
    factor: float
    ours: tuple[str, str]  # class, or "read"; how the line's name begins
    theirs: tuple[str, str]
    why: Callable[[Missed], str]
    networked: bool = False


_GOALS: Final = (
    _Goal("durable produce, send_many, against the best durable peer's fastest client", 15.0,
          ("durable", "many-100"), ("durable", "fastest-100"), reasons.durable),
    _Goal("durable produce, send_many, against the fastest peer on the network that acknowledges "
          "from memory", 10.0, ("durable", "many-100"), ("memory", "fastest-100"),
          reasons.durable, True),
    _Goal("durable produce, send one by one, against the best durable peer's Python client", 3.0,
          ("durable", "each-100"), ("durable", "each-100"), reasons.durable),
    _Goal("end-to-end p50, from memory, against the best peer on the network", 20.0,
          ("memory", "latency-1000"), ("memory", "latency-1000"), reasons.latency, True),
    _Goal("catch-up of values against the best peer's fastest client", 10.0,
          ("read", "values-100"), ("read", "fastest-read-100"), reasons.read),
    _Goal("catch-up of record objects against the best peer's fastest client", 3.0,
          ("read", "records-100"), ("read", "fastest-read-100"), reasons.read),
    _Goal("resident memory against Kafka's", 5.0, ("durable", "memory"), ("durable", "memory"),
          reasons.memory),
)  # fmt: skip
_AGAINST: Final = {_GOALS[-1].text: "kafka"}


def verdicts(device: DeviceResults) -> list[Verdict]:
    """Of the goals that this device's figures can answer."""
    found = {acks: lines(device, acks) for acks in ("durable", "memory")}
    found["read"] = read_lines(device)
    made = (_verdict(goal, device, found) for goal in _GOALS)
    return [one for one in made if one is not None]


def _verdict(goal: _Goal, device: DeviceResults, found: dict[str, list[Line]]) -> Verdict | None:
    ours = _cells(found, goal.ours, lambda name: name == OURS)
    only = _AGAINST.get(goal.text)
    others = [
        cell
        for cell in _cells(found, goal.theirs, lambda name: name != OURS)
        if (cell.system.peer.networked or not goal.networked)
        and only in (None, cell.system.peer.name)
    ]
    if not ours or not others:
        return None
    unit = ours[0].row.unit
    if unit == "records/s":
        one, best = max(ours, key=_value), max(others, key=_value)
        ratio = one.value / best.value
    else:
        one, best = min(ours, key=_value), min(others, key=_value)
        ratio = best.value / one.value
    why = "" if ratio >= goal.factor else goal.why(Missed(device, one, best, goal.factor))
    return Verdict(goal.text, goal.factor, one, best, ratio, unit, why)


def _cells(
    found: dict[str, list[Line]], where: tuple[str, str], wanted: Callable[[str], bool]
) -> list[Cell]:
    """Of the first line of that name; where no system has another client, of its Python ones."""
    group, name = where
    names = [name, name.replace("fastest-read", "values").replace("fastest", "many")]
    for each in names:
        line = next((line for line in found[group] if line.name == each), None)
        if line is not None:
            return [cell for cell in line.cells if wanted(cell.system.peer.name)]
    return []


def _value(cell: Cell) -> float:
    return cell.value


__all__ = ["OURS", "Verdict", "verdicts"]
