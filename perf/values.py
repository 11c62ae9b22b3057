"""Honest input: distinct `bytes`, made in the process that sends them, and their checksum.

A value is its own number in ten digits, then random bytes: distinct, sortable, and no two equal
neighbours. "In order" they lie on the heap as a program makes them; "shuffled", the list visits
the heap at random, as after a while of real work.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_DIGITS: Final = 10
_POOL_BYTES: Final = 1 << 20
_STRIDE: Final = 7919  # a prime: neighbours share nothing
_CHUNK: Final = 10_000


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """How many values of which size, and how they lie on the heap."""

    count: int
    value_bytes: int = 100
    shuffled: bool = False
    seed: int = 1
    telemetry: bool = False  # JSON as sensors send it, which compresses, instead of random bytes

    @property
    def total_bytes(self) -> int:
        """Of the values alone."""
        return self.count * self.value_bytes

    def make(self) -> list[bytes]:
        """The values; the same for the same spec."""
        source = random.Random(self.seed)
        if self.telemetry:
            return [self._reading(n, source) for n in range(self.count)]
        pool = source.randbytes(_POOL_BYTES + self.value_bytes)
        rest = self.value_bytes - _DIGITS
        made = [
            b"%010d%b" % (n, pool[(at := n * _STRIDE % _POOL_BYTES) : at + rest])
            for n in range(self.count)
        ]
        if self.shuffled:
            source.shuffle(made)
        return made

    def _reading(self, number: int, source: random.Random) -> bytes:
        """One value: numbers that change, names that do not, as many readings as there is room."""
        text = b"%010d" % number
        while len(text) < self.value_bytes:
            text += (
                b'{"sensor":"hall-%02d/temperature","celsius":%.2f,"battery":%d,"status":"ok"}'
                % (source.randrange(64), source.gauss(21.0, 2.0), source.randrange(60, 100))
            )
        return text[: self.value_bytes]

    def make_keys(self) -> list[bytes]:
        """A random key of 8 bytes for each value."""
        pool = random.Random(self.seed + 1).randbytes(8 * self.count)
        return [pool[at : at + 8] for at in range(0, len(pool), 8)]


class Checksum:
    """CRC-32 over all values in order; the same however they were batched."""

    def __init__(self) -> None:
        self.value = 0
        self.count = 0

    def add(self, values: list[bytes]) -> None:
        """The next values."""
        for at in range(0, len(values), _CHUNK):
            self.value = zlib.crc32(b"".join(values[at : at + _CHUNK]), self.value)
        self.count += len(values)


def checksum_of(lists: Iterable[list[bytes]]) -> int:
    """The checksum of these lists, one after the other."""
    found = Checksum()
    for values in lists:
        found.add(values)
    return found.value


__all__ = ["Checksum", "ValueSpec", "checksum_of"]
