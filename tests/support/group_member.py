"""A member of a consumer group as bare as can be, for tests: says what the test has it say."""

from __future__ import annotations

import queue
from typing import Any

from waiting import eventually

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
from shmbroker.control.groups.values import Subscription

READS = Subscription(("t",))


class Member:
    """Over the control channel of a client."""

    def __init__(self, client: Any, member_id: str, group: str = "g") -> None:
        self.client, self.group, self.member_id = client, group, member_id
        self.answer = HeartbeatAnswer(0, 0, 0, 0)
        self.has: dict[str, list[int]] = {}
        self.news: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        told = client.connection._told

        def hear(event: dict[str, Any]) -> None:
            if event.get("event") == "group" and event.get("member") == member_id:
                self.news.put(event)
            told(event)

        client.connection._told = hear

    def beat(self, **args: Any) -> HeartbeatAnswer:
        """One heartbeat, with what it has taken up."""
        now = self.answer
        beat = Heartbeat(self.group, self.member_id, now.epoch, now.version, **args)
        said = self.client.connection.request("group_heartbeat", **beat.to_args())
        self.answer = HeartbeatAnswer.from_ok(said)
        if self.answer.assignment is not None:
            self.has = {name: sorted(numbers) for name, numbers in self.answer.assignment.values()}
        return self.answer

    def join(self, wants: Subscription = READS, **args: Any) -> None:
        """Until it has something."""
        self.answer = HeartbeatAnswer(0, 0, 0, 0)
        self.beat(wants=wants, **args)
        eventually(lambda: (self.beat(), bool(self.has))[1], self.beat)

    def commit(self, topic_id: str, offsets: dict[int, int], **args: Any) -> CommitAnswer:
        """As a member."""
        rows = tuple(CommitRow((topic_id, n), at, 0) for n, at in offsets.items())
        commit = Commit(self.group, rows, self.member_id, self.answer.epoch, **args)
        return CommitAnswer.from_ok(
            self.client.connection.request("commit_offsets", **commit.to_args())
        )

    def leave(self) -> None:
        """For good."""
        leave = Leave(self.group, self.member_id)
        self.client.connection.request("group_leave", **leave.to_args())


def committed(client: Any, group: str = "g") -> dict[tuple[str, int], int]:
    said = client.connection.request("fetch_offsets", **Fetch(group).to_args())
    return {p: c.offset for p, c in FetchAnswer.from_ok(said).committed.items()}


def topic_id(client: Any) -> str:
    """Of topic `t`."""
    return str(client.metadata.get("t").id)


__all__ = ["READS", "Member", "committed", "topic_id"]
