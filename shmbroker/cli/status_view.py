"""How `status` looks to a person: as many columns as the terminal has room for.

Nothing is cut off within a column; what has no room is left out from the least important on, and a
pipe gets all of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from shmbroker.cli.waiting_view import STYLES, pressure, sentences
from shmbroker.units import about_bytes as size
from shmbroker.units import about_s as duration

_PIPE_WIDTH: Final = 500  # nothing is left out or wrapped
_GAP: Final = 3

Row = Sequence[Any]
Before = Mapping[str, Any]  # an earlier status and when it was taken, for rates


def console() -> Console:
    """Standard output, in its own width."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(highlight=False, width=width, soft_wrap=False)


def render(found: Mapping[str, Any], width: int, before: Before | None = None) -> RenderableType:
    """All of it. With an earlier status `before`, partitions have rates."""
    adopted = ", took over a killed broker's rings" if found["adopted"] else ""
    memory = found["memory"]
    lines = [
        Text.assemble("broker ", (found["instance"], "bold"), f" is {found['state']}, pid "
                      f"{found['broker_pid']}, up {duration(found['uptime_s'])}{adopted}"),
        Text(f"data {found['data_dir']} (id {found['data_dir_id'][:8]})"),
        Text("endpoints " + ", ".join(found["endpoints"].values())),
        *_listening(found.get("listen")),
        Text(
            f"memory {size(memory['used_bytes'])} of {size(memory['budget_bytes'])}: log rings "
            f"{size(memory['log_bytes'])}, ingress rings {size(memory['ingress_bytes'])}, tables "
            f"{size(memory['table_bytes'])}; /dev/shm has {size(memory['shm_free_bytes'])} free"
        ),
    ]  # fmt: skip
    lines += sentences(found)
    tables = [_processes(found, width), _partitions(found, width, before), _clients(found, width)]
    parts: list[RenderableType] = [*lines]
    for table in tables:
        if table is not None:
            parts += [Text(""), table]
    return Group(*parts)


def _listening(listen: Mapping[str, Any] | None) -> list[Text]:
    """What programs elsewhere reach; nothing where nothing listens."""
    if not listen:
        return []
    safe = "CURVE and TLS" if listen["curve"] else "a token"
    where = "; ".join(
        f"{name} {', '.join(listen[name])}" for name in ("control", "ingress", "data", "events")
    )
    workers = ", ".join(f"{w['name']} {w['state']}{_used(w)}" for w in listen["workers"])
    refused = f", {listen['keys_refused']} keys refused" if listen["keys_refused"] else ""
    return [
        Text(f"listening, with {safe}: {where}"),
        Text(f"from elsewhere: {len(listen['clients'])} clients{refused}; {workers}"),
    ]


def _used(worker: Mapping[str, Any]) -> str:
    """By how many, if the worker has said so."""
    for name in ("connections", "sessions"):
        if name in worker:
            return f" with {worker[name]} {name}"
    return ""


def _processes(found: Mapping[str, Any], width: int) -> Table | None:
    rows = [
        (
            p["name"],
            p["pid"] or "-",
            p.get("state", "-"),
            p.get("restarts", "-"),
            _cpus(p["cpus"]) + (" (pinned)" if p.get("pinned") else ""),
        )
        for p in found["processes"]
    ]
    return table(("process", "pid", "state", "restarts", "cpus"), rows, width)


def _partitions(found: Mapping[str, Any], width: int, before: Before | None) -> Table | None:
    head = ["partition", "writer", "state", "pressure", "offsets", "unsynced", "segments", "io",
            "ring", "waits for"]  # fmt: skip
    rows = [_partition(p) for p in found["partitions"]]
    if before is not None:
        head.insert(3, "records/s")
        rates = _rates(found, before)
        rows = [(*row[:3], rates[row[0]], *row[3:]) for row in rows]
    least = ("io", "segments", "ring", "writer", "unsynced", "waits for", "offsets")
    return table(head, rows, width, least)


def _rates(found: Mapping[str, Any], before: Before) -> dict[str, str]:
    seconds = max(1e-3, found["uptime_s"] - before["uptime_s"])
    was = {(p["topic"], p["partition"]): p.get("log_end_offset") for p in before["partitions"]}
    rates = {}
    for p in found["partitions"]:
        old, new = was.get((p["topic"], p["partition"])), p.get("log_end_offset")
        known = old is not None and new is not None and new >= old
        rates[f"{p['topic']}-{p['partition']}"] = f"{(new - old) / seconds:,.0f}" if known else "-"
    return rates


def _partition(p: Mapping[str, Any]) -> tuple[Any, ...]:
    state = p["state"] if p["state"] == "online" else f"{p['state']}: {p['reason']}"
    blocked, segments = p.get("blocked_s"), p.get("segments", "-")
    waits = f"{p['blocked_why']} {duration(blocked)}" if blocked else "-"
    return (
        f"{p['topic']}-{p['partition']}",
        p["writer"],
        state.removesuffix(": "),
        pressure(p),
        f"{p['log_start_offset']}-{p['log_end_offset']}" if "log_end_offset" in p else "-",
        p["log_end_offset"] - p["durable_offset"] if "durable_offset" in p else "-",
        len(segments) if isinstance(segments, list) else segments,
        p.get("io_mode", "-"),
        _fill(p.get("ring_fill_bytes", 0), p.get("ring_bytes", 0)),
        waits,
    )


def _clients(found: Mapping[str, Any], width: int) -> Table | None:
    head = ("client", "pid", "name", "attached", "ingress", "writer", "fill", "waits for")
    rows = [row for client in found["clients"] for row in _client(client)]
    return table(head, rows, width, ("attached", "ingress", "client", "writer", "fill", "name"))


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


def table(
    head: Sequence[str], rows: Sequence[Row], width: int, least: Sequence[str] = ()
) -> Table | None:
    """A table of at most `width` columns of text; `least` names its columns in the order in which
    they are left out. None without rows."""
    if not rows:
        return None
    cells = [[str(cell) for cell in row] for row in rows]
    widths = {name: max(len(name), *(len(row[n]) for row in cells)) for n, name in enumerate(head)}
    shown = list(head)
    for name in least:
        if sum(widths[n] + _GAP for n in shown) <= width + _GAP:
            break
        shown.remove(name)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in shown:
        numbers = all(row[head.index(name)].replace(",", "").isdecimal() for row in cells)
        # The first column is the name of a thing: it goes on in the next line rather than be cut.
        made.add_column(
            name, overflow="fold", no_wrap=False, justify="right" if numbers else "left"
        )
    for row in cells:
        made.add_row(
            *(Text(row[head.index(name)], style=_style(row, head, name)) for name in shown)
        )
    return made


def _style(row: Sequence[str], head: Sequence[str], name: str) -> str:
    text = row[list(head).index(name)]
    if name == "state" and not text.startswith(("online", "up", "running", "ready", "-")):
        return "yellow" if text.startswith("opening") else "red"
    if name == "pressure":
        return STYLES.get(text.partition(" ")[0], "")
    return "bold" if name == head[0] else ""


def _fill(used: int, capacity: int) -> str:
    return f"{size(used)} of {size(capacity)}" if capacity else "-"


def _cpus(cpus: Sequence[int]) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "-"
