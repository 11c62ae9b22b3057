"""Whole batches of producers elsewhere, into the rings: in order, without ever blocking.

Owns: a line of batches for each writer's ring that is full, the batches whose partition has to be
asked for, and the thread that asks. Who uses it (ingress, gateways) gives it batches as they come,
waits on `fd` beside its sockets, and hears in `take` which have left its memory and what became of
which. How much waits here is for the caller to bound: by credit, or by not reading its sockets.

    put ─► way (producer x topic) ─► line of the partition's writer ─► ring ─► take
             └► the asking thread: topic id, ring, larger ring ─┘

Batches are published as they are, under the producer ids, epochs and sequences that stand in them,
so one that comes twice is appended once. After a rejection the later batches of that producer,
epoch and partition are refused with EarlierRejected (`chained`; invariant 7) until its epoch rises.

Invariants: of one producer and partition, batches are published in the order of `put`, whatever
they have to wait for; every batch leaves once, and has one outcome. One thread calls everything.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from shmbroker import errors
from shmbroker._core import producer as core

if TYPE_CHECKING:
    from shmbroker.client.connection import Connection
    from shmbroker.client.metadata import Metadata, TopicInfo

RING_BYTES: Final = 4 << 20  # all that the broker gives for speed; a larger batch gets a larger one
RING_SLOTS: Final = 1024  # frames of all producers together without a receipt
_IDLE_S: Final = 60.0  # after which a producer's way into a topic is forgotten
_RETRY_S: Final = 0.1  # between two attempts to ask a broker that is gone
_UNKNOWN_S: Final = 1.0  # how long an id that no topic has is not asked for again
_UNKNOWN_MOST: Final = 1024
_MOVED: Final = object()

Batch = bytes | bytearray | memoryview


class _Client(Protocol):
    @property
    def connection(self) -> Connection: ...
    @property
    def metadata(self) -> Metadata: ...


@dataclass(slots=True, eq=False)
class _Entry:
    """A batch that has not left yet."""

    way: _Way
    partition: int
    batch: Batch
    size: int
    acks: int
    base_sequence: int
    tag: Any


@dataclass(slots=True, eq=False)
class _Way:
    """One producer's batches for one topic."""

    topic_id: bytes
    producer_id: int
    topic: core.RelayTopic | None = None  # once it is known
    asking: dict[int, deque[_Entry]] = field(default_factory=dict)  # by partition
    used_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Line:
    """What waits for room in one writer's ring."""

    writer: int
    entries: deque[_Entry] = field(default_factory=deque)
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """Of the asking thread."""

    way: _Way
    partition: int
    topic: core.RelayTopic | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Taken:
    """What has happened since the last `take`."""

    left: list[Any] = field(default_factory=list)  # tags of batches whose memory is free
    done: list[tuple[Any, int]] = field(default_factory=list)  # (tag, base offset, or -1: unknown)
    failed: list[tuple[Any, Exception]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.left or self.done or self.failed)


class Relay:
    """See the module. `fd` is readable when `take` has something to say."""

    def __init__(self, client: _Client, *, chained: bool = True) -> None:
        """`chained`: without it only sequences decide what becomes of batches behind a rejected
        one, as a Kafka broker does."""
        self._metadata = client.metadata
        self._outlets = core.Outlets(client.connection, RING_BYTES, RING_SLOTS)
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._mailbox = core.Mailbox(os.dup(self.fd))
        self._sender = core.relay_sender(
            client.connection, client.metadata, self._outlets, self._mailbox, _MOVED, chained
        )
        self._ways: dict[tuple[bytes, int, Any], _Way] = {}
        self._lines: dict[int, _Line] = {}
        self._taken = Taken()
        self.held_bytes = 0  # of batches that have not left
        self.unsettled = 0  # batches without an outcome
        self._unknown: dict[bytes, float] = {}  # the asking thread's
        self._names: dict[str, str] = {}  # topic id -> name; the asking thread's
        self._closed = threading.Event()
        self._questions: queue.SimpleQueue[tuple[_Way, int, int] | None] = queue.SimpleQueue()
        self._asking = threading.Thread(target=self._ask_all, name="shmbroker-relay", daemon=True)
        self._asking.start()

    # --- for the caller ---

    def put(
        self, topic_id: bytes, partition: int, batch: Batch, acks: int, tag: Any, owner: Any = None
    ) -> None:
        """Takes a batch; never blocks. `take` says when it has left, and its outcome, by `tag`.

        `batch`: a whole record batch in any contiguous buffer, which must not change until it has
        left; `acks`: 0 none (complete when it has left), 1 memory, 2 durable. `owner` tells
        producers without a producer id from each other. Raises InvalidRecord without a header.
        """
        producer_id, base_sequence = core.batch_producer(batch)
        key = (topic_id, producer_id, owner if producer_id < 0 else None)
        way = self._ways.get(key)
        if way is None:
            way = self._ways[key] = _Way(topic_id, producer_id)
        size = len(batch)
        self.held_bytes += size
        self.unsettled += 1
        self._route(_Entry(way, partition, batch, size, acks, base_sequence, tag))

    def take(self, woken: bool = False) -> Taken:
        """What has happened since; to be called after a round of `put`, and when `fd` is readable
        (`woken`). Of batches with the same producer and partition, outcomes are in their order."""
        mailed = self._mailbox.take()
        if mailed or woken:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.fd)
            mailed += self._mailbox.take()  # whose word may be the one just read
        for what, why in mailed:
            if type(what) is core.RelayedBatch:
                offset, error = what.outcome(why)
                self._settle(what.tag, offset, error)
            elif type(what) is _Line:
                self._drain(what)
            elif type(what) is _Answer:
                self._answered(what)
            else:  # _MOVED
                for line in self._lines.values():
                    self._drain(line)
        taken, self._taken = self._taken, Taken()
        return taken

    def drop(self, unwanted: Callable[[Any], bool]) -> None:
        """Forgets batches that have not left and whose tag is `unwanted`: nobody will hear of
        them. What is dropped must be the last of its producer and partition."""
        waiting = [line.entries for line in self._lines.values()]
        waiting += [entries for way in self._ways.values() for entries in way.asking.values()]
        for entries in waiting:
            kept = [entry for entry in entries if not unwanted(entry.tag)]
            if len(kept) < len(entries):
                gone = sum(e.size for e in entries) - sum(e.size for e in kept)
                self.held_bytes -= gone
                self.unsettled -= len(entries) - len(kept)
                entries.clear()
                entries.extend(kept)

    def sweep(self) -> None:
        """Forgets producers that have been silent for a while; to be called now and then."""
        now = time.monotonic()
        waiting = {id(e.way) for line in self._lines.values() for e in line.entries}
        for key, way in list(self._ways.items()):
            if way.asking or id(way) in waiting or (way.topic is not None and way.topic.busy()):
                way.used_at = now
            elif now - way.used_at > _IDLE_S:
                if way.topic is not None:
                    way.topic.close()
                del self._ways[key]

    def describe(self) -> list[dict[str, Any]]:
        """For `status`: each line that waits for a writer's ring, since when, and for what."""
        found = []
        now = time.monotonic()
        for line in self._lines.values():
            if not line.entries:
                continue
            head = line.entries[0]
            topic = head.way.topic
            found.append({
                "writer": line.writer, "batches": len(line.entries),
                "bytes": sum(entry.size for entry in line.entries),
                "waiting_s": round(now - line.since, 3),
                "topic": "" if topic is None else topic.name, "partition": head.partition,
                "reason": "" if topic is None else topic.why_waiting(head.partition),
            })  # fmt: skip
        return found

    def counters(self) -> dict[int, dict[str, int]]:
        """Of each writer's ring."""
        return self._outlets.counters()

    def close(self) -> None:
        """Forgets everything; what is in the rings is appended. The client is the caller's."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._questions.put(None)
        self._sender.close()
        self._asking.join()
        for way in self._ways.values():
            if way.topic is not None:
                way.topic.close()
        self._ways.clear()
        self._lines.clear()
        os.close(self.fd)

    # --- the way of a batch ---

    def _route(self, entry: _Entry) -> None:
        way = entry.way
        topic = way.topic
        writer = -1 if topic is None else topic.writer(entry.partition)
        if writer < 0 or entry.partition in way.asking:
            self._ask(entry)
            return
        line = self._lines.get(writer)
        if line is None:
            line = self._lines[writer] = _Line(writer)
        if line.entries or not self._publish(entry, line):
            if not line.entries:
                line.since = time.monotonic()
            line.entries.append(entry)

    def _publish(self, entry: _Entry, line: _Line) -> bool:
        """False: it waits at the head of the line."""
        topic, partition = entry.way.topic, entry.partition
        assert topic is not None
        said = topic.publish(partition, entry.batch, entry.acks, entry.tag, line)
        if said == core.RELAY_TAKEN:
            self._leave(entry)
            if not entry.acks:
                self._settle(entry.tag, -1, None)
        elif said == core.RELAY_REFUSED:
            self._fail(entry, topic.refusal(partition, entry.base_sequence))
        elif said == core.RELAY_UNREADY:
            self._ask(entry)
        else:  # full, or moving: the line is mailed when to look again
            return False
        return True

    def _drain(self, line: _Line) -> None:
        entries = line.entries
        while entries:
            entry = entries[0]
            if entry.partition in entry.way.asking:
                self._ask(entry)
            elif not self._publish(entry, line):
                line.since = time.monotonic()
                return
            entries.popleft()

    def _leave(self, entry: _Entry) -> None:
        self.held_bytes -= entry.size
        self._taken.left.append(entry.tag)

    def _fail(self, entry: _Entry, error: Exception) -> None:
        self._leave(entry)
        self._settle(entry.tag, -1, error)

    def _settle(self, tag: Any, offset: int, error: Exception | None) -> None:
        self.unsettled -= 1
        if error is None:
            self._taken.done.append((tag, offset))
        else:
            self._taken.failed.append((tag, error))

    # --- what has to be asked ---

    def _ask(self, entry: _Entry) -> None:
        way = entry.way
        waiting = way.asking.get(entry.partition)
        if waiting is not None:
            waiting.append(entry)
            return
        way.asking[entry.partition] = deque((entry, *self._behind(entry)))
        self._questions.put((way, entry.partition, entry.size))

    def _behind(self, first: _Entry) -> list[_Entry]:
        """Takes what is of the same producer and partition out of the lines: it may be another
        writer's by the time of the answer, and is to stay in its place."""
        found = []
        for line in self._lines.values():
            mine = [e for e in line.entries if e.way is first.way and e is not first
                    and e.partition == first.partition]  # fmt: skip
            if mine:
                found += mine
                gone = set(mine)
                kept = [entry for entry in line.entries if entry not in gone]
                line.entries.clear()
                line.entries.extend(kept)
        return found

    def _answered(self, answer: _Answer) -> None:
        way = answer.way
        way.used_at = time.monotonic()
        if answer.topic is not None:
            if way.topic is None:
                way.topic = answer.topic
            elif way.topic is not answer.topic:  # two partitions were asked for at once
                answer.topic.close()
                self._questions.put((way, answer.partition, way.asking[answer.partition][0].size))
                return
        for entry in way.asking.pop(answer.partition):
            if answer.error is None:
                self._route(entry)
            else:
                self._fail(entry, answer.error)

    def _ask_all(self) -> None:
        while (question := self._questions.get()) is not None:
            self._mailbox.put(self._ask_one(*question))

    def _ask_one(self, way: _Way, partition: int, size: int) -> _Answer:
        """On the asking thread; goes on until there is an answer that does not pass by itself."""
        topic = way.topic
        while True:
            try:
                if topic is None:
                    info = self._find(way.topic_id)
                    topic = core.RelayTopic(self._sender, self._mailbox, info, way.producer_id)
                topic.prepare(partition, size)
                return _Answer(way, partition, topic)
            except (errors.BrokerGone, errors.TimedOut) as error:
                if self._closed.wait(_RETRY_S):
                    return _Answer(way, partition, topic, error)
            except Exception as error:
                return _Answer(way, partition, topic, error)

    def _find(self, topic_id: bytes) -> TopicInfo:
        now = time.monotonic()
        if self._unknown.get(topic_id, 0.0) <= now:
            wanted = topic_id.hex()
            name = self._names.get(wanted)
            if name is not None:
                with contextlib.suppress(errors.UnknownTopic):
                    info = self._metadata.get(name)
                    if info.id == wanted:
                        return info
            topics = self._metadata.all()
            self._names = {info.id: name for name, info in topics.items()}
            if wanted in self._names:
                return topics[self._names[wanted]]
            if len(self._unknown) >= _UNKNOWN_MOST:
                self._unknown.clear()
            self._unknown[topic_id] = now + _UNKNOWN_S
        raise errors.from_code(
            errors.UnknownTopic.kafka_code,
            f"no topic has the id {topic_id.hex()}: it was deleted, or made anew under another id",
        )


__all__ = ["RING_BYTES", "RING_SLOTS", "Batch", "Relay", "Taken"]
