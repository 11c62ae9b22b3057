"""The coordinator of consumer groups: a state machine without I/O, the clock passed in.

Owns all groups of a broker: who is in them, their sessions, and when a new assignment is made. How
one group's epochs and partitions go on is in group.py; docs/groups.md tells it as a whole.

Every method runs on the acceptor's one thread. `now_ms` is monotonic and never goes back. What an
answer says is in `take_changes()` too, if it is new: give that to the store first, and the answer
to the member when it is durable (gathering.py). `restore` takes the store's rows back, and nobody
notices: no epoch is raised, and every member has a whole session to come back.

Invariants: what a member is told is stored before; a member that is out gets an error at its next
heartbeat, and no commit of it counts; the number of groups and members is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable

from shmbroker import errors
from shmbroker.control.groups.assignors import check_assignor
from shmbroker.control.groups.catalogue import Catalogue
from shmbroker.control.groups.description import GroupDescription, describe
from shmbroker.control.groups.group import Group
from shmbroker.control.groups.limits import GroupSettings
from shmbroker.control.groups.member import Member
from shmbroker.control.groups.messages import Commit, Heartbeat, HeartbeatAnswer, Leave
from shmbroker.control.groups.timers import Timers
from shmbroker.control.groups.values import (
    Changes,
    GroupRow,
    MemberRow,
    Partition,
    Subscription,
    TopicView,
)


class Coordinator:
    """All groups."""

    def __init__(self, settings: GroupSettings, topics: Iterable[TopicView] = ()) -> None:
        self._settings = settings
        self._topics = Catalogue(topics)
        self._groups: dict[str, Group] = {}
        self._gone_groups: dict[str, None] = {}
        self._touched: dict[str, None] = {}  # groups with changes or news
        self._timers = Timers()

    def restore(
        self, groups: Iterable[GroupRow], members: Iterable[MemberRow], now_ms: int
    ) -> None:
        """Takes back what was stored. Once, before anything else is asked."""
        for row in groups:
            group = self._groups[row.group] = Group(row.group)
            group.epoch, group.assignment_epoch = row.epoch, row.assignment_epoch
            group.topics, group.dirty = dict(row.topics), False
        for stored in members:
            group = self._groups[stored.group]
            member = Member.restored(stored.member_id, stored.state)
            member.acknowledged = -1  # what it said in the life before is not known
            member.silent_at_ms = now_ms + member.session_ms
            if member.revoking:
                member.revoke_by_ms = now_ms + member.rebalance_ms
            group.restore_member(member)
            group.reads[member.member_id] = self._topics.read_by(member.wants)
            self._timers.watch(group, member)
        for group in self._groups.values():
            self._look_at_topics(group, now_ms)
            if group.epoch > group.assignment_epoch:
                self._assign_soon(group, now_ms)

    # What members say

    def heartbeat(self, beat: Heartbeat, now_ms: int) -> HeartbeatAnswer:
        """A member joins, or is still there. Raises the errors of errors.py for groups.

        UnknownMember, FencedMemberEpoch: let everything go and join anew, under a new member id.
        FencedInstance: another program has this one's place; end.
        """
        if beat.epoch == 0:
            group, member = self._join(beat, now_ms)
        else:
            group = self.group(beat.group)
            member = self._member(group, beat.member_id, beat.instance_id)
            _check_epoch(group, member, beat)
            self._alter(group, member, beat, now_ms)
            member.acknowledged = beat.version
        if member.away:
            member.away = False
            group.store(member)
        member.silent_at_ms = now_ms + member.session_ms
        self._assign_if_due(group, now_ms)
        self._follow(group, member, now_ms)
        return self._answer(group, member, beat.version, now_ms)

    def leave(self, leave: Leave, now_ms: int) -> None:
        """A member goes; what it had is free, unless it is static and comes back in time."""
        group = self.group(leave.group)
        member = self._member(group, leave.member_id, None)
        if leave.comes_back and member.instance_id is not None:
            member.away = True
            member.silent_at_ms = now_ms + member.session_ms
            group.store(member)
            self._touch(group)
        else:
            self._put_out(group, member, now_ms)

    def check_commit(self, commit: Commit) -> dict[Partition, errors.ShmbrokerError]:
        """Who may commit what: the partitions that are refused. Raises if the whole is.

        A member commits what it has, also while giving it up, with any epoch since which it has had
        it without a break. Others commit only while the group has no members.
        """
        limit = self._settings.groups_max
        if commit.member_id is None:
            group = self._groups.get(commit.group) or self._make(commit.group, limit)
            if group.members:
                raise errors.GroupNotEmpty(
                    commit.group, len(group.members), "a commit by a program that is no member"
                )
            return {}
        group = self.group(commit.group)
        member = self._member(group, commit.member_id, commit.instance_id)
        if not member.joined_epoch <= commit.epoch <= member.epoch:
            raise _fenced(group, member, commit.epoch)
        refused: dict[Partition, errors.ShmbrokerError] = {}
        for row in commit.rows:
            since = member.owned_since(row.partition)
            if since is None or since > commit.epoch:
                refused[row.partition] = self._stale(group, member, row.partition, commit.epoch)
        return refused

    def check_forget(self, name: str, topics: Iterable[str]) -> None:
        """Whether what a group committed for these topics (ids) may be forgotten.

        Raises GroupNotFound; GroupSubscribed for a topic that a member reads.
        """
        group = self.group(name)
        for topic in topics:
            if any(topic in reads for reads in group.reads.values()):
                raise errors.GroupSubscribed(name, self._topics.names.get(topic, topic))

    # What happens around them

    def set_topics(self, topics: Iterable[TopicView], now_ms: int) -> None:
        """Topics as they are now: made, deleted, with more partitions. Members follow."""
        if not self._topics.replace(topics):
            return
        for group in self._groups.values():
            for member in group.members.values():
                group.reads[member.member_id] = self._topics.read_by(member.wants)
            self._look_at_topics(group, now_ms)

    def tick(self, now_ms: int) -> int | None:
        """Does what has become due; returns when to call it again, None: after the next call."""
        for name, member_id, at_ms in self._timers.due(now_ms):
            group = self._groups.get(name)
            if group is None:
                continue
            member = group.members.get(member_id)
            if not member_id:
                self._assign_if_due(group, now_ms)
            elif member is not None and member.timer_ms == at_ms:
                member.timer_ms = None
                if member.due_ms() <= now_ms:
                    self._put_out(group, member, now_ms)
                else:
                    self._timers.watch(group, member)
        return self._timers.next_ms()

    def delete(self, name: str) -> None:
        """Forgets a group and what it committed. Raises GroupNotFound, GroupNotEmpty."""
        group = self.group(name)
        if group.members:
            raise errors.GroupNotEmpty(name, len(group.members), "its deletion")
        del self._groups[name]
        self._touched.pop(name, None)
        self._gone_groups[name] = None

    def group(self, name: str) -> Group:
        """The group of that name, to be read only; raises GroupNotFound."""
        group = self._groups.get(name)
        if group is None:
            raise errors.GroupNotFound(name)
        return group

    def names(self) -> list[str]:
        """All groups, by name."""
        return sorted(self._groups)

    def describe(self, name: str) -> GroupDescription:
        """What `group describe` shows of who is in it; raises GroupNotFound."""
        return describe(self.group(name), self._settings.assignor)

    # What the caller carries on

    def take_changes(self) -> Changes:
        """What must be stored before any answer given since the last call is told; then forgotten.

        A change that could not be stored must be kept (`gathering.py`) and stored with the next.
        """
        changes = Changes(gone_groups=list(self._gone_groups))
        self._gone_groups = {}
        for name in self._touched:
            group = self._groups[name]
            if group.dirty:
                changes.groups.append(group.row())
            changes.gone_members += [(name, member_id) for member_id in group.gone_members]
            changes.members += [group.member_row(member_id) for member_id in group.dirty_members]
            group.dirty, group.dirty_members, group.gone_members = False, {}, {}
        self._touched = {name: None for name in self._touched if self._groups[name].news}
        return changes

    def take_news(self) -> list[tuple[str, str]]:
        """(group, member id) of those to whom their next heartbeat brings something: tell them.

        Nothing depends on it: who isn't told hears at their next heartbeat.
        """
        news: list[tuple[str, str]] = []
        for name in self._touched:
            group = self._groups[name]
            news += [(name, member_id) for member_id in group.news]
            group.news = {}
        return news

    # Inside

    def _join(self, beat: Heartbeat, now_ms: int) -> tuple[Group, Member]:
        settings, wants = self._settings, _checked(beat)
        session_ms = settings.session_ms(beat.session_timeout_ms)
        reads = self._topics.read_by(wants)
        group = self._groups.get(beat.group) or self._make(beat.group, settings.groups_max)
        known = group.members.get(beat.member_id)
        if known is not None and known.acknowledged == 0 and known.wants == wants:
            return group, known  # the answer to its joining was lost
        old = group.members.get(group.instances.get(beat.instance_id or "", ""))
        if known is None and old is None and len(group.members) >= settings.members_max:
            raise errors.GroupFull(
                f"group {beat.group!r} has {len(group.members)} members, as many as it may have",
                group=beat.group,
            )
        if known is not None and known is not old:  # a new life that has nothing of the old one
            self._put_out(group, known, now_ms)
        member = Member(
            member_id=beat.member_id,
            instance_id=beat.instance_id,
            name=beat.name,
            wants=wants,
            session_ms=session_ms,
            rebalance_ms=beat.rebalance_timeout_ms or settings.rebalance_timeout_ms,
            joined_epoch=0,
            epoch=0,
        )
        if old is not None and known is None:
            self._take_place(group, old, member, now_ms)
        else:
            if old is not None:
                self._put_out(group, old, now_ms)
            group.raise_epoch()
            member.joined_epoch = member.epoch = group.epoch
            group.add(member, reads)
            self._assign_soon(group, now_ms)
        return group, member

    def _take_place(self, group: Group, old: Member, new: Member, now_ms: int) -> None:
        group.replace(old, new)
        self._touch(group)
        if new.wants != old.wants:
            self._read_anew(group, new, now_ms)

    def _alter(self, group: Group, member: Member, beat: Heartbeat, now_ms: int) -> None:
        if beat.wants is None or beat.wants == member.wants:
            return
        wants = _checked(beat)
        self._topics.read_by(wants)  # raises before anything is changed
        member.wants = wants
        group.store(member)
        self._read_anew(group, member, now_ms)

    def _read_anew(self, group: Group, member: Member, now_ms: int) -> None:
        group.reads[member.member_id] = self._topics.read_by(member.wants)
        group.raise_epoch()
        self._assign_soon(group, now_ms)

    def _put_out(self, group: Group, member: Member, now_ms: int) -> None:
        group.raise_epoch()
        group.remove(member)
        self._touch(group)
        if group.members:
            self._assign_soon(group, now_ms)

    def _look_at_topics(self, group: Group, now_ms: int) -> None:
        """A new assignment, if there are other topics or partitions to read than it was made for.

        One that is due anyway takes them up.
        """
        if not group.members or group.epoch > group.assignment_epoch:
            return
        if group.read_topics(self._topics.counts) != group.topics:
            group.raise_epoch()
            self._assign_soon(group, now_ms)

    def _assign_soon(self, group: Group, now_ms: int) -> None:
        self._touch(group)
        if group.assign_at_ms is None:
            group.assign_at_ms = now_ms + self._settings.gather_ms
            self._timers.wake(group, group.assign_at_ms)

    def _assign_if_due(self, group: Group, now_ms: int) -> None:
        if group.assign_at_ms is not None and group.assign_at_ms <= now_ms:
            group.assign(self._topics.counts, self._settings.assignor)
            self._touch(group)

    def _follow(self, group: Group, member: Member, now_ms: int) -> None:
        version = member.version
        if not group.follow(member):
            member.revoke_by_ms = None
        elif member.revoke_by_ms is None or member.version != version:
            member.revoke_by_ms = now_ms + member.rebalance_ms
        self._timers.watch(group, member)
        self._touch(group)

    def _answer(self, group: Group, member: Member, version: int, now_ms: int) -> HeartbeatAnswer:
        again_ms = min(self._settings.heartbeat_ms, member.session_ms // 3)
        if group.assign_at_ms is not None:
            again_ms = min(again_ms, max(1, group.assign_at_ms - now_ms))
        assignment = None
        if version != member.version:
            numbers: dict[str, list[int]] = {}
            for topic, number in sorted(member.held):
                numbers.setdefault(topic, []).append(number)
            names = self._topics.names  # a topic that was just deleted is on its way out
            assignment = {t: (names[t], tuple(n)) for t, n in numbers.items() if t in names}
        return HeartbeatAnswer(
            member.epoch, member.version, again_ms, member.session_ms, assignment
        )

    def _make(self, name: str, limit: int) -> Group:
        if len(self._groups) >= limit:
            raise errors.GroupFull(
                f"group {name!r} can't be made: there are {limit}, as many as the broker keeps",
                group=name,
            )
        group = self._groups[name] = Group(name)
        self._touch(group)
        return group

    def _member(self, group: Group, member_id: str, instance_id: str | None) -> Member:
        member = group.members.get(member_id)
        if member is not None:
            return member
        if instance_id is not None and instance_id in group.instances:
            raise errors.FencedInstance(
                f"another program has joined group {group.name!r} as instance {instance_id!r}; "
                "give each program an instance id of its own",
                group=group.name,
                instance_id=instance_id,
            )
        raise errors.UnknownMember(
            f"group {group.name!r} has no member {member_id!r}: it left, or was silent past its "
            "session timeout; join anew",
            group=group.name,
            member=member_id,
        )

    def _stale(
        self, group: Group, member: Member, partition: Partition, epoch: int
    ) -> errors.StaleMemberEpoch:
        topic = self._topics.names.get(partition[0], partition[0])
        return errors.StaleMemberEpoch(
            f"member {member.member_id!r} of group {group.name!r} did not have "
            f"{topic}-{partition[1]} at epoch {epoch}; nothing was committed for it",
            group=group.name,
            member=member.member_id,
            topic=topic,
            partition=partition[1],
        )

    def _touch(self, group: Group) -> None:
        self._touched[group.name] = None


def _checked(beat: Heartbeat) -> Subscription:
    wants = beat.wants
    if wants is None or not (wants.topics or wants.pattern is not None):
        raise errors.InvalidRequest(
            f"who joins group {beat.group!r} must say which topics to read: names or a pattern"
        )
    check_assignor(wants.assignor)
    return wants


def _check_epoch(group: Group, member: Member, beat: Heartbeat) -> None:
    # An older epoch of the same life is fine: an answer was lost, and `version` says what it has.
    if not member.joined_epoch <= beat.epoch <= member.epoch or beat.version > member.version:
        raise _fenced(group, member, beat.epoch)


def _fenced(group: Group, member: Member, epoch: int) -> errors.FencedMemberEpoch:
    return errors.FencedMemberEpoch(
        f"member {member.member_id!r} of group {group.name!r} says epoch {epoch}, and is at epoch "
        f"{member.epoch} since it joined at {member.joined_epoch}; join anew, under a new member "
        "id",
        group=group.name,
        member=member.member_id,
    )


__all__ = ["Coordinator"]
