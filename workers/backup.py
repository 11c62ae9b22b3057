"""`shmbroker backup` and `restore`: a running broker's data, whole and consistent, and back again.

Runs in the process that asks, beside the broker, which notices nothing but reads. A backup takes
1. the durable end of every partition, all at one moment (the broker's status),
2. each partition's log up to there (log/backup.py),
3. `meta.db` through SQLite's backup interface, last: so every producer id in the logs is below the
   next one that the copy will give, and a topic that was deleted meanwhile is in neither.
A topic made meanwhile is in `meta.db`, without records. Interrupted, it is run again and goes on:
sealed segments that were copied and have not changed since are kept.

A restore copies into an empty data directory, checking every byte on the way, and gives it an
identity of its own as its last step; until then no broker takes the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shmbroker.control import datadir
from shmbroker.control.meta import MetaStore
from shmbroker.errors import DamagedLog, DataDirVersion, InvalidRequest, UnknownTopic
from shmbroker.log import files, manifest
from shmbroker.log.backup import Source, copy_partition
from shmbroker.log.manifest import FileEntry, Journal, Manifest, PartitionEntry

if TYPE_CHECKING:
    from shmbroker.client import Client

Progress = Callable[[str, int], None]  # what is being copied; bytes more
_LOCK: Final = "lock"
_HALF: Final = "restore.half"  # in a data directory: whose restore was interrupted
_CHUNK_BYTES: Final = 4 << 20


def total_bytes(sources: list[Source]) -> int:
    """About how much there is to copy."""
    found = 0
    for source in sources:
        with contextlib.suppress(OSError):
            found += sum(
                entry.stat().st_size for entry in os.scandir(source.directory)
                if entry.name.endswith(".log")
            )  # fmt: skip
    return found


def sources_of(client: Client) -> list[Source]:
    """Every partition of the broker with its durable end, all of one moment."""
    status = client.status()
    intervals: dict[str, int] = {}
    found = []
    for at in status["partitions"]:
        if "flush_base_offset" not in at:
            continue  # its writer has yet to take it up: nothing is in it
        topic = at["topic"]
        try:
            if topic not in intervals:
                config: Mapping[str, Any] = client.describe_topic(topic).config
                intervals[topic] = int(config["index.interval.bytes"])
        except UnknownTopic:  # deleted just now
            continue
        found.append(
            Source(
                directory=os.path.join(status["data_dir"], f"{topic}-{at['partition']}"),
                topic=topic,
                topic_id=at["topic_id"],
                partition=at["partition"],
                log_start_offset=at["log_start_offset"],
                end_offset=at["durable_offset"],
                segment=at["flush_base_offset"],
                position=at["durable_position"] - at["flush_base_position"],
                leader_epoch=at["leader_epoch"],
                index_interval_bytes=intervals[topic],
            )
        )
    return found


def backup(client: Client, directory: Path, sources: list[Source], progress: Progress) -> Manifest:
    """Copies `sources` and what belongs to them; returns when the backup is whole and durable.

    Raises InvalidRequest for a directory that holds something else, DamagedLog, DiskFull, OSError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory):
        _refuse_others(directory)
        journal = Journal(str(directory))
        done = False
        try:
            made = _copy_all(client, directory, sources, journal, progress)
            manifest.store(str(directory), made)
            done = True
        finally:
            journal.close(done=done)
        files.sync_directory(str(directory))
    return made


def verify(directory: Path, progress: Progress) -> Iterator[tuple[FileEntry, str]]:
    """Each file of a backup with what is wrong with it, "" for nothing.

    Raises DamagedLog for a manifest that is not whole.
    """
    for entry in manifest.load(str(directory)).files:
        yield entry, manifest.check_file(str(directory), entry)
        progress(entry.path, entry.size_bytes)


def restore(directory: Path, data_dir: Path, progress: Progress) -> Manifest:
    """Makes an empty data directory the one of the backup; returns when all is durable.

    What an interrupted restore of the same backup has left is gone on with. Raises DataDirLocked,
    DataDirVersion for a directory that is not empty, DamagedLog for a file that is not as it was.
    """
    made = manifest.load(str(directory))
    with datadir.lock_exclusive(data_dir, timeout_s=5.0):
        stamp = f"{made.data_dir_id} {made.created_ms}\n"
        _refuse_used(data_dir, stamp)
        (data_dir / _HALF).write_text(stamp)
        folders = {data_dir}
        for entry in made.files:
            target = data_dir / entry.path
            target.parent.mkdir(mode=0o700, exist_ok=True)
            folders.add(target.parent)
            if manifest.check_file(str(data_dir), entry):
                _copy_checked(directory / entry.path, target, entry)
            progress(entry.path, entry.size_bytes)
        for folder in folders:
            files.sync_directory(str(folder))
        (data_dir / _HALF).unlink()
        datadir.give_identity(data_dir)
    return made


def _copy_all(
    client: Client, directory: Path, sources: list[Source], journal: Journal, progress: Progress
) -> Manifest:
    partitions: list[PartitionEntry] = []
    entries: list[FileEntry] = []
    for source in sources:
        partition, found = copy_partition(
            source,
            str(directory),
            journal,
            lambda n, name=source.name: progress(name, n),  # type: ignore[misc]
        )
        partitions.append(partition)
        entries += found
    topics = _copy_meta(client.connection.attachment.data_dir, directory)
    kept = [p for p in partitions if topics.get(p.topic) == p.topic_id]
    for gone in {p.directory for p in partitions} - {p.directory for p in kept}:
        shutil.rmtree(directory / gone)  # deleted since
    _remove_strays(directory, {p.directory for p in kept})
    names = {p.directory for p in kept}
    entries = [entry for entry in entries if os.path.dirname(entry.path) in names]
    return Manifest(
        instance=client.instance,
        data_dir_id=client.status()["data_dir_id"],
        created_ms=time.time_ns() // 1_000_000,
        partitions=tuple(kept),
        files=(*entries, _meta_entry(directory)),
    )


def _copy_meta(data_dir: Path, directory: Path) -> dict[str, str]:
    """Copies `meta.db` as it is at one moment; returns name -> id of its topics."""
    target = directory / datadir.META_FILE
    target.unlink(missing_ok=True)
    uri = f"{(data_dir / datadir.META_FILE).absolute().as_uri()}?mode=ro"
    live, copy = sqlite3.connect(uri, uri=True), sqlite3.connect(target)
    with contextlib.closing(live), contextlib.closing(copy):
        live.backup(copy)
    with contextlib.closing(MetaStore(target)) as store:
        topics = {topic.name: topic.topic_id for topic in store.topics()}
    with contextlib.closing(sqlite3.connect(target)) as copy:
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, whole by itself
    target.chmod(0o600)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return topics


def _meta_entry(directory: Path) -> FileEntry:
    with (directory / datadir.META_FILE).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return FileEntry(datadir.META_FILE, size, manifest.crc_of(file.fileno(), size))


def _copy_checked(source: Path, target: Path, entry: FileEntry) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        os.fchmod(write.fileno(), 0o600)
        while data := read.read(_CHUNK_BYTES):
            write.write(data)
        write.flush()
        os.fsync(write.fileno())
    wrong = manifest.check_file(str(target.parent), FileEntry(
        target.name, entry.size_bytes, entry.crc32c
    ))  # fmt: skip
    if wrong:
        raise DamagedLog(
            f"{source} is damaged: {wrong}; see what else is with: "
            f"shmbroker backup {source.parent.parent} --verify",
            path=str(source),
        )


def _refuse_others(directory: Path) -> None:
    there = {entry.name for entry in directory.iterdir()} - {_LOCK, "lost+found"}
    if manifest.MANIFEST in there:
        raise InvalidRequest(
            f"{directory} holds a whole backup already; verify it with: shmbroker backup "
            f"{directory} --verify, or choose an empty directory"
        )
    if there and manifest.JOURNAL not in there:
        raise InvalidRequest(
            f"{directory} holds other files ({min(there)} …); choose an empty or a new directory"
        )


def _refuse_used(data_dir: Path, stamp: str) -> None:
    there = {entry.name for entry in data_dir.iterdir()} - {datadir.LOCK_FILE, "lost+found"}
    with contextlib.suppress(FileNotFoundError):
        if (data_dir / _HALF).read_text() == stamp:
            return
    if there:
        raise DataDirVersion(
            f"{data_dir} is not empty ({min(there)} …), and a restore overwrites nothing; choose "
            "an empty or a new directory with --data-dir, or another --instance",
            path=str(data_dir),
        )


def _remove_strays(directory: Path, wanted: set[str]) -> None:
    """Partitions of an interrupted run whose topic has been deleted since."""
    for entry in directory.iterdir():
        if entry.is_dir() and entry.name not in wanted and entry.name != "lost+found":
            shutil.rmtree(entry)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two backups never write into one directory."""
    fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InvalidRequest(
            f"another backup is being written to {directory}; wait for it"
        ) from None
    finally:
        os.close(fd)


__all__ = ["backup", "restore", "sources_of", "total_bytes", "verify"]
