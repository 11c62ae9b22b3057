"""`send_many`, durable: the share in bytes of what bare O_DIRECT+RWF_DSYNC writes reach,
of 1 or of 4 MiB, whichever is faster, on the same kind of extents.

One topic of one partition. "fresh": nothing is ever retired, so every segment lies on fallocated
extents that were never written. "recycled": retention keeps little more than a round, and once
the first segments have come back, every further one is a recycled file; a round that met a fresh
one all the same doesn't count. Bytes are those of the log (batches, as written). The consumer's
checksum is compared after each round.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from shmbroker.perf.case import Bench, Case, Sizes, most_rounds, written
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.limits import LARGE, MIB, Extents, RawDisk
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row
from shmbroker.perf.rounds import Plan, against_limit
from shmbroker.perf.values import ValueSpec

_TOPIC: Final = "many"
_LEAST_SEGMENT: Final = 4 << 20
_SEGMENTS_KEPT: Final = 6  # at most, of a topic that recycles: sealed, active, next, and waiting
_ROUNDS_A_SEGMENT: Final = 2
_FILL_ROUNDS: Final = 16  # at least …
_FILL_S: Final = 10.0  # … and so long: small rounds are faster than the housekeeper
#: Where the broker is as fast as its limit most rounds are above it and don't count. On fresh
#: extents every try takes space for good, so there are fewer.
_MORE_TRIES: Final = 4

Kind = Literal["fresh", "recycled"]
_BARE: Final[dict[Kind, Extents]] = {"fresh": "fresh", "recycled": "written"}


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: which values, on which extents, and the share in bytes that is asked for."""

    text: str
    spec: ValueSpec
    kind: Kind
    least: float | None
    config: str = ""  # the broker's

    @property
    def case(self) -> str:
        shuffled = "-shuffled" if self.spec.shuffled else ""
        return f"send-many-{self.spec.value_bytes}-{self.kind}{shuffled}"

    @property
    def segment_bytes(self) -> int:
        """Several rounds, so that the housekeeper has the time to retire before the next roll."""
        round_bytes = written(self.spec.count, self.spec.value_bytes)
        return max(_LEAST_SEGMENT, _ROUNDS_A_SEGMENT * round_bytes)

    def plan(self, sizes: Sizes) -> Plan:
        """How often it is tried."""
        more = _MORE_TRIES if self.kind == "recycled" else 1
        return dataclasses.replace(sizes.plan, tries=sizes.plan.tries * more)

    def topic_config(self) -> dict[str, int]:
        """The topic's."""
        if self.kind == "fresh":
            return {}
        return {"segment.bytes": self.segment_bytes, "retention.bytes": self.segment_bytes}


class _Files:
    """Which files a topic's segments were in: one seen before was written before."""

    def __init__(self, directories: list[Path]) -> None:
        self._directories = directories
        self._known: set[int] = set()

    def fresh(self) -> int:
        """How many segments are in files that were not there at the last call."""
        segments: set[int] = set()
        others: set[int] = set()
        for directory in self._directories:
            for path in directory.iterdir():
                if path.name.endswith((".log", ".free")):
                    found = segments if path.name.endswith(".log") else others
                    found.add(path.stat().st_ino)
        new = segments - self._known
        self._known = (self._known & others) | segments
        return len(new)


def measure(bench: Bench, figure: Figure) -> Row:
    """The row of a figure: durable rounds between measurements of bare writes."""
    rates: dict[float, float] = {}  # bytes a second: records a second
    sent, spec = 0, figure.spec
    with (
        bench.broker(figure.config) as broker,
        RawDisk(bench.home) as disk,
        broker.connect() as client,
        Remote(Receiver, broker.address) as receiver,
        Remote(Sender, broker.address, _TOPIC, spec) as sender,
    ):
        client.create_topic(_TOPIC, config=figure.topic_config())
        expected = sender.call("checksum")
        directories = [Path(p["directory"]) for p in client.status()["partitions"]]
        files = _Files(directories)

        def log_bytes() -> int:
            return sum(int(p["log_end_position"]) for p in client.status()["partitions"])

        def run() -> float:
            nonlocal sent
            before = log_bytes()
            took = float(sender.call("many"))
            rate = (log_bytes() - before) / took
            rates[rate] = spec.count / took
            return rate

        def check() -> str | None:
            nonlocal sent
            if receiver.call("checksum", _TOPIC, {0: sent}, spec.count) != expected:
                raise AssertionError(f"{figure.text}: what came out is not what went in")
            sent += spec.count
            fresh = files.fresh() and figure.kind == "recycled" and not bench.sizes.smoke
            return "a segment on fresh extents" if fresh else None

        if figure.kind == "recycled" and not bench.sizes.smoke:
            _until_recycled(run, check)
        found = against_limit(
            run,
            lambda: disk.write_rate(bench.sizes.raw_bytes, _BARE[figure.kind]),
            figure.plan(bench.sizes),
            check,
        )
        direct, bare = disk.direct, disk.rates
    share = statistics.median(found.shares)
    least = figure.least
    notes = [f"{spec.count:,} values a round, checksum equal"]
    if not found.steady:
        notes.append("NO VALID ROUND: these are the invalid ones")
    if not direct:
        notes.append("no O_DIRECT on this file system")
    return Row(
        case=figure.case,
        figure=figure.text,
        unit="records/s",
        values=tuple(rates[value] for value in found.values),
        limit=Limit(f"bare durable writes, {figure.kind} extents", found.limit, "bytes/s"),
        ratio=share,
        target="" if least is None else f">= {least:.2f} in bytes",
        met=None if least is None or not found.steady else share >= least,
        thrown=tuple(found.thrown),
        note="; ".join(notes),
        more={
            "median share of all steady rounds": _median(found.all_shares),
            "MB/s": statistics.median(found.values) / 1e6,
            "bare 1 MiB MB/s": statistics.median(bare[MIB]) / 1e6,
            "bare 4 MiB MB/s": statistics.median(bare[LARGE]) / 1e6,
        },
    )


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def _until_recycled(run: Callable[[], float], check: Callable[[], str | None]) -> None:
    """Rounds until so many in a row met no fresh file that one of them must have rolled."""
    clean, deadline = 0, time.monotonic() + _FILL_S
    for n in itertools.count():
        if n >= _FILL_ROUNDS and time.monotonic() > deadline:
            break
        run()
        clean = 0 if check() else clean + 1
        if clean == _ROUNDS_A_SEGMENT + 1:
            return
    raise AssertionError("retention gives no segments back: nothing is recycled")


def _run_100(bench: Bench) -> list[Row]:
    plain = ValueSpec(bench.sizes.values)
    shuffled = ValueSpec(bench.sizes.values, shuffled=True)
    return [
        measure(bench, Figure("send_many, 100 B, durable, recycled", plain, "recycled", 0.70)),
        measure(bench, Figure("send_many, 100 B, durable, fresh", plain, "fresh", 0.70)),
        measure(bench, Figure("the same, values shuffled", shuffled, "recycled", None)),
    ]


def _run_1k(bench: Bench) -> list[Row]:
    spec = ValueSpec(bench.sizes.values_1k, value_bytes=1024)
    return [
        measure(bench, Figure("send_many, 1 KiB, durable, recycled", spec, "recycled", 0.90)),
        measure(bench, Figure("send_many, 1 KiB, durable, fresh", spec, "fresh", 0.90)),
    ]


def _space(sizes: Sizes, count: int, value_bytes: int) -> int:
    bare = 4 * sizes.raw_bytes
    fresh = most_rounds(sizes) * (written(count, value_bytes) + bare)
    recycled = _SEGMENTS_KEPT * _ROUNDS_A_SEGMENT * written(count, value_bytes) + bare
    return max(fresh, recycled)


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

__all__ = ["CASES", "Figure", "measure"]
