"""The consumer: records of some partitions, in order within each, waiting for more.

Owns: where each partition is read (its position: the offset of the next record to be handed out),
and what is paused. The ordinary way of a record is `_core/reader.pyx`, without Python in between;
`reading.py` has the rest.

Nothing is remembered in the broker: a new consumer begins where `start` says. It belongs to one
thread at a time (ConcurrentUse); only `close` may come from another.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from shmbroker._core import reader as core
from shmbroker._core.reader import PartitionReader, RecordBatch
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.reading import Reading, key_of
from shmbroker.errors import ClosedError, TimedOut

if TYPE_CHECKING:
    from types import TracebackType

    from shmbroker.client.client import Client

Start = Literal["latest", "earliest"] | int | Mapping[int, int] | datetime
Where = int | tuple[str, int]  # a partition: its number where there is one topic, or with the topic
T = TypeVar("T")

_SPIN_NS: Final = {"spin": 1 << 62, "adaptive": 30_000, "park": 0}


class Consumer(Reading):
    """Made by `Client.consumer`; close it, or use it as a context manager.

    Iterating gives a Record at a time and waits for more; it ends when another thread closes the
    consumer. Every reading call raises, and may be repeated after: BrokerGone (the broker did not
    come back), OffsetOutOfRange (retention took the next record: `seek`), LogTruncated (appended
    records were lost with the host: `seek`), PartitionOffline, UnknownTopic (deleted),
    CorruptBatch.
    """

    def __init__(
        self,
        client: Client,
        topics: tuple[str, ...],
        *,
        partitions: list[int] | None = None,
        start: Start = "latest",
        isolation: Literal["durable", "appended"] = "durable",
        on_gap: Literal["error", "earliest"] = "error",
        idle: Literal["adaptive", "spin", "park"] = "adaptive",
    ) -> None:
        self._closed = True  # until it is whole, for __del__ and close
        self._pid = os.getpid()
        _one_of("isolation", isolation, ("durable", "appended"))
        _one_of("on_gap", on_gap, ("error", "earliest"))
        _one_of("idle", idle, tuple(_SPIN_NS))
        if not topics:
            raise ValueError("name at least one topic: client.consumer('ticks')")
        cores = len(os.sched_getaffinity(0))
        spin_ns = _SPIN_NS[idle] if idle == "spin" or cores > 1 else 0
        super().__init__(client, on_gap == "earliest", spin_ns)
        self._closed = True
        self._paused: set[TopicPartition] = set()
        for topic in dict.fromkeys(topics):
            info = client.metadata.get(topic)
            wanted = range(len(info.partitions)) if partitions is None else partitions
            for number in dict.fromkeys(wanted):
                place = client.metadata.partition(topic, number)
                self._all.append(self._reader(place, isolation == "appended"))
        self._readers = list(self._all)
        self._closed = False
        try:
            self._begin(start)
        except BaseException:
            self.close()
            raise

    # --- reading -------------------------------------------------------------------------------

    def batches(self, timeout: float | None = None) -> Iterator[RecordBatch]:
        """Batches of consecutive records of one partition each, up to about 1 MiB.

        Ends after `timeout` seconds without a record (None: never), or when another thread closes
        the consumer. `position` is behind what was handed out.
        """
        core.deadline(timeout)  # raises for nonsense now, not at the first batch
        return self._batches(timeout)

    def _batches(self, timeout: float | None) -> Iterator[RecordBatch]:
        while True:
            try:
                batch = self._next_batch(core.deadline(timeout))
            except ClosedError:
                if not self._closed_while_inside:
                    raise
                return
            if batch is None:
                return
            yield batch

    # --- positions -----------------------------------------------------------------------------

    def assignment(self) -> list[TopicPartition]:
        """What this consumer reads, paused or not."""
        return [key_of(r) for r in self._all]

    def position(self, partition: Where | None = None) -> int:
        """The offset of the next record of a partition; it may be left out where there is one."""
        return self._do(lambda: self._position(self._find(partition)), attached=False)

    def seek(
        self, offset: int | Literal["earliest", "latest"] | datetime, partition: Where | None = None
    ) -> None:
        """Goes on at `offset` of a partition, which may be left out where there is only one.

        An offset that is not there is told of by the next read (OffsetOutOfRange).
        """

        def move() -> None:
            reader = self._find(partition)
            if isinstance(offset, int) and offset < 0:
                raise ValueError(f"offsets begin at 0: {offset}")
            self._unbuffer()
            reader.seek(self._offset_for(reader, offset))

        self._do(move)

    def beginning_offsets(self) -> dict[TopicPartition, int]:
        """The first offset of each partition that may be read, inclusive."""
        return self._each(lambda r: r.log_start_offset)

    def end_offsets(self) -> dict[TopicPartition, int]:
        """One past the last offset that this consumer's isolation lets it see."""
        return self._each(lambda r: r.end)

    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets there are from the position to the end."""
        return self._each(lambda r: max(0, r.end - self._position(r)))

    def offsets_for_time(self, when: datetime | int) -> dict[TopicPartition, int | None]:
        """The first offset whose timestamp is `when` (datetime, or ms since 1970 UTC) or later."""
        return self._each(lambda r: self._offset_for_time(r, _ms(when)))

    def pause(self, *partitions: Where) -> None:
        """Hands out nothing of these partitions (all, without arguments) until `resume`."""

        def stop() -> None:
            self._unbuffer()
            self._paused |= {key_of(self._find(p)) for p in partitions or self.assignment()}
            self._readers = [r for r in self._all if key_of(r) not in self._paused]

        self._do(stop)

    def resume(self, *partitions: Where) -> None:
        """Goes on with these partitions (all, without arguments) where they were paused."""

        def go_on() -> None:
            self._paused -= {key_of(self._find(p)) for p in partitions or self.assignment()}
            self._readers = [r for r in self._all if key_of(r) not in self._paused]

        self._do(go_on)

    # --- its life ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def close(self) -> None:
        """Ends every wait in this consumer, also another thread's; twice is fine."""
        if self._pid != os.getpid():
            self._connection.check("this consumer")
        if self._closed:
            return
        self._closed = True
        self._stop_waits()
        self._connection.notify()
        self._await_leave()
        for reader in self._all:
            reader.close()
        for files in self._files.values():
            files.close()

    def __enter__(self) -> Consumer:
        self._connection.check("this consumer")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._pid == os.getpid():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        what = ", ".join(f"{r.topic}-{r.partition}" for r in self._all[:4])
        more = f" and {len(self._all) - 4} more" if len(self._all) > 4 else ""
        return f"<shmbroker.Consumer of {what}{more}{', closed' if self._closed else ''}>"

    # --- offsets -------------------------------------------------------------------------------

    def _begin(self, start: Start) -> None:
        if isinstance(start, int) and len(self._all) > 1:
            numbers = ", ".join(f"{r.partition}: {start}" for r in self._all[:2])
            raise ValueError(
                f"start={start} is one offset for {len(self._all)} partitions; give each its own: "
                f"start={{{numbers}, …}}"
            )
        if isinstance(start, Mapping):
            if len({r.topic for r in self._all}) > 1:
                raise ValueError("a start by partition is for one topic; make a consumer for each")
            numbered = {r.partition for r in self._all}
            if set(start) != numbered:
                raise ValueError(
                    f"start names the partitions {sorted(start)}, and the consumer reads "
                    f"{sorted(numbered)}"
                )
        deadline_ns = core.deadline(self._connection.timeout)
        while waits := [r for r in self._all if not _is_open(r)]:
            epoch = self._connection.attached()
            if epoch != self._seen:
                self._rebind(epoch)
            elif not self._wait(deadline_ns):
                raise TimedOut(f"{waits[0].topic}-{waits[0].partition} is still being recovered")
        for reader in self._all:
            asked = start[reader.partition] if isinstance(start, Mapping) else start
            reader.seek(self._offset_for(reader, asked))

    def _offset_for(self, reader: PartitionReader, asked: int | str | datetime) -> int:
        if isinstance(asked, datetime):
            found = self._offset_for_time(reader, _ms(asked))
            return reader.end if found is None else found
        if isinstance(asked, int) and not isinstance(asked, bool):
            return asked
        if asked == "latest":
            return reader.end
        if asked == "earliest":
            return reader.log_start_offset
        raise ValueError(f"{asked!r} is no place: 'latest', 'earliest', an offset or a datetime")

    def _offset_for_time(self, reader: PartitionReader, timestamp_ms: int) -> int | None:
        position, epoch = reader.position, reader.leader_epoch
        try:
            first = self._files_of(reader).offset_for_time(reader, timestamp_ms)
            reader.seek(max(first, reader.log_start_offset))
            while reader.position < reader.end:
                batch = self._fetch_one(reader)
                if batch is None:
                    return None
                for offset, stamp in zip(batch.offsets(), batch.timestamps(), strict=True):
                    if stamp >= timestamp_ms:
                        return offset
            return None
        finally:
            reader.seek(position)
            reader.leader_epoch = epoch

    def _position(self, reader: PartitionReader) -> int:
        record = self._next_buffered
        if record is not None and (record.topic, record.partition) == key_of(reader):
            return record.offset
        return reader.position

    def _find(self, partition: Where | None) -> PartitionReader:
        found = [
            r
            for r in self._all
            if partition is None
            or (r.partition == partition if isinstance(partition, int) else key_of(r) == partition)
        ]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ValueError(f"this consumer does not read partition {partition!r}")
        raise ValueError(f"say which partition: one of {[tuple(key_of(r)) for r in found]}")

    def _each(self, of: Callable[[PartitionReader], T]) -> dict[TopicPartition, T]:
        return self._do(lambda: {key_of(r): of(r) for r in self._all})

    def _do(self, call: Callable[[], T], attached: bool = True) -> T:
        """Runs a call that is not for two threads at once, if need be on readers that are bound."""
        self._hold()
        try:
            if attached:
                epoch = self._connection.attached(given_up=lambda: self._closed)
                if epoch != self._seen:
                    self._rebind(epoch)
            return call()
        finally:
            self._let_go()


def _is_open(reader: PartitionReader) -> bool:
    return reader.look() not in ("opening", "free") and reader.bound


def _ms(when: datetime | int) -> int:
    return int(when.timestamp() * 1000) if isinstance(when, datetime) else when


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))}, not {value!r}")


__all__ = ["Consumer", "Start", "Where"]
