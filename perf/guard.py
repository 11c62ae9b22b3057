"""Ends the brokers of a run before they fill a disk that others use too.

A case says beforehand what it needs, but what a broker reserves ahead is the broker's affair. Below
a floor of free space its processes are killed, the case fails, and its data is removed.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

_LOOK_S: Final = 0.05


class Killable(Protocol):
    """What writes to the disk: a broker, or a peer's server."""

    def signal_kill(self) -> object:
        """SIGKILL to every process of it; waits for nothing, any thread's."""


T = TypeVar("T", bound=Killable)


class DiskGuard:
    """Watches the free space of `home` while the case runs; `tripped` says that it fell too low."""

    def __init__(self, home: Path, floor_bytes: int) -> None:
        self._home = home
        self._floor_bytes = floor_bytes
        self._brokers: list[Killable] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk-guard", daemon=True)
        self.tripped = False

    def add(self, broker: T) -> T:
        """Another broker that is killed when space runs short."""
        self._brokers.append(broker)
        return broker

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_S):
            if shutil.disk_usage(self._home).free < self._floor_bytes:
                self.tripped = True
                for broker in self._brokers:
                    broker.signal_kill()
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()


__all__ = ["DiskGuard", "Killable"]
