"""A local consumer without a producer: pages and ring hot, and segments out of the page cache.

Hot, the limit is the making of as many `bytes` objects by `struct` in one C loop; cold, it is the
plain reading of the same files. The timed reading only counts; a reading after it, not timed,
compares the checksum.
"""

from __future__ import annotations

import statistics
from typing import Final, Literal

from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.limits import cold_read_rate, forget_pages, unpack_rate
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import repeat
from shmbroker.perf.values import ValueSpec

_TOPIC: Final = "consume"
Way = tuple[str, str, Literal["values", "offset_value", "all"], bool, float | None]
_WAYS: Final[tuple[Way, ...]] = (
    # case, figure, what is read, cold, at least
    ("consume-hot", "consumer, hot, values() as list[bytes]", "values", False, 25e6),
    ("consume-cold", "consumer, cold segments, values()", "values", True, 12e6),
    ("consume-records", "consumer, hot, records(), offset and value", "offset_value", False, 6e6),
    ("consume-all", "consumer, hot, records(), every field", "all", False, None),
)


def _run(bench: Bench) -> list[Row]:
    return read(bench, ValueSpec(bench.sizes.values), _WAYS)


def read(bench: Bench, spec: ValueSpec, ways: tuple[Way, ...], config: str = "") -> list[Row]:
    """Writes these values once, then reads them in each way; a row each."""
    rows = []
    with bench.broker(config) as broker:
        with broker.connect() as client:
            client.create_topic(_TOPIC)
        with Remote(Sender, broker.address, _TOPIC, spec) as sender:
            expected = sender.call("checksum")
            sender.call("many")
        paths = broker.segments(_TOPIC)
        # Not the files' sizes: they are reserved beyond their last batch.
        size = sum(int(each["log_end_position"]) for each in broker.status()["partitions"])
        with Remote(Receiver, broker.address) as receiver:
            for case, figure, what, cold, least in ways:
                bench.say(figure)

                def run(cold: bool = cold, what: str = what) -> float:
                    if cold:
                        forget_pages(paths)
                    took, got = receiver.call("read", _TOPIC, spec.count, what)
                    if got != spec.count:
                        raise AssertionError(f"{spec.count} records went in, {got} came out")
                    return spec.count / float(took)

                rates = tuple(repeat(run, bench.sizes.plan))
                if receiver.call("checksum", _TOPIC, {0: 0}, spec.count) != expected:
                    raise AssertionError(f"{figure}: what came out is not what went in")
                if cold:
                    reading = statistics.median([cold_read_rate(paths) for _ in rates])
                    limit = Limit(
                        "plain cold 1 MiB reads", spec.count / size * reading, "records/s"
                    )
                else:
                    made = [unpack_rate(spec.value_bytes, spec.total_bytes) for _ in rates]
                    limit = Limit("struct makes the objects", statistics.median(made), "records/s")
                rate = statistics.median(rates)
                rows.append(
                    Row(
                        case=case,
                        figure=figure,
                        unit="records/s",
                        values=rates,
                        limit=limit,
                        ratio=rate / limit.value,
                        target="" if least is None else f">= {least / 1e6:g} M/s",
                        met=None if least is None else rate >= least,
                        note="checksum equal",
                    )
                )
    return rows


def _space(sizes: Sizes) -> int:
    return written(sizes.values, 100)


CASES: Final = (Case("consume", "a local consumer, hot and cold", _run, _space),)

__all__ = ["CASES", "Way", "read"]
