"""How much a run does: quick, ordinary or full; what each needs of time and space."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from shmbroker.perf import case
from shmbroker.perf.case import Sizes
from shmbroker.perf.devices import fio
from shmbroker.perf.devices.fio import Fio
from shmbroker.perf.rounds import Plan

_MIB: Final = 1 << 20
_START_S: Final = 0.5  # of a fio process
_CELLS: Final = 60  # rows of the broker's that send all values in each round
_GROWTH_STEPS: Final = 6
_PASSES: Final = 3  # over the bytes of a round: in, out again, and the bare writes beside it
_SLOW_BYTES_PER_S: Final = 100e6


@dataclass(frozen=True, slots=True)
class Effort:
    """One of the three."""

    name: str
    sizes: Sizes
    fio: Fio
    margin_bytes: int = 2 << 30
    settings: bool = True  # with the sweep over flush_depth and flush_max_bytes
    network: bool = True  # with remote clients and groups
    latency_s: float = 5.0  # of each rate
    rates: tuple[int, ...] = (1_000, 10_000, 100_000)  # records a second, of the latencies
    producers: tuple[int, ...] = (1, 2, 4)
    consumers: tuple[int, ...] = (1, 2, 4, 8, 16)
    partitions: tuple[int, ...] = (1, 10, 100, 1_000)
    growth_bytes: int = 5 * 10**9  # of data, or what the disk holds; 0: that case is left out

    @property
    def round_bytes(self) -> int:
        """Of values, in each round of a produce row."""
        return self.sizes.values * 100

    def seconds(self) -> float:
        """About how long a device takes, if it is as slow as a rotating one."""
        raw = sum(1 for _ in fio.jobs(self.fio.blocks)) * self.fio.rounds
        rounds = _CELLS * (self.sizes.plan.rounds + self.sizes.plan.warmups)
        moved = rounds * self.round_bytes * _PASSES
        paced = len(self.rates) * 2 + len(self.partitions) + 2 + _GROWTH_STEPS
        waits = paced * self.latency_s * (self.sizes.plan.rounds + self.sizes.plan.warmups)
        moved += self.growth_bytes
        return raw * (self.fio.seconds + _START_S) + moved / _SLOW_BYTES_PER_S + waits + 60.0


def _sizes(count: int, plan: Plan, raw_bytes: int, trips: int) -> Sizes:
    """The same bytes of values at each size of a value."""
    return Sizes(
        plan=plan,
        values=count,
        values_1k=count // 10,
        raw_bytes=raw_bytes,
        durable_trips=trips,
    )


QUICK: Final = Effort(
    "quick",
    _sizes(80_000, Plan(2, 1, 1), 8 * _MIB, 20),
    Fio(0.25, 1, 64 * _MIB),
    settings=False,
    network=False,
    latency_s=0.5,
    rates=(1_000, 10_000),
    producers=(1, 4),
    consumers=(1, 4),
    partitions=(1, 100),
    growth_bytes=0,
)
ORDINARY: Final = Effort(
    "ordinary", _sizes(1_000_000, Plan(3, 1, 2), 64 * _MIB, 200), Fio(1.5, 2, 256 * _MIB)
)
FULL: Final = Effort(
    "full",
    _sizes(5_000_000, Plan(5, 1, 3), 256 * _MIB, 1000),
    Fio(4.0, 3, 1024 * _MIB),
    latency_s=30.0,
    growth_bytes=50 * 10**9,
)

#: For the tests.
SMOKE: Final = Effort(
    "smoke",
    dataclasses.replace(case.SMOKE, values_1k=2_000),
    Fio(0.05, 1, _MIB, (4 * fio.KIB,)),
    margin_bytes=256 * _MIB,
    latency_s=0.2,
    rates=(500,),
    producers=(2,),
    consumers=(2,),
    partitions=(2,),
    growth_bytes=8_000_000,
)

__all__ = ["FULL", "ORDINARY", "QUICK", "SMOKE", "Effort"]
