"""A record there and back, against two bare processes that wake each other.

One process sends with `acks="memory"` and takes the record out of a consumer of appended records;
the way leads through the writer, so it wakes and is woken once each, as in the ping-pong. The
client is pinned by the bench to another core than the writer, as are the sides of the ping-pong.
"""

from __future__ import annotations

import statistics
from typing import Final

from shmbroker.perf.case import Bench, Case
from shmbroker.perf.cases.durable_one import free_and_writer_cpu
from shmbroker.perf.clients import Idle, RoundTrips
from shmbroker.perf.pingpong import round_trip_us
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import percentile, repeat

_SPIN_US: Final = 5.0
_PARKED_TIMES: Final = 1.5


def _measure(bench: Bench, idle: Idle) -> tuple[list[float], float, dict[str, float]]:
    """The p50 of each round and of the ping-pong in us, and what is reported besides."""
    sizes, spin = bench.sizes, idle == "spin"
    limits: list[float] = []
    tails: list[float] = []
    with (
        bench.broker(f'[broker]\nidle = "{idle}"\n') as broker,
        broker.connect() as client,
    ):
        client.create_topic("trip")
        cpu, cpu_writer = free_and_writer_cpu(client.status())
        with Remote(RoundTrips, broker.address, "trip", cpu, "memory") as trips:

            def bare(cpus: tuple[int, int] | None) -> float:
                return round_trip_us(bench.home, spin=spin, laps=sizes.round_trips, cpus=cpus)

            def run() -> float:
                limits.append(bare((cpu, cpu_writer)))
                took = trips.call("back", sizes.round_trips, idle)
                tails.append(percentile(took, 0.99))
                return percentile(took, 0.5)

            values = repeat(run, sizes.plan)
        with Remote(RoundTrips, broker.address, "trip", None, "memory") as trips:
            loose = percentile(trips.call("back", sizes.round_trips, idle), 0.5)
    more = {"p99 us": statistics.median(tails), "client not pinned us": loose}
    if not spin:
        more["ping-pong not pinned us"] = bare(None)
    return values, statistics.median(limits), more


def _run(bench: Bench) -> list[Row]:
    spun, spun_limit, spun_more = _measure(bench, "spin")
    bench.say("parked")
    parked, parked_limit, parked_more = _measure(bench, "park")
    times = statistics.median(parked) / parked_limit
    return [
        Row(
            case="round-trip-spin",
            figure='send and consume back, appended, idle="spin", p50',
            unit="us",
            values=tuple(spun),
            limit=Limit("ping-pong, spinning, on two cores", spun_limit, "us"),
            ratio=statistics.median(spun) / spun_limit,
            target="<= 5 us",
            met=statistics.median(spun) <= _SPIN_US,
            note="checksum equal",
            more=spun_more,
        ),
        Row(
            case="round-trip-parked",
            figure='the same, idle="park", p50',
            unit="us",
            values=tuple(parked),
            limit=Limit("futex ping-pong on two cores", parked_limit, "us"),
            ratio=times,
            target="<= 1.5 times it",
            met=times <= _PARKED_TIMES,
            note="checksum equal",
            more=parked_more,
        ),
    ]


CASES: Final = (
    Case("round-trip", "one record there and back, spinning and parked", _run, lambda _: 1 << 30),
)

__all__ = ["CASES"]
