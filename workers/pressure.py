"""How the acceptor follows the pressure of all partitions, and tells of it.

Owns: a gauge (control/pressure.py) for each partition that is not at rest, fed from the writer
tables on a tick and at once when a writer reports trouble or dies; the numbering of what goes out
on the events channel. A tick is one pass in C over the states of the slots; an idle broker has one
a second.

Invariants: everything here is told from memory and without waiting; a partition without a gauge is
ok. What subscribers have missed is in the next snapshot, one second later at most.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Final, Protocol

from shmbroker.config import PressureSection
from shmbroker.control.plan import Place, Plan
from shmbroker.control.pressure import Gauge, PartitionPressure, Sample, Thresholds, silent
from shmbroker.control.pressure_messages import encode_change, encode_snapshot
from shmbroker.control.sharedmem import SharedMemory
from shmbroker.workers.events import Events
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop, Timer

TICK_S: Final = 0.2  # while anything moves
SNAPSHOT_S: Final = 1.0  # and a tick, while nothing does: most of what one costs is the waking up
AT_ONCE: Final = 32  # more changes at a time than this go out as a snapshot
WRITER_SILENT_S: Final = 2.0  # its housekeeper says ten times a second that it is there
_TROUBLES: Final = {
    "away": "its writer process is gone and is being replaced",
    "opening": "its writer process has just started and takes over",
}
_log = get_logger("shmbroker.pressure")


class Link(Protocol):
    """What is looked at of a writer's link."""

    @property
    def state(self) -> str: ...


class Pressures:
    """See the module. Belongs to the loop's thread."""

    def __init__(
        self,
        settings: PressureSection,
        memory: SharedMemory,
        plan: Plan,
        links: Mapping[int, Link],
        reason_of: Callable[[Place], str],
        events: Events,
        loop: Loop,
    ) -> None:
        """`reason_of`: the writer's own words for the state that a place's partition is in."""
        self.limits = Thresholds(**asdict(settings))
        self._memory, self._plan, self._links = memory, plan, links
        self._reason_of, self._events, self._loop = reason_of, events, loop
        self._soon: Timer | None = None
        self._frames = -1  # that the writers had taken at the last tick
        self._gauges: dict[Place, Gauge] = {}
        self._run = secrets.token_hex(4)
        self._seq = 0
        self._snapshot_at = 0.0

    def start(self) -> None:
        """Looks from now on, as long as the loop runs."""
        self._loop.after(TICK_S, self._tick)

    def _tick(self) -> None:
        self.look()
        frames = sum(table.heartbeat()[1] for table in self._memory.tables.values())
        moves = bool(self._gauges) or frames != self._frames
        self._frames = frames
        if not moves or time.monotonic() - self._snapshot_at >= SNAPSHOT_S - TICK_S:
            self.tell_all()
        self._loop.after(TICK_S if moves else SNAPSHOT_S, self._tick)

    def look_soon(self) -> None:
        """Looks when the loop has its next turn, however often it was asked until then."""
        if self._soon is None:
            self._soon = self._loop.after(0, self._look_now)

    def _look_now(self) -> None:
        self._soon = None
        self.look()

    def look(self) -> None:
        """Looks at all partitions now, and tells what is another than before."""
        now_s = time.monotonic()
        unseen = set(self._gauges)
        changed = []
        for writer in self._memory.tables:
            trouble = self._trouble(writer, now_s)
            for place, sample in self._stirring(writer, bool(trouble)):
                unseen.discard(place)
                if self._take(place, sample, now_s, trouble):
                    changed.append(place)
        for place in unseen:  # at rest by now, or gone
            found = self._sample(place)
            if found is None:
                del self._gauges[place]
            elif self._take(place, found, now_s, ""):
                changed.append(place)
        self._tell(changed)

    def level(self, place: Place) -> PartitionPressure:
        """One partition's pressure as of the last look."""
        gauge = self._gauges.get(place)
        if gauge is not None:
            return gauge.level(place.topic, place.partition)
        return PartitionPressure(place.topic, place.partition)

    def tell_all(self) -> None:
        """A snapshot, to whoever listens."""
        self._snapshot_at = time.monotonic()
        levels = [gauge.level(p.topic, p.partition) for p, gauge in self._gauges.items()
                  if gauge.verdict.state != "ok"]  # fmt: skip
        self._events.send(encode_snapshot(self._run, self._seq, levels))

    def _stirring(self, writer: int, everything: bool) -> list[tuple[Place, Sample]]:
        """Those partitions of a writer that are not at rest, or all of them."""
        if everything:
            places = self._plan.of_writer(writer)
            return [(place, here) for place in places if (here := self._sample(place))]
        table = self._memory.tables[writer]
        found = []
        for slot, sample in table.stirring(self._plan.slots_used(writer)):
            place = self._plan.at(writer, slot)
            if place is not None and table.slot_epoch(slot) == place.slot_epoch:
                found.append((place, Sample(*sample)))
        return found

    def _sample(self, place: Place) -> Sample | None:
        """None: the partition is not there any more, or not yet."""
        table = self._memory.tables.get(place.writer)
        here = self._plan.at(place.writer, place.slot)
        if table is None or here != place or table.slot_epoch(place.slot) != place.slot_epoch:
            return None
        return Sample(*table.sample(place.slot))

    def _trouble(self, writer: int, now_s: float) -> str:
        """What is the matter with a writer's process; "": nothing."""
        link = self._links.get(writer)
        if link is None or link.state in _TROUBLES:
            return _TROUBLES["away" if link is None else link.state]
        beat_ns, _ = self._memory.tables[writer].heartbeat()
        silent_s = now_s - beat_ns / 1e9
        if link.state == "ready" and beat_ns and silent_s > WRITER_SILENT_S:
            return silent(silent_s)
        return ""

    def _take(self, place: Place, sample: Sample, now_s: float, trouble: str) -> bool:
        gauge = self._gauges.get(place)
        if gauge is None:
            gauge = self._gauges[place] = Gauge(now_s)
        why = "" if sample.state == "online" else self._reason_of(place)
        before = gauge.verdict
        changed = gauge.take(sample, self.limits, now_s, why=why, writer=trouble)
        if changed and "stalled" in (before.cause, gauge.verdict.cause):
            _log.warning("partition", name=f"{place.topic}-{place.partition}",
                         pressure=gauge.verdict.state, reason=gauge.verdict.reason)  # fmt: skip
        if gauge.at_rest:
            del self._gauges[place]
        return changed

    def _tell(self, changed: list[Place]) -> None:
        if not changed:
            return
        self._seq += 1
        if len(changed) > AT_ONCE:
            self.tell_all()
            return
        self._events.send(encode_change(self._run, self._seq, self.level(p)) for p in changed)


__all__ = ["SNAPSHOT_S", "TICK_S", "WRITER_SILENT_S", "Pressures"]
