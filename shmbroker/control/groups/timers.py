"""When the coordinator must look at a member or a group again, without a clock.

Invariants: whoever has something due has an entry that is due no later; an entry that no longer
says anything is dropped when its time comes, so each member has a few entries at most.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from shmbroker.control.groups.group import Group
from shmbroker.control.groups.member import Member


class Timers:
    """Entries (time, group, member id); "" is the group itself."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str, str]] = []

    def watch(self, group: Group, member: Member) -> None:
        """The member's due time has changed. A later one needs no entry before the old one's."""
        due = member.due_ms()
        if member.timer_ms is None or due < member.timer_ms:
            member.timer_ms = due
            heapq.heappush(self._heap, (due, group.name, member.member_id))

    def wake(self, group: Group, at_ms: int) -> None:
        """The group has an assignment to make at `at_ms`."""
        heapq.heappush(self._heap, (at_ms, group.name, ""))

    def next_ms(self) -> int | None:
        """When `due` has something again; None: never."""
        return self._heap[0][0] if self._heap else None

    def due(self, now_ms: int) -> Iterator[tuple[str, str, int]]:
        """(group, member id, time of the entry), taken out, of all that are due."""
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, group, member_id = heapq.heappop(self._heap)
            yield group, member_id, at_ms


__all__ = ["Timers"]
