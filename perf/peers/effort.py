"""How much the peers' half of a run does; what it needs of time and space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer
from shmbroker.perf.rounds import Plan

VALUE_BYTES: Final = (100, 1024, 16384)
_START_S: Final = 12.0  # a server up and down, and its clients
_WAYS: Final = 6  # all sizes batched, memory, one by one, and another language's client


@dataclass(frozen=True, slots=True)
class Effort:
    """One of the three."""

    name: str
    plan: Plan
    round_bytes: int  # of values, in each round of produce, whatever the size of one
    each: int  # values of a round one by one
    round_s: float  # a slow system sends less in a round, so that it ends after about this
    rates: tuple[int, ...]  # records a second, of the latencies
    latency_s: float
    sizes: tuple[int, ...] = VALUE_BYTES
    margin_bytes: int = 2 << 30

    def values(self, value_bytes: int) -> int:
        """Of a round."""
        return max(1, self.round_bytes // value_bytes)

    def seconds(self, peers: Iterable[type[Peer]]) -> float:
        """At most about so long on one device: every system as slow as it may be."""
        rounds = _WAYS * (self.plan.rounds + self.plan.warmups + 1) * self.round_s
        latency = len(self.rates) * (self.latency_s + 2.0)
        return sum((rounds + latency + _START_S) * len(peer.modes) for peer in peers)

    def disk_bytes(self, peer: type[Peer]) -> int:
        """Of one system's data while it is measured, all rounds of a mode."""
        if not peer.stores:
            return peer.fixed_bytes
        rounds = self.plan.rounds + self.plan.warmups + 1
        over = peer.record_overhead_bytes
        batched = sum(self.values(size) * (size + over) for size in self.sizes)
        again = 2 * self.values(self.sizes[0]) * (self.sizes[0] + over)  # memory, another client
        each = self.each * (self.sizes[0] + over)
        paced = sum(int(rate * self.latency_s) for rate in self.rates) * (self.sizes[0] + over)
        return rounds * (batched + again + each) + paced + peer.fixed_bytes


def read_mode(peer: type[Peer]) -> Mode | None:
    """The mode whose server is read from: what it holds is written fastest when memory suffices,
    and is read as fast."""
    stored = [mode for mode in peer.modes if peer.stores and mode.acks != "none"]
    return next((mode for mode in stored if mode.acks == "memory"), stored[0] if stored else None)


QUICK: Final = Effort("quick", Plan(2, 1, 1), 20_000_000, 20_000, 1.0, (1000,), 1.0, (100,))
ORDINARY: Final = Effort("ordinary", Plan(3, 1, 1), 100_000_000, 200_000, 10.0, (1000, 10_000), 5.0)
FULL: Final = Effort("full", Plan(5, 1, 1), 500_000_000, 1_000_000, 30.0, (1000, 10_000), 30.0)

#: For the tests.
SMOKE: Final = Effort("smoke", Plan(1, 1, 1), 20_000, 50, 1.0, (200,), 0.2, (100,), 256 << 20)

#: By the name of the devices' half.
EFFORTS: Final = {effort.name: effort for effort in (QUICK, ORDINARY, FULL, SMOKE)}

__all__ = ["EFFORTS", "FULL", "ORDINARY", "QUICK", "SMOKE", "VALUE_BYTES", "Effort", "read_mode"]
