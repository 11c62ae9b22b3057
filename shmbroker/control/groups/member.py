"""One member of a group: what it wants, what it shall have, and what it has.

    target      what it shall have, as last assigned
    held        what it has been given, each with the epoch since which
    revoking    what it must give up, and may still be working on; likewise
    version     number of `held`: one more at each change, told with it, and said back by the member
                once it holds nothing else: that is how revocations and lost answers are known

A member's epoch is that of the newest assignment it has followed, and never goes back. It stays
behind while the member has something to give up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shmbroker.control.groups.values import Partition, Subscription, by_topic

Since = dict[Partition, int]  # partition -> the member's epoch when it was given


@dataclass(slots=True)
class Member:
    """One member. Changed by its group alone (group.py)."""

    member_id: str
    instance_id: str | None  # of a static member
    name: str  # of the program, for people
    wants: Subscription
    session_ms: int
    rebalance_ms: int
    joined_epoch: int  # what bears a lower epoch is of an earlier life of the same id
    epoch: int
    version: int = 1
    away: bool = False  # a static member that left to come back
    held: Since = field(default_factory=dict)
    revoking: Since = field(default_factory=dict)
    target: set[Partition] = field(default_factory=set)
    # Not stored: a broker that starts gives everybody a session anew.
    acknowledged: int = 0  # the version that the member said back; 0: none in this life
    fresh: bool = False  # has just taken another's place, and holds nothing of it yet
    silent_at_ms: int = 0  # when its session ends
    revoke_by_ms: int | None = None
    timer_ms: int | None = None  # when the coordinator looks at it next

    @property
    def order(self) -> tuple[bool, str]:
        """Members are assigned to in this order: it is the same after a static member's restart."""
        return (self.instance_id is None, self.instance_id or self.member_id)

    @property
    def settled(self) -> bool:
        """It has exactly what it shall have."""
        return not self.revoking and self.held.keys() == self.target

    def owned_since(self, partition: Partition) -> int | None:
        """The epoch since which it has the partition, also while giving it up; None: it has not."""
        since = self.held.get(partition)
        return self.revoking.get(partition) if since is None else since

    def due_ms(self) -> int:
        """When it is out if it stays silent, or keeps what it must give up."""
        if self.revoke_by_ms is None:
            return self.silent_at_ms
        return min(self.silent_at_ms, self.revoke_by_ms)

    def state(self) -> dict[str, Any]:
        """What a store keeps, as plain JSON values."""
        return {
            "instance": self.instance_id,
            "name": self.name,
            "topics": list(self.wants.topics),
            "pattern": self.wants.pattern,
            "assignor": self.wants.assignor,
            "session_ms": self.session_ms,
            "rebalance_ms": self.rebalance_ms,
            "joined": self.joined_epoch,
            "epoch": self.epoch,
            "version": self.version,
            "away": self.away,
            "held": _stored(self.held),
            "revoking": _stored(self.revoking),
            "target": by_topic(self.target),
        }

    @classmethod
    def restored(cls, member_id: str, state: Mapping[str, Any]) -> Member:
        """The member of which `state` was stored; its session is the caller's to begin."""
        return cls(
            member_id=member_id,
            instance_id=state["instance"],
            name=state["name"],
            wants=Subscription(tuple(state["topics"]), state["pattern"], state["assignor"]),
            session_ms=state["session_ms"],
            rebalance_ms=state["rebalance_ms"],
            joined_epoch=state["joined"],
            epoch=state["epoch"],
            version=state["version"],
            away=state["away"],
            held=_restored(state["held"]),
            revoking=_restored(state["revoking"]),
            target={(t, n) for t, numbers in state["target"].items() for n in numbers},
        )


def _stored(since: Since) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for (topic, number), epoch in since.items():
        found.setdefault(topic, []).append((number, epoch))
    return found


def _restored(stored: Mapping[str, Iterable[tuple[int, int]]]) -> Since:
    return {(topic, number): epoch for topic, pairs in stored.items() for number, epoch in pairs}


__all__ = ["Member", "Since"]
