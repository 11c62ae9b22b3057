"""Peers of whom nothing is expected but heartbeats, where there are many of them.

Owns: a second epoll set, looked at every QUIET_S. A thousand idle consumers say something 333 times
a second; being woken for each costs more than twice as much as looking now and then (3.0 and 1.2 %
of a core: `python -m shmbroker.perf core --case stream`). Whoever says anything else, or is sent
anything, goes back to the set that wakes; so the first word after a silence waits for up to
QUIET_S, and no other.
"""

from __future__ import annotations

import select
from typing import Final

QUIET_S: Final = 0.02
QUIET_AFTER_S: Final = 2.0  # without anything but heartbeats
QUIET_PEERS: Final = 64  # connections of a reader; below, waking for each costs little


class Quiet:
    """Descriptors by number. True while there are any."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._there: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._there)

    def add(self, fd: int) -> bool:
        """Whether it was not there."""
        if fd in self._there:
            return False
        self._there.add(fd)
        self._epoll.register(fd, select.EPOLLIN)
        return True

    def remove(self, fd: int) -> bool:
        """Whether it was there."""
        if fd not in self._there:
            return False
        self._there.remove(fd)
        self._epoll.unregister(fd)
        return True

    def poll(self) -> list[int]:
        """Who has something to say, or is gone. Doesn't wait."""
        return [fd for fd, _ in self._epoll.poll(0)] if self._there else []

    def close(self) -> None:
        """No more of it."""
        self._epoll.close()


__all__ = ["QUIET_AFTER_S", "QUIET_PEERS", "QUIET_S", "Quiet"]
