"""The asyncio producer: the synchronous one's names and options around the core's awaitable send().

Belongs to the event loop of its bridge and to that loop's thread; the receipts' `result()` may be
called anywhere. Rings belong to the client's connection and are shared with its other producers.
Every failure is raised once: by its receipt, or, if nobody looked at that, by flush(), close() or
the end of the `async with` block. A forked child gets ForkedError, its destructors do nothing.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any, Protocol, Self

from shmbroker._core.producer import AsyncProducerBase
from shmbroker.client.producer import (
    Acks,
    Compression,
    OnFull,
    dropped_of,
    sender_of,
    state_pressure,
)
from shmbroker.client.receipt import RecordMetadata
from shmbroker.errors import DeliveryError, ForkedError, OutcomeUnknown, TimedOut

if TYPE_CHECKING:
    from types import TracebackType

    from shmbroker.client.aio.bridge import Bridge
    from shmbroker.client.connection import Connection
    from shmbroker.client.metadata import Metadata, TopicPartition
    from shmbroker.client.pressure import Pressure


class _Client(Protocol):
    @property
    def connection(self) -> Connection: ...
    @property
    def metadata(self) -> Metadata: ...


class Producer(AsyncProducerBase):
    """Made by the asyncio client's `producer()`; close it, or use it with `async with`."""

    def __init__(
        self,
        client: _Client,
        bridge: Bridge,
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
        """The options mean what they mean to the synchronous Producer; `max_block_ms` is how long
        `await send()` may wait while the ring is full."""
        self._closed = False
        self._delivery_s = delivery_timeout_ms / 1000
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
        self._begin(self._sender_state, bridge)

    async def send_and_wait(
        self, topic: str, value: Any, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> RecordMetadata:
        """send() and its receipt: returns when the record is acknowledged.

        TimedOut after `timeout` seconds. Then, and when this is cancelled, the record may still
        arrive.
        """
        try:
            async with asyncio.timeout(timeout):
                return await (await self.send(topic, value, *args, **kwargs))
        except TimeoutError as error:
            if type(error) is not TimeoutError:  # BufferFull is one too
                raise
            raise TimedOut(f"no acknowledgement within {timeout} s; it may still come") from None

    async def flush(self, timeout: float | None = None) -> None:
        """Returns when every record sent before is acknowledged as `acks` asks for, and its
        callbacks have been called.

        `timeout` in seconds; delivery_timeout_ms by default. Raises TimedOut (OutcomeUnknown when
        that default has passed), BrokerGone, and DeliveryError for failures nobody looked at.
        Cancelled, it leaves the records alone.
        """
        self._sender_state.check()
        await self._flush_within(timeout)
        self._report()

    async def close(self, timeout: float | None = None) -> None:
        """flush(), then no more: other tasks' waits end with ClosedError. Twice is fine.

        Cancelled, it closes without waiting any longer.
        """
        state = self._sender_state
        if state.forked:
            raise ForkedError("this producer")
        if self._closed:
            return
        try:
            if not state.connection.closed:
                await self._flush_within(timeout)
        finally:
            self._end()
        self._report()

    def pressure(self) -> Pressure:
        """As of the synchronous producer; a plain call, since it never waits."""
        return state_pressure(self._sender_state)

    def dropped(self) -> dict[TopicPartition, int]:
        """As of the synchronous producer."""
        return dropped_of(self._sender_state)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    async def _flush_within(self, timeout: float | None) -> None:
        limit = self._delivery_s if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                await self._flush()
        except TimeoutError as error:
            if type(error) is not TimeoutError:
                raise
            text = f"not everything was acknowledged within {limit:g} s; it may still be"
            raise (OutcomeUnknown if timeout is None else TimedOut)(text) from None

    def _end(self) -> None:
        """No more records, and no more waits; what is open is published."""
        if not self._closed:
            self._closed = True
            self._sender_state.publish()
            self._sender_state.close()
            self._end_waits()

    def _report(self) -> None:
        count, first = self._sender_state.failures()
        if first is not None:
            raise DeliveryError(count, first)

    async def __aenter__(self) -> Self:
        self._sender_state.check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Clean: close(). After an exception what was sent is published, not waited for."""
        if kind is None:
            await self.close()
        elif not self._sender_state.forked:
            self._end()

    def __del__(self) -> None:
        state = getattr(self, "_sender_state", None)
        if state is None or self._closed or state.forked:
            return
        self._end()
        warnings.warn(
            f"unclosed {self!r}: await its close()", ResourceWarning, source=self, stacklevel=2
        )

    def __repr__(self) -> str:
        return f"<shmbroker.aio.Producer {'closed' if self._closed else 'open'} at {id(self):#x}>"


__all__ = ["Producer"]
