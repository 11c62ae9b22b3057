"""The asyncio client against a real broker, under asyncio's loop and uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from streamed import LISTENING, control_of, token_file_of

from shmbroker import aio
from shmbroker.client.aio.client import Connecting
from shmbroker.errors import ClosedError, OffsetOutOfRange, TopicExists, UnknownTopic

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=["local", "remote"])
def way(request: pytest.FixtureRequest) -> str:
    """How records come: out of the broker's memory, or over the network."""
    found: str = request.param
    return found


@pytest.fixture
def broker_config(way: str) -> str:
    return LISTENING if way == "remote" else ""


@pytest.fixture
def connect(broker: Any, way: str) -> Callable[[], Connecting]:
    """An asyncio client to be."""
    if way == "local":
        return lambda: aio.connect(broker.instance)
    return lambda: aio.connect(control_of(broker), local=False, token_file=token_file_of(broker))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def runs(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return runs


def numbered(first: int, count: int) -> list[bytes]:
    return [b"%0100d" % n for n in range(first, first + count)]


def send(broker: Any, values: list[bytes], partition: int = 0) -> None:
    with broker.client() as client, client.producer() as producer:
        producer.send_many("t", values, partition=partition).result(40)


def test_what_was_acknowledged_is_read_back_by_record_and_by_batch(
    broker: Any, connect: Any, run: Run
) -> None:
    sent = numbered(0, 50_000)

    async def main() -> None:
        async with connect() as client:
            # Small segments, so that most of it comes out of files.
            info = await client.create_topic("t", config={"segment.bytes": 1 << 20})
            assert len(info.partitions) == 1
            await asyncio.to_thread(send, broker, sent)
            async with client.consumer("t", start="earliest") as consumer:
                seen = []
                async for record in consumer:
                    seen.append(record.value)
                    if record.offset == 19_999:
                        break
                assert await consumer.position() == 20_000
                while len(seen) < len(sent):
                    batch = await consumer.poll_batch(40)
                    assert batch is not None
                    seen += batch.values()
                assert seen == sent
                await consumer.seek(12_345)
                record = await consumer.poll(40)
                assert record is not None
                assert (record.offset, record.value) == (12_345, sent[12_345])
            async with client.consumer("t", start=50_001) as consumer:
                with pytest.raises(OffsetOutOfRange):
                    await consumer.poll()

    run(main)


def test_the_administrative_calls_are_those_of_the_synchronous_client(
    broker: Any, connect: Any
) -> None:
    async def main() -> None:
        async with connect() as client:
            info = await client.create_topic("t", partitions=3)
            assert [p.partition for p in info.partitions] == [0, 1, 2]
            with pytest.raises(TopicExists):
                await client.create_topic("t")
            assert (await client.create_topic("t", if_not_exists=True)).id == info.id
            assert (await client.describe_topic("t")).id == info.id
            assert await client.topics() == ["t"]
            assert (await client.status())["instance"] == broker.instance
            async with client.consumer("t") as consumer:
                task = asyncio.create_task(consumer.poll())
                while consumer._wake is None:
                    await asyncio.sleep(0.001)
                await client.delete_topic("t")
                with pytest.raises(UnknownTopic):
                    await task
            assert await client.topics() == []
        with pytest.raises(ClosedError):
            await client.topics()

    asyncio.run(main())


def test_one_consumer_of_more_partitions_than_a_futex_takes_wakes_for_each(
    broker: Any, connect: Any
) -> None:
    async def main() -> None:
        async with (
            connect() as client,
            client.consumer("t") as consumer,
            asyncio.timeout(60),
        ):
            assert len(consumer.assignment()) == 150
            for partition in (0, 64, 149):
                task = asyncio.create_task(consumer.poll())
                while consumer._wake is None:
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(send, broker, [b"x"], partition)
                record = await task
                assert record is not None
                assert record.partition == partition

    with broker.client() as client:
        client.create_topic("t", 150)
    asyncio.run(main())


def test_tasks_of_one_group_read_side_by_side_on_no_thread_of_their_own(
    broker: Any, connect: Any, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client, contextlib.AsyncExitStack() as stack:
            consumers = [
                await stack.enter_async_context(client.consumer("t", partitions=[n % 4]))
                for n in range(40)
            ]
            threads = threading.active_count()

            async def read(consumer: aio.Consumer) -> list[int]:
                found: list[int] = []
                async for record in consumer:
                    found.append(record.offset)
                    if len(found) == 500:
                        return found
                raise AssertionError

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                tasks = [group.create_task(read(consumer)) for consumer in consumers]
                while any(c._wake is None for c in consumers):
                    await asyncio.sleep(0.001)
                assert threading.active_count() == threads
                for partition in range(4):
                    await asyncio.to_thread(send, broker, numbered(0, 500), partition)
            assert all(task.result() == list(range(500)) for task in tasks)

    with broker.client() as client:
        client.create_topic("t", 4)
    run(main)
