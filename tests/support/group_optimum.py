"""The best assignment of a small group, found by trying every one: for tests."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

from shmbroker.control.groups.values import Partition


def cost(given: Mapping[str, set[Partition]], current: Mapping[Partition, str]) -> tuple[int, int]:
    """(how unbalanced, how many partitions stay): the first is to be least, the second most."""
    kept = sum(current.get(p) == member for member, held in given.items() for p in held)
    return sum(len(held) ** 2 for held in given.values()), -kept


def best(
    wants: Mapping[str, frozenset[str]],
    topics: Mapping[str, int],
    current: Mapping[Partition, str],
) -> tuple[int, int]:
    """The least cost of all assignments, by trying each."""
    partitions = [
        (t, n)
        for t, count in topics.items()
        for n in range(count)
        if any(t in w for w in wants.values())
    ]
    choices = [[m for m in wants if t in wants[m]] for t, _ in partitions]
    found = []
    for owners in itertools.product(*choices):
        loads = Counter(owners)
        kept = sum(current.get(p) == o for p, o in zip(partitions, owners, strict=True))
        found.append((sum(n**2 for n in loads.values()), -kept))
    return min(found)
