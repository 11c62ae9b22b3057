"""The consumer: records of some partitions, in order within each, waiting for more.

Owns: where each partition is read (its position: the offset of the next record to be handed out), what
is paused, and what to do when reading is not just reading: the file has it and not the ring, the
broker is gone, a partition moved, went offline or was deleted, retention took records, or the host
lost them. The ordinary way is `_core/reader.pyx`, without Python in between.

Nothing is remembered in the broker: a new consumer begins where `start` says. It belongs to one
thread at a time (ConcurrentUse); only `close` may come from another.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from shmbroker._core import reader as core
from shmbroker._core import shm
from shmbroker._core.reader import PartitionReader, RecordBatch, RecordStream
from shmbroker.client.metadata import PartitionInfo, TopicPartition
from shmbroker.errors import (
    ClosedError,
    CorruptBatch,
    LogTruncated,
    OffsetOutOfRange,
    PartitionOffline,
    ShmbrokerError,
    TimedOut,
    UnknownTopic,
)
from shmbroker.log import names
from shmbroker.log.reader import SegmentReader, open_shared

if TYPE_CHECKING:
    from types import TracebackType

    from shmbroker.client.client import Client

Start = Literal["latest", "earliest"] | int | Mapping[int, int] | datetime
Where = int | tuple[str, int]  # a partition: its number where there is one topic, or with the topic
T = TypeVar("T")

FETCH_BYTES: Final = 1 << 20  # a fetch takes whole batches up to this, or one larger one
_SPIN_NS: Final = {"spin": 1 << 62, "adaptive": 30_000, "park": 0}
_NEVER_NS: Final = core.deadline(None)
_TRIES: Final = 200  # what is visible and found nowhere for so long is damage, not a race


class Consumer(RecordStream):
    """Made by `Client.consumer`; close it, or use it as a context manager.

    Iterating gives a Record at a time and waits for more; it ends when another thread closes the
    consumer. Every reading call raises, and may be repeated after: BrokerGone (the broker did not
    come back), OffsetOutOfRange (retention took the next record: `seek`), LogTruncated (appended
    records were lost with the host: `seek`), PartitionOffline, UnknownTopic (deleted), CorruptBatch.
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
        self._closed = True  # until it is whole, for __del__
        self._client, self._connection = client, client.connection
        self._pid = os.getpid()
        _one_of("isolation", isolation, ("durable", "appended"))
        _one_of("on_gap", on_gap, ("error", "earliest"))
        _one_of("idle", idle, tuple(_SPIN_NS))
        if not topics:
            raise ValueError("name at least one topic: client.consumer('ticks')")
        cores = len(os.sched_getaffinity(0))
        self._spin_ns = _SPIN_NS[idle] if idle == "spin" or cores > 1 else 0
        self._most = FETCH_BYTES
        self._earliest_on_gap = on_gap == "earliest"
        self._epoch = self._connection.epoch
        self._seen = self._connection.attached()
        self._park_map = self._connection.park
        self._park = self._park_map.address
        self._turn_slow = 0
        self._paused: set[TopicPartition] = set()
        self._files: dict[TopicPartition, _Files] = {}
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
        return [_key(r) for r in self._all]

    def position(self, partition: Where | None = None) -> int:
        """The offset of the next record of a partition; it may be left out where there is one."""
        return self._do(lambda: self._position(self._find(partition)))

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
            self._paused |= {_key(self._find(p)) for p in partitions or self.assignment()}
            self._readers = [r for r in self._all if _key(r) not in self._paused]

        self._do(stop)

    def resume(self, *partitions: Where) -> None:
        """Goes on with these partitions (all, without arguments) where they were paused."""

        def go_on() -> None:
            self._paused -= {_key(self._find(p)) for p in partitions or self.assignment()}
            self._readers = [r for r in self._all if _key(r) not in self._paused]

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

    # --- what is out of the ordinary -----------------------------------------------------------

    def _slow(self, deadline_ns: int) -> RecordBatch | None:
        """RecordStream's other half: sorts out why nothing came, until something does."""
        while True:
            if self._closed:
                raise ClosedError("this consumer is closed")
            epoch = self._epoch.value
            if not epoch & 1 and epoch != self._seen:
                self._rebind(epoch)
            readers = self._readers
            for n in range(len(readers)):
                reader = readers[(self._turn_slow + n) % len(readers)]
                batch = self._fetch_slow(reader)
                if batch is not None:
                    self._turn_slow += n + 1
                    return batch
            if epoch & 1:
                if not self._await_broker(deadline_ns):
                    return None
                continue
            if deadline_ns <= core.monotonic_ns():
                return None
            batch = self._quick(deadline_ns)
            if batch is not None:
                return batch

    def _fetch_slow(self, reader: PartitionReader) -> RecordBatch | None:
        """What the partition has for us, wherever it is; None when there is nothing (yet)."""
        if reader.leader_epoch >= 0 and reader.recovery != reader.recovered:
            self._verify(reader)
        for _ in range(_TRIES):
            try:
                batch = reader.fetch(self._most)
                if batch is None and reader.bound and reader.look() != "opening":
                    if reader.position >= reader.end:
                        return self._at_end(reader)
                    batch = self._files_of(reader).fetch(reader, self._most)
            except OffsetOutOfRange as gap:
                start = reader.log_start_offset
                if reader.position < start and self._earliest_on_gap:
                    reader.seek(start)
                elif reader.position < start or gap.log_end_offset >= 0:
                    raise
                continue  # a segment was retired before the log start was seen to move
            if batch is not None:
                return batch
            if not reader.bound:
                self._bind(reader, self._client.metadata.refresh(reader.topic).partitions)
            elif reader.look() == "opening":
                return None
            os.sched_yield()
        if self._epoch.value != self._seen:
            return None
        raise CorruptBatch(
            f"{reader.topic}-{reader.partition} says that it has records up to {reader.end}, but "
            f"offset {reader.position} is neither in memory nor on disk; look with: "
            f"shmbroker log dump"
        )

    def _at_end(self, reader: PartitionReader) -> None:
        """Whether waiting for more makes sense in the state that the partition is in."""
        state = reader.look()
        if state == "offline":
            raise PartitionOffline(reader.topic, reader.partition, self._reason(reader))
        if state in ("closed", "free"):
            if not self._connection.closing and self._epoch.value == self._seen:
                places = self._client.metadata.refresh(reader.topic).partitions  # or UnknownTopic
                self._bind(reader, places)
                reader.look()
            reader.settled = core.STATE_NAMES.index(state)

    def _reason(self, reader: PartitionReader) -> str:
        try:
            answer = self._connection.request(
                "partition_state", topic=reader.topic, partition=reader.partition
            )
            return str(answer.get("reason") or f"error {reader.reason}")
        except ShmbrokerError:
            return f"error {reader.reason}"

    def _await_broker(self, deadline_ns: int) -> bool:
        left = None
        if deadline_ns != _NEVER_NS:
            left = max(0.0, (deadline_ns - core.monotonic_ns()) / 1e9)
        try:
            self._connection.attached(left, lambda: self._closed)
        except TimedOut:
            return False
        return True

    def _verify(self, reader: PartitionReader) -> None:
        """After a recovery from disk: is the record before our position still the one we read?"""
        position, epoch = reader.position, reader.leader_epoch
        before = position - 1
        if before >= reader.log_start_offset and reader.look() != "opening":
            end = reader.log_end_offset
            while end > before >= reader.log_start_offset:
                batch = self._batch_at(reader, before)
                if batch is None or batch.leader_epoch == epoch:
                    break
                end = before = batch.base_offset  # of another epoch: go back to where ours ends
                before -= 1
            reader.seek(position)
            reader.leader_epoch = epoch
            if end < position:
                raise LogTruncated(
                    f"{reader.topic}-{reader.partition} lost the records from offset {end} on with "
                    f"the host, before they were durable; this consumer had read up to {position}: "
                    f"undo what they did and seek({end})",
                    topic=reader.topic,
                    partition=reader.partition,
                    offset=position,
                    end_offset=end,
                )
        reader.leader_epoch = -1  # asked and answered; the next batch brings the present epoch

    def _batch_at(self, reader: PartitionReader, offset: int) -> RecordBatch | None:
        """The Kafka batch that holds `offset` and nothing before it. Moves the reader."""
        reader.seek(offset)
        reader.leader_epoch = -1
        return self._fetch_slow_one(reader)

    def _fetch_slow_one(self, reader: PartitionReader) -> RecordBatch | None:
        most, self._most = self._most, 1  # one batch, however large
        try:
            return self._fetch_slow(reader)
        finally:
            self._most = most

    # --- places --------------------------------------------------------------------------------

    def _rebind(self, epoch: int) -> None:
        """After an attach: everything may be somewhere else."""
        self._park_map = self._connection.park
        self._park = self._park_map.address
        for reader in self._all:
            self._bind(reader, self._client.metadata.get(reader.topic).partitions)
        self._seen = epoch

    def _reader(self, place: PartitionInfo, appended: bool) -> PartitionReader:
        return PartitionReader(
            place.topic,
            place.partition,
            writer=place.writer,
            slot=place.slot,
            slot_epoch=place.slot_epoch,
            table=self._connection.table(place.writer),
            open_ring=self._open_ring(place),
            appended=appended,
        )

    def _bind(self, reader: PartitionReader, places: tuple[PartitionInfo, ...]) -> None:
        if reader.partition >= len(places):
            raise UnknownTopic(reader.topic, reader.partition, len(places))
        place = places[reader.partition]
        table = self._connection.table(place.writer)
        reader.bind(place.writer, place.slot, place.slot_epoch, table, self._open_ring(place))
        files = self._files.get(_key(reader))
        if files is not None and files.directory != place.directory:
            files.close()
            del self._files[_key(reader)]

    def _open_ring(self, place: PartitionInfo) -> Callable[[int], shm.ShmObject]:
        connection, name = self._connection, f"l{place.writer}.{place.slot}"
        return lambda generation: connection.open_object(f"{name}.{generation}", shm.KIND_LOG)

    def _files_of(self, reader: PartitionReader) -> _Files:
        found = self._files.get(_key(reader))
        if found is None:
            place = self._client.metadata.partition(reader.topic, reader.partition)
            found = self._files[_key(reader)] = _Files(place.directory)
        return found

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
        for reader in self._all:
            while reader.look() == "opening" and reader.bound:
                if not self._wait(deadline_ns):
                    raise TimedOut(f"{reader.topic}-{reader.partition} is still being recovered")
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
                batch = self._fetch_slow_one(reader)
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
        if record is not None and (record.topic, record.partition) == _key(reader):
            return record.offset
        return reader.position

    def _find(self, partition: Where | None) -> PartitionReader:
        found = [
            r
            for r in self._all
            if partition is None
            or (r.partition == partition if isinstance(partition, int) else _key(r) == partition)
        ]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ValueError(f"this consumer does not read partition {partition!r}")
        raise ValueError(f"say which partition: one of {[tuple(_key(r)) for r in found]}")

    def _each(self, of: Callable[[PartitionReader], T]) -> dict[TopicPartition, T]:
        return self._do(lambda: {_key(r): of(r) for r in self._all})

    def _do(self, call: Callable[[], T]) -> T:
        """Runs a call that is not for two threads at once, on readers that are where they should."""
        self._hold()
        try:
            epoch = self._connection.attached(given_up=lambda: self._closed)
            if epoch != self._seen:
                self._rebind(epoch)
            return call()
        finally:
            self._let_go()


class _Files:
    """The segments of one partition, for what is no longer in its ring."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._segments = SegmentReader(directory)

    def close(self) -> None:
        self._segments.close()

    def fetch(self, reader: PartitionReader, most: int) -> RecordBatch | None:
        """The next records from the files, or from where file and ring meet; moves the reader."""
        base, end, ring_position, generation = reader.file_limit()
        raw = self._segments.fetch(reader.position, most, (base, end))
        if raw:
            return reader.take(raw, generation)
        # The batch ends in the block that is being rewritten: its head is in the file, its rest in
        # the ring, whose index may know nothing of it when the ring is new.
        head = self._head(reader.position, base, end)
        return reader.take(head, generation, ring_position)

    def offset_for_time(self, reader: PartitionReader, timestamp_ms: int) -> int:
        """An offset not far in front of the first record of that time, if there is one."""
        base, end, _, _ = reader.file_limit()
        found = self._segments.offset_for_time(timestamp_ms, (base, end))
        if found is not None:
            return found[0]
        return self._whole_until(reader.end, base, end)[0]

    def _head(self, offset: int, base: int, end: int) -> bytes:
        """The bytes from the last batch boundary at or before `offset` to the limit."""
        _, position = self._whole_until(offset, base, end)
        fd = open_shared(os.path.join(self.directory, names.file_name(base, names.LOG)))
        if fd < 0:
            return b""
        try:
            return os.pread(fd, max(0, end - position), position)
        finally:
            os.close(fd)

    def _whole_until(self, offset: int, base: int, end: int) -> tuple[int, int]:
        """(offset, position) behind the last batch that ends before both `offset` and the limit."""
        low, high, following, position = base, offset, base, 0
        while low < high:
            middle = (low + high) // 2
            found = self._segments.locate(middle, (base, end))
            if found is None or found[0] != base or found[1].last_offset >= offset:
                high = middle
            else:
                following, position = found[1].last_offset + 1, found[1].position + found[1].size_bytes
                low = max(middle + 1, following)
        return following, position


def _key(reader: PartitionReader) -> TopicPartition:
    return TopicPartition(reader.topic, reader.partition)


def _ms(when: datetime | int) -> int:
    return int(when.timestamp() * 1000) if isinstance(when, datetime) else when


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))}, not {value!r}")


__all__ = ["Consumer", "Start", "Where", "threading"]
