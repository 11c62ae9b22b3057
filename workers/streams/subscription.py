"""One subscription: where it is in its partition, what it may send next, and why it does not.

    beginning ──start found──► ready ⇄ waiting (at the end) ⇄ checking (truncated?)
        └──────────────┴─────────┴── failed, or unsubscribed: ended

Owns: the offset of the next batch with its leader epoch, the open segments while it reads from
files, and the choice between ring and file. Reader's thread only.

Invariants: what goes out begins with the batch of `offset` and `offset` moves to its end, so there
is neither gap nor repeat, whichever of ring and file has it; nothing that the isolation hides, and
nothing below the log start, goes out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from shmbroker.client.partition_files import PartitionFiles
from shmbroker.errors import (
    CorruptBatch,
    DamagedLog,
    LogTruncated,
    OffsetOutOfRange,
    PartitionOffline,
    ShmbrokerError,
)
from shmbroker.workers.streams.frame import File, Frame, Memory, Ring, Stretch

if TYPE_CHECKING:
    from shmbroker.workers.streams.partition import Partition
    from shmbroker.workers.streams.peer import Peer

#: What is visible and found nowhere for so long is damage, not a race with retention or a restart.
_PATIENCE_S: Final = 2.0
_AGAIN_S: Final = 0.005


class Subscription:
    """Made when it is known which partition is meant and where the stream begins."""

    __slots__ = (
        "_files",
        "_leader_epoch",
        "_missing_since",
        "_place",
        "_recovered",
        "ended",
        "files_used",
        "number",
        "offset",
        "partition",
        "peer",
        "queued",
    )  # fmt: skip

    def __init__(
        self, peer: Peer, number: int, partition: Partition, offset: int, epoch: int
    ) -> None:
        self.peer: Final = peer
        self.number: Final = number
        self.partition: Final = partition
        self.offset = offset
        self.queued = False  # stands in its peer's line
        self.ended = False
        self._leader_epoch = epoch
        self._recovered = partition.reader.recovered
        self._place = (0, 0)  # generation and log position of `offset`
        self._files: PartitionFiles | None = None
        self.files_used = False  # since somebody looked
        self._missing_since = 0.0
        partition.users.add(self)

    # --- what comes next -----------------------------------------------------------------------

    def next_frame(self, most: int) -> Frame | None:
        """The next batches, about `most` bytes; None when there is nothing to send now: it is
        resumed by what it waits for, or has failed."""
        partition = self.partition
        reader = partition.reader
        if not partition.is_open():
            partition.wait(self)
            return None
        if reader.recovered != self._recovered and self._check_epoch():
            return None
        ends = partition.ends()
        if not ends.log_start_offset <= self.offset <= max(ends.log_end_offset, reader.end):
            self.fail(OffsetOutOfRange(reader.topic, reader.partition, self.offset,
                                       ends.log_start_offset, ends.log_end_offset))  # fmt: skip
            return None
        if self.offset >= reader.end:
            self._at_end()
            return None
        found, why = None, "neither in memory nor on disk"
        try:
            found = self.find(self.offset, most)
        except OffsetOutOfRange:
            pass  # a segment went, and the log start is about to be seen to move
        except (CorruptBatch, OSError) as error:
            why = str(error)
        if found is None:
            self._missing(why)
            return None
        self._missing_since = 0.0
        # Asked for anew: the end has moved on since, and no batch may stand past the ends told.
        head = self.peer.codec.batches_head(self.number, partition.ends(), found.size_bytes)
        frame = Frame(self, head, self.offset, found)
        if isinstance(found.place, Ring):
            self._place = (found.place.generation, found.place.position + found.size_bytes)
        self.offset = found.next_offset
        return frame

    def find(self, offset: int, most: int) -> Stretch | None:
        """Where whole visible batches from the one of `offset` on stand; None: nowhere (yet).

        Raises OffsetOutOfRange below the first segment."""
        generation, position = self._place if offset == self.offset else (0, 0)
        in_ring = self.partition.reader.stretch(offset, most, generation, position)
        if in_ring is not None:
            generation, position, size, following, self._leader_epoch = in_ring
            return Stretch(Ring(generation, position), size, following)
        return self._in_files(offset, most)

    def _in_files(self, offset: int, most: int) -> Stretch | None:
        if self._files is None:
            self._files = PartitionFiles(self.partition.directory, open_max=2)
            self.peer.streams.files_opened(self)
        self.files_used = True
        reader = self.partition.reader
        span = self._files.span(reader, offset, most)
        if span is not None:
            self._leader_epoch = -1  # not read; whoever receives them knows
            return Stretch(File(span.fd, span.position), span.size_bytes, span.next_offset)
        reader.seek(offset)
        batch = self._files.seam(reader)
        if batch is None:
            return None
        self._leader_epoch = batch.leader_epoch
        first = batch.batches()[0]
        data = memoryview(first.raw)
        return Stretch(Memory(data), len(data), first.last_offset + 1)

    def close_files(self) -> None:
        """Lets go of its segments; what comes after opens them again."""
        if self._files is not None:
            self._files.close()
            self._files = None
            self.peer.streams.files_closed(self)

    # --- why nothing comes ---------------------------------------------------------------------

    def _at_end(self) -> None:
        self.close_files()
        if self.partition.reader.look() != "offline":
            self.partition.wait(self)
            return
        reader = self.partition.reader

        def told(reason: str | None, _error: Exception | None) -> None:
            self.fail(PartitionOffline(reader.topic, reader.partition, reason or "unknown"))

        self.peer.streams.jobs.ask(self.partition.reason, told)

    def _missing(self, why: str) -> None:
        now = time.monotonic()
        self._missing_since = self._missing_since or now
        if now - self._missing_since < _PATIENCE_S:
            self.peer.streams.after(_AGAIN_S, self.resume)
            return
        path, position = (self._files or PartitionFiles(self.partition.directory)).where(
            self.partition.reader, self.offset
        )
        self.fail(
            DamagedLog(
                f"{self.partition.name} says that it has records up to "
                f"{self.partition.reader.end}, but "
                f"offset {self.offset} is {why} ({path} at {position}); "
                "look with: shmbroker log dump",
                path=path,
                position=position,
            )
        )

    def _check_epoch(self) -> bool:
        """After a recovery from disk: were records cut off that this stream has sent? True: asked;
        what comes of it follows. What was read from a file, or durable, can't have been cut."""
        partition = self.partition
        recovered, epoch, offset = partition.reader.recovered, self._leader_epoch, self.offset
        if epoch < 0 or not partition.reader.appended:
            self._recovered = recovered
            return False

        def told(_result: None, error: Exception | None) -> None:
            if isinstance(error, LogTruncated):
                self.fail(error)
                return
            if error is None:
                self._recovered = recovered
            self.resume()

        self.peer.streams.jobs.ask(lambda: partition.check_epoch(offset, epoch), told)
        return True

    # --- its life ------------------------------------------------------------------------------

    def resume(self) -> None:
        """It has something to look at."""
        if not self.ended:
            self.peer.line_up(self)

    def fail(self, error: ShmbrokerError) -> None:
        """Tells the peer, and ends."""
        if not self.ended:
            self.end()
            self.peer.failed(self.number, error)

    def end(self) -> None:
        """No more of it, but the rest of a frame that has begun; twice is fine."""
        if not self.ended:
            self.ended = True
            self.peer.subscriptions.pop(self.number, None)
            self.partition.forget(self)
            if not self.peer.is_sending(self):
                self.release()

    def release(self) -> None:
        """Nothing of it will be sent any more: gives back what it read from."""
        self.close_files()
        self.partition.users.discard(self)
        self.peer.streams.left(self.partition)


__all__ = ["Subscription"]
