"""`doctor`: what this host offers a broker, what would be gained, and how."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from shmbroker.cli.options import ConfigFile, DataDir, Instance, Json, configuration, places

if TYPE_CHECKING:
    from shmbroker.workers.doctor import Finding

_MARKS = {"good": ("green", "good  "), "better": ("yellow", "better"), "stops": ("red", "STOPS ")}


def doctor(
    instance: Instance = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Look at this host: kernel, /dev/shm, disk, limits, cores, clock; say what would be gained.

    Changes nothing and needs no broker. "better" names a gain and how to have it; only what STOPS a
    broker ends with exit code 1.

    Example: shmbroker doctor --data-dir /srv/shmbroker
    """
    from shmbroker.workers.doctor import examine

    where = places(instance, data_dir, config)
    found = list(examine(where, configuration(where)))
    if json:
        import orjson

        for finding in found:
            line = orjson.dumps(asdict(finding), option=orjson.OPT_APPEND_NEWLINE)
            sys.stdout.buffer.write(line)
    else:
        _show(found)
    if any(finding.state == "stops" for finding in found):
        raise typer.Exit(1)


def _show(found: list[Finding]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from shmbroker.cli.status_view import console

    out = console()
    width = max(len(finding.name) for finding in found)
    for finding in found:
        color, word = _MARKS[finding.state]
        line = Text.assemble((word, color), "  ", (f"{finding.name:{width}}", "bold"), "  ")
        indent = len(line)
        body = Text(finding.found)
        if finding.gain:
            body += Text(f"\nin the way: {finding.gain}" if finding.state == "stops"
                         else f"\ngained: {finding.gain}")  # fmt: skip
            body += Text(f"\nhow: {finding.how}")
        lines = body.wrap(out, max(20, out.width - indent))
        out.print(line + lines[0])
        for rest in lines[1:]:
            out.print(Padding(rest, (0, 0, 0, indent), expand=False))
