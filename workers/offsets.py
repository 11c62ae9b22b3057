"""The request `offsets`: where partitions begin and end, and where in them a time is.

Owns: the thread for all that the acceptor must look up in segments (consumer groups', too).

The ends are read out of the writers' tables, at once. A time is looked up in the segments' time
indexes, which may wait for a disk, so a thread does it; it opens files read-only, as a consumer
does, and nothing of the acceptor's is touched there.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shmbroker import errors
from shmbroker._core.shm import TableView
from shmbroker.client.partition_files import PartitionFiles
from shmbroker.control.plan import Place, Plan
from shmbroker.control.sharedmem import SharedMemory
from shmbroker.workers.loop import Loop
from shmbroker.workers.topics import Answer, Topics

_WAITING_MAX: Final = 256
_UNIT_MIN_BYTES: Final = 4096
_OPEN: Final = ("opening", "free")


@dataclass(frozen=True, slots=True)
class _Ends:
    """One partition as its table says it; what `PartitionFiles` asks of a consumer's reader."""

    directory: str
    entry: dict[str, Any]
    base: int
    limit_bytes: int

    @property
    def end(self) -> int:
        """Exclusive: what is durable."""
        high: int = self.entry["high_watermark"]
        return high

    def file_limit(self) -> tuple[int, int, int, int]:
        """See PartitionReader.file_limit."""
        return self.base, self.limit_bytes, 0, 0


class Offsets:
    """Answers it. Belongs to the acceptor's one thread, but for `_look_up`."""

    def __init__(self, topics: Topics, plan: Plan, memory: SharedMemory, loop: Loop) -> None:
        self._topics, self._plan, self._memory, self._loop = topics, plan, memory, loop
        self._asked: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING_MAX)
        self._done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._event_fd = -1

    def find(
        self, topic: str, partitions: list[Any] | None, at_ms: int | None, answer: Answer
    ) -> None:
        """See the table in docs/ARCHITECTURE.md. Raises UnknownTopic, InvalidRequest."""
        ends = [self._ends(*place) for place in self._places(topic, partitions)]
        if at_ms is None:
            answer({"partitions": [e.entry for e in ends]})
            return
        self.look_up(lambda: {"partitions": [_at(e, at_ms) for e in ends]}, answer)

    def look_up(self, do: Callable[[], Mapping[str, Any]], answer: Answer) -> None:
        """Has the thread do something that waits for disks; answers in the loop. Raises TimedOut
        when too many are waiting. `do` touches nothing of the acceptor's."""

        def look_up() -> None:
            result = _result_of(do)
            self._done.put(lambda: answer(result))
            os.eventfd_write(self._event_fd, 1)

        self._start()
        try:
            self._asked.put_nowait(look_up)
        except queue.Full:
            raise errors.TimedOut("too many look-ups of records are waiting; try again") from None

    def close(self) -> None:
        """Waits for the look-up under way, and for nothing else."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Empty):
            while True:
                self._asked.get_nowait()
        self._asked.put(None)
        self._thread.join()
        self._loop.unwatch(self._event_fd)
        os.close(self._event_fd)
        self._thread = None

    def _places(self, topic: str, partitions: list[Any] | None) -> list[tuple[Place, str]]:
        """Each with its directory."""
        found = self._topics.metadata([topic]).get(topic)
        if found is None:
            raise errors.UnknownTopic(topic)
        directories = {entry["partition"]: entry["directory"] for entry in found["partitions"]}
        of_topic = {place.partition: place for place in self._plan.of_topic(found["id"])}
        known = {n: (of_topic[n], directories[n]) for n in directories if n in of_topic}
        if partitions is None:
            return [known[number] for number in sorted(known)]
        for number in partitions:
            if not isinstance(number, int) or isinstance(number, bool):
                raise errors.InvalidRequest(f"{number!r:.60} is no partition's number")
            if number not in known:
                raise errors.UnknownTopic(topic, number, len(known))
        return [known[number] for number in partitions]

    def _ends(self, place: Place, directory: str) -> _Ends:
        table = self._memory.tables.get(place.writer)
        if table is None or table.slot_epoch(place.slot) != place.slot_epoch:
            raise errors.TimedOut(f"{place.topic}-{place.partition} is still being opened")
        slot = _steady(table, place)
        unit = max(slot["disk_unit"], _UNIT_MIN_BYTES)
        durable = slot["durable_position"] - slot["flush_base_position"]
        limit = durable // unit * unit if slot["ring_bytes"] else durable
        entry = {
            "partition": place.partition,
            "log_start_offset": slot["log_start_offset"],
            "high_watermark": slot["durable_offset"],
            "log_end_offset": slot["log_end_offset"],
            "leader_epoch": slot["leader_epoch"],
        }
        return _Ends(directory, entry, slot["flush_base_offset"], limit)

    def _start(self) -> None:
        if self._thread is None:
            self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._loop.watch(self._event_fd, self._answer_done)
            self._thread = threading.Thread(target=self._run, name="offsets", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (task := self._asked.get()) is not None:
            task()

    def _answer_done(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event_fd)
        with contextlib.suppress(queue.Empty):
            while True:
                self._done.get_nowait()()


def _steady(table: TableView, place: Place) -> dict[str, Any]:
    """The slot, read while its active segment did not change."""
    while True:
        slot = table.slot(place.slot)
        if slot["state"] in _OPEN:
            raise errors.TimedOut(f"{place.topic}-{place.partition} is still being opened")
        again = table.slot(place.slot)
        same = ("flush_base_offset", "flush_base_position", "generation")
        if all(slot[name] == again[name] for name in same):
            return slot


def _result_of(do: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any] | BaseException:
    try:
        return do()
    except (errors.ShmbrokerError, OSError) as error:
        return error


def _at(ends: _Ends, at_ms: int) -> dict[str, Any]:
    files = PartitionFiles(ends.directory)
    try:
        found = files.offset_for_time(ends, at_ms)
    finally:
        files.close()
    return ends.entry | {"offset": max(found, ends.entry["log_start_offset"])}


__all__ = ["Offsets"]
