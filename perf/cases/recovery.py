"""Recovery after `kill -9` of everything under load, with 1 and with many partitions.

Killed are all processes of the broker and the producer. "Rings there": the next `up` adopts them,
as after any death of processes. "Rings gone": they are removed first, as the host's death does, and
the log is recovered from the disk. All acknowledged records must be there, in order.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

from shmbroker.perf.broker import Broker
from shmbroker.perf.case import Bench, Case, Sizes
from shmbroker.perf.cases.startup import first_ack
from shmbroker.perf.clients import Pressure, Receiver
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Row

_MOST_S: Final = 2.0
_TOPIC: Final = "load"
_CHUNK_BYTES: Final = 8 << 20  # of one lap over all partitions


def _load(bench: Bench, broker: Broker, partitions: int) -> dict[int, int]:
    """Produces for a while, then kills everything; what was acknowledged by then."""
    chunk = max(1, _CHUNK_BYTES // 100 // partitions)
    acknowledged: dict[int, int] = {}
    with Remote(Pressure, broker.address, _TOPIC, partitions, chunk) as pressure:
        end = time.monotonic() + bench.sizes.load_s
        while time.monotonic() < end:
            acknowledged = pressure.call("lap")
        pressure.start("lap")  # it is in the middle of one
        time.sleep(0.02)
        broker.kill()
        pressure.kill()
    return acknowledged


def _once(bench: Bench, partitions: int, rings: bool) -> tuple[float, float, float]:
    """Seconds to ready and to the first durable record, and the GB that were recovered."""
    with bench.broker() as broker:
        with broker.connect() as client:
            client.create_topic(_TOPIC, partitions=partitions)
            client.create_topic("first")
        acknowledged = _load(bench, broker, partitions)
        if not rings:
            broker.drop_shared_memory()
        size = sum(path.stat().st_size for path in broker.segments(_TOPIC)) / 1e9
        ready, took = first_ack(broker, "first")
        with Remote(Receiver, broker.address) as receiver:
            receiver.call("prefixes", _TOPIC, partitions, acknowledged)
    return ready, took, size


def _rows(bench: Bench, partitions: int) -> list[Row]:
    rows = []
    for rings in (True, False):
        what = "rings there" if rings else "rings gone"
        bench.say(f"{partitions} partitions, {what}")
        found = [_once(bench, partitions, rings) for _ in range(bench.sizes.plan.rounds)]
        times = tuple(took for _, took, _ in found)
        rows.append(
            Row(
                case=f"recovery-{partitions}" + ("" if rings else "-disk"),
                figure=f"kill -9 of all under load, {partitions} partitions, {what}: up to an ack",
                unit="s",
                values=times,
                target="<= 2 s",
                met=statistics.median(times) <= _MOST_S,
                note="all acknowledged records there, in order",
                more={
                    "ready s": statistics.median(ready for ready, _, _ in found),
                    "GB allocated": statistics.median(size for _, _, size in found),
                },
            )
        )
    return rows


def _many(bench: Bench) -> list[Row]:
    return _rows(bench, bench.sizes.many_partitions)


def _one(bench: Bench) -> list[Row]:
    return _rows(bench, 1)


def _space(sizes: Sizes) -> int:
    return int(sizes.load_s * 3.5e9) + (4 << 30 if not sizes.smoke else 1 << 28)


_RUNS: Final[tuple[tuple[str, str, Callable[[Bench], list[Row]]], ...]] = (
    ("recovery-one", "kill -9 of everything under load, one partition", _one),
    ("recovery-many", "kill -9 of everything under load, 1,000 partitions", _many),
)
CASES: Final = tuple(Case(name, about, run, _space) for name, about, run in _RUNS)

__all__ = ["CASES"]
