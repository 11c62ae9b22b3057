"""How much of everything a group may have, and what an operator may set about groups.

Owns: the bounds and the checks of names, sizes and times that arrive from clients. Whatever has
passed them is small enough to be kept, stored and answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shmbroker.errors import CommitMetadataTooLarge, InvalidGroup, InvalidSessionTimeout

NAME_MAX: Final = 249  # characters: of a group, of an instance id, of a program's name
MEMBER_ID_MAX: Final = 64  # characters; clients make up a UUID
TOPICS_MAX: Final = 1_000  # named in one subscription
COMMITS_MAX: Final = 10_000  # offsets in one request
METADATA_MAX_BYTES: Final = 4096  # UTF-8, as Kafka's offset.metadata.max.bytes


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """What holds for all groups of a broker; the session timeout is what a member may choose."""

    session_timeout_ms: int = 15_000  # of a member that doesn't choose
    session_timeout_min_ms: int = 1_000
    session_timeout_max_ms: int = 1_800_000
    heartbeat_ms: int = 3_000  # at most; never more than a third of the session timeout
    rebalance_timeout_ms: int = 300_000  # how long giving up partitions may take
    gather_ms: int = 20  # changes within this time of the first are one rebalance
    assignor: str = "sticky"  # where no member asks for one
    members_max: int = 1_000  # of one group
    groups_max: int = 10_000

    def session_ms(self, asked_ms: int | None) -> int:
        """The session timeout of a member; InvalidSessionTimeout outside what is allowed."""
        if asked_ms is None:
            return self.session_timeout_ms
        low, high = self.session_timeout_min_ms, self.session_timeout_max_ms
        if not low <= asked_ms <= high:
            raise InvalidSessionTimeout(
                f"a session timeout of {asked_ms} ms; allowed: {low} to {high}"
            )
        return asked_ms


def check_group(name: str) -> None:
    """Raises InvalidGroup for a name that no group may have."""
    if not _fits(name, NAME_MAX):
        raise InvalidGroup(
            f"{name!r:.80} can't be a group's name: 1 to {NAME_MAX} printable characters are "
            "allowed",
            group=name[:NAME_MAX],
        )


def check_member(group: str, member_id: str, instance_id: str | None, name: str) -> None:
    """Raises InvalidGroup for what no member may be called."""
    what = {"member id": (member_id, MEMBER_ID_MAX), "client's name": (name or "-", NAME_MAX)}
    if instance_id is not None:
        what["instance id"] = (instance_id, NAME_MAX)
    for kind, (text, longest) in what.items():
        if not _fits(text, longest):
            raise InvalidGroup(
                f"group {group!r}: {text!r:.80} can't be a {kind}: 1 to {longest} printable "
                "characters are allowed",
                group=group,
            )


def check_metadata(metadata: str) -> None:
    """Raises CommitMetadataTooLarge, or InvalidGroup for what is no valid text."""
    try:
        size = len(metadata.encode())
    except UnicodeEncodeError:
        raise InvalidGroup("the metadata of a commit must be valid Unicode") from None
    if size > METADATA_MAX_BYTES:
        raise CommitMetadataTooLarge(
            f"the metadata of a commit has {size} bytes; at most {METADATA_MAX_BYTES}",
            size_bytes=size,
            limit_bytes=METADATA_MAX_BYTES,
        )


def _fits(text: str, longest: int) -> bool:
    return 1 <= len(text) <= longest and text.isprintable()


__all__ = [
    "COMMITS_MAX",
    "MEMBER_ID_MAX",
    "METADATA_MAX_BYTES",
    "NAME_MAX",
    "TOPICS_MAX",
    "GroupSettings",
    "check_group",
    "check_member",
    "check_metadata",
]
