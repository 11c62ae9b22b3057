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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from shmbroker.client.client import Client
from shmbroker.perf.broker import Broker
from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.cases import durable_one, groups, remote, send_many
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.devices import consuming, growth
from shmbroker.perf.devices.effort import Effort
from shmbroker.perf.devices.figures import busy, spec_of, value_text
from shmbroker.perf.limits import RawDisk
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.spread import Spread
from shmbroker.perf.values import ValueSpec

VALUE_BYTES: Final = (100, 1024, 16384)
ACKS: Final = ("none", "memory", "durable")
PARTITIONS: Final = (1, 4, 16)
CODECS: Final = ("none", "lz4", "snappy", "zstd", "gzip")
_SETTINGS: Final = ((1, 1), (1, 4), (1, 16), (4, 4), (16, 1))  # flush_depth, MiB a write
_CONFIGS: Final = Path(__file__).resolve().parents[2] / "configs"
_LEAST_GROWTH: Final = 5 * 10**9  # more is filled where there is room
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
    topic, spec, parts = wanted.case, wanted.spec, wanted.partitions
    rates: list[float] = []
    shares: list[float] = []
    limits: list[float] = []
    durable = wanted.acks == "durable"
    plan = bench.sizes.plan
    bench.say(wanted.figure)
    with RawDisk(bench.home) as disk, on.broker.connect() as client:
        client.create_topic(topic, partitions=parts)
        on.sender.call("turn_to", topic, wanted.acks)
        spread = Spread(on.sender, on.receiver, topic, spec.count, parts)
        for n in range(plan.warmups + plan.rounds):
            bare = disk.write_rate(bench.sizes.raw_bytes) if durable else 0.0
            before = _log_bytes(client, topic)
            took = spread.round()
            if n < plan.warmups:
                continue
            rates.append(spread.count / took)
            if durable:
                limits.append((bare + disk.write_rate(bench.sizes.raw_bytes)) / 2)
                shares.append((_log_bytes(client, topic) - before) / took / limits[-1])
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


def _log_bytes(client: Client, topic: str) -> int:
    found = client.status()["partitions"]
    return sum(int(p["log_end_position"]) for p in found if p["topic"] == topic)


def _produce_case(value_bytes: int) -> Case:
    def run(bench: Bench) -> list[Row]:
        spec = spec_of(bench.sizes, value_bytes)
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
    spec = spec_of(bench.sizes, 1024)
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
    spec = spec_of(bench.sizes, 1024)
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


def _producers(bench: Bench, effort: Effort) -> list[Row]:
    """The values dealt out to more and more producers, a process and a partition each."""
    rows = []
    plan = bench.sizes.plan
    for acks in ("memory", "durable"):
        for count in effort.producers:
            spec = spec_of(bench.sizes, VALUE_BYTES[0], count)
            many = "1 producer" if count == 1 else f"{count} producers, a partition each"
            figure = f"send_many, {value_text(spec.value_bytes)}, acks {acks}, {many}"
            bench.say(figure)
            topic, rates = "producers", []
            with (
                bench.broker() as broker,
                contextlib.ExitStack() as stack,
                Remote(Receiver, broker.address) as receiver,
            ):
                with broker.connect() as client:
                    client.create_topic(topic, partitions=count)
                senders = [stack.enter_context(Remote(Sender, broker.address, topic, spec, False,
                                                      acks)) for _ in range(count)]  # fmt: skip
                expected = dict.fromkeys(range(count), senders[0].call("checksum"))
                for n in range(plan.warmups + plan.rounds):
                    began = time.perf_counter()
                    with contextlib.ExitStack() as sending:
                        for partition, sender in enumerate(senders):
                            sending.enter_context(sender.meanwhile("many", partition))
                    rates.append(count * spec.count / (time.perf_counter() - began))
                    start = dict.fromkeys(expected, n * spec.count)
                    if receiver.call("checksums", topic, start, count * spec.count) != expected:
                        raise AssertionError(f"{figure}: what came out is not what went in")
            note = f"{spec.count:,} values a producer and round, checksums equal"
            more = {"of each, M/s": statistics.median(rates[plan.warmups :]) / count / 1e6}
            rows.append(
                Row(f"producers-{count}-{acks}", figure, "records/s",
                    tuple(rates[plan.warmups :]), note=note, more=more | busy(count + 1))
            )  # fmt: skip
    return rows


def _compression(bench: Bench) -> list[Row]:
    """JSON of 1 KiB as sensors send it: what each codec takes, saves, and costs its reader."""
    spec = dataclasses.replace(spec_of(bench.sizes, 1024), telemetry=True)
    rows = []
    with rig(bench, spec) as on, on.broker.connect() as client:
        for codec in CODECS:
            wanted = Produce(spec, "durable", 1, f"compression-{codec}", f"JSON, {codec}")
            bench.say(wanted.figure)
            topic, plan = wanted.case, bench.sizes.plan
            client.create_topic(topic)
            on.sender.call("turn_to", topic, "durable", codec)
            rounds, before = plan.warmups + plan.rounds, _log_bytes(client, topic)
            expected, rates = on.sender.call("checksum"), []
            for n in range(rounds):
                rates.append(spec.count / float(on.sender.call("many")))
                found = on.receiver.call("checksum", topic, {0: n * spec.count}, spec.count)
                if found != expected:
                    raise AssertionError(f"{wanted.figure}: what came out is not what went in")
            size = _log_bytes(client, topic) - before
            took, got = on.receiver.call("read", topic, spec.count * rounds, "values")
            rows.append(
                Row(wanted.case, wanted.figure, "records/s", tuple(rates[plan.warmups :]),
                    note=f"{spec.count:,} values a round, checksum equal",
                    more={"MB/s of values": statistics.median(rates) * spec.value_bytes / 1e6,
                          "bytes of log a byte of values": size / spec.total_bytes / rounds,
                          "read again, M/s": got / took / 1e6})
            )  # fmt: skip
            client.delete_topic(topic)
    return rows


def _space(sizes: Sizes) -> int:
    """Of one topic with all its rounds, and the files of the bare writes beside it."""
    rounds = sizes.plan.warmups + sizes.plan.rounds
    values = max(written(sizes.values, 100), written(sizes.values_1k, 1024))
    return rounds * (values + 4 * sizes.raw_bytes)


def _extents_space(sizes: Sizes) -> int:
    return max(case.disk_bytes(sizes) for case in send_many.CASES)


def cases(effort: Effort) -> tuple[Case, ...]:
    """In the order in which they run and are shown."""
    one: Callable[[Bench], list[Row]] = durable_one.CASES[0].run
    network = (*remote.CASES, *groups.CASES) if effort.network else ()
    data = partial(growth.data, effort=effort)
    space = min(effort.growth_bytes, _LEAST_GROWTH)
    grown = [Case("growth-data", "on top of more and more data", data, lambda _: space)]
    return (
        *(_produce_case(value_bytes) for value_bytes in VALUE_BYTES),
        Case("producers", "more producers", partial(_producers, effort=effort), _space),
        Case("extents", "O_DIRECT against the page cache, recycled against fresh", _extents,
             _extents_space),
        *([Case("settings", "flush_depth and flush_max_bytes", _settings, _space)]
          * effort.settings),
        Case("durable-one", "one durable record at a time", one, lambda _: 256 << 20),
        Case("latency", "end to end at fixed rates", partial(consuming.latency, effort=effort),
             lambda _: 1 << 30),
        Case("fan-out", "to more consumers", partial(consuming.fan_out, effort=effort), _space),
        Case("catch-up", "hot, and from cold segments", consuming.catch_up, _space),
        Case("mixed", "catch-up beside a tail", partial(consuming.mixed, effort=effort), _space),
        Case("compression", "codecs", _compression, _space),
        *network,
        Case("growth-partitions", "among more partitions",
             partial(growth.partitions, effort=effort), _space),
        *(grown * bool(effort.growth_bytes)),
    )  # fmt: skip


__all__ = ["ACKS", "CODECS", "PARTITIONS", "VALUE_BYTES", "Produce", "cases", "produce"]
