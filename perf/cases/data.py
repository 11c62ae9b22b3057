"""Arrays and Arrow data in and out, each against lists of `bytes` in the same run.

In: the same values as list, 2-D array and Arrow array, in turn, durable; the consumer's checksum is
compared after each. Out: each batch of a consumer, as it comes, through `values()`, `arrow()` and
`array()`; and a consumer that takes Arrow data, reading included.
"""

from __future__ import annotations

from typing import Final

from shmbroker.perf.case import Bench, Case, Sizes, most_rounds, written
from shmbroker.perf.clients import ColumnSender, Receiver, Sender
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Row, against
from shmbroker.perf.rounds import repeat
from shmbroker.perf.values import ValueSpec

_TOPIC: Final = "data"
_IN: Final = (
    # form, case, figure, at least, of the list's rate
    ("array", "send-many-array", "send_many of a 2-D array, 100 B, durable", 1.0),
    ("arrow", "send-many-arrow", "send_many of Arrow data, 100 B, durable", 1.0),
)
_OUT: Final = (
    # method and argument, case, figure, at least, of values()' rate
    ("arrow", "batch-arrow", "batch.arrow()", 2.0),
    ("array S", "batch-array", "batch.array('S')", None),
)


def _run_in(bench: Bench) -> list[Row]:
    spec = ValueSpec(bench.sizes.values)
    rates: dict[str, list[float]] = {"list": [], "array": [], "arrow": []}
    sent = 0
    with (
        bench.broker() as broker,
        broker.connect() as client,
        Remote(Receiver, broker.address) as receiver,
        Remote(ColumnSender, broker.address, _TOPIC, spec) as sender,
    ):
        client.create_topic(_TOPIC)
        expected = sender.call("checksum")

        def lap() -> float:
            nonlocal sent
            for form, found in rates.items():
                found.append(spec.count / float(sender.call("timed", form)))
                if receiver.call("checksum", _TOPIC, {0: sent}, spec.count) != expected:
                    raise AssertionError(f"{form}: what came out is not what went in")
                sent += spec.count
            return 0.0

        repeat(lap, bench.sizes.plan)
    rounds = bench.sizes.plan.rounds
    last = {form: found[-rounds:] for form, found in rates.items()}  # without the warm-ups
    note = f"{spec.count:,} values a round, in turn, checksum equal"
    return [
        against(case, figure, last[form], last["list"], "lists of bytes", least, note)
        for form, case, figure, least in _IN
    ]


def _run_out(bench: Bench) -> list[Row]:
    spec = ValueSpec(bench.sizes.values)
    ways = ["values", *(way for way, *_ in _OUT)]
    rates: dict[str, list[float]] = {way: [] for way in (*ways, "reading", "reading arrow")}
    with bench.broker() as broker:
        with broker.connect() as client:
            client.create_topic(_TOPIC)
        with Remote(Sender, broker.address, _TOPIC, spec) as sender:
            sender.call("many")
        with Remote(Receiver, broker.address) as receiver:

            def lap() -> float:
                for way, took in receiver.call("convert", _TOPIC, spec.count, ways).items():
                    rates[way].append(spec.count / float(took))
                for name, how in (("reading", "values"), ("reading arrow", "arrow")):
                    took, got = receiver.call("read", _TOPIC, spec.count, how)
                    rates[name].append(got / float(took))
                return 0.0

            repeat(lap, bench.sizes.plan)
    rounds = bench.sizes.plan.rounds
    last = {way: found[-rounds:] for way, found in rates.items()}
    note = f"{spec.count:,} records, each batch by every way"
    rows = [
        against(case, figure, last[way], last["values"], "values()", least, note)
        for way, case, figure, least in _OUT
    ]
    reading = last["reading arrow"], last["reading"]
    figure = "consumer, hot, arrow(), reading included"
    rows.append(against("consume-arrow", figure, *reading, "with values()", None, ""))
    return rows


def _space_in(sizes: Sizes) -> int:
    return 3 * most_rounds(sizes) * written(sizes.values, 100)


def _space_out(sizes: Sizes) -> int:
    return written(sizes.values, 100)


CASES: Final = (
    Case("data-in", "arrays and Arrow data in, against lists of bytes", _run_in, _space_in),
    Case("data-out", "Arrow data and arrays out, against values()", _run_out, _space_out),
)

__all__ = ["CASES"]
