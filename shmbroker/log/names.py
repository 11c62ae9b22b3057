"""The names of a partition's files, and nothing else.

    <data>/<topic>-<partition>/
        00000000000000000042.log         record batches; 42 is the offset of the first
        00000000000000000042.index       offset -> position        (index.py)
        00000000000000000042.timeindex   timestamp -> offset       (index.py)
        00000000000000000042.snapshot    producers as of offset 42 (snapshot.py)
        checkpoint, checkpoint.tmp       (checkpoint.py)
        next.log.free                    the next segment, made ahead (segment.py)
        recycled-0.log.free              a retired segment that becomes the next one (recycle.py)

Source: Kafka's `LogFileUtils`; the last three names are ours and end in neither of Kafka's
suffixes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

LOG, INDEX, TIMEINDEX, SNAPSHOT = ".log", ".index", ".timeindex", ".snapshot"
CHECKPOINT = "checkpoint"
CHECKPOINT_TMP = "checkpoint.tmp"
NEXT = "next.log.free"
_RECYCLED, _FREE = "recycled-", ".log.free"
_DIGITS = 20


def file_name(base_offset: int, suffix: str) -> str:
    """`00000000000000000042.log` of 42 and `.log`."""
    return f"{base_offset:020d}{suffix}"


def parse(name: str) -> tuple[int, str] | None:
    """The base offset and suffix of one of Kafka's names, or None for any other file."""
    digits, suffix = name[:_DIGITS], name[_DIGITS:]
    if suffix not in (LOG, INDEX, TIMEINDEX, SNAPSHOT) or not digits.isascii():
        return None
    return (int(digits), suffix) if digits.isdigit() else None


def recycled_name(number: int) -> str:
    """The name of a retired segment that waits to be the next one."""
    return f"{_RECYCLED}{number}{_FREE}"


def split_directory(directory: str) -> tuple[str, int]:
    """Topic and partition of `<data>/<topic>-<partition>`; partition -1 for any other name."""
    name = os.path.basename(os.path.normpath(directory))
    topic, _, number = name.rpartition("-")
    if topic and number.isascii() and number.isdigit():
        return topic, int(number)
    return name, -1


@dataclass(slots=True)
class Listing:
    """What lies in a partition's directory; all lists are sorted."""

    logs: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)
    recycled: list[str] = field(default_factory=list)
    checkpoint: bool = False


def list_directory(directory: str) -> Listing:
    """One readdir and no stat. Raises OSError."""
    found = Listing()
    for name in os.listdir(directory):
        parsed = parse(name)
        if parsed is not None:
            base_offset, suffix = parsed
            if suffix == LOG:
                found.logs.append(base_offset)
            elif suffix == SNAPSHOT:
                found.snapshots.append(base_offset)
            elif suffix == INDEX:
                found.indexes.append(base_offset)
        elif name == CHECKPOINT:
            found.checkpoint = True
        elif name.startswith(_RECYCLED) and name.endswith(_FREE):
            found.recycled.append(name)
    found.logs.sort()
    found.indexes.sort()
    found.snapshots.sort()
    found.recycled.sort()
    return found
