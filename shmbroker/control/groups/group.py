"""One group: its epochs, its assignment, and how members come to have what they shall have.

Server-side assignment with incremental rebalance, after Kafka's KIP-848:

    epoch             raised whenever who is in the group, what they want, or what there is changes
    assignment epoch  the epoch for which the assignment (every member's `target`) was made
    member epoch      the assignment that a member has followed

A member follows a new assignment by itself, at its own heartbeats (`follow`): it is told to give up
what it loses, keeps working on all the rest, and gets what it gains as soon as nobody else has it.

Invariants: a partition is in `held` or `revoking` of at most one member (`owners` says whose), and
given to the next only after that one said it had let go, or was put out; an epoch, once told, never
comes again; whoever changes something here also notes what must be stored, and who should hear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from shmbroker.control.groups.assignors import ASSIGNORS
from shmbroker.control.groups.member import Member
from shmbroker.control.groups.values import GroupRow, MemberRow, Partition

_FIRST_EPOCH: Final = 1  # 0 is what a member says that joins


class Group:
    """The state of one group. Times and bounds are the coordinator's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = self.assignment_epoch = _FIRST_EPOCH
        self.topics: Mapping[str, int] = {}  # topic id -> partitions, as last assigned
        self.assign_at_ms: int | None = None  # when the assignment that is due is made
        self.members: dict[str, Member] = {}
        self.instances: dict[str, str] = {}  # instance id -> member id
        self.reads: dict[str, frozenset[str]] = {}  # member id -> topic ids
        self.owners: dict[Partition, str] = {}  # who has it, held or revoking
        self.targets: dict[Partition, str] = {}  # who shall have it
        self.dirty = True  # the group's own row must be stored
        self.dirty_members: dict[str, None] = {}  # and these members'; in the order they changed
        self.gone_members: dict[str, None] = {}
        self.news: dict[str, None] = {}  # who has something to hear at their next heartbeat

    @property
    def state(self) -> str:
        """In Kafka's words: empty, assigning, reconciling or stable."""
        if not self.members:
            return "empty"
        if self.epoch > self.assignment_epoch:
            return "assigning"
        settled = all(m.settled for m in self.members.values())
        return "stable" if settled else "reconciling"

    def row(self) -> GroupRow:
        """The group as the store keeps it."""
        return GroupRow(
            self.name, self.epoch, self.assignment_epoch, dict(self.topics), not self.members
        )

    def member_row(self, member_id: str) -> MemberRow:
        """One member as the store keeps it."""
        return MemberRow(self.name, member_id, self.members[member_id].state())

    def restore_member(self, member: Member) -> None:
        """Takes a member back as it was stored; nothing is to be stored again for that."""
        self.members[member.member_id] = member
        if member.instance_id is not None:
            self.instances[member.instance_id] = member.member_id
        for partition in (*member.held, *member.revoking):
            self.owners[partition] = member.member_id
        for partition in member.target:
            self.targets[partition] = member.member_id

    # Coming and going

    def raise_epoch(self) -> None:
        """Something has changed that asks for a new assignment."""
        self.epoch += 1
        self.dirty = True

    def add(self, member: Member, reads: frozenset[str]) -> None:
        """A new member, for which the epoch has been raised."""
        self.members[member.member_id] = member
        self.reads[member.member_id] = reads
        if member.instance_id is not None:
            self.instances[member.instance_id] = member.member_id
        self.gone_members.pop(member.member_id, None)
        self.store(member)

    def remove(self, member: Member) -> None:
        """The member is out: what it had is free at once, and its commits are refused."""
        del self.members[member.member_id]
        self.reads.pop(member.member_id, None)
        if member.instance_id is not None:
            del self.instances[member.instance_id]
        for partition in member.target:
            del self.targets[partition]
        for partition in (*member.held, *member.revoking):
            self._free(partition)
        self.dirty_members.pop(member.member_id, None)
        self.news.pop(member.member_id, None)
        self.gone_members[member.member_id] = None
        if not self.members:
            self._rest()

    def replace(self, old: Member, new: Member) -> None:
        """A static member's new life takes the old one's place; nothing moves for it."""
        new.epoch = old.epoch
        reads = self.reads[old.member_id]
        held, target = old.held, old.target
        for partition in old.revoking:
            self._free(partition)
        old.held, old.revoking, old.target = {}, {}, set()
        del self.members[old.member_id], self.reads[old.member_id]
        self.dirty_members.pop(old.member_id, None)
        self.news.pop(old.member_id, None)
        self.gone_members[old.member_id] = None
        new.held, new.target, new.version, new.fresh = held, target, old.version + 1, True
        self.owners.update(dict.fromkeys(held, new.member_id))
        self.targets.update(dict.fromkeys(target, new.member_id))
        self.add(new, reads)

    def store(self, member: Member) -> None:
        """Notes that the member must be stored."""
        self.dirty_members[member.member_id] = None

    # Assigning and following

    def assignor(self, default: str) -> str:
        """What most members ask for; among equals the first by name."""
        asked = Counter(m.wants.assignor for m in self.members.values() if m.wants.assignor)
        return min(asked, key=lambda name: (-asked[name], name)) if asked else default

    def assign(self, counts: Mapping[str, int], default_assignor: str) -> None:
        """Makes the assignment of this epoch; `counts` are the partitions of every topic."""
        order = sorted(self.members.values(), key=lambda m: m.order)
        wants = {m.member_id: self.reads[m.member_id] for m in order}
        self.topics = self.read_topics(counts)
        # Who has it now is who keeps it; for what is being given up that is who waits for it.
        now = self.targets | {p: m.member_id for m in order for p in m.held}
        given = ASSIGNORS[self.assignor(default_assignor)](wants, self.topics, now)
        self.targets = {p: member for member, partitions in given.items() for p in partitions}
        self.assignment_epoch = self.epoch
        self.assign_at_ms = None
        self.dirty = True
        for member in order:
            if member.target != given[member.member_id]:
                member.target = given[member.member_id]
                self.store(member)
            self._tell(member)

    def read_topics(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The topics that the members read, with their numbers of partitions."""
        return {t: counts[t] for t in sorted(frozenset().union(*self.reads.values()))}

    def follow(self, member: Member) -> bool:
        """Goes on with one member as far as it can now; whether it must give something up."""
        if member.revoking:
            if member.acknowledged != member.version:
                return True
            for partition in member.revoking:
                self._free(partition)
            member.revoking = {}
            self.store(member)
        if member.held.keys() != member.target:
            lost = {p: since for p, since in member.held.items() if p not in member.target}
            if lost:
                for partition in lost:
                    del member.held[partition]
                member.version += 1
                self.store(member)
                if not member.fresh:
                    member.revoking = lost
                    return True
                for partition in lost:
                    self._free(partition)
            self._give(member)
        if member.epoch < self.assignment_epoch:
            member.epoch = self.assignment_epoch
            self.store(member)
        member.fresh = False
        self.news.pop(member.member_id, None)
        return False

    def _give(self, member: Member) -> None:
        gained = [p for p in member.target if p not in member.held and p not in self.owners]
        if gained:
            since = max(member.epoch, self.assignment_epoch)
            member.held.update(dict.fromkeys(gained, since))
            self.owners.update(dict.fromkeys(gained, member.member_id))
            member.version += 1
            self.store(member)

    def _free(self, partition: Partition) -> None:
        """Nobody has it now; who shall have it hears of it."""
        del self.owners[partition]
        heir = self.members.get(self.targets.get(partition, ""))
        if heir is not None and not heir.revoking:
            self.news[heir.member_id] = None

    def _tell(self, member: Member) -> None:
        if member.revoking:
            return  # it is about to say that it let go, and hears the rest then
        if any(p not in member.target for p in member.held) or any(
            p not in member.held and p not in self.owners for p in member.target
        ):
            self.news[member.member_id] = None

    def _rest(self) -> None:
        """Without members there is nothing to assign."""
        self.topics, self.targets = {}, {}
        self.assignment_epoch = self.epoch
        self.assign_at_ms = None
        self.dirty = True


__all__ = ["Group"]
