"""Why a goal is missed: said from figures of the same run, never from what is hoped.

Each reason says what the goal would have taken, what stands in the way by the run's own figures,
and where its rounds were too short to tell. A sentence whose figure the run has not is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from shmbroker.perf.devices.results import DeviceResults
from shmbroker.perf.peers.compared import Cell
from shmbroker.perf.peers.units import said
from shmbroker.perf.report import Row

_VALUES: Final = re.compile(r"^([\d,]+) (?:values a round|records from)")
_SHORT_S: Final = 0.5  # a round below this is mostly its beginning and its end
_TAIL: Final = 4.0  # p90 so many times p50: processes waited for cores
_FRAME_BYTES: Final = 16  # of the log, a record besides its value, at most
_SIZE: Final = re.compile(r"-(\d+)-")


@dataclass(frozen=True, slots=True)
class Missed:
    """A goal that is missed: by whose figures, and what it would have taken."""

    device: DeviceResults
    ours: Cell
    best: Cell
    factor: float

    @property
    def needed(self) -> float:
        """The figure that would have met it, in the unit of ours."""
        more = self.ours.row.unit == "records/s"
        return self.best.value * self.factor if more else self.best.value / self.factor

    def other(self, mode: str) -> Row | None:
        """The row of the same workload in another mode of ours."""
        name = self.ours.row.case.removesuffix(f"-{self.ours.system.mode}")
        return self.ours.system.peer.row(f"{name}-{mode}")


def durable(missed: Missed) -> str:
    """Of produce that waits for the disk."""
    return " ".join([*_from_memory(missed), *_disk(missed), *_short(missed.ours.row)])


def latency(missed: Missed) -> str:
    """Of p50 from end to end."""
    return " ".join([_takes(missed), *_other_latency(missed), *_tail(missed.ours.row)])


def read(missed: Missed) -> str:
    """Of catch-up."""
    ours, needed = 1e9 / missed.ours.value, 1e9 / missed.needed
    texts = [
        f"A record takes {ours:.0f} ns of one Python process, an object of its own among it; the "
        f"goal leaves {needed:.0f} ns."
    ]
    return " ".join([*texts, *_short(missed.ours.row)])


def memory(missed: Missed) -> str:
    """Of resident memory."""
    return (
        f"{_takes(missed)} Ours is Python processes, the writer's own buffers, and rings of fixed "
        "sizes that are counted whole whatever the load; the other's grows with the load, and had "
        f"grown to {said(missed.best.value, 'bytes')} in this run."
    )


def _takes(missed: Missed) -> str:
    unit = missed.ours.row.unit
    return f"The goal takes {said(missed.needed, unit)}; ours is {said(missed.ours.value, unit)}."


def _from_memory(missed: Missed) -> Iterator[str]:
    """Whether it is the disk at all: the same calls, acknowledged from memory."""
    yield _takes(missed)
    row = missed.other("memory")
    if row is None or row.median is None:
        return
    rate = said(row.median, "records/s")
    if row.median < missed.needed:
        yield f"Acknowledged from memory the same calls make {rate}, so the disk alone is not why."
    else:
        yield f"Acknowledged from memory the same calls make {rate}: the difference is the disk's."


def _disk(missed: Missed) -> Iterator[str]:
    """What the device takes, if the run has its raw limits."""
    rows = [row for row in missed.device.rows() if row.case.startswith("fio-sequential-write-")]
    limits = [row.median for row in rows if row.median and "-sync" in row.case]
    size = _SIZE.search(missed.ours.row.case)
    if not limits or size is None:
        return
    record = int(size[1]) + _FRAME_BYTES
    wanted, limit = missed.needed * record, max(limits)
    yield (
        f"It would write about {wanted / 1e6:,.0f} MB/s of log; this device takes at most "
        f"{limit / 1e6:,.0f} MB/s durably (fio){', less than that' if limit < wanted else ''}."
    )


def _other_latency(missed: Missed) -> Iterator[str]:
    """The broker's other mode: what waking sleeping processes costs."""
    for mode, words in (("memory", "asleep between records"), ("memory-spin", "spinning")):
        row = missed.other(mode)
        if mode != missed.ours.system.mode and row is not None and row.median is not None:
            yield f"With processes {words} it is {said(row.median, 'us')}."


def _tail(row: Row) -> Iterator[str]:
    """Whether processes waited for cores."""
    p50, p90 = row.median, row.more.get("p90 us")
    if p50 and p90 and p90 > _TAIL * p50:
        yield (
            f"Its p90 is {p90 / p50:.0f} times its p50: processes waited for cores, of which "
            "clients and servers share what this machine has."
        )


def _short(row: Row) -> Iterator[str]:
    """Whether a round was long enough to say anything."""
    found = _VALUES.match(row.note)
    if found is None or not row.median:
        return
    took_s = int(found[1].replace(",", "")) / row.median
    if took_s < _SHORT_S:
        yield (
            f"A round lasts {took_s * 1e3:.0f} ms, in which its beginning and its end weigh: a "
            "longer effort says more."
        )


__all__ = ["Missed", "durable", "latency", "memory", "read"]
