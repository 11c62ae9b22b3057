"""A record there and back, against two bare processes that wake each other.

One process sends with `acks="memory"` and takes the record out of a consumer of appended records;
the way leads through the writer, so it wakes and is woken once each, as in the ping-pong.
"""

from __future__ import annotations

import statistics
from typing import Final

from shmbroker.perf.case import Bench, Case
from shmbroker.perf.clients import Idle, RoundTrips
from shmbroker.perf.pingpong import round_trip_us
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import percentile, repeat

_SPIN_US: Final = 5.0
_PARKED_TIMES: Final = 1.5


def _measure(bench: Bench, idle: Idle) -> tuple[list[float], float, float]:
    """The p50 of each round, of the ping-pong, and the p99 of the last round, in us."""
    sizes, last = bench.sizes, 0.0
    limits: list[float] = []
    with (
        bench.broker(f'[broker]\nidle = "{idle}"\n') as broker,
        broker.connect() as client,
    ):
        client.create_topic("trip")
        with Remote(RoundTrips, broker.address, "trip", None, "memory") as trips:

            def run() -> float:
                nonlocal last
                limits.append(
                    round_trip_us(bench.home, spin=idle == "spin", laps=sizes.round_trips)
                )
                took = trips.call("back", sizes.round_trips, idle)
                last = percentile(took, 0.99)
                return percentile(took, 0.5)

            values = repeat(run, sizes.plan)
    return values, statistics.median(limits), last


def _run(bench: Bench) -> list[Row]:
    spun, spun_limit, spun_p99 = _measure(bench, "spin")
    bench.say("parked")
    parked, parked_limit, parked_p99 = _measure(bench, "park")
    times = statistics.median(parked) / parked_limit
    return [
        Row(
            case="round-trip-spin",
            figure='send and consume back, appended, idle="spin", p50',
            unit="us",
            values=tuple(spun),
            limit=Limit("two processes spinning on a word", spun_limit, "us"),
            ratio=statistics.median(spun) / spun_limit,
            target="<= 5 us",
            met=statistics.median(spun) <= _SPIN_US,
            note="checksum equal",
            more={"p99 us": spun_p99},
        ),
        Row(
            case="round-trip-parked",
            figure='the same, idle="park", p50',
            unit="us",
            values=tuple(parked),
            limit=Limit("two processes parked on a futex", parked_limit, "us"),
            ratio=times,
            target="<= 1.5 times it",
            met=times <= _PARKED_TIMES,
            note="checksum equal",
            more={"p99 us": parked_p99},
        ),
    ]


CASES: Final = (
    Case("round-trip", "one record there and back, spinning and parked", _run, lambda _: 1 << 30),
)

__all__ = ["CASES"]
