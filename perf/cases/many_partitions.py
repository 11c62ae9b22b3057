"""1,000 partitions on one broker with the default memory budget.

They are made, the broker is stopped and started again, and the values of the one-partition rate are
dealt out over all of them, one `send_many` a partition, durable at the end.
"""

from __future__ import annotations

import statistics
import time
from typing import Final

from shmbroker.perf.broker import Broker
from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import repeat
from shmbroker.perf.spread import Spread
from shmbroker.perf.values import ValueSpec

_UP_S: Final = 5.0
_LEAST: Final = 0.25
_ONE: Final = "one"
_TOPIC: Final = "spread"


def _restart(broker: Broker, times: int) -> list[float]:
    found = []
    for _ in range(times):
        broker.down()
        found.append(broker.up())
    return found


def _rates(
    bench: Bench, broker: Broker, spec: ValueSpec, partitions: int
) -> tuple[list[float], list[float]]:
    """Records a second into one partition, and spread over all of them."""
    with Remote(Sender, broker.address, _ONE, spec) as one:
        one_rates = repeat(lambda: spec.count / float(one.call("many")), bench.sizes.plan)
    with (
        Remote(Receiver, broker.address) as receiver,
        Remote(Sender, broker.address, _TOPIC, spec) as sender,
    ):
        spread = Spread(sender, receiver, _TOPIC, spec.count, partitions)
        return one_rates, repeat(lambda: spread.count / spread.round(), bench.sizes.plan)


def _run(bench: Bench) -> list[Row]:
    partitions = bench.sizes.many_partitions
    with bench.broker() as broker:
        with broker.connect() as client:
            client.create_topic(_ONE)
            began = time.perf_counter()
            client.create_topic(_TOPIC, partitions=partitions)
            created_s = time.perf_counter() - began
        bench.say("restarting")
        ups = _restart(broker, bench.sizes.plan.rounds)
        bench.say("sending")
        one, spread = _rates(bench, broker, ValueSpec(bench.sizes.values), partitions)
        bench.say("restarting with data")
        ups_data = _restart(broker, bench.sizes.plan.rounds)
    one_rate, rate = statistics.median(one), statistics.median(spread)
    return [
        Row(
            case="many-up",
            figure=f"{partitions:,} partitions: up",
            unit="s",
            values=tuple(ups_data),
            target="<= 5 s",
            met=statistics.median(ups_data) <= _UP_S,
            more={"without data s": statistics.median(ups), "create topic s": created_s},
        ),
        Row(
            case="many-spread",
            figure=f"send_many spread over {partitions:,} partitions",
            unit="records/s",
            values=tuple(spread),
            limit=Limit("into one partition", one_rate, "records/s"),
            ratio=rate / one_rate,
            target=">= 0.25 of it",
            met=rate >= _LEAST * one_rate,
            note="checksums equal",
        ),
    ]


def _space(sizes: Sizes) -> int:
    rounds = sizes.plan.rounds + sizes.plan.warmups
    return 2 * rounds * written(sizes.values, 100) + sizes.many_partitions * (4 << 20)


CASES: Final = (
    Case("many-partitions", "1,000 partitions: up, and send_many over all", _run, _space),
)

__all__ = ["CASES"]
