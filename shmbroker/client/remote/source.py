"""The records of a broker elsewhere: streams into rings of this process.

Owns: which subscription each reader of one consumer has, and what its end means. Where a local
consumer finds an error in the partition's slot, this one is told by the broker; it is raised at the
same place, and the next read asks for the stream again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from shmbroker._core.feed import Feed
from shmbroker._core.reader import PartitionReader, RecordBatch
from shmbroker.client.metadata import Metadata, TopicPartition
from shmbroker.client.remote.subscription import Subscription
from shmbroker.client.source import Ends, key_of
from shmbroker.errors import LogTruncated, OffsetOutOfRange, PartitionOffline, UnknownTopic

if TYPE_CHECKING:
    from shmbroker.client.connection import Connection
    from shmbroker.client.remote.streams import Streams

#: What a feed's ring grows to by itself. Measured, one consumer from segments on loopback: see
#: docs/performance.md, remote catch-up.
FEED_BYTES: Final = 8 << 20


class RemoteSource:
    """A Source, see there."""

    #: Nothing comes so soon, and the threads that bring it want the core.
    worth_spinning_ns: int = 0

    def __init__(self, connection: Connection, metadata: Metadata, streams: Streams) -> None:
        self._connection, self._metadata, self._streams = connection, metadata, streams
        self._subscriptions: dict[PartitionReader, Subscription] = {}
        self._numbers: dict[TopicPartition, int] = {}

    def reader(self, topic: str, partition: int, appended: bool) -> PartitionReader:
        """See Source."""
        self._metadata.partition(topic, partition)  # or UnknownTopic
        self._numbers.setdefault(TopicPartition(topic, partition), next(self._streams.numbers))
        return self._nowhere(topic, partition, appended)

    def probe(self, reader: PartitionReader) -> PartitionReader:
        """See Source."""
        return self._nowhere(reader.topic, reader.partition, reader.appended)

    def bind(self, reader: PartitionReader) -> None:
        """See Source."""
        self._check(reader, fresh=False)
        self._streams.retry()

    def find(self, reader: PartitionReader) -> None:
        """See Source."""
        self._check(reader, fresh=True)

    def seek(self, reader: PartitionReader, offset: int, leader_epoch: int = -1) -> None:
        """See Source; it is the broker that looks."""
        present = self._subscriptions.get(reader)
        if present is not None and present.error is None and not present.dropped:
            if offset == reader.position:
                return
            if reader.position < offset < present.feed.next_offset:
                reader.seek(offset)  # on its way already
                return
        reader.seek(offset)
        if leader_epoch >= 0:
            reader.leader_epoch, reader.recovery = leader_epoch, reader.recovered
        self._subscribe(reader, present.topic_id if present is not None else self._id_of(reader))

    def fetch(self, reader: PartitionReader, most: int) -> RecordBatch | None:
        """See Source: all that came is in the ring, or becomes so while it is made larger."""
        present = self._subscriptions[reader]
        if not present.feed.has(reader.position):  # the reader went back behind what it had taken
            self._subscribe(reader, present.topic_id)
        return None

    def at_end(self, reader: PartitionReader) -> None:
        """See Source."""
        present = self._subscriptions[reader]
        if present.dropped:
            self._again(reader, fresh=False)
        elif present.error is not None:
            present.dropped = True  # told once; the next read asks again
            self._raise(reader, present)

    def ends(self, readers: Iterable[PartitionReader]) -> dict[TopicPartition, Ends]:
        """See Source."""
        by_topic: defaultdict[str, list[PartitionReader]] = defaultdict(list)
        for reader in readers:
            by_topic[reader.topic].append(reader)
        found = {}
        for topic, of_topic in by_topic.items():
            told = self._offsets(topic, [r.partition for r in of_topic])
            for reader in of_topic:
                said = told[reader.partition]
                end = said["log_end_offset" if reader.appended else "high_watermark"]
                found[key_of(reader)] = Ends(said["log_start_offset"], end)
        return found

    def before_time(self, reader: PartitionReader, timestamp_ms: int) -> int | None:
        """See Source."""
        told = self._offsets(reader.topic, [reader.partition], at_ms=timestamp_ms)
        offset: int | None = told[reader.partition]["offset"]
        return offset

    def drop(self, reader: PartitionReader) -> None:
        """See Source."""
        present = self._subscriptions.pop(reader, None)
        if present is not None:
            self._streams.drop(present)
        reader.close()

    def close(self) -> None:
        """See Source."""
        for reader in list(self._subscriptions):
            self.drop(reader)

    # --- subscriptions -------------------------------------------------------------------------

    def _nowhere(self, topic: str, partition: int, appended: bool) -> PartitionReader:
        number = self._numbers[TopicPartition(topic, partition)]
        feed = self._feed(number, 0, -1)
        made = PartitionReader(
            topic,
            partition,
            writer=number,
            slot=0,
            slot_epoch=1,
            table=feed.table,
            open_ring=feed.open_ring,
            appended=appended,
        )
        feed.feeds(made)
        return made

    def _feed(self, number: int, offset: int, leader_epoch: int) -> Feed:
        bell = self._streams.bell
        return Feed(self._connection.park, number, offset, leader_epoch, FEED_BYTES, bell)

    def _subscribe(self, reader: PartitionReader, topic_id: bytes) -> None:
        """A stream from the reader's position on, into a feed of its own."""
        before = self._subscriptions.get(reader)
        if before is not None:
            self._streams.drop(before)
        feed = self._feed(self._numbers[key_of(reader)], reader.position, reader.leader_epoch)
        feed.feeds(reader)
        wanted = Subscription(reader.topic, topic_id, reader.partition, reader.appended, feed)
        self._subscriptions[reader] = wanted
        self._streams.open(wanted)

    def _again(self, reader: PartitionReader, fresh: bool) -> None:
        """Asks for the stream again, of the topic as it is now. Raises UnknownTopic."""
        get = self._metadata.refresh if fresh else self._metadata.get
        topic = get(reader.topic)
        if reader.partition >= len(topic.partitions):
            raise UnknownTopic(reader.topic, reader.partition, len(topic.partitions))
        self._subscribe(reader, bytes.fromhex(topic.id))

    def _check(self, reader: PartitionReader, fresh: bool) -> None:
        """Asks again when the topic of that name is another one by now, or the words to wait on."""
        get = self._metadata.refresh if fresh else self._metadata.get
        topic, present = get(reader.topic), self._subscriptions.get(reader)
        if present is None:
            return
        same_words = present.feed.park is self._connection.park
        if not same_words or present.topic_id != bytes.fromhex(topic.id):
            self._again(reader, fresh=False)

    def _id_of(self, reader: PartitionReader) -> bytes:
        return bytes.fromhex(self._metadata.get(reader.topic).id)

    # --- the broker's words --------------------------------------------------------------------

    def _offsets(self, topic: str, partitions: list[int], **more: Any) -> dict[int, dict[str, Any]]:
        answer = self._connection.request("offsets", topic=topic, partitions=partitions, **more)
        return {said["partition"]: said for said in answer["partitions"]}

    def _raise(self, reader: PartitionReader, ended: Subscription) -> None:
        """What the stream was ended with, as a local consumer raises it."""
        error, topic, number = ended.error, reader.topic, reader.partition
        assert error is not None
        if isinstance(error, UnknownTopic):
            self._again(reader, fresh=True)  # deleted: raises; made anew: goes on there
            return
        if isinstance(error, OffsetOutOfRange):
            raise OffsetOutOfRange(
                topic, number, reader.position, error.log_start_offset, error.log_end_offset
            )
        if isinstance(error, PartitionOffline):
            raise PartitionOffline(topic, number, error.reason)
        if isinstance(error, LogTruncated):
            raise LogTruncated(
                error.message,
                topic=topic,
                partition=number,
                offset=reader.position,
                end_offset=error.end_offset,
            )
        raise error


__all__ = ["FEED_BYTES", "RemoteSource"]
