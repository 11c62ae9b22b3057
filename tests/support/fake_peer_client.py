"""The client of fake_peer.py: values of 100 bytes, one behind the other in a file.

Faults: "loses" forgets a value of each send_many, "hangs" never returns from send_each, "stalls"
sleeps once in the middle of what it paces.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shmbroker.perf.peers.client import Client
from shmbroker.perf.peers.mode import Mode

BYTES = 100


class FileClient(Client):
    def __init__(self, address: tuple[str, str]) -> None:
        self._home, self._fault = Path(address[0]), address[1]

    def create(self, topic: str, mode: Mode) -> None:
        (self._home / topic).touch(exist_ok=False)

    def forget(self, topic: str) -> None:
        (self._home / topic).unlink()

    def _append(self, topic: str, data: bytes, mode: Mode) -> None:
        with open(self._home / topic, "ab") as file:
            file.write(data)
            file.flush()
            if mode.acks == "durable":
                os.fsync(file.fileno())

    def send_many(self, topic: str, values: list[bytes], mode: Mode) -> None:
        self._append(topic, b"".join(values[1:] * (self._fault == "loses") or values), mode)

    def send_each(self, topic: str, values: list[bytes], mode: Mode) -> None:
        if self._fault == "hangs":
            threading.Event().wait()
        for value in values:
            self._append(topic, value, mode)

    def sender(self, topic: str, mode: Mode) -> Callable[[bytes], None]:
        def one(value: bytes) -> None:
            if self._fault == "stalls" and int(value[:10]) == 20:
                time.sleep(0.1)
            self._append(topic, value, mode)

        return one

    def tail(self, topic: str, mode: Mode) -> Iterator[list[bytes]]:
        with open(self._home / topic, "rb") as file:
            file.seek(0, os.SEEK_END)
            yield []
            rest = b""
            while True:
                # A write that crosses a page is seen in halves.
                data = rest + file.read()
                whole = len(data) - len(data) % BYTES
                rest = data[whole:]
                yield _cut(data[:whole])
                time.sleep(0.0005)

    def values(self, topic: str, count: int) -> Iterator[list[bytes]]:
        yield _cut((self._home / topic).read_bytes())[:count]

    def records(self, topic: str, count: int) -> Iterator[list[bytes]]:
        return self.values(topic, count)

    def close(self) -> None:
        pass


def _cut(data: bytes) -> list[bytes]:
    return [data[at : at + BYTES] for at in range(0, len(data), BYTES)]


__all__ = ["FileClient"]
