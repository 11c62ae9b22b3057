"""A consumer that shares its topics' partitions with the other members of its group.

Owns: the partitions that this member has, as readers that come and go, and what of its work is
committed. Where it stands in the group is `groups/membership.py`; heartbeats are the connection's
heart's (`groups/heart.py`), on a thread of its own.

Everything here happens on the thread that reads, inside a read: the heart only calls (`_call`), and
the read then attends before its next record. So callbacks are the user's own thread's, and what was
fetched and not handed out of a partition that goes is never handed out. What is to be done goes in
steps (`_attending`), between which the program's code is called: here at once, in an event loop by
the asyncio twin.

Invariants: a partition is given up only after `on_revoke` has returned; what is committed by itself
(`auto_commit_ms`) was handed out and asked past, so a crash repeats records and skips none.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Final, Literal

from shmbroker._core.batch import Record
from shmbroker._core.reader import PartitionReader, RecordBatch
from shmbroker.client.attach import program_name
from shmbroker.client.consumer import one_of
from shmbroker.client.groups.checkpointing import Checkpointing, Done, RecordLike
from shmbroker.client.groups.membership import OUT, Membership, Options
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.positions import Start
from shmbroker.client.source import key_of
from shmbroker.control.groups.messages import (
    Commit,
    CommitAnswer,
    CommitRow,
    Fetch,
    FetchAnswer,
    Leave,
)
from shmbroker.control.groups.values import Committed, Partition, Subscription
from shmbroker.errors import (
    BrokerGone,
    ConcurrentUse,
    FencedInstance,
    NoCommittedOffset,
    ShmbrokerError,
    StaleMemberEpoch,
    TimedOut,
    UnknownTopic,
)

if TYPE_CHECKING:
    from shmbroker.client.client import Client

LEAVE_S: Final = 2.0  # at close(): for the last commit, and for the leave
_LOOK_S: Final = 0.02
Callback = Callable[[list[TopicPartition]], object]
#: What is done in a group's name, up to where the program's code is to be called: with what.
Steps = Generator[tuple[Callback, list[TopicPartition]], None, None]


class GroupConsumer(Checkpointing):
    """Made by `Client.consumer(group=…)`; close it, or use it as a context manager.

    Reads as a Consumer does, of the partitions that the group gives it at the time; there may be
    none. Members that come, go or fall silent move partitions between two records of this one;
    whoever keeps a partition is not stopped. Every reading call may raise, besides what a
    Consumer's does: FencedInstance (another program took this instance id, final),
    NoCommittedOffset (start="error"), and what a callback raises.
    """

    def __init__(
        self,
        client: Client,
        topics: tuple[str, ...],
        *,
        group: str,
        pattern: str | None = None,
        start: Start | Literal["error"] = "earliest",
        isolation: Literal["durable", "appended"] = "durable",
        on_gap: Literal["error", "earliest"] = "error",
        idle: Literal["adaptive", "spin", "park"] = "adaptive",
        auto_commit_ms: int | None = None,
        auto_checkpoint: bool = False,
        instance_id: str | None = None,
        assignor: Literal["sticky", "range", "roundrobin"] | None = None,
        session_timeout_ms: int | None = None,
        rebalance_timeout_ms: int | None = None,
        on_assign: Callback | None = None,
        on_revoke: Callback | None = None,
        on_lost: Callback | None = None,
    ) -> None:
        self._closed = True  # until it is whole, for __del__ and close
        check_sharing(topics, pattern, start, auto_commit_ms, auto_checkpoint)
        self._open(client, isolation, on_gap, idle)
        self._start, self._assigned_fn = start, on_assign
        self._revoked_fn, self._lost_fn = on_revoke, on_lost
        self._auto_s = None if auto_commit_ms is None else auto_commit_ms / 1000
        self._auto_at = time.monotonic() + (self._auto_s or 0.0)
        self._of: dict[Partition, PartitionReader] = {}
        self._handed: Record | RecordBatch | None = None  # the last, while it is not asked past
        self._parting, self._parted = False, threading.Event()
        self._member = Membership(
            Options(
                group,
                Subscription(tuple(topics), pattern, assignor),
                instance_id,
                session_timeout_ms,
                rebalance_timeout_ms,
                program_name(),
            )
        )
        self._heart = self._connection.heart
        self._closed = False
        try:
            if auto_checkpoint:
                self._begin_checkpoints(by_itself=True)
            if self._heart.beat(self._member):
                self._call()
            self._heart.add(self._member, self._call, self._auto_s)
        except BaseException:
            self.close()
            raise

    # --- the group -----------------------------------------------------------------------------

    @property
    def group(self) -> str:
        """Its name."""
        return self._member.options.group

    @property
    def member_id(self) -> str:
        """Who this is in the group, as `shmbroker group describe` shows it; another one after it
        was put out and has come back."""
        return self._member.member_id

    def commit(
        self,
        what: Done | None = None,
        *,
        metadata: str = "",
    ) -> dict[TopicPartition, int]:
        """Keeps how far the group has come; durable when it returns.

        Without an argument: everything that was handed out, in all partitions. `what`: a record or
        a batch (all up to it, in its partition), or {(topic, partition): the next offset to be
        read}. Returns the offsets that stand now: at most the durable end, since what lies behind
        it could still be lost with the host. Raises UnknownMember or FencedMemberEpoch (this member
        was put out: others read from its last commit on; it comes back by itself at the next read),
        StaleMemberEpoch (the partition is another member's), StoreFailed, TimedOut, BrokerGone.
        """
        return self._do(lambda: self._commit(self._offsets_of(what), metadata), attached=False)

    def committed(self) -> dict[TopicPartition, int | None]:
        """The committed offset of each partition that this member has; None: there is none."""

        def ask() -> dict[TopicPartition, int | None]:
            found = self._fetch_committed(self._of)
            return {
                key_of(reader): found[p].offset if p in found else None
                for p, reader in self._of.items()
            }

        return self._do(ask)

    # --- reading -------------------------------------------------------------------------------

    def _hand_out(self, batch: RecordBatch) -> None:
        super()._hand_out(batch)
        self._handed = batch

    def _ask(self) -> None:
        super()._ask()
        super()._unbuffer()
        self._handed = None

    def _unbuffer(self) -> None:  # a seek or a pause: what was handed out may be in work
        self._handed = self._last_record or self._handed
        super()._unbuffer()

    def _slow(self, deadline_ns: int) -> RecordBatch | None:
        while True:
            try:
                return super()._slow(deadline_ns)
            except UnknownTopic as gone:  # deleted; the group is about to take it from us
                if not any(r.topic == gone.topic for r in self._readers):
                    raise
                self._readers = [r for r in self._readers if r.topic != gone.topic]
                self._member.soon()
                self._heart.wake()

    def _attend(self) -> None:
        self._walk(self._attending())

    def _attending(self) -> Steps:
        """Sees to what the group asks; what fails is gone on with at the next read."""
        self._answer_call()
        if self._parting and not self._parted.is_set():
            yield from self._part({key_of(r): r.position for r in self._of.values()})
            return
        try:
            self._commit_if_due()
            while (task := self._member.task()) is not None:
                if task.lost:
                    yield from self._lose()
                else:
                    yield from self._follow(task.version, task.assignment)
        except BaseException:
            self._call()
            raise

    def _lose(self) -> Steps:
        """Put out: what it had is others' already, and what it had not committed is read again."""
        gone = sorted(key_of(reader) for reader in self._of.values())
        try:
            if gone and self._lost_fn is not None:
                yield self._lost_fn, gone
        finally:
            self._drop(list(self._of))
            self._member.rejoin()
            self._heart.wake()

    def _follow(self, version: int, assignment: Mapping[Partition, str]) -> Steps:
        gone = [p for p in self._of if p not in assignment]
        if gone:
            try:
                yield from self._revoke(gone)
            finally:
                self._drop(gone)
        fresh = {p: name for p, name in assignment.items() if p not in self._of}
        if fresh:
            self._add(fresh)
        self._member.took(version)
        self._heart.wake()
        if fresh and self._assigned_fn is not None:
            yield self._assigned_fn, sorted(key_of(self._of[p]) for p in fresh if p in self._of)

    def _revoke(self, gone: list[Partition]) -> Steps:
        readers = [self._of[p] for p in gone]
        if self._auto_s is not None:
            with contextlib.suppress(ShmbrokerError):  # then its successor repeats
                self._commit({key_of(r): r.position for r in readers})
        if self._revoked_fn is not None:
            yield self._revoked_fn, sorted(key_of(r) for r in readers)

    def _walk(self, steps: Steps) -> None:
        """Through all of it on this thread, inside a read: the program's code may seek and commit,
        and not read."""
        for callback, partitions in steps:
            self._calls_back = True
            try:
                callback(partitions)
            except BaseException as error:
                steps.throw(error)
            finally:
                self._calls_back = False

    def _step(
        self, steps: Steps, failed: BaseException | None
    ) -> tuple[Callback, list[TopicPartition]] | None:
        """The next step, for who calls the program's code elsewhere; `failed`: what that raised.
        Returns what is to be called, None at the end."""
        self._hold()
        try:
            return next(steps, None) if failed is None else steps.throw(failed)
        finally:
            self._let_go()

    def _add(self, fresh: Mapping[Partition, str]) -> None:
        """Readers at what the group has committed, or where `start` says."""
        known = self._fetch_committed(fresh)
        made: dict[Partition, PartitionReader] = {}
        try:
            for partition, name in fresh.items():
                with contextlib.suppress(UnknownTopic):  # deleted meanwhile: it will be taken away
                    if self._client.metadata.get(name).id == partition[0]:
                        reader = self._source.reader(name, partition[1], self._appended)
                        made[partition] = reader
                        self._all.append(reader)
            unknown = []
            for partition, reader in made.items():
                at = known.get(partition)
                if at is None:
                    unknown.append(reader)
                    continue
                self._source.seek(reader, at.offset, at.leader_epoch)
            if unknown:
                self._begin_at_start(unknown)
            self._take_slots({**self._of, **made})
        except BaseException:
            for reader in made.values():
                self._all.remove(reader)
                self._source.drop(reader)
            raise
        self._of.update(made)
        self._pause_all(self._paused)

    def _begin_at_start(self, readers: list[PartitionReader]) -> None:
        if self._start == "error":
            first = readers[0]
            raise NoCommittedOffset(
                f"group {self.group!r} has committed nothing for {first.topic}-{first.partition}, "
                "and start='error': set a place with shmbroker group reset while no member is "
                "there, or give another start",
                group=self.group,
                topic=first.topic,
                partition=first.partition,
            )
        self._begin(readers, self._start)

    def _drop(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            reader = self._of.pop(partition)
            self._drop_slots(reader)
            self._all.remove(reader)
            self._paused.discard(key_of(reader))
            self._source.drop(reader)
        self._pause_all(self._paused)

    # --- commits -------------------------------------------------------------------------------

    def _commit_if_due(self) -> None:
        if self._auto_s is None or time.monotonic() < self._auto_at:
            return
        self._auto_at = time.monotonic() + self._auto_s
        with contextlib.suppress(
            TimedOut, BrokerGone, StaleMemberEpoch, UnknownTopic, *OUT
        ):  # the next one is due; a deleted topic is about to be taken from us
            self._commit({key_of(r): r.position for r in self._of.values()})

    def _offsets_of(self, what: Done | None) -> dict[TopicPartition, int]:
        if what is None:
            return {key_of(r): self._position(r) for r in self._of.values()}
        if isinstance(what, Mapping):
            return {TopicPartition(*key): offset for key, offset in what.items()}
        key = TopicPartition(what.topic, what.partition)
        return {key: what.offset + 1 if isinstance(what, RecordLike) else what.next_offset}

    def _commit(
        self,
        offsets: Mapping[TopicPartition, int],
        metadata: str = "",
        timeout: float | None = None,
    ) -> dict[TopicPartition, int]:
        if not offsets:
            return {}
        found = {key_of(reader): (p, reader) for p, reader in self._of.items()}
        rows = []
        for key, offset in offsets.items():
            if key not in found:
                raise StaleMemberEpoch(
                    f"{key.topic}-{key.partition} is not this member's of group {self.group!r}, or "
                    "no more: nothing was committed",
                    group=self.group,
                    member=self.member_id,
                    topic=key.topic,
                    partition=key.partition,
                )
            partition, reader = found[key]
            epoch = reader.leader_epoch if reader.position == offset else -1
            rows.append(CommitRow(partition, offset, epoch, metadata))
        member = self._member
        ask = Commit(
            self.group, tuple(rows), member.member_id, member.epoch, member.options.instance_id
        )
        try:
            ok = self._connection.request("commit_offsets", timeout, **ask.to_args())
        except (*OUT, FencedInstance) as error:
            member.put_out(error)
            self._call()
            raise
        answer = CommitAnswer.from_ok(ok)
        names = {p: key for key, (p, _) in found.items()}
        for partition, refused in answer.refused.items():
            if isinstance(refused, UnknownTopic):  # it knows the id alone
                raise UnknownTopic(names[partition].topic)
            raise refused
        done = {names[p]: offset for p, offset in answer.committed.items()}
        if self._checkpoints is not None:
            for key, offset in done.items():
                self._checkpoints.committed(*key, offset)
        return done

    def _fetch_committed(self, partitions: Iterable[Partition]) -> Mapping[Partition, Committed]:
        ask = Fetch(self.group, tuple(partitions))
        ok = self._connection.request("fetch_offsets", **ask.to_args())
        return FetchAnswer.from_ok(ok).committed

    def _asked_past(self) -> dict[TopicPartition, int]:
        """Positions but for what was handed out last: nobody has asked for more since."""
        offsets = {key_of(r): self._position(r) for r in self._of.values()}
        last = self._last_record or self._handed
        if last is not None:
            key = TopicPartition(last.topic, last.partition)
            first = last.base_offset if isinstance(last, RecordBatch) else last.offset
            if key in offsets:
                offsets[key] = min(offsets[key], first)
        return offsets

    # --- its life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Commits if that happens by itself, leaves the group, and ends every wait in this
        consumer, also another thread's; twice is fine. At most some seconds, whatever the broker
        does; a static member's partitions stay its own until its session ends."""
        if not self._closed and self._pid == os.getpid():
            self._heart.remove(self._member)
            self._last_words()
        super().close()

    def _last_words(self) -> None:
        if not self._may_speak():
            return
        deadline = time.monotonic() + 2 * LEAVE_S
        while not self._parted.is_set() and time.monotonic() < deadline:
            try:
                self._hold()
            except ConcurrentUse:  # somebody reads, and says it; or gets a record, and is out soon
                if self._owner_is_here:  # closed by a callback, or by a signal's handler
                    break
                self._parting = True
                self._call()
                self._parted.wait(_LOOK_S)
                continue
            try:
                self._walk(self._part(self._asked_past()))
            finally:
                self._let_go()
        self._leave_group()

    def _may_speak(self) -> bool:
        """Whether it is in the group, and the broker there."""
        connection = self._connection
        return (
            self._member.state == "in" and not connection.closed and not connection.epoch.value & 1
        )

    def _part(self, offsets: Mapping[TopicPartition, int]) -> Steps:
        """Before this member leaves: what it did by itself is committed, and its end is told."""
        try:
            if self._auto_s is not None:
                with contextlib.suppress(ShmbrokerError):  # then its successor repeats
                    self._commit(offsets, timeout=LEAVE_S)
            if self._of and self._revoked_fn is not None:
                yield self._revoked_fn, sorted(self.assignment())
        finally:
            self._parted.set()

    def _leave_group(self) -> None:
        member = self._member
        leave = Leave(self.group, member.member_id, member.options.instance_id is not None)
        with contextlib.suppress(ShmbrokerError):
            self._connection.request("group_leave", LEAVE_S, **leave.to_args())

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, group {self.group!r}>"


def check_sharing(
    topics: tuple[str, ...],
    pattern: str | None = None,
    start: Start | Literal["error"] = "earliest",
    auto_commit_ms: int | None = None,
    auto_checkpoint: bool = False,
) -> None:
    """ValueError for what can't be, before anything is asked of the broker."""
    if not topics and pattern is None:
        raise ValueError("name at least one topic, or a pattern of names")
    if auto_commit_ms is not None and auto_commit_ms < 1:
        raise ValueError(f"auto_commit_ms is a number of milliseconds, not {auto_commit_ms}")
    if auto_commit_ms is not None and auto_checkpoint:
        raise ValueError("auto_commit_ms and auto_checkpoint do the same: choose one")
    if isinstance(start, (int, Mapping)):
        raise ValueError(
            "a group's start is 'earliest', 'latest', a datetime or 'error'; move a group with: "
            "shmbroker group reset"
        )
    if isinstance(start, str):
        one_of("start", start, ("earliest", "latest", "error"))


__all__ = ["LEAVE_S", "Done", "GroupConsumer", "Steps", "check_sharing"]
