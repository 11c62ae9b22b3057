"""`send` in a Python loop: one partition without keys, and random keys over 16 partitions.

Each value is distinct and each receipt is kept; the clock stops when all are durable. The loop
itself, with a call that only hands its value back, stands beside it.
"""

from __future__ import annotations

import statistics
from typing import Any, Final

from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import repeat
from shmbroker.perf.values import ValueSpec

_LEAST: Final = 4e6
_LEAST_KEYED: Final = 0.60  # of the rate without keys
_PARTITIONS: Final = 16


def _counts(client: Any, topic: str) -> tuple[int, int]:
    mine = [p for p in client.status()["partitions"] if p["topic"] == topic]
    return sum(int(p["records"]) for p in mine), sum(int(p["batches"]) for p in mine)


def _measure(bench: Bench, keyed: bool) -> tuple[list[float], float, float]:
    """Records a second by round, those of the bare loop, and the mean records of a batch."""
    spec = ValueSpec(bench.sizes.values)
    topic, partitions = ("keyed", _PARTITIONS) if keyed else ("loop", 1)
    rounds = 0
    with (
        bench.broker() as broker,
        broker.connect() as client,
        Remote(Receiver, broker.address) as receiver,
    ):
        client.create_topic(topic, partitions=partitions)
        with Remote(Sender, broker.address, topic, spec, keyed) as sender:
            expected = sender.call("checksum")

            def run() -> float:
                nonlocal rounds
                start = _ends(client, topic)
                took = float(sender.call("loop_keyed" if keyed else "loop"))
                if keyed:
                    good = receiver.call("is_sorted_set", topic, start, spec)
                else:
                    good = receiver.call("checksum", topic, start, spec.count) == expected
                if not good:
                    raise AssertionError(f"{topic}: what came out is not what went in")
                rounds += 1
                return spec.count / took

            rates = repeat(run, bench.sizes.plan)
            bare = spec.count / float(sender.call("bare_loop"))
        records, batches = _counts(client, topic)
    return rates, bare, records / batches


def _ends(client: Any, topic: str) -> dict[int, int]:
    mine = [p for p in client.status()["partitions"] if p["topic"] == topic]
    return {int(p["partition"]): int(p["log_end_offset"]) for p in mine}


def _run(bench: Bench) -> list[Row]:
    plain, bare, plain_batch = _measure(bench, keyed=False)
    bench.say("with keys")
    keyed, _, keyed_batch = _measure(bench, keyed=True)
    rate, rate_keyed = statistics.median(plain), statistics.median(keyed)
    return [
        Row(
            case="send-loop",
            figure="send in a Python loop, 100 B, durable at the end",
            unit="records/s",
            values=tuple(plain),
            limit=Limit("the loop with an empty Python call", bare, "records/s"),
            ratio=rate / bare,
            target=">= 4 M/s",
            met=rate >= _LEAST,
            note="checksum equal",
            more={"records a batch": plain_batch},
        ),
        Row(
            case="send-loop-keyed",
            figure="the same, random keys over 16 partitions",
            unit="records/s",
            values=tuple(keyed),
            limit=Limit("without keys", rate, "records/s"),
            ratio=rate_keyed / rate,
            target=">= 0.60 of it",
            met=rate_keyed >= _LEAST_KEYED * rate,
            note="values equal, in order per partition",
            more={"records a batch": keyed_batch},
        ),
    ]


def _space(sizes: Sizes) -> int:
    return (sizes.plan.rounds + sizes.plan.warmups) * written(sizes.values, 100 + 8)


CASES: Final = (Case("send-loop", "send one by one, without and with keys", _run, _space),)

__all__ = ["CASES"]
