"""Where a consumer reads, and where it could: starts, seeks, pauses, the ends of its partitions.

Owns: what an offset, "earliest", "latest" or a time means in a partition, and which partitions are
paused. A position is the offset of the next record to be handed out, whatever was fetched ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Literal, TypeVar

from shmbroker._core import reader as core
from shmbroker._core.reader import PartitionReader
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.reading import Reading
from shmbroker.client.source import Ends, key_of
from shmbroker.errors import ClosedError, TimedOut

Place = Literal["latest", "earliest"] | int | datetime
Start = Place | Mapping[int, int]
Where = int | tuple[str, int]  # a partition: its number where there is one topic, or with the topic
T = TypeVar("T")


class Positions(Reading):
    """A Reading that says where it is and goes elsewhere. Not for users: see Consumer."""

    _paused: set[TopicPartition]

    def assignment(self) -> list[TopicPartition]:
        """What this consumer reads, paused or not. Any thread."""
        self._check()
        return [key_of(r) for r in self._all]

    def paused(self) -> list[TopicPartition]:
        """What `pause` stopped and `resume` didn't start again. Any thread."""
        self._check()
        return sorted(self._paused)

    def position(self, partition: Where | None = None) -> int:
        """The offset of the next record of a partition; it may be left out where there is one."""
        return self._do(lambda: self._position(self._find(partition)), attached=False)

    def seek(self, offset: Place, partition: Where | None = None) -> None:
        """Goes on at `offset`: "earliest", "latest", an offset, -n (the last n records of each), or
        the first record from a time on.

        Without `partition` all partitions go there; an offset is one partition's, so with several
        it must be said whose. A datetime without a zone is local time. An offset that is not
        there is told of by the next read (OffsetOutOfRange).
        """

        is_offset = isinstance(offset, int) and offset >= 0

        def move() -> None:
            one = is_offset or partition is not None
            readers = [self._find(partition)] if one else self._all
            self._unbuffer()
            self._sought(readers)
            for reader, where in zip(readers, self._offsets_for(readers, offset), strict=True):
                self._source.seek(reader, where)

        self._do(move, attached=not is_offset)

    def beginning_offsets(self) -> dict[TopicPartition, int]:
        """The first offset of each partition that may be read, inclusive."""
        return {key: ends.start for key, ends in self._do(self._ends).items()}

    def end_offsets(self) -> dict[TopicPartition, int]:
        """One past the last offset that this consumer's isolation lets it see."""
        return {key: ends.end for key, ends in self._do(self._ends).items()}

    def lag(self) -> dict[TopicPartition, int]:
        """How many offsets there are from the position to the end."""
        ends = self._do(self._ends)
        return self._each(lambda r: max(0, ends[key_of(r)].end - self._position(r)))

    def offsets_for_time(self, when: datetime | int) -> dict[TopicPartition, int | None]:
        """The first offset whose timestamp is `when` (datetime, or ms since 1970 UTC) or later.

        None where there is no such record. A datetime without a zone is local time.
        """
        return self._each(lambda r: self._offset_for_time(r, _ms(when)))

    def pause(self, *partitions: Where) -> None:
        """Hands out nothing of these partitions (all, without arguments) until `resume`."""

        def stop() -> None:
            named = {key_of(self._find(p)) for p in partitions} or {key_of(r) for r in self._all}
            self._unbuffer()
            self._pause_all(self._paused | named)

        self._do(stop, attached=False)

    def resume(self, *partitions: Where) -> None:
        """Goes on with these partitions (all, without arguments) where they were paused."""

        def go_on() -> None:
            named = {key_of(self._find(p)) for p in partitions} or self._paused
            self._pause_all(self._paused - named)

        self._do(go_on, attached=False)

    # --- for Consumer --------------------------------------------------------------------------

    def _begin(self, readers: list[PartitionReader], start: Start) -> None:
        """Waits until they are open and has them go to where `start` says."""
        deadline_ns = core.deadline(self._connection.timeout)
        before, self._readers = self._readers, readers
        called = False
        try:
            while waits := [r for r in readers if not _is_open(r)]:
                epoch = self._connection.attached(given_up=lambda: self._stopped)
                if epoch != self._seen:
                    self._rebind(epoch)
                elif not self._wait(deadline_ns):
                    name = f"{waits[0].topic}-{waits[0].partition}"
                    raise TimedOut(f"{name} is still being recovered")
                if self._stopped:
                    raise ClosedError("this consumer is closed")
                called |= self._answer_call()  # after this; it would end each wait at once
        finally:
            self._readers = before
            if called:
                self._call()
        if isinstance(start, Mapping):
            found = [self._offsets_for([r], start[r.partition])[0] for r in readers]
        else:
            found = self._offsets_for(readers, start)
        for reader, where in zip(readers, found, strict=True):
            self._source.seek(reader, where)

    def _check_start(self, start: Start) -> None:
        if isinstance(start, int) and start >= 0 and len(self._all) > 1:
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

    def _ends(self) -> dict[TopicPartition, Ends]:
        return self._source.ends(self._all)

    def _offsets_for(self, readers: list[PartitionReader], asked: Place) -> list[int]:
        """Where `asked` is in each of them."""
        if isinstance(asked, datetime):
            found = [self._offset_for_time(r, _ms(asked)) for r in readers]
            if None not in found:
                return [where for where in found if where is not None]
            ends = self._source.ends(readers)
            return [
                ends[key_of(r)].end if where is None else where
                for r, where in zip(readers, found, strict=True)
            ]
        if isinstance(asked, int) and not isinstance(asked, bool):
            if asked >= 0:
                return [asked] * len(readers)
            ends = self._source.ends(readers)
            return [max(ends[key_of(r)].start, ends[key_of(r)].end + asked) for r in readers]
        if asked not in ("latest", "earliest"):
            raise ValueError(
                f"{asked!r} is no place: 'latest', 'earliest', an offset, -n or a datetime"
            )
        ends = self._source.ends(readers)
        return [ends[key_of(r)][0 if asked == "earliest" else 1] for r in readers]

    def _offset_for_time(self, reader: PartitionReader, timestamp_ms: int) -> int | None:
        first = self._source.before_time(reader, timestamp_ms)
        if first is None:
            return None
        end = self._source.ends([reader])[key_of(reader)].end
        probe = self._source.probe(reader)
        try:
            self._source.seek(probe, first)
            while probe.position < end:
                batch = self._fetch_one(probe)
                if batch is None:
                    if probe.position < probe.end or not self._await_more(probe):
                        return None
                    continue
                for offset, stamp in zip(batch.offsets(), batch.timestamps(), strict=True):
                    if stamp >= timestamp_ms:
                        return offset
            return None
        finally:
            self._source.drop(probe)

    def _await_more(self, reader: PartitionReader) -> bool:
        """Waits for what a reader does not have yet; False when the attachment changed instead."""
        readers, self._readers = self._readers, [reader]
        try:
            if not self._wait(core.deadline(self._connection.timeout)):
                raise TimedOut(f"{reader.topic}-{reader.partition} sent nothing in time")
        finally:
            self._readers = readers
        if self._stopped:
            raise ClosedError("this consumer is closed")
        return self._epoch.value == self._seen

    def _position(self, reader: PartitionReader) -> int:
        record = self._next_buffered
        if record is not None and (record.topic, record.partition) == key_of(reader):
            return record.offset
        return reader.position

    def _pause_all(self, paused: set[TopicPartition]) -> None:
        self._paused = paused
        self._readers = [r for r in self._all if key_of(r) not in paused]

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
                epoch = self._connection.attached(given_up=lambda: self._stopped)
                if epoch != self._seen:
                    self._rebind(epoch)
            return call()
        finally:
            self._let_go()


def _is_open(reader: PartitionReader) -> bool:
    return reader.look() not in ("opening", "free") and reader.bound


def _ms(when: datetime | int) -> int:
    return int(when.timestamp() * 1000) if isinstance(when, datetime) else when


__all__ = ["Place", "Positions", "Start", "Where"]
