"""The asyncio consumer over a fake broker, under asyncio's loop and uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop
from consumer_fakes import FakeBroker, FakePartition

import shmbroker
from shmbroker import aio
from shmbroker._core import shm
from shmbroker.client import client as sync_client
from shmbroker.client.admin import Admin as SyncAdmin
from shmbroker.client.consumer import Consumer as SyncConsumer
from shmbroker.client.metadata import TopicPartition
from shmbroker.errors import (
    BrokerGone,
    ClosedError,
    ConcurrentUse,
    OffsetOutOfRange,
    TimedOut,
    UnknownTopic,
)

RING = 1 << 16
Connect = Callable[..., "contextlib.AbstractAsyncContextManager[aio.Client]"]
Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBroker]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with FakeBroker(tmp_path, partitions=2) as broker:
        yield broker


@pytest.fixture
def log(fake: FakeBroker) -> FakePartition:
    fake.partitions = fake.partitions[:1]
    fake.partitions[0].make_ring(RING)
    return fake.partitions[0]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def runs(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return runs


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
            record = await consumer.poll(5)
            assert record is not None
            assert record.value == b"and on"

    run(main)


def test_a_wait_ends_with_the_next_record(fake: FakeBroker, log: FakePartition, run: Run) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            for n in range(20):
                waiting = asyncio.create_task(consumer.poll(10))
                await waits(consumer)
                publish(log, b"%d" % n)
                record = await waiting
                assert record is not None
                assert (record.offset, record.value) == (n, b"%d" % n)

    run(main)


def test_no_wait_has_a_thread_and_all_of_them_end(fake: FakeBroker, run: Run) -> None:
    for log in fake.partitions:
        log.make_ring(RING)

    async def main() -> None:
        async with connect() as client, contextlib.AsyncExitStack() as stack:
            consumers = [
                await stack.enter_async_context(client.consumer("t", partitions=[n % 2]))
                for n in range(50)
            ]
            tasks = [asyncio.create_task(c.poll(10)) for c in consumers]
            for consumer in consumers:
                await waits(consumer)
            assert len([t for t in threading.enumerate() if "shmbroker" in t.name]) == 3
            for log in fake.partitions:
                publish(log, b"for %d" % log.number)
            got = [record.value for record in await asyncio.gather(*tasks)]  # type: ignore[union-attr]
            assert got == [b"for %d" % (n % 2) for n in range(50)]

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
                task = asyncio.ensure_future(_awaits(readers[n % 2]))
                for step in range(n % 9):
                    if step == (n % 5):
                        publish(log, b"x")
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    seen.append((await task).offset)
            end = (await consumer.end_offsets())[TopicPartition("t", 0)]
            while len(seen) < end:
                record = await consumer.poll(5)
                assert record is not None
                seen.append(record.offset)
        assert seen == list(range(end))

    run(main)


async def _awaits(what: Callable[[], Awaitable[Any]]) -> Any:
    return await what()


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
            client._reading.start(lambda: gate.wait(10))
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
            record = await consumer.poll(5)
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
            with pytest.raises(ValueError, match="begin at 0"):
                await client.consumer("t", start=-1)
            with pytest.raises(UnknownTopic):
                await client.describe_topic("nothing")
            assert await client.topics() == ["t"]
            async with client.consumer("t", start=1) as consumer:
                for _ in range(2):
                    with pytest.raises(OffsetOutOfRange) as told:
                        await consumer.poll(1)
                    assert (told.value.offset, told.value.log_start_offset) == (1, 4)
                await consumer.seek("earliest")
                assert await values(consumer) == numbered(4, 6)
            async with client.consumer("t", start=1, on_gap="earliest") as consumer:
                assert await values(consumer) == numbered(4, 6)

    run(main)


def test_a_wait_goes_on_over_a_restart_of_the_broker(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            task = asyncio.create_task(consumer.poll(10))
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
            assert 0.2 <= time.monotonic() - began < 1.2
            with pytest.raises(BrokerGone):  # each later call tries once more
                await consumer.poll()
            with pytest.raises((BrokerGone, TimedOut)):
                await client.status()
            assert await consumer.poll(0) is None
            fake.restart()
            publish(log, b"back")
            record = await consumer.poll(10)
            assert record is not None
            assert record.value == b"back"

    run(main)


def test_a_topic_that_is_deleted_ends_the_wait(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            task = asyncio.create_task(consumer.poll(10))
            await waits(consumer)
            fake.answers["metadata"] = lambda _: {"topics": {}}
            log.slot.state = shm.STATES.index("closed")
            log.ring_words()
            with pytest.raises(UnknownTopic, match="'t'"):
                await task

    run(main)


def test_a_request_that_waits_does_not_block_the_loop(
    fake: FakeBroker, log: FakePartition, run: Run
) -> None:
    go_on = threading.Event()

    def slow(_: object) -> dict[str, object]:
        assert go_on.wait(10)
        return {"slow": True}

    fake.answers["status"] = slow

    async def main() -> None:
        async with connect() as client, client.consumer("t") as consumer:
            asked = asyncio.create_task(client.status())
            publish(log, b"meanwhile")
            assert await consumer.poll(5) is not None
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
        task = asyncio.ensure_future(_awaits(connect))
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
