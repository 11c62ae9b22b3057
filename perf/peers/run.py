"""The peers' half of a run: each system fetched, then started in each mode on the device, measured.

One system's data at a time: `staged` removes it before the next begins. A mode is a case of the
run: saved when it is done, passed over by a run that goes on. A system that can't be fetched or
started has rows without values that say why, and the next one goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from shmbroker.perf.case import Bench, Case, Sizes
from shmbroker.perf.devices.needs import MissingTool
from shmbroker.perf.devices.results import DeviceResults, PeerResults
from shmbroker.perf.peers import workloads
from shmbroker.perf.peers.effort import Effort
from shmbroker.perf.peers.fetching import Cache, FetchFailed
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer
from shmbroker.perf.report import Row
from shmbroker.perf.running import run_case

CACHE: Final = Path("build/peers")
CACHE_BYTES: Final = 1 << 30  # of all that is fetched, with room


def steps(peers: Sequence[type[Peer]]) -> int:
    """Of a progress bar, for one device."""
    return sum(len(peer.modes) for peer in peers)


def results_of(peer: type[Peer]) -> PeerResults:
    """Without any rows yet."""
    clients = {"python": peer.client_title}
    if peer.fastest_title:
        clients["fastest"] = peer.fastest_title
    modes = [{"case": mode.case, "acks": mode.acks, "words": mode.words} for mode in peer.modes]
    return PeerResults(peer.name, peer.title, clients, modes, peer.networked, peer.stores)


def run(
    found: DeviceResults,
    home: Path,
    peers: Sequence[type[Peer]],
    effort: Effort,
    cache: Cache,
    console: Console,
    step: Callable[[str, Callable[[], None]], None],
) -> None:
    """Measures on one device what is not measured yet, a `step` (its name, what it does) a mode.

    `home` is a new directory on the device. SystemExit and KeyboardInterrupt end it, with nothing
    left running.
    """
    for kind in peers:
        results = found.peer(kind.name)
        if results is None:
            results = results_of(kind)
            found.peers.append(results)
        peer = kind(cache)
        for mode in kind.modes:
            work = functools.partial(_once, peer, mode, results, home, effort, console)
            step(f"{found.title}: {kind.title}, {mode.case}", work)


def _once(
    peer: Peer, mode: Mode, results: PeerResults, home: Path, effort: Effort, console: Console
) -> None:
    """Unless it has figures already."""
    if any(row.values for row in results.cases.get(mode.case, [])):
        return
    console.print(f"{peer.title}: {mode.case}", style="bold", highlight=False, markup=False)
    results.cases[mode.case] = _mode(peer, mode, results, home, effort, console)


def _mode(
    peer: Peer, mode: Mode, results: PeerResults, home: Path, effort: Effort, console: Console
) -> list[Row]:
    try:
        peer.fetch()
        results.versions = peer.versions()
    except (FetchFailed, MissingTool) as error:
        console.print(f"  {error}", highlight=False, markup=False)
        note = f"not measured: {error}"
        return [Row(mode.case, f"{peer.title}, {mode.case}", "", (), met=False, note=note)]

    def measure(bench: Bench) -> list[Row]:
        return workloads.measure(bench, effort, peer, mode)

    case = Case(mode.case, mode.words, measure, lambda _: effort.disk_bytes(type(peer)))
    return run_case(case, home, Sizes(), console, effort.margin_bytes)


def needs(peers: Sequence[type[Peer]], effort: Effort) -> tuple[float, int]:
    """Seconds at most on a device, and bytes on it."""
    most = max((effort.disk_bytes(peer) for peer in peers), default=0)
    return effort.seconds(peers), most + effort.margin_bytes if peers else 0


__all__ = ["CACHE", "CACHE_BYTES", "needs", "results_of", "run", "steps"]
