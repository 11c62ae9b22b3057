"""Waiting for what only `status` or shared memory shows; the rest is awaited by its event."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 20.0


def eventually(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Returns when `condition` holds; fails with `what` after LIMIT_S seconds."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)
