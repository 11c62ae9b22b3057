"""`max.message.bytes` as a promise: whether the memory budget keeps it, and for how many writers.

Owns: the refusal, by name, of a topic or an alteration that no ring could keep, and the bound that
the promises there are put on the number of writers, since each writer more makes the shares of all
smaller. What is held back for a promise is `SharedMemory`'s (ingress) and `Rings`' (log).

Invariants: nothing that is done while the broker runs breaks a promise that was accepted; a
configuration that leaves less memory than before can, and is told of by name at `up`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shmbroker import errors
from shmbroker._core import shm
from shmbroker.config import TopicSettings
from shmbroker.control.plan import Plan
from shmbroker.control.sharedmem import SharedMemory, ingress_bytes_for, log_bytes_for
from shmbroker.workers.logs import get_logger

_log = get_logger("shmbroker.topics")
_NOBODY: Final = ("", 0)


class Promises:
    """Of all topics. Belongs to the loop's thread."""

    def __init__(self, memory: SharedMemory, plan: Plan) -> None:
        self._memory, self._plan = memory, plan
        self._writers_limit = plan.writers_limit  # without any promise
        self._batches: dict[str, int] = {}  # by topic
        self._largest = _NOBODY

    def put(self, topics: Iterable[tuple[str, TopicSettings]]) -> None:
        """These topics promise what their settings say; before places for them are sought."""
        self._batches |= {name: settings.largest_batch_bytes for name, settings in topics}
        self._follow()

    def drop(self, name: str) -> None:
        """The topic is gone."""
        self._batches.pop(name, None)
        self._follow()

    def _follow(self) -> None:
        self._largest = max(self._batches.items(), key=lambda entry: entry[1], default=_NOBODY)
        self._memory.promised_batch_bytes = self._largest[1]
        self._plan.writers_limit = self._writers_for(self._largest[1])

    def check(self, name: str, settings: TopicSettings) -> None:
        """Raises MemoryBudget if some ring could not hold the largest batch of these settings."""
        batch = settings.largest_batch_bytes
        writers = max(1, len(self._plan.writers))
        for needed, room, kind in (
            (log_bytes_for(batch), self._log_room(writers), "log"),
            (ingress_bytes_for(batch), self._memory.largest_ingress_bytes, "ingress"),
        ):
            if needed > room:
                raise errors.MemoryBudget(
                    f"topic {name!r} can't have max.message.bytes={settings.max_message_bytes}: "
                    f"its {kind} ring would need {needed} bytes, and the memory budget leaves "
                    f"{room} for one ({writers} writer{'s' * (writers > 1)}); lower it, or raise "
                    "memory.budget_bytes",
                    needed_bytes=needed,
                    available_bytes=room,
                )

    def tell_broken(self) -> None:
        """At `up`: the log names the largest promise if less memory is there than when it was
        made; and says when it keeps writers from being started."""
        name, batch = self._largest
        needed = log_bytes_for(batch)
        room = self._log_room(max(1, len(self._plan.writers)))
        if batch and (
            needed > room or ingress_bytes_for(batch) > self._memory.largest_ingress_bytes
        ):
            _log.error(
                "a topic's promise can't be kept: lower its max.message.bytes, or raise "
                "memory.budget_bytes",
                topic=name,
                largest_batch_bytes=batch,
                ring_bytes=needed,
                available_bytes=room,
            )
        elif self._plan.writers_limit < self._writers_limit:
            _log.info(
                "fewer writers than there are cores for: a topic's max.message.bytes needs rings "
                "so large",
                topic=name,
                writers_limit=self._plan.writers_limit,
                without_it=self._writers_limit,
            )

    def _log_room(self, writers: int) -> int:
        table_bytes = shm.table_bytes(self._plan.table_slots)
        return self._memory.largest_log_ring_bytes(writers, table_bytes)

    def _writers_for(self, batch: int) -> int:
        """The most writers whose share holds a ring for it twice; at least those there are."""
        needed, limit = log_bytes_for(batch), self._writers_limit
        while limit > 1 and self._log_room(limit) < needed:
            limit -= 1
        return max(limit, len(self._plan.writers), 1)


__all__ = ["Promises"]
