"""Where a consumer's records come from: what differs between a broker here and one elsewhere.

Owns: the interface between the two. A connection supplies one Source to each consumer of its: rings
and segment files of this host (`local_source.py`), or streams into rings of this process
(`remote/source.py`). The consumer itself, its waits and its fast path are the same for both.

A Source belongs to its consumer: it is called by the thread that is inside it, and by `close`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from shmbroker._core.reader import PartitionReader, RecordBatch
from shmbroker.client.metadata import TopicPartition


class Ends(NamedTuple):
    """What a consumer may read of a partition."""

    start: int  # the first offset, inclusive
    end: int  # one past the last that its isolation shows


class Source(Protocol):
    """See the module."""

    worth_spinning_ns: int  # before a sleep: a record that comes soon comes within this

    def reader(self, topic: str, partition: int, appended: bool) -> PartitionReader:
        """A reader of the partition that is nowhere yet: `seek` follows. Raises UnknownTopic."""

    def bind(self, reader: PartitionReader) -> None:
        """After an attach: the reader goes on where its partition is now. Raises UnknownTopic."""

    def find(self, reader: PartitionReader) -> None:
        """As `bind`, for one whose place is another partition's now: asks the broker anew."""

    def seek(self, reader: PartitionReader, offset: int, leader_epoch: int = -1) -> None:
        """Has the reader go on at `offset`; never blocks.

        `leader_epoch`: the record before was read under it, and is missed (LogTruncated) if it is
        another one by now; -1: not known."""

    def fetch(self, reader: PartitionReader, most: int) -> RecordBatch | None:
        """What is visible and not in the ring, about `most` bytes; None: look again.

        Raises OffsetOutOfRange and CorruptBatch."""

    def at_end(self, reader: PartitionReader) -> None:
        """Nothing more is visible: raises when waiting for it makes no sense as things are.

        PartitionOffline, UnknownTopic; what a stream was ended with."""

    def ends(self, readers: Iterable[PartitionReader]) -> dict[TopicPartition, Ends]:
        """Where these partitions begin and end now."""

    def before_time(self, reader: PartitionReader, timestamp_ms: int) -> int | None:
        """An offset not far in front of the first record of that time; None when there is none."""

    def probe(self, reader: PartitionReader) -> PartitionReader:
        """Another reader of the same partition, to look around with; waits end as that one's."""

    def drop(self, reader: PartitionReader) -> None:
        """Lets go of a reader and what it has mapped. Never waits."""

    def close(self) -> None:
        """Lets go of what else there is. Never waits."""


def key_of(reader: PartitionReader) -> TopicPartition:
    """What a reader reads."""
    return TopicPartition(reader.topic, reader.partition)


__all__ = ["Ends", "Source", "key_of"]
