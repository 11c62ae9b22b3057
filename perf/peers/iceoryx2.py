"""iceoryx2: zero-copy publish-subscribe through shared memory, without any server.

The Python bindings come from PyPI with the Rust library inside. What it keeps in files is below the
data directory. Its shared memory in /dev/shm has a prefix with our pid, under which `start` removes
on exit what a client that was killed has left, and on entry what a killed measurement has. No
overflow (a publisher waits for its subscriber, so nothing is lost), and the subscriber polls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

import psutil

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.fetching import pip_version
from shmbroker.perf.peers.iceoryx2_client import Iceoryx2Client
from shmbroker.perf.peers.mode import Mode
from shmbroker.perf.peers.peer import Peer, Server

_PACKAGE: Final = "iceoryx2"
_PREFIX: Final = "shmb_iox2_"
_SHM: Final = Path("/dev/shm")


class _Iceoryx2(Server):
    """Where its files are and how its shared memory is called; there is no process."""

    def __init__(self, root: Path, prefix: str) -> None:
        self.address: tuple[str, str] = (str(root), prefix)


class Iceoryx2(Peer):
    """iceoryx2."""

    name: ClassVar[str] = "iceoryx2"
    title: ClassVar[str] = "iceoryx2"
    client_title: ClassVar[str] = "iceoryx2 (Python)"
    modes: ClassVar[tuple[Mode, ...]] = (
        Mode("none", "none", "nothing is kept or acknowledged: shared memory from one process to "
             "another; the receiver polls and costs a core"),
    )  # fmt: skip
    stores: ClassVar[bool] = False
    networked: ClassVar[bool] = False
    fixed_bytes: ClassVar[int] = 1 << 20

    def fetch(self) -> None:
        self._python()

    def _python(self) -> Path:
        return self.cache.pip("iceoryx2", _PACKAGE)

    def versions(self) -> dict[str, str]:
        return {_PACKAGE: pip_version(self._python(), _PACKAGE)}

    @property
    def client(self) -> type[Client]:
        return Iceoryx2Client

    @property
    def path(self) -> list[Path]:
        return [self._python()]

    @contextmanager
    def start(self, directory: Path, mode: Mode) -> Iterator[Server]:
        _sweep()
        prefix = f"{_PREFIX}{os.getpid()}_"
        root = directory / "iox2"
        root.mkdir()
        try:
            yield _Iceoryx2(root, prefix)
        finally:
            _remove(prefix)


def _remove(prefix: str) -> None:
    for left in _SHM.glob(f"{prefix}*"):
        left.unlink(missing_ok=True)


def _sweep() -> None:
    """Removes what measurements that were killed have left."""
    for pid in {int(path.name.split("_")[2]) for path in _SHM.glob(f"{_PREFIX}*_*")}:
        if not psutil.pid_exists(pid):
            _remove(f"{_PREFIX}{pid}_")


__all__ = ["Iceoryx2"]
