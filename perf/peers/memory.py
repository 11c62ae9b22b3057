"""What a system's processes hold while it works: a thread that looks, and the most it saw."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final, Self

import psutil

from shmbroker.perf.peers.peer import Server

_LOOK_S: Final = 0.2


class Watch:
    """Looks at a server's memory from entry to exit, and once more at the end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self.most_bytes = 0

    def _watch(self) -> None:
        while not self._done.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        try:
            self.most_bytes = max(self.most_bytes, self._server.memory_bytes())
        except (psutil.Error, OSError):  # a process that ends meanwhile
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
        self._look()


__all__ = ["Watch"]
