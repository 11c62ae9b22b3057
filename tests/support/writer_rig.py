"""A writer without its process: engine, rings, opener and files of `shmbroker.workers`, and a
housekeeper of a few lines in the caller's thread; and a load that knows what was acknowledged when.

`Station` stands where `workers/writer.py` stands; `Load` is its clients. The trace of every write
goes to a file beside the data.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from engine_rig import BOOT, DIR, FRAME, Client, Rig, batch

from shmbroker import errors
from shmbroker._core import engine as core
from shmbroker._core.batch import decode_values, next_batch
from shmbroker.config import MemorySection
from shmbroker.log.iomode import IoMode, detect_io_mode
from shmbroker.log.partition import PartitionLog
from shmbroker.log.reader import SegmentReader
from shmbroker.topic_settings import TopicSettings
from shmbroker.workers.opening import Opener
from shmbroker.workers.rings import Rings
from shmbroker.workers.served import Assignment, Served

TOPIC_ID = "74" * 16
FLUSH_BYTES = 64 << 10
SETTINGS = TopicSettings(
    segment_bytes=128 << 10, max_message_bytes=32 << 10, index_interval_bytes=1024
)
MEMORY = MemorySection(ring_min_bytes=128 << 10, ring_max_bytes=256 << 10)


def directory_of(slot: int) -> str:
    """Of a partition, below the data directory."""
    return f"t-{slot}"


def open_log(data: Path, slot: int = 0, settings: TopicSettings = SETTINGS) -> PartitionLog:
    """Recovers a partition as `Station` does."""
    io = detect_io_mode(str(data))
    return PartitionLog.open(
        data / directory_of(slot),
        TOPIC_ID,
        "t",
        slot,
        settings,
        io,
        write_reach_bytes=reach(settings, io),
        create=True,
    )


def reach(settings: TopicSettings, io: IoMode) -> int:
    """As `Opener` works it out."""
    return max(FLUSH_BYTES, settings.max_message_bytes) + 2 * io.unit


class Station:
    """See the module. `with Station(data, trace) as station`; leaves the files as a crash would."""

    def __init__(
        self,
        data: Path,
        trace: Path,
        *,
        partitions: int = 1,
        settings: TopicSettings = SETTINGS,
        inline: bool = True,
    ) -> None:
        data.mkdir(exist_ok=True)
        self.data, self.settings = data, settings
        self.rig = Rig(data)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._trace = os.open(trace, flags, 0o600)
        self.engine = self.rig.engine(
            flush_max_bytes=FLUSH_BYTES,
            trace_fd=self._trace,
            inline_limit_ns=1 << 40 if inline else 0,
        )
        self.rings = Rings(self.engine, self.rig.prefix, 0, BOOT, DIR, 64 << 20, MEMORY)
        self.rings.settle = self._settle
        self.io = detect_io_mode(str(data))
        self.opener = Opener(self.engine, self.rings, self.io, FLUSH_BYTES)
        self.served = {slot: self._open(slot) for slot in range(partitions)}

    def _open(self, slot: int) -> Served:
        place = Assignment(
            slot, 1, "t", TOPIC_ID, slot, str(self.data / directory_of(slot)), self.settings
        )
        return self.opener.open(place, adopt=False)

    def start(self, flushers: int = 2) -> None:
        """The threads."""
        self.rig.start(self.engine, flushers)

    def add_flusher(self) -> None:
        """One more; after `start(flushers=0)` what had gathered becomes one write."""
        thread = threading.Thread(target=self.engine.run_flusher, daemon=True)
        thread.start()
        self.rig.threads.append(thread)

    def log(self, slot: int = 0) -> PartitionLog:
        """A partition's files."""
        found = self.served[slot].log
        assert found is not None, self.served[slot].reason
        return found

    def part(self, slot: int = 0) -> core.Partition:
        """A partition in the engine."""
        found = self.served[slot].part
        assert found is not None, self.served[slot].reason
        return found

    def housekeep(self) -> None:
        """What the writer's housekeeper does when the engine asks, the roll first."""
        for part, bits in self.engine.take_wants():
            served = self.served[part.slot]
            part.done(bits)
            steps: tuple[tuple[int, Callable[[], object]], ...] = (
                (core.WANT_ROLL, served.roll),
                (core.WANT_RING, partial(self._provide, served)),
                (core.WANT_ALLOC, served.extend),
                (core.WANT_NEXT, served.prepare_next),
                (core.WANT_SEAL, served.seal),
                (core.WANT_INDEX, served.collect_index),
                (core.WANT_FAILED, served.fail),
            )
            for bit, step in steps:
                if bits & bit:
                    step()

    def _provide(self, served: Served) -> None:
        part = served.part
        assert part is not None
        if not part.ring_bytes:
            served.first_append(self.rings)
        elif part.ring_need > part.ring_bytes:
            self.rings.provide(part, None)

    def _settle(self, slot: int) -> None:
        served = self.served[slot]
        if served.part is not None and served.part.roll_waits is not None:
            served.part.done(core.WANT_ROLL)
            served.roll()

    def until(self, condition: Callable[[], bool]) -> None:
        """Housekeeps until it holds."""
        deadline = time.monotonic() + 40
        while not condition():
            self.housekeep()
            assert time.monotonic() < deadline, "it never came true"

    def __enter__(self) -> Station:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self.engine.running:
            self.rig.stop(self.engine)
        for slot, served in self.served.items():
            if served.part is not None:
                self.engine.close_partition(slot)
                self.rings.drop(slot)
            if served.log is not None:
                served.log.close()
        self.rig.__exit__(kind, value, tb)
        os.close(self._trace)


@dataclass(frozen=True)
class Acked:
    """A batch whose producer was told that it is durable."""

    at: int  # CLOCK_MONOTONIC, ns
    slot: int
    offset: int
    values: tuple[bytes, ...]


@dataclass
class Sent:
    """A published batch."""

    client: int
    slot: int
    values: tuple[bytes, ...]
    seq: int


class Load:
    """Clients of a station. `sent` is everything ever published, `acked` what was acknowledged."""

    def __init__(self, station: Station, rng: random.Random, name: str, clients: int = 2) -> None:
        self.station, self.rng, self.name = station, rng, name
        self.clients = [station.rig.client(n + 1) for n in range(clients)]
        for client in self.clients:
            client.attach(station.engine)
        self.sent: list[Sent] = []
        self.acked: list[Acked] = []
        self._open: list[Sent] = []
        self._count = 0

    def values(self, count: int, size: int) -> list[bytes]:
        """Never seen before, and saying whose they are."""
        found = []
        for _ in range(count):
            self._count += 1
            found.append(b"%s:%d:" % (self.name.encode(), self._count) + self.rng.randbytes(size))
        return found

    def publish(
        self, client: Client, batches: list[tuple[int, list[bytes]]], acks: int = 2
    ) -> None:
        """Several frames with one store of the head, so that one write may take them all."""
        for slot, values in batches:
            payload = batch(values)
            client.write(FRAME.pack(len(payload), acks, 0, slot, 1, client.seq, 0) + payload)
            sent = Sent(client.id, slot, tuple(values), client.seq)
            client.seq += 1
            self.sent.append(sent)
            self._open.append(sent)
        client.publish()

    def room(self, client: Client) -> int:
        """Bytes that may be published."""
        return client.capacity - (client.head - client.tail())

    def look(self) -> None:
        """Notes what has been acknowledged as durable by now."""
        still = []
        durable: dict[int, tuple[int, int]] = {}
        for sent in self._open:
            client = self.clients[sent.client - 1]
            if client.receipts() <= sent.seq:
                still.append(sent)
                continue
            receipt = client.receipt(sent.seq)
            assert receipt["error"] == 0, receipt
            if sent.slot not in durable:
                words = self.station.rig.view.slot(sent.slot)
                durable[sent.slot] = (words["durable_position"], words["generation"])
            position, generation = durable[sent.slot]
            assert receipt["generation"] >> 32 == generation >> 32
            if receipt["end_position"] > position:
                still.append(sent)
                continue
            now = time.monotonic_ns()
            self.acked.append(Acked(now, sent.slot, receipt["base_offset"], sent.values))
        self._open = still

    def some(self) -> None:
        """A random burst, then a random pause with the housekeeper at work."""
        rng, client = self.rng, self.rng.choice(self.clients)
        slots = len(self.station.served)
        burst = [
            (rng.randrange(slots), self.values(rng.randint(1, 8), rng.choice((20, 300, 1500))))
            for _ in range(rng.choice((1, 1, 2, 5, 8)))
        ]
        need = sum(200 + sum(len(v) + 20 for v in values) for _, values in burst)

        def free() -> bool:  # receipts stay readable until 1024 later ones have come
            self.look()
            return self.room(client) > need and len(self._open) < 900

        self.station.until(free)
        self.publish(client, burst)
        for _ in range(rng.choice((1, 3, 30))):
            self.station.housekeep()
            self.look()

    def settle(self) -> None:
        """Until all that was published is acknowledged."""

        def done() -> bool:
            self.look()
            return not self._open

        self.station.until(done)


def batches_of(
    directory: Path, start: int = 0, limit: tuple[int, int] | None = None
) -> list[tuple[int, int, tuple[bytes, ...]]]:
    """(base offset, leader epoch, values) of every batch that a reader finds on disk."""
    found = []
    with SegmentReader(str(directory)) as reader:
        while data := reader.fetch(start, 1 << 20, limit):
            at = 0
            while at < len(data):
                info = next_batch(data, at)
                assert info is not None
                values = tuple(v or b"" for v in decode_values(data[at : at + info.size]))
                found.append((info.base_offset, info.leader_epoch, values))
                at += info.size
                start = info.base_offset + len(values)
    return found


__all__ = ["Acked", "Load", "Sent", "Station", "batches_of", "directory_of", "errors", "open_log"]
