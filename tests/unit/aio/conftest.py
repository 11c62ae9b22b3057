"""A fake broker and both event loops, for the asyncio client's unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aio_rig import RING, Run
from consumer_fakes import FakeBroker, FakePartition


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBroker]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with FakeBroker(tmp_path, partitions=2) as broker:
        yield broker


@pytest.fixture
def log(fake: FakeBroker) -> FakePartition:
    fake.partitions = fake.partitions[:1]
    fake.partitions[0].make_ring(RING)
    return fake.partitions[0]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def runs(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return runs
