"""The report of a run: one HTML page that needs no other file, and its PNGs beside it.

First the broker beside its peers (`peers/tables.py`), then the devices. Everything is escaped. A
modelled device carries the word wherever it is named. Without matplotlib
the page has its tables, and says what to install for the pictures.
"""

from __future__ import annotations

import base64
import shlex
import time
from html import escape
from pathlib import Path
from typing import Final

from shmbroker.perf.devices.figures import BUSY, CORES
from shmbroker.perf.devices.results import DeviceResults, Results
from shmbroker.perf.peers import tables
from shmbroker.perf.report import Row, shown

PAGE: Final = "report.html"
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;width:100%;font-size:13px;margin:.6rem 0 1.6rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
img{max-width:100%;height:auto} figure{margin:1.2rem 0} figcaption{color:#555}
code,pre{background:#f4f4f4;padding:.1rem .3rem;border-radius:3px}
.model{color:#a33;font-weight:600}
"""
_CAVEATS: Final = (
    "Medians; spread is the smallest and the largest round. Rounds of a busy machine scatter: "
    "read a row together with its limit, which was measured around it.",
    "acks none: send_many has returned, nothing is acknowledged. acks memory: appended, lost with "
    "the host. acks durable: on stable storage.",
    "A share above 100 % means that the limit was measured in a slower moment, or that the broker "
    "writes larger pieces than the bare loop.",
)


def write(results: Results, out: Path) -> Path:
    """Writes page and pictures to `out`; returns the page's path."""
    pictures, why_none = _draw(results, out)
    path = out / PAGE
    path.write_text(_page(results, pictures, why_none), encoding="utf-8")
    return path


def _draw(results: Results, out: Path) -> tuple[list[tuple[str, str, bytes]], str]:
    """(title, text, PNG) of each picture that has something to show; why there are none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return [], "no pictures: matplotlib is missing; pip install 'shmbroker[perf]'"
    from shmbroker.perf import pictures
    from shmbroker.perf.peers import pictures as of_peers

    found = [(name, title, text, draw(results)) for name, title, text, draw in pictures.ALL]
    measured = [(n, device) for n, device in enumerate(results.devices, 1) if device.peers]
    for n, device in measured:
        where = f" on {device.title}" if len(measured) > 1 else ""
        found += [
            (f"peers-{name}" + (f"-{n}" if where else ""), title + where, text, draw(device))
            for name, title, text, draw in of_peers.ALL
        ]
    drawn = []
    for name, title, text, png in found:
        if png is not None:
            (out / f"{name}.png").write_bytes(png)
            drawn.append((title, text, png))
    return drawn, ""


def _page(results: Results, pictures: list[tuple[str, str, bytes]], why_none: str) -> str:
    names = ", ".join(device.title for device in results.devices)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>shmbroker on {escape(names)}</title><style>{_STYLE}{tables.STYLE}</style>",
        f"<h1>shmbroker on {escape(names)}</h1>",
        _about(results),
    ]
    parts += [f"<p>{escape(text)}</p>" for text in (*_CAVEATS, why_none) if text]
    for title, text, png in pictures:
        data = base64.b64encode(png).decode()
        parts.append(
            f"<h2>{escape(title)}</h2><figure><img alt='{escape(title)}' "
            f"src='data:image/png;base64,{data}'><figcaption>{escape(text)}</figcaption></figure>"
        )
    parts += [tables.part(device) for device in results.devices]
    parts += [_device(device) for device in results.devices]
    return "\n".join(parts) + "\n"


def _about(results: Results) -> str:
    began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(results.started_s))
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    state = "" if results.finished_s else " <b>This run is not finished.</b>"
    often = f", in {results.sessions} sessions" if results.sessions > 1 else ""
    return (
        f"<p>{escape(results.effort)} run, {began}{often}.{state}</p>"
        f"<p>Machine: {escape(results.machine_line)}</p><p>Versions: {escape(versions)}</p>"
        f"<p>Command: <code>{escape(shlex.join(results.command))}</code></p>"
    )


def _device(device: DeviceResults) -> str:
    model = f"<p class=model>{escape(device.modelled)}</p>" if device.modelled else ""
    parts = [f"<h2>{escape(device.title)}</h2>{model}<p>{escape(device.line)}</p>"]
    for name, rows in device.cases.items():
        parts.append(f"<h3>{escape(name)}</h3>{_table(rows)}")
    return "\n".join(parts)


def _table(rows: list[Row]) -> str:
    head = "<tr><th>figure<th>median<th>spread<th>limit<th>share<th>rounds<th>cores<th>besides</tr>"
    return f"<table>{head}{''.join(_line(row) for row in rows)}</table>"


def _line(row: Row) -> str:
    limit = f"{row.limit.name}: {shown(row.limit.value, row.limit.unit)}" if row.limit else ""
    spread = ""
    if len(row.values) > 1:
        spread = f"{shown(min(row.values), row.unit)} to {shown(max(row.values), row.unit)}"
    rounds = f"{len(row.values)}" + (f" (+{len(row.thrown)} thrown)" if row.thrown else "")
    counted = {BUSY, CORES}
    more = [f"{name} {value:,.4g}" for name, value in row.more.items() if name not in counted]
    return (
        f"<tr><td>{escape(row.figure)}<td class=n>{escape(shown(row.median, row.unit))}"
        f"<td class=n>{escape(spread)}<td>{escape(limit)}"
        f"<td class=n>{_share(row)}<td class=n>{rounds}"
        f"<td>{_cores(row)}<td>{escape('; '.join(filter(None, [row.note, *more])))}</tr>"
    )


def _share(row: Row) -> str:
    """The ratio to the limit; where there is a target, that and whether it is met."""
    if row.ratio is None:
        return ""
    if row.met is None:
        return f"{row.ratio:.2f}"
    word = "met" if row.met else "<b>missed</b>"
    return f"{row.ratio:.2f}<br>{escape(row.target)}: {word}"


def _cores(row: Row) -> str:
    """How many processes are busy on how many cores, where the workload counts them."""
    if BUSY not in row.more:
        return ""
    processes, cores = int(row.more[BUSY]), int(row.more[CORES])
    return f"{processes} busy on {cores}" + ("; <b>oversubscribed</b>" * (processes > cores))


__all__ = ["PAGE", "write"]
