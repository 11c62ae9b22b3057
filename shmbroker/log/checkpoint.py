"""The `checkpoint` file: from where recovery reads, and whether it has to.

One a partition, written by the writer process (and `shmbroker log repair`), aside and renamed, so
it is whole or not there. Format, big endian; the first three fields stay the same in all versions:

     0        8        12        16         20
     +--------+--------+---------+----------+------------------+--------------------+
     |shmbckpt| crc32c | version | json len | json (UTF-8)     | producers (export) |
     +--------+--------+---------+----------+------------------+--------------------+
              crc covers everything behind itself

What it promises: every byte of the log below (segment, file_position) was on stable storage, and so
was the index up to there, when it was written. `clean` says that nothing was appended since.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from typing import Any

import orjson

from shmbroker._core import scan
from shmbroker.errors import DamagedLog, DataDirVersion
from shmbroker.log import files, names

VERSION = 1
_MAGIC = b"shmbckpt"
_HEAD = struct.Struct(">8sIII")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of one partition at a durable position."""

    topic_id: str
    partition: int
    clean: bool
    log_start_offset: int  # first offset that may be read, inclusive
    durable_offset: int  # of the next record; everything below is durable
    segment: int  # base offset of the segment that file_position is in; -1: none was made yet
    file_position: int  # bytes, exclusive end of what is durable there
    leader_epoch: int  # of every batch appended from here on
    epochs: tuple[tuple[int, int], ...]  # (leader epoch, start offset), rising
    write_reach_bytes: int  # no single write of the appender is longer
    unit: int  # bytes; writes begin and end at multiples of it
    max_timestamp: int = -1  # ms; largest in the segment, -1: none
    created_ms: int = 0  # when the segment was made
    sealing: tuple[tuple[int, int], ...] = ()  # (base offset, bytes): rolled, not yet cut to length
    index_bytes: tuple[int, int] = (0, 0)  # synced sizes of .index and .timeindex of the segment
    producers: bytes = b""  # ProducerTable.export()


def encode(checkpoint: Checkpoint) -> bytes:
    """The file's bytes."""
    fields = {name: getattr(checkpoint, name) for name in _FIELDS}
    text = orjson.dumps(fields)
    body = struct.pack(">II", VERSION, len(text)) + text + checkpoint.producers
    return _MAGIC + struct.pack(">I", scan.crc32c(body)) + body


def decode(data: bytes, path: str) -> Checkpoint:
    """The inverse. Raises DamagedLog, and DataDirVersion for a newer version's file."""
    if len(data) < _HEAD.size:
        raise _damaged(path, f"it has {len(data)} bytes, fewer than its head")
    magic, crc, version, length = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise _damaged(path, "it does not begin as one")
    if scan.crc32c(memoryview(data)[12:]) != crc:
        raise _damaged(path, "its checksum is wrong")
    if version > VERSION:
        raise DataDirVersion(
            f"{path} is of version {version}, this shmbroker knows {VERSION}: "
            "it was written by a newer one; use that one",
            path=path,
        )
    try:
        fields: dict[str, Any] = orjson.loads(data[_HEAD.size : _HEAD.size + length])
        for name in ("epochs", "sealing"):
            fields[name] = tuple((int(a), int(b)) for a, b in fields[name])
        fields["index_bytes"] = tuple(fields["index_bytes"])
        known = {name: fields[name] for name in _FIELDS}
        return Checkpoint(producers=data[_HEAD.size + length :], **known)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"its content makes no sense ({error})") from error


def load(directory: str) -> Checkpoint | None:
    """The partition's checkpoint, or None where there is no such file. Raises as `decode` does."""
    path = os.path.join(directory, names.CHECKPOINT)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        return decode(os.pread(fd, size + 1, 0), path)
    finally:
        os.close(fd)


def store(directory: str, checkpoint: Checkpoint) -> None:
    """Replaces the partition's checkpoint; returns when that is durable. Raises DiskFull,
    OSError."""
    files.replace_file(directory, names.CHECKPOINT, encode(checkpoint), names.CHECKPOINT_TMP)


def _damaged(path: str, why: str) -> DamagedLog:
    return DamagedLog(f"checkpoint {path} is damaged: {why}", path=path)


_FIELDS = tuple(name for name in Checkpoint.__dataclass_fields__ if name != "producers")

__all__ = ["VERSION", "Checkpoint", "decode", "encode", "load", "replace", "store"]
