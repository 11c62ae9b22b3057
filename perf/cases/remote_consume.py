"""The remote consumer itself: values out of a stream, from segments, beside the bare receiver.

The same reader process sends the same files to both, over one loopback connection. The bare
receiver reads heads and drops batches; the consumer checks every CRC and makes the values. Files
are in the page cache: what a disk does is stream.py's.
"""

from __future__ import annotations

import statistics
from typing import Final

from shmbroker.client.metadata import TopicInfo
from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.clients import Sender
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import repeat
from shmbroker.perf.streamed import StreamedReceiver
from shmbroker.perf.streams import Consumers, ReaderProcess
from shmbroker.perf.values import ValueSpec

_TOPIC: Final = "remote-consume"
_WAYS: Final = (
    # case, figure, bytes of a value, what is read
    ("remote-consume", "remote consumer, 100 B, values()", 100, "values"),
    ("remote-consume-records", "remote consumer, 100 B, records(), offset and value", 100,
     "offset_value"),
    ("remote-consume-1k", "remote consumer, 1 KiB, values()", 1024, "values"),
)  # fmt: skip


def _run(bench: Bench) -> list[Row]:
    rows = []
    specs = [
        ValueSpec(max(1, bench.sizes.values * 100 // value_bytes), value_bytes)
        for value_bytes in (100, 1024)
    ]
    with bench.broker() as broker:
        topics, sums = [], []
        for spec in specs:
            with broker.connect() as client:
                topics.append(client.create_topic(f"{_TOPIC}-{spec.value_bytes}"))
            with Remote(Sender, broker.address, topics[-1].name, spec) as sender:
                sums.append(sender.call("checksum"))
                sender.call("many")
        broker.down()
        broker.up()  # so that no ring holds any of it
        with (
            Remote(ReaderProcess, broker.address) as reader,
            Remote(Consumers) as bare,
            Remote(StreamedReceiver, broker.address, reader.call("where")) as receiver,
        ):
            for spec, topic, expected in zip(specs, topics, sums, strict=True):
                size = sum(path.stat().st_size for path in broker.segments(topic.name))
                rows += _rows(bench, spec, size, expected, topic, reader, bare, receiver)
    return rows


def _rows(
    bench: Bench,
    spec: ValueSpec,
    size: int,
    expected: int,
    topic: TopicInfo,
    reader: Remote[ReaderProcess],
    bare: Remote[Consumers],
    receiver: Remote[StreamedReceiver],
) -> list[Row]:
    rows = []
    for case, figure, value_bytes, what in _WAYS:
        if value_bytes != spec.value_bytes:
            continue
        bench.say(figure)
        limits: list[float] = []

        def run(what: str = what, limits: list[float] = limits) -> float:
            port, parts = reader.call("where"), [[(topic.id, 0)]]
            took, got = bare.call("take_streams", port, parts, [[size]])
            limits.append(spec.count / size * got / float(took))
            took, got = receiver.call("read", topic.name, spec.count, what)
            if got != spec.count:
                raise AssertionError(f"{spec.count} records went in, {got} came out")
            return spec.count / float(took)

        rates = tuple(repeat(run, bench.sizes.plan))
        if receiver.call("checksum", topic.name, {0: 0}, spec.count) != expected:
            raise AssertionError(f"{figure}: what came out is not what went in")
        limit, rate = statistics.median(limits), statistics.median(rates)
        rows.append(
            Row(
                case=case,
                figure=figure,
                unit="records/s",
                values=rates,
                limit=Limit("bare receiver of the same stream", limit, "records/s"),
                ratio=rate / limit,
                note=f"{rate * size / spec.count / 1e9:.2f} GB/s of batches; checksum equal",
            )
        )
    return rows


def _space(sizes: Sizes) -> int:
    return 2 * written(sizes.values, 100)


CASES: Final = (Case("remote-consume", "values out of a stream, bare and whole", _run, _space),)

__all__ = ["CASES"]
