"""How a local member asks for shared memory to put its checkpoints in: codec, without I/O.

    open_checkpoints   OpenCheckpoints -> CheckpointsOpened

The member maps the object that is named, and gives each of its partitions a slot there by itself:
the acceptor believes a slot by the member epoch that stands in it (workers/checkpoints.py).
Invariants: what arrives raises InvalidRequest (or the error of a bound, limits.py), nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shmbroker.control.groups import limits
from shmbroker.control.messages import Request
from shmbroker.errors import InvalidRequest

SLOTS_MAX: Final = 100_000  # in one object; a member may ask for another


@dataclass(frozen=True, slots=True)
class OpenCheckpoints:
    """A member of this host wants room for so many partitions more."""

    group: str
    member_id: str
    epoch: int  # as last answered
    slots: int

    def to_args(self) -> dict[str, Any]:
        """The arguments of an `open_checkpoints` request."""
        return {
            "group": self.group,
            "member": self.member_id,
            "epoch": self.epoch,
            "slots": self.slots,
        }

    @classmethod
    def from_request(cls, request: Request) -> OpenCheckpoints:
        """What an `open_checkpoints` says; raises InvalidRequest, InvalidGroup."""
        asked = cls(
            request.arg("group", str),
            request.arg("member", str),
            request.arg("epoch", int),
            request.arg("slots", int),
        )
        limits.check_group(asked.group)
        limits.check_member(asked.group, asked.member_id, None, "")
        if not 1 <= asked.slots <= SLOTS_MAX:
            raise InvalidRequest(
                f"request {request.op!r}: {asked.slots} slots; allowed: 1 to {SLOTS_MAX}",
                request_id=request.id,
            )
        return asked


@dataclass(frozen=True, slots=True)
class CheckpointsOpened:
    """Where it is: the object `<prefix>-<suffix>`, and its slots, as many as asked for or more."""

    suffix: str
    slots: int

    def to_ok(self) -> dict[str, Any]:
        """The table of the reply."""
        return {"name": self.suffix, "slots": self.slots}

    @classmethod
    def from_ok(cls, ok: Mapping[str, Any]) -> CheckpointsOpened:
        """What a reply says."""
        return cls(ok["name"], ok["slots"])


__all__ = ["SLOTS_MAX", "CheckpointsOpened", "OpenCheckpoints"]
