"""Lines on their way into a topic: sent in blocks, settled in order, failures named by number.

Owns: a window of receipts (constant memory), and what failed. A line that can't be a record is
named and left out; a failure that is about the partition or the broker, and would meet the
following lines as well, ends it.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal

from shmbroker import errors
from shmbroker.cli.options import complain
from shmbroker.cli.record_json import from_json

if TYPE_CHECKING:
    from shmbroker.client import Client

_RECEIPTS: Final = 16  # blocks of a MiB each
_SINGLE_RECEIPTS: Final = 20_000  # records
_NAMED: Final = 100  # failures that are told one by one
_OVERHEAD_BYTES: Final = 256  # a batch's header and a record's lengths, at most

#: Of one record; whatever else fails would fail again.
_OF_A_LINE: Final = (errors.RecordTooLarge, errors.InvalidRecord)

Acks = Literal["durable", "memory", "none"]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]


class Sending:
    """One run of `produce`. Not thread-safe."""

    def __init__(
        self,
        client: Client,
        topic: str,
        *,
        partition: int | None,
        headers: list[tuple[str, bytes]],
        separator: bytes | None,
        json: bool,
        acks: Acks,
        compression: Compression,
    ) -> None:
        """Raises UnknownTopic for a topic, or a partition of it, that is not there."""
        info = client.describe_topic(topic)
        if partition is not None and partition >= len(info.partitions):
            raise errors.UnknownTopic(topic, partition, len(info.partitions))
        self.sent = 0  # lines whose acknowledgement has come, or that wait for it
        self.failed = 0
        self._topic, self._partition = topic, partition
        self._headers, self._separator, self._json = headers, separator, json
        largest = int(info.config.get("max.message.bytes", 1 << 20))
        self._safe_bytes = max(0, largest - _OVERHEAD_BYTES)
        self._producer = client.producer(acks=acks, compression=compression)
        self._window: deque[tuple[int, int, Any]] = deque()  # first line, lines, receipt
        self._most = _RECEIPTS

    def send(self, number: int, lines: list[bytes]) -> None:
        """Sends these lines; the first is line `number`. Raises what is about more than a line."""
        if self._json:
            self._send_json(number, lines)
        elif self._headers:
            self._send_singly(number, lines)
        else:
            self._send_many(number, lines)

    def too_long(self, number: int) -> None:
        """A line that was not even read whole."""
        self._fail(number, 1, "is longer than 32 MiB; no topic takes that")

    def settle(self, most: int = 0) -> None:
        """Waits until at most `most` receipts are open, and names what failed."""
        while len(self._window) > most:
            number, count, receipt = self._window[0]
            error = receipt.exception()  # what it raises leaves the lines unacknowledged
            self._window.popleft()
            if error is None:
                continue
            self.sent -= count
            self._fail(number, count, str(error))
            if not isinstance(error, _OF_A_LINE):
                raise errors.ShmbrokerError("stopped there: the next lines would fail as well")

    def close(self) -> None:
        """Settles nothing: after settle(), or when everything is over anyway."""
        with contextlib.suppress(errors.ShmbrokerError):  # each failure was named by its receipt
            self._producer.close(0 if self._window else None)

    def report(self) -> None:
        """How it went, on standard error."""
        if self.failed > _NAMED:
            print(f"… and {self.failed - _NAMED:,} more failed", file=sys.stderr)
        failed = f", {self.failed:,} failed" if self.failed else ""
        waiting = sum(count for _, count, _ in self._window)
        unknown = f", {waiting:,} of them not yet acknowledged" if waiting else ""
        records = "1 record" if self.sent == 1 else f"{self.sent:,} records"
        print(f"{records} sent to {self._topic}{unknown}{failed}", file=sys.stderr)

    def _send_many(self, number: int, lines: list[bytes]) -> None:
        """A receipt a block; lines that may be too large go one by one, to be named if they are."""
        safe = self._safe_bytes
        if len(max(lines, key=len)) <= safe:
            self._block(number, lines)
            return
        first = 0
        for n, line in enumerate(lines):
            if len(line) > safe:
                if n > first:
                    self._block(number + first, lines[first:n])
                self._send_singly(number + n, [line])
                first = n + 1
        if first < len(lines):
            self._block(number + first, lines[first:])

    def _block(self, number: int, lines: list[bytes]) -> None:
        keys: list[bytes | None] | None = None
        if self._separator is not None:
            keys, values = [], []
            for line in lines:
                key, found, value = line.partition(self._separator)
                keys.append(key if found else None)
                values.append(value if found else line)
            lines = values
        receipt = self._producer.send_many(self._topic, lines, keys=keys, partition=self._partition)
        self._sent(number, len(lines), receipt)

    def _send_singly(self, number: int, lines: list[bytes]) -> None:
        for n, line in enumerate(lines, number):
            key, found, value = None, b"", line
            if self._separator is not None:
                key, found, value = line.partition(self._separator)
            self._one(n, value if found else line, key if found else None, self._headers)

    def _send_json(self, number: int, lines: list[bytes]) -> None:
        for n, line in enumerate(lines, number):
            try:
                given = from_json(line)
            except ValueError as error:
                self._fail(n, 1, str(error))
                continue
            headers = [*given.headers, *self._headers]
            partition = given.partition if self._partition is None else self._partition
            self._one(n, given.value, given.key, headers, partition, given.timestamp)

    def _one(
        self,
        number: int,
        value: bytes | None,
        key: bytes | None,
        headers: list[tuple[str, bytes]] | list[tuple[str, bytes | None]],
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> None:
        partition = self._partition if partition is None else partition
        try:
            receipt = self._producer.send(
                self._topic, value, key, headers or None, partition, timestamp
            )
        except (*_OF_A_LINE, errors.UnknownTopic) as error:
            if isinstance(error, errors.UnknownTopic) and error.partition is None:
                raise  # it was deleted
            self._fail(number, 1, str(error))
            return
        self._most = _SINGLE_RECEIPTS
        self._sent(number, 1, receipt)

    def _sent(self, number: int, count: int, receipt: Any) -> None:
        self.sent += count
        self._window.append((number, count, receipt))
        if len(self._window) > self._most:
            self.settle(self._most)

    def _fail(self, number: int, count: int, why: str) -> None:
        before = self.failed
        self.failed += count
        if before < _NAMED:
            lines = f"line {number}" if count == 1 else f"lines {number} to {number + count - 1}"
            complain(f"shmbroker: {lines}: {why}")
