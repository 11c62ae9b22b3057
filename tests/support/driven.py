"""A driver of another system at work: every workload of a mode, at the smallest size."""

from __future__ import annotations

from pathlib import Path

from shmbroker.perf.case import SMOKE, Bench
from shmbroker.perf.guard import DiskGuard
from shmbroker.perf.peers import effort, workloads
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer


def every_workload_has_a_figure(
    peer: Peer, mode: Mode, home: Path, without: tuple[str, ...] = ()
) -> None:
    """Each row but those named, with values, and nothing left in `home`."""
    with DiskGuard(home, 0) as guard:
        bench = Bench(home, SMOKE, lambda _text: None, guard)
        rows = workloads.measure(bench, effort.SMOKE, peer, mode)
    names = workloads.names(effort.SMOKE, type(peer), mode)
    assert [row.case for row in rows] == [name for name in names if name not in without]
    assert all(row.values for row in rows), [(row.case, row.note) for row in rows if not row.values]
    assert list(home.iterdir()) == []


def versions_are_named(peer: Peer, of: set[str]) -> None:
    """Of all parts, each beginning with a digit."""
    found = peer.versions()
    assert set(found) == of
    assert all(text and text[0].isdigit() for text in found.values())


__all__ = ["every_workload_has_a_figure", "versions_are_named"]
