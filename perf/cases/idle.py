"""What an idle broker takes: 8 partitions that have had a record each, default configuration."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Final

import psutil

from shmbroker.perf.case import Bench, Case
from shmbroker.perf.report import Row

_PARTITIONS: Final = 8
_MOST_CORES: Final = 0.01
_SETTLE_S: Final = 2.0


def _cpu_s(processes: Iterable[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _resident(processes: Iterable[psutil.Process]) -> tuple[int, str]:
    """Bytes that these processes hold; shared pages are shared out where the kernel says so."""
    rows = list(processes)
    try:
        return sum(int(process.memory_full_info().pss) for process in rows), "PSS"
    except (psutil.AccessDenied, AttributeError):
        return sum(int(process.memory_info().rss) for process in rows), "RSS"


def _run(bench: Bench) -> list[Row]:
    shares = []
    with bench.broker() as broker:
        with broker.connect() as client:
            client.create_topic("idle", partitions=_PARTITIONS)
            with client.producer() as producer:
                for partition in range(_PARTITIONS):
                    producer.send("idle", b"x" * 100, partition=partition).result(60)
        time.sleep(min(_SETTLE_S, bench.sizes.idle_s * 4))
        processes = broker.processes()
        for _ in range(bench.sizes.plan.rounds):
            before, began = _cpu_s(processes), time.perf_counter()
            time.sleep(bench.sizes.idle_s)
            shares.append((_cpu_s(processes) - before) / (time.perf_counter() - began))
        resident, kind = _resident(processes)
        memory = broker.status()["memory"]
    used, budget = int(memory["used_bytes"]), int(memory["budget_bytes"])
    return [
        Row(
            case="idle-cpu",
            figure=f"idle broker, {_PARTITIONS} partitions: processor",
            unit="cores",
            values=tuple(shares),
            target="< 1 % of a core",
            met=sorted(shares)[len(shares) // 2] < _MOST_CORES,
            note=f"{len(processes)} processes, {bench.sizes.idle_s:g} s each",
        ),
        Row(
            case="idle-memory",
            figure=f"idle broker, {_PARTITIONS} partitions: memory ({kind})",
            unit="bytes",
            values=(float(resident),),
            note="shared memory is bounded by memory.budget_bytes",
            more={"shared memory MiB": used / (1 << 20), "budget MiB": budget / (1 << 20)},
        ),
    ]


CASES: Final = (Case("idle", "processor and memory of an idle broker", _run, lambda _: 1 << 28),)

__all__ = ["CASES"]
