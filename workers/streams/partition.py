"""One partition as all subscriptions of one isolation read it: its ring, its ends, its changes.

Owns: the mapped ring (one a partition, whatever the number of its readers), the one wait of all
who are at the end, and the questions about where the partition is now. The wait is a Waiter of the
Watcher's thread: it fires when the end passes the furthest-back of those who wait, or when state,
ring or place change.

Everything runs in the reader's thread but what is handed to `Jobs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

from shmbroker._core import reader as core
from shmbroker._core.reader import RecordStream, SharedReader
from shmbroker.client.local_source import LocalSource
from shmbroker.client.metadata import TopicInfo
from shmbroker.errors import ShmbrokerError, TimedOut, UnknownTopic
from shmbroker.wire.native.stream_frames import Ends

if TYPE_CHECKING:
    from shmbroker.client.client import Client
    from shmbroker.client.consumer import Consumer
    from shmbroker.workers.streams.jobs import Jobs

_NOT_OPEN: Final = ("opening", "free")
_CLOSED: Final = core.STATE_NAMES.index("closed")


class User(Protocol):
    """A subscription, or one that is about to begin."""

    @property
    def offset(self) -> int:
        """The next one wanted."""

    def resume(self) -> None:
        """There is something to look at."""

    def fail(self, error: ShmbrokerError) -> None:
        """It has ended."""


class _Shared(LocalSource):
    kind = SharedReader


class Partition(RecordStream):
    """Made for the first subscription, closed with the last. As a RecordStream it only waits."""

    def __init__(
        self,
        client: Client,
        watcher: core.Watcher,
        jobs: Jobs,
        topic: TopicInfo,
        partition: int,
        appended: bool,
    ) -> None:
        connection = client.connection
        self._epoch, self._seen = connection.epoch, connection.epoch.value
        self._park_map = connection.park  # stays mapped
        self._park = self._park_map.address
        self._client, self._watcher, self._jobs = client, watcher, jobs
        self._source = _Shared(connection, client.metadata)
        reader = self._source.reader_at(topic.partitions[partition], appended)
        assert isinstance(reader, SharedReader)
        self.reader: Final = reader
        self.topic_id: Final = topic.id
        self.directory = topic.partitions[partition].directory
        self.users: set[User] = set()
        self._all = self._readers = [reader]
        self._waiting: set[User] = set()
        self._waiter: core.Waiter | None = None
        self._asking = False

    @property
    def name(self) -> str:
        """For errors and `status`."""
        return f"{self.reader.topic}-{self.reader.partition}"

    def ends(self) -> Ends:
        """Where the partition begins and ends now."""
        return Ends(*self.reader.ends())

    # --- changes -------------------------------------------------------------------------------

    def is_open(self) -> bool:
        """Whether the partition can be read here. False: `wait`, something will change."""
        reader = self.reader
        state = reader.look()
        if not reader.bound:
            if not reader.unborn:
                self.ask_place()
            return False
        if state == "closed" and reader.settled < 0:
            self.ask_place()
        return state not in _NOT_OPEN

    def wait(self, user: User) -> None:
        """Has `user` resumed when there is more behind its offset, or another state."""
        self._waiting.add(user)
        if self._waiter is None:
            # Whoever waits has seen the end at its offset, so the lowest is the first to go on;
            # who comes later stands at the same end, or further.
            self.reader.seek(min(one.offset for one in self._waiting))
            self._waiter = self._watcher.watch(self)

    def forget(self, user: User) -> None:
        """It waits no more; unknown is fine."""
        self._waiting.discard(user)

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

    def ask_place(self) -> None:
        """Asks where the partition is by now; who uses it is resumed, or fails with the answer."""
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
            self._move(topic)
        except UnknownTopic as gone:
            for one in list(self.users):
                one.fail(gone)
        except TimedOut:
            self.resume()  # the broker is busy: they ask again
        except ShmbrokerError:
            pass  # this process is closing, or the broker is gone, and this process with it
        else:
            self.resume()

    def _move(self, topic: TopicInfo) -> None:
        reader = self.reader
        self._source.bind_to(reader, topic)
        self.directory = topic.partitions[reader.partition].directory
        reader.unborn = not reader.bound  # its writer has yet to take it up
        if reader.look() == "closed":
            reader.settled = _CLOSED

    def close(self) -> None:
        """Unmaps the ring."""
        self._stop_waits()
        if self._waiter is not None:
            self._waiter.off()
            self._waiter = None
        self._source.drop(self.reader)

    # --- for Jobs: what waits, or reads --------------------------------------------------------

    def reason(self) -> str:
        """Why the partition is offline. Asks the acceptor."""
        return self._source.reason(self.reader)

    def check_epoch(self, offset: int, leader_epoch: int) -> None:
        """Raises LogTruncated as `Reading._check_epoch`."""
        with self._consumer() as consumer:
            consumer._check_epoch(offset, leader_epoch)

    def offset_for_time(self, timestamp_ms: int) -> int:
        """The offset of the first record of that time or later, else the end."""
        with self._consumer() as consumer:
            (found,) = consumer.offsets_for_time(timestamp_ms).values()
            (end,) = consumer.end_offsets().values()
            return end if found is None else found

    def _consumer(self) -> Consumer:
        """One of its own, since a PartitionReader belongs to one thread."""
        reader = self.reader
        isolation: Literal["durable", "appended"] = "appended" if reader.appended else "durable"
        return self._client.consumer(
            reader.topic, partitions=[reader.partition], start=0, isolation=isolation, idle="park"
        )


__all__ = ["Partition", "User"]
