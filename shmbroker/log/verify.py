"""`shmbroker log verify`: one partition's files against each other, every byte of the log read.

What is checked: each batch's CRC and order; that segments follow each other without a gap; each
index entry against the batch that it points to; the checkpoint against the log; snapshots. Beside a
running broker everything ends at the durable end that the caller names, and a segment that
retention takes meanwhile is no problem. Changes nothing. Any process, one partition a call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shmbroker._core import scan
from shmbroker.errors import DamagedLog, DataDirVersion
from shmbroker.log import checkpoint, index, names, snapshot
from shmbroker.log.logscan import EPOCH_MAX
from shmbroker.log.reader import Limit, open_shared

_PROBLEMS_MAX = 100  # of one file; more says nothing more


@dataclass(slots=True)
class Verified:
    """What was read, and what is wrong with it."""

    directory: str
    segments: int = 0
    bytes: int = 0
    batches: int = 0
    records: int = 0
    index_entries: int = 0
    start_offset: int = -1  # first offset of the first segment
    end_offset: int = -1  # exclusive
    problems: list[dict[str, Any]] = field(default_factory=list)

    def problem(self, name: str, position: int, text: str) -> None:
        """Notes one: the file, the byte in it, what is wrong."""
        self.problems.append({"file": name, "position": position, "text": text})


def verify(directory: str, limit: Limit | None = None) -> Verified:
    """Reads all of one partition. `limit`: (base offset of a segment, position in it), the durable
    end where a broker runs. Raises OSError."""
    found = Verified(directory)
    listing = names.list_directory(directory)
    epoch = 0
    following = -1
    for base in listing.logs:
        if limit is not None and (base > limit[0] or (base == limit[0] and limit[1] <= 0)):
            break
        end = limit[1] if limit is not None and base == limit[0] else None
        last = base == listing.logs[-1] or (limit is not None and base == limit[0])
        fd = open_shared(os.path.join(directory, names.file_name(base, names.LOG)))
        if fd < 0:  # retention took it, and with it whatever came before
            following = -1
            continue
        try:
            if following not in (-1, base):
                text = f"it begins at offset {base}, the one before ends at {following}"
                found.problem(names.file_name(base, names.LOG), 0, text)
            result = _segment(found, fd, base, end, epoch, last)
            following, epoch = result.next_offset, max(epoch, result.epoch)
            _indexes(found, fd, base, result.valid_end, live=limit is not None and last)
        finally:
            os.close(fd)
    found.end_offset = max(found.end_offset, following)
    _checkpoint(found, listing, limit)
    _snapshots(found, listing)
    return found


def _segment(
    found: Verified, fd: int, base: int, end: int | None, epoch: int, last: bool
) -> scan.ScanResult:
    size = os.fstat(fd).st_size
    result = scan.scan_segment(
        fd,
        position=0,
        limit=size if end is None else min(end, size),
        expected_offset=base,
        min_epoch=epoch,
        max_epoch=EPOCH_MAX,
    )
    found.segments += 1
    found.bytes += result.valid_end
    found.batches += result.batches
    found.records += result.records
    if found.start_offset < 0:
        found.start_offset = base
    name = names.file_name(base, names.LOG)
    if end is not None and result.valid_end < end:
        text = f"{result.stop_text}, below the durable end at byte {end}"
        found.problem(name, result.valid_end, text)
    elif end is None and result.stop not in ("end", "zeros"):
        stale = result.stop in ("offset", "epoch") and result.stop_offset < result.next_offset
        if not (last and stale):  # behind the end of a recycled file its old batches stand
            found.problem(name, result.valid_end, f"{result.stop_text}; the valid log ends here")
    return result


def _indexes(found: Verified, fd: int, base: int, end: int, *, live: bool) -> None:
    """`live`: entries behind `end` are ahead of the durable end, and the last may be half there."""
    for suffix, kind in ((names.INDEX, index.OFFSET_ENTRY), (names.TIMEINDEX, index.TIME_ENTRY)):
        name = names.file_name(base, suffix)
        path = os.path.join(found.directory, name)
        if not os.path.exists(path):
            continue
        entries = index.read_entries(path, kind)
        found.index_entries += len(entries)
        if not live and (size := os.stat(path).st_size) % kind.size:
            found.problem(name, size // kind.size * kind.size, "the last entry is cut off")
        check = _offset_entries if suffix == names.INDEX else _time_entries
        for n, (number, text) in enumerate(check(found.directory, fd, base, end, entries, live)):
            if n == _PROBLEMS_MAX:
                break
            found.problem(name, number * kind.size, text)


def _offset_entries(
    _directory: str, fd: int, base: int, end: int, entries: list[tuple[int, int]], live: bool
) -> Iterator[tuple[int, str]]:
    before = (-1, -1)
    for n, (relative, position) in enumerate(entries):
        if relative <= before[0] or position <= before[1]:
            yield n, f"the entry for offset {base + relative} does not rise"
        before = (relative, position)
        if live and position >= end:
            return
        at = scan.locate(fd, position, end, 0) if position < end else None
        if at is None or at.position != position:
            yield n, f"no batch begins at byte {position}, where {base + relative} should be"
        elif at.last_offset != base + relative:
            yield n, f"the batch at byte {position} ends at {at.last_offset}, not {base + relative}"


def _time_entries(
    directory: str, fd: int, base: int, end: int, entries: list[tuple[int, int]], live: bool
) -> Iterator[tuple[int, str]]:
    """An entry says which timestamp is the largest up to an offset: there must be a record of it,
    above the entry before and up to this one."""
    path = os.path.join(directory, names.file_name(base, names.INDEX))
    before = (-1, -1)
    for n, (timestamp, relative) in enumerate(entries):
        if timestamp <= before[0] or relative < before[1]:
            yield n, f"the entry for timestamp {timestamp} does not rise"
        after, before = base + before[1] + 1, (timestamp, relative)
        start = next((p for o, p in index.offset_positions(path, base, after) if o < after), 0)
        at = scan.locate(fd, min(start, end), end, after, timestamp)
        if at is None and live:
            return
        if at is None or at.base_offset > base + relative:
            yield n, f"no record up to offset {base + relative} has timestamp {timestamp}"


def _checkpoint(found: Verified, listing: names.Listing, limit: Limit | None) -> None:
    if not listing.checkpoint:
        if listing.logs and limit is None:
            found.problem(names.CHECKPOINT, 0, "it is missing")
        return
    try:
        point = checkpoint.load(found.directory)
    except (DamagedLog, DataDirVersion) as error:
        found.problem(names.CHECKPOINT, 0, str(error))
        return
    if point is None or limit is not None:  # a running broker's is ahead of what was read
        return
    if point.segment >= 0 and point.segment not in listing.logs:
        text = f"its segment {names.file_name(point.segment, names.LOG)} is missing"
        found.problem(names.CHECKPOINT, 0, text)
    elif found.end_offset >= 0 and point.durable_offset > found.end_offset:
        text = f"offset {point.durable_offset} was durable, the valid log ends at"
        found.problem(names.CHECKPOINT, 0, f"{text} {found.end_offset}")


def _snapshots(found: Verified, listing: names.Listing) -> None:
    for offset in listing.snapshots:
        name = names.file_name(offset, names.SNAPSHOT)
        path = os.path.join(found.directory, name)
        try:
            with open(path, "rb") as file:
                snapshot.decode(file.read(), path)
        except FileNotFoundError:  # a newer one took its place
            continue
        except DamagedLog as error:
            found.problem(name, 0, str(error))


__all__ = ["Verified", "verify"]
