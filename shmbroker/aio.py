"""shmbroker for asyncio: the same names as in `shmbroker`, with the same meaning, to be awaited.

    async with shmbroker.aio.connect() as client, client.consumer("ticks") as consumer:
        async for record in consumer:
            ...

What blocks in `shmbroker` is a coroutine here; `connect`, `client.producer` and `client.consumer`
are plain calls whose result is awaited or entered. No wait has a thread of its own, and a cancelled
one loses no record. Works under asyncio's own loop and uvloop.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shmbroker.client.aio.client import Client, connect
from shmbroker.client.aio.consumer import Consumer

__all__ = ["Client", "Consumer", "Producer", "connect"]  # noqa: F822 - loaded at its first use


def __getattr__(name: str) -> Any:
    """Loads the producer at its first use (PEP 562)."""
    if name != "Producer":
        raise AttributeError(f"module 'shmbroker.aio' has no attribute {name!r}")
    return import_module("shmbroker.client.aio.producer").Producer
