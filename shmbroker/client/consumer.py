"""The consumer: records of some partitions, in order within each, waiting for more.

Owns: a consumer's options, its iteration and its end. The ordinary way of a record is
`_core/reader.pyx`, without Python in between; `reading.py` has the rest of it, and `positions.py`
where it reads.

Nothing is remembered in the broker: a new consumer begins where `start` says. It belongs to one
thread at a time (ConcurrentUse); only `close` may come from another.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, Self

from shmbroker._core import reader as core
from shmbroker._core.reader import RecordBatch
from shmbroker.client.positions import Positions, Start, Where
from shmbroker.errors import ClosedError

if TYPE_CHECKING:
    from types import TracebackType

    from shmbroker.client.client import Client

_IDLE: Final = ("adaptive", "spin", "park")
_EVER_NS: Final = 1 << 62


class Consumer(Positions):
    """Made by `Client.consumer`; close it, or use it as a context manager.

    Iterating gives a Record at a time and waits for more; it ends when another thread closes the
    consumer. Every reading call raises, and may be repeated after: BrokerGone (the broker did not
    come back), OffsetOutOfRange (retention took the next record: `seek`), LogTruncated (appended
    records were lost with the host: `seek`), PartitionOffline, UnknownTopic (deleted),
    CorruptBatch.
    """

    def __init__(
        self,
        client: Client,
        topics: tuple[str, ...],
        *,
        partitions: list[int] | None = None,
        start: Start = "latest",
        isolation: Literal["durable", "appended"] = "durable",
        on_gap: Literal["error", "earliest"] = "error",
        idle: Literal["adaptive", "spin", "park"] = "adaptive",
    ) -> None:
        self._closed = True  # until it is whole, for __del__ and close
        check_options(topics, partitions, isolation, on_gap)
        self._open(client, isolation, on_gap, idle)
        for topic in dict.fromkeys(topics):
            info = client.metadata.get(topic)
            wanted = range(len(info.partitions)) if partitions is None else partitions
            for number in dict.fromkeys(wanted):
                self._all.append(self._source.reader(topic, number, self._appended))
        self._readers = list(self._all)
        self._closed = False
        try:
            self._check_start(start)
            self._begin(self._all, start)
        except BaseException:
            self.close()
            raise

    def _open(self, client: Client, isolation: str, on_gap: str, idle: str) -> None:
        """All of it but the partitions."""
        self._pid = os.getpid()
        one_of("isolation", isolation, ("durable", "appended"))
        one_of("on_gap", on_gap, ("error", "earliest"))
        one_of("idle", idle, _IDLE)
        super().__init__(client, on_gap == "earliest")
        if idle == "spin":
            self._spin_ns = _EVER_NS
        elif idle == "adaptive" and len(os.sched_getaffinity(0)) > 1:
            self._spin_ns = self._source.worth_spinning_ns
        self._appended = isolation == "appended"
        self._paused = set()

    # --- reading -------------------------------------------------------------------------------

    def batches(self, timeout: float | None = None) -> Iterator[RecordBatch]:
        """Batches of consecutive records of one partition each, up to about 1 MiB.

        Ends after `timeout` seconds without a record (None: never), or when another thread closes
        the consumer. `position` is behind what was handed out.
        """
        core.deadline(timeout)  # raises for nonsense now, not at the first batch
        self._check()
        return self._batches(timeout)

    def poll_batch(self, timeout: float | None = None) -> RecordBatch | None:
        """The next batch, as `batches` would give it, or None when there is none within `timeout`
        seconds (None: waits for ever, 0: doesn't wait)."""
        batch = self._next_batch(core.deadline(timeout))
        if batch is not None:
            self._hand_out(batch)
        return batch

    def _batches(self, timeout: float | None) -> Iterator[RecordBatch]:
        while True:
            try:
                batch = self._next_batch(core.deadline(timeout))
            except ClosedError:
                if not self._closed_while_inside:
                    raise
                return
            if batch is None:
                return
            self._hand_out(batch)
            yield batch

    # --- its life ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def close(self) -> None:
        """Ends every wait in this consumer, also another thread's; twice is fine."""
        if self._pid != os.getpid():
            self._connection.check("this consumer")
        if self._closed:
            return
        self._closed = True
        self._stop_waits()
        self._connection.notify()
        self._await_leave()
        for reader in self._all:
            self._source.drop(reader)
        self._source.close()

    def __enter__(self) -> Self:
        self._connection.check("this consumer")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._pid == os.getpid():
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                if not sys.is_finalizing():  # a daemon thread may be inside and never come out
                    self.close()

    def __repr__(self) -> str:
        what = ", ".join(f"{r.topic}-{r.partition}" for r in self._all[:4])
        more = f" and {len(self._all) - 4} more" if len(self._all) > 4 else ""
        return f"<shmbroker.Consumer of {what}{more}{', closed' if self._closed else ''}>"


def check_options(
    topics: tuple[str, ...], partitions: list[int] | None, isolation: str, on_gap: str
) -> None:
    """ValueError for what can't be, before anything is asked of the broker."""
    one_of("isolation", isolation, ("durable", "appended"))
    one_of("on_gap", on_gap, ("error", "earliest"))
    if not topics:
        raise ValueError("name at least one topic: client.consumer('ticks')")
    if partitions is not None and not partitions:
        raise ValueError("partitions is empty; leave it out to read all of them")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError for a word that is none of those."""
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))}, not {value!r}")


__all__ = ["Consumer", "Start", "Where", "check_options", "one_of"]
