"""The asyncio consumer over a fake broker, under asyncio's loop and uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from aio_rig import RING, Run, awaits, connect, numbered, publish, values, waits
from consumer_fakes import FakeBroker, FakePartition

from shmbroker._core import shm
from shmbroker.client.metadata import TopicPartition
from shmbroker.errors import (
    OffsetOutOfRange,
    UnknownTopic,
)


def test_records_come_in_order_from_ring_and_files(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    for n in range(40):
        publish(log, *numbered(n * 50, 50, size=100))  # laps the ring

    async def main() -> None:
        async with connect() as client, client.consumer("t", start="earliest") as consumer:
            seen = []
            async for record in consumer:
                seen.append((record.offset, record.value))
                if record.offset == 1999:
                    break
            assert seen == list(enumerate(numbered(0, 2000, size=100)))
            assert await consumer.poll(0) is None
            publish(log, b"and on")
            record = await consumer.poll(40)
            assert record is not None
            assert record.value == b"and on"

    run(main)


def test_a_wait_ends_with_the_next_record(fake: FakeBroker, log: FakePartition, run: Run) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            for n in range(20):
                waiting = asyncio.create_task(consumer.poll(40))
                await waits(consumer)
                publish(log, b"%d" % n)
                record = await waiting
                assert record is not None
                assert (record.offset, record.value) == (n, b"%d" % n)

    run(main)


def test_a_timeout_ends_a_wait_and_nothing_is_lost(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            assert await consumer.poll(0) is None
            assert await consumer.poll(0.02) is None
            assert await consumer.poll_batch(0.02) is None
            assert await values(consumer) == []
            with pytest.raises(ValueError):
                await consumer.poll(-1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await consumer.poll()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(consumer), 0.05)
            batches = consumer.batches()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(batches), 0.05)
            publish(log, b"kept")
            assert (await anext(batches)).values() == [b"kept"]

    run(main)


def test_a_cancelled_wait_loses_no_record_whenever_it_comes(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    """Cancels after every number of steps of the loop, with records arriving between them."""

    async def main() -> None:
        seen: list[int] = []
        async with connect() as client, client.consumer("t", start="earliest") as consumer:
            readers: list[Callable[[], Awaitable[Any]]] = [
                consumer.poll,
                lambda: anext(consumer),  # type: ignore[arg-type]
            ]
            for n in range(200):
                task = asyncio.ensure_future(awaits(readers[n % 2]))
                for step in range(n % 9):
                    if step == (n % 5):
                        publish(log, b"x")
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    seen.append((await task).offset)
            end = (await consumer.end_offsets())[TopicPartition("t", 0)]
            while len(seen) < end:
                record = await consumer.poll(40)
                assert record is not None
                seen.append(record.offset)
        assert seen == list(range(end))

    run(main)


def test_a_cancelled_read_of_files_keeps_its_records(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    for n in range(10):
        publish(log, *numbered(10 * n, 10))
    log.slot.ring_bytes = 0  # all of it is in the file alone
    log.slot.generation += 1

    async def main() -> None:
        async with connect() as client, client.consumer("t", start="earliest") as consumer:
            gate = threading.Event()  # holds the thread that reads files up
            client._reading.start(lambda: gate.wait(40))
            for _ in range(3):
                task = asyncio.create_task(consumer.poll())
                for _ in range(5):
                    await asyncio.sleep(0)
                assert consumer._pending is not None
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            gate.set()
            assert await consumer.position() == 0
            first = await consumer.poll(0)
            assert first is not None
            assert first.offset == 0
            assert await consumer.position() == 1
            task = asyncio.create_task(consumer.seek("earliest"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            await consumer.seek(50)
            assert await values(consumer) == numbered(50, 50)

    run(main)


def test_a_task_group_that_fails_loses_no_record(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:

            async def fails() -> None:
                await waits(consumer)
                publish(log, b"kept")
                raise LookupError

            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(consumer.poll())
                    group.create_task(fails())
            record = await consumer.poll(40)
            assert record is not None
            assert record.value == b"kept"

    run(main)


def test_an_awaitable_that_nobody_awaits_takes_no_record(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    publish(log, b"a", b"b", b"c")

    async def main() -> None:
        async with connect() as client, client.consumer("t", start="earliest") as consumer:
            assert (await anext(consumer)).value == b"a"
            consumer.__anext__()
            later = consumer.__anext__()
            assert (await consumer.poll(0)).value == b"b"  # type: ignore[union-attr]
            assert (await later).value == b"c"

    run(main)


def test_fetched_records_come_without_suspension_and_others_get_their_turn(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    for n in range(4):
        publish(log, *numbered(100 * n, 100, size=100))

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with connect() as client, client.consumer("t", start="earliest") as consumer:
            await consumer.poll(0)
            task = asyncio.create_task(other())
            for _ in range(399):
                assert await anext(consumer)
            assert turns == 0  # all of it was one fetch
            await consumer.poll(0)
            assert turns > 0
            task.cancel()

    run(main)


def test_positions_seeks_and_pauses_are_the_synchronous_ones(fake: FakeBroker, run: Run) -> None:
    for log in fake.partitions:
        log.make_ring(RING)
        for value in numbered(0, 4):
            publish(log, value)

    async def main() -> None:
        a, b = TopicPartition("t", 0), TopicPartition("t", 1)
        async with connect() as client, client.consumer("t") as consumer:
            assert consumer.assignment() == [a, b]
            assert await consumer.beginning_offsets() == {a: 0, b: 0}
            assert await consumer.end_offsets() == {a: 4, b: 4}
            await consumer.seek("earliest")
            assert await consumer.lag() == {a: 4, b: 4}
            await consumer.seek(datetime.fromtimestamp(1.002, UTC))
            assert await consumer.position(0) == await consumer.position(b) == 2
            assert await consumer.offsets_for_time(1001) == {a: 1, b: 1}
            await consumer.pause(0)
            assert consumer.paused() == [a]
            assert await values(consumer) == numbered(2, 2)
            await consumer.resume()
            await consumer.seek(3, 1)
            assert sorted(await values(consumer)) == sorted(numbered(2, 2) + numbered(3, 1))  # type: ignore[type-var]
            with pytest.raises(ValueError, match="say which partition"):
                await consumer.seek(1)

    run(main)


def test_what_is_wrong_is_told_as_by_the_synchronous_one(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    publish(log, *numbered(0, 10))
    log.slot.log_start_offset = 4

    async def main() -> None:
        async with connect() as client:
            with pytest.raises(ValueError, match="at least one topic"):
                client.consumer()
            with pytest.raises(UnknownTopic):
                await client.consumer("nothing")
            with pytest.raises(UnknownTopic):
                await client.describe_topic("nothing")
            assert await client.topics() == ["t"]
            async with client.consumer("t", start=1) as consumer:
                for _ in range(2):
                    with pytest.raises(OffsetOutOfRange) as told:
                        await consumer.poll(40)
                    assert (told.value.offset, told.value.log_start_offset) == (1, 4)
                await consumer.seek("earliest")
                assert await values(consumer) == numbered(4, 6)
            async with client.consumer("t", start=1, on_gap="earliest") as consumer:
                assert await values(consumer) == numbered(4, 6)

    run(main)


def test_a_topic_that_is_deleted_ends_the_wait(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            task = asyncio.create_task(consumer.poll(40))
            await waits(consumer)
            fake.answers["metadata"] = lambda _: {"topics": {}}
            log.slot.state = shm.STATES.index("closed")
            log.ring_words()
            with pytest.raises(UnknownTopic, match="'t'"):
                await task

    run(main)
