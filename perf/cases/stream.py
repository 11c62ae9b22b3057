"""Remote consumers: catch-up from segments against a bare sendfile loop, idle ones, TLS.

The topic has four partitions; one consumer reads all of them over one connection, four read one
each. The bare loop is one thread, as a reader is, and sends the same files over as many
connections to the same consumer. Before each run the files are put out of the page cache.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from shmbroker.control.certificate import write_certificate
from shmbroker.control.listening import TlsFiles
from shmbroker.perf.broker import Broker
from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.clients import Sender
from shmbroker.perf.limits import forget_pages
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import against_limit, repeat
from shmbroker.perf.streams import BareSender, Consumers, Part, ReaderProcess
from shmbroker.perf.values import ValueSpec

_TOPIC: Final = "stream"
_PARTITIONS: Final = 4
_VALUE_BYTES: Final = 1024
_LAP: Final = 200_000  # values in the sender's memory
_LEAST: Final = 0.8
_IDLE: Final = 1_000
_IDLE_MOST: Final = 0.02
_GB: Final = 1e9


class _Data:
    """What is in the topic: ids, files, and how many bytes of batches each partition has."""

    def __init__(self, broker: Broker, topic_id: str) -> None:
        self.parts: list[Part] = [(topic_id, n) for n in range(_PARTITIONS)]
        self.files = [
            sorted((broker.data_dir / f"{_TOPIC}-{n}").glob("*.log")) for n in range(_PARTITIONS)
        ]
        self.sizes = [sum(path.stat().st_size for path in paths) for paths in self.files]

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for paths in self.files for path in paths]

    def split(self, connections: int) -> list[list[int]]:
        """Which partitions each connection reads."""
        return [[*range(n, _PARTITIONS, connections)] for n in range(connections)]


def _fill(broker: Broker, count: int) -> _Data:
    """`count` records in all, then a clean end and a new beginning: no ring holds any of them, and
    every file is cut to its length."""
    laps = max(1, count // _PARTITIONS // _LAP)
    spec = ValueSpec(count // _PARTITIONS // laps, _VALUE_BYTES)
    with broker.connect() as client:
        topic = client.create_topic(_TOPIC, partitions=_PARTITIONS)
    with Remote(Sender, broker.address, _TOPIC, spec) as sender:
        for _ in range(laps):
            for partition in range(_PARTITIONS):
                sender.call("many", partition)
    broker.down()
    broker.up()
    return _Data(broker, topic.id)


def _run(bench: Bench) -> list[Row]:
    rows: list[Row] = []
    with bench.broker() as broker:
        bench.say("writing the topic")
        data = _fill(broker, bench.sizes.data_bytes // (_VALUE_BYTES + 16))
        with (
            Remote(ReaderProcess, broker.address) as reader,
            Remote(BareSender) as sender,
            Remote(Consumers) as consumers,
        ):
            for connections in (1, _PARTITIONS):
                rows += _catch_up(bench, data, connections, reader, sender, consumers)
            rows += _idle(bench, data, reader, consumers)
        rows.append(_tls(bench, broker, data))
    return rows


def _catch_up(
    bench: Bench,
    data: _Data,
    connections: int,
    reader: Remote[ReaderProcess],
    sender: Remote[BareSender],
    consumers: Remote[Consumers],
) -> list[Row]:
    figure = f"catch-up from segments, {connections} connection{'s' * (connections > 1)}"
    bench.say(figure)
    split, total = data.split(connections), sum(data.sizes)
    parts = [[data.parts[n] for n in numbers] for numbers in split]
    sizes = [[data.sizes[n] for n in numbers] for numbers in split]
    files = [
        [(str(path), path.stat().st_size) for n in numbers for path in data.files[n]]
        for numbers in split
    ]
    stream_port, bare_port = reader.call("where"), sender.call("where")
    used: list[tuple[float, float]] = []

    def stream() -> float:
        forget_pages(data.paths)
        user, system, _ = reader.call("usage")
        took, got = consumers.call("take_streams", stream_port, parts, sizes)
        if got != total:
            raise AssertionError(f"{total} bytes are in segments, {got} came")
        user_after, system_after, _ = reader.call("usage")
        used.append(((user_after - user) / total * _GB, (system_after - system) / total * _GB))
        return total / float(took)

    def bare() -> float:
        forget_pages(data.paths)
        sender.start("send", files)
        took, got = consumers.call("take_bare", bare_port, [sum(s) for s in sizes])
        sender.finish()
        if got != total:
            raise AssertionError(f"{total} bytes were to be sent, {got} came")
        return total / float(took)

    found = against_limit(stream, bare, bench.sizes.plan)
    ratio = statistics.median(found.shares)
    user, system = (statistics.median(side) for side in zip(*used, strict=True))
    case = f"stream-{connections}"
    return [
        Row(
            case=case,
            figure=figure,
            unit="bytes/s",
            values=tuple(found.values),
            limit=Limit(f"bare sendfile, {connections} x", found.limit, "bytes/s"),
            ratio=ratio,
            target=f">= {_LEAST:.0%}",
            met=ratio >= _LEAST if found.steady else None,
            thrown=tuple(found.thrown),
            note=f"{total / _GB:.1f} GB, out of the page cache",
        ),
        Row(
            case=f"{case}-cpu",
            figure=f"reader's processor at 1 GB/s, {connections} x",
            unit="cores",
            values=(user + system,),
            target="mostly in the kernel",
            met=system > user,
            note=f"user {user:.0%}, kernel {system:.0%} of a core",
        ),
    ]


def _idle(
    bench: Bench, data: _Data, reader: Remote[ReaderProcess], consumers: Remote[Consumers]
) -> list[Row]:
    count = _IDLE if not bench.sizes.smoke else 50
    bench.say(f"{count} idle consumers")
    *_, before = reader.call("usage")
    consumers.call("idle", reader.call("where"), data.parts, count)
    *_, after = reader.call("usage")
    shares = []
    for _ in range(bench.sizes.plan.rounds):
        user, system, _ = reader.call("usage")
        began = time.perf_counter()
        time.sleep(bench.sizes.idle_s)
        user_after, system_after, _ = reader.call("usage")
        took = time.perf_counter() - began
        shares.append((user_after - user + system_after - system) / took)
    each = (after - before) / count
    return [
        Row(
            case="stream-idle",
            figure=f"{count} idle consumers: reader's processor",
            unit="cores",
            values=tuple(shares),
            target=f"< {_IDLE_MOST:.0%} of a core",
            met=statistics.median(shares) < _IDLE_MOST,
            note=f"{each / 1024:.1f} KiB of the reader each, without the kernel's sockets",
        )
    ]


def _tls(bench: Bench, broker: Broker, data: _Data) -> Row:
    bench.say("catch-up under TLS")
    with tempfile.TemporaryDirectory(dir=bench.home) as directory:
        files = TlsFiles(Path(directory) / "crt", Path(directory) / "key")
        write_certificate(files.certificate, files.key)
        parts, sizes = [[data.parts[0]]], [[data.sizes[0]]]
        with (
            Remote(ReaderProcess, broker.address, files) as reader,
            Remote(Consumers) as consumers,
        ):
            port = reader.call("where")

            def run() -> float:
                took, got = consumers.call(
                    "take_streams", port, parts, sizes, str(files.certificate)
                )
                return float(got) / float(took)

            rates = tuple(repeat(run, bench.sizes.plan))
    return Row(
        case="stream-tls",
        figure="catch-up under TLS, 1 connection",
        unit="bytes/s",
        values=rates,
        note="copied and encrypted; off on loopback",
    )


def _space(sizes: Sizes) -> int:
    return written(sizes.data_bytes // _VALUE_BYTES, _VALUE_BYTES)


CASES: Final = (Case("stream", "remote consumers: catch-up, idle, under TLS", _run, _space),)

__all__ = ["CASES"]
