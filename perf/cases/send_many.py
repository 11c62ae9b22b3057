"""`send_many`, durable: the share in bytes of what bare O_DIRECT+RWF_DSYNC writes reach,
of 1 or of 4 MiB, whichever is faster.

One topic of one partition that is never retired from, so every segment lies on fresh extents, as
the bare loop's files do. Bytes are those of the log (batches, as written). The consumer's checksum
is compared after each round.
"""

from __future__ import annotations

import statistics
from typing import Final

from shmbroker.perf.case import Bench, Case, Sizes, most_rounds, written
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.limits import LARGE, MIB, RawDisk
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import against_limit
from shmbroker.perf.values import ValueSpec

_TOPIC: Final = "many"


def _measure(bench: Bench, spec: ValueSpec, figure: str, least: float | None) -> Row:
    rates: dict[float, float] = {}  # bytes a second: records a second
    sent = 0
    with (
        bench.broker() as broker,
        RawDisk(bench.home) as disk,
        broker.connect() as client,
        Remote(Receiver, broker.address) as receiver,
        Remote(Sender, broker.address, _TOPIC, spec) as sender,
    ):
        client.create_topic(_TOPIC)
        expected = sender.call("checksum")

        def log_bytes() -> int:
            return sum(int(p["bytes"]) for p in client.status()["partitions"])

        def run() -> float:
            nonlocal sent
            before = log_bytes()
            took = float(sender.call("many"))
            rate = (log_bytes() - before) / took
            rates[rate] = spec.count / took
            if receiver.call("checksum", _TOPIC, {0: sent}, spec.count) != expected:
                raise AssertionError(f"{figure}: what came out is not what went in")
            sent += spec.count
            return rate

        found = against_limit(run, lambda: disk.write_rate(bench.sizes.raw_bytes), bench.sizes.plan)
        direct, bare = disk.direct, disk.rates
    share = statistics.median(found.shares)
    records = [rates[value] for value in found.values]
    return Row(
        case=f"send-many-{spec.value_bytes}" + ("-shuffled" if spec.shuffled else ""),
        figure=figure,
        unit="records/s",
        values=tuple(records),
        limit=Limit("bare durable writes, fresh extents", found.limit, "bytes/s"),
        ratio=share,
        target="" if least is None else f">= {least:.2f} in bytes",
        met=None if least is None or not found.steady else share >= least,
        thrown=tuple(found.thrown),
        note="; ".join(
            filter(
                None,
                [
                    f"{spec.count:,} values a round, checksum equal",
                    "" if found.steady else "NO VALID ROUND: these are the invalid ones",
                    "" if direct else "no O_DIRECT on this file system",
                ],
            )
        ),
        more={
            "MB/s": statistics.median(found.values) / 1e6,
            "bare 1 MiB MB/s": statistics.median(bare[MIB]) / 1e6,
            "bare 4 MiB MB/s": statistics.median(bare[LARGE]) / 1e6,
        },
    )


def _run_100(bench: Bench) -> list[Row]:
    count = bench.sizes.values
    plain = ValueSpec(count)
    shuffled = ValueSpec(count, shuffled=True)
    return [
        _measure(bench, plain, "send_many, 100 B, durable", 0.70),
        _measure(bench, shuffled, "the same, values shuffled on the heap", None),
    ]


def _run_1k(bench: Bench) -> list[Row]:
    spec = ValueSpec(bench.sizes.values_1k, value_bytes=1024)
    return [_measure(bench, spec, "send_many, 1 KiB, durable", 0.90)]


def _space(sizes: Sizes, count: int, value_bytes: int) -> int:
    return most_rounds(sizes) * (written(count, value_bytes) + 4 * sizes.raw_bytes)


CASES: Final = (
    Case(
        "send-many",
        "send_many of 100 B values, durable, against bare writes",
        _run_100,
        lambda sizes: _space(sizes, sizes.values, 100),
    ),
    Case(
        "send-many-1k",
        "send_many of 1 KiB values, durable, against bare writes",
        _run_1k,
        lambda sizes: _space(sizes, sizes.values_1k, 1024),
    ),
)

__all__ = ["CASES"]
