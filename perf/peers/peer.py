"""What a driver of another system is to the measurements: `Peer`, and its running `Server`.

All of it lives in the measuring process. The clients are `client.py`'s, in processes of their own.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import psutil

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.fetching import Cache
from shmbroker.perf.peers.mode import Mode


class Server(ABC):
    """A running system (or what stands for one); what `Peer.start` gives on entry.

    `address` is pickled for the clients: whatever the driver's `Client` understands.
    """

    address: Any

    def processes(self) -> list[psutil.Process]:
        """Of the system, clients not among them."""
        return []

    def signal_kill(self) -> None:
        """SIGKILL to all of these; waits for nothing. Any thread's."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def memory_bytes(self) -> int:
        """Resident now, pages that several processes share counted once."""
        total = 0
        for process in self.processes():
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return total


class Peer(ABC):
    """One system: constants, and how it is fetched and started."""

    name: ClassVar[str]  # for file names, `--peer` and rows: "kafka"
    title: ClassVar[str]  # for people: "Apache Kafka"
    client_title: ClassVar[str]  # its fastest Python client: "confluent-kafka"
    fastest_title: ClassVar[str] = ""  # its fastest client of all where that is another one
    modes: ClassVar[tuple[Mode, ...]]
    stores: ClassVar[bool] = True  # False: nothing can be read again
    networked: ClassVar[bool] = True  # clients reach it by a socket
    record_overhead_bytes: ClassVar[int] = 80  # on disk a record besides its value, at most
    fixed_bytes: ClassVar[int] = 64 << 20  # of data directory and logs besides

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    @abstractmethod
    def fetch(self) -> None:
        """Installs what is missing below the cache; returns at once when nothing is.

        Raises FetchFailed or MissingTool, which say what to do.
        """

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Of server and clients, by name; after `fetch`."""

    @abstractmethod
    def start(self, directory: Path, mode: Mode) -> AbstractContextManager[Server]:
        """The system, up on entry with its data below `directory` (new and empty), gone on exit.

        On entry it answers clients. On exit every process that it started is gone.
        """

    @property
    @abstractmethod
    def client(self) -> type[Client]:
        """The class that is made in a spawned process with the server's address.

        Its module imports what was fetched inside methods or under TYPE_CHECKING only.
        """

    @property
    def path(self) -> list[Path]:
        """What the clients' processes put before their `sys.path`."""
        return []

    def fastest_produce(
        self, server: Server, topic: str, count: int, value_bytes: int, mode: Mode
    ) -> float | None:
        """Records a second of the fastest client of all; None: there is none but the Python one.

        The topic was made for it; until all are acknowledged as `mode` says.
        """
        return None

    def fastest_read(self, server: Server, topic: str, count: int) -> float | None:
        """Records a second that the fastest client of all reads from the beginning; or None."""
        return None


__all__ = ["Peer", "Server"]
