"""Bytes that have arrived, taken off the front in pieces of known size.

Owns: the only buffer of a stream's codec. Invariants: a byte that came in a piece of some size is
copied once on its way through, and small pieces are gathered, so that bytes that trickle in cost no
object each; what is kept never exceeds one frame and what one `receive_data` may bring.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from shmbroker.wire.native.limits import RECEIVE_BYTES

_SMALL_BYTES: Final = 4096


class Inbox:
    """Pieces as they came, and how far the first of them has been used."""

    __slots__ = ("_at", "_frame_bytes", "_pieces", "size_bytes")

    def __init__(self, frame_bytes: int) -> None:
        """`frame_bytes`: the largest piece that will ever be taken."""
        self._frame_bytes: Final = frame_bytes
        self._pieces: deque[bytes] = deque()
        self._at = 0
        self.size_bytes = 0

    def put(self, data: bytes) -> None:
        """Adds what has arrived. BufferError when it is too much: take the events first."""
        if len(data) > RECEIVE_BYTES or self.size_bytes > self._frame_bytes:
            raise BufferError(
                f"{len(data)} bytes more, with {self.size_bytes} waiting; take the events first, "
                f"and give at most {RECEIVE_BYTES} at a time"
            )
        if not data:
            return
        pieces = self._pieces
        if pieces and len(pieces[-1]) + len(data) <= _SMALL_BYTES:
            pieces[-1] += data
        else:
            pieces.append(data)
        self.size_bytes += len(data)

    def take(self, size: int) -> bytes | None:
        """The next `size` bytes, or None as long as they are not all there."""
        if self.size_bytes < size:
            return None
        self.size_bytes -= size
        if not size:
            return b""
        first, start = self._pieces[0], self._at
        if start + size < len(first):
            self._at += size
            return first[start : start + size]
        taken: list[bytes | memoryview] = []
        while size:
            first, start = self._pieces[0], self._at
            end = min(len(first), start + size)
            taken.append(memoryview(first)[start:end])
            size -= end - start
            self._at = end
            if end == len(first):
                self._pieces.popleft()
                self._at = 0
        return b"".join(taken)

    def first(self, size: int) -> bytes:
        """Up to `size` bytes of those that come next, without taking them."""
        found = b""
        for n, piece in enumerate(self._pieces):
            found += piece[self._at if n == 0 else 0 :][: size - len(found)]
            if len(found) == size:
                break
        return found

    def clear(self) -> None:
        """Forgets everything: nothing more will be taken."""
        self._pieces.clear()
        self._at = self.size_bytes = 0


__all__ = ["Inbox"]
