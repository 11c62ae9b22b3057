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
from shmbroker.client.reading import Reading, key_of
from shmbroker.errors import TimedOut

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
        """Goes on at `offset`: "earliest", "latest", an offset, or the first record from a time on.

        Without `partition` all partitions go there; an offset is one partition's, so with several
        it must be said whose. A datetime without a zone is local time. An offset that is not
        there is told of by the next read (OffsetOutOfRange).
        """

        def move() -> None:
            if isinstance(offset, int) or partition is not None:
                readers = [self._find(partition)]
            else:
                readers = self._all
            self._unbuffer()
            for reader, where in [(r, self._offset_for(r, offset)) for r in readers]:
                reader.seek(where)

        self._do(move, attached=not isinstance(offset, int))

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

    def _begin(self, start: Start) -> None:
        """Waits until every partition is open and goes to where `start` says."""
        self._check_start(start)
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

    def _check_start(self, start: Start) -> None:
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

    def _offset_for(self, reader: PartitionReader, asked: Place) -> int:
        if isinstance(asked, datetime):
            found = self._offset_for_time(reader, _ms(asked))
            return reader.end if found is None else found
        if isinstance(asked, int) and not isinstance(asked, bool):
            if asked < 0:
                raise ValueError(f"offsets begin at 0: {asked}")
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
