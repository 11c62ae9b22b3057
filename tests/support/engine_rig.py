"""A writer's engine without a broker: its shared-memory objects, one file a segment, and a bare
client.

The client half writes frames byte by byte from layout.h's description, so that tests can also
write wrong ones.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from shmbroker._core import shm
from shmbroker._core.batch import encode_batch
from shmbroker._core.engine import WANT_ROLL, WANT_SEAL, Engine, Partition, Source
from shmbroker._core.scan import ProducerTable

BOOT, DIR = b"b" * 16, b"d" * 16
PAGE = 65536
FRAME = struct.Struct("<IHHIIQQ")
RECEIPT = struct.Struct("<QIiqQQq16x")


def batch(values: list[bytes], **how: Any) -> bytes:
    """One record batch of those values."""
    return encode_batch([(1_000 + n, None, value, ()) for n, value in enumerate(values)], **how)


class Client:
    """An ingress ring and its receipts, from the client's side."""

    def __init__(
        self, rig: Rig, ingress: int, capacity: int = 256 << 10, slots: int = 1024
    ) -> None:
        self.id, self.capacity, self.slots, self.rig = ingress, capacity, slots, rig
        self.ring = shm.create(
            f"{rig.prefix}-i{ingress}",
            shm.KIND_INGRESS,
            ingress,
            shm.ingress_bytes(capacity),
            BOOT,
            DIR,
            capacity=capacity,
        )
        self.answers = shm.create(
            f"{rig.prefix}-r{ingress}",
            shm.KIND_RECEIPTS,
            ingress,
            shm.receipts_bytes(slots),
            BOOT,
            DIR,
            slots=slots,
        )
        self.ring_map = mmap.mmap(self.ring.fileno(), shm.ingress_bytes(capacity))
        self.answers_map = mmap.mmap(self.answers.fileno(), shm.receipts_bytes(slots))
        self.head = 0
        self.seq = 0

    def attach(self, engine: Engine) -> Source:
        """Lets the engine have it."""
        return engine.add_source(
            self.id, self.ring.fileno(), self.answers.fileno(), self.capacity, self.slots
        )

    def write(self, data: bytes) -> None:
        """Puts bytes at the head without publishing them."""
        at = self.head % self.capacity
        first = data[: self.capacity - at]
        self.ring_map[PAGE + at : PAGE + at + len(first)] = first
        self.ring_map[PAGE : PAGE + len(data) - len(first)] = data[len(first) :]
        self.head += -(-len(data) // 8) * 8

    def publish(self) -> None:
        """Stores the head and rings the writer's bell."""
        self.ring_map[64:72] = struct.pack("<Q", self.head)
        self.rig.ring_doorbell()

    def send(
        self,
        payload: bytes,
        *,
        slot: int = 0,
        epoch: int = 1,
        acks: int = 2,
        length: int | None = None,
        seq: int | None = None,
        chain: int = 0,
    ) -> int:
        """Publishes a frame; returns its number."""
        number = self.seq if seq is None else seq
        header = FRAME.pack(
            len(payload) if length is None else length, acks, 0, slot, epoch, number, chain
        )
        self.write(header + payload)
        self.publish()
        self.seq += 1
        return number

    def tail(self) -> int:
        """The consumed end."""
        return int(struct.unpack_from("<Q", self.answers_map, 64)[0])

    def receipts(self) -> int:
        """How many frames have their receipt."""
        return int(struct.unpack_from("<Q", self.answers_map, 72)[0])

    def detached(self) -> int:
        """The error code with which the writer dropped the ring; 0: it didn't."""
        return int(struct.unpack_from("<I", self.answers_map, 80)[0])

    def receipt(self, seq: int) -> dict[str, int]:
        """Frame `seq`'s receipt."""
        names = ("seq", "slot", "error", "base_offset", "end_position", "generation", "log_start")
        at = PAGE + 64 * (seq % self.slots)
        return dict(zip(names, RECEIPT.unpack_from(self.answers_map, at), strict=True))

    def wait(self, seq: int) -> dict[str, int]:
        """The receipt, once it is there."""
        self.rig.until(lambda: self.receipts() > seq)
        return self.receipt(seq)

    def close(self) -> None:
        """Unlinks both objects."""
        self.ring_map.close()
        self.answers_map.close()
        for found in (self.ring, self.answers):
            found.unlink()
            found.close()


class Rig:
    """A table, a park object and engines over them. `with Rig(tmp_path) as rig`."""

    def __init__(self, directory: Path, slots: int = 128) -> None:
        self.directory = directory
        self.prefix = f"/shmb-{os.getuid()}-test{os.getpid():x}"
        size = shm.table_bytes(slots)
        self.table = shm.create(
            f"{self.prefix}-w0", shm.KIND_WRITER, 0, size, BOOT, DIR, slots=slots
        )
        self.park = shm.create(f"{self.prefix}-p", shm.KIND_PARK, 0, PAGE, BOOT, DIR)
        self.park_map = mmap.mmap(self.park.fileno(), PAGE)
        self.view = shm.TableView(f"/dev/shm{self.prefix}-w0")
        self.threads: list[threading.Thread] = []
        self.rings: dict[int, shm.ShmObject] = {}
        self.clients: list[Client] = []
        self.files: list[int] = []
        self.engines: list[Engine] = []
        self.producers = ProducerTable()

    def engine(self, **how: Any) -> Engine:
        """A new engine over the table, as a new writer process would make one."""
        made = Engine(self.table.fileno(), self.park.fileno(), **how)
        made.claim()
        self.engines.append(made)
        return made

    def start(self, engine: Engine, flushers: int = 2) -> None:
        """Its threads."""
        targets = [engine.run_sequencer] + [engine.run_flusher] * flushers
        for target in targets:
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self.threads.append(thread)
        self.until(lambda: engine.running and engine.flushers == flushers)

    def stop(self, engine: Engine) -> None:
        """Ends its threads, whatever is in the rings."""
        engine.stop_sequencer()
        engine.stop_flushers()
        for thread in self.threads:
            thread.join(40)
            assert not thread.is_alive()
        self.threads.clear()

    def file(self, base_offset: int, size: int = 8 << 20) -> int:
        """A preallocated segment file."""
        path = self.directory / f"{base_offset:020}.log"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(fd, 0, size)
        self.files.append(fd)
        return fd

    def partition(
        self,
        engine: Engine,
        slot: int = 0,
        *,
        adopt: bool = False,
        capacity: int = 256 << 10,
        segment_bytes: int = 8 << 20,
        fd: int | None = None,
        **how: Any,
    ) -> Partition:
        """An empty partition in a slot, with a ring, online."""
        if not adopt:
            engine.assign_slot(slot, b"t" * 16, slot, 1)
        ring = self.rings.get(slot)
        part = engine.open_partition(
            slot,
            self.producers,
            fd=self.file(0) if fd is None else fd,
            adopt=adopt,
            file_position=0,
            segment_base_offset=0,
            next_offset=0,
            log_start_offset=0,
            leader_epoch=3,
            alloc_bytes=8 << 20,
            segment_bytes=segment_bytes,
            max_message_bytes=1 << 20,
            index_interval_bytes=4096,
            max_timestamp=-1,
            unit=4096,
            ring_ceiling=capacity,
            ring_fd=ring.fileno() if adopt and ring else -1,
            ring_bytes=capacity if adopt else 0,
            **how,
        )
        if not adopt:
            self.install(part, capacity)
        part.set_state("online")
        return part

    def install(self, part: Partition, capacity: int) -> None:
        """Gives it a new ring."""
        generation = part.generation + 1
        made = shm.create(
            f"{self.prefix}-l0.{part.slot}.{generation}",
            shm.KIND_LOG,
            0,
            shm.log_bytes(capacity),
            BOOT,
            DIR,
        )
        part.install_ring(made.fileno(), capacity, generation, None if part.ring_bytes else b"")
        old = self.rings.pop(part.slot, None)
        if old:
            old.unlink()
            old.close()
        self.rings[part.slot] = made

    def client(self, ingress: int = 1, **how: Any) -> Client:
        """A client's rings."""
        made = Client(self, ingress, **how)
        self.clients.append(made)
        return made

    def housekeep(self, engine: Engine) -> list[tuple[int, int]]:
        """Names segments that were begun; returns what was wanted."""
        found = []
        for part, bits in engine.take_wants():
            part.done(bits)
            if bits & WANT_ROLL:
                part.rolled(self.file(part.roll_waits))
            found.append((part.slot, bits & (WANT_SEAL | WANT_ROLL)))
        return found

    def ring_doorbell(self) -> None:
        """Wakes the sequencer as shmb_park_wake does."""
        import ctypes

        word = ctypes.c_uint32.from_buffer(self.park_map, 64 * 2)
        if word.value:
            word.value = 0
            ctypes.CDLL(None).syscall(202, ctypes.byref(word), 1, 2**31 - 1, None, None, 0)
        del word

    def until(self, condition: Any) -> None:
        """Spins until a condition holds (the rings have no bell for a test)."""
        import time

        deadline = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.0002)

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, _t: type[BaseException] | None, _v: BaseException | None, _b: TracebackType | None
    ) -> None:
        for engine in self.engines:
            if engine.running:
                self.stop(engine)
        self.park_map.close()
        self.view.close()
        for client in self.clients:
            client.close()
        for found in (self.table, self.park, *self.rings.values()):
            found.unlink()
            found.close()
        for fd in self.files:
            os.close(fd)
