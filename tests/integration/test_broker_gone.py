"""What becomes of waits when the broker stops, is killed, and does or does not come back."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from waiting import best_of

from shmbroker import aio
from shmbroker.client.client import Client
from shmbroker.errors import BrokerGone, ClosedError

LIMIT_S = 1.0  # from the broker's death, with reconnect_s=0
TRIES = 5


def ends_by_death(broker: Any, how: str) -> float:
    """Ends the broker; returns when its acceptor died."""
    process = psutil.Process(broker.pid)
    left = broker.processes()
    if how == "stop":
        broker.stop()
        return time.monotonic()
    for each in left if how == "kill everything" else [process]:
        each.send_signal(signal.SIGKILL)
    died = time.monotonic()
    broker._wait(left)
    return died


def sync_waits(client: Client) -> dict[str, Callable[[], Any]]:
    """Waits that nothing but the end of the broker ends; a consumer for each."""

    def consumer() -> Any:
        return client.consumer("t")

    return {
        "poll": consumer().poll,
        "poll_batch": consumer().poll_batch,
        "batches": consumer().batches().__next__,
        "iteration": consumer().__next__,
    }


@pytest.mark.parametrize("how", ["stop", "kill", "kill everything"])
def test_every_wait_ends_with_broker_gone_when_it_does_not_come_back(broker: Any, how: str) -> None:
    with broker.client() as client:
        client.create_topic("t")
    best_of(TRIES, LIMIT_S, lambda: waits_end_after_s(broker, how))


def waits_end_after_s(broker: Any, how: str) -> float:
    """From the death of a broker, started if it is not up, to the end of the last of all waits."""
    if not broker.running:
        broker.start()
    ended: dict[str, tuple[BaseException | None, float]] = {}

    def wait(name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            ended[name] = (error, time.monotonic())

    async def wait_in_loop(name: str, call: Any) -> None:
        try:
            await call
        except BaseException as error:
            ended[name] = (error, time.monotonic())

    async def main() -> float:
        async with aio.connect(broker.instance, reconnect_s=0) as client:
            consumers = [await client.consumer("t") for _ in range(3)]
            tasks = [
                asyncio.create_task(wait_in_loop("aio poll", consumers[0].poll())),
                asyncio.create_task(wait_in_loop("aio iteration", anext(consumers[1]))),
                asyncio.create_task(wait_in_loop("aio batches", anext(consumers[2].batches()))),
            ]
            while any(c._wake is None for c in consumers):
                await asyncio.sleep(0.001)
            died = await asyncio.get_running_loop().run_in_executor(
                None, ends_by_death, broker, how
            )
            await asyncio.wait(tasks, timeout=40)
            with pytest.raises(BrokerGone):
                await client.status()
            return died

    with broker.client(reconnect_s=0) as client:
        threads = [threading.Thread(target=wait, args=item) for item in sync_waits(client).items()]
        for thread in threads:
            thread.start()
        died = asyncio.run(main())
        for thread in threads:
            thread.join(40)
        for call in (client.status, client.topics, lambda: client.create_topic("u")):
            with pytest.raises(BrokerGone):
                call()
        assert len(ended) == 7
        for name, (error, _) in ended.items():
            assert isinstance(error, BrokerGone), (name, error)
            assert error.retriable
        return max(at for _, at in ended.values()) - died


def test_a_request_under_way_ends_when_the_broker_is_killed(broker: Any) -> None:
    best_of(TRIES, LIMIT_S, lambda: request_ends_after_s(broker))


def request_ends_after_s(broker: Any) -> float:
    """From the death of a broker, started if it is not up, to the end of a request to it."""
    if not broker.running:
        broker.start()
    with broker.client(reconnect_s=0) as client:
        os.kill(broker.pid, signal.SIGSTOP)  # it takes the request and answers nothing
        found: list[Any] = []

        def ask() -> None:
            try:
                client.status()
            except BaseException as error:
                found.append((error, time.monotonic()))

        thread = threading.Thread(target=ask)
        thread.start()
        while client.connection._control._next_id == 0:
            time.sleep(0.001)
        died = ends_by_death(broker, "kill everything")
        thread.join(40)
        error, at = found[0]
        assert isinstance(error, BrokerGone)
        return float(at - died)


@pytest.mark.parametrize("how", ["stop", "kill everything"])
def test_consumers_go_on_over_a_restart_and_nothing_comes_twice(broker: Any, how: str) -> None:
    async def main() -> None:
        async with aio.connect(broker.instance) as client, client.consumer("t") as consumer:
            before = asyncio.create_task(some(consumer, 500))
            await asyncio.to_thread(send, 0, 500)
            assert await before == list(range(500))
            after = asyncio.create_task(some(consumer, 500))
            await asyncio.to_thread(ends_by_death, broker, how)
            await asyncio.to_thread(broker.start)
            await asyncio.to_thread(send, 500, 500)
            assert await after == list(range(500, 1000))
            assert await consumer.poll(0.05) is None
            assert await consumer.position() == 1000

    async def some(consumer: aio.Consumer, count: int) -> list[int]:
        found: list[int] = []
        async for record in consumer:
            assert record.offset == int(record.value or b"-1")
            found.append(record.offset)
            if len(found) == count:
                break
        return found

    def send(first: int, count: int) -> None:
        values = [b"%d" % n for n in range(first, first + count)]
        with broker.client() as client, client.producer() as producer:
            producer.send_many("t", values, partition=0).result(40)

    with broker.client() as client:
        client.create_topic("t")
        with client.consumer("t") as consumer:
            asyncio.run(main())
            offsets = [o for batch in consumer.batches(timeout=0) for o in batch.offsets()]
            assert offsets == list(range(1000))


def test_closing_ends_waits_for_a_broker_that_is_gone(broker: Any) -> None:
    with broker.client(reconnect_s=60) as client, broker.client(reconnect_s=60) as other:
        client.create_topic("t")
        consumers = [client.consumer("t"), other.consumer("t")]
        ended: list[BaseException] = []

        def wait(consumer: Any) -> None:
            with pytest.raises(ClosedError) as told:
                consumer.poll()
            ended.append(told.value)

        threads = [threading.Thread(target=wait, args=(c,)) for c in consumers]
        for thread in threads:
            thread.start()
        broker.kill9(everything=True)
        while not (client.connection.epoch.value & 1 and other.connection.epoch.value & 1):
            time.sleep(0.001)
        consumers[0].close()  # one by its own close(), the other by its client's
        other.close()
        for thread in threads:
            thread.join(40)
        assert len(ended) == 2


def test_an_asyncio_wait_for_a_broker_that_is_gone_can_be_cancelled_and_closed(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("t")

    async def main() -> float:
        if not broker.running:
            await asyncio.to_thread(broker.start)
        async with aio.connect(broker.instance, reconnect_s=60) as client:
            consumer, other = await client.consumer("t"), await client.consumer("t")
            await asyncio.to_thread(broker.kill9, True)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await consumer.poll()
            assert await consumer.poll(0.05) is None
            assert await consumer.position() == 0
            task = asyncio.create_task(other.poll())
            while other._wake is None:
                await asyncio.sleep(0.001)
            await other.close()
            with pytest.raises(ClosedError):
                await task
            asked = asyncio.create_task(consumer.end_offsets())  # blocks a thread, not the loop
            await asyncio.sleep(0.02)
            began = time.monotonic()
        with pytest.raises(ClosedError):
            await asked
        return time.monotonic() - began

    best_of(TRIES, LIMIT_S, lambda: asyncio.run(main()))
