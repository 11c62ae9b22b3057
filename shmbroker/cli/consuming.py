"""One run of `consume`: where it begins and ends, and lines out in large pieces.

Owns: the exclusive end of each partition, where there is one, and what is still to be printed. A
batch of values is joined and written whole: nothing is done record by record unless the format
asks for it. A reader who closed our output is noticed also while no record comes.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from shmbroker import errors
from shmbroker.cli.options import complain
from shmbroker.client.metadata import TopicPartition

if TYPE_CHECKING:
    from shmbroker._core.batch import Record
    from shmbroker._core.reader import RecordBatch
    from shmbroker.client.consumer import Consumer
    from shmbroker.client.group_consumer import GroupConsumer

_LOOK_EVERY_S: Final = 0.5
_NOWHERE: Final = 1 << 62
_COMMIT_EVERY_S: Final = 1.0

Line = Callable[["Record"], bytes]


class Consuming:
    """Prints what `consumer` gets until an end is reached. Not thread-safe."""

    def __init__(
        self,
        consumer: Consumer,
        line: Line | None,
        delimiter: bytes,
        *,
        most: int | None,
        silence_s: float | None,
    ) -> None:
        """`line` None: values alone. `silence_s`: TimedOut after so long without a record."""
        self._consumer, self._line, self._delimiter = consumer, line, delimiter
        self._left = most
        self._silence_s = silence_s
        self._ends: dict[int, int] | None = None  # by partition, exclusive; reached ones are out
        self._stop_ms: int | None = None  # a time that no record has reached yet
        self._out = sys.stdout.buffer
        self._printed: dict[TopicPartition, int] | None = None  # to be committed: next offsets
        self._committed_s = 0.0
        self._closed = select.poll()
        self._closed.register(self._out.fileno(), 0)  # errors only

    def begin_at(self, place: str | int | datetime) -> None:
        """Where each partition begins; a negative number counts from its end."""
        for at in self._consumer.assignment():
            self._consumer.seek(place, at.partition)  # type: ignore[arg-type]

    def stop_at(self, place: str | int | datetime | None, *, exit_at_end: bool) -> None:
        """Where each partition ends; None and not exit_at_end: nowhere."""
        if place is None and not exit_at_end:
            return
        ends = self._end_offsets()
        stops = ends if exit_at_end else dict.fromkeys(ends, _NOWHERE)
        if isinstance(place, int):
            stops = {p: min(place, end) for p, end in stops.items()}
        elif isinstance(place, datetime):
            self._stop_ms = int(place.timestamp() * 1000)
            for at, offset in self._consumer.offsets_for_time(place).items():
                if offset is not None:
                    stops[at.partition] = min(offset, stops[at.partition])
        self._ends = stops
        self._settle_time()
        for number, end in list(self._ends.items()):
            if self._consumer.position(number) >= end:
                self._reached(number)

    def _settle_time(self) -> None:
        """Once the time to stop at is over, a partition without a record of then ends as it is."""
        if self._stop_ms is None or self._stop_ms > time.time() * 1000 or self._ends is None:
            return
        self._stop_ms = None
        for number, end in self._end_offsets().items():
            if self._ends.get(number) == _NOWHERE:
                self._ends[number] = end
                if self._consumer.position(number) >= end:
                    self._reached(number)

    def _end_offsets(self) -> dict[int, int]:
        return {at.partition: end for at, end in self._consumer.end_offsets().items()}

    def run(self) -> None:
        """Returns at the end. Raises TimedOut after the silence, BrokenPipeError when nobody reads
        our output any more, and what a consumer raises."""
        quiet_since = time.monotonic()
        while self._ends != {} and self._left != 0:
            for batch in self._consumer.batches(timeout=self._wait_s(quiet_since)):
                self._print(batch)
                quiet_since = time.monotonic()
                if self._ends == {} or self._left == 0:
                    return
            if self._closed.poll(0):
                raise BrokenPipeError
            self._settle_time()
            if self._silent(quiet_since) and self._ends != {}:
                raise errors.TimedOut(f"no record for {self._silence_s:g} s")

    def run_and_commit(self, member: GroupConsumer) -> None:
        """As `run`, of a group's member (the consumer): what was printed is committed, every second
        and at the end."""
        self._printed, self._commit = {}, member.commit
        try:
            self.run()
        finally:
            self._commit_printed()

    def _commit_printed(self) -> None:
        self._committed_s = time.monotonic()
        here = set(self._consumer.assignment())
        done = {p: n for p, n in (self._printed or {}).items() if p in here}
        self._printed = {}
        if done:
            try:
                self._commit(done)
            except (errors.UnknownMember, errors.FencedMemberEpoch, errors.StaleMemberEpoch):
                complain("shmbroker: the group has gone on without us; some lines come again")

    def _wait_s(self, quiet_since: float) -> float:
        if self._silence_s is None:
            return _LOOK_EVERY_S
        left = quiet_since + self._silence_s - time.monotonic()
        return min(max(0.0, left), _LOOK_EVERY_S)

    def _silent(self, quiet_since: float) -> bool:
        return self._silence_s is not None and time.monotonic() - quiet_since >= self._silence_s

    def _print(self, batch: RecordBatch) -> None:
        count = self._wanted(batch)
        if count:
            if self._line is None:
                lines: list[Any] = batch.values()
                del lines[count:]
                if None in lines:
                    lines = [b"" if value is None else value for value in lines]
            else:
                lines = [self._line(record) for record in batch.records()[:count]]
            lines.append(b"")
            self._out.write(self._delimiter.join(lines))
            self._out.flush()
            if self._left is not None:
                self._left -= count
            if self._printed is not None:
                self._note(batch, count)
        if self._ends is not None and batch.next_offset >= self._ends.get(batch.partition, 0):
            self._reached(batch.partition)

    def _note(self, batch: RecordBatch, count: int) -> None:
        assert self._printed is not None
        whole = count == len(batch)
        after = batch.next_offset if whole else batch.offsets()[count - 1] + 1
        self._printed[TopicPartition(batch.topic, batch.partition)] = after
        if time.monotonic() - self._committed_s > _COMMIT_EVERY_S:
            self._commit_printed()

    def _wanted(self, batch: RecordBatch) -> int:
        """How many of its records, from the first, stand before the end."""
        count = len(batch)
        if self._ends is not None:
            end = self._ends.get(batch.partition, 0)
            if end == _NOWHERE and self._stop_ms is not None:
                end = self._end_by_time(batch, self._stop_ms)
            if batch.next_offset > end:
                count = sum(offset < end for offset in batch.offsets())
        return count if self._left is None else min(count, self._left)

    def _end_by_time(self, batch: RecordBatch, stop_ms: int) -> int:
        for offset, timestamp in zip(batch.offsets(), batch.timestamps(), strict=True):
            if timestamp >= stop_ms:
                assert self._ends is not None
                self._ends[batch.partition] = offset
                return offset
        return _NOWHERE

    def _reached(self, partition: int) -> None:
        """Nothing more is wanted of it."""
        assert self._ends is not None
        if self._ends.pop(partition, None) is not None:
            self._consumer.pause(partition)


__all__ = ["Consuming"]
