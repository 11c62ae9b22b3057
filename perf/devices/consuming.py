"""Consumers of the broker on a device: latency at fixed rates, fan-out, catch-up beside a tail.

Senders and consumers are the peers' (`peers/timed.py`): the same clocks, and records that were due
at fixed times, so a stall is charged to all that waited behind it. Each is a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from typing import Final

from shmbroker.perf.broker import Broker
from shmbroker.perf.case import Bench
from shmbroker.perf.cases import consume
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.devices.effort import Effort
from shmbroker.perf.devices.figures import SMALL_RINGS, busy, spec_of, value_text
from shmbroker.perf.limits import forget_pages
from shmbroker.perf.peers.latency import latencies, percentiles
from shmbroker.perf.peers.shmbroker import Shmbroker
from shmbroker.perf.peers.shmbroker_client import ShmbrokerClient
from shmbroker.perf.peers.timed import Timed
from shmbroker.perf.peers.workloads import latency_row
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.values import ValueSpec

MODES: Final = {mode.case: mode for mode in Shmbroker.modes}
_SMALL: Final = 100  # bytes of what is tailed
_LARGE: Final = 1024  # of what is caught up with
_MIXED_RATE: Final = 1_000  # records/s of the tail beside a catch-up
_LEAST: Final = 50  # records of a round at a rate
_FAN_SHARE: Final = 4  # of the values, since each goes to many


def timed(broker: Broker) -> Remote[Timed]:
    """A producer or consumer in a process of its own."""
    kind = ShmbrokerClient
    return Remote(Timed, [], kind.__module__, kind.__qualname__, broker.address)


def paced(rate: int, seconds: float) -> ValueSpec:
    """What is sent at a rate for so long."""
    return ValueSpec(max(_LEAST, int(rate * seconds)), _SMALL)


def latency(bench: Bench, effort: Effort) -> list[Row]:
    """From when a record was due until another process has it, durable and appended."""
    rows = []
    for case in ("durable", "memory"):
        with bench.broker() as broker, timed(broker) as sender, timed(broker) as receiver:
            for rate in effort.rates:
                figure = f"end to end, p50, acks {case}, {rate:,} records/s of {_SMALL} B"
                bench.say(figure)
                topic, spec = f"paced-{rate}", paced(rate, effort.latency_s)
                sender.call("create", topic, MODES[case])
                found = latencies(
                    sender, receiver, topic, rate, spec, MODES[case], bench.sizes.plan
                )
                rows.append(latency_row(f"latency-{rate}-{case}", figure, spec, found))
    return rows


def fan_out(bench: Bench, effort: Effort) -> list[Row]:
    """The same records to n consumers at once; the rate counts each delivery."""
    spec, rows = spec_of(bench.sizes, _SMALL, _FAN_SHARE), []
    with bench.broker() as broker, timed(broker) as sender, contextlib.ExitStack() as stack:
        sender.call("prepare", spec)
        receivers: list[Remote[Timed]] = []
        for count in effort.consumers:
            more = range(count - len(receivers))
            receivers += [stack.enter_context(timed(broker)) for _ in more]
            figure = f"fan-out, {_SMALL} B, all records to each of {count} consumers"
            bench.say(figure)
            rates = _fan_rates(bench, sender, receivers, spec)
            rows.append(
                Row(
                    case=f"fan-out-{count}",
                    figure=figure,
                    unit="records/s",
                    values=tuple(rates),
                    note=f"{spec.count:,} values a round, appended, until the last has them; "
                    "checksums equal; deliveries to all together",
                    more={"to each, M/s": statistics.median(rates) / count / 1e6} | busy(count + 2),
                )
            )
    return rows


def _fan_rates(
    bench: Bench, sender: Remote[Timed], receivers: list[Remote[Timed]], spec: ValueSpec
) -> list[float]:
    mode, topic = MODES["memory"], f"fan-{len(receivers)}"
    expected = sender.call("checksum", spec.count)
    sender.call("create", topic, mode)
    for receiver in receivers:
        receiver.call("listen", topic, mode)
    rates = []
    for _ in range(bench.sizes.plan.warmups + bench.sizes.plan.rounds):
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(r.meanwhile("drain", spec.count)) for r in receivers]
            began = sender.call("send", "many", topic, spec.count, mode)[0]
        if any(end[0][1] != expected for end in ends):
            raise AssertionError(f"{topic}: what came out is not what went in")
        last = max(end[0][0] for end in ends)
        rates.append(len(receivers) * spec.count * 1e9 / (last - began))
    return rates[bench.sizes.plan.warmups :]


def catch_up(bench: Bench) -> list[Row]:
    """From the beginning: out of ring and page cache, and from segments that are in neither."""
    spec, text = spec_of(bench.sizes, _LARGE), value_text(_LARGE)
    hot: tuple[consume.Way, ...] = (
        ("hot-1024", f"catch-up, hot, {text}, values()", "values", False, None),
        ("hot-records-1024", f"catch-up, hot, {text}, records()", "offset_value", False, None),
    )
    cold: tuple[consume.Way, ...] = (
        ("cold-1024", f"catch-up, cold segments, {text}, values()", "values", True, None),
        ("cold-records-1024", f"catch-up, cold segments, {text}, records()", "offset_value", True,
         None),
    )  # fmt: skip
    return consume.read(bench, spec, hot) + consume.read(bench, spec, cold, SMALL_RINGS)


def mixed(bench: Bench, effort: Effort) -> list[Row]:
    """One consumer at the end of a topic while another reads cold segments: what it costs each."""
    bench.say("a cold catch-up beside a tail")
    behind, tailed = spec_of(bench.sizes, _LARGE), paced(_MIXED_RATE, effort.latency_s)
    mode, plan = MODES["memory"], bench.sizes.plan
    with (
        bench.broker(SMALL_RINGS) as broker,
        Remote(Sender, broker.address, "behind", behind) as filler,
        Remote(Receiver, broker.address) as reader,
        timed(broker) as sender,
        timed(broker) as tail,
    ):
        for topic in ("behind", "tail"):
            sender.call("create", topic, mode)
        filler.call("many")
        paths = broker.segments("behind")

        def lap() -> float:
            forget_pages(paths)
            took, got = reader.call("read", "behind", behind.count, "values")
            if got != behind.count:
                raise AssertionError(f"{behind.count} records went in, {got} came out")
            return behind.count / float(took)

        alone = latencies(sender, tail, "tail", _MIXED_RATE, tailed, mode, plan)
        laps_alone = [lap() for _ in range(plan.warmups + plan.rounds)][plan.warmups :]
        laps: list[float] = []
        beside = []
        for _ in range(plan.rounds):
            with (
                tail.meanwhile("collect", tailed.count) as collected,
                sender.meanwhile("pace", "tail", _MIXED_RATE, tailed.count, mode) as sent,
            ):
                until = time.monotonic() + effort.latency_s
                while not laps or time.monotonic() < until:
                    laps.append(lap())
            first, count = sent[0]
            share = {"of the rate": count / tailed.count}
            beside.append(percentiles(collected[0], first, _MIXED_RATE, count) | share)
    return [
        *_tail_rows(tailed, alone, beside),
        _beside("mixed-catch-up", f"cold catch-up beside that tail, {value_text(_LARGE)}, values()",
                laps, laps_alone),
    ]  # fmt: skip


def _tail_rows(
    spec: ValueSpec, alone: list[dict[str, float]], beside: list[dict[str, float]]
) -> list[Row]:
    figure = f"tail of {_MIXED_RATE:,} records/s, p50"
    before = latency_row("mixed-tail-alone", f"{figure}, alone", spec, alone)
    row = latency_row("mixed-tail", f"{figure}, beside a cold catch-up", spec, beside)
    p50, limit = row.median or 0.0, before.median or 0.0
    return [before, dataclasses.replace(row, limit=Limit("alone", limit, "us"), ratio=p50 / limit)]


def _beside(case: str, figure: str, rates: list[float], alone: list[float]) -> Row:
    limit = statistics.median(alone)
    return Row(
        case=case,
        figure=figure,
        unit="records/s",
        values=tuple(rates),
        limit=Limit("alone", limit, "records/s"),
        ratio=statistics.median(rates) / limit,
        more=busy(4),
    )


__all__ = ["MODES", "catch_up", "fan_out", "latency", "mixed", "paced", "timed"]
