"""How `status` looks to a person."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(found: Mapping[str, Any]) -> None:
    """Prints it."""
    # Wider than any terminal: nothing is cut off, the terminal wraps what it has no room for.
    console = Console(highlight=False, width=500)
    adopted = ", took over a killed broker's rings" if found["adopted"] else ""
    console.print(
        f"broker [bold]{found['instance']}[/bold] is {found['state']}, pid {found['broker_pid']}, "
        f"up {_duration(found['uptime_s'])}{adopted}"
    )
    console.print(f"data {found['data_dir']} (id {found['data_dir_id'][:8]})")
    console.print("endpoints " + ", ".join(found["endpoints"].values()))
    memory = found["memory"]
    console.print(
        f"memory {size(memory['used_bytes'])} of {size(memory['budget_bytes'])}: log rings "
        f"{size(memory['log_bytes'])}, ingress rings {size(memory['ingress_bytes'])}, tables "
        f"{size(memory['table_bytes'])}; /dev/shm has {size(memory['shm_free_bytes'])} free"
    )
    _print(
        console,
        ("process", "pid", "state", "restarts", "cpus"),
        [
            (
                p["name"],
                p["pid"] or "-",
                p.get("state", "-"),
                p.get("restarts", "-"),
                _cpus(p["cpus"]) + (" (pinned)" if p.get("pinned") else ""),
            )
            for p in found["processes"]
        ],
    )
    _print(
        console,
        ("partition", "writer", "state", "offsets", "unsynced", "segments", "io", "ring",
         "waits for"),
        [_partition(p) for p in found["partitions"]],
    )  # fmt: skip
    _print(
        console,
        ("client", "pid", "name", "attached", "ingress", "writer", "fill", "waits for"),
        [row for client in found["clients"] for row in _client(client)],
    )


def _partition(p: Mapping[str, Any]) -> tuple[Any, ...]:
    state = p["state"] if p["state"] == "online" else f"{p['state']}: {p['reason']}"
    blocked, segments = p.get("blocked_s"), p.get("segments", "-")
    waits = f"{p['blocked_why']} {_duration(blocked)}" if blocked else "-"
    return (
        f"{p['topic']}-{p['partition']}",
        p["writer"],
        state.removesuffix(": "),
        f"{p['log_start_offset']}-{p['log_end_offset']}" if "log_end_offset" in p else "-",
        p["log_end_offset"] - p["durable_offset"] if "durable_offset" in p else "-",
        len(segments) if isinstance(segments, list) else segments,
        p.get("io_mode", "-"),
        _fill(p.get("ring_fill_bytes", 0), p.get("ring_bytes", 0)),
        waits,
    )


def _client(client: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    since = time.strftime("%F %T", time.localtime(client["attached_s"]))
    who = (client["client"], client["pid"], client["name"][:40], since)
    rings = [
        (
            ring["ingress"],
            ring["writer"],
            _fill(ring.get("fill_bytes", 0), ring["capacity"]),
            ring.get("waits_for") or "-",
        )
        for ring in client["ingress"]
    ]
    rows: list[tuple[Any, ...]] = [(*who, *ring) for ring in rings]
    return rows or [(*who, "-", "-", "-", "-")]


def _fill(used: int, capacity: int) -> str:
    return f"{size(used)} of {size(capacity)}" if capacity else "-"


def _print(console: Console, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if not rows:
        return
    table = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print()
    console.print(table)


def size(n: int) -> str:
    """Bytes, for people."""
    value = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h" if hours < 48 else f"{hours // 24} days"


def _cpus(cpus: Sequence[int]) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "-"
