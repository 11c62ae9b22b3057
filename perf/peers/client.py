"""What a Python client of a system does, in a spawned process; `workloads.py` times it.

One object a process, made with the server's `address`. Topics are made by `create`, once, before
anything else names them. The mode is always the one that the server was started in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from shmbroker.perf.peers.mode import Mode


class Client(ABC):
    """The fastest Python client of a system, in the settings its documentation recommends."""

    @abstractmethod
    def __init__(self, address: Any) -> None:
        """Connects, or will do so in the first call."""

    @abstractmethod
    def create(self, topic: str, mode: Mode) -> None:
        """A topic of one partition (stream, queue), empty, kept for the whole run."""

    def forget(self, topic: str) -> None:  # noqa: B027  (most have nothing to do)
        """Nothing reads or writes this topic any more: a system that holds all that it has in
        memory frees it here. Not timed."""

    @abstractmethod
    def send_many(self, topic: str, values: list[bytes], mode: Mode) -> None:
        """All of them by the fastest way there is: batches, pipelines, whatever the client has.

        Returns when all are acknowledged as the mode says; raises if one is not.
        """

    @abstractmethod
    def send_each(self, topic: str, values: list[bytes], mode: Mode) -> None:
        """A call of the client for each, as a program has one record at a time; doesn't wait for
        one's acknowledgement before the next; returns when all are acknowledged."""

    @abstractmethod
    def sender(self, topic: str, mode: Mode) -> Callable[[bytes], None]:
        """A function that sends a value at once, with nothing held back to make a batch.

        It may wait for the acknowledgement where the client has no other way; the measurement is
        from the time at which the record was due.
        """

    @abstractmethod
    def tail(self, topic: str, mode: Mode) -> Iterator[list[bytes]]:
        """Values as they arrive; an empty list first, when all that is sent from now on will come.

        Waits for at most about 100 ms, then yields an empty list, so that its reader can end.
        """

    def values(self, topic: str, count: int) -> Iterator[list[bytes]]:
        """The first `count` values of a topic from its beginning, by the fastest way to these."""
        raise NotImplementedError(f"{type(self).__name__} reads nothing again")

    def records(self, topic: str, count: int) -> Iterator[list[bytes]]:
        """The same through an object a record; reads offset (or id) and value of each."""
        raise NotImplementedError(f"{type(self).__name__} reads nothing again")

    @abstractmethod
    def close(self) -> None:
        """Ends the connection."""


__all__ = ["Client"]
