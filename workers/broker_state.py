"""What a broker holds besides its sockets and processes: directory, store, shared memory, plan.

`BrokerState.open` is the first half of `up`, in the order in which it may fail without a trace:
the data directory's lock (refused with the other's pid), the instance's lock, the store, shared
memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shmbroker import errors
from shmbroker.config import BrokerConfig, Places
from shmbroker.control.datadir import DataDir, DataDirLock, lock_exclusive, open_data_dir
from shmbroker.control.meta import MetaStore
from shmbroker.control.plan import (
    IoSettings,
    Plan,
    WriterSpec,
    table_slots_for,
    writers_at_start,
    writers_limit,
)
from shmbroker.control.sharedmem import SharedMemory, boot_id

BROKER_FILE: Final = "broker.json"
INSTANCE_LOCK: Final = "up.lock"
LOG_FILE: Final = "broker.log"
_FLUSH_DEPTH: Final = 4


@dataclass(slots=True)
class BrokerState:
    """Open from `open` to `close`; belongs to the acceptor."""

    places: Places
    config: BrokerConfig
    lock: DataDirLock
    instance_fd: int
    dir: DataDir
    meta: MetaStore
    memory: SharedMemory
    plan: Plan
    boot_id: bytes
    cpus: tuple[int, ...]
    writers_limit: int  # by configuration and cores; the plan's may be less (promises.py)
    writers_at_start: int
    adopted: bool
    _closed: bool = field(default=False)

    @classmethod
    def open(cls, places: Places, config: BrokerConfig) -> BrokerState:
        """Raises ShmbrokerError of some kind, and then holds nothing."""
        with contextlib.ExitStack() as undo:
            lock = undo.enter_context(lock_exclusive(places.data_dir))
            instance_fd = _lock_instance(places)
            undo.callback(os.close, instance_fd)
            data_dir = open_data_dir(places.data_dir)
            meta = MetaStore(data_dir.meta_path)
            undo.callback(meta.close)
            boot = boot_id()
            memory = SharedMemory(
                data_dir.shm_prefix, boot, bytes.fromhex(data_dir.data_dir_id), config.memory
            )
            undo.callback(lambda: memory.close(unlink=False))
            tables = memory.take_over()
            topics = {t.topic_id: (t.name, t.partitions) for t in meta.topics()}
            partitions = sum(count for _, count in topics.values())
            cpus = tuple(_cores_first(sorted(os.sched_getaffinity(0))))
            limit = writers_limit(config.broker.writers, len(cpus))
            plan = Plan(limit, table_slots_for(partitions, limit))
            plan.adopt(tables, topics)
            at_start = 0 if tables else writers_at_start(config.broker.writers, limit, partitions)
            lock.share()
            undo.pop_all()
        return cls(
            places, config, lock, instance_fd, data_dir, meta, memory, plan, boot, cpus, limit,
            at_start, adopted=bool(tables),
        )  # fmt: skip

    def writer_spec(
        self,
        writer: int,
        *,
        workers_address: str,
        log_memory_bytes: int,
        cpus: tuple[int, ...] | None,
        adopt: bool,
    ) -> WriterSpec:
        """What a writer is started with now."""
        broker = self.config.broker
        depth = broker.flush_depth
        if depth == "auto":
            depth = 1 if _rotational(self.places.data_dir) else _FLUSH_DEPTH
        return WriterSpec(
            writer=writer,
            instance=self.places.instance,
            data_dir=self.places.data_dir,
            runtime_dir=self.places.runtime_dir,
            workers_address=workers_address,
            shm_prefix=self.memory.prefix,
            data_dir_id=self.dir.data_dir_id,
            boot_id=self.boot_id.hex(),
            config=self.config,
            log_memory_bytes=log_memory_bytes,
            cpus=cpus,
            cpus_allowed=self.cpus,
            adopt=adopt,
            io=IoSettings(depth, broker.flush_max_bytes, broker.idle),
            parent_pid=os.getpid(),
        )

    def write_broker_file(self, content: Mapping[str, Any]) -> None:
        """`broker.json`: who is up, for people and for `down`."""
        path = self.places.runtime_dir / BROKER_FILE
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        new.chmod(0o600)
        new.rename(path)

    def close(self, *, unlink: bool) -> None:
        """Gives everything back, the lock last; with `unlink` nothing is left for adoption."""
        if self._closed:
            return
        self._closed = True
        self.memory.close(unlink=unlink)
        self.meta.close()
        if unlink:
            for entry in self.places.runtime_dir.iterdir():
                if not entry.name.startswith(LOG_FILE):  # its older pieces are broker.log.1 …
                    entry.unlink(missing_ok=True)
            self.places.remove_short_link()
        os.close(self.instance_fd)
        self.lock.release()


def read_broker_file(places: Places) -> dict[str, Any]:
    """What the broker there says of itself; empty where none is up."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((places.runtime_dir / BROKER_FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _lock_instance(places: Places) -> int:
    """One broker an instance: its sockets have one name each."""
    path = places.make_runtime_dir() / INSTANCE_LOCK
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(fd)):
            os.close(fd)  # the broker before removed it between our two calls
            return _lock_instance(places)
    except BlockingIOError:
        other = os.pread(fd, 4096, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise errors.ShmbrokerError(
            f"instance {places.instance!r} is up already ({other}); stop it with: shmbroker down, "
            "or give this one another name with --instance"
        ) from None
    places.make_short_link()
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"pid {os.getpid()}, data directory {places.data_dir}\n".encode(), 0)
    return fd


def _cores_first(cpus: list[int]) -> list[int]:
    """One hardware thread of each core first, then their siblings."""
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for cpu in cpus:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            core = path.read_text(encoding="ascii").strip()
        except OSError:
            core = str(cpu)
        (second if core in seen else first).append(cpu)
        seen.add(core)
    return first + second


def _rotational(path: Path) -> bool:
    """Whether the directory lies on a disk that turns; False where it can't be told.

    virtio reports "rotational" whatever is behind it (here: 41,000 4 KiB durable writes a second),
    so its word doesn't count.
    """
    device = path.stat().st_dev
    at = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for place in (at, at.parent):  # a partition has no queue of its own
        with contextlib.suppress(OSError):
            turns = (place / "queue" / "rotational").read_text(encoding="ascii").strip() == "1"
            return turns and (place / "device" / "driver").resolve().name != "virtio_blk"
    return False


__all__ = ["BROKER_FILE", "INSTANCE_LOCK", "LOG_FILE", "BrokerState", "read_broker_file"]
