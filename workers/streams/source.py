"""One partition as all subscriptions of one isolation read it: its ring, its ends, its changes.

Owns: the mapped ring (one a partition, whatever the number of its readers), the one wait of all
who are at the end, and the questions about where the partition is now. The wait is a Waiter of the
Watcher's thread: it fires when the end passes the furthest-back of those who wait, or when state,
ring or place change.

Everything runs in the reader's thread but what is handed to `Jobs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from shmbroker._core import reader as core
from shmbroker._core.reader import SharedReader
from shmbroker.client.metadata import PartitionInfo, TopicInfo
from shmbroker.client.reading import Reading
from shmbroker.errors import ShmbrokerError, TimedOut, UnknownTopic
from shmbroker.wire.native.stream_frames import Ends

if TYPE_CHECKING:
    from shmbroker.client.client import Client
    from shmbroker.client.consumer import Consumer
    from shmbroker.workers.streams.jobs import Jobs
    from shmbroker.workers.streams.subscription import Subscription

_NOT_OPEN: Final = ("opening", "free")


class Source(Reading):
    """Made for the first subscription, closed with the last."""

    reader_kind = SharedReader
    reader: SharedReader

    def __init__(
        self,
        client: Client,
        watcher: core.Watcher,
        jobs: Jobs,
        topic: TopicInfo,
        partition: int,
        appended: bool,
    ) -> None:
        super().__init__(client, earliest_on_gap=False, spin_ns=0)
        self.topic_id: Final = topic.id
        self.place: PartitionInfo = topic.partitions[partition]
        self.users: set[Subscription] = set()
        self._waiting: set[Subscription] = set()
        self._watcher, self._jobs = watcher, jobs
        self._waiter: core.Waiter | None = None
        self._asking = False
        reader = self._reader(self.place, appended)
        assert isinstance(reader, SharedReader)
        self.reader = reader
        self._all = self._readers = [reader]

    @property
    def name(self) -> str:
        """For errors and `status`."""
        return f"{self.reader.topic}-{self.reader.partition}"

    def ends(self) -> Ends:
        """Where the partition begins and ends now."""
        return Ends(*self.reader.ends())

    def is_open(self) -> bool:
        """Whether the partition can be read here. False: `wait`, something will change."""
        state = self.reader.look()
        if not self.reader.bound:
            if not self.reader.unborn:
                self.ask_place()
            return False
        if state == "closed" and self.reader.settled < 0:
            self.ask_place()
        return state not in _NOT_OPEN

    def wait(self, subscription: Subscription) -> None:
        """Has `subscription` resumed when there is more behind its offset, or another state."""
        self._waiting.add(subscription)
        if self._waiter is None:
            self._watch()

    def _watch(self) -> None:
        # Whoever waits has seen the end at its offset, so the lowest of them is the first to go on.
        self.reader.seek(min(one.offset for one in self._waiting))
        self._waiter = self._watcher.watch(self)

    def forget(self, subscription: Subscription) -> None:
        """It waits no more; unknown is fine."""
        self._waiting.discard(subscription)

    def look(self) -> None:
        """Resumes those who wait if their wait is over."""
        if self._waiter is not None and self._waiter.fired:
            self.reader.unborn, self.reader.settled = False, -1
            self.resume()

    def resume(self) -> None:
        """Everyone who waits looks again."""
        if self._waiter is not None:
            self._waiter.off()
            self._waiter = None
        waiting, self._waiting = self._waiting, set()
        for one in waiting:
            one.resume()

    def reason(self) -> str:
        """Why the partition is offline. Asks the acceptor."""
        return self._reason(self.reader)

    def check_epoch_at(self, offset: int, leader_epoch: int) -> None:
        """Raises LogTruncated as `Reading.check_epoch`. Reads; the reader's thread may go on."""
        with self._consumer() as consumer:
            consumer.check_epoch(offset, leader_epoch)

    def offset_for_time(self, timestamp_ms: int) -> int:
        """The offset of the first record of that time or later, else the end. Reads, as above."""
        with self._consumer() as consumer:
            (found,) = consumer.offsets_for_time(timestamp_ms).values()
            (end,) = consumer.end_offsets().values()
            return end if found is None else found

    def _consumer(self) -> Consumer:
        """One of its own, since a PartitionReader belongs to one thread."""
        isolation: Literal["durable", "appended"] = (
            "appended" if self.reader.appended else "durable"
        )
        return self._client.consumer(
            self.reader.topic,
            partitions=[self.reader.partition],
            start=0,
            isolation=isolation,
            idle="park",
        )

    def ask_place(self) -> None:
        """Asks where the partition is by now; who uses it is resumed, or fails with what is said."""
        if not self._asking:
            self._asking = True
            topic = self.reader.topic
            self._jobs.ask(lambda: self._client.metadata.refresh(topic), self._placed)

    def _placed(self, topic: TopicInfo | None, error: Exception | None) -> None:
        self._asking = False
        if self._stopped:
            return
        try:
            if error is not None:
                raise error
            assert topic is not None
            if topic.id != self.topic_id:  # made anew under the same name
                raise UnknownTopic(topic.name)
            self._bind(self.reader, topic.partitions)
            self.place = topic.partitions[self.reader.partition]
            self.reader.unborn = not self.reader.bound  # its writer has yet to take it up
            if self.reader.look() == "closed":
                self.reader.settled = core.STATE_NAMES.index("closed")
        except UnknownTopic as gone:
            self.fail(gone)
        except TimedOut:
            self.resume()  # the broker is busy: they ask again
        except ShmbrokerError:
            pass  # this process is closing, or the broker is gone, and this process with it
        else:
            self.resume()

    def fail(self, error: ShmbrokerError) -> None:
        """Ends every subscription with `error`."""
        for one in list(self.users):
            one.fail(error)

    def close(self) -> None:
        """Unmaps the ring."""
        self._stop_waits()
        if self._waiter is not None:
            self._waiter.off()
            self._waiter = None
        self.reader.close()


__all__ = ["Source"]
