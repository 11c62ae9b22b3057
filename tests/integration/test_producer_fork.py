"""Producers across a fork: the child can't use them, touches nothing, and may make its own."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from shmbroker.client.aio.bridge import Bridge
from shmbroker.client.aio.producer import Producer as AioProducer
from shmbroker.client.client import Client, connect
from shmbroker.errors import ForkedError

if TYPE_CHECKING:
    from conftest import Broker


def in_child(what: Callable[[], None]) -> None:
    """Runs it in a forked process that ends as Python does, with atexit and destructors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: what this is about
        process = multiprocessing.get_context("fork").Process(target=what)
        process.start()
    process.join(40)
    assert process.exitcode == 0


def test_a_forked_childs_producer_says_the_way_out_and_the_parents_goes_on(broker: Broker) -> None:
    called: list[Any] = []
    with broker.client() as client:
        client.create_topic("one", partitions=1)
        with client.producer() as producer, client.producer() as unused:
            receipt = producer.send("one", b"0")
            receipt.add_done_callback(called.append)
            many = producer.send_many("one", [b"1", b"2"])
            held: list[Any] = [receipt, many, producer, unused]

            def child() -> None:
                for call in (
                    receipt.done, receipt.result, receipt.exception,
                    many.done, many.result, many.exception,
                    producer.flush, producer.close, unused.flush, unused.close,
                    lambda: receipt.add_done_callback(print),
                    lambda: many.add_done_callback(print),
                    lambda: receipt.__await__(),
                    lambda: producer.send("one", b""),
                    lambda: producer.send_and_wait("one", b""),
                    lambda: producer.send_many("one", [b""]),
                    lambda: unused.send("one", b""),
                    lambda: unused.__enter__(),
                ):  # fmt: skip
                    with pytest.raises(ForkedError, match=r"shmbroker.connect\(\)"):
                        call()
                repr(receipt), repr(producer)
                held.clear()
                gc.collect()

            in_child(child)
            assert receipt.result(40).offset == 0
            assert many.result(40).base_offsets == {0: 1}
            assert producer.send_and_wait("one", b"3", timeout=40).offset == 3
    assert called == [receipt]


def test_a_child_makes_its_own_producer_with_threads_of_its_own(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("one", partitions=1)
        with client.producer() as producer:
            producer.send("one", b"0").add_done_callback(lambda _: None)
            producer.flush()
            instance = broker.instance

            def child() -> None:
                called: list[Any] = []
                with connect(instance) as mine, mine.producer() as own:
                    receipt = own.send("one", b"1")
                    receipt.add_done_callback(called.append)
                    own.flush(40)
                    assert called == [receipt]
                    assert receipt.result(0).offset == 1

            in_child(child)
            assert producer.send_and_wait("one", b"2", timeout=40).offset == 2


def test_a_forked_childs_asyncio_producer_touches_no_loop(broker: Broker) -> None:
    async def main(client: Client) -> None:
        bridge = Bridge(asyncio.get_running_loop())
        async with AioProducer(client, bridge) as producer:
            receipt = await producer.send("one", b"0")

            def child() -> None:
                code = 1
                try:
                    for call in (producer.send("one", b""), producer.flush(), producer.close()):
                        with pytest.raises(ForkedError, match=r"shmbroker.connect\(\)"):
                            call.send(None)
                    with pytest.raises(ForkedError):
                        receipt.__await__()
                    gc.collect()
                    code = 0
                finally:
                    os._exit(code)

            in_child(child)
            assert (await receipt).offset == 0
        bridge.close()

    with broker.client() as client:
        client.create_topic("one", partitions=1)
        asyncio.run(main(client))
