"""A broker of one process for the producer's tests: a Connection's interface and one fake writer.

The shared objects are real ones under /dev/shm, the writer is producer_fake.c in a thread.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shmbroker._core import shm
from shmbroker.client.connection import Connection
from shmbroker.client.local_connection import LocalConnection
from shmbroker.client.metadata import Metadata
from shmbroker.errors import BrokerGone, ClosedError, ForkedError, TimedOut

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "shmbroker" / "_core"
SLOTS_MAX = 1100
BOOT, DIR = b"b" * 16, b"d" * 16


class Fake(ctypes.Structure):
    """struct fake of producer_fake.c."""

    _fields_ = [
        ("ring", ctypes.c_void_p),
        ("receipts", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("park", ctypes.c_void_p),
        ("ingress", ctypes.c_uint64),
        ("writer", ctypes.c_uint32),
        ("slots_max", ctypes.c_uint32),
        ("stop", ctypes.c_uint32),
        ("paused", ctypes.c_uint32),
        ("not_durable", ctypes.c_uint32),
        ("reject", ctypes.c_uint32),
        ("spin", ctypes.c_uint32),
        ("detach", ctypes.c_uint32),
        ("frames", ctypes.c_uint64),
        ("records", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("parks", ctypes.c_uint64),
        ("rung", ctypes.c_uint64),
        ("log", ctypes.c_void_p),
        ("log_bytes", ctypes.c_uint64),
        ("log_end", ctypes.c_uint64),
    ]


_library: Any = None


def library() -> Any:
    """producer_fake.c, compiled once a process."""
    global _library
    if _library is None:
        where = Path(tempfile.mkdtemp()) / "fake.so"
        flags = ["-std=gnu11", "-O2", "-D_GNU_SOURCE", "-shared", "-fPIC", f"-I{CORE}"]
        source = str(HERE / "producer_fake.c")
        subprocess.run(["gcc", *flags, "-o", str(where), source, "-lpthread"], check=True)
        _library = ctypes.CDLL(str(where))
        where.unlink()
        where.parent.rmdir()
        pointer = ctypes.POINTER(Fake)
        _library.fake_run.argtypes = [pointer]
        _library.fake_ring_all.argtypes = [pointer]
        _library.fake_slot_init.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]
        _library.fake_slot_state.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_uint64,
        ]
        _library.fake_slot_durable.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        _library.fake_map_double.argtypes = [ctypes.c_int, ctypes.c_size_t]
        _library.fake_map_double.restype = ctypes.c_void_p
        _library.fake_map.argtypes = [ctypes.c_int, ctypes.c_size_t]
        _library.fake_map.restype = ctypes.c_void_p
        _library.fake_unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return _library


class Epoch:
    """As EpochWord of the reader."""

    def __init__(self) -> None:
        self._word = ctypes.c_uint32(0)
        self.address = ctypes.addressof(self._word)

    @property
    def value(self) -> int:
        return self._word.value

    def set(self, value: int) -> None:
        self._word.value = value


@dataclass
class Broker:
    """Objects and the writer; `connection` is what a producer gets."""

    topics: dict[str, tuple[int, dict[str, Any]]]  # name -> (partitions, config)
    writer_spins: bool = False
    keep_bytes: int = 8 << 20
    prefix: str = field(default_factory=lambda: f"/shmb-{os.getuid()}-{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        self.lib = library()
        self.next_ingress = 0
        self.closing, self.closed = threading.Lock(), False
        self.next_producer = 100
        self.slot_of: dict[tuple[str, int], tuple[int, int]] = {}
        self.fakes: dict[int, Fake] = {}
        self.threads: dict[int, threading.Thread] = {}
        self.maps: list[tuple[int, int]] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.names: list[str] = []
        self.makings: dict[str, int] = {}
        self.log = ctypes.create_string_buffer(self.keep_bytes)
        self.park = self._create("p", shm.KIND_PARK, 0, shm.PARK_BYTES)
        size = shm.table_bytes(SLOTS_MAX)
        self.table = self._create("w0", shm.KIND_WRITER, 0, size, slots=SLOTS_MAX)
        slot = 0
        for name, (partitions, _) in self.topics.items():
            for p in range(partitions):
                self.slot_of[name, p] = (slot, 7)
                self.lib.fake_slot_init(self.table, slot, 7)
                slot += 1
        self.connection = FakeConnection(self)

    def _create(self, suffix: str, kind: int, owner: int, size: int, **more: int) -> int:
        name = f"{self.prefix}-{suffix}"
        made = shm.create(name, kind, owner, size, BOOT, DIR, **more)
        self.names.append(name)
        at = int(self.lib.fake_map(made.fileno(), size))
        self.maps.append((at, size))
        made.close()
        return at

    def open_ingress(self, capacity: int, slots: int) -> dict[str, int]:
        with self.closing:
            if self.closed:  # a thread of the producer's that comes late finds nobody
                raise BrokerGone("the fake broker is closed")
            return self._open_ingress(capacity, slots)

    def _open_ingress(self, capacity: int, slots: int) -> dict[str, int]:
        self.next_ingress += 1
        i = self.next_ingress
        name = f"{self.prefix}-i{i}"
        size = shm.ingress_bytes(capacity)
        ring = shm.create(name, shm.KIND_INGRESS, i, size, BOOT, DIR, capacity=capacity)
        self.names.append(name)
        at = int(self.lib.fake_map_double(ring.fileno(), capacity))
        self.maps.append((at, shm.PAGE_BYTES + 2 * capacity))
        ring.close()
        size = shm.receipts_bytes(slots)
        receipts = self._create(f"r{i}", shm.KIND_RECEIPTS, i, size, slots=slots)
        fake = Fake(at, receipts, self.table, self.park, i, 0, SLOTS_MAX)
        fake.spin = self.writer_spins
        fake.log, fake.log_bytes = ctypes.addressof(self.log), self.keep_bytes
        before = self.fakes.get(i - 1)
        fake.log_end = before.log_end if before is not None else 0
        self.fakes[i] = fake
        thread = threading.Thread(target=self.lib.fake_run, args=(ctypes.byref(fake),), daemon=True)
        self.threads[i] = thread
        thread.start()
        return {"ingress": i, "capacity": capacity, "slots": slots}

    def id_of(self, topic: str) -> str:
        """Its topic id in hex; `makings` counts how often it was made anew."""
        return f"{[*self.topics].index(topic):016x}{self.makings.get(topic, 0):016x}"

    @property
    def writer(self) -> Fake:
        """The writer of the newest ring."""
        return self.fakes[self.next_ingress]

    def ring(self) -> None:
        """Wakes everybody: after a word was changed."""
        for fake in list(self.fakes.values()):
            self.lib.fake_ring_all(ctypes.byref(fake))

    def stop_writer(self, ingress: int) -> None:
        self.fakes[ingress].stop = 1
        self.ring()
        self.threads.pop(ingress).join()

    def logged(self) -> bytes:
        """Every batch that was appended, in order."""
        return self.log.raw[: self.writer.log_end]

    def close(self) -> None:
        with self.closing:
            self.closed = True
        for ingress in list(self.threads):
            self.stop_writer(ingress)
        for name in self.names:
            shm.unlink(name)

    def unmap(self) -> None:
        for at, size in self.maps:
            self.lib.fake_unmap(at, size)
        self.maps.clear()


class FakeConnection:
    """What a Sender uses of client.connection.Connection."""

    ring_bytes, batch_bytes = Connection.ring_bytes, Connection.batch_bytes
    frames_ahead = Connection.frames_ahead

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.epoch = Epoch()
        self.closed = False
        self.listeners: list[Any] = []
        self.changed = threading.Condition()
        self.back = True
        self.reconnect_s = 30.0
        self.topic_listeners: set[Any] = set()
        self.pid = os.getpid()
        self.park = SimpleNamespace(address=broker.park)
        self._table = SimpleNamespace(address=broker.table)

    def check(self, what: str = "this client") -> None:
        if os.getpid() != self.pid:
            raise ForkedError(what)
        if self.closed:
            raise ClosedError(f"{what} is closed")

    def attached(self, timeout: float | None = None, given_up: Any = None) -> int:
        patience = self.reconnect_s if timeout is None else min(timeout, self.reconnect_s)
        ended = lambda: self.back or self.closed or (given_up is not None and given_up())  # noqa: E731
        with self.changed:
            if not self.changed.wait_for(ended, patience):
                raise (TimedOut if patience == timeout else BrokerGone)("gone")
        self.check()
        if not self.back:
            raise ClosedError("closed while the broker was gone")
        return self.epoch.value

    keeps = LocalConnection.keeps

    def notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def request(self, op: str, timeout: float | None = None, **args: Any) -> dict[str, Any]:
        self.broker.requests.append((op, args))
        if op == "open_ingress":
            return self.broker.open_ingress(args["capacity"], args["slots"])
        if op == "init_producer":
            self.broker.next_producer += 1
            return {"producer_id": self.broker.next_producer, "epoch": 0}
        if op == "metadata":
            return {"topics": self._metadata(args["topics"])}
        assert op == "close_ingress", op
        self.broker.stop_writer(args["ingress"])
        return {}

    def _metadata(self, names: list[str] | None) -> dict[str, Any]:
        said = {}
        for name in self.broker.topics if names is None else names:
            if name in self.broker.topics:
                partitions, config = self.broker.topics[name]
                where = []
                for p in range(partitions):
                    slot, epoch = self.broker.slot_of[name, p]
                    where.append(
                        {
                            "partition": p,
                            "writer": 0,
                            "slot": slot,
                            "slot_epoch": epoch,
                            "directory": "",
                        }
                    )
                said[name] = {"id": self.broker.id_of(name), "config": config, "partitions": where}
        return said

    def table(self, writer: int) -> Any:
        assert writer == 0
        return self._table

    def open_object(self, suffix: str, kind: int, *, writable: bool = False) -> shm.ShmObject:
        return shm.open_existing(
            f"{self.broker.prefix}-{suffix}", kind, BOOT, DIR, writable=writable
        )

    def listen(self, listener: Any) -> None:
        self.listeners.append(listener)

    def wake_all(self) -> None:
        self.broker.ring()

    def lose(self) -> None:
        """The broker dies."""
        self.back = False
        self.epoch.set(self.epoch.value | 1)
        self.wake_all()
        for listener in list(self.listeners):
            listener.on_gone()

    def come_back(self) -> None:
        self.epoch.set(self.epoch.value + 1)
        self.back = True
        self.notify()
        self.wake_all()
        for listener in list(self.listeners):
            listener.on_reattached(False)


class FakeClient:
    """What Producer uses of Client."""

    def __init__(self, broker: Broker) -> None:
        self.connection: Any = broker.connection
        self.metadata = Metadata(self.connection)


__all__ = ["Broker", "FakeClient"]
