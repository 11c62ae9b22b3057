"""`up` to the first acknowledged record, on an empty and on a full data directory.

The clock runs from the start of the command `shmbroker up`, interpreter and all, in a shell that
has a client's program running already: connect, a topic if there is none, one record, durable.
"""

from __future__ import annotations

import statistics
import time
from typing import Final

from shmbroker.perf.broker import Broker
from shmbroker.perf.case import Bench, Case, Sizes
from shmbroker.perf.clients import Sender
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Row
from shmbroker.perf.rounds import repeat
from shmbroker.perf.values import ValueSpec

_MOST_S: Final = 1.0
_TOPIC: Final = "first"


def first_ack(broker: Broker, topic: str) -> tuple[float, float]:
    """Starts the broker; seconds until it says that it is up, and until a record is durable."""
    began = time.perf_counter()
    ready = broker.up()
    with broker.connect() as client:
        if topic not in client.topics():
            client.create_topic(topic)
        with client.producer() as producer:
            producer.send(topic, b"first").result(60)
            took = time.perf_counter() - began
    return ready, took


def _row(case: str, figure: str, times: list[float], ready: list[float], note: str = "") -> Row:
    median = statistics.median(times)
    return Row(
        case=case,
        figure=figure,
        unit="s",
        values=tuple(times),
        target="<= 1.0 s",
        met=median <= _MOST_S,
        note=note,
        more={"ready s": statistics.median(ready)},
    )


def _fill(bench: Bench, broker: Broker) -> float:
    """Writes `data_bytes` into a topic and stops the broker cleanly; returns GB on disk."""
    count = min(bench.sizes.values_1k, max(1, bench.sizes.data_bytes // 1024))
    with broker.connect() as client:
        client.create_topic("old")
    with Remote(Sender, broker.address, "old", ValueSpec(count, 1024)) as sender:
        for _ in range(max(1, round(bench.sizes.data_bytes / (count * 1024)))):
            sender.call("many")
    broker.down()
    return sum(path.stat().st_size for path in broker.segments("old")) / 1e9


def _run(bench: Bench) -> list[Row]:
    ready: list[float] = []

    def empty() -> float:
        broker = bench.broker()
        try:
            up, took = first_ack(broker, _TOPIC)
        finally:
            broker.close()
        ready.append(up)
        return took

    plan = bench.sizes.plan
    rows = [
        _row(
            "startup", "up to the first durable record", repeat(empty, plan), ready[plan.warmups :]
        )
    ]
    bench.say(f"writing {bench.sizes.data_bytes / 1e9:g} GB")
    ready.clear()
    with bench.broker() as broker:
        gigabytes = _fill(bench, broker)

        def full() -> float:
            up, took = first_ack(broker, _TOPIC)
            broker.down()
            ready.append(up)
            return took

        times = repeat(full, plan)
    figure = f"the same with {gigabytes:.2g} GB of clean data"
    rows.append(_row("startup-data", figure, times, ready[plan.warmups :]))
    return rows


def _space(sizes: Sizes) -> int:
    return int(sizes.data_bytes * 1.1) + (1 << 30)


CASES: Final = (Case("startup", "up to the first durable record", _run, _space),)

__all__ = ["CASES"]
