"""The whole remote client: `send_many` of 1 KiB records, and one record there and back.

Both over loopback TCP with `connect(address, local=False)`, and both against bare ZeroMQ of the
same run: a DEALER in one process and a ROUTER in another, as client and ingress are, which move
messages of the size that the client's batches have, or hand a record's bytes back one by one.
Beside the rates stands what bounds durable ones in the same run: the bare disk, and a bare ROUTER
that writes what it receives to the disk before it answers, with no broker and no record in sight.
What came out is compared with what went in after every round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Final

from shmbroker._core.batch import encode_values
from shmbroker.client.remote.connection import RemoteConnection
from shmbroker.perf.bare_zmq import BareDealer, BareRouter
from shmbroker.perf.broker import Broker
from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.clients import Receiver, RoundTrips, Sender
from shmbroker.perf.limits import RawDisk
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import against_limit, percentile, repeat
from shmbroker.perf.values import ValueSpec

_CONFIG: Final = '[listen]\naddress = "tcp://127.0.0.1:0"\n'
_VALUE_BYTES: Final = 1024
_RECORD_BYTES: Final = _VALUE_BYTES + 8  # in a batch, about
_SHARE: Final = 2  # of the values of 1 KiB that other cases send
_MESSAGES: Final = 32  # different ones
_STORES: Final = 3  # rounds of the bare ROUTER that stores what it receives
_LEAST: Final = 0.60
_LEAST_SEGMENT: Final = 4 << 20
_SEGMENTS_KEPT: Final = 6
_TRIP_BYTES: Final = 100
_MOST_TIMES: Final = 3.0
_TRIP: Final = "remote-trip"

_ACKS: Final = ("durable", "memory")


def _messages() -> list[bytes]:
    """Batches as large as those of a remote client under load."""
    count = RemoteConnection.batch_bytes // _RECORD_BYTES
    values = ValueSpec(_MESSAGES * count, _VALUE_BYTES).make()
    return [
        encode_values(values[n * count : (n + 1) * count], 1_700_000_000_000)
        for n in range(_MESSAGES)
    ]


def _run_produce(bench: Bench) -> list[Row]:
    messages = _messages()
    with (
        bench.broker(_CONFIG) as broker,
        RawDisk(bench.home) as disk,
        Remote(BareRouter) as router,
        Remote(BareDealer, router.call("address"), messages) as dealer,
        Remote(Receiver, broker.address) as receiver,
    ):

        def bare(count: int, *serve: Any) -> float:
            method, *more = serve or ("serve",)
            router.start(method, count, *more)
            took = float(dealer.call("move", count))
            router.finish()
            return count * len(messages[0]) / took

        def least(count: int) -> float:
            """Bytes a second that are on storage when they are answered, without a broker."""
            return statistics.median(bare(count, "store", str(bench.home)) for _ in range(_STORES))

        return [
            _produce(bench, broker, acks, receiver, len(messages[0]), bare, least, disk)
            for acks in _ACKS
        ]


def _produce(
    bench: Bench,
    broker: Broker,
    acks: str,
    receiver: Remote[Receiver],
    message_bytes: int,
    bare: Callable[[int], float],
    least: Callable[[int], float],
    disk: RawDisk,
) -> Row:
    spec = ValueSpec(bench.sizes.values_1k // _SHARE, _VALUE_BYTES)
    topic, figure = f"remote-{acks}", f"remote send_many, 1 KiB, acks {acks}"
    bench.say(figure)
    segment = max(_LEAST_SEGMENT, written(spec.count, _VALUE_BYTES))
    messages = max(_MESSAGES, spec.count * _RECORD_BYTES // message_bytes)
    sent = 0
    with (
        broker.connect() as client,
        Remote(Sender, broker.listening, topic, spec, False, acks) as sender,
    ):
        config = {"segment.bytes": segment, "retention.bytes": segment}
        client.create_topic(topic, config=config)
        expected = sender.call("checksum")

        def log_bytes() -> int:
            return sum(int(p["log_end_position"]) for p in client.status()["partitions"])

        def run() -> float:
            before = log_bytes()
            took = float(sender.call("many"))
            return (log_bytes() - before) / took

        def check() -> None:
            nonlocal sent
            if receiver.call("checksum", topic, {0: sent}, spec.count) != expected:
                raise AssertionError(f"{figure}: what came out is not what went in")
            sent += spec.count

        found = against_limit(run, lambda: bare(messages), bench.sizes.plan, check)
        raw = disk.write_rate(bench.sizes.raw_bytes)
        stored = least(messages)
    share = statistics.median(found.shares)
    notes = [f"{spec.count:,} values a round, loopback TCP, checksum equal"]
    if not found.steady:
        notes.append("NO VALID ROUND: these are the invalid ones")
    wanted = acks == "durable"
    return Row(
        case=f"remote-produce-{acks}",
        figure=figure,
        unit="bytes/s",
        values=tuple(found.values),
        limit=Limit(f"bare DEALER to ROUTER, {message_bytes >> 10} KiB", found.limit, "bytes/s"),
        ratio=share,
        target=f">= {_LEAST:.2f}" if wanted else "",
        met=share >= _LEAST if wanted and found.steady else None,
        thrown=tuple(found.thrown),
        note="; ".join(notes),
        more={
            "lowest share": min(found.shares),
            "highest share": max(found.shares),
            "bare durable writes MB/s": raw / 1e6,
            "of those": found.median / raw,
            "bare ROUTER that stores durably MB/s": stored / 1e6,
            "of that": found.median / stored,
        },
    )


def _space(sizes: Sizes) -> int:
    each = written(sizes.values_1k // _SHARE, _VALUE_BYTES)
    return _SEGMENTS_KEPT * each + 4 * sizes.raw_bytes


def _run_trip(bench: Bench) -> list[Row]:
    count = bench.sizes.round_trips // 4  # each takes some hundred us
    bare_p50s: list[float] = []
    bare_p99s: list[float] = []
    p99s: list[float] = []
    with (
        bench.broker(_CONFIG) as broker,
        broker.connect() as client,
        Remote(BareRouter) as router,
        Remote(BareDealer, router.call("address"), ValueSpec(count, _TRIP_BYTES).make()) as dealer,
    ):
        client.create_topic(_TRIP)
        with Remote(RoundTrips, broker.listening, _TRIP, None, "memory") as trips:

            def run() -> float:
                router.start("echo", count)
                bare = dealer.call("round_trips", count)
                router.finish()
                took = trips.call("back", count, "adaptive")
                bare_p50s.append(percentile(bare, 0.5))
                bare_p99s.append(percentile(bare, 0.99))
                p99s.append(percentile(took, 0.99))
                return percentile(took, 0.5)

            p50s = repeat(run, bench.sizes.plan)
    name = "bare DEALER and ROUTER, there and back"
    rows = []
    for case, figure, values, bare, most in (
        (_TRIP, "p50", p50s, bare_p50s, _MOST_TIMES),
        (f"{_TRIP}-p99", "p99", p99s, bare_p99s, None),
    ):
        bare = bare[-len(p50s) :]  # without the warm-ups
        values = values[-len(p50s) :]
        times = statistics.median(a / b for a, b in zip(values, bare, strict=True))
        rows.append(
            Row(
                case=case,
                figure=f"remote send and consume back, 100 B, appended, {figure}",
                unit="us",
                values=tuple(values),
                limit=Limit(f"{name}, {figure}", statistics.median(bare), "us"),
                ratio=times,
                target=f"<= {most:g} times it" if most else "",
                met=times <= most if most else None,
                note="one at a time, loopback TCP, acks memory; checksum equal",
                more={"lowest bare us": min(bare), "highest bare us": max(bare)},
            )
        )
    return rows


CASES: Final = (
    Case("remote-produce", "send_many over the network, against bare ZeroMQ", _run_produce, _space),
    Case("remote-trip", "one record over the network and back", _run_trip, lambda _: 1 << 30),
)

__all__ = ["CASES"]
