"""What a broker shares with local clients, as a remote client has it to itself: tables and rings.

Owns: this process's copies (memfds with the layout of `_core/layout.h`) and what is where in them.
Producers fill a ring here as they would a writer's; `ingress_link.py` stands for the writer. Places
are this process's own: a partition gets its slot when it is first heard of and keeps it for the
connection's life, whatever the broker's plan becomes, in a table per writer that it had then, since
frames of one ring go in their order and credit is a writer's.

Thread-safe; the rings' other half belongs to the watcher (mirror.pyx).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping as AnyMapping
from typing import Any, Final, NamedTuple

from shmbroker._core import mirror as core
from shmbroker._core import shm
from shmbroker._core.reader import Mapping
from shmbroker.errors import MemoryBudget

_RING_BYTES_MAX: Final = 64 << 20


class Spot(NamedTuple):
    """A partition as ingress knows it."""

    topic_id: bytes
    partition: int


class Mirror:
    """See the module."""

    def __init__(self, bell: int) -> None:
        """`bell`: an eventfd, rung when producers have published something."""
        self.park = core.new_park()
        self._bell = bell
        self._lock = threading.Lock()
        self._tables: dict[int, Mapping] = {}
        self._spots: dict[tuple[int, int], Spot] = {}  # (writer, slot) here -> whose
        self._places: dict[Spot, tuple[int, int]] = {}
        self._used: dict[int, int] = {}  # slots by writer
        self._writers: dict[Spot, int] = {}  # the broker's present ones
        self._rings: dict[int, core.MirrorRing] = {}
        self._leaving: set[int] = set()
        self._next_ingress = 1

    # --- for the connection --------------------------------------------------------------------

    def table(self, writer: int) -> Mapping:
        """The table of that number here."""
        with self._lock:
            return self._table(writer)

    def open_object(self, suffix: str) -> shm.ShmObject:
        """`i7` is a ring, `r7` its receipts; FileNotFoundError when there is none."""
        with self._lock:
            ring = self._rings.get(int(suffix[1:])) if suffix[1:].isdecimal() else None
        if ring is None or suffix[0] not in "ir":
            raise FileNotFoundError(suffix)
        return ring.open_ring() if suffix[0] == "i" else ring.open_receipts()

    def placed(self, answer: dict[str, Any]) -> dict[str, Any]:
        """A broker's answer with places of this process instead of the broker's."""
        topics = answer.get("topics")
        if not isinstance(topics, dict):
            return answer
        with self._lock:
            told = {name: self._topic(said) for name, said in topics.items()}
        return answer | {"topics": told}

    def open_ingress(self, writer: int, capacity: int, slots: int) -> dict[str, Any]:
        """As the control request of that name."""
        granted = 1 << max(16, min(capacity, _RING_BYTES_MAX) - 1).bit_length()
        places = 1 << (slots - 1).bit_length()
        with self._lock:
            number, self._next_ingress = self._next_ingress, self._next_ingress + 1
            ring = core.MirrorRing(self.park, self._table(writer), number, writer, granted, places)
            self._rings[number] = ring
        os.eventfd_write(self._bell, 1)  # so that the watcher arms it
        return {"ingress": number, "capacity": granted, "slots": places, "bell": self._bell}

    def close_ingress(self, number: int) -> dict[str, Any]:
        """As the control request of that name: the ring goes when it is empty and answered."""
        with self._lock:
            self._leaving.add(number)
        os.eventfd_write(self._bell, 1)
        return {}

    def close(self) -> None:
        """Lets go of the rings; producers keep theirs mapped until they are gone."""
        with self._lock:
            self._rings.clear()

    # --- for the watcher -----------------------------------------------------------------------

    def rings(self) -> list[core.MirrorRing]:
        """All of them; those that producers left and that are done go before."""
        with self._lock:
            for number in list(self._leaving):
                ring = self._rings.get(number)
                if ring is None or not (ring.pending_bytes or ring.unanswered):
                    self._leaving.discard(number)
                    self._rings.pop(number, None)
            return list(self._rings.values())

    def arm(self) -> bool:
        """Has the next publication ring the bell; True when there is one to look at already."""
        there = False
        for ring in self.rings():
            there |= ring.arm()
        return there

    def spot(self, writer: int, slot: int) -> Spot:
        """Whose frame that is."""
        return self._spots[writer, slot]

    def writer_of(self, spot: Spot) -> int:
        """The broker's writer of a partition, as far as is known."""
        return self._writers[spot]

    # --- helpers, with the lock ------------------------------------------------------------------

    def _table(self, writer: int) -> Mapping:
        found = self._tables.get(writer)
        if found is None:
            found = self._tables[writer] = core.new_table()
        return found

    def _topic(self, said: AnyMapping[str, Any]) -> dict[str, Any]:
        topic_id = bytes.fromhex(said["id"])
        partitions = []
        for partition in said["partitions"]:
            spot = Spot(topic_id, partition["partition"])
            self._writers[spot] = partition["writer"]
            writer, slot = self._place(spot, partition["writer"])
            partitions.append(partition | {"writer": writer, "slot": slot, "slot_epoch": 1})
        return {**said, "partitions": partitions}

    def _place(self, spot: Spot, writer: int) -> tuple[int, int]:
        found = self._places.get(spot)
        if found is None:
            slot = self._used.get(writer, 0)
            if slot >= shm.SLOTS_MAX:
                raise MemoryBudget(
                    f"this client has heard of {slot} partitions of writer {writer}, deleted ones "
                    "included, and can't know more of them: connect anew"
                )
            core.assign(self._table(writer), slot, spot.topic_id, spot.partition)
            self._used[writer] = slot + 1
            found = self._places[spot] = (writer, slot)
            self._spots[found] = spot
        return found


__all__ = ["Mirror", "Spot"]
