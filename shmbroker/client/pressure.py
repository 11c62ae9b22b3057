"""What a producer is told of pressure: of each partition that it sent to, and of its own rings.

Owns: `Pressure`, the answer; and where it comes from. A local client reads the writer tables and
its own rings, which are mapped: no message, no wait. A remote one hears the broker's events channel
(remote/pressure.py). Both are a `PressureSource` of the connection, and know nothing of producers.

A producer's ring to a writer is first in, first out: while the batch in front waits for its
partition, all behind it wait too, whatever theirs is. So the ring's fill counts for each partition
behind it, and the reason names the one in front.

Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from shmbroker._core import shm
from shmbroker.client.metadata import TopicPartition
from shmbroker.control.pressure import (
    STATES,
    Gauge,
    PartitionPressure,
    Sample,
    State,
    Thresholds,
    silent,
)
from shmbroker.errors import BrokerGone
from shmbroker.units import about_bytes

if TYPE_CHECKING:
    from shmbroker._core.producer import Outlets, Sender

#: When the broker does not say what it judges by.
USUAL: Final = Thresholds(50, 90, 10, 100, 500, 500)
_SILENT_S: Final = 2.0  # a writer says ten times a second that it is there


class Spot(NamedTuple):
    """Where a partition is that a producer sends to."""

    topic: str
    partition: int
    writer: int
    slot: int
    slot_epoch: int


class PressureSource(Protocol):
    """Of a connection. Thread-safe; never waits."""

    @property
    def limits(self) -> Thresholds:
        """What fill counts as soft and hard."""

    def look(self, spots: Iterable[Spot]) -> dict[Spot, PartitionPressure]:
        """The pressure of these partitions as far as it is known here."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """How hard a producer's partitions are pressed, at one moment."""

    partitions: Mapping[TopicPartition, PartitionPressure] = field(default_factory=dict)

    @property
    def worst(self) -> PartitionPressure | None:
        """The worst of them; None before the first record was sent."""
        return max(self.partitions.values(), key=lambda p: p.rank, default=None)

    @property
    def state(self) -> State:
        """Of the worst: "ok", "soft", "hard" or "offline"."""
        worst = self.worst
        return "ok" if worst is None else worst.state

    @property
    def reason(self) -> str:
        """Of the worst, in words; "" when all is well."""
        worst = self.worst
        return "" if worst is None or worst.state == "ok" else f"{worst}"

    def __str__(self) -> str:
        return self.reason or "ok"


class _Connection(Protocol):
    @property
    def attachment(self) -> Any: ...
    def look(self, again: bool = False) -> int | None: ...
    def table(self, writer: int) -> Any: ...


class TablePressures:
    """The source of a local connection: the writer tables, which it has mapped."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._gauges: dict[Spot, Gauge] = {}

    @property
    def limits(self) -> Thresholds:
        """See PressureSource."""
        return self._connection.attachment.pressure or USUAL

    def look(self, spots: Iterable[Spot]) -> dict[Spot, PartitionPressure]:
        """See PressureSource. Raises ForkedError and ClosedError."""
        limits, now_s = self.limits, time.monotonic()
        away = gone(self._connection)
        if away is not None:
            return {spot: away(spot) for spot in spots}
        with self._lock:
            return {spot: self._level(spot, limits, now_s) for spot in spots}

    def _level(self, spot: Spot, limits: Thresholds, now_s: float) -> PartitionPressure:
        table = self._connection.table(spot.writer)
        epoch, sample, beat_ns = shm.sample_at(table.address, spot.slot)
        if epoch != spot.slot_epoch:
            self._gauges.pop(spot, None)
            reason = "it has moved; the next record finds out where to"
            return PartitionPressure(spot.topic, spot.partition, "hard", "opening", reason)
        silent_s = now_s - beat_ns / 1e9
        writer = ""
        if beat_ns and silent_s > _SILENT_S:
            writer = silent(silent_s)
        gauge = self._gauges.get(spot)
        if gauge is None:
            gauge = self._gauges[spot] = Gauge(now_s)
        gauge.take(Sample(*sample), limits, now_s, writer=writer)
        if gauge.at_rest:
            del self._gauges[spot]
        return gauge.level(spot.topic, spot.partition)


def gone(connection: _Connection) -> Callable[[Spot], PartitionPressure] | None:
    """What is said of every partition while the broker is gone; None: it is there."""
    state: State
    try:
        if connection.look() is not None:
            return None
        state, reason = "hard", "the broker is gone; this program waits for it to come back"
    except BrokerGone as error:
        state, reason = "offline", str(error)
    return lambda spot: PartitionPressure(spot.topic, spot.partition, state, "unknown", reason)


def pressure_of(sender: Sender, outlets: Outlets, source: PressureSource) -> Pressure:
    """Of every partition that a producer has sent to. Raises ForkedError, ClosedError."""
    from shmbroker._core.producer import IN_FLIGHT_MAX  # not for who only consumes

    flying = {Spot(*place[:5]): place[5] for place in sender.places()}
    levels, limits = source.look(flying), source.limits
    names = {(s.writer, s.slot): level for s, level in levels.items()}
    rings = outlets.standing()
    found = {}
    for spot, level in levels.items():
        ring = rings.get(spot.writer)
        if ring is not None:
            level = _behind_ring(level, spot, ring, names, limits)
            level = _behind_own(level, flying[spot], IN_FLIGHT_MAX, limits)
        found[TopicPartition(spot.topic, spot.partition)] = level
    return Pressure(found)


def _behind_ring(
    level: PartitionPressure,
    spot: Spot,
    ring: tuple[int, int, int, int, int],
    names: Mapping[tuple[int, int], PartitionPressure],
    limits: Thresholds,
) -> PartitionPressure:
    used, capacity, flying, places, front = ring
    fill = max(used / capacity if capacity else 0.0, flying / places if places else 0.0)
    level = replace(level, ingress_fill=round(min(1.0, fill), 4))
    state = _of_fill(fill, limits)
    if STATES.index(state) <= level.rank:
        return level
    reason = (
        f"this program's ring to writer-{spot.writer} is {100 * fill:.0f} % full "
        f"({about_bytes(used)} of {about_bytes(capacity)}, {flying} of {places} batches)"
    )
    before = names.get((spot.writer, front))
    if front >= 0 and front != spot.slot:
        name = f"slot {front}" if before is None else f"{before.topic}-{before.partition}"
        reason += f"; the batch in front is for {name}"
        if before is not None and before.reason:
            reason += f": {before.reason}"
    elif level.reason:
        reason += f"; {level.reason}"
    return replace(level, state=state, cause="ingress", reason=reason)


def _behind_own(
    level: PartitionPressure, flying: int, most: int, limits: Thresholds
) -> PartitionPressure:
    """A producer has so many batches on their way to a partition at most, whatever the ring."""
    fill = flying / most
    if fill > (level.ingress_fill or 0.0):
        level = replace(level, ingress_fill=round(fill, 4))
    state = _of_fill(fill, limits)
    if STATES.index(state) <= level.rank:
        return level
    reason = f"{flying} of {most} batches of this producer are on their way to it, unanswered"
    if level.reason:
        reason += f"; {level.reason}"
    return replace(level, state=state, cause="ingress", reason=reason)


def _of_fill(fill: float, limits: Thresholds) -> State:
    if 100 * fill >= limits.hard_fill_percent:
        return "hard"
    return "soft" if 100 * fill >= limits.soft_fill_percent else "ok"


__all__ = [
    "USUAL",
    "Pressure",
    "PressureSource",
    "Spot",
    "TablePressures",
    "gone",
    "pressure_of",
]
