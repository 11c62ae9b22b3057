"""What arrives together becomes durable together: one transaction, then all the answers.

Owns the order of things: the coordinator changes in memory at once, the answer waits until the
change is stored. The acceptor hands everything in that it has read in one turn of its loop, then
calls `flush`. So a commit costs its share of one sync, however many members commit at a time.

Invariants: no answer is given before what it says is durable; if a transaction fails, those who
asked are told so, and the coordinator's changes are kept and stored with the next: nobody is ever
told of a state that a restart would not find. A commit that failed is forgotten; it is repeated by
who made it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping
from typing import Any

from shmbroker.control.groups.coordinator import Coordinator
from shmbroker.control.groups.messages import Commit, Fetch, FetchAnswer, Heartbeat, Leave
from shmbroker.control.groups.offsets import judge
from shmbroker.control.groups.store import GroupStore
from shmbroker.control.groups.values import Changes, OffsetCommit, Partition
from shmbroker.errors import ShmbrokerError, StoreFailed

Answer = Callable[[Mapping[str, Any] | BaseException], None]


class Gathering:
    """Requests of one turn, on their way to the store. Belongs to the acceptor's one thread."""

    def __init__(self, coordinator: Coordinator, store: GroupStore) -> None:
        self._coordinator = coordinator
        self._store = store
        self._unstored: list[Changes] = []
        self._commits: list[OffsetCommit] = []
        self._forgotten: list[tuple[str, Partition]] = []
        self._answers: list[tuple[Answer, Mapping[str, Any] | BaseException]] = []

    def heartbeat(self, beat: Heartbeat, now_ms: int, answer: Answer) -> None:
        """A member's heartbeat, answered by `flush`."""
        self._ask(lambda: self._coordinator.heartbeat(beat, now_ms).to_ok(), answer)

    def leave(self, leave: Leave, now_ms: int, answer: Answer) -> None:
        """A member goes; answered by `flush`."""

        def leave_() -> Mapping[str, Any]:
            self._coordinator.leave(leave, now_ms)
            return {}

        self._ask(leave_, answer)

    def commit(
        self, commit: Commit, durable_end: Callable[[Partition], int | None], answer: Answer
    ) -> None:
        """Offsets to be kept, those refused named in the answer; answered by `flush`."""

        def commit_() -> Mapping[str, Any]:
            refused = self._coordinator.check_commit(commit)
            kept, said = judge(commit, refused, durable_end)
            self._commits += kept
            return said.to_ok()

        self._ask(commit_, answer)

    def fetch(self, fetch: Fetch, answer: Answer) -> None:
        """What is committed, with all that was handed in before; answered by `flush`."""

        def fetched(answer: Answer) -> None:
            answer(FetchAnswer(self._store.committed(fetch.group, fetch.partitions)).to_ok())

        self.look(fetched, answer)

    def look(self, do: Callable[[Answer], None], answer: Answer) -> None:
        """Has `flush` call `do(answer)` when all that was handed in before is durable.

        `do` answers once, then or later; what it raises is the answer.
        """

        def stored(ok: Mapping[str, Any] | BaseException) -> None:
            if isinstance(ok, BaseException):
                answer(ok)
                return
            try:
                do(answer)
            except sqlite3.Error as error:
                answer(_failed(error))
            except ShmbrokerError as error:
                answer(error)

        self._ask(dict, stored)

    def delete(self, group: str, answer: Answer) -> None:
        """Forgets a group without members and what it committed; answered by `flush`."""

        def delete_() -> Mapping[str, Any]:
            self._coordinator.delete(group)
            self._commits = [c for c in self._commits if c.group != group]
            return {}

        self._ask(delete_, answer)

    def forget(self, group: str, partitions: Collection[Partition], answer: Answer) -> None:
        """Forgets what a group committed for partitions of topics that no member reads; answered
        by `flush`."""

        def forget_() -> Mapping[str, Any]:
            self._coordinator.check_forget(group, {topic for topic, _ in partitions})
            gone = set(partitions)
            self._commits = [
                c for c in self._commits if c.group != group or c.partition not in gone
            ]
            self._forgotten += [(group, partition) for partition in partitions]
            return {}

        self._ask(forget_, answer)

    def expire(self, unix_ms: int, retention_ms: int) -> list[str]:
        """Forgets what groups without members committed too long ago; returns groups that went.

        To be called every few minutes. Raises StoreFailed if it could not be stored.
        """
        self.flush(unix_ms)
        if self._unstored:
            return []  # who is empty is not known to the store yet
        try:
            gone = self._store.expire(unix_ms, retention_ms)
        except sqlite3.Error as error:
            raise _failed(error) from None
        for group in gone:
            self._coordinator.delete(group)
        self.flush(unix_ms)
        return gone

    def flush(self, unix_ms: int) -> StoreFailed | None:
        """Stores what was handed in since the last call, durable, then answers everybody.

        Returns what they were told instead of an answer if it could not be stored."""
        if changes := self._coordinator.take_changes():
            self._unstored.append(changes)
        commits, self._commits = self._commits, []
        forgotten, self._forgotten = self._forgotten, []
        answers, self._answers = self._answers, []
        failed: StoreFailed | None = None
        if self._unstored or commits or forgotten:
            try:
                self._store.write(self._unstored, commits, unix_ms, forgotten)
                self._unstored = []
            except sqlite3.Error as error:
                failed = _failed(error)
        for answer, said in answers:
            answer(said if failed is None or isinstance(said, BaseException) else failed)
        return failed

    def _ask(self, do: Callable[[], Mapping[str, Any]], answer: Answer) -> None:
        said: Mapping[str, Any] | BaseException
        try:
            said = do()
        except ShmbrokerError as error:
            said = error
        self._answers.append((answer, said))


def _failed(error: sqlite3.Error) -> StoreFailed:
    return StoreFailed(
        f"the broker's metadata could not be stored: {error}; nothing of the request counts; "
        "make room on the disk of the data directory, or look at the broker's log"
    )


__all__ = ["Answer", "Gathering"]
