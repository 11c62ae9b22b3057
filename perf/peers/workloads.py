"""The workloads, the same for every system, on a server that runs in one mode.

The names of their rows: `many-100-durable`, `each-100-durable`, `fastest-100-durable`,
`latency-1000-durable`, `memory-durable`, and once for a system `values-100`, `records-100`,
`fastest-read-100`: the workload, the bytes of a value (or the rate), the mode. A workload that
fails has a row without values that says why, and the next one goes on; after one that hung none
does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Final

from shmbroker.perf.case import Bench
from shmbroker.perf.peers.effort import Effort, read_mode
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer
from shmbroker.perf.peers.stage import Stage, staged
from shmbroker.perf.remote import NoAnswer
from shmbroker.perf.report import Row
from shmbroker.perf.values import ValueSpec

Work = Callable[[Stage], Row | None]
_REASON: Final = 300  # characters of what went wrong


def names(effort: Effort, peer: type[Peer], mode: Mode) -> list[str]:
    """Of the rows that a mode of a peer has if all goes well, in order."""
    return [name for name, _ in plan(effort, peer, mode)]


def plan(effort: Effort, peer: type[Peer], mode: Mode) -> Iterator[tuple[str, Work]]:
    """(name of the row, how it comes about)."""
    first, case = effort.sizes[0], mode.case
    yield f"memory-{case}", _memory  # first: of one topic, before others have left anything
    for size in effort.sizes:
        yield f"many-{size}-{case}", _many(size)
    yield f"each-{first}-{case}", lambda stage: _each(stage, first)
    if peer.fastest_title and mode.acks != "none":
        yield f"fastest-{first}-{case}", lambda stage: _fastest(stage, first)
    for rate in effort.rates:
        yield f"latency-{rate}-{case}", _latency(rate)
    if mode is read_mode(peer):
        yield f"values-{first}", lambda stage: _read(stage, "values", first)
        yield f"records-{first}", lambda stage: _read(stage, "records", first)
        if peer.fastest_title:
            yield f"fastest-read-{first}", lambda stage: _fastest_read(stage, first)


def measure(bench: Bench, effort: Effort, peer: Peer, mode: Mode) -> list[Row]:
    """Starts the server, runs every workload, stops it; raises when it could not be started."""
    rows: list[Row] = []
    hung = ""
    with staged(bench, effort, peer, mode) as stage:
        for name, work in plan(effort, type(peer), mode):
            if hung:
                rows.append(_without(name, f"not measured: {hung}"))
                continue
            bench.say(name)
            try:
                row = work(stage)
            except Exception as error:
                bench.check()
                last = str(error).strip().splitlines()[-1:] or [""]
                why = f"{type(error).__name__}: {last[0][-_REASON:]}"
                row = _without(name, f"failed: {why}")
                if isinstance(error, NoAnswer):
                    hung = f"{name} hung"
            if row is not None:
                rows.append(row)
    return rows


def _without(name: str, note: str) -> Row:
    return Row(case=name, figure=name, unit="", values=(), met=False, note=note)


def _rates(case: str, figure: str, size: int, rates: list[float], note: str) -> Row:
    more = {"MB/s of values": statistics.median(rates) * size / 1e6}
    return Row(case, figure, "records/s", tuple(rates), note=note, more=more)


def _many(size: int) -> Work:
    def work(stage: Stage) -> Row:
        count = stage.effort.values(size)
        rates, sent = stage.rounds("many", ValueSpec(count, size))
        figure = f"produce {size:,} B, batched: {stage.peer.client_title}"
        note = f"{sent:,} values a round, {stage.measured}"
        return _rates(f"many-{size}-{stage.mode.case}", figure, size, rates, note)

    return work


def _each(stage: Stage, size: int) -> Row:
    count = stage.effort.each
    rates, sent = stage.rounds("each", ValueSpec(count, size))
    figure = f"produce {size:,} B, one call a record: {stage.peer.client_title}"
    note = f"{sent:,} values a round, {stage.measured}"
    return _rates(f"each-{size}-{stage.mode.case}", figure, size, rates, note)


def _fastest(stage: Stage, size: int) -> Row | None:
    """As many values as the Python client sent in a round."""
    peer, mode, plan = stage.peer, stage.mode, stage.effort.plan
    sent = stage.full(size)[1] // (plan.warmups + plan.rounds)
    topic, rates = stage.create("fastest"), []
    for _ in range(plan.rounds):  # each a new program: a warm-up would warm nothing
        rate = peer.fastest_produce(stage.server, topic, sent, size, mode)
        if rate is not None:
            rates.append(rate)
    stage.forget(topic)
    if not rates:
        return None
    figure = f"produce {size:,} B: {peer.fastest_title}"
    note = f"{sent:,} values a round, until all are acknowledged"
    return _rates(f"fastest-{size}-{mode.case}", figure, size, rates, note)


def _memory(stage: Stage) -> Row | None:
    """The most in rounds of batched produce that are not timed; None where there is no server."""
    if not stage.server.processes():
        return None
    most = stage.memory(ValueSpec(stage.effort.values(stage.effort.sizes[0]),
                                  stage.effort.sizes[0]))  # fmt: skip
    figure = "resident memory of the server, the most during produce"
    return Row(f"memory-{stage.mode.case}", figure, "bytes", (float(most),))


def _latency(rate: int) -> Work:
    def work(stage: Stage) -> Row:
        effort = stage.effort
        spec = ValueSpec(int(rate * effort.latency_s), effort.sizes[0])
        figure = f"end to end, p50, {rate:,} records/s of {spec.value_bytes} B"
        return latency_row(
            f"latency-{rate}-{stage.mode.case}",
            f"{figure}: {stage.peer.client_title}",
            spec,
            stage.latencies(rate, spec),
        )

    return work


def latency_row(case: str, figure: str, spec: ValueSpec, found: list[dict[str, float]]) -> Row:
    """Of rounds of `latency.latencies`: their p50s, and the rest of the middle one."""
    middle = dict(sorted(found, key=lambda one: one["p50 us"])[len(found) // 2])
    held = min(one["of the rate"] for one in found)
    late = f"; could not hold the rate: {held:.0%} of it" if held < 0.99 else ""
    return Row(
        case=case,
        figure=figure,
        unit="us",
        values=tuple(one["p50 us"] for one in found),
        note=f"from when a record was due until it was read, {spec.count:,} records a round{late}",
        more={name: us for name, us in middle.items() if name not in ("p50 us", "of the rate")},
    )


def _read(stage: Stage, how: str, size: int) -> Row:
    topic, count = stage.full(size)
    took = [stage.receiver.call("read", how, topic, count) for _ in range(stage.effort.plan.rounds)]
    what = "values" if how == "values" else "an object a record"
    figure = f"catch-up, {size:,} B, {what}: {stage.peer.client_title}"
    note = f"{count:,} records from the beginning of the topic, just written"
    return _rates(f"{how}-{size}", figure, size, [count / each for each in took], note)


def _fastest_read(stage: Stage, size: int) -> Row | None:
    topic, count = stage.full(size)
    rates = []
    for _ in range(stage.effort.plan.rounds):
        rate = stage.peer.fastest_read(stage.server, topic, count)
        if rate is None:
            return None
        rates.append(rate)
    figure = f"catch-up, {size:,} B: {stage.peer.fastest_title}"
    note = f"{count:,} records from the beginning of the topic, just written"
    return _rates(f"fastest-read-{size}", figure, size, rates, note)


__all__ = ["latency_row", "measure", "names", "plan"]
