"""A system's Python client in a spawned process, and the clock around each of its calls.

`Timed` is made by `Remote`; the same for all systems, so that all are timed alike. Values are made
before, checksums after the measured time. Times of day are CLOCK_MONOTONIC in ns, which is one
clock for all processes of a host.
"""

from __future__ import annotations

import importlib
import select
import sys
import time
from array import array
from collections.abc import Generator, Iterator
from typing import Any, Final

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.values import Checksum, ValueSpec, checksum_of

DIGITS: Final = 10  # of a value's number, at its head
_QUIET_S: Final = 10.0  # nothing arrives for so long: nothing more will
_NEAR_NS: Final = 200_000  # before a record is due, from when on the sender no longer sleeps


class Timed:
    """One client of the system, and what is measured with it."""

    def __init__(self, path: list[str], module: str, name: str, address: Any) -> None:
        sys.path[:0] = path
        made: type[Client] = getattr(importlib.import_module(module), name)
        self.client = made(address)
        self._values: list[bytes] = []
        self._tail: Iterator[list[bytes]] | None = None

    def close(self) -> None:
        """Closes the client."""
        self.client.close()

    def prepare(self, spec: ValueSpec) -> None:
        """Makes the values that are sent from now on."""
        self._values = []  # the old ones first
        self._values = spec.make()

    def checksum(self, count: int, times: int = 1) -> int:
        """Of the first `count` values, sent so many times."""
        return checksum_of([self._values[:count]] * times)

    def create(self, topic: str, mode: Mode) -> None:
        """A new topic."""
        self.client.create(topic, mode)

    def forget(self, topic: str) -> None:
        """Nothing more is done with it."""
        self.client.forget(topic)

    def send(self, how: str, topic: str, count: int, mode: Mode) -> tuple[int, int]:
        """When the sending of the first `count` values began, and when all were acknowledged."""
        send = self.client.send_many if how == "many" else self.client.send_each
        values = self._values[:count]
        began = time.monotonic_ns()
        send(topic, values, mode)
        return began, time.monotonic_ns()

    def listen(self, topic: str, mode: Mode) -> None:
        """Returns when everything that is sent from now on will arrive at this process."""
        if isinstance(self._tail, Generator):
            self._tail.close()
        self._tail = self.client.tail(topic, mode)
        if next(self._tail):
            raise AssertionError(f"{topic}: there were values before any was sent")

    def drain(self, count: int) -> tuple[int, int]:
        """When the last of `count` values had arrived, and the checksum of all."""
        found, kept, until = 0, [], 0
        for values, at in self._arriving():
            if values:
                found, until = found + len(values), at
                kept.append(values)
                if found >= count:
                    break
        if found != count:
            raise AssertionError(f"{count} values were sent, {found} arrived")
        return until, checksum_of(kept)

    def collect(self, count: int) -> array[int]:
        """When the value of each number below `count` arrived, in ns; 0: it did not.

        Ends when all are there, or when nothing more comes.
        """
        arrived = array("q", bytes(8 * count))
        found = 0
        for values, at in self._arriving():
            for value in values:
                number = int(value[:DIGITS])
                if arrived[number]:
                    raise AssertionError(f"value {number} arrived twice")
                arrived[number] = at
            found += len(values)
            if found >= count:
                break
        return arrived

    def _arriving(self) -> Iterator[tuple[list[bytes], int]]:
        """What comes, and when; ends when nothing has come for `_QUIET_S`."""
        assert self._tail is not None, "listen() first"
        last = clock = time.monotonic_ns()
        for values in self._tail:
            clock = time.monotonic_ns()
            if values:
                last = clock
            elif clock - last > _QUIET_S * 1e9:
                return
            yield values, clock

    def pace(self, topic: str, rate: float, count: int, mode: Mode) -> tuple[int, int]:
        """Sends the first `count` values, each when it is due whether or not the last are done.

        Returns when the first was due and how many were sent: less when the system is so slow that
        twice the time was over. A late record is not sent later for it: the lateness is the
        system's, and counts.
        """
        send = self.client.sender(topic, mode)
        values = self._values[:count]
        step = 1e9 / rate
        clock, sleep, let_go = time.monotonic_ns, time.sleep, select.select
        first = clock() + 50_000_000
        last = first + int(2 * count * step) + 1_000_000_000
        for number, value in enumerate(values):
            due = first + int(number * step)
            while (left := due - clock()) > 0:
                # The GIL is let go either way: a client may have threads of its own. Not by
                # sleep(0): Python 3.11 and 3.12 make a timer of it, and that is late by 50 us.
                if left > 2 * _NEAR_NS:
                    sleep((left - _NEAR_NS) / 1e9)
                else:
                    let_go((), (), (), 0)
            if left < 0 and due - left > last:
                return first, number
            send(value)
        return first, count

    def read(self, how: str, topic: str, count: int) -> float:
        """Seconds from asking for the first `count` values (or records) until all were there."""
        read = self.client.values if how == "values" else self.client.records
        found, began = 0, time.monotonic_ns()
        for values in read(topic, count):
            found += len(values)
        took = time.monotonic_ns() - began
        if found < count:
            raise AssertionError(f"{topic}: of {count} values only {found} could be read")
        return took / 1e9

    def stored(self, topic: str, count: int) -> int:
        """The checksum of the first `count` values that the system has, outside any measurement."""
        found = Checksum()
        for values in self.client.values(topic, count):
            found.add(values[: count - found.count])
        if found.count < count:
            raise AssertionError(f"{topic}: of {count} values only {found.count} are there")
        return found.value


__all__ = ["DIGITS", "Timed"]
