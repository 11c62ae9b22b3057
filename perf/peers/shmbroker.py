"""The broker itself: local clients, over shared memory, with its default configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil

import shmbroker
from shmbroker.perf.broker import Broker
from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer, Server
from shmbroker.perf.peers.shmbroker_client import ShmbrokerClient

_SYNCED: Final = "on stable storage (O_DIRECT with RWF_DSYNC, or fdatasync): outlives the host"
_MEMORY: Final = "in the log's ring in shared memory: outlives every process, not the host"
_SPIN: Final = (
    "as from memory; configs/low-latency.toml and consumers that spin: a core each for them"
)
_LOW_LATENCY: Final = Path(__file__).resolve().parents[2] / "configs" / "low-latency.toml"
_NONE: Final = "nothing: it is in shared memory when the call returns"


class _Server(Server):
    """A `shmbroker up` of the measurement's own."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.address: Any = broker.address

    def processes(self) -> list[psutil.Process]:
        return self._broker.processes()

    def memory_bytes(self) -> int:
        """Its processes' own pages, and all shared memory whole, whoever has it mapped."""
        own = 0
        for process in self.processes():
            try:
                own += process.memory_full_info().uss
            except psutil.NoSuchProcess:
                continue
        return own + self._broker.shared_bytes()


class Shmbroker(Peer):
    """This package's broker, as `shmbroker up` starts it."""

    name: ClassVar[str] = "shmbroker"
    title: ClassVar[str] = "shmbroker"
    client_title: ClassVar[str] = "shmbroker (Python)"
    modes: ClassVar[tuple[Mode, ...]] = (
        Mode("durable", "durable", _SYNCED),
        Mode("memory", "memory", _MEMORY),
        Mode("spin", "memory", _SPIN, {"idle": "spin"}),
        Mode("none", "none", _NONE),
    )
    networked: ClassVar[bool] = False
    record_overhead_bytes: ClassVar[int] = 16
    fixed_bytes: ClassVar[int] = 2 << 30  # segments preallocated ahead of the writer

    def fetch(self) -> None:
        """It is here."""

    def versions(self) -> dict[str, str]:
        return {"shmbroker": shmbroker.__version__}

    @contextmanager
    def start(self, directory: Path, mode: Mode) -> Iterator[Server]:
        config = _LOW_LATENCY.read_text(encoding="utf-8") if mode.settings else ""
        with Broker(directory, config) as broker:
            yield _Server(broker)

    @property
    def client(self) -> type[Client]:
        return ShmbrokerClient


__all__ = ["Shmbroker"]
