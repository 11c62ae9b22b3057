"""A run over devices: each described, its raw limits, then the broker's workloads on it.

Everything that a run writes to a device is below one directory, `shmb-perf-<pid>-…`, which goes
when the run ends, is interrupted or is terminated; what a killed run left goes at the next run
there. Results are saved after each case; a run with the same devices, effort and `out` goes on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shmbroker.perf import machine
from shmbroker.perf.broker import private_places
from shmbroker.perf.case import Bench, Case, Sizes
from shmbroker.perf.devices import fio, workloads
from shmbroker.perf.devices.description import describe, line
from shmbroker.perf.devices.effort import Effort
from shmbroker.perf.devices.model import Hdd, ModelHdd, judge, unmount
from shmbroker.perf.devices.needs import require_package
from shmbroker.perf.devices.results import FILE, DeviceResults, Results, Unusable, load
from shmbroker.perf.peers import run as peers_run
from shmbroker.perf.peers.effort import EFFORTS
from shmbroker.perf.peers.effort import Effort as PeersEffort
from shmbroker.perf.peers.fetching import Cache
from shmbroker.perf.peers.peer import Peer
from shmbroker.perf.report import Row
from shmbroker.perf.running import end, run_case

PREFIX: Final = "shmb-perf-"
MODEL_NAME: Final = "HDD"
_JUDGED: Final = (
    ("fio-sequential-read-4k", "fio-random-read-4k"),
    ("fio-sequential-write-4k", "fio-random-write-4k"),
)


@dataclass(frozen=True, slots=True)
class Device:
    """One to measure: a directory on it, or the model with its bytes below that directory."""

    name: str
    directory: Path
    model: Hdd | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    devices: tuple[Device, ...]
    effort: Effort
    out: Path
    anew: bool = False
    cases: tuple[Case, ...] | None = None  # None: all
    devices_too: bool = True  # False: the peers alone
    peers: tuple[type[Peer], ...] = ()
    cache: Path = peers_run.CACHE

    @property
    def chosen_cases(self) -> tuple[Case, ...]:
        """Of a device's own."""
        if not self.devices_too:
            return ()
        return self.cases or all_cases(self.effort)

    def peers_on(self, device: Device) -> tuple[type[Peer], ...]:
        """A model is for the device's own rows: what it charges is no system's daily bread."""
        return () if device.model is not None else self.peers

    @property
    def peers_effort(self) -> PeersEffort:
        """Of the same name."""
        return EFFORTS[self.effort.name]


def all_cases(effort: Effort) -> tuple[Case, ...]:
    """The raw limits, then the broker's."""

    def raw(bench: Bench) -> list[Row]:
        return fio.run(bench.home, effort.fio, bench.say)

    def space(_sizes: Sizes) -> int:
        return effort.fio.file_bytes

    return (
        Case("fio", "raw limits by fio", raw, space),
        *workloads.cases(effort),
    )


def begun(options: Options) -> Results:
    """The unfinished run in `out`, if it is of the same kind, or a new one; raises Unusable."""
    new = Results(
        options.effort.name,
        [
            DeviceResults(
                device.name, str(device.directory), device.model.text() if device.model else ""
            )
            for device in options.devices
        ],
        command=["shmbroker", *sys.argv[1:]],
    )
    path = options.out / FILE
    if options.anew or not path.exists():
        return new
    old = load(path)
    if old.finished_s is not None and not _lacks(old, options):
        raise Unusable(f"{path} is a finished run: name another place with --out, or --anew")
    if old.key != new.key:
        raise Unusable(
            f"{path} is an unfinished run of other devices or another effort: finish that one, "
            "name another place with --out, or --anew"
        )
    old.sessions += 1
    old.finished_s = None
    return old


def _lacks(results: Results, options: Options) -> bool:
    """Whether something is asked for that the run was not asked for before."""
    for device, found in zip(options.devices, results.devices, strict=False):
        peers = {peer.name for peer in options.peers_on(device)} - {p.name for p in found.peers}
        if peers or any(case.name not in found.cases for case in options.chosen_cases):
            return True
    return False


def run(options: Options, console: Console) -> Results:
    """Measures what is not measured yet; returns the results, which are saved in `out`.

    Raises BadModel, MissingTool, FioFailed, Unusable; SystemExit at SIGTERM. `results.json` then
    holds the cases that were done.
    """
    results = begun(options)
    if options.peers:
        require_package("hdrh", "hdrhistogram")  # before hours of measuring, not in their midst
    cases = options.chosen_cases
    results.versions |= machine.versions() | ({"fio": fio.version()} if cases else {})
    options.out.mkdir(parents=True, exist_ok=True)
    term_before = signal.signal(signal.SIGTERM, end)
    try:
        with (
            _progress(console) as progress,
            tempfile.TemporaryDirectory(prefix="shmb-perf-") as scratch,
            private_places(Path(scratch)),
        ):
            if not results.machine:
                results.machine = machine.about(options.out)
                results.machine_line = machine.line(results.machine)
            total = sum(
                len(cases) + peers_run.steps(options.peers_on(each)) for each in options.devices
            )
            task = progress.add_task("", total=total)
            cache = Cache(options.cache, lambda text: progress.console.print(text, style="dim"))

            def step(what: str, measure: Callable[[], None]) -> None:
                progress.update(task, description=what)
                measure()
                results.save(options.out / FILE)
                progress.advance(task)

            for device, found in zip(options.devices, results.devices, strict=True):
                with home_on(device) as home:
                    found.about = found.about or describe(home)
                    found.line = line(found.about)
                    for case in cases:
                        work = functools.partial(_case, case, home, found, options,
                                                 progress.console)  # fmt: skip
                        step(f"{found.title}: {case.name}", work)
                    peers_run.run(found, home, options.peers_on(device), options.peers_effort,
                                  cache, progress.console, step)  # fmt: skip
        results.finished_s = time.time()
        results.save(options.out / FILE)
        return results
    finally:
        signal.signal(signal.SIGTERM, term_before)


def _case(case: Case, home: Path, found: DeviceResults, options: Options, console: Console) -> None:
    """Runs it unless its rows are there with values; the model is judged by its first rows."""
    if not any(row.values for row in found.cases.get(case.name, [])):
        console.print(found.title, style="bold", highlight=False, markup=False)
        rows = run_case(case, home, options.effort.sizes, console, options.effort.margin_bytes)
        found.cases[case.name] = rows
    if found.modelled and case.name == "fio":
        _judge(found)


def _judge(found: DeviceResults) -> None:
    for sequential, random in _JUDGED:
        pair = found.row(sequential), found.row(random)
        judge(*(row.median or 0.0 if row else 0.0 for row in pair))


@contextlib.contextmanager
def home_on(device: Device) -> Iterator[Path]:
    """A new directory on the device, removed at the end; the model is mounted meanwhile."""
    device.directory.mkdir(parents=True, exist_ok=True)
    sweep(device.directory)
    home = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=device.directory))
    try:
        if device.model is None:
            yield home
        else:
            with ModelHdd(home, device.model) as model:
                yield model.directory
    finally:
        shutil.rmtree(home, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Removes what runs that no longer live left there."""
    for path in directory.glob(f"{PREFIX}*-*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        for mounted in path.glob("*/disk"):
            if mounted.is_mount():
                unmount(mounted)
        shutil.rmtree(path, ignore_errors=True)


def needs(options: Options) -> tuple[float, dict[Path, int]]:
    """Seconds for all devices, and bytes by directory (one device's data at a time)."""
    effort, cases = options.effort, options.chosen_cases
    seconds = len(options.devices) * effort.seconds() if cases else 0.0
    own = max((case.disk_bytes(effort.sizes) for case in cases), default=0) + effort.margin_bytes
    space: dict[Path, int] = {}
    for device in options.devices:
        more, nbytes = peers_run.needs(options.peers_on(device), options.peers_effort)
        seconds += more
        space[device.directory] = max(own, nbytes, space.get(device.directory, 0))
    if options.peers:
        space[options.cache.absolute()] = peers_run.CACHE_BYTES
    return seconds, space


def refuse_when_short(needed: dict[Path, int]) -> None:
    """Raises Unusable when a directory's file system has less free than that."""
    for directory, nbytes in needed.items():
        there = next(p for p in (directory, *directory.parents) if p.exists())
        free = shutil.disk_usage(there).free
        if free < nbytes:
            raise Unusable(
                f"{directory}: needs {nbytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                "name another directory, or use --quick"
            )


def _progress(console: Console) -> Progress:
    columns: Sequence[TextColumn | BarColumn | MofNCompleteColumn | TimeElapsedColumn] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)


__all__ = ["MODEL_NAME", "Device", "Options", "all_cases", "begun", "home_on", "needs",
           "refuse_when_short", "run", "sweep"]  # fmt: skip
