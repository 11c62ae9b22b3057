"""`demo`: broker up, this host's telemetry in and out again, a burst, broker down."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shmbroker.client import Client

_SAMPLE_EVERY_S = 0.05
_BURST_BATCH = 100_000
_RECORD_BYTES = 100


def demo(
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Seconds of telemetry.")
    ] = 2.0,
    records: Annotated[
        int, typer.Option("--records", min=1, help="Records in the burst.")
    ] = 2_000_000,
    directory: Annotated[
        Path | None,
        typer.Option("--directory", help="Where to put the data, else the temporary directory."),
    ] = None,
) -> None:
    """Show it all: a broker of its own, real input in and out again, verified, with rates.

    Example: shmbroker demo --records 5000000
    """
    from shmbroker.embedded import embedded

    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(143))  # ends the broker too
    began = time.perf_counter()
    with embedded(directory=directory, config={"broker.pin": "auto"}) as client:
        took = time.perf_counter() - began
        attached = client.connection.attachment
        home = attached.data_dir.parent
        print(f"broker up in {took:.2f} s (pid {attached.broker_pid}, data in {home})")
        good = _telemetry(client, seconds)
        _latency(client)
        good &= _burst(client, records)
    print("broker down")
    if not good:
        print("shmbroker: what came out is not what went in", file=sys.stderr)
        raise typer.Exit(1)


def _telemetry(client: Client, seconds: float) -> bool:
    """Metrics of this host as events keyed by metric; True if each key's events come back so."""
    client.create_topic("telemetry", partitions=4)
    sent: dict[bytes, list[bytes]] = defaultdict(list)
    count, end = 0, time.monotonic() + seconds
    with client.producer() as producer:
        while time.monotonic() < end:
            for metric, value in _sample().items():
                key = metric.encode()
                event = json.dumps({"at": time.time(), "value": value}).encode()
                producer.send("telemetry", event, key=key)
                sent[key].append(event)
                count += 1
            time.sleep(_SAMPLE_EVERY_S)  # the rate of sampling, not a wait for something
    got: dict[bytes | None, list[bytes]] = defaultdict(list)
    left = count
    with client.consumer("telemetry", start="earliest") as consumer:
        for batch in consumer.batches(timeout=5.0):
            for record in batch.records():
                got[record.key].append(bytes(record.value or b""))
                left -= 1
            if left <= 0:
                break
    good = got == sent
    print(
        f"telemetry: {count} events of {len(sent)} metrics in {seconds:g} s over 4 partitions, "
        f"read back and {'equal, in order per metric' if good else 'NOT EQUAL'}"
    )
    return good


def _sample() -> dict[str, float]:
    import psutil

    memory, swap, net = psutil.virtual_memory(), psutil.swap_memory(), psutil.net_io_counters()
    found: dict[str, float] = {
        "memory.used": memory.used,
        "memory.available": memory.available,
        "swap.used": swap.used,
        "net.sent": net.bytes_sent,
        "net.received": net.bytes_recv,
        "processes": len(psutil.pids()),
        "load.1m": os.getloadavg()[0],
    }
    for cpu, times in enumerate(psutil.cpu_times(percpu=True)):
        found |= {f"cpu{cpu}.user": times.user, f"cpu{cpu}.idle": times.idle}
    disk: Any = psutil.disk_io_counters()
    if disk is not None:  # containers may show none
        found |= {"disk.read": disk.read_bytes, "disk.written": disk.write_bytes}
    return found


def _latency(client: Client, rounds: int = 500) -> None:
    """One record at a time, each on stable storage before the next."""
    client.create_topic("latency")
    took = []
    with client.producer(linger_ms=0) as producer:
        for n in range(rounds):
            began = time.perf_counter()
            producer.send("latency", b"%0*d" % (_RECORD_BYTES, n)).result(timeout=10)
            took.append((time.perf_counter() - began) * 1e6)
    took.sort()
    p50, p99 = took[rounds // 2], took[rounds * 99 // 100]
    print(f"one durable record at a time: p50 {p50:.0f} us, p99 {p99:.0f} us")


def _burst(client: Client, records: int) -> bool:
    """Distinct records at full speed, acknowledged on stable storage; True if equal again."""
    client.create_topic("burst")
    batches = [
        [b"%0*d" % (_RECORD_BYTES, n) for n in range(first, min(first + _BURST_BATCH, records))]
        for first in range(0, records, _BURST_BATCH)
    ]
    with client.producer() as producer:
        began = time.perf_counter()
        receipts = [producer.send_many("burst", batch) for batch in batches]
        for receipt in receipts:
            receipt.result(timeout=60)
        took = time.perf_counter() - began
    print(f"burst in:  {_rate(records, took)}, each on stable storage")
    expected, seen, count = hashlib.blake2b(), hashlib.blake2b(), 0
    for batch in batches:
        expected.update(b"".join(batch))
    got: list[list[bytes | None]] = []
    began = time.perf_counter()
    with client.consumer("burst", start="earliest") as consumer:
        for found in consumer.batches(timeout=5.0):
            got.append(found.values())
            count += len(got[-1])
            if count >= records:
                break
    took = time.perf_counter() - began
    for values in got:
        seen.update(b"".join(value or b"" for value in values))
    good = count == records and seen.digest() == expected.digest()
    print(f"burst out: {_rate(count, took)}, {'equal' if good else 'NOT EQUAL'}")
    return good


def _rate(records: int, seconds: float) -> str:
    per_s = records / seconds
    mb_s = per_s * _RECORD_BYTES / 1e6
    return (
        f"{records:,} records of {_RECORD_BYTES} B in {seconds:.2f} s: "
        f"{per_s / 1e6:.2f} M records/s, {mb_s:,.0f} MB/s"
    )
