"""The broker's workloads on one device, each held against the device's own limit.

Every produce row: values made in a spawned process after the broker started, a new topic, rounds of
one `send_many` to each partition, timed until all receipts are there; after each round everything
is read back and its checksum compared, which also waits until it is durable. Its share is in bytes
of log, against bare durable writes right before and after the round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shmbroker.perf.broker import Broker
from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.cases import consume, durable_one, send_many
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.devices.fio import size_text
from shmbroker.perf.limits import RawDisk
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.values import ValueSpec

VALUE_BYTES: Final = (100, 1024, 16384)
ACKS: Final = ("none", "memory", "durable")
PARTITIONS: Final = (1, 4)
_SETTINGS: Final = ((1, 1), (1, 4), (1, 16), (4, 4), (16, 1))  # flush_depth, MiB a write
#: So that cold records are not in the ring, where a consumer would find them.
_SMALL_RINGS: Final = '[memory]\nring_min_bytes = "256KiB"\nring_max_bytes = "2MiB"\n'
_CONFIGS: Final = Path(__file__).resolve().parents[2] / "configs"
_BARE: Final = "bare O_DIRECT durable writes, fresh extents"


@dataclass(frozen=True, slots=True)
class Produce:
    """One row: how large, acknowledged when, over how many partitions."""

    spec: ValueSpec
    acks: str
    partitions: int
    name: str = "produce"
    config: str = ""  # in words, where it is what is compared

    @property
    def case(self) -> str:
        """For machines."""
        if self.config:
            return self.name
        return f"{self.name}-{self.spec.value_bytes}-{self.acks}-{self.partitions}"

    @property
    def figure(self) -> str:
        """For people."""
        size = value_text(self.spec.value_bytes)
        many = "1 partition" if self.partitions == 1 else f"{self.partitions} partitions"
        text = f"send_many, {size}, acks {self.acks}, {many}"
        return f"{text}: {self.config}" if self.config else text


def value_text(nbytes: int) -> str:
    """100 B, 1 KiB."""
    return f"{nbytes} B" if nbytes < 1024 else size_text(nbytes)


def _spec(sizes: Sizes, value_bytes: int) -> ValueSpec:
    counts = {100: sizes.values, 1024: sizes.values_1k}
    count = counts.get(value_bytes, sizes.values_1k * 1024 // value_bytes)
    return ValueSpec(max(4, count // 4 * 4), value_bytes)


@dataclass(frozen=True, slots=True)
class Rig:
    """A broker, and the processes that send the same values to it and read them back."""

    broker: Broker
    sender: Remote[Sender]
    receiver: Remote[Receiver]


@contextlib.contextmanager
def rig(bench: Bench, spec: ValueSpec, config: str = "") -> Iterator[Rig]:
    """All three, up; gone at the end."""
    with (
        bench.broker(config) as broker,
        Remote(Receiver, broker.address) as receiver,
        Remote(Sender, broker.address, "", spec) as sender,
    ):
        yield Rig(broker, sender, receiver)


def produce(bench: Bench, on: Rig, wanted: Produce) -> Row:
    """The row; the topic is gone afterwards."""
    sender, receiver = on.sender, on.receiver
    topic, spec, parts = wanted.case, wanted.spec, wanted.partitions
    rates: list[float] = []
    shares: list[float] = []
    limits: list[float] = []
    durable = wanted.acks == "durable"
    plan = bench.sizes.plan
    bench.say(wanted.figure)
    with RawDisk(bench.home) as disk, on.broker.connect() as client:
        client.create_topic(topic, partitions=parts)
        sender.call("turn_to", topic, wanted.acks)
        expected = dict(enumerate(sender.call("part_checksums", parts)))

        def log_bytes() -> int:
            found = client.status()["partitions"]
            return sum(int(p["log_end_position"]) for p in found if p["topic"] == topic)

        for n in range(plan.warmups + plan.rounds):
            bare = disk.write_rate(bench.sizes.raw_bytes) if durable else 0.0
            before = log_bytes()
            took = float(sender.call("spread", parts))
            start = dict.fromkeys(expected, n * spec.count // parts)
            if receiver.call("checksums", topic, start, spec.count) != expected:
                raise AssertionError(f"{wanted.figure}: what came out is not what went in")
            if n < plan.warmups:
                continue
            rates.append(spec.count / took)
            if durable:
                limits.append((bare + disk.write_rate(bench.sizes.raw_bytes)) / 2)
                shares.append((log_bytes() - before) / took / limits[-1])
        client.delete_topic(topic)
    return Row(
        case=wanted.case,
        figure=wanted.figure,
        unit="records/s",
        values=tuple(rates),
        limit=Limit(_BARE, statistics.median(limits), "bytes/s") if limits else None,
        ratio=statistics.median(shares) if shares else None,
        note=f"{spec.count:,} values a round, checksum equal",
        more={"MB/s of values": statistics.median(rates) * spec.value_bytes / 1e6},
    )


def _produce_case(value_bytes: int) -> Case:
    def run(bench: Bench) -> list[Row]:
        spec = _spec(bench.sizes, value_bytes)
        with rig(bench, spec) as on:
            return [
                produce(bench, on, Produce(spec, acks, partitions))
                for partitions in PARTITIONS
                for acks in ACKS
            ]

    about = f"produce {value_text(value_bytes)}: acks none, memory, durable; 1 and 4 partitions"
    return Case(f"produce-{value_bytes}", about, run, _space)


def _extents(bench: Bench) -> list[Row]:
    """Recycled and fresh segments with O_DIRECT, and fresh ones through the page cache."""
    spec = _spec(bench.sizes, 1024)
    buffered = "[broker]\ndirect_io = false\n"
    kinds: tuple[tuple[str, str, send_many.Kind, str], ...] = (
        ("direct-recycled", "O_DIRECT, recycled segments", "recycled", ""),
        ("direct-fresh", "O_DIRECT, fresh segments", "fresh", ""),
        ("buffered-fresh", "through the page cache, fresh segments", "fresh", buffered),
    )
    rows = []
    for case, text, kind, config in kinds:
        bench.say(text)
        figure = send_many.Figure(f"send_many, 1 KiB, durable, {text}", spec, kind, None, config)
        rows.append(dataclasses.replace(send_many.measure(bench, figure), case=f"extents-{case}"))
    return rows


def _settings(bench: Bench) -> list[Row]:
    """Durable produce over 4 partitions under the settings that the configurations differ in."""
    spec = _spec(bench.sizes, 1024)
    tried = [
        (f"depth{depth}-{mib}m", f"flush_depth {depth}, {mib} MiB a write",
         f'[broker]\nflush_depth = {depth}\nflush_max_bytes = "{mib}MiB"\n')
        for depth, mib in _SETTINGS
    ]  # fmt: skip
    tried += [
        (name, f"configs/{name}.toml", (_CONFIGS / f"{name}.toml").read_text(encoding="utf-8"))
        for name in ("hdd", "ssd")
        if (_CONFIGS / f"{name}.toml").exists()  # an installed package has none
    ]
    rows = []
    for name, text, config in tried:
        with rig(bench, spec, config) as on:
            wanted = Produce(spec, "durable", 4, f"settings-{name}", text)
            rows.append(produce(bench, on, wanted))
    return rows


def _cold(bench: Bench) -> list[Row]:
    figure = "catch-up from cold segments, 1 KiB, values()"
    way: consume.Way = ("cold-1024", figure, "values", True, None)
    return consume.read(bench, _spec(bench.sizes, 1024), (way,), _SMALL_RINGS)


def _space(sizes: Sizes) -> int:
    """Of one topic with all its rounds, and the files of the bare writes beside it."""
    rounds = sizes.plan.warmups + sizes.plan.rounds
    values = max(written(sizes.values, 100), written(sizes.values_1k, 1024))
    return rounds * (values + 4 * sizes.raw_bytes)


def _extents_space(sizes: Sizes) -> int:
    return max(case.disk_bytes(sizes) for case in send_many.CASES)


def cases(settings: bool) -> tuple[Case, ...]:
    """In the order in which they run and are shown; `settings`: with the sweep over these."""
    one: Callable[[Bench], list[Row]] = durable_one.CASES[0].run
    return (
        *(_produce_case(value_bytes) for value_bytes in VALUE_BYTES),
        Case("extents", "O_DIRECT against the page cache, recycled against fresh", _extents,
             _extents_space),
        *([Case("settings", "flush_depth and flush_max_bytes", _settings, _space)] * settings),
        Case("durable-one", "one durable record at a time", one, lambda _: 256 << 20),
        Case("cold", "catch-up from cold segments", _cold, _space),
    )  # fmt: skip


__all__ = ["ACKS", "PARTITIONS", "VALUE_BYTES", "Produce", "cases", "produce", "value_text"]
