"""Rounds, medians, and which rounds don't count.

A round is one run between two measurements of its limit. It is thrown away when these two differ
by 20 % or more (the machine changed underneath), or when its share of the limit passes 100 % (the
limit was measured too low), or when the run itself says why. What was thrown away is counted and
its reasons are shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

LIMIT_MOVES: Final = 0.20  # of the larger of the two


@dataclass(frozen=True, slots=True)
class Plan:
    """How often a case is run: `rounds` that count after `warmups` that don't.

    A round that was thrown away is tried again, up to `tries` tries a round.
    """

    rounds: int = 5
    warmups: int = 1
    tries: int = 3


@dataclass(slots=True)
class Series:
    """What the rounds gave; `limits[n]` is the mean of what stood around `values[n]`."""

    values: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    thrown: list[str] = field(default_factory=list)
    steady: bool = True  # False: no round was valid, and these are the invalid ones
    all_shares: list[float] = field(default_factory=list)  # of every round whose limit held still

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    @property
    def limit(self) -> float:
        """The median of the limits."""
        return statistics.median(self.limits)

    @property
    def shares(self) -> list[float]:
        """Value / limit, round by round."""
        return [value / limit for value, limit in zip(self.values, self.limits, strict=True)]


def why_thrown(value: float, before: float, after: float) -> str | None:
    """The reason why a round with these figures doesn't count; None: it counts."""
    moved = abs(before - after) / max(before, after)
    if moved >= LIMIT_MOVES:
        return f"the limit moved by {moved:.0%}"
    share = value / ((before + after) / 2)
    return f"{share:.0%} of the limit" if share > 1.0 else None


def against_limit(
    run: Callable[[], float],
    limit: Callable[[], float],
    plan: Plan,
    check: Callable[[], str | None] = lambda: None,
) -> Series:
    """Runs `run` between measurements of `limit`, in the same unit, until `plan` is fulfilled.

    `check` comes after each round and its limits: it raises when the result was wrong, and returns
    a reason when the round doesn't count. `steady` is False if none of them was valid.
    """
    for _ in range(plan.warmups):
        run()
        check()
    found, invalid = Series(), Series()
    for _ in range(plan.rounds * plan.tries):
        before, value, after = limit(), run(), limit()
        reason = check() or why_thrown(value, before, after)
        if abs(before - after) < LIMIT_MOVES * max(before, after):
            found.all_shares.append(value / ((before + after) / 2))
        into = found if reason is None else invalid
        into.values.append(value)
        into.limits.append((before + after) / 2)
        if reason is not None:
            found.thrown.append(reason)
        if len(found.values) == plan.rounds:
            break
    if found.values:
        return found
    return Series(invalid.values, invalid.limits, found.thrown, False, found.all_shares)


def repeat(run: Callable[[], float], plan: Plan) -> list[float]:
    """The values of `plan.rounds` runs after its warm-ups."""
    for _ in range(plan.warmups):
        run()
    return [run() for _ in range(plan.rounds)]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie; nearest rank, not interpolated."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


__all__ = ["Plan", "Series", "against_limit", "percentile", "repeat", "why_thrown"]
