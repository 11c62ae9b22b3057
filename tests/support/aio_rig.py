"""What the asyncio client's unit tests share: a client of the fake broker, and its records."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from consumer_fakes import FakePartition

from shmbroker import aio

RING = 1 << 16
Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


def connect(**options: Any) -> Any:
    return aio.connect("fake", **options)


def publish(log: FakePartition, *values: bytes) -> None:
    log.append(*values)
    log.flush()


def numbered(first: int, count: int, size: int = 10) -> list[bytes]:
    return [b"%0*d" % (size, n) for n in range(first, first + count)]


async def waits(consumer: aio.Consumer) -> None:
    """Returns when a task sleeps in `consumer`."""
    while consumer._wake is None:
        await asyncio.sleep(0.001)


async def values(consumer: aio.Consumer) -> list[bytes | None]:
    """Everything that is there now."""
    return [value async for batch in consumer.batches(timeout=0) for value in batch.values()]


async def awaits(what: Callable[[], Awaitable[Any]]) -> Any:
    return await what()
