"""The metadata store: topics, partitions and producer ids, in SQLite.

Owns `meta.db` (WAL, synchronous=FULL): what a commit returned from is on stable storage. Only the
acceptor opens it, on one thread; everybody else asks the acceptor.

    store       key, value                              format_version, next_producer_id
    topics      topic_id (32 hex), name, settings (JSON: only what was set), state, created_ms
    partitions  topic_id, partition

Invariants: a topic's name belongs to one topic at a time, also while that topic is being deleted,
so that a new topic never meets an old one's files; partitions are numbered from 0 without a gap;
`next_producer_id` is durable above every id ever handed out; a newer format is refused.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shmbroker.control.datadir import sync_dir
from shmbroker.errors import (
    DataDirVersion,
    InvalidPartitions,
    InvalidTopic,
    ShmbrokerError,
    TopicExists,
    UnknownTopic,
)

FORMAT_VERSION: Final = 1
PRODUCER_ID_BLOCK: Final = 1000  # ids a durable write; what a restart leaves unused is skipped
MAX_PARTITIONS: Final = 10_000
_NAME_MAX: Final = 249  # Kafka's, which leaves room for "-<partition>" in a file's name
_NAME_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

_SCHEMA: Final = """
CREATE TABLE store (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE topics (
    topic_id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    settings TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'deleting')),
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE partitions (
    topic_id TEXT NOT NULL REFERENCES topics ON DELETE CASCADE,
    partition INTEGER NOT NULL,
    PRIMARY KEY (topic_id, partition)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it stands in the store; `settings` has Kafka's names and only what was set."""

    topic_id: str
    name: str
    partitions: int
    settings: Mapping[str, Any]
    created_ms: int
    deleting: bool = False


class MetaStore:
    """The store, open. Not thread-safe: it belongs to the thread that opened it."""

    def __init__(self, path: Path) -> None:
        """Opens `path` or makes it. Raises DataDirVersion for a newer or a foreign file."""
        self._path = path
        self._depth = 0
        self._failed = False
        self._next_producer_id = self._end_producer_id = 0
        self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise DataDirVersion(f"{path} can't be used: {error}", path=str(path)) from None
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Closes the file; twice is fine."""
        self._db.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """The open database, for tables of others' (groups/store.py): to be written to inside

        `transaction` alone, on this thread.
        """
        return self._db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Gathers what is done inside into one commit, which is durable when the block ends.

        Blocks may be nested; the outermost one commits. An exception that leaves any of them undoes
        all of it, and the outermost raises even if an inner one was caught: half a gathering is
        never kept. Tell nobody of a result before the outermost block has ended.
        """
        outermost = self._depth == 0
        if outermost:
            self._db.execute("BEGIN IMMEDIATE")
            self._failed = False
        self._depth += 1
        try:
            yield
        except BaseException:
            self._failed = True
            raise
        finally:
            self._depth -= 1
            if outermost and self._failed:
                self._undo()
        if outermost:
            if self._failed:  # an inner block's exception was caught: who gathered must hear of it
                raise ShmbrokerError(f"{self._path}: a part of the transaction failed; all undone")
            self._commit()

    # Topics

    def create_topic(self, name: str, partitions: int, settings: Mapping[str, Any]) -> Topic:
        """A new topic, durable. `settings` are already validated, under Kafka's names.

        Raises InvalidTopic, InvalidPartitions, TopicExists; none is retriable.
        """
        check_topic_name(name)
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise InvalidPartitions(
                f"topic {name!r} can't have {partitions} partitions; allowed: 1 to {MAX_PARTITIONS}"
            )
        topic = Topic(uuid.uuid4().hex, name, partitions, dict(settings), time.time_ns() // 10**6)
        row = (topic.topic_id, name, json.dumps(topic.settings), topic.created_ms)
        if self._db.execute("SELECT 1 FROM topics WHERE name = ?", (name,)).fetchone():
            raise TopicExists(name)
        with self.transaction():
            self._db.execute("INSERT INTO topics VALUES (?, ?, ?, 'active', ?)", row)
            self._add_partitions(topic.topic_id, 0, partitions)
        return topic

    def topic(self, name: str) -> Topic:
        """The topic of that name; UnknownTopic also while it is being deleted."""
        for topic in self._topics("WHERE name = ? AND state = 'active'", (name,)):
            return topic
        raise UnknownTopic(name)

    def topics(self) -> list[Topic]:
        """All topics by name, without those being deleted."""
        return list(self._topics("WHERE state = 'active'"))

    def topics_being_deleted(self) -> list[Topic]:
        """Those whose files may still be there: go on deleting them after a restart."""
        return list(self._topics("WHERE state = 'deleting'"))

    def alter_topic(self, name: str, settings: Mapping[str, Any]) -> Topic:
        """Replaces what was set for the topic, durable; raises UnknownTopic."""
        topic = self.topic(name)
        with self.transaction():
            self._db.execute(
                "UPDATE topics SET settings = ? WHERE topic_id = ?",
                (json.dumps(dict(settings)), topic.topic_id),
            )
        return self.topic(name)

    def add_partitions(self, name: str, partitions: int) -> Topic:
        """Raises the number of partitions to `partitions`, durable; it never falls."""
        topic = self.topic(name)
        if not topic.partitions <= partitions <= MAX_PARTITIONS:
            raise InvalidPartitions(
                f"topic {name!r} has {topic.partitions} partitions and can't be given {partitions};"
                f" allowed: {topic.partitions} to {MAX_PARTITIONS}"
            )
        with self.transaction():
            self._add_partitions(topic.topic_id, topic.partitions, partitions)
        return self.topic(name)

    def begin_delete(self, name: str) -> Topic:
        """Marks the topic as going, durable; then remove its files, then `end_delete`."""
        topic = self.topic(name)
        with self.transaction():
            self._db.execute(
                "UPDATE topics SET state = 'deleting' WHERE topic_id = ?", (topic.topic_id,)
            )
        return topic

    def end_delete(self, topic_id: str) -> None:
        """Forgets a topic whose files are gone, durable; its name is free again."""
        with self.transaction():
            self._db.execute(
                "DELETE FROM topics WHERE topic_id = ? AND state = 'deleting'", (topic_id,)
            )

    # Producer ids

    def allocate_producer_id(self) -> int:
        """An id that was never given before. Durable, a block at a time, before it is returned

        (inside `transaction`, when that ends: an undone block's ids may be given again).
        """
        if self._next_producer_id == self._end_producer_id:
            with self.transaction():
                (first,) = self._db.execute(
                    "SELECT value FROM store WHERE key = 'next_producer_id'"
                ).fetchone()
                end = first + PRODUCER_ID_BLOCK
                self._db.execute(
                    "UPDATE store SET value = ? WHERE key = 'next_producer_id'", (end,)
                )
            self._next_producer_id, self._end_producer_id = first, end
        given = self._next_producer_id
        self._next_producer_id += 1
        return given

    def _open(self) -> None:
        # Asked before the first write, and before WAL is switched on: a newer file stays as it is.
        has_tables = self._db.execute("SELECT 1 FROM sqlite_master").fetchone() is not None
        if has_tables:
            self._check_version()
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        if not has_tables:
            with self.transaction():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.executemany(
                    "INSERT INTO store VALUES (?, ?)",
                    [("format_version", FORMAT_VERSION), ("next_producer_id", 1)],
                )
            sync_dir(self._path.parent)

    def _check_version(self) -> None:
        row = self._db.execute("SELECT value FROM store WHERE key = 'format_version'").fetchone()
        version = row[0] if row else None
        if version != FORMAT_VERSION:
            raise DataDirVersion(
                f"{self._path} has format version {version}, and this shmbroker reads "
                f"{FORMAT_VERSION}; use the version that wrote it, or another --data-dir",
                path=str(self._path),
            )

    def _commit(self) -> None:
        try:
            self._db.execute("COMMIT")
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._next_producer_id = self._end_producer_id = 0

    def _topics(self, where: str, values: tuple[Any, ...] = ()) -> Iterator[Topic]:
        rows = self._db.execute(
            "SELECT topic_id, name, (SELECT count(*) FROM partitions p"
            f" WHERE p.topic_id = topics.topic_id), settings, created_ms, state FROM topics {where}"
            " ORDER BY name",
            values,
        ).fetchall()
        for topic_id, name, partitions, settings, created_ms, state in rows:
            yield Topic(
                topic_id, name, partitions, json.loads(settings), created_ms, state == "deleting"
            )

    def _add_partitions(self, topic_id: str, first: int, end: int) -> None:
        self._db.executemany(
            "INSERT INTO partitions VALUES (?, ?)", [(topic_id, p) for p in range(first, end)]
        )


def check_topic_name(name: str) -> None:
    """Raises InvalidTopic for a name that Kafka, or a file system, would not take."""
    if not 1 <= len(name) <= _NAME_MAX or not _NAME_CHARS.issuperset(name) or name in (".", ".."):
        raise InvalidTopic(name)


__all__ = [
    "FORMAT_VERSION",
    "MAX_PARTITIONS",
    "MetaStore",
    "Topic",
    "check_topic_name",
]
