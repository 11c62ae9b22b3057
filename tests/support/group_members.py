"""Members of a consumer group as a client will be one, without sockets: for tests.

A `GroupBroker` is the coordinator and its store, as the acceptor will hold them; it can be killed
and started again. A `FakeMember` does what a client's heartbeat thread does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shmbroker.control.groups.coordinator import Coordinator
from shmbroker.control.groups.gathering import Gathering
from shmbroker.control.groups.limits import GroupSettings
from shmbroker.control.groups.messages import (
    Commit,
    CommitAnswer,
    CommitRow,
    Fetch,
    FetchAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Leave,
)
from shmbroker.control.groups.store import GroupStore
from shmbroker.control.groups.values import Committed, Partition, Subscription, TopicView
from shmbroker.control.messages import (
    Request,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from shmbroker.control.meta import MetaStore

SETTINGS = GroupSettings(gather_ms=0, session_timeout_ms=10_000, rebalance_timeout_ms=30_000)


class GroupBroker:
    """The coordinator, its store and a clock; requests go through the codec both ways."""

    def __init__(self, path: Path, settings: GroupSettings = SETTINGS) -> None:
        self._path = path
        self.settings = settings
        self.now_ms = 1_000
        self.ends: dict[Partition, int] = {}  # durable ends; 1,000 where none is said
        self._open()

    def _open(self) -> None:
        self.meta = MetaStore(self._path)
        self.store = GroupStore(self.meta)
        self.coordinator = Coordinator(self.settings, self.views())
        self.coordinator.restore(self.store.groups(), self.store.members(), self.now_ms)
        self.gathering = Gathering(self.coordinator, self.store)

    def restart(self) -> None:
        """Killed, and started again from what is stored."""
        self.meta.close()
        self._open()

    def close(self) -> None:
        self.meta.close()

    def views(self) -> list[TopicView]:
        return [TopicView(t.topic_id, t.name, t.partitions) for t in self.meta.topics()]

    def create(self, name: str, partitions: int) -> str:
        topic_id = self.meta.create_topic(name, partitions, {}).topic_id
        self.topics_changed()
        return topic_id

    def topics_changed(self) -> None:
        self.coordinator.set_topics(self.views(), self.now_ms)

    def delete(self, name: str) -> None:
        self.meta.end_delete(self.meta.begin_delete(name).topic_id)
        self.topics_changed()

    def sleep(self, ms: int) -> None:
        """Time passes, tick by tick as the acceptor's loop would."""
        until = self.now_ms + ms
        while True:
            due = self.coordinator.tick(self.now_ms)
            if due is None or due > until:
                break
            self.now_ms = max(due, self.now_ms)
        self.now_ms = until
        self.coordinator.tick(self.now_ms)

    def durable_end(self, partition: Partition) -> int | None:
        for view in self.views():
            if view.topic_id == partition[0] and partition[1] < view.partitions:
                return self.ends.get(partition, 1_000)
        return None

    def heartbeat(self, beat: Heartbeat) -> HeartbeatAnswer:
        read = Heartbeat.from_request(request("group_heartbeat", beat.to_args()))
        answers: list[Any] = []
        self.gathering.heartbeat(read, self.now_ms, answers.append)
        return HeartbeatAnswer.from_ok(self._answered(answers))

    def leave(self, leave: Leave) -> None:
        answers: list[Any] = []
        read = Leave.from_request(request("group_leave", leave.to_args()))
        self.gathering.leave(read, self.now_ms, answers.append)
        self._answered(answers)

    def commit(self, commit: Commit) -> CommitAnswer:
        answers: list[Any] = []
        read = Commit.from_request(request("commit_offsets", commit.to_args()))
        self.gathering.commit(read, self.durable_end, answers.append)
        return CommitAnswer.from_ok(self._answered(answers))

    def committed(
        self, group: str, partitions: Iterable[Partition] | None = None
    ) -> Mapping[Partition, Committed]:
        asked = Fetch(group, None if partitions is None else tuple(partitions))
        answers: list[Any] = []
        read = Fetch.from_request(request("fetch_offsets", asked.to_args()))
        self.gathering.fetch(read, answers.append)
        return FetchAnswer.from_ok(self._answered(answers)).committed

    def _answered(self, answers: list[Any]) -> Mapping[str, Any]:
        assert not answers  # nobody is told before it is durable
        self.gathering.flush(self.now_ms)
        (said,) = answers
        if isinstance(said, BaseException):
            raise said
        return decode_reply(encode_reply(1, said)).result()


class FakeMember:
    """One member. It holds what it has taken up; `revoke` is what its program must let go."""

    def __init__(
        self,
        broker: GroupBroker,
        member_id: str,
        topics: Iterable[str] = ("t",),
        *,
        group: str = "g",
        **options: Any,
    ) -> None:
        self.broker, self.group, self.member_id = broker, group, member_id
        self.instance_id: str | None = options.pop("instance_id", None)
        self.session_ms: int | None = options.pop("session_timeout_ms", None)
        self.rebalance_ms: int | None = options.pop("rebalance_timeout_ms", None)
        self.wants = Subscription(tuple(sorted(topics)), **options)
        self.epoch = self.version = 0
        self.holds: set[Partition] = set()  # works on these
        self.revoke: set[Partition] = set()  # works on these still, and must let them go
        self._told = 0

    def beat(self) -> HeartbeatAnswer:
        """One heartbeat; takes up what is gained, remembers what is lost."""
        answer = self.broker.heartbeat(self.request())
        self.take(answer)
        return answer

    def request(self) -> Heartbeat:
        return Heartbeat(
            self.group,
            self.member_id,
            self.epoch,
            self.version,
            self.instance_id,
            "a test",
            self.wants if self.epoch == 0 else None,
            self.session_ms if self.epoch == 0 else None,
            self.rebalance_ms if self.epoch == 0 else None,
        )

    def take(self, answer: HeartbeatAnswer) -> None:
        self.epoch = answer.epoch
        if answer.assignment is not None:
            now = {(t, n) for t, (_, numbers) in answer.assignment.items() for n in numbers}
            self.revoke |= self.holds - now
            self.holds, self._told = now, answer.version
        if not self.revoke:
            self.version = self._told

    def let_go(self) -> None:
        """The program is done with what it lost."""
        self.revoke = set()
        self.version = self._told

    def turn(self) -> None:
        """What a lively member does: hears, lets go, says so."""
        self.beat()
        if self.revoke:
            self.let_go()
            self.beat()

    def commit(
        self, partition: Partition, offset: int, epoch: int | None = None, metadata: str = ""
    ) -> CommitAnswer:
        row = CommitRow(partition, offset, 0, metadata)
        at = self.epoch if epoch is None else epoch
        return self.broker.commit(Commit(self.group, (row,), self.member_id, at, self.instance_id))

    def leave(self, comes_back: bool = False) -> None:
        self.broker.leave(Leave(self.group, self.member_id, comes_back))


def settle(members: Iterable[FakeMember], turns: int = 20) -> None:
    """All take turns until the group says that it is stable."""
    everybody = list(members)
    for _ in range(turns):
        for member in everybody:
            member.turn()
        coordinator = everybody[0].broker.coordinator
        if {coordinator.describe(m.group).state for m in everybody} == {"stable"}:
            for member in everybody:
                member.turn()
            return
    raise AssertionError(f"not settled: {coordinator.describe(everybody[0].group)}")


def request(op: str, args: Mapping[str, Any]) -> Request:
    """What the acceptor reads, after the way over the wire."""
    return decode_request(encode_request(op, 1, **args))
