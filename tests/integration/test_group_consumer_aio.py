"""Members of a group in an event loop: they share with synchronous ones, and lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from shmbroker import aio, errors

pytestmark = pytest.mark.timeout(90)
Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
COUNT = 40
LIMIT_S = 20.0


both_ways = pytest.mark.parametrize("reach", ["local", "tcp"])


@pytest.fixture
def connect(broker: Any, reach: str) -> Callable[[], Any]:
    """An asyncio client to be, of a broker that has 40 records in four partitions."""
    with broker.client() as client:
        client.create_topic("orders", partitions=4)
        send(client, list(range(COUNT)))
    if reach == "local":
        return lambda: aio.connect(broker.instance)
    return lambda: aio.connect(broker.address, local=False)


@pytest.fixture
def run(reach: str) -> Run:
    """One loop for each way: both are tried, without twice the time."""
    factory = uvloop.new_event_loop if reach == "tcp" else None

    def runs(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return runs


def send(client: Any, values: list[int], topic: str = "orders") -> None:
    with client.producer() as producer:
        for n in values:
            producer.send(topic, b"%d" % n, partition=n % 4)
        producer.flush()


async def sends(broker: Any, values: list[int]) -> None:
    def in_thread() -> None:
        with broker.client() as client:
            send(client, values)

    await asyncio.to_thread(in_thread)


async def numbers(consumer: Any, count: int) -> list[int]:
    found = []
    while len(found) < count:
        record = await consumer.poll(LIMIT_S)
        assert record is not None, found
        found.append(int(record.value))
    return found


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await what():
            await asyncio.sleep(0.01)


async def reading(consumer: Any, seen: list[int]) -> None:
    async for record in consumer:
        seen.append(int(record.value))


@both_ways
def test_a_lone_member_reads_all_commits_and_a_successor_goes_on(
    broker: Any, connect: Any, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client:
            async with client.consumer("orders", group="g") as consumer:
                assert consumer.group == "g"
                assert consumer.member_id
                assert sorted(await numbers(consumer, COUNT)) == list(range(COUNT))
                assert set((await consumer.committed()).values()) == {None}
                record_of = dict.fromkeys(consumer.assignment(), 10)
                assert await consumer.commit() == record_of
                assert await consumer.lag() == dict.fromkeys(record_of, 0)
            await sends(broker, [100, 101])
            async with client.consumer("orders", group="g") as consumer:
                record = await consumer.poll(LIMIT_S)
                key = (record.topic, record.partition)
                assert await consumer.commit(record, metadata="by hand") == {key: 11}
                batch = await consumer.poll_batch(LIMIT_S)
                assert int(batch.values()[0]) in (100, 101)
            async with client.consumer("orders", group="g") as consumer:  # of the batch, nothing
                assert await numbers(consumer, 1) == [int(batch.values()[0])]
                assert await consumer.poll(0.05) is None

    run(main)


@both_ways
def test_two_members_share_and_the_callbacks_run_in_the_loop(
    broker: Any, connect: Any, run: Run
) -> None:
    async def main() -> None:
        calls: list[tuple[str, int]] = []
        loop, seen_1, seen_2 = asyncio.get_running_loop(), [], []

        async def revoked(partitions: list[Any]) -> None:
            assert asyncio.get_running_loop() is loop
            assert set(await one.commit()) >= set(partitions)  # inside on_revoke it counts
            await one.seek("earliest", partitions[0])
            with pytest.raises(errors.ConcurrentUse, match="callback"):
                await one.poll(0)
            calls.append(("revoke", len(partitions)))

        def assigned(partitions: list[Any]) -> None:
            assert asyncio.get_running_loop() is loop
            calls.append(("assign", len(partitions)))

        async with connect() as client:
            one = client.consumer("orders", group="g", on_assign=assigned, on_revoke=revoked)
            first = asyncio.create_task(reading(one, seen_1))
            await until(lambda: _true(len(seen_1) == COUNT))
            two = client.consumer("orders", group="g")
            second = asyncio.create_task(reading(two, seen_2))
            await until(lambda: _true(len(one.assignment()) == len(two.assignment()) == 2))
            assert calls == [("assign", 4), ("revoke", 2)]
            await sends(broker, [1000, 1001, 1002, 1003])
            await until(lambda: _true(len(seen_1) + len(seen_2) == COUNT + 4))
            assert sorted(seen_1 + seen_2) == [*range(COUNT), 1000, 1001, 1002, 1003]
            assert seen_2  # its predecessor had committed: nothing came twice
            await two.close()
            await until(lambda: _true(len(one.assignment()) == 4))
            await one.close()
            await asyncio.gather(first, second)
        assert calls[2:] == [("assign", 2), ("revoke", 4)]

    run(main)


async def _true(said: bool) -> bool:
    return said


def test_a_member_of_a_loop_and_one_of_a_thread_share(broker: Any, connect: Any, run: Run) -> None:
    async def main() -> None:
        with broker.client() as mine:
            other = mine.consumer("orders", group="g")
            async with connect() as client, client.consumer("orders", group="g") as consumer:

                async def shared() -> bool:
                    await consumer.poll(0)
                    await asyncio.to_thread(other.poll, 0)
                    return len(consumer.assignment()) == len(other.assignment()) == 2

                await until(shared)
                assert not set(consumer.assignment()) & set(other.assignment())
            other.close()

    run(main)


def test_a_cancelled_read_cuts_no_callback_in_half_and_loses_no_record(
    broker: Any, connect: Any, run: Run
) -> None:
    async def main() -> None:
        gate, ended = asyncio.Event(), []

        async def assigned(partitions: list[Any]) -> None:
            await gate.wait()
            ended.append(len(partitions))

        async with (
            connect() as client,
            client.consumer("orders", group="g", on_assign=assigned) as consumer,
        ):
            for _ in range(3):  # each goes on where the one before was cancelled
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await consumer.poll()
                assert not ended
            waiting = asyncio.create_task(consumer.position(0))
            await asyncio.sleep(0.05)
            assert not waiting.done()  # it waits for the callback too
            gate.set()
            assert await waiting == 0
            assert ended == [4]
            assert sorted(await numbers(consumer, COUNT)) == list(range(COUNT))

    run(main)


def test_an_error_of_a_callback_comes_out_of_the_read_once_and_reading_goes_on(
    broker: Any, connect: Any, run: Run
) -> None:
    async def main() -> None:
        async def assigned(partitions: list[Any]) -> None:
            raise RuntimeError("of the program's own")

        async with (
            connect() as client,
            client.consumer("orders", group="g", on_assign=assigned) as consumer,
        ):
            with pytest.raises(RuntimeError, match="own"):
                await consumer.poll(LIMIT_S)
            assert sorted(await numbers(consumer, COUNT)) == list(range(COUNT))

    run(main)


def test_auto_commit_keeps_what_was_asked_past_also_at_close(
    broker: Any, connect: Any, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client:
            await client.create_topic("one", partitions=1)
            async with client.producer() as producer:
                for n in range(10):
                    await producer.send_and_wait("one", b"%d" % n)
            options = {"group": "a", "auto_commit_ms": 60_000}
            async with client.consumer("one", **options) as consumer:
                assert await numbers(consumer, 4) == [0, 1, 2, 3]
                await consumer.pause()  # the fourth is in work still
            async with client.consumer("one", **options) as consumer:
                assert await numbers(consumer, 1) == [3]
                assert await consumer.poll_batch(LIMIT_S) is not None
            async with client.consumer("one", **options) as consumer:
                assert (await consumer.poll_batch(LIMIT_S)).base_offset == 4
                assert await consumer.poll(0) is None  # asked past
            async with client.consumer("one", **options) as consumer:
                assert await consumer.poll(0.05) is None
                assert await consumer.committed() == {("one", 0): 10}

    run(main)


def test_a_member_that_was_put_out_says_so_and_comes_back(
    broker: Any, connect: Any, run: Run
) -> None:
    async def main() -> None:
        lost: list[Any] = []

        async def told(partitions: list[Any]) -> None:
            lost.append(partitions)

        async with (
            connect() as client,
            connect() as others,
            client.consumer(
                "orders", group="g", session_timeout_ms=1_000, on_lost=told
            ) as consumer,
        ):
            assert await consumer.poll(LIMIT_S) is not None
            before, member = consumer.member_id, consumer._stream._member
            client.connection.heart.remove(member)  # silent from now on
            async with others.consumer("orders", group="g") as other:

                async def took_all() -> bool:
                    await other.poll(0)
                    return len(other.assignment()) == 4

                await until(took_all)
                with pytest.raises(errors.UnknownMember):
                    await consumer.commit()
            client.connection.heart.add(member, consumer._stream._call)
            assert sorted(await numbers(consumer, COUNT)) == list(range(COUNT))
            assert [len(partitions) for partitions in lost] == [4]
            assert consumer.member_id != before

    run(main)


@both_ways
def test_a_broker_that_is_killed_is_a_pause(broker: Any, connect: Any, run: Run) -> None:
    async def main() -> None:
        seen: list[int] = []
        async with connect() as client:
            consumer = client.consumer("orders", group="g", auto_commit_ms=50)
            task = asyncio.create_task(reading(consumer, seen))
            await until(lambda: _true(len(seen) == COUNT))
            before = consumer.member_id
            for n in range(2):
                await asyncio.to_thread(broker.kill9, bool(n))
                await asyncio.to_thread(broker.start)
                await sends(broker, [100 + n])
                await until(lambda n=n: _true(100 + n in seen))
            assert consumer.member_id == before
            await consumer.close()
            await task
        assert seen == [*seen[:COUNT], 100, 101]

    run(main)


def test_close_waits_for_no_callback_without_end(broker: Any, connect: Any, run: Run) -> None:
    async def main() -> None:
        inside = asyncio.Event()

        async def assigned(partitions: list[Any]) -> None:
            inside.set()
            await asyncio.Event().wait()

        async with connect() as client:
            consumer = client.consumer("orders", group="g", on_assign=assigned)
            task = asyncio.create_task(consumer.poll())
            await inside.wait()
            async with asyncio.timeout(10):
                await consumer.close()
            with pytest.raises(errors.ClosedError):
                await task

    run(main)


def test_a_callback_may_close_its_consumer(broker: Any, connect: Any, run: Run) -> None:
    async def main() -> None:
        async def assigned(partitions: list[Any]) -> None:
            await consumer.close()

        async with connect() as client:
            consumer = client.consumer("orders", group="g", on_assign=assigned)
            async with asyncio.timeout(LIMIT_S):
                assert [record async for record in consumer] == []
            assert consumer.closed

    run(main)


def test_records_come_decoded_and_options_that_cannot_be_are_refused(
    broker: Any, connect: Any, run: Run
) -> None:
    async def main() -> None:
        async with connect() as client:
            decoded = client.consumer("orders", group="g", value_deserializer=json.loads)
            async with decoded as consumer:
                assert isinstance(consumer, aio.GroupConsumer)
                record = await consumer.poll(LIMIT_S)
                assert isinstance(record.value, int)
                assert await consumer.commit(record)
                batch = await consumer.poll_batch(LIMIT_S)
                assert await consumer.commit(batch)
            for options in ({"start": 5}, {"auto_commit_ms": 0}, {"isolation": "x"}):
                with pytest.raises(ValueError):
                    client.consumer("orders", group="g", **options)
            with pytest.raises(ValueError, match="pattern"):
                client.consumer(group="g")
            with pytest.raises(errors.InvalidSessionTimeout):
                await client.consumer("orders", group="g", session_timeout_ms=1)

    run(main)
