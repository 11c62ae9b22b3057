"""shmbroker for asyncio: the same names as in `shmbroker`, with the same meaning, to be awaited.

    async with shmbroker.aio.connect() as client, client.consumer("ticks") as consumer:
        async for record in consumer:
            ...

What blocks in `shmbroker` is a coroutine here; `connect`, `client.producer` and `client.consumer`
are plain calls whose result is awaited or entered. No wait has a thread of its own, and a cancelled
one loses no record. Works under asyncio's own loop and uvloop.
"""

from __future__ import annotations

from shmbroker.client.aio.client import Client, connect
from shmbroker.client.aio.consumer import Consumer
from shmbroker.client.aio.group_consumer import GroupConsumer
from shmbroker.client.aio.producer import Producer

__all__ = ["Client", "Consumer", "GroupConsumer", "Producer", "connect"]
