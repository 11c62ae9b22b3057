"""A program's own functions around keys and values, from an event loop, against a real broker."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import uvloop
from aio_rig import Run

from shmbroker import aio
from shmbroker.client.aio.serializing import DeserializingConsumer, SerializingProducer
from shmbroker.errors import ClosedError, SerializationError, UnknownTopic


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return runner(uvloop.new_event_loop if request.param == "uvloop" else None)


def runner(factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> Run:
    def runs(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def within() -> None:
            async with asyncio.timeout(40):
                await main()

        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(within())

    return runs


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def fail(*_: Any) -> Any:
    raise RuntimeError("no such schema")


async def count(client: aio.Client, topic: str) -> int:
    """How many records the topic has got."""
    async with client.consumer(topic) as consumer:
        return sum((await consumer.end_offsets()).values())


def test_what_is_encoded_by_one_twin_is_decoded_by_the_other(broker: Any, run: Run) -> None:
    async def main() -> None:
        async with (
            aio.connect(broker.instance) as client,
            client.producer(key_serializer=str.encode, value_serializer=dumps) as producer,
        ):
            assert type(producer) is SerializingProducer
            await client.create_topic("json", partitions=1)
            receipt = await producer.send("json", {"n": 0}, key="a", headers={"h": b"1"})
            assert (await receipt).offset == 0
            assert (await producer.send_and_wait("json", {"n": 1}, "b", timestamp=5)).offset == 1
            many = await producer.send_many(
                "json", [{"n": 2}, None], ["c", None], timestamps=[6, 7]
            )
            assert (await many).base_offsets == {0: 2}
            await producer.send_many("json", ({"n": n} for n in (4, 5)))
            await producer.flush()
            await check(client)

    async def check(client: aio.Client) -> None:
        sent = [("a", 0), ("b", 1), ("c", 2), (None, None), (None, 4), (None, 5)]
        async with client.consumer(
            "json", start="earliest", key_deserializer=bytes.decode, value_deserializer=json.loads
        ) as consumer:
            assert type(consumer) is DeserializingConsumer

            def pair(record: Any) -> tuple[str | None, int | None]:
                return record.key, record.value and record.value["n"]

            first = await consumer.poll(40)
            assert first is not None
            assert pair(first) == sent[0]
            assert (first.topic, first.partition, first.offset) == ("json", 0, 0)
            assert (first.raw.value, list(first.headers)) == (b'{"n": 0}', [("h", b"1")])
            found = [pair(first)]
            async for record in consumer:
                found.append(pair(record))
                if len(found) == len(sent):
                    break
            assert found == sent
            assert await consumer.poll(0) is None
            assert await consumer.poll_batch(0) is None
            await consumer.seek(0)
            batch = await consumer.poll_batch(40)
            assert batch is not None
            await consumer.seek(0)
            batches = [batch async for batch in consumer.batches(timeout=0)]
            assert batch.values() == batches[0].values()
            assert [pair(record) for batch in batches for record in batch] == sent
            assert [batch.keys() for batch in batches] == [[r.key for r in b] for b in batches]
            assert [t for b in batches for t in b.timestamps()][1:4] == [5, 6, 7]

    run(main)
    with (
        broker.client() as client,
        client.consumer("json", start="earliest", value_deserializer=json.loads) as consumer,
    ):
        assert next(consumer).value == {"n": 0}


def test_reading_goes_on_behind_a_record_that_can_not_be_decoded(broker: Any, run: Run) -> None:
    good, bad = [b"1", b"3", b"5"], [b"{", b"}"]

    async def main() -> None:
        async with aio.connect(broker.instance) as client:
            await client.create_topic("t", partitions=1)
            async with client.producer() as plain:
                await (await plain.send_many("t", [good[0], bad[0], good[1], bad[1], good[2]]))
            async with client.consumer(
                "t", start="earliest", value_deserializer=json.loads
            ) as consumer:
                record = await anext(consumer)
                assert record.value == 1
                with pytest.raises(SerializationError, match="offset 1 of t-0") as caught:
                    await consumer.poll(40)
                error = caught.value
                assert (error.topic, error.partition, error.offset) == ("t", 0, 1)
                assert error.record.value == bad[0]
                assert isinstance(error.__cause__, json.JSONDecodeError)
                assert await consumer.position() == 2
                values = []
                with pytest.raises(SerializationError, match="offset 3 of t-0"):
                    async for record in consumer:
                        values.append(record.value)
                async for record in consumer:  # the same iteration, begun again
                    values.append(record.value)
                    break
                assert values == [3, 5]
                await consumer.seek(0)
                batch = await consumer.poll_batch(40)
                assert batch is not None
                with pytest.raises(SerializationError, match="offset 1 of t-0"):
                    batch.values()
                assert await consumer.position() == 5
                assert batch.undecoded.values() == [good[0], bad[0], good[1], bad[1], good[2]]

    run(main)


def test_a_cancelled_wait_loses_no_record_and_may_be_repeated(broker: Any, run: Run) -> None:
    async def main() -> None:
        async with (
            aio.connect(broker.instance) as client,
            client.producer(value_serializer=dumps) as producer,
        ):
            await client.create_topic("t", partitions=1)
            async with client.consumer("t", value_deserializer=json.loads) as consumer:
                batches = consumer.batches()
                for n, step in enumerate(
                    (consumer.poll, lambda: anext(consumer), lambda: anext(batches)) * 3
                ):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.02):
                            await step()
                    await producer.send_and_wait("t", n)
                    got = await step()
                    assert got is not None
                    values = got.values() if hasattr(got, "values") else [got.value]
                    assert values == [n]
                seen: list[Any] = []
                came = asyncio.Event()

                async def iterate() -> None:
                    async for record in consumer:
                        seen.append(record.value)
                        came.set()

                iterating = asyncio.create_task(iterate())
                await producer.send_and_wait("t", "last")
                await came.wait()
                await consumer.close()  # ends the iteration of the other task, quietly
                await iterating
                assert seen == ["last"]

    run(main)


def test_a_cancelled_send_took_nothing_and_a_failed_one_neither(broker: Any, run: Run) -> None:
    async def main() -> None:
        async with aio.connect(broker.instance) as client:
            for topic in ("t", "u"):
                await client.create_topic(topic, partitions=1)
            async with client.producer(partitioner=lambda *_: 0, value_serializer=dumps) as p:
                for topic, send in (("t", p.send), ("u", p.send_many)):
                    client.metadata.forget(topic)  # which nobody but `send` asks for now
                    task = asyncio.ensure_future(send(topic, [1, 2]))
                    await asyncio.sleep(0)  # it asks for the topic in a thread
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                with pytest.raises(SerializationError, match=r"value_serializer .* TypeError"):
                    await p.send_and_wait("t", {1, 2})
                with pytest.raises(SerializationError, match=r"\(value 1; none were sent"):
                    await p.send_many("t", [1, {1, 2}])
                with pytest.raises(UnknownTopic, match="'nowhere'"):
                    await p.send("nowhere", 1)
            assert p.closed
            with pytest.raises(ClosedError):
                await p.send("elsewhere", 1)
            async with client.producer(key_serializer=fail, partitioner=lambda *_: 1) as p:
                with pytest.raises(SerializationError, match="RuntimeError: no such") as caught:
                    await p.send("t", b"", key="k")
                assert isinstance(caught.value.__cause__, RuntimeError)
                assert (caught.value.topic, caught.value.retriable) == ("t", False)
                for call in (p.send("t", b""), p.send_many("t", [b""])):
                    with pytest.raises(SerializationError, match="chose partition 1, and it has 1"):
                        await call
            assert [await count(client, topic) for topic in ("t", "u")] == [0, 0]

    run(main)


def test_a_partitioner_knows_the_topic_as_it_is_and_runs_in_the_loops_thread(broker: Any) -> None:
    asked: list[Any] = []
    threads = set()

    def last(_topic: str, key: bytes | None, partitions: int) -> int:
        threads.add(threading.get_ident())
        asked.append((key, partitions))
        return partitions - 1

    def here(value: Any) -> bytes:
        threads.add(threading.get_ident())
        return dumps(value)

    def there(value: bytes) -> Any:
        threads.add(threading.get_ident())
        return json.loads(value)

    async def main() -> None:
        async with (
            aio.connect(broker.instance) as client,
            client.producer(partitioner=last, value_serializer=here) as producer,
        ):
            await client.create_topic("t", partitions=2)
            assert (await producer.send_and_wait("t", 0, b"k")).partition == 1
            assert (await producer.send_and_wait("t", 0, partition=0)).partition == 0
            many = await producer.send_many("t", [0, None, 0], [b"a", None, b"c"])
            assert (await many).counts == {1: 3}
            many = await producer.send_many("t", [0] * 3, partition=0)
            assert (await many).counts == {0: 3}
            assert asked == [(key, 2) for key in (b"k", b"a", None, b"c")]
            await client.alter_topic("t", partitions=3)
            while (await producer.send_and_wait("t", 0)).partition != 2:
                pass
            many = await producer.send_many("t", [0] * 20_000)
            assert (await many).counts == {2: 20_000}
            await check(client)

    async def check(client: aio.Client) -> None:
        async with client.consumer("t", start="earliest", value_deserializer=there) as consumer:
            ends, seen = sum((await consumer.end_offsets()).values()), 0
            assert await consumer.poll(40) is not None
            await anext(consumer)
            for partition in range(3):
                await consumer.seek("earliest", partition)
            async for batch in consumer.batches():
                seen += len(batch)
                assert set(batch.values()) <= {0, None}
                if seen == ends:
                    break
        assert threads == {threading.get_ident()}

    runner()(main)


def test_arrays_go_through_a_partitioner_and_what_is_no_function_is_refused(broker: Any) -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(4, 3)

    async def main() -> None:
        async with aio.connect(broker.instance) as client:
            await client.create_topic("t", partitions=3)
            async with client.producer(partitioner=lambda _t, key, _n: key[0]) as producer:
                many = await producer.send_many("t", rows, [b"\0", b"\2", b"\2", b"\1"])
                assert (await many).counts == {0: 1, 1: 1, 2: 2}
                with pytest.raises(ValueError, match="4 keys for 3 values"):
                    await producer.send_many("t", rows[:3], [b"\0"] * 4)
            async with client.consumer("t", start="earliest", partitions=[2]) as plain:
                assert type(plain) is aio.Consumer
                assert [(await anext(plain)).value for _ in range(2)] == [
                    bytes(rows[1]), bytes(rows[2]),
                ]  # fmt: skip
            async with client.producer() as plain_too:
                assert type(plain_too) is aio.Producer
            for name in ("partitioner", "key_serializer", "value_serializer"):
                with pytest.raises(TypeError, match=f"{name} is str, expected a function"):
                    client.producer(**{name: "json"})
            for name in ("key_deserializer", "value_deserializer"):
                with pytest.raises(TypeError, match=f"{name} is str, expected a function"):
                    client.consumer("t", **{name: "json"})

    runner()(main)
