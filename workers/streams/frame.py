"""One Batches frame on its way to a peer: what of it has gone out, and where the rest is.

Owns: the head, and the places of the body: in the partition's ring, in a segment, or, where a batch
begins in the one and ends in the other, in memory. A log's bytes never change, so a frame that had
to stop keeps no copy: its rest is looked for again wherever it is by then.

    begin ──► place: Ring | File ──send … send──► left 0
                 ▲        │ overwritten, or another ring
                 └────────┘ found again by its offset

Invariants: a frame once begun is finished or its connection is cut; the bytes of a place belong to
the batches from `offset` on, of which `done` bytes are out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shmbroker.errors import ShmbrokerError

if TYPE_CHECKING:
    from shmbroker.workers.streams.subscription import Subscription
    from shmbroker.workers.streams.transport import Transport

COPY_BYTES: Final = 256 << 10  # out of a ring at a time: stays in a core's cache
_scratch: Final = memoryview(bytearray(COPY_BYTES))  # of the one thread that sends


@dataclass(frozen=True, slots=True)
class Ring:
    """Batches in the ring of one generation."""

    generation: int
    position: int  # in the log


@dataclass(frozen=True, slots=True)
class File:
    """Batches in a segment; the descriptor is the subscription's."""

    fd: int
    position: int  # in the file


@dataclass(frozen=True, slots=True)
class Memory:
    """Batches that stand whole in no single place."""

    data: memoryview


Place = Ring | File | Memory


class Lost(ShmbrokerError):
    """The rest of a frame is nowhere any more: the connection must be cut."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole batches in one place."""

    place: Place
    size_bytes: int
    next_offset: int


class Frame:
    """Made when all of its batches have been found in one place."""

    __slots__ = ("_done", "_head", "_left", "_offset", "_recovered", "_stretch", "subscription")

    def __init__(
        self, subscription: Subscription, head: bytes, offset: int, stretch: Stretch
    ) -> None:
        self.subscription: Final = subscription
        self._head = memoryview(head)
        self._offset, self._stretch = offset, stretch
        self._done = 0  # bytes of the stretch
        self._left = stretch.size_bytes  # of the body
        self._recovered = subscription.partition.reader.recovered

    def send(self, transport: Transport, most: int) -> tuple[int, bool]:
        """Sends up to about `most` bytes: how many went, and whether the frame is out.

        A short count with an unfinished frame means that the socket is full. Raises OSError when
        the peer is gone, Lost when the batches are."""
        sent = 0
        while self._head:
            n = transport.send(self._head, more=True)
            if not n:
                return sent, False
            self._head, sent = self._head[n:], sent + n
        while self._left and sent < most:
            n = self._some(transport, most - sent)
            if not n:
                break
            sent += n
            self._done += n
            self._left -= n
        return sent, not self._left

    def is_retired(self) -> bool:
        """Whether retention has taken the segment that it is sent from."""
        place = self._stretch.place
        return isinstance(place, File) and os.fstat(place.fd).st_nlink == 0

    def _some(self, transport: Transport, most: int) -> int:
        stretch = self._stretch
        while True:
            size = min(stretch.size_bytes - self._done, self._left)
            place = stretch.place if size else None
            if isinstance(place, File):
                return transport.sendfile(place.fd, place.position + self._done, min(size, most))
            if isinstance(place, Ring):
                n = min(size, COPY_BYTES)
                reader = self.subscription.partition.reader
                if reader.copy(place.generation, place.position + self._done, _scratch, n):
                    return transport.send(_scratch[:n], more=n < self._left)
            elif isinstance(place, Memory):
                return transport.send(place.data[self._done : self._done + size])
            stretch = self._find()

    def _find(self) -> Stretch:
        """Where the rest is by now."""
        reader = self.subscription.partition.reader
        if reader.appended and reader.recovered != self._recovered:
            raise Lost("the log was recovered from disk, and may go on with other records")
        if self._done and self._done >= self._stretch.size_bytes:
            self._done -= self._stretch.size_bytes
            self._offset = self._stretch.next_offset
        while True:
            found = self.subscription.find(self._offset, self._left + self._done)
            if found is None or found.size_bytes > self._left + self._done:
                raise Lost(f"{self.subscription.partition.name}: offset {self._offset} is gone")
            if found.size_bytes > self._done:
                self._stretch = found
                return found
            self._done -= found.size_bytes
            self._offset = found.next_offset


__all__ = ["COPY_BYTES", "File", "Frame", "Lost", "Memory", "Place", "Ring", "Stretch"]
