"""The shared memory of one broker: its names, its budget, and what is taken over or swept at `up`.

Owns: every object of the data directory's prefix but the log rings, which are their writers'.
Makes the park words, the writer tables, the clients' ingress rings and group members' checkpoints;
unlinks all of them.

The budget (`memory.budget_bytes`) is split: a quarter for ingress rings and checkpoints, the rest,
less tables and park words, for log rings, shared evenly by the writers there are. Ingress rings are
given out as asked, within `memory.ingress_*_bytes`, halved while they are more than a quarter of
what is left.
One that takes the largest batch any topic promises is held back for the client that brings it.

Invariants: the park object is flocked by the broker that uses it, so two copies of a data
directory, which have one id, can't share it; nothing is adopted unless its preamble names this
boot and directory.
"""

from __future__ import annotations

import fcntl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shmbroker import errors
from shmbroker._core import shm
from shmbroker.config import MemorySection

RECEIPT_SLOTS_MIN: Final = 64
RECEIPT_SLOTS_MAX: Final = 1 << 16
_RECEIPT_SLOTS_HELD: Final = 1024  # held back with the ring for the largest batch
_OTHERS: Final = 4  # smallest ingress rings that must fit beside that ring; shares of what is left
_DIRECTORY: Final = "/dev/shm"


def boot_id() -> bytes:
    """16 bytes that are the same until the host boots again."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return bytes.fromhex(text.strip().replace("-", ""))


@dataclass(slots=True)
class SharedMemory:
    """The objects of one data directory. The caller holds its lock, and is one thread."""

    prefix: str
    boot_id: bytes
    dir_id: bytes
    settings: MemorySection
    budget_bytes: int = 0
    tables: dict[int, shm.TableView] = field(default_factory=dict)
    promised_batch_bytes: int = 0  # the largest batch that a topic promises to take
    _sizes: dict[str, int] = field(default_factory=dict)  # of what we made or took over
    _promised_to: int | None = None  # the ingress ring that was made of what is held back
    _park: shm.ShmObject | None = None

    def take_over(self) -> dict[int, dict[str, Any]]:
        """Sweeps what is not of this boot; returns the writer tables (`read_table`) that are.

        Without any table everything goes: rings without their table are of no use. Raises
        ShmbrokerError when a broker on a copy of this data directory has them.
        """
        ours = shm.list_ours(self.prefix, self.boot_id, self.dir_id)
        own_bytes = sum(size for _, _, size in ours.values())
        self.budget_bytes = self.settings.budget_in(shm.free_bytes() + own_bytes)
        tables = [owner for kind, owner, _ in ours.values() if kind == shm.KIND_WRITER]
        if self.name("p") in ours:
            self._lock_park(shm.open_existing(self.name("p"), shm.KIND_PARK, *self._ids()))
        # The park words go with the rest; a client of the old ones attaches again anyway.
        shm.sweep(self.prefix, *self._ids(), ours_too=not tables)
        if not tables:
            if self._park is not None:  # swept above, and only now given up
                self._park.close()
                self._park = None
            self._check_room()
        if self._park is None:
            self._lock_park(self._create(self.name("p"), shm.KIND_PARK, 0, shm.PARK_BYTES))
        found: dict[int, dict[str, Any]] = {}
        for writer in sorted(tables):
            self.tables[writer] = shm.TableView(self.path(f"w{writer}"))
            found[writer] = {**self.tables[writer].head(), "slots": self.tables[writer].slots()}
        if tables:
            kinds = (shm.KIND_WRITER, shm.KIND_INGRESS, shm.KIND_RECEIPTS, shm.KIND_CHECKPOINTS)
            self._sizes |= {name: size for name, (kind, _, size) in ours.items() if kind in kinds}
        return found

    def make_table(self, writer: int, slots: int) -> None:
        """The table of a writer that has none; raises MemoryBudget."""
        self._create(
            self.name(f"w{writer}"), shm.KIND_WRITER, writer, shm.table_bytes(slots), slots=slots
        ).close()
        self.tables[writer] = shm.TableView(self.path(f"w{writer}"))

    def slot_epoch(self, writer: int, slot: int) -> int:
        """What the table shows for the slot now; 0 without a table."""
        return self.tables[writer].slot_epoch(slot) if writer in self.tables else 0

    def log_memory_bytes(self, writers: int, tables_to_come_bytes: int = 0) -> int:
        """What each of `writers` writers may use for log rings."""
        left = self.budget_bytes - self.ingress_budget_bytes - self._fixed() - tables_to_come_bytes
        return max(0, left) // writers

    def largest_log_ring_bytes(self, writers: int, table_bytes: int) -> int:
        """The largest log ring that may be promised while there are so many writers: half of a
        writer's share, so that the other half is there for everybody else."""
        to_come = max(0, writers - len(self.tables)) * table_bytes
        return self.log_memory_bytes(writers, to_come) // 2

    @property
    def largest_ingress_bytes(self) -> int:
        """The largest ingress ring, receipts included, that may be promised beside some others."""
        smallest = shm.ingress_bytes(_power_of_two(self.settings.ingress_min_bytes))
        smallest += shm.receipts_bytes(_RECEIPT_SLOTS_HELD)
        return max(0, self.ingress_budget_bytes - _OTHERS * smallest)

    @property
    def ingress_budget_bytes(self) -> int:
        """What all ingress rings, receipts and checkpoints may take together."""
        return self.budget_bytes // 4

    @property
    def ingress_used_bytes(self) -> int:
        """What they take."""
        return self._sum("i") + self._sum("r") + self._sum("k")

    def make_ingress(self, ingress: int, pid: int, capacity: int, slots: int) -> tuple[int, int]:
        """Makes the two objects of an ingress ring; returns capacity (bytes) and receipt slots.

        Both become powers of two within bounds, and the capacity is halved until it is a quarter
        of the room there is, or the smallest. `ingress_max_bytes` may be passed for the largest
        batch that a topic promises to take, and who asks for room for that gets what is held back
        for it. Raises MemoryBudget.
        """
        slots = min(max(_power_of_two(slots), RECEIPT_SLOTS_MIN), RECEIPT_SLOTS_MAX)
        least = _power_of_two(self.settings.ingress_min_bytes)
        promised = _batch_ring(self.promised_batch_bytes)
        asked = min(_power_of_two(capacity), max(promised, self._most_unpromised))
        capacity = max(asked, least)
        left = self.ingress_budget_bytes - self.ingress_used_bytes - shm.receipts_bytes(slots)
        room = left - self._held_back()
        while capacity > least and shm.ingress_bytes(capacity) > room // _OTHERS:
            capacity //= 2  # who comes first takes no more than leaves some to the next
        if asked >= promised > capacity and shm.ingress_bytes(promised) <= left:
            capacity, room, self._promised_to = promised, left, ingress
        if shm.ingress_bytes(capacity) > room:
            raise errors.MemoryBudget(
                f"no memory is left for another ingress ring: {shm.ingress_bytes(capacity)} bytes "
                f"are needed and {max(room, 0)} of {self.ingress_budget_bytes} are free; end some "
                "clients, or raise memory.budget_bytes",
                needed_bytes=shm.ingress_bytes(capacity),
                available_bytes=max(room, 0),
            )
        size = shm.ingress_bytes(capacity)
        made = self._create(
            self.name(f"i{ingress}"), shm.KIND_INGRESS, ingress, size, capacity=capacity, pid=pid
        )
        made.close()
        try:
            self._create(
                self.name(f"r{ingress}"),
                shm.KIND_RECEIPTS,
                ingress,
                shm.receipts_bytes(slots),
                slots=slots,
            ).close()
        except BaseException:
            self.drop_ingress(ingress)
            raise
        return capacity, slots

    def drop_ingress(self, ingress: int) -> None:
        """Unlinks both objects, after the writer has unmapped them."""
        for name in (self.name(f"i{ingress}"), self.name(f"r{ingress}")):
            shm.unlink(name)
            self._sizes.pop(name, None)

    def make_checkpoints(
        self, number: int, slots: int, client: int, group: str, member: str
    ) -> tuple[shm.ShmObject, int]:
        """Makes the object for a group member's checkpoints; returns it and its slots, at least so
        many as asked for. Raises MemoryBudget."""
        size = shm.checkpoints_bytes(slots)
        room = max(0, self.ingress_budget_bytes - self.ingress_used_bytes - self._held_back())
        if size > room:
            raise errors.MemoryBudget(
                f"no memory is left for the checkpoints of another group member: {size} bytes are "
                f"needed and {room} of {self.ingress_budget_bytes} are free; commit over the "
                "control channel, end some clients, or raise memory.budget_bytes",
                needed_bytes=size,
                available_bytes=room,
            )
        name = self.name(f"k{number}")
        made = shm.create(
            name, shm.KIND_CHECKPOINTS, number, size, *self._ids(), client=client, group=group,
            member=member,
        )  # fmt: skip
        self._sizes[name] = size
        return made, shm.checkpoints_slots(size)

    def checkpoints(self) -> set[int]:
        """The numbers of those that were made or taken over."""
        return self._owners("k")

    def open_checkpoints(self, number: int) -> shm.ShmObject:
        """One that was taken over; raises OSError, ValueError."""
        return shm.open_existing(self.name(f"k{number}"), shm.KIND_CHECKPOINTS, *self._ids())

    def drop_checkpoints(self, number: int) -> None:
        """Unlinks it; who has it mapped keeps the memory until then."""
        shm.unlink(self.name(f"k{number}"))
        self._sizes.pop(self.name(f"k{number}"), None)

    @property
    def _most_unpromised(self) -> int:
        return _power_below(self.settings.ingress_max_bytes)

    def _held_back(self) -> int:
        """Bytes kept for whoever brings the largest promised batch; 0 once somebody has them."""
        if not self.promised_batch_bytes or self._promised_to in self._owners("i"):
            return 0
        return ingress_bytes_for(self.promised_batch_bytes)

    def ingress_rings(self) -> set[int]:
        """Those that were taken over whole."""
        have = {letter: self._owners(letter) for letter in "ir"}
        return have["i"] & have["r"]

    def sweep_ingress(self, keep: set[int]) -> None:
        """Unlinks ingress objects of nobody: half of a pair, or of a client that is not known."""
        for ingress in (self._owners("i") | self._owners("r")) - keep:
            self.drop_ingress(ingress)

    def usage(self) -> dict[str, int]:
        """Bytes by purpose, for `status`; log rings are counted where they lie."""
        log_bytes = 0
        for name in shm.list_prefix(self.prefix):
            if name.startswith(self.name("l")):
                path = Path(f"{_DIRECTORY}{name}")
                log_bytes += path.stat().st_size if path.exists() else 0
        used = self._fixed() + self.ingress_used_bytes + log_bytes
        return {
            "budget_bytes": self.budget_bytes,
            "used_bytes": used,
            "log_bytes": log_bytes,
            "ingress_budget_bytes": self.ingress_budget_bytes,
            "ingress_bytes": self.ingress_used_bytes,
            "table_bytes": self._fixed(),
            "shm_free_bytes": shm.free_bytes(),
        }

    def close(self, *, unlink: bool) -> None:
        """Unmaps; with `unlink` every object of the prefix goes, log rings included."""
        for table in self.tables.values():
            table.close()
        self.tables.clear()
        if unlink:
            shm.sweep(self.prefix, *self._ids(), ours_too=True)
        if self._park is not None:
            self._park.close()
            self._park = None

    def name(self, suffix: str) -> str:
        """The POSIX name of an object."""
        return f"{self.prefix}-{suffix}"

    def path(self, suffix: str) -> str:
        """The same as a file."""
        return f"{_DIRECTORY}{self.name(suffix)}"

    def open_object(self, suffix: str, kind: int) -> shm.ShmObject:
        """An object of this broker's, to be read; FileNotFoundError without it. Any thread."""
        return shm.open_existing(self.name(suffix), kind, *self._ids())

    def _create(
        self, name: str, kind: int, owner: int, size: int, *, slots: int = 0, capacity: int = 0,
        pid: int = 0,
    ) -> shm.ShmObject:  # fmt: skip
        made = shm.create(
            name, kind, owner, size, *self._ids(), slots=slots, capacity=capacity, client_pid=pid
        )
        self._sizes[name] = size
        return made

    def _lock_park(self, park: shm.ShmObject) -> None:
        try:
            fcntl.flock(park.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            park.close()
            raise errors.ShmbrokerError(
                f"another broker uses the shared memory {self.prefix}-*: its data directory is a "
                "copy of this one, or this is one; stop it, or give the copy an identity of its "
                "own by removing its datadir.json"
            ) from None
        self._park = park

    def _check_room(self) -> None:
        """Refuses at `up` what would fail at the first append."""
        least = shm.PARK_BYTES + shm.table_bytes(1024)
        least += shm.log_bytes(self.settings.ring_min_bytes)
        least += shm.ingress_bytes(self.settings.ingress_min_bytes)
        least += shm.receipts_bytes(RECEIPT_SLOTS_MIN)
        free = shm.free_bytes()
        if free < least:
            raise errors.MemoryBudget(
                f"{_DIRECTORY} is too small: a broker needs at least {least} bytes, and {free} are "
                f"free; enlarge it: mount -o remount,size=1G {_DIRECTORY} "
                "(containers: --shm-size=1g)",
                needed_bytes=least,
                available_bytes=free,
            )
        spare = self.budget_bytes - self.ingress_budget_bytes
        if spare < least:
            raise errors.MemoryBudget(
                f"memory.budget_bytes is {self.budget_bytes} and a broker needs at least "
                f'{least * 4 // 3}; {_DIRECTORY} has {free} free, of which "auto" takes a quarter: '
                "enlarge it, or set memory.budget_bytes",
                needed_bytes=least * 4 // 3,
                available_bytes=self.budget_bytes,
            )

    def _ids(self) -> tuple[bytes, bytes]:
        return self.boot_id, self.dir_id

    def _fixed(self) -> int:
        return self._sum("p") + self._sum("w")

    def _sum(self, letter: str) -> int:
        start = self.name(letter)
        return sum(size for name, size in self._sizes.items() if name.startswith(start))

    def _owners(self, letter: str) -> set[int]:
        start = self.name(letter)
        return {int(name[len(start) :]) for name in self._sizes if name.startswith(start)}


def log_bytes_for(batch_bytes: int) -> int:
    """What the log ring for a batch takes; it shares the ring with a partial last unit."""
    return shm.log_bytes(_batch_ring(batch_bytes))


def ingress_bytes_for(batch_bytes: int) -> int:
    """What the ingress ring for a batch takes, with its receipts."""
    return shm.ingress_bytes(_batch_ring(batch_bytes)) + shm.receipts_bytes(_RECEIPT_SLOTS_HELD)


def _batch_ring(batch_bytes: int) -> int:
    """Capacity of a ring that takes such a batch beside a partial unit, or a frame's header."""
    return _power_of_two(batch_bytes + shm.PAGE_BYTES)


def _power_of_two(n: int) -> int:
    """The least power of two that is n or more."""
    return 1 << max(0, n - 1).bit_length()


def _power_below(n: int) -> int:
    """The greatest power of two that is n or less."""
    return 1 << (n.bit_length() - 1)


__all__ = [
    "RECEIPT_SLOTS_MAX",
    "RECEIPT_SLOTS_MIN",
    "SharedMemory",
    "boot_id",
    "ingress_bytes_for",
    "log_bytes_for",
]
