"""A group as people see it: its state, its members, and what each has. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from shmbroker.control.groups.group import Group
from shmbroker.control.groups.values import ByTopic, by_topic


@dataclass(frozen=True, slots=True)
class MemberDescription:
    """One member; `waits_for` is what it shall have and others have not given up yet."""

    member_id: str
    instance_id: str | None
    name: str
    epoch: int
    away: bool  # static, and gone to come back
    has: ByTopic
    gives_up: ByTopic
    waits_for: ByTopic


@dataclass(frozen=True, slots=True)
class GroupDescription:
    """One group. `state` is Kafka's: empty, assigning, reconciling, stable."""

    group: str
    state: str
    epoch: int
    assignment_epoch: int
    assignor: str
    members: tuple[MemberDescription, ...]


def describe(group: Group, default_assignor: str) -> GroupDescription:
    """The group as it stands, its members in their order."""
    return GroupDescription(
        group.name,
        group.state,
        group.epoch,
        group.assignment_epoch,
        group.assignor(default_assignor),
        tuple(
            MemberDescription(
                m.member_id,
                m.instance_id,
                m.name,
                m.epoch,
                m.away,
                by_topic(m.held),
                by_topic(m.revoking),
                by_topic(p for p in m.target if p not in m.held),
            )
            for m in sorted(group.members.values(), key=lambda m: m.order)
        ),
    )


__all__ = ["GroupDescription", "MemberDescription", "describe"]
