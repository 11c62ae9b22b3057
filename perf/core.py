"""`python -m shmbroker.perf core`: the figures of the core, each beside its limit.

Keeps itself and everything that it starts on `--cores` cores, runs the cases one after the other in
a directory of its own, prints the table, and removes what it made, also after Ctrl+C.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from shmbroker.perf import machine
from shmbroker.perf.broker import private_places
from shmbroker.perf.case import SMOKE, Case, Sizes
from shmbroker.perf.cases import ALL
from shmbroker.perf.report import Row, print_rows, write_json
from shmbroker.perf.running import end, run_case

_MARGIN_BYTES: Final = 10 << 30  # others use the disk too
_MARGIN_SMOKE_BYTES: Final = 512 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    directory: Path
    smoke: bool = False
    cases: tuple[str, ...] = ()
    json: Path | None = None
    cores: int = 2
    data_gb: float | None = None
    rounds: int | None = None

    def sizes(self) -> Sizes:
        """The sizes of this run."""
        sizes = SMOKE if self.smoke else Sizes()
        if self.data_gb is not None:
            sizes = dataclasses.replace(sizes, data_bytes=int(self.data_gb * 1e9))
        if self.rounds is not None:
            plan = dataclasses.replace(sizes.plan, rounds=self.rounds)
            sizes = dataclasses.replace(sizes, plan=plan)
        return sizes


def chosen(names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these names, all without any; raises ValueError with what there is."""
    known = {case.name: case for case in ALL}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no case {unknown[0]!r}; there are: {', '.join(known)}")
    return tuple(known[name] for name in names) if names else ALL


def run(options: Options, console: Console) -> list[Row]:
    """Runs the cases, prints the table, writes the JSON; returns the rows."""
    cases, sizes = chosen(options.cases), options.sizes()
    options.directory.mkdir(parents=True, exist_ok=True)
    cores_before = os.sched_getaffinity(0)
    machine.pin_bench(options.cores)
    term_before = signal.signal(signal.SIGTERM, end)
    home = Path(tempfile.mkdtemp(prefix="shmb-bench-", dir=options.directory))
    try:
        about = machine.about(home)
        rows: list[Row] = []
        margin = _MARGIN_SMOKE_BYTES if sizes.smoke else _MARGIN_BYTES
        with private_places(home):
            for case in cases:
                rows += run_case(case, home, sizes, console, margin)
        print_rows(rows, machine.line(about), console)
        if options.json is not None:
            command = [sys.executable, "-m", "shmbroker.perf", *sys.argv[1:]]
            told = {"machine": about, "command": command, "time": time.time(),
                    "sizes": dataclasses.asdict(sizes)}  # fmt: skip
            write_json(options.json, rows, told)
        return rows
    finally:
        shutil.rmtree(home, ignore_errors=True)
        signal.signal(signal.SIGTERM, term_before)
        os.sched_setaffinity(0, cores_before)


__all__ = ["Options", "chosen", "run"]
