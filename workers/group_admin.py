"""What operators and scalers ask about consumer groups: listed, described, moved, deleted.

The codec is control/groups/admin_messages.py, the tables of the answers docs/protocol.md's. Belongs
to the acceptor's one thread; what must be looked up in records is done by the thread of offsets.py.

Invariants: what is answered is what is stored; offsets are moved by a commit of a program that is
no member, which the coordinator refuses while there are members, also if they came after the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.control.groups import reset
from shmbroker.control.groups.admin_messages import (
    ForgetOffsets,
    Reset,
    TopicPartitions,
    group_of,
)
from shmbroker.control.groups.description import GroupDescription
from shmbroker.control.groups.gathering import Answer
from shmbroker.control.groups.messages import CommitAnswer
from shmbroker.control.groups.offsets import Bounds, lag
from shmbroker.control.groups.reset import ResetLine
from shmbroker.control.groups.values import ByTopic, Committed, Partition
from shmbroker.control.meta import Topic
from shmbroker.control.plan import Plan
from shmbroker.control.sessions import Client
from shmbroker.control.sharedmem import SharedMemory
from shmbroker.workers.groups import Groups
from shmbroker.workers.offsets import Offsets
from shmbroker.workers.record_look import RecordLook, Spot
from shmbroker.workers.topics import Topics


@dataclass(slots=True)
class _Behind:
    """A partition with lag: its row, and where its oldest record not yet committed is."""

    row: dict[str, Any]
    spot: Spot
    offset: int


class GroupAdmin:
    """Answers it. See the module."""

    def __init__(
        self, groups: Groups, topics: Topics, plan: Plan, memory: SharedMemory, offsets: Offsets
    ) -> None:
        self._groups, self._topics, self._plan = groups, topics, plan
        self._memory, self._offsets = memory, offsets

    def list_groups(self, _client: Client, _request: messages.Request, answer: Answer) -> None:
        """`list_groups`."""
        self._look(lambda done: done({"groups": self._listed()}), answer)

    def describe(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        """`describe_group`."""
        group = group_of(request)
        self._look(lambda done: self._describe(group, done), answer)

    def reset(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        """`reset_group`."""
        asked = Reset.from_request(request)
        self._look(lambda done: self._plan_reset(asked, done), answer)

    def delete(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        """`delete_group`."""
        self._groups.gathering.delete(group_of(request), answer)
        self._groups.soon()

    def delete_offsets(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        """`delete_group_offsets`."""
        asked = ForgetOffsets.from_request(request)
        self._groups.checkpoints.look(asked.group)
        self._groups.gathering.forget(asked.group, self._named(asked.topics), answer)
        self._groups.soon()

    # --- looking -------------------------------------------------------------------------------

    def _look(self, do: Callable[[Answer], None], answer: Answer) -> None:
        self._groups.checkpoints.look()  # what members have stored counts
        self._groups.gathering.look(do, answer)
        self._groups.soon()

    def _listed(self) -> list[dict[str, Any]]:
        coordinator, names = self._groups.coordinator, self._names()
        committed = self._groups.store.committed_topics()
        found = []
        for name in coordinator.names():
            group = coordinator.group(name)
            topics = committed.get(name, set()).union(*group.reads.values())
            found.append(
                {
                    "group": name,
                    "state": group.state,
                    "epoch": group.epoch,
                    "members": len(group.members),
                    "topics": sorted(names[t] for t in topics if t in names),
                }
            )
        return found

    def _describe(self, name: str, answer: Answer) -> None:
        group = self._groups.coordinator.describe(name)
        names, committed = self._names(), self._groups.store.committed(name)
        rows, behind = [], []
        owners = _owners(group)
        for partition in sorted(
            (p for p in owners.keys() | committed.keys() if p[0] in names),
            key=lambda p: (names[p[0]], p[1]),
        ):
            kept = committed.get(partition)
            bounds = self._bounds(partition)
            row = _row(names[partition[0]], partition[1], owners.get(partition), kept, bounds)
            rows.append(row)
            spot = self._spot(partition)
            if bounds is not None and row["lag"] and spot is not None:
                row["lag_ms"] = None
                first = bounds.start if kept is None else max(kept.offset, bounds.start)
                behind.append(_Behind(row, spot, first))
        said = {
            "group": name,
            "state": group.state,
            "epoch": group.epoch,
            "assignment_epoch": group.assignment_epoch,
            "assignor": group.assignor,
            "members": [
                {
                    "member": m.member_id,
                    "instance": m.instance_id,
                    "name": m.name,
                    "epoch": m.epoch,
                    "away": m.away,
                    "has": _by_name(m.has, names),
                    "gives_up": _by_name(m.gives_up, names),
                    "waits_for": _by_name(m.waits_for, names),
                }
                for m in group.members
            ],
            "partitions": rows,
        }
        if behind:
            self._offsets.look_up(lambda: self._with_ages(said, behind), answer)
        else:
            answer(said)

    def _with_ages(self, said: Mapping[str, Any], behind: Iterable[_Behind]) -> Mapping[str, Any]:
        """In the thread of offsets.py."""
        with RecordLook(self._memory) as look:
            for one in behind:
                made_ms = look.timestamp_at(one.spot, one.offset)
                if made_ms is not None:
                    one.row["lag_ms"] = max(0, time.time_ns() // 1_000_000 - made_ms)
        return said

    # --- moving --------------------------------------------------------------------------------

    def _plan_reset(self, asked: Reset, answer: Answer) -> None:
        groups, members = self._groups, 0
        if asked.group in groups.coordinator.names() or asked.topics is None:
            members = len(groups.coordinator.group(asked.group).members)
        if members and not asked.dry_run:
            raise errors.GroupNotEmpty(asked.group, members, "moving its offsets")
        names = self._names()
        committed = groups.store.committed(asked.group)
        if asked.topics is None:
            partitions = [p for p in committed if p[0] in names and p in self._plan.places]
        else:
            partitions = self._named(asked.topics)
        bounds, spots = {}, {}
        for partition in partitions:
            there, spot = groups.bounds(partition), self._spot(partition)
            if there is None or spot is None:
                raise errors.UnknownTopic(names[partition[0]], partition[1])
            bounds[partition], spots[partition] = there, spot
        lines: list[ResetLine] = []

        def plan() -> Mapping[str, Any]:
            """In the thread of offsets.py."""
            with RecordLook(self._memory) as look:
                lines.extend(
                    reset.plan(
                        asked.to, partitions, committed, bounds,
                        lambda p, at_ms: look.offset_at(spots[p], at_ms),
                        lambda p, offset: look.epoch_before(spots[p], offset),
                    )
                )  # fmt: skip
            return {"done": False, "partitions": [_line(x, names) for x in lines]}

        def planned(said: Mapping[str, Any] | BaseException) -> None:
            if isinstance(said, BaseException) or asked.dry_run:
                answer(said)
                return
            self._do_reset(asked.group, lines, said, answer)

        self._offsets.look_up(plan, planned)

    def _do_reset(
        self, group: str, lines: list[ResetLine], said: Mapping[str, Any], answer: Answer
    ) -> None:
        def committed(ok: Mapping[str, Any] | BaseException) -> None:
            if isinstance(ok, BaseException):
                answer(ok)
                return
            refused = CommitAnswer.from_ok(ok).refused
            answer(next(iter(refused.values())) if refused else {**said, "done": True})

        # The coordinator looks again whether there are members: the plan took its time.
        self._groups.gathering.commit(
            reset.commit(group, 0, lines), self._groups.durable_end, committed
        )
        self._groups.soon()

    # --- topics --------------------------------------------------------------------------------

    def _names(self) -> dict[str, str]:
        """Of the topics that clients see, by id."""
        return {topic.topic_id: topic.name for topic in self._topics.shown()}

    def _named(self, topics: TopicPartitions) -> list[Partition]:
        """The partitions that are meant; raises UnknownTopic."""
        shown: dict[str, Topic] = {topic.name: topic for topic in self._topics.shown()}
        found: list[Partition] = []
        for name, numbers in topics.items():
            topic = shown.get(name)
            if topic is None:
                raise errors.UnknownTopic(name)
            for number in range(topic.partitions) if numbers is None else numbers:
                if number >= topic.partitions:
                    raise errors.UnknownTopic(name, number, topic.partitions)
                found.append((topic.topic_id, number))
        return found

    def _bounds(self, partition: Partition) -> Bounds | None:
        """None also while the partition is being opened."""
        try:
            return self._groups.bounds(partition)
        except errors.TimedOut:
            return None

    def _spot(self, partition: Partition) -> Spot | None:
        place = self._plan.places.get(partition)
        if place is None:
            return None
        return Spot(place, self._topics.directory(place.topic, place.partition))


def _owners(group: GroupDescription) -> dict[Partition, str | None]:
    """Every partition that a member has or shall have; with who has it, also while giving it up."""
    found: dict[Partition, str | None] = {}
    for member in group.members:
        for topic, numbers in member.waits_for.items():
            for number in numbers:
                found.setdefault((topic, number), None)
        for held in (member.has, member.gives_up):
            for topic, numbers in held.items():
                found |= dict.fromkeys(((topic, n) for n in numbers), member.member_id)
    return found


def _row(
    topic: str, number: int, member: str | None, kept: Committed | None, bounds: Bounds | None
) -> dict[str, Any]:
    behind = None if bounds is None else lag(kept, bounds)
    return {
        "topic": topic,
        "partition": number,
        "member": member,
        "committed": None if kept is None else kept.offset,
        "leader_epoch": -1 if kept is None else kept.leader_epoch,
        "metadata": "" if kept is None else kept.metadata,
        "committed_ms": None if kept is None else kept.committed_ms,
        "log_start_offset": None if bounds is None else bounds.start,
        "high_watermark": None if bounds is None else bounds.end,
        "lag": behind,
        "lag_ms": 0 if behind == 0 else None,
    }


def _line(line: ResetLine, names: Mapping[str, str]) -> dict[str, Any]:
    topic, number = line.partition
    return {
        "topic": names[topic],
        "partition": number,
        "before": line.before,
        "after": line.after,
        "lag_before": line.lag_before,
        "lag_after": line.lag_after,
        "capped": line.capped,
    }


def _by_name(partitions: ByTopic, names: Mapping[str, str]) -> dict[str, list[int]]:
    return {names[t]: numbers for t, numbers in partitions.items() if t in names}


__all__ = ["GroupAdmin"]
