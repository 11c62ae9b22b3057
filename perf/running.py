"""One case of a run: refused when space is short, stopped before a disk is full, failed by name."""

from __future__ import annotations

import shutil
import time
import traceback
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from shmbroker.perf.case import Bench, Case, Sizes
from shmbroker.perf.guard import DiskGuard
from shmbroker.perf.report import Row


def run_case(
    case: Case, home: Path, sizes: Sizes, console: Console, margin_bytes: int
) -> list[Row]:
    """The rows of a case, or one row without values that says why there are none.

    Leaves `margin_bytes` of the file system of `home` free.
    """
    needed = case.disk_bytes(sizes) + margin_bytes
    free = shutil.disk_usage(home).free
    if free < needed:
        short = f"needs {needed / 1e9:.1f} GB in {home.parent}, {free / 1e9:.1f} GB are free"
        return [_without(case, f"refused: {short}; name another place with --dir")]
    began = time.perf_counter()
    console.print(f"{case.name}: {case.about}", highlight=False)

    def say(what: str) -> None:
        console.print(f"  {what}", highlight=False, markup=False, style="dim")

    guard = DiskGuard(home, margin_bytes)
    try:
        with guard:
            rows = case.run(Bench(home, sizes, say, guard))
    except Exception as error:
        if guard.tripped:
            left = f"stopped: less than {margin_bytes / 1e9:.1f} GB were left in {home.parent}"
            return [_without(case, left)]
        console.print(traceback.format_exc(), highlight=False, markup=False)
        return [_without(case, f"failed: {type(error).__name__}: {str(error)[-300:]}")]
    console.print(f"  {time.perf_counter() - began:.1f} s", highlight=False, style="dim")
    return rows


def _without(case: Case, note: str) -> Row:
    return Row(case=case.name, figure=case.about, unit="", values=(), met=False, note=note)


def end(_signal: int, _frame: object) -> NoReturn:
    """A handler of SIGTERM under which everything is cleaned up."""
    raise SystemExit(143)


__all__ = ["end", "run_case"]
