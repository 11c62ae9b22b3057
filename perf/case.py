"""What a case is and what it gets: sizes, a directory, a say in the progress line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shmbroker.perf.broker import Broker
from shmbroker.perf.guard import DiskGuard, Killable
from shmbroker.perf.report import Row
from shmbroker.perf.rounds import Plan

_GB: Final = 10**9
RECORD_OVERHEAD: Final = 16  # bytes a record at most besides its value, batch headers shared out


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each case does."""

    plan: Plan = field(default_factory=Plan)
    values: int = 5_000_000  # of 100 B
    values_1k: int = 1_000_000
    raw_bytes: int = 256 << 20  # of one bare loop
    round_trips: int = 20_000
    durable_trips: int = 3_000
    many_partitions: int = 1_000
    data_bytes: int = 10 * _GB  # "with 10 GB of clean data"
    load_s: float = 3.0  # before everything is killed
    idle_s: float = 10.0
    smoke: bool = False


SMOKE: Final = Sizes(
    plan=Plan(rounds=1, warmups=0, tries=1),
    values=20_000,
    values_1k=2_000,
    raw_bytes=8 << 20,
    round_trips=200,
    durable_trips=50,
    many_partitions=20,
    data_bytes=20_000_000,
    load_s=0.2,
    idle_s=0.3,
    smoke=True,
)


class Bench:
    """One run: its directory, its sizes, and the brokers that its cases start."""

    def __init__(
        self, home: Path, sizes: Sizes, say: Callable[[str], None], guard: DiskGuard
    ) -> None:
        self.home = home
        self._guard = guard
        self.sizes = sizes
        self.say = say

    def broker(self, config: str = "") -> Broker:
        """A broker with a data directory of its own, up on entry, removed on exit."""
        return self._guard.add(Broker(self.home, config))

    def guard(self, server: Killable) -> None:
        """Another system's server, which is killed as a broker is when the disk gets full."""
        self._guard.add(server)

    def check(self) -> None:
        """Raises RuntimeError when that has happened."""
        if self._guard.tripped:
            raise RuntimeError("the disk is nearly full")


@dataclass(frozen=True, slots=True)
class Case:
    """One file of `cases/`: gives the rows of one line of the issue's table."""

    name: str
    about: str
    run: Callable[[Bench], list[Row]]
    disk_bytes: Callable[[Sizes], int]


def written(count: int, value_bytes: int) -> int:
    """About what so many records take on disk."""
    return count * (value_bytes + RECORD_OVERHEAD)


def most_rounds(sizes: Sizes) -> int:
    """Rounds that a case against a limit may run, with those that are thrown away."""
    return sizes.plan.warmups + sizes.plan.rounds * sizes.plan.tries


__all__ = ["SMOKE", "Bench", "Case", "Sizes", "most_rounds", "written"]
