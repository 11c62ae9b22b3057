"""The asyncio producer against a real broker: acknowledged once, also across deaths."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from shmbroker.client.aio.bridge import Bridge
from shmbroker.client.aio.producer import Producer
from shmbroker.errors import BrokerGone

if TYPE_CHECKING:
    from conftest import Broker

    from shmbroker.client.client import Client


@pytest.fixture(params=["local", "tcp"])
def reach(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def producing(client: Client, **options: Any) -> AsyncIterator[Producer]:
    bridge = Bridge(asyncio.get_running_loop())
    try:
        async with Producer(client, bridge, **options) as made:
            yield made
    finally:
        bridge.close()


def values(client: Client, topic: str) -> list[bytes | None]:
    found: list[bytes | None] = []
    with client.consumer(topic, start="earliest") as consumer:
        ends = sum(consumer.end_offsets().values())
        for batch in consumer.batches(timeout=40):
            found += batch.values()
            if len(found) >= ends:
                break
    return found


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_is_awaited_is_in_the_log(broker: Broker, run: Any) -> None:
    async def main(client: Client) -> None:
        async with producing(client) as producer, asyncio.timeout(60):
            receipt = await producer.send("one", b"0")
            assert (await receipt).offset == 0
            for i in range(1, 20_000):
                await producer.send("one", b"%d" % i)
            many = await producer.send_many("one", [b"%d" % i for i in range(20_000, 60_000)])
            assert (await many).base_offsets == {0: 20_000}
            async with asyncio.TaskGroup() as group:
                for _ in range(200):
                    group.create_task(producer.send_and_wait("many", b"x", key=b"k"))

    with broker.client() as client:
        client.create_topic("one", partitions=1)
        client.create_topic("many", partitions=4)
        run(main(client))
        assert values(client, "one") == [b"%d" % i for i in range(60_000)]
        assert values(client, "many") == [b"x"] * 200


def test_tasks_outlive_kill_9_of_everything(broker: Broker) -> None:
    sent: list[bytes] = []

    async def main(client: Client) -> None:
        stop = asyncio.Event()

        async def work(producer: Producer, n: int) -> None:
            i = 0
            while not stop.is_set():
                value = b"%d %d" % (n, i)
                await producer.send_and_wait("load", value, partition=n % 2)
                sent.append(value)
                i += 1

        async with (
            producing(client) as producer,
            asyncio.timeout(60),
            asyncio.TaskGroup() as group,
        ):
            for n in range(20):
                group.create_task(work(producer, n))

            async def flows() -> None:
                before = len(sent)
                while len(sent) < before + 100:
                    await asyncio.sleep(0.005)

            for _ in range(2):
                await flows()
                await asyncio.to_thread(broker.kill9, everything=True)
                await asyncio.to_thread(broker.start)
            await flows()
            for writer in broker.workers():
                writer.send_signal(signal.SIGKILL)
            await flows()
            stop.set()

    with broker.client() as client:
        client.create_topic("load", partitions=2)
        asyncio.run(main(client))
        assert sorted(v for v in values(client, "load") if v) == sorted(sent)


def test_awaits_end_with_broker_gone_and_can_be_repeated(broker: Broker) -> None:
    async def main(client: Client) -> None:
        async with producing(client) as producer, asyncio.timeout(60):
            await producer.send_and_wait("away", b"first")
            await asyncio.to_thread(broker.kill9, everything=True)
            receipt = await producer.send("away", b"x")
            begun = time.monotonic()
            with pytest.raises(BrokerGone):
                await receipt
            assert time.monotonic() - begun < 20  # and not the 30 s of the default
            await asyncio.to_thread(broker.start)
            assert (await receipt).offset == 1

    with broker.client(reconnect_s=0.5) as client:
        client.create_topic("away", partitions=1)
        asyncio.run(main(client))
