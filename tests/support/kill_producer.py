"""A program that sends without end and writes down what it was told, until its input closes.

    python kill_producer.py INSTANCE TOPIC NAME PARTITIONS LOG '{"acks": "durable", …}'

Values are NAME:n with n = 0, 1, 2 …, to partition n % PARTITIONS. Lines of the log, each with one
write, so that a killed producer leaves whole ones (but the last):

    A partition offset n    acknowledged
    U partition n           the outcome is unknown
    F partition n error     it failed: it must not be in the log
    N partition n error     send() raised: it was not taken
    E n                     the end: all n have been settled
"""

from __future__ import annotations

import collections
import json
import os
import select
import sys
from typing import Any

import shmbroker
from shmbroker import errors

WINDOW = 300


class Diary:
    """The log file."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lines: list[str] = []

    def note(self, *words: object) -> None:
        """One line, written soon."""
        self._lines.append(" ".join(map(str, words)) + "\n")

    def write(self) -> None:
        """What is noted, at once."""
        if self._lines:
            os.write(self._fd, "".join(self._lines).encode())
            self._lines.clear()


def settle(diary: Diary, waiting: collections.deque[tuple[int, int, Any]], most: int) -> None:
    """Looks at receipts, the oldest first, until at most so many wait."""
    while len(waiting) > most:
        partition, n, receipt = waiting.popleft()
        try:
            diary.note("A", partition, receipt.result(timeout=60).offset, n)
        except errors.OutcomeUnknown:
            diary.note("U", partition, n)
        except errors.ShmbrokerError as error:
            diary.note("F", partition, n, repr(error))
        diary.write()


def main(instance: str, topic: str, name: str, partitions: str, log: str, options: str) -> None:
    """See the module."""
    diary, count, ring = Diary(log), int(partitions), name.encode()
    waiting: collections.deque[tuple[int, int, Any]] = collections.deque()
    n = 0
    with shmbroker.connect(instance) as client, client.producer(**json.loads(options)) as producer:
        while not select.select([0], [], [], 0)[0]:
            for _ in range(10):
                partition = n % count
                try:
                    value = b"%s:%d" % (ring, n)
                    waiting.append((partition, n, producer.send(topic, value, partition=partition)))
                except errors.ShmbrokerError as error:
                    diary.note("N", partition, n, repr(error))
                n += 1
            settle(diary, waiting, WINDOW)
        settle(diary, waiting, 0)
        producer.flush()
    diary.note("E", n)
    diary.write()


if __name__ == "__main__":
    main(*sys.argv[1:])
