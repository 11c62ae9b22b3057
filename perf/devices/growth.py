"""What grows: partitions, and the data that is there already; produce, catch-up and latency each.

A flat line is the promise: a record costs the same among 1,000 partitions as in one, and on top of
50 GB as on top of one. Each row's limit is the smallest of its kind in the same run.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from typing import Final

from shmbroker.perf.broker import Broker
from shmbroker.perf.case import Bench
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.devices.consuming import MODES, paced, timed
from shmbroker.perf.devices.effort import Effort
from shmbroker.perf.devices.figures import spec_of
from shmbroker.perf.peers.latency import latencies
from shmbroker.perf.peers.timed import Timed
from shmbroker.perf.peers.workloads import latency_row
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import repeat
from shmbroker.perf.spread import Spread

_SMALL: Final = 100
_LARGE: Final = 1024
_RATE: Final = 1_000  # records/s of the latencies
_TOPIC: Final = "grows"
_KEEP: Final = 0.75  # of what is free, at most, is filled
_STEPS_GB: Final = (1, 2, 5, 10, 20, 50)
_FLAT: Final = 0.80
_FLAT_TO: Final = 3  # of the counts of partitions: 100
_MODE: Final = MODES["durable"]


def partitions(bench: Bench, effort: Effort) -> list[Row]:
    """The same values dealt out over more and more partitions; and a record a millisecond."""
    spec = spec_of(bench.sizes, _SMALL)
    rates: list[Row] = []
    waits: list[Row] = []
    for count in effort.partitions:
        many = "1 partition" if count == 1 else f"{count:,} partitions"
        bench.say(f"growth: {many}")
        with (
            bench.broker() as broker,
            Remote(Sender, broker.address, _TOPIC, spec) as sender,
            Remote(Receiver, broker.address) as receiver,
            timed(broker) as pacing,
            timed(broker) as tail,
        ):
            with broker.connect() as client:
                client.create_topic(_TOPIC, partitions=count)
            spread = Spread(sender, receiver, _TOPIC, spec.count, count)
            found = repeat(lambda: spread.count / spread.round(), bench.sizes.plan)  # noqa: B023
            figure = f"send_many, {_SMALL} B, durable, {many}"
            note = f"{spec.count:,} values a round, checksum equal"
            case = f"growth-partitions-{count}"
            rates.append(Row(case, figure, "records/s", tuple(found), note=note))
            waits.append(_wait(bench, effort, pacing, tail, f"partitions-{count}", many))
    return [*_held_against(rates, _FLAT_TO), *_held_against(waits)]


def data(bench: Bench, effort: Effort) -> list[Row]:
    """On top of more and more data: a round durable, the oldest values read again, latencies."""
    spec = spec_of(bench.sizes, _LARGE)
    most = min(effort.growth_bytes, int(_KEEP * shutil.disk_usage(bench.home).free))
    steps: list[float] = [gb for gb in _STEPS_GB if gb * 1e9 <= most] or [most / 1e9]
    produced: list[Row] = []
    read: list[Row] = []
    waits: list[Row] = []
    with (
        bench.broker() as broker,
        Remote(Sender, broker.address, _TOPIC, spec) as sender,
        timed(broker) as oldest,
        timed(broker) as pacing,
        timed(broker) as tail,
    ):
        with broker.connect() as client:
            client.create_topic(_TOPIC)
        expected = sender.call("checksum")
        for gb in steps:
            text = f"on top of {gb:g} GB"
            bench.say(f"growth: {text}")
            _fill(bench, broker, sender, gb * 1e9)
            rates = [spec.count / float(sender.call("many")) for _ in _rounds(bench)]
            produced.append(Row(f"growth-data-{gb:g}", f"send_many, 1 KiB, durable, {text}",
                                "records/s", tuple(rates)))  # fmt: skip
            again = [spec.count / oldest.call("read", "values", _TOPIC, spec.count)
                     for _ in _rounds(bench)]  # fmt: skip
            if oldest.call("stored", _TOPIC, spec.count) != expected:
                raise AssertionError(f"{text}: what came out is not what went in")
            read.append(Row(f"growth-read-{gb:g}", f"the oldest values again, {text}", "records/s",
                            tuple(again), note="checksum equal"))  # fmt: skip
            waits.append(_wait(bench, effort, pacing, tail, f"data-{gb:g}", text))
    every = len(steps)
    return [
        *_held_against(produced, every),
        *_held_against(read, every),
        *_held_against(waits),
    ]


def _rounds(bench: Bench) -> range:
    return range(bench.sizes.plan.rounds)


def _fill(bench: Bench, broker: Broker, sender: Remote[Sender], nbytes: float) -> None:
    """Until the topic has so many bytes of log; raises RuntimeError when the disk runs short."""
    while True:
        bench.check()
        there = sum(int(each["log_end_position"]) for each in broker.status()["partitions"]
                    if each["topic"] == _TOPIC)  # fmt: skip
        if there >= nbytes:
            return
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            sender.call("many")


def _wait(
    bench: Bench, effort: Effort, sender: Remote[Timed], tail: Remote[Timed], case: str, text: str
) -> Row:
    """Latency at `_RATE` into the topic as it is."""
    spec = paced(_RATE, effort.latency_s)
    found = latencies(sender, tail, _TOPIC, _RATE, spec, _MODE, bench.sizes.plan)
    figure = f"end to end, p50, durable, {_RATE:,} records/s, {text}"
    return latency_row(f"growth-latency-{case}", figure, spec, found)


def _held_against(rows: list[Row], flat: int = 0) -> list[Row]:
    """Each with the first as its limit; the first `flat` of them must not be slower by a fifth."""
    base = rows[0].median or 1.0
    made = []
    for n, row in enumerate(rows):
        ratio = statistics.median(row.values) / base
        wanted = 0 < n < flat
        made.append(
            dataclasses.replace(
                row,
                limit=Limit("the first of these", base, row.unit),
                ratio=ratio,
                target=f">= {_FLAT:.2f}" if wanted else "",
                met=ratio >= _FLAT if wanted else None,
            )
        )
    return made


__all__ = ["data", "partitions"]
