"""Assignors: which member of a group shall have which partition.

Pure functions of who there is, what each wants, and who has what now. `range` and `roundrobin` are
Kafka's, over members in the order of their instance ids, else of their member ids; `sticky`
(sticky.py) is balanced and moves no more than it must.

Invariants: every partition that somebody wants is given, to exactly one who wants it; the same
arguments give the same answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

from shmbroker.control.groups import sticky
from shmbroker.control.groups.values import Partition
from shmbroker.errors import UnsupportedAssignor

#: (member -> topic ids it wants, topic id -> number of partitions, partition -> its member now)
#: to member -> its partitions. Members come in their order.
Assignor = Callable[
    [Mapping[str, frozenset[str]], Mapping[str, int], Mapping[Partition, str]],
    dict[str, set[Partition]],
]


def range_(
    wants: Mapping[str, frozenset[str]],
    topics: Mapping[str, int],
    _current: Mapping[Partition, str],
) -> dict[str, set[Partition]]:
    """Each topic by itself, in consecutive pieces: partitions of the same number go together."""
    given: dict[str, set[Partition]] = {member: set() for member in wants}
    for topic, members in subscribers(wants).items():
        size, larger = divmod(topics[topic], len(members))
        first = 0
        for place, member in enumerate(members):
            end = first + size + (place < larger)
            given[member].update((topic, number) for number in range(first, end))
            first = end
    return given


def round_robin(
    wants: Mapping[str, frozenset[str]],
    topics: Mapping[str, int],
    _current: Mapping[Partition, str],
) -> dict[str, set[Partition]]:
    """All partitions in turn; who does not want one is passed over."""
    given: dict[str, set[Partition]] = {member: set() for member in wants}
    order = list(wants)
    turn = 0
    for topic in sorted(subscribers(wants)):
        for number in range(topics[topic]):
            while topic not in wants[order[turn % len(order)]]:
                turn += 1
            given[order[turn % len(order)]].add((topic, number))
            turn += 1
    return given


def subscribers(wants: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """Topic -> who wants it, in the members' order; only topics that somebody wants."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for member, topics in wants.items():
        for topic in topics:
            found[topic].append(member)
    return found


ASSIGNORS: Final[Mapping[str, Assignor]] = {
    "range": range_,
    "roundrobin": round_robin,
    "sticky": sticky.assign,
}


def check_assignor(name: str | None) -> None:
    """Raises UnsupportedAssignor for a name that is not known; None is fine."""
    if name is not None and name not in ASSIGNORS:
        raise UnsupportedAssignor(
            f"there is no assignor {name!r:.60}; allowed: {', '.join(ASSIGNORS)}"
        )


__all__ = ["ASSIGNORS", "Assignor", "check_assignor", "range_", "round_robin", "subscribers"]
