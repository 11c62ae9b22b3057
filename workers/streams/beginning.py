"""From a Subscribe to the beginning of its stream: which partition, from which offset on.

    asked ──topic and partition known──► opening ──open──► where? ──► Subscribed, a Subscription
       └──────────────┴── no such topic, out of range, truncated: Failed

Owns: one Subscribe until its stream begins. What needs the acceptor or a look into segments (a
topic not yet known, a time, an older leader epoch) is asked of `Jobs`; the rest is decided at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shmbroker.errors import OffsetOutOfRange, ShmbrokerError, UnknownTopic
from shmbroker.wire.native.stream_frames import Isolation, Start, Subscribe, Subscribed
from shmbroker.workers.streams.subscription import Subscription

if TYPE_CHECKING:
    from shmbroker.client.metadata import TopicInfo
    from shmbroker.workers.streams.partition import Partition
    from shmbroker.workers.streams.peer import Peer

_NOWHERE: Final = (1 << 63) - 1


class Beginning:
    """Stands in for a Subscription until there is one; the same names mean the same."""

    offset = _NOWHERE  # it waits for no record

    def __init__(self, peer: Peer, asked: Subscribe) -> None:
        self.peer: Final = peer
        self.number: Final = asked.subscription
        self.ended = False
        self._asked = asked
        self._partition: Partition | None = None

    def begin(self) -> None:
        """Goes as far as it can at once."""
        peer, asked = self.peer, self._asked
        topic = peer.streams.topics.get(asked.topic_id.hex())
        if topic is not None and asked.partition < len(topic.partitions):
            self._found(topic)
        else:  # a topic made since, or with more partitions by now
            peer.streams.ask_topics(self._topics_told)

    def _topics_told(self, error: Exception | None) -> None:
        if self.ended:
            return
        asked, name = self._asked, self._asked.topic_id.hex()
        topic = self.peer.streams.topics.get(name)
        if isinstance(error, ShmbrokerError):
            self.fail(error)
        elif topic is None:
            self.fail(UnknownTopic(name))
        elif asked.partition >= len(topic.partitions):
            self.fail(UnknownTopic(topic.name, asked.partition, len(topic.partitions)))
        else:
            self._found(topic)

    def _found(self, topic: TopicInfo) -> None:
        appended = self._asked.isolation is Isolation.APPENDED
        self._partition = self.peer.streams.partition(topic, self._asked.partition, appended)
        self._partition.users.add(self)
        self.resume()

    def resume(self) -> None:
        """Looks whether the partition is open, and where the stream begins."""
        partition, asked = self._partition, self._asked
        if self.ended or partition is None:
            return
        if not partition.is_open():
            partition.wait(self)
        elif asked.start is Start.EARLIEST:
            self._start(partition.ends().log_start_offset)
        elif asked.start is Start.LATEST:
            self._start(partition.reader.end)
        elif asked.start is Start.TIME:
            self.peer.streams.jobs.ask(lambda: partition.offset_for_time(asked.offset), self._told)
        elif asked.leader_epoch in (-1, partition.reader.current_epoch):
            self._start(asked.offset)  # nothing was ever cut off since that epoch began
        else:
            self.peer.streams.jobs.ask(
                lambda: partition.check_epoch(asked.offset, asked.leader_epoch), self._told
            )

    def _told(self, offset: int | None, error: Exception | None) -> None:
        if isinstance(error, ShmbrokerError):
            self.fail(error)
        elif error is not None:
            self.fail(ShmbrokerError(f"the broker failed: {type(error).__name__}: {error}"))
        elif not self.ended:
            self._start(self._asked.offset if offset is None else offset)

    def _start(self, offset: int) -> None:
        partition = self._partition
        assert partition is not None
        reader, ends = partition.reader, partition.ends()
        if not ends.log_start_offset <= offset <= max(ends.log_end_offset, reader.end):
            self.fail(OffsetOutOfRange(reader.topic, reader.partition, offset,
                                       ends.log_start_offset, ends.log_end_offset))  # fmt: skip
            return
        epoch = self._asked.leader_epoch if self._asked.start is Start.OFFSET else -1
        begun = Subscription(self.peer, self.number, partition, offset, epoch)
        partition.users.discard(self)
        self.ended = True
        self.peer.subscriptions[self.number] = begun
        self.peer.say(Subscribed(self.number, offset, ends, reader.current_epoch))
        begun.resume()

    def fail(self, error: ShmbrokerError) -> None:
        """Tells the peer, and ends."""
        if not self.ended:
            self.end()
            self.peer.failed(self.number, error)

    def end(self) -> None:
        """It won't begin; twice is fine."""
        if self.ended:
            return
        self.ended = True
        self.peer.subscriptions.pop(self.number, None)
        if self._partition is not None:
            self._partition.forget(self)
            self._partition.users.discard(self)
            self.peer.streams.left(self._partition)


__all__ = ["Beginning"]
