"""A client's membership beside the real coordinator, under everything that can happen between them.

Here are the Membership of the client, the thread that beats for it (`beat`, `deliver`) and the one
that reads (`attend`), each when it likes; requests and answers get lost or come late. Whoever reads
looks at its membership only when it was called, as a Consumer does, so a lost call is a hang.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from group_members import GroupBroker
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shmbroker.client.groups.membership import OUT, Membership, Options
from shmbroker.control.groups.messages import Commit, CommitRow, Heartbeat, HeartbeatAnswer, Leave
from shmbroker.control.groups.values import Partition, Subscription
from shmbroker.errors import BrokerGone, FencedInstance, ShmbrokerError, StoreFailed, TimedOut

MEMBERS_MAX, PARTITIONS_MAX, SESSION_S = 4, 6, 10.0
LOST = (TimedOut("lost"), BrokerGone("gone"), StoreFailed("a full disk"))

whom = st.integers(0, 99)
instances = st.sampled_from([None, None, "i0", "i1"])
losses = st.sampled_from([None, None, None, *LOST])


class Client:
    """One consumer: its membership, what it works on, and the heartbeat that is under way."""

    def __init__(self, broker: GroupBroker, instance_id: str | None) -> None:
        self.broker = broker
        wants = Subscription(("t",))
        self.member = Membership(Options("g", wants, instance_id, int(SESSION_S * 1000), 30_000))
        self.holds: set[Partition] = set()
        self.called = False
        self.ended = False  # FencedInstance: another program has its place
        self.under_way: tuple[Heartbeat, HeartbeatAnswer | ShmbrokerError] | None = None

    @property
    def now_s(self) -> float:
        return self.broker.now_ms / 1000

    def beat(self, lost: ShmbrokerError | None = None, arrives: bool = True) -> None:
        """The heart says it is there; the answer is under way, or the news that there is none."""
        beat = self.member.beat()
        if beat is None or self.under_way is not None:
            return
        said: HeartbeatAnswer | ShmbrokerError | None = lost
        if arrives:
            try:
                answer = self.broker.heartbeat(beat)
                said = lost or answer
            except ShmbrokerError as error:
                said = lost or error
        self.under_way = beat, said or TimedOut("lost")

    def deliver(self) -> None:
        if self.under_way is None:
            return
        beat, said = self.under_way
        self.under_way = None
        if isinstance(said, HeartbeatAnswer):
            self.called |= self.member.answered(beat, said, self.now_s)
        else:
            self.called |= self.member.refused(beat, said, self.now_s)

    def attend(self) -> None:
        """The reading thread's next read."""
        if not self.called or self.ended:
            return
        self.called = False
        try:
            while (task := self.member.task()) is not None:
                self.holds = set(task.assignment)
                if task.lost:
                    self.member.rejoin()
                else:
                    self.member.took(task.version)
        except FencedInstance:
            self.holds, self.ended = set(), True

    def commit(self) -> ShmbrokerError | None:
        """Commits all that it works on; what the whole was refused with."""
        rows = tuple(CommitRow(p, 1) for p in sorted(self.holds))
        member = self.member
        ask = Commit("g", rows, member.member_id, member.epoch, member.options.instance_id)
        try:
            answer = self.broker.commit(ask)
        except (*OUT, FencedInstance) as error:
            member.put_out(error)
            self.called = True
            return error
        assert not answer.refused
        return None


class Members(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="members-"))
        self.broker = GroupBroker(self.dir / "meta.db")
        self.clients: list[Client] = []

    def teardown(self) -> None:
        self.broker.close()
        shutil.rmtree(self.dir)

    @initialize(partitions=st.integers(1, 4))
    def begin(self, partitions: int) -> None:
        self.partitions = partitions
        self.topic = self.broker.create("t", partitions)
        for _ in range(2):
            self.join(None)

    # What happens

    @precondition(lambda self: len(self.clients) < MEMBERS_MAX)
    @rule(instance=instances)
    def join(self, instance: str | None) -> None:
        client = Client(self.broker, instance)
        self.clients.append(client)
        client.beat()
        client.deliver()

    @precondition(lambda self: self.clients)
    @rule(n=whom, lost=losses, arrives=st.booleans())
    def beat(self, n: int, lost: ShmbrokerError | None, arrives: bool) -> None:
        self.whom(n).beat(lost, arrives or lost is None)

    @precondition(lambda self: self.clients)
    @rule(n=whom)
    def deliver(self, n: int) -> None:
        self.whom(n).deliver()

    @precondition(lambda self: self.clients)
    @rule(n=whom)
    def attend(self, n: int) -> None:
        self.whom(n).attend()

    @precondition(lambda self: self.clients)
    @rule(n=whom)
    def news(self, n: int) -> None:
        """The coordinator's event, also while a heartbeat is under way."""
        client = self.whom(n)
        client.member.soon()
        client.deliver()
        if client.member.due_s() is not None and client.member.state == "in":
            client.beat()

    @precondition(lambda self: self.clients)
    @rule(n=whom)
    def commit(self, n: int) -> None:
        """Whoever is in the group commits all that it works on; of the others nothing counts."""
        client = self.whom(n)
        if not client.holds:
            return
        is_in = client.member.member_id in self.inside()
        assert (client.commit() is None) == is_in

    @precondition(lambda self: self.clients)
    @rule(n=whom, comes_back=st.booleans())
    def leave(self, n: int, comes_back: bool) -> None:
        client = self.clients.pop(n % len(self.clients))
        if client.member.member_id in self.inside():
            self.broker.leave(Leave("g", client.member.member_id, comes_back))

    @rule(ms=st.sampled_from([10, 1_000, 4_000, 11_000]))
    def sleep(self, ms: int) -> None:
        self.broker.sleep(ms)

    @rule()
    def restart(self) -> None:
        self.broker.restart()

    @precondition(lambda self: self.partitions < PARTITIONS_MAX)
    @rule()
    def grow(self) -> None:
        self.partitions += 1
        self.broker.meta.add_partitions("t", self.partitions)
        self.broker.topics_changed()

    @precondition(lambda self: self.clients)
    @rule()
    def settle(self) -> None:
        """All live by the clock that their memberships give them: everybody ends with their own."""
        for _ in range(200):
            live = [c for c in self.clients if not c.ended]
            for client in live:
                client.deliver()
                client.attend()
                due_s = client.member.due_s()
                if due_s is not None and due_s <= client.now_s:
                    client.beat()
                    client.deliver()
                    client.attend()
            if self.settled(live):
                return
            self.broker.sleep(250)
        raise AssertionError([(c.member.state, c.holds) for c in self.clients])

    def settled(self, live: list[Client]) -> bool:
        held = sorted(p for c in live for p in c.holds)
        everything = [(self.topic, n) for n in range(self.partitions)]
        return (not live or held == everything) and all(c.member.state == "in" for c in live)

    # What must hold

    @invariant()
    def nobody_works_beside_another(self) -> None:
        inside = self.inside()
        held = [p for c in self.clients if c.member.member_id in inside for p in c.holds]
        assert len(held) == len(set(held))

    @invariant()
    def who_has_something_to_do_was_called(self) -> None:
        for client in self.clients:
            if not client.ended and not client.called:
                assert client.member.task() is None

    def whom(self, n: int) -> Client:
        return self.clients[n % len(self.clients)]

    def inside(self) -> set[str]:
        if "g" not in self.broker.coordinator.names():
            return set()
        return {m.member_id for m in self.broker.coordinator.describe("g").members}


TestMembers = Members.TestCase
TestMembers.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_news_that_come_while_a_heartbeat_is_under_way_are_not_put_off_by_its_answer() -> None:
    member = Membership(Options("g", Subscription(("t",))))
    beat = member.beat()
    assert beat is not None
    member.soon()
    assert not member.answered(beat, HeartbeatAnswer(1, 0, 3_000, 15_000), 100.0)
    assert member.due_s() == 0.0
    beat = member.beat()
    assert beat is not None
    assert not member.answered(beat, HeartbeatAnswer(1, 0, 3_000, 15_000), 100.0)
    assert member.due_s() == 103.0


def test_an_answer_of_the_life_before_is_of_no_effect() -> None:
    member = Membership(Options("g", Subscription(("t",))))
    beat = member.beat()
    assert beat is not None
    before = member.member_id
    member.rejoin()
    assert member.member_id != before
    answer = HeartbeatAnswer(7, 2, 3_000, 15_000, {"id": ("t", (0,))})
    assert not member.answered(beat, answer, 1.0)
    assert not member.refused(beat, OUT[0]("g"), 1.0)
    assert (member.epoch, member.state, member.task()) == (0, "joining", None)
