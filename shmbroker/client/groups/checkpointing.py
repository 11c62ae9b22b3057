"""Checkpoints of a group's consumer: `checkpoint()`, and positions that are stored by themselves.

Owns: which partitions of the member have a slot in shared memory, and what a program may store
there. The slots are `client/checkpoints.py`'s; what a crash of whom repeats stands in
docs/groups.md. Everything here happens on the thread that reads.

Invariants: a position is stored by itself only when it was handed out and asked past; nothing is
stored for a partition that this member has not, or has no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from shmbroker._core.checkpoint import Checkpoints
from shmbroker._core.reader import PartitionReader
from shmbroker.client.checkpoints import MemberCheckpoints
from shmbroker.client.consumer import Consumer
from shmbroker.client.groups.membership import OUT, Membership
from shmbroker.client.metadata import TopicPartition
from shmbroker.control.groups.values import Partition
from shmbroker.errors import StaleMemberEpoch


@runtime_checkable
class RecordLike(Protocol):
    """A Record, decoded or not."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...


class BatchLike(Protocol):
    """A RecordBatch, decoded or not."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def next_offset(self) -> int: ...


Done = RecordLike | BatchLike | Mapping[TopicPartition, int]


class Checkpointing(Consumer):
    """A Consumer with the partitions of a group's member. Not for users: see GroupConsumer."""

    _of: dict[Partition, PartitionReader]
    _member: Membership
    _through_memory: MemberCheckpoints | None = None

    def checkpoint(self, what: Done | None = None) -> None:
        """Keeps how far the group has come, in shared memory: a store, without a system call.

        `what` is as in `commit`: a record or a batch (all up to it, in its partition),
        {(topic, partition): the next offset to be read}, or nothing: everything that was handed
        out, in all partitions. Returns at once; the broker makes it durable within
        `offsets_flush_ms` (100 ms), at most up to the durable end, without metadata.

        What a crash can repeat: a SIGKILL of this program, of the broker, or of both, nothing of
        what was checkpointed. The host's crash, what was checkpointed in the last
        `offsets_flush_ms`. A broker that is stopped in order, and this program's death before it is
        attached to the next one: what was checkpointed in between. Nothing is ever skipped. What a
        member stores after it was put out counts for nothing: others read from its last checkpoint
        before that on.

        The first call of a consumer asks the broker for the memory. Raises NotSupported (a broker
        elsewhere: use `commit`), MemoryBudget (there is no room for it: likewise), StaleMemberEpoch
        (the partition is not this member's, or no more; nothing was stored for it). Not
        thread-safe, as all of a consumer; may be called in `on_revoke`, and counts.
        """
        if not self._store_record(what):
            self._checkpoint(what)

    def _checkpoint(self, what: Done | None) -> None:
        self._check()
        slots = self._checkpoints
        if slots is None:
            slots = self._begin_checkpoints(by_itself=False)
        if what is None:
            slots.store_handed()
        elif isinstance(what, Mapping):
            for (topic, partition), offset in what.items():
                self._store(slots, topic, partition, offset)
        else:
            after = what.offset + 1 if isinstance(what, RecordLike) else what.next_offset
            self._store(slots, what.topic, what.partition, after)

    def _store(self, slots: Checkpoints, topic: str, partition: int, offset: int) -> None:
        if not slots.store(topic, partition, offset):
            raise StaleMemberEpoch(
                f"{topic}-{partition} is not this member's of group {self._group_name!r}, or no "
                "more: nothing was stored",
                group=self._group_name,
                member=self._member.member_id,
                topic=topic,
                partition=partition,
            )

    def _begin_checkpoints(self, by_itself: bool) -> Checkpoints:
        """From now on there are slots. Raises NotSupported, MemoryBudget."""
        made = MemberCheckpoints(self._connection, self, self._group_name, by_itself)
        self._through_memory = made
        try:
            self._take_slots(self._of)
        except BaseException:
            made.end()
            self._through_memory = None
            raise
        self._track()
        return made.slots

    def _take_slots(self, partitions: Mapping[Partition, PartitionReader]) -> None:
        """The member has these: each gets a slot, if there are any."""
        memory, member = self._through_memory, self._member
        if memory is None or not partitions:
            return
        taken = [(reader.topic, topic_id, n) for (topic_id, n), reader in partitions.items()]
        try:
            memory.take(taken, member.member_id, member.epoch)
        except OUT as error:  # the next read lets all of it go, and joins anew
            member.put_out(error)
            self._call()

    def _drop_slots(self, reader: PartitionReader) -> None:
        """The member lets it go."""
        if self._through_memory is not None:
            self._through_memory.slots.drop(reader.topic, reader.partition)

    def _rebind(self, epoch: int) -> None:
        super()._rebind(epoch)
        memory, member = self._through_memory, self._member
        if memory is not None:
            try:
                memory.reattached()
            except OUT as error:
                member.put_out(error)
                self._call()

    @property
    def _group_name(self) -> str:
        return self._member.options.group


__all__ = ["BatchLike", "Checkpointing", "Done", "RecordLike"]
