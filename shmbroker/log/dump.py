"""`shmbroker log dump`: what stands in a partition's files, every CRC and index entry verified.

Reads any of the files, or a partition's directory, in any process, and changes nothing. Yields one
plain dict a thing found, in file order; `kind` says what it is: "batch", "record", "index",
"timeindex", "producer", "checkpoint", "end" or "problem". A segment ends at its durable end: the
checkpoint's position if that is the active segment and the caller wants no more, else where valid
batches end.
Source of the checks: Kafka's `DumpLogSegments`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from shmbroker._core import scan
from shmbroker.errors import DamagedLog, DataDirVersion
from shmbroker.log import checkpoint, index, names, snapshot
from shmbroker.log.reader import open_shared
from shmbroker.log.snapshot import parse_table

Item = dict[str, Any]


def dump(path: str, *, limit: int | None = None, batches: bool = True) -> Iterator[Item]:
    """Everything in `path`: a partition's directory or one of its files.

    limit: bytes, exclusive; the durable end of the active segment, where a broker runs.
    batches=False leaves out what is in order batch by batch. Raises FileNotFoundError, DamagedLog
    for a file that is none of ours.
    """
    if os.path.isdir(path):
        yield from _dump_directory(path, limit, batches)
        return
    name = os.path.basename(path)
    if name in (names.CHECKPOINT, names.CHECKPOINT_TMP):
        yield from _dump_checkpoint(path)
        return
    parsed = names.parse(name)
    if parsed is None:
        raise DamagedLog(
            f"{path} is no file of a log: give a .log, .index, .timeindex, .snapshot, a checkpoint "
            "or a partition's directory",
            path=path,
        )
    base, suffix = parsed
    if suffix == names.LOG:
        yield from _dump_log(path, base, limit, batches)
    elif suffix == names.SNAPSHOT:
        yield from _dump_snapshot(path)
    else:
        log = os.path.join(os.path.dirname(path), names.file_name(base, names.LOG))
        yield from _dump_index(path, log, base, suffix, batches)


def _dump_directory(directory: str, limit: int | None, batches: bool) -> Iterator[Item]:
    listing = names.list_directory(directory)
    if listing.checkpoint:
        yield from _dump_checkpoint(os.path.join(directory, names.CHECKPOINT))
    for base in listing.logs:
        last = base == listing.logs[-1]
        path = os.path.join(directory, names.file_name(base, names.LOG))
        yield from _dump_log(path, base, limit if last else None, batches, last=last)
        for suffix in (names.INDEX, names.TIMEINDEX):
            side = os.path.join(directory, names.file_name(base, suffix))
            if os.path.exists(side):
                yield from _dump_index(side, path, base, suffix, batches)
    for offset in listing.snapshots:
        yield from _dump_snapshot(os.path.join(directory, names.file_name(offset, names.SNAPSHOT)))


def _dump_log(
    path: str, base: int, limit: int | None, batches: bool, *, last: bool = True
) -> Iterator[Item]:
    fd = open_shared(path)
    if fd < 0:
        raise FileNotFoundError(path)
    try:
        size = os.fstat(fd).st_size
        end = size if limit is None else min(limit, size)
        found = scan.scan_segment(fd, position=0, limit=end, expected_offset=base)
        position = 0
        while batches and position < found.valid_end:
            at = scan.locate(fd, position, found.valid_end, base)
            if at is None:
                break
            yield {"kind": "batch", "file": path, **at._asdict()}
            position = at.position + at.size_bytes
        yield {
            "kind": "end",
            "file": path,
            "position": found.valid_end,
            "next_offset": found.next_offset,
            "batches": found.batches,
            "records": found.records,
            "max_timestamp": found.max_timestamp,
            "file_bytes": size,
            "stop": found.stop,
        }
        if found.stop in ("end", "zeros") or (found.stop == "short" and limit is not None):
            return
        stale = found.stop == "offset" and found.stop_offset < found.next_offset
        if not (last and stale):  # behind the end of a recycled segment old batches stand
            yield _problem(path, found.valid_end, f"{found.stop_text}; the valid log ends here")
    finally:
        os.close(fd)


def _dump_index(path: str, log: str, base: int, suffix: str, entries: bool) -> Iterator[Item]:
    offsets = suffix == names.INDEX
    kind = index.OFFSET_ENTRY if offsets else index.TIME_ENTRY
    size = os.stat(path).st_size
    if size % kind.size:
        yield _problem(path, size // kind.size * kind.size, "the last entry is cut off")
    fd = open_shared(log)
    if fd < 0:
        yield _problem(path, 0, f"its segment {os.path.basename(log)} is missing")
        return
    try:
        before = (-1, -1)
        for n, entry in enumerate(index.read_entries(path, kind)):
            check = _check_offset if offsets else _check_time
            wrong = check(fd, base, entry, before)
            before = entry
            if entries:
                yield _index_item(path, base, suffix, entry)
            if wrong:
                yield _problem(path, n * kind.size, wrong)
        yield {"kind": "end", "file": path, "position": size, "file_bytes": size}
    finally:
        os.close(fd)


def _index_item(path: str, base: int, suffix: str, entry: tuple[int, int]) -> Item:
    if suffix == names.INDEX:
        return {"kind": "index", "file": path, "offset": base + entry[0], "position": entry[1]}
    return {"kind": "timeindex", "file": path, "timestamp": entry[0], "offset": base + entry[1]}


def _check_offset(fd: int, base: int, entry: tuple[int, int], before: tuple[int, int]) -> str:
    relative, position = entry
    if relative <= before[0] or position <= before[1]:
        return f"entry for offset {base + relative} does not rise"
    at = scan.locate(fd, position, os.fstat(fd).st_size, 0)
    if at is None or at.position != position:
        return f"no batch begins at byte {position}, where offset {base + relative} should be"
    if at.last_offset != base + relative:
        return f"the batch at byte {position} ends at {at.last_offset}, not {base + relative}"
    return ""


def _check_time(fd: int, base: int, entry: tuple[int, int], before: tuple[int, int]) -> str:
    timestamp, relative = entry
    if timestamp <= before[0] or relative < before[1]:
        return f"entry for timestamp {timestamp} does not rise"
    at = scan.locate(fd, 0, os.fstat(fd).st_size, base, timestamp)
    if at is None or at.base_offset > base + relative:
        return f"no record up to offset {base + relative} has timestamp {timestamp}"
    return ""


def _dump_snapshot(path: str) -> Iterator[Item]:
    try:
        with open(path, "rb") as file:
            entries = snapshot.decode(file.read(), path)
    except DamagedLog as error:
        yield _problem(path, 0, str(error))
        return
    for entry in entries:
        yield {"kind": "producer", "file": path, **entry._asdict()}
    yield {"kind": "end", "file": path, "position": os.stat(path).st_size, "entries": len(entries)}


def _dump_checkpoint(path: str) -> Iterator[Item]:
    try:
        with open(path, "rb") as file:
            point = checkpoint.decode(file.read(), path)
    except (DamagedLog, DataDirVersion) as error:
        yield _problem(path, 0, str(error))
        return
    fields = asdict(point)
    fields["producers"] = [p._asdict() for p in parse_table(point.producers)]
    yield {"kind": "checkpoint", "file": path, **fields}


def _problem(path: str, position: int, text: str) -> Item:
    return {"kind": "problem", "file": path, "position": position, "text": text}
