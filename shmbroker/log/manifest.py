"""What a backup consists of: `backup.json`, its journal while it is made, and the proof of both.

    <backup>/backup.json      written last: the backup is whole when it is there
             backup.journal   one line of JSON a file that is copied and durable; gone at the end
             meta.db          topics and producer ids
             <topic>-<partition>/…   as in a data directory

`backup.json` is {"crc32c": "…", "backup": {…}}; the CRC is of the inner object as compact JSON with
sorted keys, and every file stands in it with its size and CRC-32C. One process writes (under
`lock`, a flock), any may read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from shmbroker._core import scan
from shmbroker.errors import DamagedLog, DataDirVersion
from shmbroker.log import files

FORMAT_VERSION: Final = 1
MANIFEST: Final = "backup.json"
JOURNAL: Final = "backup.journal"
_CHUNK_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a backup. `inode` and `mtime_ns` tell whether its source is still the same."""

    path: str  # relative to the backup
    size_bytes: int
    crc32c: str  # 8 hex digits
    inode: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class PartitionEntry:
    """One partition of a backup: records from log_start_offset to end_offset (exclusive)."""

    directory: str
    topic: str
    topic_id: str
    partition: int
    log_start_offset: int
    end_offset: int
    leader_epoch: int  # of what is appended after a restore


@dataclass(frozen=True, slots=True)
class Manifest:
    """`backup.json`."""

    instance: str
    data_dir_id: str  # of the broker that it was made of
    created_ms: int
    partitions: tuple[PartitionEntry, ...]
    files: tuple[FileEntry, ...]
    version: int = FORMAT_VERSION


def store(directory: str, manifest: Manifest) -> None:
    """Writes `backup.json`; returns when it is durable."""
    inner = asdict(manifest)
    whole = {"crc32c": _crc_of(inner), "backup": inner}
    data = orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    files.replace_file(directory, MANIFEST, data, f"{MANIFEST}.new")


def load(directory: str) -> Manifest:
    """Raises DamagedLog for one that is not whole or no backup, DataDirVersion for a newer one."""
    path = os.path.join(directory, MANIFEST)
    try:
        with open(path, "rb") as file:
            whole = orjson.loads(file.read())
        inner: dict[str, Any] = whole["backup"]
        version = inner["version"]
        right = whole["crc32c"] == _crc_of(inner)
    except FileNotFoundError:
        unfinished = os.path.exists(os.path.join(directory, JOURNAL))
        why = (
            f"it was not finished; go on with: shmbroker backup {directory}"
            if unfinished
            else f"it has no {MANIFEST}"
        )
        raise DamagedLog(f"{directory} is no whole backup: {why}", path=path) from None
    except (ValueError, KeyError, TypeError):
        raise DamagedLog(f"{path} is damaged: it makes no sense", path=path) from None
    if not right:
        raise DamagedLog(f"{path} is damaged: its checksum is wrong", path=path)
    if version > FORMAT_VERSION:
        raise DataDirVersion(
            f"{path} is of version {version}, this shmbroker knows {FORMAT_VERSION}: it was "
            "written by a newer one; use that one",
            path=path,
        )
    inner["partitions"] = tuple(PartitionEntry(**entry) for entry in inner["partitions"])
    inner["files"] = tuple(FileEntry(**entry) for entry in inner["files"])
    return Manifest(**inner)


def check_file(directory: str, entry: FileEntry) -> str:
    """What is wrong with one file of a backup; "" when it is as it was written."""
    try:
        fd = os.open(os.path.join(directory, entry.path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"can't be read: {error.strerror}"
    try:
        size = os.fstat(fd).st_size
        if size != entry.size_bytes:
            return f"it has {size} bytes, and was written with {entry.size_bytes}"
        if (found := crc_of(fd, size)) != entry.crc32c:
            return f"its CRC-32C is {found}, and was {entry.crc32c}"
        return ""
    except OSError as error:
        return f"can't be read: {error.strerror}"
    finally:
        os.close(fd)


def crc_of(fd: int, end: int) -> str:
    """CRC-32C of a file's first `end` bytes, as 8 hex digits."""
    crc, position = 0, 0
    while position < end:
        data = os.pread(fd, min(_CHUNK_BYTES, end - position), position)
        if not data:
            break
        crc = scan.crc32c(data, crc)
        position += len(data)
    return f"{crc:08x}"


class Journal:
    """What an unfinished backup has already: lines appended after their file is durable."""

    def __init__(self, directory: str) -> None:
        """Reads what an interrupted run has left; a torn last line is dropped."""
        self._path = os.path.join(directory, JOURNAL)
        self.known: dict[str, FileEntry] = {}
        for entry in _entries(self._path):
            self.known[entry.path] = entry
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        for entry in self.known.values():
            self._append(entry)
        os.fsync(self._fd)

    def note(self, entry: FileEntry) -> None:
        """This file is copied and durable; so is the note on return."""
        self.known[entry.path] = entry
        self._append(entry)
        os.fdatasync(self._fd)

    def close(self, *, done: bool) -> None:
        """`done`: the manifest is durable, the journal goes."""
        os.close(self._fd)
        if done:
            files.unlink_quietly(self._path)

    def _append(self, entry: FileEntry) -> None:
        os.write(self._fd, orjson.dumps(asdict(entry), option=orjson.OPT_APPEND_NEWLINE))


def _entries(path: str) -> Iterator[FileEntry]:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            try:
                yield FileEntry(**orjson.loads(line))
            except (ValueError, TypeError):
                return


def _crc_of(inner: dict[str, Any]) -> str:
    return f"{scan.crc32c(orjson.dumps(inner, option=orjson.OPT_SORT_KEYS)):08x}"


__all__ = [
    "FORMAT_VERSION",
    "JOURNAL",
    "MANIFEST",
    "FileEntry",
    "Journal",
    "Manifest",
    "PartitionEntry",
    "check_file",
    "crc_of",
    "load",
    "store",
]
