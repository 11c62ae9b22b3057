"""One record after the other, each durable before the next, against bare 4 KiB durable writes.

The bare write is of a block that is written already, since that is what the last block of a log
is for most records; fresh blocks are given beside it. The client is pinned by the bench to a core
that no writer is pinned to, and then not pinned.
"""

from __future__ import annotations

import os
import statistics
from typing import Any, Final

from shmbroker.perf.case import Bench, Case
from shmbroker.perf.clients import RoundTrips
from shmbroker.perf.limits import RawDisk
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import percentile

_MORE_US: Final = 60.0
_TOPIC: Final = "one"


def free_and_writer_cpu(status: dict[str, Any]) -> tuple[int, int]:
    """A core of ours that no writer is pinned to, and the first writer's (the next, if not)."""
    ours = sorted(os.sched_getaffinity(0))
    pinned = [
        int(cpu)
        for process in status["processes"]
        if process.get("pinned")
        for cpu in process.get("cpus") or ()
    ]
    free = next((cpu for cpu in reversed(ours) if cpu not in pinned), ours[-1])
    other = next((cpu for cpu in ours if cpu != free), free)
    return free, pinned[0] if pinned else other


def _run(bench: Bench) -> list[Row]:
    sizes = bench.sizes
    count, plan = sizes.durable_trips, sizes.plan
    bare: list[float] = []
    fresh: list[float] = []
    took: dict[bool, list[float]] = {True: [], False: []}
    tails: dict[bool, list[float]] = {True: [], False: []}
    with (
        bench.broker() as broker,
        broker.connect() as client,
        RawDisk(bench.home) as disk,
    ):
        client.create_topic(_TOPIC)
        with (
            Remote(RoundTrips, broker.address, _TOPIC, None) as loose,
        ):
            loose.call("durable", min(count, 500))  # the warm-up; the writer is there now
            cpu, _ = free_and_writer_cpu(client.status())
            with Remote(RoundTrips, broker.address, _TOPIC, cpu) as pinned:
                for _ in range(plan.rounds):
                    bare.append(disk.small_write_us(count, "written"))
                    fresh.append(disk.small_write_us(count, "fresh"))
                    for is_pinned, trips in ((True, pinned), (False, loose)):
                        found = trips.call("durable", count)
                        took[is_pinned].append(percentile(found, 0.5))
                        tails[is_pinned].append(percentile(found, 0.99))
    limit = statistics.median(bare)
    rows = []
    for is_pinned in (True, False):
        p50 = statistics.median(took[is_pinned])
        rows.append(
            Row(
                case="durable-one" + ("" if is_pinned else "-unpinned"),
                figure="one record, durable, p50, "
                + (f"client pinned to core {cpu}" if is_pinned else "client not pinned"),
                unit="us",
                values=tuple(took[is_pinned]),
                limit=Limit("4 KiB durable write, written block", limit, "us"),
                ratio=p50 / limit,
                target="<= it + 60 us" if is_pinned else "",
                met=p50 <= limit + _MORE_US if is_pinned else None,
                more={
                    "p99 us": statistics.median(tails[is_pinned]),
                    "over the bare write us": p50 - limit,
                    "bare write, fresh block us": statistics.median(fresh),
                },
            )
        )
    return rows


CASES: Final = (Case("durable-one", "one durable record at a time", _run, lambda _: 1 << 30),)

__all__ = ["CASES", "free_and_writer_cpu"]
