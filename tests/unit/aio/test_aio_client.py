"""The asyncio client and its consumers' lives over a fake broker, under both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aio_rig import RING, Run, awaits, connect, publish, waits
from consumer_fakes import FakeBroker, FakePartition

import shmbroker
from shmbroker import aio
from shmbroker.client import client as sync_client
from shmbroker.client.admin import Admin as SyncAdmin
from shmbroker.client.consumer import Consumer as SyncConsumer
from shmbroker.errors import (
    BrokerGone,
    ClosedError,
    ConcurrentUse,
    TimedOut,
)


def test_the_twins_have_the_same_methods_with_the_same_parameters() -> None:
    only_sync = {"idle"}  # an event loop doesn't spin
    for one, twin in ((SyncAdmin, aio.Client), (SyncConsumer, aio.Consumer)):
        for name, method in inspect.getmembers(one, inspect.isfunction):
            if name.startswith("_"):
                continue
            theirs = inspect.signature(getattr(twin, name)).parameters
            assert list(theirs) == list(inspect.signature(method).parameters), name
    for name in ("producer", "consumer", "close"):
        mine = inspect.signature(getattr(sync_client.Client, name)).parameters
        theirs = inspect.signature(getattr(aio.Client, name)).parameters
        assert [p for p in mine if p not in only_sync] == list(theirs)
    assert list(inspect.signature(aio.connect).parameters) == list(
        inspect.signature(shmbroker.connect).parameters
    )


def test_no_wait_has_a_thread_and_all_of_them_end(fake: FakeBroker, run: Run) -> None:
    for log in fake.partitions:
        log.make_ring(RING)

    def threads() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if "shmbroker" in t.name}

    before = threads()  # that of the process's callbacks, if there were producers

    async def main() -> None:
        async with connect() as client, contextlib.AsyncExitStack() as stack:
            consumers = [
                await stack.enter_async_context(client.consumer("t", partitions=[n % 2]))
                for n in range(50)
            ]
            tasks = [asyncio.create_task(c.poll(40)) for c in consumers]
            for consumer in consumers:
                await waits(consumer)
            assert len(threads() - before) == 3
            for log in fake.partitions:
                publish(log, b"for %d" % log.number)
            got = [record.value for record in await asyncio.gather(*tasks)]  # type: ignore[union-attr]
            assert got == [b"for %d" % (n % 2) for n in range(50)]

    run(main)


def test_close_from_another_task_ends_waits_and_iterations(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def all_records(consumer: AsyncIterator[Any]) -> list[Any]:
        return [record async for record in consumer]

    async def ends(client: aio.Client, read: Callable[[aio.Consumer], Awaitable[Any]]) -> Any:
        """What becomes of `read` when the consumer is closed by another task."""
        consumer = await client.consumer("t")
        task = asyncio.ensure_future(read(consumer))
        await waits(consumer)
        await consumer.close()
        await consumer.close()
        for call in (consumer.poll, consumer.position, consumer.lag, consumer.__anext__):
            with pytest.raises((ClosedError, StopAsyncIteration)):
                await call()
        for plain in (consumer.batches, consumer.assignment, consumer.paused):
            with pytest.raises(ClosedError):
                plain()
        return await task

    async def main() -> None:
        async with connect() as client:
            assert await ends(client, all_records) == []
            assert await ends(client, lambda c: all_records(c.batches())) == []
            with pytest.raises(ClosedError):
                await ends(client, lambda c: c.poll())
            waiting = await client.consumer("t")
            task = asyncio.create_task(waiting.poll())
            await waits(waiting)
        with pytest.raises(ClosedError):  # the client's close ended it
            await task
        with pytest.raises(ClosedError):
            client.consumer("t")
        with pytest.raises(ClosedError):
            await client.topics()
        await client.close()

    run(main)


def test_a_close_that_is_cancelled_closes_all_the_same(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def main() -> None:
        client = await connect()
        consumers = [await client.consumer("t") for _ in range(3)]
        waiting = asyncio.create_task(consumers[1].poll())
        await waits(consumers[1])
        for steps in range(4):
            task = asyncio.create_task(client.close())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        with pytest.raises(ClosedError):
            await waiting
        assert client.closed
        assert all(c.closed for c in consumers)
        assert client.connection.closed

    run(main)


def test_two_tasks_in_one_consumer_are_told(fake: FakeBroker, log: FakePartition, run: Run) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            task = asyncio.create_task(consumer.poll())
            await waits(consumer)
            for call in (consumer.poll, consumer.lag, lambda: anext(consumer)):
                with pytest.raises(ConcurrentUse, match="two tasks"):
                    await call()
            publish(log, b"a")
            assert (await task).value == b"a"  # type: ignore[union-attr]

    run(main)


def test_a_client_of_another_loop_is_told(fake: FakeBroker, log: FakePartition, run: Run) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:

            def elsewhere() -> None:
                async def use() -> None:
                    for call in (consumer.poll, client.topics, client.status):
                        with pytest.raises(ConcurrentUse, match="event loop"):
                            await call()

                asyncio.run(use())

            await asyncio.get_running_loop().run_in_executor(None, elsewhere)

    run(main)


def test_a_wait_goes_on_over_a_restart_of_the_broker(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            task = asyncio.create_task(consumer.poll(40))
            await waits(consumer)
            fake.kill()
            await asyncio.sleep(0.05)
            fake.restart()
            publish(log, b"after")
            record = await task
            assert record is not None
            assert (record.offset, record.value) == (0, b"after")

    run(main)


def test_a_wait_ends_when_the_broker_stays_away(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def main() -> None:
        async with (
            connect(reconnect_s=0.2) as client,
            client.consumer("t", start="earliest") as consumer,
        ):
            task = asyncio.create_task(consumer.poll())
            await waits(consumer)
            began = time.monotonic()
            fake.kill()
            with pytest.raises(BrokerGone, match="shmbroker up"):
                await task
            assert 0.2 <= time.monotonic() - began < 15
            with pytest.raises(BrokerGone):  # each later call tries once more
                await consumer.poll()
            with pytest.raises((BrokerGone, TimedOut)):
                await client.status()
            assert await consumer.poll(0) is None
            fake.restart()
            publish(log, b"back")
            record = await consumer.poll(40)
            assert record is not None
            assert record.value == b"back"

    run(main)


def test_a_request_that_waits_does_not_block_the_loop(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    go_on = threading.Event()

    def slow(_: object) -> dict[str, object]:
        assert go_on.wait(40)
        return {"slow": True}

    fake.answers["status"] = slow

    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            asked = asyncio.create_task(client.status())
            publish(log, b"meanwhile")
            assert await consumer.poll(40) is not None
            cancelled = asyncio.create_task(client.status())
            await asyncio.sleep(0)
            cancelled.cancel()
            assert not asked.done()
            go_on.set()
            assert await asked == {"slow": True}

    run(main)


def test_connecting_fails_and_is_cancelled_without_a_trace(fake: FakeBroker, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(shmbroker.NoBroker, match="nobody"):
            await aio.connect("nobody")
        with pytest.raises(shmbroker.NoBroker):
            async with aio.connect("nobody"):
                pass
        task = asyncio.ensure_future(awaits(connect))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            while not (fake.attached and hung_up(fake.attached[-1])):
                await asyncio.sleep(0.01)

    run(main)


def hung_up(end: socket.socket) -> bool:
    """Whether the other end of an attachment is closed."""
    return bool(select.select([end], [], [], 0)[0]) and end.recv(1, socket.MSG_PEEK) == b""


def test_an_unclosed_object_is_a_resource_warning(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def main() -> None:
        client = await connect()
        consumers = [await client.consumer("t")]
        with pytest.warns(ResourceWarning, match=r"aio\.Consumer of t"):
            consumers.clear()
        clients = [client]
        del client
        with pytest.warns(ResourceWarning, match=r"aio\.Client"):
            clients.clear()

    run(main)
