"""The measurement of the coordinator, at its smallest, so that it can't rot."""

from __future__ import annotations

from pathlib import Path

from shmbroker.perf import groups


def test_the_measurement_runs(tmp_path: Path) -> None:
    assert groups.rebalance(tmp_path / "a.db", 4, 8, 20) > 0
    assert groups.rebalance(tmp_path / "b.db", 4, 8, 0, topics=2) > 0
    assert groups.commits(tmp_path / "c.db", 3, 0.01) > 0
    assert groups.bare(tmp_path / "d.db", 3, 0.01) > 0
