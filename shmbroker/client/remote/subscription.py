"""One partition of one consumer as the receiver knows it: what is asked for, and into which feed.

Owns: what consumer and receiver tell each other. The consumer makes it and reads `error` after the
feed was closed; all else is the receiver's (`streams.py`), in its thread. A seek makes a new one,
so nothing of an older stream can get into what is read now.
"""

from __future__ import annotations

from shmbroker._core.feed import Feed
from shmbroker.errors import ShmbrokerError
from shmbroker.wire.native.stream_frames import Isolation, Subscribe


class Subscription:
    """See the module."""

    __slots__ = (
        "appended", "counted_bytes", "dropped", "error", "feed", "limit_bytes", "number",
        "partition", "topic", "topic_id",
    )  # fmt: skip

    def __init__(
        self, topic: str, topic_id: bytes, partition: int, appended: bool, feed: Feed
    ) -> None:
        """Of the records from where `feed` begins on."""
        self.topic, self.topic_id, self.partition = topic, topic_id, partition
        self.appended, self.feed = appended, feed
        self.error: ShmbrokerError | None = None  # why it ended; set before the feed is closed
        self.dropped = False  # by the consumer: nobody reads it any more
        self.number = 0  # on its connection; 0: on none
        self.limit_bytes = 0  # of credit, since it began on its connection
        self.counted_bytes = 0  # of its ring, in the receiver's sum

    def asked(self, number: int, spare_bytes: int) -> Subscribe:
        """How it is asked for on a connection: behind what came on the one before."""
        feed = self.feed
        feed.begin()
        self.number, self.limit_bytes = number, feed.grant(spare_bytes)
        return Subscribe(
            number,
            self.topic_id,
            self.partition,
            feed.next_offset,
            self.limit_bytes,
            feed.leader_epoch,
            Isolation.APPENDED if self.appended else Isolation.DURABLE,
        )

    def fail(self, error: ShmbrokerError) -> None:
        """It has ended: the consumer is told when it has read what came."""
        self.number, self.error = 0, error
        self.feed.close()


__all__ = ["Subscription"]
