"""A broker for unit tests: the attach socket, the control channel and one writer's shared memory.

The fake answers what docs/ARCHITECTURE.md says and stores what layout.h says; it shares no code
with the real writer, so the two can't be wrong together.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from shmbroker._core import batch, shm
from shmbroker._core.reader import Mapping, wake_all
from shmbroker.errors import ShmbrokerError, UnknownTopic
from shmbroker.places import Places

u32, u64 = ctypes.c_uint32, ctypes.c_uint64
UNIT = 4096


class Slot(ctypes.Structure):
    """`struct shmb_slot`."""

    _fields_ = (
        *(("topic_id", ctypes.c_uint8 * 16), ("partition", u32), ("slot_epoch", u32)),
        *(("state", u32), ("reason", u32), ("generation", u64), ("ring_bytes", u64)),
        *(("disk_unit", u32), ("pad0", u32), ("fill0", ctypes.c_uint8 * 8)),
        *(("reserved_position", u64), ("fill1", ctypes.c_uint8 * 56)),
        *(("log_end_position", u64), ("log_end_offset", u64), ("index_head", u64)),
        ("fill2", ctypes.c_uint8 * 40),
        *(("durable_position", u64), ("durable_offset", u64), ("flush_seq", u64)),
        *(("flush_base_offset", u64), ("flush_base_position", u64)),
        ("fill3", ctypes.c_uint8 * 24),
        *(("append_base_offset", u64), ("append_base_position", u64)),
        *(("roll_from_position", u64), ("log_start_offset", u64), ("leader_epoch", u32)),
        *(("pad4", u32), ("fill4", ctypes.c_uint8 * 24), ("rest", ctypes.c_uint8 * 192)),
    )


assert ctypes.sizeof(Slot) == 512


class FakePartition:
    """One partition as its writer would keep it. `append` and `flush` move the words and ring."""

    def __init__(self, broker: FakeBroker, number: int, directory: Path) -> None:
        self.broker, self.number, self.directory = broker, number, directory
        self.slot = Slot.from_address(broker.table.address + shm.PAGE_BYTES + 512 * number)
        self.slot.slot_epoch = 1
        self.slot.state = shm.STATES.index("online")
        self.slot.disk_unit = UNIT
        self.capacity = 0
        self.ring: Mapping | None = None
        self.index_at = -1
        self.written: list[tuple[int, bytes]] = []  # segment base offset, batch
        self.segment = 0

    def make_ring(self, capacity: int, recovered: bool = False) -> None:
        """A new generation with an empty index, its partial last unit loaded."""
        s = self.slot
        generation = ((s.generation >> 32) + 1) << 32 if recovered else s.generation
        generation += 1
        made = self.broker.create(
            f"l0.{self.number}.{generation}", shm.KIND_LOG, shm.log_bytes(capacity)
        )
        old = self.ring
        self.ring, self.capacity = Mapping(made.name, made.fileno(), writable=True), capacity
        made.close()
        data = b"".join(raw for b, raw in self.written if b == s.flush_base_offset)
        partial = (s.durable_position - s.flush_base_position) // UNIT * UNIT
        self._store(s.flush_base_position + partial, data[partial:])
        s.index_head, self.index_at = 0, -1
        s.ring_bytes = capacity
        s.generation = generation
        if old is not None:
            shm.unlink(old.name)
        self.ring_words()

    def _store(self, position: int, data: bytes) -> None:
        """Into the ring, around its end if it must be."""
        assert self.ring is not None
        first = self.ring.address + shm.log_bytes(self.capacity) - self.capacity
        for n, byte in enumerate(data):
            ctypes.c_uint8.from_address(first + (position + n) % self.capacity).value = byte

    def append(self, *values: bytes | None, epoch: int = 0, **options: Any) -> int:
        """Appends one batch of values and rings; returns its base offset. Not durable yet."""
        s = self.slot
        assert self.ring is not None
        base = int(s.log_end_offset)
        raw = batch.encode_values(
            list(values), 1000 + base, base_offset=base, leader_epoch=epoch, **options
        )
        at = int(s.log_end_position)
        if self.segment == base and self.written and self.written[-1][0] != base:
            at = (at + UNIT - 1) // UNIT * UNIT  # the first batch of a segment after a roll
            s.append_base_position, self.index_at = at, -1
        s.reserved_position = max(s.reserved_position, at + len(raw))
        self._store(at, raw)
        if self.index_at < 0 or at - self.index_at >= 4096:
            entries = 2 * (self.capacity // 4096)
            where = shm.PAGE_BYTES + 16 * (s.index_head % entries)
            entry = (u64 * 2).from_address(self.ring.address + where)
            entry[0], entry[1] = base, at
            s.index_head += 1
            self.index_at = at
        self.written.append((self.segment, raw))
        s.log_end_offset = base + len(values)
        s.log_end_position = at + len(raw)
        self.ring_words()
        return base

    def roll(self) -> None:
        """The next batch begins a new segment."""
        self.segment = int(self.slot.log_end_offset)

    def flush(self) -> None:
        """Writes the segment files anew and moves the durable end to the log end."""
        s = self.slot
        base = max((b for b, _ in self.written), default=0)
        for segment in {b for b, _ in self.written}:
            data = b"".join(raw for b, raw in self.written if b == segment)
            pad = 0 if segment != base else -len(data) % UNIT
            (self.directory / f"{segment:020d}.log").write_bytes(data + bytes(pad))
        last = sum(len(raw) for b, raw in self.written if b == base)
        s.flush_seq += 1
        s.flush_base_offset, s.flush_base_position = base, s.log_end_position - last
        s.durable_offset, s.durable_position = s.log_end_offset, s.log_end_position
        s.flush_seq += 1
        self.ring_words()

    def ring_words(self) -> None:
        """Wakes whoever waits."""
        wake_all(self.broker.park.address)


class FakeBroker:
    """Runs in threads of the test until `kill` or the end of its `with`."""

    def __init__(self, root: Path, partitions: int = 1) -> None:
        env = {"XDG_RUNTIME_DIR": str(root / "run"), "XDG_DATA_HOME": str(root / "data")}
        self.places = Places.find("fake", env=env | {"HOME": str(root)})
        self.places.make_runtime_dir()
        self.places.data_dir.mkdir(parents=True, exist_ok=True)
        self.boot, self.dir_id = os.urandom(16), os.urandom(16)
        self.prefix = f"/shmb-test-{uuid.uuid4().hex[:8]}"
        self.answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self.hellos: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.adopted = False
        self.pid = os.getpid()
        self.make_objects(partitions)
        self.start()

    def make_objects(self, partitions: int) -> None:
        """Park words, the writer's table and its partitions, all of them new."""
        park = self.create("p", shm.KIND_PARK, shm.PARK_BYTES)
        table = self.create("w0", shm.KIND_WRITER, shm.table_bytes(64), slots=64)
        self.park = Mapping(park.name, park.fileno(), writable=True)
        self.table = Mapping(table.name, table.fileno(), writable=True)
        park.close()
        table.close()
        self.partitions = []
        for n in range(partitions):
            directory = self.places.data_dir / f"t-{n}"
            directory.mkdir(exist_ok=True)
            self.partitions.append(FakePartition(self, n, directory))

    def create(self, suffix: str, kind: int, size: int, slots: int = 0) -> shm.ShmObject:
        """An object of this broker's."""
        name = f"{self.prefix}-{suffix}"
        return shm.create(name, kind, 0, size, self.boot, self.dir_id, slots=slots)

    def unlink(self, suffix: str) -> None:
        """Removes one by its name."""
        shm.unlink(f"{self.prefix}-{suffix}")

    def unlink_all(self) -> None:
        """Removes all of them."""
        for name in shm.list_prefix(self.prefix):
            shm.unlink(name)

    def start(self) -> None:
        """Binds both sockets and answers."""
        self.stopping = os.eventfd(0)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.places.socket_path("attach"))
        self.listener.listen()
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.router.bind(self.places.zmq_address("control"))
        self.attached: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def kill(self) -> None:
        """Hangs up as a dying acceptor does; shared memory stays."""
        os.eventfd_write(self.stopping, 1)
        self.thread.join()
        os.close(self.stopping)
        for sock in (self.listener, *self.attached):
            sock.close()
        for name in ("attach", "control"):
            with contextlib.suppress(FileNotFoundError):
                (self.places.runtime_dir / name).unlink()
        self.router.close()
        self.context.term()

    def restart(self) -> None:
        """A broker again, over the same shared memory."""
        self.adopted = True
        self.start()

    def say_closing(self) -> None:
        """The event of an orderly shutdown."""
        for sock in self.attached:
            sock.send(b'{"v": 1, "event": "closing"}')

    def __enter__(self) -> FakeBroker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread.is_alive():
            self.kill()
        self.unlink_all()

    def _serve(self) -> None:
        poller = zmq.Poller()
        for what in (self.listener.fileno(), self.stopping, self.router):
            poller.register(what, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self.stopping in ready:
                return
            if self.listener.fileno() in ready:
                self._attach()
            if self.router in ready:
                who, frame = self.router.recv_multipart()
                reply = self._answer(json.loads(frame))
                if reply is not None:
                    self.router.send_multipart([who, json.dumps(reply).encode()])

    def _attach(self) -> None:
        sock, _ = self.listener.accept()
        if not select.select([sock], [], [], 5)[0]:
            return
        self.hellos.append(json.loads(sock.recv(65536)))
        ok = {
            "client": 7,
            "token": "secret",
            "instance": self.places.instance,
            "data_dir": str(self.places.data_dir),
            "data_dir_id": self.dir_id.hex(),
            "boot_id": self.boot.hex(),
            "prefix": self.prefix,
            "control": self.places.socket_path("control"),
            "broker_pid": self.pid,
            "writers": 1,
            "format": 1,
            "adopted": self.adopted,
        }
        self.attached.append(sock)  # before it is answered: who is attached can be told things
        sock.send(json.dumps({"v": 1, "ok": ok}).encode())

    def _answer(self, message: dict[str, Any]) -> dict[str, Any] | None:
        self.asked.append(message["op"])
        reply = {"v": 1, "id": message["id"]}
        try:
            answer = self.answers.get(message["op"], self._metadata)(message)
            return reply | {"ok": answer}
        except NotImplementedError:  # what a dead broker says
            return None
        except ShmbrokerError as error:
            return reply | {"error": error.to_wire()}

    def _metadata(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["op"] != "metadata":
            raise UnknownTopic(str(message.get("name")))
        found = [
            {
                "partition": p.number,
                "writer": 0,
                "slot": p.number,
                "slot_epoch": p.slot.slot_epoch,
                "directory": str(p.directory),
            }
            for p in self.partitions
        ]
        names = message["topics"]
        known = {"t": {"id": "ab" * 16, "config": {"retention.ms": 1}, "partitions": found}}
        return {"topics": {n: t for n, t in known.items() if names is None or n in names}}
