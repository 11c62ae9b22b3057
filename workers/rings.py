"""The log rings of one writer: made, grown, taken away, within the writer's share of the memory
budget.

Owns: the shared-memory objects `<prefix>-l<writer>.<slot>.<generation>` and the sum of their
bytes. Runs in the housekeeper. A ring is made at a partition's first append with
`memory.ring_min_bytes`, grows fourfold when producers wait for it, up to `memory.ring_max_bytes`,
and is taken away when it is idle and others need the room.

Invariants: a partition is held and drained whenever its ring changes, so everything under the old
generation is durable; the low half of the generation counts rings, the high half recoveries from
disk; `ring_bytes` 0 in the slot says that there is none, and then the file holds the whole log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shmbroker import errors
from shmbroker._core import shm
from shmbroker._core.engine import Engine, Partition
from shmbroker.config import MemorySection
from shmbroker.control.sharedmem import log_bytes_for

IDLE_S: Final = 0.02  # a ring without an append for so long may be taken away
DRAIN_S: Final = 5.0  # the longest wait for a drain; then it is tried again later


@dataclass(slots=True)
class Ring:
    """One ring object."""

    object: shm.ShmObject
    capacity: int
    appended: int = -1  # the partition's appended bytes when last looked at
    used_at: float = 0.0  # monotonic time of the look that saw them change


class Rings:
    """Makes and keeps rings; see the module."""

    def __init__(
        self,
        engine: Engine,
        prefix: str,
        writer: int,
        boot_id: bytes,
        dir_id: bytes,
        budget_bytes: int,
        memory: MemorySection,
    ) -> None:
        self._engine = engine
        self._name = f"{prefix}-l{writer}"
        self._writer = writer
        self._ids = (boot_id, dir_id)
        self.budget_bytes = budget_bytes
        self._memory = memory
        self._rings: dict[int, Ring] = {}
        self._refused: set[int] = set()
        # Names a segment that the slot's flushers wait for: a held partition can't drain without.
        self.settle: Callable[[int], None] = lambda _slot: None
        self.used_bytes = 0
        # Held back for the largest batch that a topic promises to take (max.message.bytes); at most
        # half of the budget, which the acceptor has checked it to fit.
        self.promised_bytes = 0

    def name(self, slot: int, generation: int) -> str:
        """The object's name for a generation of a slot's ring."""
        return f"{self._name}.{slot}.{generation}"

    def open_existing(self, slot: int, generation: int, capacity: int) -> int:
        """Takes over a killed writer's ring; returns its descriptor. Raises OSError."""
        found = shm.open_existing(
            self.name(slot, generation), shm.KIND_LOG, *self._ids, writable=True
        )
        self._rings[slot] = Ring(found, capacity)
        self.used_bytes += shm.log_bytes(capacity)
        return found.fileno()

    @property
    def largest_bytes(self) -> int:
        """The largest capacity that a ring may grow to under load."""
        largest = self._memory.ring_max_bytes
        while largest > self._memory.ring_min_bytes and shm.log_bytes(largest) > self.budget_bytes:
            largest //= 2
        return largest

    def provide(self, part: Partition, tail: bytes | None) -> bool:
        """Gives the partition the ring it asked for, or the largest that there is room for.

        `tail`: the bytes of the partial last unit when there is no ring yet. False: no room now and
        the frame can't go on without; try again when others have drained. When only growth was
        refused, the partition asks no more until `allow_growth`.
        """
        present, need, must = part.ring_bytes, part.ring_need, part.ring_must
        wanted = self._capacity_for(need, present)
        least = max(_power(need), self._memory.ring_min_bytes) if not present else 2 * present
        while wanted >= least:
            fits = self._make_room if must > present else self._may_grow
            if fits(wanted, part):
                return self._change(part, wanted, tail)
            wanted //= 2
        if present:
            part.set_ring_ceiling(present)
            self._refused.add(part.slot)
        return present >= must

    def allow_growth(self) -> None:
        """Lets those ask again that were refused growth."""
        for slot in self._refused:
            part = self._engine.partition(slot)
            if part is not None:
                part.set_ring_ceiling(self.largest_bytes)
        self._refused.clear()

    def _change(self, part: Partition, capacity: int, tail: bytes | None) -> bool:
        part.hold()
        try:
            self.settle(part.slot)
            if part.ring_bytes and not part.wait_drained(DRAIN_S):
                return False
            self._replace(part, capacity, tail)
        finally:
            part.resume()
        return True

    def drop(self, slot: int) -> None:
        """Unlinks a slot's ring object, whatever it holds."""
        ring = self._rings.pop(slot, None)
        if ring is not None:
            self.used_bytes -= shm.log_bytes(ring.capacity)
            ring.object.unlink()
            ring.object.close()

    def unlink_stray(self, slot: int, generation: int) -> None:
        """Unlinks the ring that a killed writer left under that generation, if there is one."""
        shm.unlink(self.name(slot, generation))

    def look(self, now: float) -> None:
        """Notes which rings are in use; to be called regularly."""
        for slot, ring in self._rings.items():
            part = self._engine.partition(slot)
            if part is not None and part.appended_bytes != ring.appended:
                ring.appended, ring.used_at = part.appended_bytes, now

    def _capacity_for(self, need: int, present: int) -> int:
        """A power of two from ring_min on; past ring_max only for one batch that needs it."""
        return max(self._memory.ring_min_bytes, present, _power(need))

    def _replace(self, part: Partition, capacity: int, tail: bytes | None) -> None:
        generation = part.generation + 1
        # A writer that was killed between the next two steps has left one under this name.
        self.unlink_stray(part.slot, generation)
        made = shm.create(
            self.name(part.slot, generation),
            shm.KIND_LOG,
            self._writer,
            shm.log_bytes(capacity),
            *self._ids,
        )
        part.install_ring(made.fileno(), capacity, generation, tail)
        self.drop(part.slot)
        self._rings[part.slot] = Ring(made, capacity, part.appended_bytes, time.monotonic())
        self.used_bytes += shm.log_bytes(capacity)

    def _may_grow(self, capacity: int, part: Partition) -> bool:
        """Growth for speed takes nobody's ring away and leaves half of the budget to first rings:
        otherwise partitions in turn take each other's, at the price of a drain and a map each."""
        more = shm.log_bytes(capacity) - shm.log_bytes(part.ring_bytes)
        return self.used_bytes + more <= self.budget_bytes // 2

    def _make_room(self, capacity: int, part: Partition) -> bool:
        """Whether `capacity` fits the budget, after taking idle rings away if it must be."""
        present = self._rings.get(part.slot)
        needed = shm.log_bytes(capacity) - (shm.log_bytes(present.capacity) if present else 0)
        if self._fits(needed, part):
            return True
        now = time.monotonic()
        self.look(now)
        by_age = sorted(self._rings.items(), key=lambda item: item[1].used_at)
        for slot, ring in by_age:
            if slot == part.slot or now - ring.used_at < IDLE_S:
                continue
            self._take_away(slot)
            if self._fits(needed, part):
                return True
        return False

    def promise(self, largest_batch_bytes: int, *, at_least: bool = True) -> None:
        """Holds back what a ring for such a batch takes; with `at_least` more stays held back."""
        ring = log_bytes_for(largest_batch_bytes)
        self.promised_bytes = max(self.promised_bytes, ring) if at_least else ring

    def _fits(self, needed: int, part: Partition) -> bool:
        """What is held back is there for batches that no smallest ring can take."""
        left = self.budget_bytes - self.used_bytes
        if part.ring_must <= self._memory.ring_min_bytes:
            left -= min(self.promised_bytes, self.budget_bytes // 2)
        return needed <= left

    def _take_away(self, slot: int) -> None:
        part = self._engine.partition(slot)
        if part is None:
            return
        part.hold()
        try:
            self.settle(slot)
            if part.wait_drained(DRAIN_S):
                part.install_ring(-1, 0, part.generation + 1, None)
                self.drop(slot)
        finally:
            part.resume()


def _power(n: int) -> int:
    """The power of two at or above n."""
    return 1 << max(0, n - 1).bit_length()


def require_budget(budget_bytes: int, memory: MemorySection) -> None:
    """Refuses a budget that can't hold one ring of the smallest size."""
    least = shm.log_bytes(memory.ring_min_bytes)
    if budget_bytes < least:
        raise errors.MemoryBudget(
            f"a writer's share of the memory budget is {budget_bytes} bytes and its smallest ring "
            f"needs {least}; raise memory.budget, lower broker.writers, or give /dev/shm more room"
        )


__all__ = ["Ring", "Rings", "require_budget"]
