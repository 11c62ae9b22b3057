"""Producer state files in Kafka's format: `<offset>.snapshot` holds the producers as of that
offset.

Written by the writer process at each roll and clean close, for tools that read Kafka's files; our
own recovery uses the checkpoint, which remembers more batches. Version 1, big endian:

    version i16 | crc32c u32 of what follows | count i32 | entries
    entry: producer id i64 | epoch i16 | last sequence i32 | last offset i64 | offset delta i32 |
           timestamp i64 | coordinator epoch i32 | current transaction's first offset i64

Source: Kafka's `ProducerStateManager` and `ProducerSnapshot.json`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from shmbroker._core import scan
from shmbroker.errors import DamagedLog
from shmbroker.log import files, names

VERSION = 1
KEEP = 2  # the newest ones; more is of no use to anybody
_HEAD = struct.Struct(">hI")
_COUNT = struct.Struct(">i")
_ENTRY = struct.Struct(">qhiqiqiq")
_TABLE_HEAD = struct.Struct(">II")  # ProducerTable.export(), see producers.h
_TABLE_PRODUCER = struct.Struct(">qhHq")
_TABLE_BATCH = struct.Struct(">iiq")


class ProducerBatches(NamedTuple):
    """One producer of a table export; batches are (base sequence, count, base offset), oldest
    first."""

    producer_id: int
    epoch: int
    timestamp: int
    batches: list[tuple[int, int, int]]


class ProducerEntry(NamedTuple):
    """One producer in a snapshot file."""

    producer_id: int
    epoch: int
    last_sequence: int
    last_offset: int
    offset_delta: int
    timestamp: int
    coordinator_epoch: int = -1
    txn_first_offset: int = -1


def parse_table(data: bytes) -> Iterator[ProducerBatches]:
    """The producers in what `ProducerTable.export` returned."""
    if not data:
        return
    _, count = _TABLE_HEAD.unpack_from(data)
    at = _TABLE_HEAD.size
    for _ in range(count):
        producer_id, epoch, batches, timestamp = _TABLE_PRODUCER.unpack_from(data, at)
        at += _TABLE_PRODUCER.size
        end = at + batches * _TABLE_BATCH.size
        yield ProducerBatches(
            producer_id, epoch, timestamp, list(_TABLE_BATCH.iter_unpack(data[at:end]))
        )
        at = end


def entries_of(table: bytes) -> list[ProducerEntry]:
    """A table export as snapshot entries: the newest batch of each producer that has one."""
    entries = []
    for producer in parse_table(table):
        if not producer.batches:
            continue
        sequence, count, offset = producer.batches[-1]
        last_sequence = (sequence + count - 1) & 0x7FFFFFFF
        entries.append(
            ProducerEntry(
                producer.producer_id,
                producer.epoch,
                last_sequence,
                offset + count - 1,
                count - 1,
                producer.timestamp,
            )
        )
    return entries


def encode(entries: list[ProducerEntry]) -> bytes:
    """The file's bytes."""
    body = _COUNT.pack(len(entries)) + b"".join(_ENTRY.pack(*entry) for entry in entries)
    return _HEAD.pack(VERSION, scan.crc32c(body)) + body


def decode(data: bytes, path: str = "") -> list[ProducerEntry]:
    """The inverse. Raises DamagedLog."""
    try:
        version, crc = _HEAD.unpack_from(data)
        body = data[_HEAD.size :]
        (count,) = _COUNT.unpack_from(body)
    except struct.error:
        raise DamagedLog(f"snapshot {path} is cut off", path=path) from None
    if version != VERSION:
        raise DamagedLog(f"snapshot {path} is of version {version}, not {VERSION}", path=path)
    if scan.crc32c(body) != crc:
        raise DamagedLog(f"snapshot {path} has a wrong checksum", path=path)
    if len(body) != _COUNT.size + count * _ENTRY.size:
        raise DamagedLog(f"snapshot {path} does not hold the {count} entries it says", path=path)
    return [ProducerEntry(*e) for e in _ENTRY.iter_unpack(body[_COUNT.size :])]


def store(directory: str, offset: int, table: bytes) -> None:
    """Writes the producers of a table export as `<offset>.snapshot`, durably, and drops all but the
    newest. Raises DiskFull, OSError."""
    name = names.file_name(offset, names.SNAPSHOT)
    files.replace_file(directory, name, encode(entries_of(table)), name + ".tmp")
    drop(directory)


def drop(directory: str, keep: int = KEEP) -> None:
    """Unlinks all but the newest snapshots."""
    for offset in names.list_directory(directory).snapshots[:-keep]:
        files.unlink_quietly(os.path.join(directory, names.file_name(offset, names.SNAPSHOT)))
