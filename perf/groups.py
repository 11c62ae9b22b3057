"""`python -m shmbroker.perf.groups`: the coordinator of consumer groups by itself, without sockets.

Two figures: the CPU time that the coordinator and its store need for a whole rebalance, and how
many durable commits a second the store takes from members that commit one at a time each, gathered
as the acceptor gathers them: one transaction for all that are waiting. The limit beside the second
is the bare store's: the same transactions, by SQLite alone, of the same number of rows.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from pathlib import Path

from shmbroker.control.groups.coordinator import Coordinator
from shmbroker.control.groups.gathering import Gathering
from shmbroker.control.groups.limits import GroupSettings
from shmbroker.control.groups.messages import Commit, CommitRow, Heartbeat, HeartbeatAnswer
from shmbroker.control.groups.store import GroupStore
from shmbroker.control.groups.values import Subscription, TopicView
from shmbroker.control.meta import MetaStore


class _Members:
    """Members that let go at once, and the coordinator they talk to."""

    def __init__(self, path: Path, partitions: int, gather_ms: int, topics: int = 1) -> None:
        self.meta = MetaStore(path)
        names = [f"t{n}" for n in range(topics)]
        for name in names:
            self.meta.create_topic(name, partitions // topics, {})
        self.topics = [TopicView(t.topic_id, t.name, t.partitions) for t in self.meta.topics()]
        self.coordinator = Coordinator(GroupSettings(gather_ms=gather_ms), self.topics)
        self.gathering = Gathering(self.coordinator, GroupStore(self.meta))
        self.now_ms = 0
        self.known: dict[str, tuple[int, int]] = {}  # member -> epoch, version

    def beat(self, member: str, topics: tuple[str, ...] = ()) -> None:
        epoch, version = self.known.get(member, (0, 0))
        wants = Subscription(topics) if topics else None
        beat = Heartbeat("g", member, epoch, version, wants=wants)

        def take(said: object) -> None:
            assert isinstance(said, dict), said
            answer = HeartbeatAnswer.from_ok(said)
            self.known[member] = (answer.epoch, answer.version)

        self.gathering.heartbeat(beat, self.now_ms, take)

    def settle(self) -> int:
        """Everybody who has news hears it, a turn of the loop after the other; returns turns."""
        turns = 0
        while self.coordinator.describe("g").state != "stable":
            turns += 1
            self.now_ms += 20
            self.coordinator.tick(self.now_ms)
            for _, member in self.coordinator.take_news():
                self.beat(member)
                self.gathering.flush(0)
                self.beat(member)  # it has let go
            self.gathering.flush(0)
        return turns


def rebalance(path: Path, members: int, partitions: int, gather_ms: int, topics: int = 1) -> float:
    """CPU seconds until `members` that all join at once have settled on `partitions`."""
    group = _Members(path, partitions, gather_ms, topics)
    names = tuple(view.name for view in group.topics)
    began = time.process_time()
    for number in range(members):
        # With several topics half of the members read half of them.
        group.beat(f"m{number:03}", names if number % 2 or topics == 1 else names[: topics // 2])
        if gather_ms == 0:
            group.gathering.flush(0)
            group.settle()
    group.gathering.flush(0)
    group.settle()
    took = time.process_time() - began
    group.meta.close()
    return took


def commits(path: Path, members: int, seconds: float) -> float:
    """Durable commits a second of `members`, each with one commit on its way at a time."""
    group = _Members(path, 1000, 0)
    for number in range(members):
        group.beat(f"m{number:03}", ("t0",))
    group.gathering.flush(0)
    group.settle()
    held = {m: next(iter(group.coordinator.group("g").members[m].held)) for m in group.known}
    done, offset = 0, 0

    def answered(said: object) -> None:
        nonlocal done
        assert isinstance(said, dict), said
        done += len(said["committed"])

    began = time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        offset += 1
        for member, partition in held.items():
            row = CommitRow(partition, offset, 0)
            commit = Commit("g", (row,), member, group.known[member][0])
            group.gathering.commit(commit, lambda _: 1 << 40, answered)
        group.gathering.flush(0)
    group.meta.close()
    return done / took


def bare(path: Path, rows: int, seconds: float) -> float:
    """The limit: rows a second that SQLite alone makes durable, as many to a transaction."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v INTEGER)")
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        database.execute("BEGIN")
        database.executemany(
            "INSERT OR REPLACE INTO t VALUES (?, ?)", [(n, done) for n in range(rows)]
        )
        database.execute("COMMIT")
        done += rows
    database.close()
    return done / took


def main() -> None:
    """Prints the figures; `--dir` says on which disk the store is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None, help="where meta.db is made")
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each rate")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        there = Path(directory)
        for name, gather_ms, topics in (
            ("together", 20, 1),
            ("one by one", 0, 1),
            ("mixed", 20, 10),
        ):
            cpu_s = rebalance(
                there / f"{name}.db", args.members, args.partitions, gather_ms, topics
            )
            print(f"rebalance, {args.members} x {args.partitions}, {name}: {cpu_s:.3f} s of CPU")
        rate = commits(there / "commits.db", 50, args.seconds)
        limit = bare(there / "bare.db", 50, args.seconds)
        print(f"durable commits of 50 members: {rate:,.0f}/s; SQLite alone: {limit:,.0f}/s")


if __name__ == "__main__":
    main()
