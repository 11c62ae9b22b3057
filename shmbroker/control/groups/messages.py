"""What members and programs say to the coordinator, and what it answers: codec, without I/O.

Each request is one of control/messages.py, its arguments those of the dataclass here; each answer
is the reply's table. Partitions go as {topic id: [numbers]}, offsets as rows of
[topic id, partition, offset, leader epoch, metadata].

    group_heartbeat   Heartbeat -> HeartbeatAnswer     epoch 0 joins
    group_leave       Leave -> {}
    commit_offsets    Commit -> CommitAnswer           answered when durable
    fetch_offsets     Fetch -> FetchAnswer

Invariants: what arrives raises InvalidRequest (or the error of a bound, limits.py) and nothing
else; what was decoded is within every bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from shmbroker.control.groups import limits
from shmbroker.control.groups.values import Committed, Partition, Subscription
from shmbroker.control.messages import Request
from shmbroker.errors import InvalidRequest, ShmbrokerError, from_wire

T = TypeVar("T")
_EPOCH_MAX: Final = 2**31 - 1  # as a batch's leader epoch has room for
_NUMBER_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A member is there. Joining (epoch 0) takes `wants`; later it says what has changed only."""

    group: str
    member_id: str
    epoch: int  # as last answered; 0: joins
    version: int = 0  # of the assignment it has taken up: it holds nothing else any more
    instance_id: str | None = None
    name: str = ""
    wants: Subscription | None = None
    session_timeout_ms: int | None = None
    rebalance_timeout_ms: int | None = None

    def to_args(self) -> dict[str, Any]:
        """The arguments of a `group_heartbeat` request."""
        wants = self.wants
        args = {
            "group": self.group,
            "member": self.member_id,
            "epoch": self.epoch,
            "version": self.version,
            "instance": self.instance_id,
            "name": self.name or None,
            "session_timeout_ms": self.session_timeout_ms,
            "rebalance_timeout_ms": self.rebalance_timeout_ms,
        }
        if wants is not None:
            args |= {
                "topics": list(wants.topics),
                "pattern": wants.pattern,
                "assignor": wants.assignor,
            }
        return {key: value for key, value in args.items() if value is not None}

    @classmethod
    def from_request(cls, request: Request) -> Heartbeat:
        """What a `group_heartbeat` says; raises InvalidRequest, InvalidGroup."""
        topics = request.optional("topics", list)
        wants = None
        if topics is not None:
            if len(topics) > limits.TOPICS_MAX:
                raise _refused(request, f"{len(topics)} topics; at most {limits.TOPICS_MAX}")
            if not all(isinstance(t, str) and 0 < len(t) <= limits.NAME_MAX for t in topics):
                raise _refused(request, "'topics' must be names")
            wants = Subscription(
                tuple(sorted(set(topics))),
                request.optional("pattern", str),
                request.optional("assignor", str),
            )
        beat = cls(
            group=request.arg("group", str),
            member_id=request.arg("member", str),
            epoch=_number(request, request.arg("epoch", int), 0, _NUMBER_MAX),
            version=_number(request, request.optional("version", int) or 0, 0, _NUMBER_MAX),
            instance_id=request.optional("instance", str),
            name=request.optional("name", str) or "",
            wants=wants,
            session_timeout_ms=request.optional("session_timeout_ms", int),
            rebalance_timeout_ms=request.optional("rebalance_timeout_ms", int),
        )
        limits.check_group(beat.group)
        limits.check_member(beat.group, beat.member_id, beat.instance_id, beat.name)
        if beat.rebalance_timeout_ms is not None:
            _number(request, beat.rebalance_timeout_ms, 1, 2**31 - 1)
        return beat


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """Where the member stands, and what it has if that is not what it said it had."""

    epoch: int
    version: int
    heartbeat_in_ms: int  # say so again at the latest then; at once when something was given up
    session_timeout_ms: int
    # Topic id -> (name, partitions): all that the member has now. None: as it is in `version`.
    assignment: Mapping[str, tuple[str, tuple[int, ...]]] | None = None

    def to_ok(self) -> dict[str, Any]:
        """The table of the reply."""
        ok: dict[str, Any] = {
            "epoch": self.epoch,
            "version": self.version,
            "heartbeat_in_ms": self.heartbeat_in_ms,
            "session_timeout_ms": self.session_timeout_ms,
        }
        if self.assignment is not None:
            ok["assignment"] = {
                topic: {"name": name, "partitions": list(numbers)}
                for topic, (name, numbers) in self.assignment.items()
            }
        return ok

    @classmethod
    def from_ok(cls, ok: Mapping[str, Any]) -> HeartbeatAnswer:
        """What a reply says."""
        given = ok.get("assignment")
        return cls(
            ok["epoch"],
            ok["version"],
            ok["heartbeat_in_ms"],
            ok["session_timeout_ms"],
            None
            if given is None
            else {t: (one["name"], tuple(one["partitions"])) for t, one in given.items()},
        )


@dataclass(frozen=True, slots=True)
class Leave:
    """A member goes. A static one that comes back keeps its partitions until its session ends."""

    group: str
    member_id: str
    comes_back: bool = False

    def to_args(self) -> dict[str, Any]:
        """The arguments of a `group_leave` request."""
        return {"group": self.group, "member": self.member_id, "comes_back": self.comes_back}

    @classmethod
    def from_request(cls, request: Request) -> Leave:
        """What a `group_leave` says; raises InvalidRequest, InvalidGroup."""
        leave = cls(
            request.arg("group", str),
            request.arg("member", str),
            bool(request.optional("comes_back", bool)),
        )
        limits.check_group(leave.group)
        limits.check_member(leave.group, leave.member_id, None, "")
        return leave


@dataclass(frozen=True, slots=True)
class CommitRow:
    """One offset in a commit: the next to be read, and the epoch of the record before."""

    partition: Partition
    offset: int
    leader_epoch: int = -1
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class Commit:
    """Offsets to be kept. Without a member id: by a program that is no member, or an operator."""

    group: str
    rows: tuple[CommitRow, ...]
    member_id: str | None = None
    epoch: int = 0
    instance_id: str | None = None

    def to_args(self) -> dict[str, Any]:
        """The arguments of a `commit_offsets` request."""
        args: dict[str, Any] = {
            "group": self.group,
            "offsets": [[*r.partition, r.offset, r.leader_epoch, r.metadata] for r in self.rows],
        }
        if self.member_id is not None:
            args |= {"member": self.member_id, "epoch": self.epoch}
        return args if self.instance_id is None else args | {"instance": self.instance_id}

    @classmethod
    def from_request(cls, request: Request) -> Commit:
        """What a `commit_offsets` says; raises InvalidRequest and the errors of limits.py."""
        rows = request.arg("offsets", list)
        if len(rows) > limits.COMMITS_MAX:
            raise _refused(request, f"{len(rows)} offsets; at most {limits.COMMITS_MAX}")
        group = request.arg("group", str)
        limits.check_group(group)
        member_id = request.optional("member", str)
        instance_id = request.optional("instance", str)
        if member_id is not None:
            limits.check_member(group, member_id, instance_id, "")
        return cls(
            group,
            tuple(_commit_row(request, row) for row in rows),
            member_id,
            _number(request, request.optional("epoch", int) or 0, 0, _NUMBER_MAX),
            instance_id,
        )


@dataclass(frozen=True, slots=True)
class CommitAnswer:
    """What has become durable, at which offset, and what was refused."""

    committed: Mapping[Partition, int]  # capped at the durable end
    refused: Mapping[Partition, ShmbrokerError]

    def to_ok(self) -> dict[str, Any]:
        """The table of the reply."""
        return {
            "committed": [[*p, offset] for p, offset in self.committed.items()],
            "refused": [[*p, error.to_wire()] for p, error in self.refused.items()],
        }

    @classmethod
    def from_ok(cls, ok: Mapping[str, Any]) -> CommitAnswer:
        """What a reply says."""
        return cls(
            {(topic, number): offset for topic, number, offset in ok["committed"]},
            {(topic, number): from_wire(error) for topic, number, error in ok["refused"]},
        )


@dataclass(frozen=True, slots=True)
class Fetch:
    """Asks for what a group has committed: for some partitions, or all."""

    group: str
    partitions: tuple[Partition, ...] | None = None

    def to_args(self) -> dict[str, Any]:
        """The arguments of a `fetch_offsets` request."""
        if self.partitions is None:
            return {"group": self.group}
        return {"group": self.group, "partitions": [list(p) for p in self.partitions]}

    @classmethod
    def from_request(cls, request: Request) -> Fetch:
        """What a `fetch_offsets` says; raises InvalidRequest, InvalidGroup."""
        asked = request.optional("partitions", list)
        if asked is not None and len(asked) > limits.COMMITS_MAX:
            raise _refused(request, f"{len(asked)} partitions; at most {limits.COMMITS_MAX}")
        group = request.arg("group", str)
        limits.check_group(group)
        if asked is None:
            return cls(group)
        return cls(group, tuple(_partition(request, row) for row in asked))


@dataclass(frozen=True, slots=True)
class FetchAnswer:
    """What is committed; a partition for which nothing is stands not in it."""

    committed: Mapping[Partition, Committed]

    def to_ok(self) -> dict[str, Any]:
        """The table of the reply."""
        rows = [
            [*p, c.offset, c.leader_epoch, c.metadata, c.committed_ms]
            for p, c in self.committed.items()
        ]
        return {"offsets": rows}

    @classmethod
    def from_ok(cls, ok: Mapping[str, Any]) -> FetchAnswer:
        """What a reply says."""
        return cls({(row[0], row[1]): Committed(*row[2:]) for row in ok["offsets"]})


def _commit_row(request: Request, row: object) -> CommitRow:
    if not isinstance(row, list) or len(row) != 5:
        raise _refused(
            request, "an offset is [topic id, partition, offset, leader epoch, metadata]"
        )
    partition = _partition(request, row[:2])
    offset = _number(request, row[2], 0, _NUMBER_MAX)
    leader_epoch = _number(request, row[3], -1, _EPOCH_MAX)
    if not isinstance(row[4], str):
        raise _refused(request, "the metadata of an offset must be a text")
    limits.check_metadata(row[4])
    return CommitRow(partition, offset, leader_epoch, row[4])


def _partition(request: Request, row: object) -> Partition:
    if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str):
        raise _refused(request, "a partition is [topic id, number]")
    if len(row[0]) > limits.NAME_MAX:
        raise _refused(request, "a topic id that is too long")
    return row[0], _number(request, row[1], 0, _EPOCH_MAX)


def _number(request: Request, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _refused(request, f"{value!r:.60} is no whole number from {low} to {high}")
    return value


def _refused(request: Request, problem: str) -> InvalidRequest:
    return InvalidRequest(f"request {request.op!r}: {problem}", request_id=request.id)


__all__ = [
    "Commit",
    "CommitAnswer",
    "CommitRow",
    "Fetch",
    "FetchAnswer",
    "Heartbeat",
    "HeartbeatAnswer",
    "Leave",
]
