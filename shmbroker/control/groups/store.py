"""Groups, members and committed offsets in `meta.db`.

    consumer_groups   group_name, epoch, assignment_epoch, topics (JSON), empty_since_ms (Unix time)
    group_members     group_name, member_id, state (JSON; member.py)
    group_offsets     group_name, topic_id, partition, offset, leader_epoch, metadata, committed_ms

The tables are added to a store that has none; a broker that doesn't know them leaves them alone.
Invariants: what `write` returned from is on stable storage, inside `MetaStore.transaction` when
that ends; a group that is deleted takes its members and offsets along, a topic its offsets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from shmbroker.control.groups.values import (
    Changes,
    Committed,
    GroupRow,
    MemberRow,
    OffsetCommit,
    Partition,
)
from shmbroker.control.meta import MetaStore

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS consumer_groups (
    group_name TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    assignment_epoch INTEGER NOT NULL,
    topics TEXT NOT NULL,
    empty_since_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS group_members (
    group_name TEXT NOT NULL REFERENCES consumer_groups ON DELETE CASCADE,
    member_id TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (group_name, member_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS group_offsets (
    group_name TEXT NOT NULL REFERENCES consumer_groups ON DELETE CASCADE,
    topic_id TEXT NOT NULL REFERENCES topics ON DELETE CASCADE,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    leader_epoch INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    committed_ms INTEGER NOT NULL,
    PRIMARY KEY (group_name, topic_id, partition)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS group_offsets_of_topic ON group_offsets (topic_id);
"""
_PUT_GROUP: Final = """
INSERT INTO consumer_groups VALUES (?1, ?2, ?3, ?4, CASE WHEN ?5 THEN ?6 END)
ON CONFLICT DO UPDATE SET epoch = ?2, assignment_epoch = ?3, topics = ?4,
    empty_since_ms = CASE WHEN ?5 THEN coalesce(empty_since_ms, ?6) END
"""
_PUT_MEMBER: Final = "INSERT OR REPLACE INTO group_members VALUES (?, ?, ?)"
_PUT_OFFSET: Final = """
INSERT INTO group_offsets
    SELECT ?1, topic_id, ?3, ?4, ?5, ?6, ?7 FROM topics WHERE topic_id = ?2 AND state = 'active'
ON CONFLICT DO UPDATE SET offset = excluded.offset, leader_epoch = excluded.leader_epoch,
    metadata = excluded.metadata, committed_ms = excluded.committed_ms
"""
_COLUMNS: Final = "topic_id, partition, offset, leader_epoch, metadata, committed_ms"
_IDLE: Final = "empty_since_ms IS NOT NULL AND empty_since_ms <= ?1"


class GroupStore:
    """The tables of groups, in an open store; belongs to that one's thread."""

    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta
        self._db = meta.connection
        with meta.transaction():
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.execute(statement)

    def groups(self) -> list[GroupRow]:
        """Every group as it was stored."""
        rows = self._db.execute(
            "SELECT group_name, epoch, assignment_epoch, topics, empty_since_ms IS NOT NULL"
            " FROM consumer_groups"
        ).fetchall()
        return [
            GroupRow(group, epoch, assigned, json.loads(topics), bool(empty))
            for group, epoch, assigned, topics, empty in rows
        ]

    def members(self) -> list[MemberRow]:
        """Every member as it was stored."""
        rows = self._db.execute("SELECT group_name, member_id, state FROM group_members").fetchall()
        return [MemberRow(group, member_id, json.loads(state)) for group, member_id, state in rows]

    def write(
        self,
        changes: Iterable[Changes],
        commits: Iterable[OffsetCommit],
        unix_ms: int,
        forgotten: Iterable[tuple[str, Partition]] = (),
    ) -> None:
        """All of it in one transaction: changes, what is forgotten of a group, and then commits.

        A commit for a topic that is gone by now is passed over: nobody could read from there.
        """
        with self._meta.transaction():
            for one in changes:
                self._change(one, unix_ms)
            self._db.executemany(
                "DELETE FROM group_offsets WHERE group_name = ? AND topic_id = ? AND partition = ?",
                [(group, *partition) for group, partition in forgotten],
            )
            self._db.executemany(
                _PUT_OFFSET,
                [
                    (c.group, *c.partition, c.offset, c.leader_epoch, c.metadata, unix_ms)
                    for c in commits
                ],
            )

    def committed(
        self, group: str, partitions: Iterable[Partition] | None = None
    ) -> dict[Partition, Committed]:
        """What is durable for these partitions, or all; those without a commit are left out."""
        if partitions is None:
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM group_offsets WHERE group_name = ?"
                " ORDER BY topic_id, partition",
                (group,),
            ).fetchall()
            return {(topic, number): Committed(*rest) for topic, number, *rest in rows}
        found: dict[Partition, Committed] = {}
        for partition in partitions:
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM group_offsets"
                " WHERE group_name = ? AND topic_id = ? AND partition = ?",
                (group, *partition),
            ).fetchone()
            if row is not None:
                found[partition] = Committed(*row[2:])
        return found

    def committed_topics(self) -> dict[str, set[str]]:
        """By group: the ids of the topics that offsets are kept for."""
        found: dict[str, set[str]] = {}
        for group, topic in self._db.execute(
            "SELECT DISTINCT group_name, topic_id FROM group_offsets"
        ):
            found.setdefault(group, set()).add(topic)
        return found

    def expire(self, unix_ms: int, retention_ms: int) -> list[str]:
        """Deletes offsets of groups without members that are out of time, durable.

        An offset's time begins with its commit or when the last member went, whichever was later.
        Returns the groups that have been empty as long and have nothing left: they are the
        coordinator's to delete.
        """
        before = unix_ms - retention_ms
        with self._meta.transaction():
            self._db.execute(
                "DELETE FROM group_offsets WHERE committed_ms <= ?1 AND group_name IN"
                f" (SELECT group_name FROM consumer_groups WHERE {_IDLE})",
                (before,),
            )
        rows = self._db.execute(
            f"SELECT group_name FROM consumer_groups g WHERE {_IDLE} AND NOT EXISTS"
            " (SELECT 1 FROM group_offsets o WHERE o.group_name = g.group_name)",
            (before,),
        ).fetchall()
        return [group for (group,) in rows]

    def _change(self, changes: Changes, unix_ms: int) -> None:
        self._db.executemany(
            "DELETE FROM consumer_groups WHERE group_name = ?", [(g,) for g in changes.gone_groups]
        )
        self._db.executemany(
            "DELETE FROM group_members WHERE group_name = ? AND member_id = ?", changes.gone_members
        )
        self._db.executemany(
            _PUT_GROUP,
            [
                (g.group, g.epoch, g.assignment_epoch, _dump(g.topics), g.empty, unix_ms)
                for g in changes.groups
            ],
        )
        self._db.executemany(
            _PUT_MEMBER, [(m.group, m.member_id, _dump(m.state)) for m in changes.members]
        )


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


__all__ = ["GroupStore"]
