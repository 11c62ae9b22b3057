"""The synchronous producer: options, flushing and closing around the core's send().

Owns: the meaning of the options, and who is told of failed records: every failure is raised once,
by its receipt, or, if nobody looked at that, by flush(), close() or the end of the `with` block.

Threads: every method is thread-safe. A forked child gets ForkedError, its destructors do nothing.
Rings belong to the client's connection and are shared by its producers.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, get_args

from shmbroker._core.producer import Outlets, ProducerBase, Sender
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.pressure import Pressure, pressure_of
from shmbroker.client.receipt import RecordMetadata
from shmbroker.errors import DeliveryError, ForkedError, OutcomeUnknown, TimedOut

if TYPE_CHECKING:
    from types import TracebackType

    from shmbroker.client.connection import Connection
    from shmbroker.client.metadata import Metadata

Acks = Literal["durable", "memory", "none"]
Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
OnFull = Literal["block", "drop", "raise"]
_LARGEST_BATCH_BYTES: Final = 32 << 20

_OUTLETS: Final = (
    "_outlets"  # the connection's own attribute: they hold each other, and go together
)


class _Client(Protocol):
    @property
    def connection(self) -> Connection: ...
    @property
    def metadata(self) -> Metadata: ...


def outlets_of(connection: Connection) -> Outlets:
    """The rings of a connection: its counters are in `Outlets.counters()`."""
    own = vars(connection)
    found: Outlets | None = own.get(_OUTLETS)
    if found is None:
        found = own.setdefault(_OUTLETS, Outlets(connection, connection.ring_bytes))
    return found


def sender_of(
    client: _Client,
    *,
    acks: Acks,
    compression: Compression | None,
    linger_ms: int,
    max_block_ms: int,
    delivery_timeout_ms: int,
    idempotent: bool,
    batch_bytes: int | None,
    on_full: OnFull,
) -> Sender:
    """What a producer with these options sends by; TypeError or ValueError names a wrong one."""
    _one_of("acks", acks, get_args(Acks))
    _one_of("compression", compression, (None, *get_args(Compression)))
    _one_of("on_full", on_full, get_args(OnFull))
    _within("linger_ms", linger_ms, 0, 60_000)
    _within("max_block_ms", max_block_ms, 0, 1 << 40)
    _within("delivery_timeout_ms", delivery_timeout_ms, 1, 1 << 40)
    batch_bytes = client.connection.batch_bytes if batch_bytes is None else batch_bytes
    _within("batch_bytes", batch_bytes, 128, _LARGEST_BATCH_BYTES)
    return Sender(
        client.connection,
        client.metadata,
        outlets_of(client.connection),
        acks=acks,
        compression=compression,
        linger_ms=linger_ms,
        max_block_ms=max_block_ms,
        delivery_timeout_ms=delivery_timeout_ms,
        idempotent=idempotent,
        batch_bytes=batch_bytes,
        on_full=on_full,
    )


class Producer(ProducerBase):
    """Made by `client.producer()`; close it, or use it as a context manager."""

    def __init__(
        self,
        client: _Client,
        *,
        acks: Acks = "durable",
        compression: Compression | None = None,
        linger_ms: int = 5,
        max_block_ms: int = 60_000,
        delivery_timeout_ms: int = 120_000,
        idempotent: bool = True,
        batch_bytes: int | None = None,
        on_full: OnFull = "block",
    ) -> None:
        """`acks`: when a record counts as sent: "durable" on stable storage, "memory" appended (it
        outlives every process, not the host), "none" in the ring. `compression` of whole batches.
        `linger_ms`: how long a record may wait for others while the writer is busy; when it is not,
        nothing waits. `max_block_ms`: how long send() blocks while the ring is full.
        `delivery_timeout_ms`: how long result() and flush() wait without a timeout of their own.
        `idempotent`: resends are never appended twice. `batch_bytes`: a batch's size under
        load (128 KiB, to a broker elsewhere 512 KiB).
        `on_full`: what send() does while the ring is full: "block"; "raise" BufferFull at once; or
        "drop" the record, count it in dropped(), and return a receipt that is settled as failed.
        """
        self._closed = False
        self._sender_state = sender_of(
            client,
            acks=acks,
            compression=compression,
            linger_ms=linger_ms,
            max_block_ms=max_block_ms,
            delivery_timeout_ms=delivery_timeout_ms,
            idempotent=idempotent,
            batch_bytes=batch_bytes,
            on_full=on_full,
        )
        self._begin(self._sender_state)

    def send_and_wait(
        self, topic: str, value: Any, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> RecordMetadata:
        """send() and its result(timeout): returns when the record is acknowledged."""
        return self.send(topic, value, *args, **kwargs).result(timeout)

    def flush(self, timeout: float | None = None) -> None:
        """Returns when every record sent before is acknowledged as `acks` asks for.

        `timeout` in seconds; delivery_timeout_ms by default. Raises TimedOut (OutcomeUnknown when
        that default has passed), BrokerGone, and DeliveryError for failures nobody looked at.
        """
        self._sender_state.check()
        self._flush(timeout)
        self._report()

    def close(self, timeout: float | None = None) -> None:
        """flush(), then no more: ends waits of other threads' send() with ClosedError."""
        state = self._sender_state
        if state.forked:
            raise ForkedError("this producer")
        if self._closed:
            return
        try:
            if not state.connection.closed:
                self._flush(timeout)
        finally:
            self._closed = True
            state.close()
            state.end_watches()
        self._report()

    def pressure(self) -> Pressure:
        """How hard the partitions that this producer has sent to are pressed now, and why.

        A local producer reads it from memory, in microseconds; a remote one tells what it last
        heard. Never waits, never asks. Raises ForkedError, ClosedError.
        """
        return state_pressure(self._sender_state)

    def dropped(self) -> dict[TopicPartition, int]:
        """How many records found no room and were dropped (on_full="drop"), by partition.

        Exact: what was sent and this make up what was offered. Partitions without any are absent.
        """
        return dropped_of(self._sender_state)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def _flush(self, timeout: float | None) -> None:
        begun = time.monotonic()
        if not self._sender_state.flush(timeout):
            waited = time.monotonic() - begun
            text = f"not everything was acknowledged within {waited:.1f} s; it may still be"
            raise OutcomeUnknown(text) if timeout is None else TimedOut(text)

    def _report(self) -> None:
        count, first = self._sender_state.failures()
        if first is not None:
            raise DeliveryError(count, first)

    def __enter__(self) -> Self:
        self._sender_state.check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clean: close(). After an exception what was sent is published, not waited for."""
        if kind is None:
            self.close()
        elif not self._sender_state.forked and not self._closed:
            self._sender_state.publish()
            self._closed = True
            self._sender_state.close()

    def __del__(self) -> None:
        state = getattr(self, "_sender_state", None)
        if state is None or self._closed or state.forked:
            return
        state.publish()
        state.close()
        warnings.warn(
            f"unclosed {self!r}: call close()", ResourceWarning, source=self, stacklevel=2
        )

    def __repr__(self) -> str:
        return f"<Producer {'closed' if self._closed else 'open'} at {id(self):#x}>"


def state_pressure(state: Sender) -> Pressure:
    """What a sender's producer is told of pressure."""
    state.check()
    connection: Connection = state.connection
    return pressure_of(state, outlets_of(connection), connection.pressures)


def dropped_of(state: Sender) -> dict[TopicPartition, int]:
    """Records that a sender dropped, by partition."""
    return {TopicPartition(*where): count for where, count in state.dropped().items()}


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")


def _within(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {type(value).__name__}, expected int")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; allowed: {low} to {high}")


__all__ = ["Producer", "dropped_of", "outlets_of", "sender_of", "state_pressure"]
