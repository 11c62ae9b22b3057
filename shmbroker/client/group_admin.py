"""What operators and scalers ask about consumer groups, and the tables of the answers.

The calls are mixed into Client; the same numbers are `shmbroker group …`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shmbroker.control.groups.admin_messages import ForgetOffsets, Reset, TopicPartitions
from shmbroker.control.groups.reset import AtOffset, AtTime, FromEnd, Target

if TYPE_CHECKING:
    from shmbroker.client.connection import Connection

ByTopic = Mapping[str, Sequence[int]]  # a topic's name -> partitions
To = str | int | datetime  # "earliest", "latest", an offset, -n, a time


@dataclass(frozen=True, slots=True)
class GroupListing:
    """A group in a list."""

    group: str
    state: str  # empty, assigning, reconciling or stable
    members: int
    topics: tuple[str, ...]  # that members read or for which offsets are kept


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member; what it `waits_for` others have not given up yet."""

    member_id: str
    instance_id: str | None  # of a static member
    name: str  # the program's
    epoch: int
    away: bool  # static, and gone to come back
    has: ByTopic
    gives_up: ByTopic
    waits_for: ByTopic


@dataclass(frozen=True, slots=True)
class GroupPartition:
    """A partition that the group reads, or has committed for."""

    topic: str
    partition: int
    member_id: str | None  # whose it is; None: nobody's now
    committed: int | None  # the next offset to be read; None: nothing was committed
    metadata: str
    committed_ms: int | None  # when, Unix time
    log_start_offset: int | None
    high_watermark: int | None  # one past the last durable offset
    lag: int | None  # durable records that are not committed; None while it is being opened
    lag_ms: int | None  # the age of the oldest of them; 0 without lag, None: it can't be told


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A group as it is: its members, and how far it has come."""

    group: str
    state: str
    epoch: int
    assignment_epoch: int
    assignor: str
    members: tuple[GroupMember, ...]
    partitions: tuple[GroupPartition, ...]

    @property
    def lag(self) -> int:
        """Durable records that are not committed, in all partitions."""
        return sum(p.lag or 0 for p in self.partitions)

    @property
    def lag_ms(self) -> int | None:
        """The age of the oldest of them in milliseconds; None: it can't be told."""
        ages = [p.lag_ms for p in self.partitions if p.lag]
        known = [age for age in ages if age is not None]
        return max(known) if known else (0 if not ages else None)


@dataclass(frozen=True, slots=True)
class ResetPartition:
    """What becomes, or has become, of one partition by a reset."""

    topic: str
    partition: int
    before: int | None  # the committed offset; None: there was none
    after: int
    lag_before: int
    lag_after: int
    capped: bool  # what was asked lies outside the log; `after` is the nearest that is in it


class GroupAdmin:
    """The calls about consumer groups."""

    _connection: Connection

    def groups(self) -> list[GroupListing]:
        """All consumer groups, by name."""
        self._connection.check()
        said = self._connection.request("list_groups")["groups"]
        return [
            GroupListing(g["group"], g["state"], g["members"], tuple(g["topics"])) for g in said
        ]

    def describe_group(self, group: str) -> GroupInfo:
        """Members, partitions, committed offsets and lag of a group; GroupNotFound without it."""
        self._connection.check()
        return _info(self._connection.request("describe_group", group=group))

    def reset_group(
        self,
        group: str,
        to: To,
        topics: Sequence[str] | Mapping[str, Sequence[int] | None] | None = None,
        *,
        dry_run: bool = False,
    ) -> list[ResetPartition]:
        """Moves what a group has committed, so that its members read on from there.

        `to`: "earliest", "latest", an offset, the first record from a time on, or -n: so that the
        last n records of each partition are read again. `topics`: names, or {name: partitions or
        None for all}; without it everything the group has committed for. `dry_run`: says what would
        become of it, and does nothing. Durable when it returns. Raises GroupNotEmpty while the
        group has members, GroupNotFound, UnknownTopic.
        """
        self._connection.check()
        ask = Reset(group, _target(to), _partitions(topics), dry_run)
        said = self._connection.request("reset_group", **ask.to_args())["partitions"]
        return [ResetPartition(**_fields(ResetPartition, row)) for row in said]

    def delete_group(self, group: str) -> None:
        """Forgets a group and what it committed. Raises GroupNotEmpty, GroupNotFound."""
        self._connection.check()
        self._connection.request("delete_group", group=group)

    def delete_group_offsets(
        self, group: str, topics: Sequence[str] | Mapping[str, Sequence[int] | None]
    ) -> None:
        """Forgets what a group committed for these topics ({name: partitions or None for all}).

        Raises GroupNotEmpty for a topic that a member reads, GroupNotFound, UnknownTopic."""
        self._connection.check()
        ask = ForgetOffsets(group, _partitions(topics) or {})
        self._connection.request("delete_group_offsets", **ask.to_args())


def _target(to: To) -> Target:
    if isinstance(to, datetime):
        return AtTime(int(to.timestamp() * 1000))
    if isinstance(to, int) and not isinstance(to, bool):
        return AtOffset(to) if to >= 0 else FromEnd(-to)
    if to == "earliest" or to == "latest":
        return "earliest" if to == "earliest" else "latest"
    raise ValueError(f"{to!r} is no place: 'earliest', 'latest', an offset, -n or a datetime")


def _partitions(
    topics: Sequence[str] | Mapping[str, Sequence[int] | None] | None,
) -> TopicPartitions | None:
    if topics is None:
        return None
    if isinstance(topics, str):
        raise TypeError(f"topics is one str, expected a list of names: [{topics!r}]")
    if isinstance(topics, Mapping):
        return {name: None if n is None else tuple(n) for name, n in topics.items()}
    return dict.fromkeys(topics)


def _info(said: Mapping[str, Any]) -> GroupInfo:
    return GroupInfo(
        said["group"],
        said["state"],
        said["epoch"],
        said["assignment_epoch"],
        said["assignor"],
        tuple(
            GroupMember(
                m["member"], m["instance"], m["name"], m["epoch"], m["away"], m["has"],
                m["gives_up"], m["waits_for"],
            )
            for m in said["members"]
        ),
        tuple(
            GroupPartition(**_fields(GroupPartition, row | {"member_id": row["member"]}))
            for row in said["partitions"]
        ),
    )  # fmt: skip


def _fields(kind: type, row: Mapping[str, Any]) -> dict[str, Any]:
    """What `kind` has a place for; a newer broker may say more."""
    return {name: row[name] for name in kind.__slots__}  # type: ignore[attr-defined]


__all__ = [
    "GroupAdmin",
    "GroupInfo",
    "GroupListing",
    "GroupMember",
    "GroupPartition",
    "ResetPartition",
]
