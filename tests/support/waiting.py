"""Waiting for what only `status` or shared memory shows; the rest is awaited by its event.

Limits are for a machine whose cores others have: what should happen gets LIMIT_S, and what the
product itself promises to do within a time is tried a few times (`best_of`), of which one must do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

LIMIT_S = 40.0

T = TypeVar("T")


def eventually(
    condition: Callable[[], T], what: str | Callable[[], object] = "it never came true"
) -> T:
    """What `condition` returns as soon as that is true; fails with `what` after LIMIT_S seconds."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.005)
    return found


def best_of(tries: int, limit_s: float, attempt: Callable[[], float]) -> None:
    """Fails unless one of so many attempts, the first that does, took less than `limit_s`.

    `attempt` returns seconds. A product that is late by design is late in every one of them.
    """
    took = []
    for _ in range(tries):
        took.append(attempt())
        if took[-1] < limit_s:
            return
    raise AssertionError(f"{limit_s} s is the limit, and it took {took}")


__all__ = ["LIMIT_S", "best_of", "eventually"]
