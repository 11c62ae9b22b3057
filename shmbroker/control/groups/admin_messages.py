"""What operators and scalers ask about groups: codec of the requests, without I/O.

    list_groups            {} -> {"groups": [...]}
    describe_group         the group's name -> its members and partitions, with lag
    reset_group            Reset -> {"done", "partitions": [...]}   a plan first, with dry_run
    delete_group           the group's name -> {}
    delete_group_offsets   ForgetOffsets -> {}

Topics go by name here, as people know them. The tables of the answers are docs/protocol.md's.
Invariants: what arrives raises InvalidRequest or InvalidGroup and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shmbroker.control.groups import limits
from shmbroker.control.groups.reset import AtOffset, AtTime, FromEnd, Target
from shmbroker.control.messages import Request
from shmbroker.errors import InvalidRequest

TopicPartitions = Mapping[str, tuple[int, ...] | None]  # topic's name -> numbers; None: all
_OFFSET_MAX = 2**63 - 1


def group_of(request: Request) -> str:
    """The group that a request names; raises InvalidRequest, InvalidGroup."""
    group = request.arg("group", str)
    limits.check_group(group)
    return group


@dataclass(frozen=True, slots=True)
class Reset:
    """Moves what a group has committed; with `dry_run` says only what would become of it."""

    group: str
    to: Target
    topics: TopicPartitions | None = None  # None: all that is committed
    dry_run: bool = True

    def to_args(self) -> dict[str, Any]:
        """The arguments of a `reset_group` request."""
        return {
            "group": self.group,
            "to": _target_to(self.to),
            "topics": None if self.topics is None else _topics_to(self.topics),
            "dry_run": self.dry_run,
        }

    @classmethod
    def from_request(cls, request: Request) -> Reset:
        """What a `reset_group` says; raises InvalidRequest, InvalidGroup."""
        return cls(
            group_of(request),
            _target(request),
            None if request.optional("topics", dict) is None else _topics(request),
            request.arg("dry_run", bool),
        )


@dataclass(frozen=True, slots=True)
class ForgetOffsets:
    """Deletes what a group has committed for topics that none of its members reads."""

    group: str
    topics: TopicPartitions

    def to_args(self) -> dict[str, Any]:
        """The arguments of a `delete_group_offsets` request."""
        return {"group": self.group, "topics": _topics_to(self.topics)}

    @classmethod
    def from_request(cls, request: Request) -> ForgetOffsets:
        """What a `delete_group_offsets` says; raises InvalidRequest, InvalidGroup."""
        return cls(group_of(request), _topics(request))


def _topics_to(topics: TopicPartitions) -> dict[str, list[int] | None]:
    return {name: None if numbers is None else list(numbers) for name, numbers in topics.items()}


def _topics(request: Request) -> TopicPartitions:
    named = request.arg("topics", dict)
    if not 0 < len(named) <= limits.TOPICS_MAX:
        raise _refused(request, f"{len(named)} topics; 1 to {limits.TOPICS_MAX} are allowed")
    return {name: _numbers(request, numbers) for name, numbers in named.items()}


def _numbers(request: Request, numbers: object) -> tuple[int, ...] | None:
    if numbers is None:
        return None
    if not isinstance(numbers, list) or len(numbers) > limits.COMMITS_MAX:
        raise _refused(
            request, f"a topic's partitions are at most {limits.COMMITS_MAX} numbers, or null"
        )
    return tuple(sorted({_whole(request, number, 0) for number in numbers}))


def _target_to(target: Target) -> str | dict[str, int]:
    if isinstance(target, AtOffset):
        return {"offset": target.offset}
    if isinstance(target, AtTime):
        return {"time_ms": target.timestamp_ms}
    if isinstance(target, FromEnd):
        return {"from_end": target.records}
    return target


def _target(request: Request) -> Target:
    to = request.args.get("to")
    if to == "earliest" or to == "latest":
        return "earliest" if to == "earliest" else "latest"
    if isinstance(to, dict) and len(to) == 1:
        ((kind, value),) = to.items()
        if kind == "offset":
            return AtOffset(_whole(request, value, 0))
        if kind == "time_ms":
            return AtTime(_whole(request, value, -_OFFSET_MAX))
        if kind == "from_end":
            return FromEnd(_whole(request, value, 0))
    raise _refused(
        request,
        '\'to\' is "earliest", "latest", {"offset": n}, {"time_ms": t} or '
        f'{{"from_end": n}}, and not {to!r:.60}',
    )


def _whole(request: Request, value: object, low: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _OFFSET_MAX:
        raise _refused(request, f"{value!r:.60} is no whole number from {low} to {_OFFSET_MAX}")
    return value


def _refused(request: Request, problem: str) -> InvalidRequest:
    return InvalidRequest(f"request {request.op!r}: {problem}", request_id=request.id)


__all__ = ["ForgetOffsets", "Reset", "TopicPartitions", "group_of"]
