from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from group_members import GroupBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[GroupBroker]:
    """A coordinator over a real store, with a topic `t` of four partitions."""
    opened = GroupBroker(tmp_path / "meta.db")
    opened.create("t", 4)
    yield opened
    opened.close()
