"""One partition as its writer serves it: the log's files on one side, the engine on the other.

Owns: a `PartitionLog` and the engine's `Partition`, and how they are put together: opened afresh,
taken over from a killed writer, given segments as the sequencer asks for them, closed. Runs in
the housekeeper.

Invariants: the engine never learns of a file before it is durable in its directory; the clean
marker is removed before the first ring is made; an offline partition is recovered from disk,
never flushed again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shmbroker import errors
from shmbroker._core import engine as core
from shmbroker.config import TopicSettings
from shmbroker.log.partition import PartitionLog
from shmbroker.workers.logs import get_logger
from shmbroker.workers.rings import Rings

_log = get_logger("shmbroker.writer")


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the acceptor says of a slot; `docs/ARCHITECTURE.md`, op `assign`."""

    slot: int
    slot_epoch: int
    topic: str
    topic_id: str
    partition: int
    directory: str
    settings: TopicSettings

    @property
    def name(self) -> str:
        """As in messages: topic-partition."""
        return f"{self.topic}-{self.partition}"


@dataclass(slots=True, eq=False)
class Served:
    """See the module. `part` is None while the log can't be opened; `reason` then says why."""

    place: Assignment
    log: PartitionLog | None = None
    part: core.Partition | None = None
    reason: str = ""
    checkpointed_bytes: int = 0
    checkpointed_at: float = 0.0
    started: bool = False
    segment_since_ms: dict[int, float] = field(default_factory=dict)
    _sealed: dict[int, tuple[int, int]] = field(default_factory=dict)  # base -> bytes, newest

    @property
    def unsaved_bytes(self) -> int:
        """Appended since the last checkpoint."""
        return 0 if self.part is None else self.part.appended_bytes - self.checkpointed_bytes

    def first_append(self, rings: Rings) -> bool:
        """Readies files, allocation and ring for the first append. False: no memory now."""
        log, part = self._both()
        if not self.started:
            part.set_fd(log.before_first_append().fd)
            self.started = True
        self.extend()
        _, filled = part.append_segment
        unit = log.io.unit
        tail = log.read_block(filled - filled % unit, filled % unit) if filled % unit else b""
        return rings.provide(part, tail)

    def extend(self) -> None:
        """More space for the segment that is appended to; DiskFull when there is no room."""
        log, part = self._both()
        base, _ = part.append_segment
        active = log.active
        if active is None or active.base_offset != base:
            return  # a roll is on its way: its segment comes with its own allocation
        step = min(active.allocated_bytes + 1, log.settings.segment_bytes)
        part.set_alloc(base, log.extend(max(step, part.alloc_need)))

    def prepare_next(self) -> None:
        """A next segment, ready to be named."""
        log, part = self._both()
        log.prepare_next()
        part.set_next(log.next_bytes)

    def roll(self) -> None:
        """Names the segment that the sequencer has begun."""
        log, part = self._both()
        base = part.roll_waits
        if base is not None:
            self._note_sealed()
            part.rolled(log.roll(base).fd)

    def seal(self) -> None:
        """Finishes the segments whose last write is durable."""
        log, part = self._both()
        self.collect_index()
        self._note_sealed()
        for segment in list(log.sealing):
            noted = self._sealed.get(segment.base_offset)
            if noted is not None:
                log.seal(segment, *noted)
                del self._sealed[segment.base_offset]
                # Its checkpoint ends where the next segment begins: what is in that is behind it.
                appended = part.appended_bytes
                self.checkpointed_bytes = appended - part.append_segment[1]

    def _note_sealed(self) -> None:
        """Remembers what the engine says of the last switch: naming a segment allows the next."""
        _, part = self._both()
        base, nbytes, max_timestamp = part.sealed
        log = self.log
        if log is not None and any(s.base_offset == base for s in log.sealing):
            self._sealed[base] = (nbytes, max_timestamp)

    def collect_index(self) -> None:
        """Takes the index entries that the sequencer has gathered to the index files."""
        log, part = self._both()
        for base, packed in part.collect_index():
            log.add_index_entries(base, packed)

    def checkpoint(self) -> None:
        """Writes a checkpoint at the durable end, unless a roll is under way (the seal will)."""
        if self.begin_checkpoint(lambda job: job()):
            self.settle()

    def begin_checkpoint(self, run: Callable[[Callable[[], None]], object]) -> bool:
        """The same, with the waiting for the disk done by `run`; `settle` is to follow. False:
        nothing is to be written."""
        log, part = self._both()
        self.collect_index()
        appended = part.appended_bytes
        segment, nbytes, offset = part.durable()
        if log.active is None or segment != log.active.base_offset:
            return False
        pending = log.begin_checkpoint(offset, nbytes, max_timestamp=part.max_timestamp)
        if pending is None:
            return False
        self.checkpointed_bytes = appended
        run(pending.run)
        return True

    @property
    def settled(self) -> bool:
        """Whether no checkpoint is on its way to the disk."""
        return self.log is None or self.log.settled

    def settle(self) -> None:
        """Waits for it; raises what went wrong."""
        if self.log is not None:
            self.log.settle()

    def retain(self, now_ms: int) -> None:
        """Retires what retention.ms and retention.bytes no longer keep; rolls by segment.ms."""
        log, part = self._both()
        base, nbytes, durable_offset = part.durable()
        if log.active is not None and log.active.base_offset == base:
            log.active.length = max(log.active.length, nbytes)  # retention.bytes counts it too
        log.retire(now_ms, durable_offset, part.set_log_start)  # readers see it before a file goes
        base, filled = part.append_segment
        since = self.segment_since_ms.setdefault(base, now_ms)
        if len(self.segment_since_ms) > 2:
            self.segment_since_ms = {base: since}
        if filled and now_ms - since >= self.place.settings.segment_ms:
            part.roll_due(base)
            if not log.has_next:
                self.prepare_next()

    def alter(self, settings: TopicSettings, reach_bytes: int) -> None:
        """Goes on under other settings. What recovery has to know of them (how far one write
        reaches) is durable before a batch comes that needs it."""
        if self.log is not None:
            self.log.set_settings(settings, reach_bytes)
        self.place = replace(self.place, settings=settings)
        if self.part is not None:
            limits = settings.segment_bytes, settings.max_message_bytes
            self.part.set_limits(*limits, settings.index_interval_bytes)

    def delete_records(self, before_offset: int, now_ms: int) -> int:
        """Moves the log start offset up to before_offset, at most to the durable end (-1: there),
        durably, and retires what is whole below it. Returns the log start offset."""
        log, part = self._both()
        durable = part.durable()[2]
        wanted = durable if before_offset < 0 else min(before_offset, durable)
        if wanted > log.log_start_offset:
            with contextlib.suppress(errors.DiskFull):  # what goes now makes room
                self.checkpoint()  # so that recovery begins no further below than it must
            part.set_log_start(log.delete_records(wanted, durable))
            self.retain(now_ms)
        return log.log_start_offset

    def fail(self) -> None:
        """The engine has put it offline after a failed write: says so."""
        _, part = self._both()
        code = part.failed_errno
        self.reason = (
            f"writing {self.place.directory} failed: {os.strerror(code)} "
            f"({errno.errorcode.get(code, code)}); it is recovered from disk at the next start"
        )
        _log.error("partition offline", partition=self.place.name, reason=self.reason)

    def describe(self) -> dict[str, object]:
        """For `status`."""
        found: dict[str, object] = {
            "slot": self.place.slot,
            "topic": self.place.topic,
            "partition": self.place.partition,
            "reason": self.reason,
        }
        if self.log is not None:
            found |= self.log.describe()
            for name in ("log_start_offset", "log_end_offset", "state"):
                del found[name]  # the table's are newer
            found["reason"] = self.reason  # recovery's, until something newer is to be said
        return found

    def close(self, engine: core.Engine, rings: Rings) -> None:
        """Lets go of it: with the clean marker if all of it is durable, as it is otherwise."""
        part, log = self.part, self.log
        self.part = self.log = None
        durable: tuple[int, int] | None = None
        newest = -1 if part is None else part.max_timestamp
        if part is not None:
            writable = part.state in ("online", "no_space")
            segment, nbytes, offset = part.durable()
            if log is not None and log.active is not None and writable and self.started:
                for base, packed in part.collect_index():
                    log.add_index_entries(base, packed)
                if segment == log.active.base_offset and offset == part.log_end_offset:
                    durable = (offset, nbytes)
            part.set_state("closed")
            engine.close_partition(self.place.slot)
            rings.drop(self.place.slot)
        if log is not None:
            if durable is None:
                log.close()
            else:
                log.close(*durable, max_timestamp=newest)

    def _both(self) -> tuple[PartitionLog, core.Partition]:
        if self.log is None or self.part is None:
            raise errors.PartitionOffline(self.place.topic, self.place.partition, self.reason)
        return self.log, self.part
