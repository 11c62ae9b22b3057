"""`multiprocessing.Queue`: the standard library's pipe with a lock at each end, nothing kept.

What a Python program does without anything installed. The queue is made by the measuring process
and handed to the clients as they are spawned, as it wants to be; it is one for all topics, which
follow each other.
"""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.mpqueue_client import QueueClient
from shmbroker.perf.peers.peer import Peer, Server


class _Queue(Server):
    """No process: the queue, which is pickled for processes that are being spawned."""

    def __init__(self) -> None:
        self.address: Any = multiprocessing.get_context("spawn").Queue()

    def close(self) -> None:
        """Its pipe is closed, its semaphores are removed."""
        self.address.close()
        self.address = None


class MultiprocessingQueue(Peer):
    """multiprocessing.Queue."""

    name: ClassVar[str] = "mpqueue"
    title: ClassVar[str] = "multiprocessing.Queue"
    client_title: ClassVar[str] = "multiprocessing (Python)"
    modes: ClassVar[tuple[Mode, ...]] = (
        Mode("none", "none", "nothing: it is in a list of the sender's process when the call "
             "returns, and is lost with either process"),
    )  # fmt: skip
    stores: ClassVar[bool] = False
    networked: ClassVar[bool] = False

    def fetch(self) -> None:
        """It is here."""

    def versions(self) -> dict[str, str]:
        return {"Python": platform.python_version()}

    @contextmanager
    def start(self, directory: Path, mode: Mode) -> Iterator[Server]:
        queue = _Queue()
        try:
            yield queue
        finally:
            queue.close()

    @property
    def client(self) -> type[Client]:
        return QueueClient


__all__ = ["MultiprocessingQueue"]
