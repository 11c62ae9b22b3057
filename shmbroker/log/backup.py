"""One partition's files copied while its writer goes on, and made a log of their own.

What is copied is the log up to a durable end that the caller has read once. Segments before it are
immutable; the one it lies in is only appended to, and the bytes below the end are the same in every
version of the block that is being rewritten. Each segment is opened by recycling's rule (a shared
flock, then a second look at the name: reader.py), so no foreign bytes are ever copied; hard links
would see them, since a retired segment is overwritten under its next name.

Retention goes on meanwhile: what it takes before it was copied is not in the backup, whose log then
starts behind it, as the broker's own does. Indexes are made anew from the copy, batch by batch with
every CRC checked, and so is the producer table. The checkpoint of the copy is a clean one with a
leader epoch above the broker's: whoever has read records behind the backup's end is told so by the
restored broker (OffsetForLeaderEpoch), as after an unclean end.

Writes only below the backup's directory; a copied file is durable before it is noted. Not
thread-safe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shmbroker._core import scan
from shmbroker.errors import DamagedLog
from shmbroker.log import checkpoint, epochs, files, manifest, names
from shmbroker.log.index import SegmentIndex
from shmbroker.log.iomode import UNIT_MIN_BYTES, IoMode
from shmbroker.log.logscan import EPOCH_MAX, LogScan, Place, reading
from shmbroker.log.manifest import FileEntry, Journal, PartitionEntry
from shmbroker.log.reader import open_shared

_CHUNK_BYTES: Final = 4 << 20
_TRIES: Final = 5  # of a copy whose last bytes do not check, before it counts as damage
Progress = Callable[[int], None]  # bytes copied


@dataclass(frozen=True, slots=True)
class Source:
    """A partition as its broker had it at one moment. Ends are exclusive."""

    directory: str
    topic: str
    topic_id: str
    partition: int
    log_start_offset: int
    end_offset: int  # where there is no segment
    segment: int  # base offset of the one that the durable end lies in
    position: int  # of the durable end in its file; below 0: the segment before is whole
    leader_epoch: int
    index_interval_bytes: int

    @property
    def name(self) -> str:
        """`<topic>-<partition>`."""
        return f"{self.topic}-{self.partition}"


def copy_partition(
    source: Source, backup: str, journal: Journal, progress: Progress
) -> tuple[PartitionEntry, list[FileEntry]]:
    """Copies one partition into `<backup>/<topic>-<partition>`; returns when all is durable.

    Files that the journal knows, whose source has not changed, are kept. Raises DamagedLog where
    the source fails its checks, DiskFull, OSError.
    """
    target = os.path.join(backup, source.name)
    os.makedirs(target, mode=0o700, exist_ok=True)
    bases = _copy_segments(source, target, journal, progress)
    _remove_others(target, bases)
    point = _rebuild(source, target, bases)
    checkpoint.store(target, point)
    files.sync_directory(target)
    entry = PartitionEntry(
        directory=source.name,
        topic=source.topic,
        topic_id=source.topic_id,
        partition=source.partition,
        log_start_offset=point.log_start_offset,
        end_offset=point.durable_offset,
        leader_epoch=point.leader_epoch,
    )
    there = sorted(os.listdir(target))
    known = journal.known  # of sealed segments: their CRC was computed from this very copy
    return entry, [
        known.get(f"{source.name}/{name}") or _entry_of(backup, target, name) for name in there
    ]


def _copy_segments(source: Source, target: str, journal: Journal, progress: Progress) -> list[int]:
    """Base offsets of the segments that the copy consists of, without a gap up to the end."""
    copied: list[int] = []
    try:
        there = names.list_directory(source.directory).logs
    except FileNotFoundError:  # never written to
        return []
    for base in there:
        if base > source.segment or (base == source.segment and source.position <= 0):
            break
        end = source.position if base == source.segment else None
        if _copy_segment(source, target, base, end, journal, progress):
            copied.append(base)
        else:
            copied.clear()  # retention took it, and so everything before it
    return copied


def _copy_segment(
    source: Source, target: str, base: int, end: int | None, journal: Journal, progress: Progress
) -> bool:
    """False: it is not there any more."""
    name = names.file_name(base, names.LOG)
    relative = f"{source.name}/{name}"
    fd = open_shared(os.path.join(source.directory, name))
    if fd < 0:
        return False
    try:
        found = os.fstat(fd)
        known = journal.known.get(relative)
        path = os.path.join(target, name)
        same = known is not None and (known.inode, known.mtime_ns) == (
            found.st_ino,
            found.st_mtime_ns,
        )
        if same and known is not None and end is None and _kept(path, known):
            progress(known.size_bytes)
            return True
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for left in range(_TRIES, 0, -1):
            size = _copy(fd, path, found.st_size if end is None else end)
            valid = _valid_end(path, base, size)
            if valid == size or end is None:
                break
            if left == 1:
                raise DamagedLog(
                    f"{source.directory}/{name} fails its checks at byte {valid}, below its "
                    f"durable end at {end}; see: shmbroker log dump {source.directory}",
                    path=f"{source.directory}/{name}",
                    position=valid,
                )
        crc = _finish(path, valid)
        progress(valid)
        if end is None:
            journal.note(FileEntry(relative, valid, crc, found.st_ino, found.st_mtime_ns))
        return True
    finally:
        os.close(fd)


def _kept(path: str, known: FileEntry) -> bool:
    directory, name = os.path.split(path)
    entry = FileEntry(name, known.size_bytes, known.crc32c)
    return manifest.check_file(directory, entry) == ""


def _copy(fd: int, path: str, end: int) -> int:
    """Copies the first `end` bytes, or as many as there are; returns how many."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    out = os.open(path, flags, 0o600)
    try:
        position = 0
        while position < end:
            data = os.pread(fd, min(_CHUNK_BYTES, end - position), position)
            if not data:
                break
            files.write_all(out, data, position)
            position += len(data)
        return position
    except OSError as error:
        if error.errno in files.FULL:
            raise files.disk_full(path, "a copy", error) from error
        raise
    finally:
        os.close(out)


def _valid_end(path: str, base: int, size: int) -> int:
    with reading(path) as fd:
        found = scan.scan_segment(fd, position=0, limit=size, expected_offset=base)
    return found.valid_end


def _finish(path: str, size: int) -> str:
    """Cuts what is no log off a copy (zeros, a recycled file's old batches); returns its CRC."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        crc = manifest.crc_of(fd, size)
        os.fsync(fd)
        return crc
    finally:
        os.close(fd)


def _remove_others(target: str, bases: Sequence[int]) -> None:
    """What an interrupted run has copied and retention has taken since."""
    wanted = {names.file_name(base, names.LOG) for base in bases}
    for name in os.listdir(target):
        if name not in wanted:
            os.unlink(os.path.join(target, name))


def _rebuild(source: Source, target: str, bases: Sequence[int]) -> checkpoint.Checkpoint:
    """Indexes, epochs and producers of the copy, by reading all of it; its checkpoint, not stored.

    Raises DamagedLog where segments do not follow each other.
    """
    run = LogScan(
        target,
        IoMode("buffered"),
        write_reach_bytes=UNIT_MIN_BYTES,
        index_interval_bytes=source.index_interval_bytes,
    )
    first = bases[0] if bases else source.end_offset
    place = Place(0, 0, first, 0)
    for n, base in enumerate(bases):
        if base != place.offset:
            raise DamagedLog(
                f"{source.directory}: the segment before {names.file_name(base, names.LOG)} ends "
                f"at offset {place.offset}; see: shmbroker log dump {source.directory}",
                path=source.directory,
            )
        place.n, place.position, place.max_timestamp = n, 0, -1
        with reading(run.path(n)) as fd:
            run.scan(place, fd, os.fstat(fd).st_size, EPOCH_MAX)
        index = SegmentIndex(target, base)
        index.rebuild(run.entries.pop(base))
        if place.max_timestamp >= 0 and place.offset > base:
            index.append_time(place.max_timestamp, place.offset - 1)
            index.sync()
    end = place.offset
    epoch = max(source.leader_epoch, place.epoch) + 1
    start = min(max(source.log_start_offset, first), end)
    history = epochs.begin(epochs.cut(run.epochs, end), epoch, end)
    return checkpoint.Checkpoint(
        topic_id=source.topic_id,
        partition=source.partition,
        clean=True,
        log_start_offset=start,
        durable_offset=end,
        segment=bases[-1] if bases else -1,
        file_position=place.position,
        leader_epoch=epoch,
        epochs=epochs.retire(history, start),
        write_reach_bytes=UNIT_MIN_BYTES,
        unit=UNIT_MIN_BYTES,
        max_timestamp=place.max_timestamp,
        index_bytes=SegmentIndex(target, bases[-1]).sizes() if bases else (0, 0),
        producers=run.producers.export(end),
    )


def _entry_of(backup: str, target: str, name: str) -> FileEntry:
    path = os.path.join(target, name)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        return FileEntry(os.path.relpath(path, backup), size, manifest.crc_of(fd, size))
    finally:
        os.close(fd)


__all__ = ["Source", "copy_partition"]
