"""Plain pyzmq: a PUSH and a PULL socket over a Unix socket, no server, nothing kept.

What a Python program does without a broker. pyzmq is the version that the broker itself needs, so
nothing is fetched. TCP over the loopback measured the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import zmq

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer, Server
from shmbroker.perf.peers.pyzmq_client import PyzmqClient


class _Names(Server):
    """No process: where the clients' sockets meet, names of the kernel's that are no files."""

    def __init__(self) -> None:
        self.address: Any = f"ipc://@shmb-perf-{secrets.token_hex(8)}"


class Pyzmq(Peer):
    """pyzmq's PUSH and PULL."""

    name: ClassVar[str] = "pyzmq"
    title: ClassVar[str] = "pyzmq PUSH/PULL"
    client_title: ClassVar[str] = "pyzmq (Python)"
    modes: ClassVar[tuple[Mode, ...]] = (
        Mode("none", "none", "nothing: it is in the sender's queue when the call returns, and is "
             "lost with either process"),
    )  # fmt: skip
    stores: ClassVar[bool] = False

    def fetch(self) -> None:
        """It is here."""

    def versions(self) -> dict[str, str]:
        return {"pyzmq": zmq.__version__, "libzmq": zmq.zmq_version()}

    @contextmanager
    def start(self, directory: Path, mode: Mode) -> Iterator[Server]:
        yield _Names()

    @property
    def client(self) -> type[Client]:
        return PyzmqClient


__all__ = ["Pyzmq"]
