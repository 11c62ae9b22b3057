"""Consumer groups under everything that can happen to them, in any order.

The members here know only what they were told; what must hold is asked of them, not of the
coordinator: nobody works on a partition beside another, commits count exactly for who has it, and
once all is quiet every partition is with one member, balanced, after as few moves as there can be.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from group_members import FakeMember, GroupBroker
from group_optimum import best, cost
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shmbroker.control.groups.messages import Commit, CommitRow
from shmbroker.control.groups.values import Partition
from shmbroker.errors import (
    FencedInstance,
    FencedMemberEpoch,
    GroupNotEmpty,
    GroupNotFound,
    UnknownMember,
)

FENCED = (UnknownMember, FencedMemberEpoch, FencedInstance, GroupNotFound)
NAMES = ("t0", "t1", "u0")
MEMBERS_MAX, PARTITIONS_MAX = 4, 6

topics = st.sampled_from([{"t0"}, {"t0"}, {"t0", "t1"}, {"t0", "u0"}, {"u0", "t1"}, set()])
patterns = st.sampled_from([None, None, "t.", "[tu]0", "none"])
instances = st.sampled_from([None, None, None, "i0", "i1"])
whom = st.integers(0, 99)
olders = st.sampled_from([0, 0, 1, 2, 3, 4])  # epochs below the member's own


class Groups(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="groups-"))  # syncs cost nothing
        self.broker = GroupBroker(self.dir / "meta.db")
        self.members: list[FakeMember] = []  # who believe that they are in the group
        self.zombies: list[FakeMember] = []  # who were told, or replaced, and go on committing
        self.taken: dict[Partition, FakeMember] = {}  # who took it up last
        self.takes: dict[Partition, list[tuple[FakeMember, int]]] = {}  # all, with their epochs
        self.committed: dict[Partition, int] = {}
        self.made = 0
        # The same run again must give the same topic ids: they decide in what order things go.
        ids = (uuid.UUID(int=n) for n in itertools.count(1))
        self.same_ids = mock.patch("shmbroker.control.meta.uuid.uuid4", side_effect=ids)
        self.same_ids.start()

    def teardown(self) -> None:
        self.same_ids.stop()
        self.broker.close()
        shutil.rmtree(self.dir)

    @initialize(partitions=st.integers(2, 4))
    def begin(self, partitions: int) -> None:
        self.broker.create("t0", partitions)
        for _ in range(2):
            self.join({"t0"}, None, None, True)

    # What happens

    @precondition(lambda self: len(self.members) < MEMBERS_MAX)
    @rule(names=topics, pattern=patterns, instance=instances, told=st.booleans())
    def join(self, names: set[str], pattern: str | None, instance: str | None, told: bool) -> None:
        if not names and pattern is None:
            names = {"t0"}
        self.made += 1
        member = FakeMember(
            self.broker, f"m{self.made}", names, pattern=pattern, instance_id=instance
        )
        for old in [m for m in self.members if instance and m.instance_id == instance]:
            self.members.remove(old)
            self.zombies.append(old)
        self.members.append(member)
        self.beat(member, told)

    @precondition(lambda self: self.members)
    @rule(who=whom, told=st.booleans(), lets_go=st.booleans())
    def heartbeat(self, who: int, told: bool, lets_go: bool) -> None:
        member = self.members[who % len(self.members)]
        if lets_go:
            member.let_go()
        self.beat(member, told)

    @precondition(lambda self: len(self.members) > 1)
    @rule(turns=st.lists(st.tuples(whom, st.booleans(), olders), min_size=4, max_size=8))
    def some_let_go_and_some_work_on(self, turns: list[tuple[int, bool, int]]) -> None:
        for who, lets_go, older in turns:
            if self.members:
                self.heartbeat(who, True, lets_go)
                self.nobody_works_beside_another()
                self.everybody_commits_what_they_believe_to_have(who, older)

    @precondition(lambda self: self.members)
    @rule(who=whom, comes_back=st.booleans())
    def leave(self, who: int, comes_back: bool) -> None:
        member = self.members.pop(who % len(self.members))
        self.zombies.append(member)
        if self.is_member(member):
            member.leave(comes_back)

    @rule(ms=st.sampled_from([1, 100, 1_000, 3_000, 12_000]))
    def time_passes(self, ms: int) -> None:
        self.broker.sleep(ms)

    @rule(meanwhile=st.booleans())
    def restart(self, meanwhile: bool) -> None:
        there = {view.name: view.partitions for view in self.broker.views()}
        if meanwhile and "t0" in there and sum(there.values()) < PARTITIONS_MAX:
            self.broker.meta.add_partitions("t0", there["t0"] + 1)
        self.broker.restart()

    @rule(name=st.sampled_from(NAMES), partitions=st.integers(1, 3))
    def make_topic(self, name: str, partitions: int) -> None:
        there = {view.name: view.partitions for view in self.broker.views()}
        if sum(there.values()) + partitions > PARTITIONS_MAX:
            return
        if name in there:
            self.broker.meta.add_partitions(name, there[name] + partitions)
            self.broker.topics_changed()
        else:
            self.broker.create(name, partitions)

    @rule(name=st.sampled_from(NAMES))
    def delete_topic(self, name: str) -> None:
        for view in self.broker.views():
            if view.name == name:
                self.broker.delete(name)
                self.committed = {p: o for p, o in self.committed.items() if p[0] != view.topic_id}

    @rule(offset=st.integers(0, 900), older=olders)
    def everybody_commits_what_they_believe_to_have(self, offset: int, older: int) -> None:
        for member in self.members + self.zombies[-3:]:
            has = member.holds | member.revoke
            for partition in sorted(has or {(v.topic_id, 0) for v in self.broker.views()}):
                self.commit(member, partition, offset, older)
                offset = (offset + 1) % 900

    def commit(self, member: FakeMember, partition: Partition, offset: int, older: int) -> None:
        has = member.holds | member.revoke
        epoch = max(0, member.epoch - older)
        try:
            answer = member.commit(partition, offset, epoch)
            counts = partition in answer.committed
        except FENCED:
            counts = False
        mine = self.taken.get(partition) is member and self.is_member(member)
        if counts:
            # Or it was given the partition just now, and the answer that says so was lost.
            mine = mine or self.broker.coordinator.group("g").owners[partition] == member.member_id
            assert mine, "a commit of one who no longer has the partition counted"
            for other, taken_at in self.takes.get(partition, ()):
                same = other is member or (
                    other.instance_id is not None and other.instance_id == member.instance_id
                )
                assert same or epoch > taken_at, "a commit of before another had it counted"
            others = [m for m in self.members if m is not member and self.is_member(m)]
            assert all(partition not in m.holds | m.revoke for m in others)
            self.committed[partition] = offset
        elif mine and partition in has and older == 0:
            topics_there = {view.topic_id for view in self.broker.views()}
            assert partition[0] not in topics_there, "a commit of who has the partition was refused"

    @rule(offset=st.integers(0, 900))
    def commit_of_no_member(self, offset: int) -> None:
        for view in self.broker.views()[:1]:
            partition = (view.topic_id, 0)
            try:
                self.broker.commit(Commit("g", (CommitRow(partition, offset),)))
            except GroupNotEmpty:
                assert self.group_members()
            else:
                assert not self.group_members()
                self.committed[partition] = offset

    @precondition(lambda self: self.members)
    @rule(who=whom, event=st.sampled_from(["join", "leave", "dies", "more", "less", "restart"]))
    def one_change_moves_no_more_than_it_must(self, who: int, event: str) -> None:
        self.settle()
        if not self.members:
            return
        before = {p: m.member_id for m in self.members for p in m.holds}
        epochs = {m.member_id: m.epoch for m in self.members}
        member = self.members[who % len(self.members)]
        happens: dict[str, Callable[[], None]] = {
            "join": lambda: (
                self.join({"t0", "u0"}, None, None, True)
                if len(self.members) < MEMBERS_MAX
                else None
            ),
            "leave": lambda: self.leave(who, False),
            "dies": lambda: self.dies(member),
            "more": lambda: self.make_topic("t1", 2),
            "less": lambda: self.delete_topic("t0"),
            "restart": lambda: self.restart(False),
        }
        happens[event]()
        self.settle()
        after = {m.member_id: m.holds for m in self.members}
        assert cost(after, before) == best(self.wants(), self.counts(), before)
        if event == "restart":
            assert {m.member_id: m.epoch for m in self.members} == epochs
            assert {p: m for m, held in after.items() for p in held} == before

    @rule()
    def all_is_quiet(self) -> None:
        self.settle()

    # What must hold

    @invariant()
    def nobody_works_beside_another(self) -> None:
        seen: dict[Partition, str] = {}
        for member in self.members:
            if self.is_member(member):
                for partition in member.holds | member.revoke:
                    other = seen.setdefault(partition, member.member_id)
                    assert other == member.member_id, f"{partition}: {other} {member.member_id}"

    @invariant()
    def what_was_committed_is_there_and_nothing_else(self) -> None:
        found = self.broker.committed("g")
        assert {p: c.offset for p, c in found.items()} == self.committed

    # Inside

    def beat(self, member: FakeMember, told: bool = True) -> None:
        try:
            answer = self.broker.heartbeat(member.request())
        except FENCED:
            assert not self.is_member(member), "a member was fenced"
            self.members.remove(member)
            self.zombies.append(member)
            return
        if told:
            before = set(member.holds)
            member.take(answer)
            for partition in member.holds - before:
                self.taken[partition] = member
                self.takes.setdefault(partition, []).append((member, member.epoch))

    def dies(self, member: FakeMember) -> None:
        self.members.remove(member)
        self.zombies.append(member)
        self.pass_a_session()

    def pass_a_session(self) -> None:
        for _ in range(5):
            self.broker.sleep(2_500)
            for member in list(self.members):
                self.beat(member)

    def settle(self) -> None:
        for member in list(self.members):
            self.beat(member)
        group = self.group_members()
        if set(group) - {m.member_id for m in self.members}:
            self.pass_a_session()  # those who went without a word
        for _ in range(3 * MEMBERS_MAX):
            for member in list(self.members):
                member.let_go()
                self.beat(member)
        if not self.members:
            return
        assert self.broker.coordinator.describe("g").state == "stable"
        wants, counts = self.wants(), self.counts()
        given = {m.member_id: m.holds for m in self.members}
        everything = {(t, n) for t in frozenset().union(*wants.values()) for n in range(counts[t])}
        assert sorted(p for held in given.values() for p in held) == sorted(everything)
        assert all(t in wants[m] for m, held in given.items() for t, _ in held)
        assert cost(given, {})[0] == best(wants, counts, {})[0]

    def wants(self) -> dict[str, frozenset[str]]:
        matching = {"t.": {"t0", "t1"}, "[tu]0": {"t0", "u0"}, "none": set(), None: set()}
        ids = {view.name: view.topic_id for view in self.broker.views()}
        return {
            m.member_id: frozenset(
                ids[name] for name in {*m.wants.topics, *matching[m.wants.pattern]} if name in ids
            )
            for m in self.members
        }

    def counts(self) -> dict[str, int]:
        return {view.topic_id: view.partitions for view in self.broker.views()}

    def group_members(self) -> list[str]:
        if "g" not in self.broker.coordinator.names():
            return []
        return [m.member_id for m in self.broker.coordinator.describe("g").members]

    def is_member(self, member: FakeMember) -> bool:
        return member.member_id in self.group_members()


Groups.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
test_groups_hold_whatever_happens = Groups.TestCase
