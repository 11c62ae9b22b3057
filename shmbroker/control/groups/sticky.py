"""The sticky assignor: balanced first, and among all balanced assignments one that moves least.

Balanced: the sum of the squares of the members' loads is least. Where all want the same topics that
is a difference of at most one; where they don't, no partition could go, directly or by way of
others, from a member to one that has two fewer. Movement: how many partitions that have a member
now, who still wants them, get another.

Partitions that the same members want are alike but for who has them now, so only numbers are
decided first: how many partitions of each kind each member has; which ones follows, everybody
keeping what is their own. With one kind that is simple arithmetic. With several it is a flow of
least cost: a greedy start, then cycles of negative cost are cancelled until there is none. A unit
taken from a member costs 1 if it was kept, one given back gains 1; more load costs
`weight * (2 * load + 1)`, where weight is more than all movement can be.

Invariants: the same arguments give the same answer; the work is bounded by STEPS_MAX, behind which
an assignment is still valid, and may be a little less balanced or move a little more.
Sources: N. Harvey et al., Semi-matchings for bipartite graphs and load balancing, J. Algorithms 59
(2006); M. Klein, A primal method for minimal cost flows, Management Science 14 (1967).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from shmbroker.control.groups.values import Partition

STEPS_MAX: Final = 2_000_000  # edges looked at: about half a second


@dataclass(slots=True)
class _Kind:
    """Partitions that the same members want."""

    members: list[str]
    partitions: list[Partition] = field(default_factory=list)
    owned: defaultdict[str, list[Partition]] = field(default_factory=lambda: defaultdict(list))
    count: dict[str, int] = field(default_factory=dict)  # decided: how many each member has


def assign(
    wants: Mapping[str, frozenset[str]],
    topics: Mapping[str, int],
    current: Mapping[Partition, str],
) -> dict[str, set[Partition]]:
    """Member -> its partitions; see `assignors.Assignor` for the arguments."""
    kinds = _kinds(wants, topics, current)
    if len(kinds) == 1:
        _share_evenly(kinds[0])
    else:
        _share_greedily(kinds)
        _Flow(kinds).improve()
    given: dict[str, set[Partition]] = {member: set() for member in wants}
    for kind in kinds:
        _hand_out(kind, given)
    return given


def _kinds(
    wants: Mapping[str, frozenset[str]],
    topics: Mapping[str, int],
    current: Mapping[Partition, str],
) -> list[_Kind]:
    wanted_by: defaultdict[str, list[str]] = defaultdict(list)
    for member, names in wants.items():
        for topic in names:
            wanted_by[topic].append(member)
    kinds: dict[tuple[str, ...], _Kind] = {}
    for topic in sorted(wanted_by):
        members = wanted_by[topic]
        kind = kinds.setdefault(tuple(members), _Kind(members))
        for number in range(topics[topic]):
            partition = (topic, number)
            kind.partitions.append(partition)
            owner = current.get(partition)
            if owner is not None and topic in wants.get(owner, ()):
                kind.owned[owner].append(partition)
    return list(kinds.values())


def _share_evenly(kind: _Kind) -> None:
    """One kind: who has the most now gets the larger shares, so that the most is kept."""
    size, larger = divmod(len(kind.partitions), len(kind.members))
    order = sorted(kind.members, key=lambda m: -len(kind.owned.get(m, ())))  # stable
    kind.count = {member: size + (place < larger) for place, member in enumerate(order)}


def _share_greedily(kinds: list[_Kind]) -> None:
    """Everybody keeps what they have; the rest goes to the least loaded, the most choosy first."""
    load: defaultdict[str, int] = defaultdict(int)
    for kind in kinds:
        kind.count = {member: len(kind.owned.get(member, ())) for member in kind.members}
        for member, count in kind.count.items():
            load[member] += count
    for kind in sorted(kinds, key=lambda k: len(k.members)):
        heap = [(load[member], place) for place, member in enumerate(kind.members)]
        heapq.heapify(heap)
        for _ in range(len(kind.partitions) - sum(kind.count.values())):
            least, place = heap[0]
            heapq.heapreplace(heap, (least + 1, place))
            kind.count[kind.members[place]] += 1
            load[kind.members[place]] += 1
    _even_out(kinds, load)


def _even_out(kinds: list[_Kind], load: defaultdict[str, int]) -> None:
    """Whoever has least takes from who has most of what it wants: most of the way, cheaply."""
    wants: defaultdict[str, list[_Kind]] = defaultdict(list)
    for kind in kinds:
        for member in kind.members:
            wants[member].append(kind)
    heap = [(load[member], member) for member in wants]
    heapq.heapify(heap)
    while heap:
        least, member = heapq.heappop(heap)
        if least != load[member]:
            continue  # it was changed since, and stands in the heap once more
        # Among those who have most: who gives away what was not its own before.
        best: tuple[int, bool, str, int] | None = None
        for place, kind in enumerate(wants[member]):
            for giver, count in kind.count.items():
                if count and load[giver] >= least + 2:
                    foreign = count > len(kind.owned.get(giver, ()))
                    best = max(best or (0, False, "", 0), (load[giver], foreign, giver, place))
        if best is not None:
            giver, kind = best[2], wants[member][best[3]]
            for who, change in ((giver, -1), (member, 1)):
                kind.count[who] += change
                load[who] += change
                heapq.heappush(heap, (load[who], who))


class _Flow:
    """Numbers of partitions on their way between kinds and members; node 0 stands for load."""

    def __init__(self, kinds: list[_Kind]) -> None:
        self._kinds = kinds
        names = list(dict.fromkeys(m for kind in kinds for m in kind.members))
        self._number = {member: place + 1 + len(kinds) for place, member in enumerate(names)}
        self._names = names
        self._load = [sum(kind.count.get(m, 0) for kind in kinds) for m in names]
        self._weight = 2 * sum(len(kind.partitions) for kind in kinds) + 1
        self._steps = 0

    def improve(self) -> None:
        """Cancels cycles of negative cost until there is none, or the work is bounded."""
        while self._steps < STEPS_MAX:
            cycle = self._negative_cycle()
            if not cycle:
                return
            for tail, head in zip(cycle, cycle[1:] + cycle[:1], strict=True):
                self._move(tail, head)

    def _edges(self) -> list[tuple[int, int, int]]:
        """(from, to, cost): a unit may go this way. Member -> kind: the member gives one up."""
        edges: list[tuple[int, int, int]] = []
        first = 1 + len(self._kinds)
        for place, load in enumerate(self._load):
            # Through node 0 goes load: out of the one that sheds it, into the one that takes it.
            edges.append((0, first + place, -self._weight * (2 * load - 1)))
            edges.append((first + place, 0, self._weight * (2 * load + 1)))
        for number, kind in enumerate(self._kinds, 1):
            for member, count in kind.count.items():
                own, node = len(kind.owned.get(member, ())), self._number[member]
                if count:
                    edges.append((node, number, 1 if count <= own else 0))
                edges.append((number, node, -1 if count < own else 0))
        return edges

    def _negative_cycle(self) -> list[int]:
        """Bellman and Ford's, from everywhere at once; looks for a cycle after each round."""
        edges = self._edges()
        nodes = 1 + len(self._kinds) + len(self._names)
        cost, before = [0] * nodes, [-1] * nodes
        for _ in range(nodes):
            if self._steps > STEPS_MAX:
                return []
            self._steps += len(edges)
            shorter = False
            for tail, head, price in edges:
                if cost[tail] + price < cost[head]:
                    cost[head] = cost[tail] + price
                    before[head] = tail
                    shorter = True
            if not shorter:
                return []
            if cycle := next(_cycles(before), []):
                return cycle
        return []

    def _move(self, tail: int, head: int) -> None:
        kinds = len(self._kinds)
        for node, other, change in ((tail, head, -1), (head, tail, 1)):
            if node <= kinds:
                continue
            place = node - 1 - kinds
            if other:
                self._kinds[other - 1].count[self._names[place]] += change
                self._load[place] += change


def _cycles(before: list[int]) -> Iterator[list[int]]:
    """The cycles among each node's predecessor, in the direction of the edges."""
    seen = [0] * len(before)
    for start in range(len(before)):
        node = start
        while node >= 0 and not seen[node]:
            seen[node] = start + 1
            node = before[node]
        if node >= 0 and seen[node] == start + 1:
            cycle, at = [node], before[node]
            while at != node:
                cycle.append(at)
                at = before[at]
            yield cycle[::-1]


def _hand_out(kind: _Kind, given: dict[str, set[Partition]]) -> None:
    """Which partitions, now that the numbers are decided: their own first, then what is left."""
    taken: set[Partition] = set()
    for member, count in kind.count.items():
        kept = kind.owned.get(member, [])[:count]
        given[member].update(kept)
        taken.update(kept)
    rest = (partition for partition in kind.partitions if partition not in taken)
    for member, count in kind.count.items():
        for _ in range(count - min(count, len(kind.owned.get(member, ())))):
            given[member].add(next(rest))


__all__ = ["STEPS_MAX", "assign"]
