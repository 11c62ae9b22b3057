"""A system that is as simple as one can be: a file a topic; its server only lives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil
from fake_peer_client import FileClient

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.daemon import Daemon
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer, Server

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"


def sleeper(log: Path, code: str = SLEEPER) -> Daemon:
    """A process that says "up" and then nothing."""
    command = [sys.executable, "-c", code]
    return Daemon(command, log, lambda: log.exists() and "up" in log.read_text())


class FileServer(Server):
    def __init__(self, daemon: Daemon, address: Any) -> None:
        self._daemon = daemon
        self.address = address

    def processes(self) -> list[psutil.Process]:
        return self._daemon.processes()


class FilePeer(Peer):
    """`fault` is handed to its clients, which then misbehave (fake_peer_client.py)."""

    name: ClassVar[str] = "files"
    title: ClassVar[str] = "Files <&>"
    client_title: ClassVar[str] = "open()"
    fastest_title: ClassVar[str] = "cat"
    modes: ClassVar[tuple[Mode, ...]] = (
        Mode("durable", "durable", "fsync after each call"),
        Mode("cached", "memory", "in the page cache"),
        Mode("none", "none", "nothing"),
    )
    fixed_bytes: ClassVar[int] = 1 << 20
    fault: ClassVar[str] = ""
    fetched: ClassVar[int] = 0

    def fetch(self) -> None:
        type(self).fetched += 1

    def versions(self) -> dict[str, str]:
        return {"files": "1.2"}

    @property
    def path(self) -> list[Path]:
        return [Path(__file__).parent]

    @property
    def client(self) -> type[Client]:
        return FileClient

    @contextmanager
    def start(self, directory: Path, mode: Mode) -> Iterator[Server]:
        with sleeper(directory / "log") as daemon:
            yield FileServer(daemon, (str(directory), self.fault))

    def fastest_produce(
        self, server: Server, topic: str, count: int, value_bytes: int, mode: Mode
    ) -> float | None:
        return 1e9 if mode.acks == "durable" else None

    def fastest_read(self, server: Server, topic: str, count: int) -> float | None:
        return float(count)


__all__ = ["SLEEPER", "FilePeer", "FileServer", "sleeper"]
