"""Which slot of which writer is which partition, how many writers there are, and on which cores.

Owns: the plan as the acceptor holds it, and `WriterSpec`, what a writer process is started with.
The durable form of the plan is the writer tables themselves (`docs/ARCHITECTURE.md`):
`Plan.adopt` takes it from there after a crash, and a broker that starts afresh makes a new one.

Invariants: a partition has one place, a place one partition; a place keeps its partition until it
is released; `slot_epoch` of a place is above every epoch that its table has ever shown. No I/O
and no clock in here, so it can be tested as plain values.

How many writers: `writers = "auto"` allows one a core but one (cores - 1, at least 1, at most
WRITERS_MAX); a process is started when the first partition needs it, so an idle broker on a large
host has few, and partitions share once all are started. A number starts exactly so many at once.
How large a table: twice what the topics need, at least SLOTS_MIN. A table is mapped by every
client and so never grows; when all are full a topic is refused, and the next clean start sizes
them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from shmbroker import errors
from shmbroker._core.shm import SLOTS_MAX, WRITERS_MAX
from shmbroker.config import BrokerConfig

SLOTS_MIN: Final = 1024


@dataclass(frozen=True, slots=True)
class IoSettings:
    """How a writer writes: `broker.*` of the configuration with every "auto" decided."""

    flush_depth: int  # flusher threads
    flush_max_bytes: int  # of one write
    idle: Literal["adaptive", "spin", "park"]


@dataclass(frozen=True, slots=True)
class WriterSpec:
    """What a writer process is started with; pickled once, never changed."""

    writer: int  # index, from 0
    instance: str
    data_dir: Path
    runtime_dir: Path
    workers_address: str  # ZeroMQ endpoint of the acceptor: ipc://…
    shm_prefix: str  # "/shmb-<uid>-<8 hex>"
    data_dir_id: str  # 32 hex digits, as in every object's preamble
    boot_id: str  # 32 hex digits, likewise
    config: BrokerConfig
    log_memory_bytes: int  # what the log rings of this writer may take together
    cpus: tuple[int, ...] | None  # pin the process to these; None: don't
    cpus_allowed: tuple[int, ...]  # all that the broker may use, for threads that are not pinned
    adopt: bool  # the table holds a plan of this boot: take its rings over
    io: IoSettings
    parent_pid: int  # the acceptor's; a worker whose parent is another ends at once

    @property
    def table_name(self) -> str:
        """The shared-memory name of this writer's table."""
        return f"{self.shm_prefix}-w{self.writer}"

    @property
    def title(self) -> str:
        """The process title that `ps` shows."""
        return f"shmbroker {self.instance}: writer-{self.writer}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one partition is served."""

    topic_id: str  # 32 hex digits
    topic: str
    partition: int
    writer: int
    slot: int
    slot_epoch: int


@dataclass(slots=True)
class Plan:
    """The places of all partitions. Belongs to the acceptor's one thread."""

    writers_limit: int
    table_slots: int
    writers: set[int] = field(default_factory=set)  # those that have a table
    places: dict[tuple[str, int], Place] = field(default_factory=dict)  # by (topic_id, partition)
    slots_max: dict[int, int] = field(default_factory=dict)  # of adopted tables
    _taken: dict[int, dict[int, Place]] = field(default_factory=dict)  # by writer and slot

    def adopt(
        self, tables: Mapping[int, Mapping[str, Any]], topics: Mapping[str, tuple[str, int]]
    ) -> None:
        """Takes over what the tables (`read_table`) hold of `topics` (id -> name, partitions).

        Slots of topics that are gone stay out of the plan: the writer frees what `open` omits.
        """
        for writer, table in sorted(tables.items()):
            self.add_writer(writer, table["slots_max"])
            for slot in table["slots"]:
                topic_id, partition = slot["topic_id"], slot["partition"]
                name, partitions = topics.get(topic_id, ("", 0))
                known = partition < partitions and (topic_id, partition) not in self.places
                if known and slot["state"] != "closed":
                    self._put(
                        Place(topic_id, name, partition, writer, slot["slot"], slot["slot_epoch"])
                    )

    def add_writer(self, writer: int, slots_max: int | None = None) -> None:
        """Counts a writer in, whose table has `slots_max` slots."""
        self.writers.add(writer)
        self.slots_max[writer] = slots_max or self.table_slots
        self._taken.setdefault(writer, {})

    def place(
        self,
        topic_id: str,
        topic: str,
        partitions: Iterable[int],
        slot_epoch: Callable[[int, int], int],
    ) -> list[Place]:
        """Gives each partition the first free slot of the writer that has least.

        `slot_epoch(writer, slot)` is what the table shows now (0 without a table). A writer that is
        not in `writers` yet may be chosen: the caller starts it. Raises InvalidPartitions, and
        changes nothing, when the tables are full.
        """
        wanted, made = list(partitions), []
        room = sum(self._slots_of(w) - len(self._taken.get(w, ())) for w in self._candidates())
        if len(wanted) > room:
            raise errors.InvalidPartitions(
                f"topic {topic!r} needs {len(wanted)} partitions, and the writer tables have room "
                f"for {room}; they are made larger at a clean start: shmbroker down, shmbroker up"
            )
        for partition in wanted:
            writer = self._least_loaded()
            taken = self._taken.setdefault(writer, {})
            slot = next(n for n in range(self._slots_of(writer)) if n not in taken)
            epoch = slot_epoch(writer, slot) + 1
            made.append(self._put(Place(topic_id, topic, partition, writer, slot, epoch)))
        return made

    def release(self, place: Place) -> None:
        """Frees a place, after its writer has let go of it."""
        if self.places.pop((place.topic_id, place.partition), None) is not None:
            self._taken[place.writer].pop(place.slot, None)

    def of_topic(self, topic_id: str) -> list[Place]:
        """The places of a topic's partitions, in order."""
        found = [place for place in self.places.values() if place.topic_id == topic_id]
        return sorted(found, key=lambda place: place.partition)

    def of_writer(self, writer: int) -> list[Place]:
        """The places in a writer's table, in order of slots."""
        found = [place for place in self.places.values() if place.writer == writer]
        return sorted(found, key=lambda place: place.slot)

    def at(self, writer: int, slot: int) -> Place | None:
        """The place in a slot of a writer's table."""
        return self._taken.get(writer, {}).get(slot)

    def slots_used(self, writer: int) -> int:
        """The slots of a writer's table from 0 on in which all its places are."""
        return max(self._taken.get(writer, ()), default=-1) + 1

    def _put(self, place: Place) -> Place:
        taken = self._taken.setdefault(place.writer, {})
        assert place.slot not in taken, f"slot {place.slot} of writer {place.writer} is taken"
        taken[place.slot] = place
        self.places[place.topic_id, place.partition] = place
        return place

    def _candidates(self) -> list[int]:
        """Writers there are, and those that may still be started."""
        fresh = (n for n in range(WRITERS_MAX) if n not in self.writers)
        may_start = max(0, self.writers_limit - len(self.writers))
        return sorted(self.writers) + [next(fresh) for _ in range(may_start)]

    def _slots_of(self, writer: int) -> int:
        return self.slots_max.get(writer, self.table_slots)

    def _least_loaded(self) -> int:
        load = {w: len(self._taken.get(w, ())) for w in self._candidates()}
        return min((w for w in load if load[w] < self._slots_of(w)), key=lambda w: (load[w], w))


def writers_limit(setting: int | Literal["auto"], cores: int) -> int:
    """How many writers there may be: the setting, or a core each but one."""
    return max(1, min(cores - 1 if setting == "auto" else setting, WRITERS_MAX))


def writers_at_start(setting: int | Literal["auto"], limit: int, partitions: int) -> int:
    """How many writers start with the broker; see the head of this file."""
    return max(1, min(limit, partitions)) if setting == "auto" else limit


def table_slots_for(partitions: int, writers: int) -> int:
    """Slots of each table: twice what is needed, a power of two, SLOTS_MIN to SLOTS_MAX."""
    needed = 2 * -(-partitions // writers)
    return min(SLOTS_MAX, max(SLOTS_MIN, 1 << (needed - 1).bit_length() if needed else 1))


def cores_for_writers(
    cpus: Sequence[int], writers: int, pin: bool | Literal["auto"]
) -> dict[int, tuple[int, ...]]:
    """Writer -> the core it is pinned to; empty: nothing is pinned.

    The first core is left to clients and the acceptor. With one core, or more writers than the
    other cores, pinning would make writers wait for each other, so there is none.
    """
    if pin is False or writers > len(cpus) - 1:
        return {}
    return {writer: (cpus[1 + writer],) for writer in range(writers)}


__all__ = [
    "SLOTS_MIN",
    "IoSettings",
    "Place",
    "Plan",
    "WriterSpec",
    "cores_for_writers",
    "table_slots_for",
    "writers_at_start",
    "writers_limit",
]
