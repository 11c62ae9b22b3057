"""The plain values of consumer groups: partitions, subscriptions, and what the store keeps.

A topic is named by its id, since a topic that is deleted and made again under its name is another
one: its offsets mean nothing to the first one's readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Partition = tuple[str, int]  # (topic id, number from 0)
ByTopic = dict[str, list[int]]  # topic id -> numbers, in order


@dataclass(frozen=True, slots=True)
class TopicView:
    """What the coordinator knows of a topic."""

    topic_id: str
    name: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a member wants to read: names, a pattern of names, or both."""

    topics: tuple[str, ...] = ()
    pattern: str | None = None
    assignor: str | None = None  # what it would like; the group takes what most ask for


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group as the store keeps it."""

    group: str
    epoch: int
    assignment_epoch: int
    topics: Mapping[str, int]  # topic id -> partitions, as last assigned
    empty: bool


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member as the store keeps it; `state` is plain JSON values (member.py)."""

    group: str
    member_id: str
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OffsetCommit:
    """One offset to be kept, checked: `offset` is the next to be read."""

    group: str
    partition: Partition
    offset: int
    leader_epoch: int  # of the record before; -1: not known
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class Committed:
    """What is kept for one partition of one group."""

    offset: int  # the next to be read
    leader_epoch: int  # of the record before; -1: not known
    metadata: str
    committed_ms: int  # Unix time


@dataclass(slots=True)
class Changes:
    """What has to be durable before anybody is told of it; what is gone goes first."""

    groups: list[GroupRow] = field(default_factory=list)
    members: list[MemberRow] = field(default_factory=list)
    gone_members: list[tuple[str, str]] = field(default_factory=list)
    gone_groups: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.groups or self.members or self.gone_members or self.gone_groups)


def by_topic(partitions: Iterable[Partition]) -> ByTopic:
    """Partitions as they are stored and sent: the numbers of each topic, in order."""
    found: ByTopic = {}
    for topic, number in sorted(partitions):
        found.setdefault(topic, []).append(number)
    return found


__all__ = [
    "ByTopic",
    "Changes",
    "Committed",
    "GroupRow",
    "MemberRow",
    "OffsetCommit",
    "Partition",
    "Subscription",
    "TopicView",
    "by_topic",
]
