"""Members of a consumer group over the real wire, all in one process, for `cases/groups.py`.

Each has a socket of its own and is as light as can be, so that what is measured is the broker: it
says hello, joins, lets go at once of what it must give up, and hears its news as any client does.
Not thread-safe; every wait ends with an error.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import zmq

from shmbroker.control.groups.messages import (
    Commit,
    CommitRow,
    Heartbeat,
    HeartbeatAnswer,
    Leave,
)
from shmbroker.control.groups.values import Partition, Subscription
from shmbroker.errors import from_wire

_WAIT_S: Final = 60.0
_BESIDE: Final = "metadata"  # a request of somebody else while members commit


@dataclass(slots=True)
class _Member:
    name: str
    socket: zmq.Socket[bytes]
    who: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    version: int = 0
    held: set[Partition] = field(default_factory=set)
    waits: bool = False  # for the answer to a heartbeat
    again: bool = False  # it heard news meanwhile


class Members:
    """`count` programs elsewhere; `token` as in the broker's token file."""

    def __init__(self, address: str, token: str, count: int, group: str = "bench") -> None:
        self._group = group
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._context.max_sockets = count + 16
        self._poller = zmq.Poller()
        self._numbers = 0
        self._members: dict[Any, _Member] = {}
        for n in range(count):
            sock = self._context.socket(zmq.DEALER)
            sock.linger = 0
            sock.connect(address)
            member = _Member(f"m{n:04}", sock)
            hello = {"v": 1, "id": 0, "op": "hello", "min": 1, "max": 1, "token": token}
            sock.send(orjson.dumps(hello | {"name": member.name}))
            self._members[sock] = member
            self._poller.register(sock, zmq.POLLIN)
        for sock, member in self._members.items():
            said = _answer(self._receive(sock))
            member.who = {"client": said["client"], "token": said["secret"]}

    def close(self) -> None:
        """Closes all sockets; the broker forgets who they were."""
        self._context.destroy(linger=0)

    # --- rebalance -----------------------------------------------------------------------------

    def join(self, first: int, last: int, topic: str, partitions: int) -> tuple[float, int]:
        """Members first … last - 1 join; (seconds until all are settled, partitions moved)."""
        before, began = self._owners(), time.perf_counter()
        wants = Subscription((topic,))
        for member in list(self._members.values())[first:last]:
            beat = Heartbeat(self._group, member.name, 0, wants=wants)
            self._ask(member, "group_heartbeat", beat.to_args())
            member.waits = True
        return self._settle(before, began, last, partitions)

    def leave(self, last: int, partitions: int) -> tuple[float, int]:
        """Member last - 1 goes; as `join`."""
        before, began = self._owners(), time.perf_counter()
        member = list(self._members.values())[last - 1]
        self._ask(member, "group_leave", Leave(self._group, member.name).to_args())
        _answer(self._receive(member.socket))
        member.held, member.epoch, member.version = set(), 0, 0
        return self._settle(before, began, last - 1, partitions)

    def _settle(
        self, before: dict[Partition, str], began: float, members: int, partitions: int
    ) -> tuple[float, int]:
        low, high = partitions // members, -(-partitions // members)

        def settled() -> bool:
            active = [m for m in self._members.values() if m.epoch]
            return (
                len(active) == members
                and not any(m.waits for m in active)
                and all(low <= len(m.held) <= high for m in active)
                and sum(len(m.held) for m in active) == partitions
            )

        self._until(settled)
        took, now = time.perf_counter() - began, self._owners()
        return took, sum(1 for p, owner in now.items() if before.get(p, owner) != owner)

    def _owners(self) -> dict[Partition, str]:
        owners = {p: m.name for m in self._members.values() for p in m.held}
        if len(owners) != sum(len(m.held) for m in self._members.values()):
            raise RuntimeError("a partition has two owners")
        return owners

    def _until(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + _WAIT_S
        while not done():
            if time.monotonic() > until:
                held = Counter(len(m.held) for m in self._members.values())
                raise RuntimeError(f"the group did not settle: partitions held: {held}")
            for sock, _ in self._poller.poll(1_000):
                self._hear(self._members[sock], orjson.loads(sock.recv()))

    def _hear(self, member: _Member, said: dict[str, Any]) -> None:
        if "event" in said:
            member.again = member.again or said["event"] == "group"
        else:
            answer = HeartbeatAnswer.from_ok(_answer(said))
            member.waits = False
            member.epoch = answer.epoch
            if answer.assignment is not None:
                member.held = {
                    (topic, n) for topic, (_, ns) in answer.assignment.items() for n in ns
                }
                member.version = answer.version
                member.again = True  # it has let go of the rest, and says so
        if member.again and not member.waits and member.epoch:
            member.again, member.waits = False, True
            beat = Heartbeat(self._group, member.name, member.epoch, member.version)
            self._ask(member, "group_heartbeat", beat.to_args())

    # --- commits -------------------------------------------------------------------------------

    def commit(self, seconds: float) -> tuple[float, list[float]]:
        """All members but the last commit, one at a time each, for so long: (durable commits a
        second, ms of each request of somebody else, the last one, meanwhile)."""
        *members, beside = (m for m in self._members.values())
        for member in members:  # their sessions begin anew
            beat = Heartbeat(self._group, member.name, member.epoch, member.version)
            self._ask(member, "group_heartbeat", beat.to_args())
            while "event" in (said := self._receive(member.socket)):
                pass
            _answer(said)
        done, offset = 0, 0
        trips: list[float] = []
        began = asked = time.perf_counter()
        for member in members:
            self._commit(member, 0)
        self._ask(beside, _BESIDE, {"topics": []})
        while (took := time.perf_counter() - began) < seconds:
            for sock, _ in self._poller.poll(1_000):
                member, said = self._members[sock], orjson.loads(sock.recv())
                if "event" in said:
                    continue
                ok = _answer(said)
                if member is beside:
                    trips.append((time.perf_counter() - asked) * 1e3)
                    asked = time.perf_counter()
                    self._ask(beside, _BESIDE, {"topics": []})
                    continue
                if len(ok["committed"]) != 1:
                    raise RuntimeError(f"a commit was refused: {ok}")
                done, offset = done + 1, offset + 1
                self._commit(member, offset % 2)
        for member in (*members, beside):  # the answers under way
            while "event" in self._receive(member.socket):
                pass
        return done / took, trips

    def _commit(self, member: _Member, offset: int) -> None:
        rows = (CommitRow(min(member.held), offset, 0),)
        commit = Commit(self._group, rows, member.name, member.epoch)
        self._ask(member, "commit_offsets", commit.to_args())

    # --- the wire ------------------------------------------------------------------------------

    def _ask(self, member: _Member, op: str, args: dict[str, Any]) -> None:
        self._numbers += 1
        said = {"v": 1, "id": self._numbers, "op": op} | member.who | args
        member.socket.send(orjson.dumps(said))

    def _receive(self, sock: zmq.Socket[bytes]) -> dict[str, Any]:
        if not sock.poll(int(_WAIT_S * 1000)):
            raise RuntimeError("the broker does not answer")
        found: dict[str, Any] = orjson.loads(sock.recv())
        return found


def _answer(said: dict[str, Any]) -> dict[str, Any]:
    if "error" in said:
        raise from_wire(said["error"])
    ok: dict[str, Any] = said["ok"]
    return ok


__all__ = ["Members"]
