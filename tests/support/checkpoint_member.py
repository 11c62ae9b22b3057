"""A group member that checkpoints through shared memory, as bare as can be: for tests.

    python checkpoint_member.py INSTANCE MEMBER

joins group `g` on topic `t`, reads, checkpoints each record, says `PARTITION OFFSET` of it behind
that, and waits for a line on its input before the next; at the end of input it ends without a word.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from shmbroker.client.checkpoints import MemberCheckpoints
from shmbroker.client.client import Client, connect
from shmbroker.control.groups.messages import (
    Fetch,
    FetchAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Leave,
)
from shmbroker.control.groups.values import Subscription

_PATIENCE_S = 20.0


class CheckpointMember:
    """Says what the test has it say; `checkpoints` has a slot for each partition that it has."""

    def __init__(self, client: Client, member_id: str, group: str = "g") -> None:
        self.client, self.group, self.member_id = client, group, member_id
        self.topic = client.metadata.get("t")
        self.consumer = client.consumer("t", start="earliest")
        self.checkpoints = MemberCheckpoints(client.connection, self.consumer, group)
        self.has: list[int] = []
        self.lost: list[int] = []  # and not let go yet
        self._answer = HeartbeatAnswer(0, 0, 0, 0)
        self._version = 0

    def beat(self, **args: Any) -> None:
        """One heartbeat; takes up what it gives."""
        said = self._ask(
            "group_heartbeat",
            Heartbeat(self.group, self.member_id, self._answer.epoch, self._version, **args),
        )
        self._answer = HeartbeatAnswer.from_ok(said)
        if self._answer.assignment is not None:
            now = sorted(n for _, numbers in self._answer.assignment.values() for n in numbers)
            self.lost += [n for n in self.has if n not in now]
            self.has = now
        if not self.lost:
            self._version = self._answer.version
            taken = [("t", self.topic.id, n) for n in self.has]
            self.checkpoints.take(taken, self.member_id, self._answer.epoch)

    def join(self, partitions: int, **args: Any) -> None:
        """Until it has so many."""
        self.beat(wants=Subscription(("t",)), **args)
        self.beat_until(partitions)

    def beat_until(self, partitions: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while len(self.has) != partitions:
            assert time.monotonic() < deadline, self.has
            self.beat()
            self.let_go()
            time.sleep(0.005)

    def let_go(self) -> None:
        """Done with what it lost: says so."""
        if not self.lost:
            return
        for number in self.lost:
            self.checkpoints.slots.drop("t", number)
        self.lost = []
        self._version = self._answer.version
        self.beat()

    def store(self, partition: int, offset: int) -> bool:
        """A checkpoint."""
        return self.checkpoints.slots.store("t", partition, offset)

    def leave(self) -> None:
        """For good."""
        self.consumer.close()
        self._ask("group_leave", Leave(self.group, self.member_id))

    def _ask(self, op: str, what: Any) -> dict[str, Any]:
        return self.client.connection.request(op, **what.to_args())


def committed(client: Client, group: str = "g") -> dict[int, tuple[int, int]]:
    """Partition -> (offset, leader epoch), as the coordinator says."""
    said = client.connection.request("fetch_offsets", **Fetch(group).to_args())
    rows = FetchAnswer.from_ok(said).committed
    return {number: (c.offset, c.leader_epoch) for (_, number), c in rows.items()}


def main() -> None:
    instance, member_id = sys.argv[1:]
    client = connect(instance)
    member = CheckpointMember(client, member_id)
    member.join(len(member.topic.partitions))
    for record in member.consumer:
        assert member.store(record.partition, record.offset + 1)
        print(record.partition, record.offset, flush=True)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
