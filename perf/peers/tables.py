"""The peers' part of the report's page: the goals, then a table a class of durability, and reads.

What an acknowledgement means stands in words at the head of each column; the winner of a row is
marked, whoever it is. Everything is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from shmbroker.perf.devices.results import DeviceResults
from shmbroker.perf.peers.compared import (
    CLASSES,
    Cell,
    Line,
    System,
    lines,
    read_lines,
    readers,
    systems,
)
from shmbroker.perf.peers.goals import verdicts
from shmbroker.perf.peers.units import said

STYLE: Final = """
table.peers{font-size:12px} table.peers th{vertical-align:bottom}
table.peers small{display:block;font-weight:400;color:#666;max-width:13rem}
td.win{background:#e7f3e7;font-weight:600} td.win:after{content:" ★";color:#2a7a2a}
td.missed{color:#a33;font-weight:600}
"""
_NOTE: Final = (
    "★ marks the winner of a row, whoever it is. Each system in the settings that its own "
    "documentation recommends for that durability (perf/README.md has them and the caveats), all "
    "on this device one after the other, clients and server on the same cores."
)


def part(device: DeviceResults) -> str:
    """All of it for one device; "" where no system was measured."""
    if not device.peers:
        return ""
    parts = [f"<h2>The broker and its peers on {escape(device.title)}</h2><p>{escape(_NOTE)}</p>"]
    parts.append(_versions(device))
    parts.append(_goals(device))
    for acks, words in CLASSES.items():
        if found := lines(device, acks):
            parts.append(f"<h3>{escape(words)}</h3>{_table(found, systems(device, acks))}")
    if found := read_lines(device):
        parts.append("<h3>Catch-up reads of what was just written</h3>")
        parts.append(_table(found, readers(device)))
    parts.append(_missing(device))
    return "\n".join(parts)


def _versions(device: DeviceResults) -> str:
    found = {name: text for peer in device.peers for name, text in peer.versions.items()}
    return f"<p>Versions: {escape(', '.join(f'{n} {text}' for n, text in found.items()))}</p>"


def _goals(device: DeviceResults) -> str:
    rows, missed = [], []
    for one in verdicts(device):
        best = f"{one.best.system.title}, {one.best.client}"
        rows.append(
            f"<tr><td>{escape(one.text)}<td class=n>{escape(said(one.ours.value, one.unit))}"
            f"<td class=n>{escape(said(one.best.value, one.unit))}<td>{escape(best)}"
            f"<td class=n>{one.factor:g} times<td class='n{'' if one.met else ' missed'}'>"
            f"{one.ratio:.1f} times{'' if one.met else ', missed'}</tr>"
        )
        if one.why:
            missed.append(f"<li>{escape(one.text)}: {escape(one.why)}</li>")
    if not rows:
        return ""
    head = "<tr><th>goal<th>shmbroker<th>the best of the others<th>who<th>wanted<th>found</tr>"
    why = f"<p>Why some are missed:</p><ul>{''.join(missed)}</ul>" if missed else ""
    return f"<h3>Against the goals</h3><table>{head}{''.join(rows)}</table>{why}"


def _table(found: Sequence[Line], columns: Sequence[System]) -> str:
    head = "".join(
        f"<th>{escape(column.title)}<small>{escape(column.words)}</small>" for column in columns
    )
    body = "".join(
        f"<tr><td>{escape(line.title)}{''.join(_cell(line, column) for column in columns)}</tr>"
        for line in found
    )
    return f"<table class=peers><tr><th>{head}</tr>{body}</table>"


def _cell(line: Line, column: System) -> str:
    cell = line.of(column)
    if cell is None:
        return "<td class=n>–"
    return f"<td class='n{' win' if cell.wins else ''}'>{_text(line, cell)}"


def _text(line: Line, cell: Cell) -> str:
    """The value, its rounds' spread where it is theirs, and whose client it is."""
    text = escape(said(cell.value, line.unit))
    small = []
    values = cell.row.values
    if len(values) > 1 and cell.value == cell.row.median:
        low, high = (said(each, line.unit) for each in (min(values), max(values)))
        small.append(f"{low} to {high}")
    if line.name.startswith("fastest"):
        small.append(cell.client)
    return text + (f"<small>{escape('; '.join(small))}</small>" if small else "")


def _missing(device: DeviceResults) -> str:
    """What has no figure, and why."""
    found = [
        f"<li>{escape(peer.title)}, {escape(row.figure)}: {escape(row.note)}"
        for peer in device.peers
        for row in peer.rows()
        if not row.values
    ]
    return f"<p>Without a figure:</p><ul>{''.join(found)}</ul>" if found else ""


__all__ = ["STYLE", "part"]
