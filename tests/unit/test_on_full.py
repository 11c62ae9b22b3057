"""What a producer does with records for which its ring has no room: on_full "drop" and "raise"."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from producer_fake import Broker, FakeClient

from shmbroker._core.batch import RecordBatch
from shmbroker.client.aio.bridge import Bridge
from shmbroker.client.aio.producer import Producer as AioProducer
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.producer import Producer
from shmbroker.errors import BufferFull, ForkedError

ONE = TopicPartition("one", 0)
BIG = b"x" * 10_000


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker({"one": (1, {}), "many": (4, {})})
    yield made
    made.close()


def producer(broker: Broker, on_full: str, **options: Any) -> Producer:
    return Producer(FakeClient(broker), on_full=on_full, **options)  # type: ignore[arg-type]


def paused(broker: Broker, p: Producer, topic: str = "one", partitions: int = 1) -> None:
    """Opens the ring, then stops the writer from taking more."""
    for n in range(partitions):
        p.send(topic, b"first", partition=n).result(40)
    broker.writer.paused = 1


def resume(broker: Broker) -> None:
    broker.writer.paused = 0
    broker.ring()


def appended(broker: Broker) -> int:
    """Records in the fake writer's log."""
    raw, count = broker.logged(), 0
    while raw:
        size = int.from_bytes(raw[8:12], "big") + 12
        count += len(RecordBatch(raw[:size]).records())
        raw = raw[size:]
    return count


def test_drop_never_blocks_and_what_was_sent_and_dropped_is_what_was_offered(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with producer(broker, "drop") as p, caplog.at_level(logging.WARNING, "shmbroker"):
        paused(broker, p)
        receipts = [p.send("one", BIG) for _ in range(1_000)]
        lost = [r for r in receipts if r.dropped]
        assert 0 < len(lost) < 1_000
        assert p.dropped() == {ONE: len(lost)}
        assert lost[0].done()
        with pytest.raises(BufferFull, match=r"one-0 was full.*dropped"):
            lost[0].result(0)
        called = threading.Event()
        lost[0].add_done_callback(lambda _: called.set())
        assert called.wait(40)
        resume(broker)
        p.flush(40)  # what was dropped is no failure that anyone forgot to look at
        kept = [r for r in receipts if not r.dropped]
        assert [r.result(0).offset for r in kept] == list(range(1, len(kept) + 1))
        assert p.send("one", b"fits again").result(40)
    assert appended(broker) == 2 + len(kept)
    (first,) = [r.getMessage() for r in caplog.records if "the last for" in r.getMessage()]
    assert "one-0" in first
    assert "on_full" in first


def test_dropping_warns_at_most_once_a_second_and_tells_the_rest_at_the_end(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "shmbroker"):
        with producer(broker, "drop") as p:
            paused(broker, p)
            p.send_many("one", [BIG] * 2_000)
            lost = p.dropped()[ONE]
            assert len(caplog.records) == 1, "however many there were"
            resume(broker)
        told = [int(r.getMessage().split()[0]) for r in caplog.records]
    assert len(told) == 2
    assert sum(told) == lost


LISTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "values": lambda n: {"values": [BIG] * n},
    "keys": lambda n: {"values": [BIG] * n, "keys": [b"%d" % i for i in range(n)]},
    "rows": lambda n: {"values": np.zeros((n, 10_000), np.uint8)},
}


@pytest.mark.parametrize("kind", LISTS)
def test_send_many_drops_what_does_not_fit_and_counts_it(broker: Broker, kind: str) -> None:
    with producer(broker, "drop") as p:
        paused(broker, p, "many", 4)
        receipt = p.send_many("many", **LISTS[kind](500))
        assert len(receipt) + receipt.dropped == 500
        assert 0 < receipt.dropped < 500
        assert sum(p.dropped().values()) == receipt.dropped
        assert {where.topic for where in p.dropped()} == {"many"}
        resume(broker)
        with pytest.raises(BufferFull, match=rf"{receipt.dropped} of 500"):
            receipt.result(40)
    assert appended(broker) == 4 + len(receipt)


def test_compressed_batches_are_dropped_too(broker: Broker) -> None:
    with producer(broker, "drop", compression="gzip") as p:
        paused(broker, p)
        values = [np.random.default_rng(n).bytes(20_000) for n in range(40)]
        receipts = [p.send("one", value) for value in values * 5]
        lost = sum(r.dropped for r in receipts)
        assert 0 < lost < len(receipts)
        resume(broker)
    assert appended(broker) == 1 + len(receipts) - lost


def test_several_threads_drop_exactly(broker: Broker) -> None:
    with producer(broker, "drop") as p:
        paused(broker, p)
        receipts: list[Any] = []

        def offer() -> None:
            receipts.extend([p.send("one", BIG) for _ in range(300)])

        threads = [threading.Thread(target=offer) for _ in range(4)]
        for thread in threads:
            thread.start()
        resume(broker)
        for thread in threads:
            thread.join()
        p.flush(40)
        lost = sum(r.dropped for r in receipts)
        assert p.dropped().get(ONE, 0) == lost
    assert appended(broker) == 1 + 1_200 - lost


def test_raise_says_so_at_once_and_send_many_how_many_went(broker: Broker) -> None:
    with producer(broker, "raise", max_block_ms=60_000) as p:
        paused(broker, p)
        with pytest.raises(BufferFull, match=r"one-0 is full.*not taken") as caught:
            for _ in range(1_000):
                p.send("one", BIG)
        assert caught.value.sent is None
        with pytest.raises(BufferFull, match=r"; \d+ records before it were sent"):
            p.send_many("one", [BIG] * 3)
        resume(broker)
        p.flush(40)
        before = appended(broker)
        broker.writer.paused = 1
        with pytest.raises(BufferFull) as many:
            p.send_many("one", [BIG] * 500)
        resume(broker)
        p.flush(40)
        assert many.value.sent is not None
        assert 0 < many.value.sent < 500
        assert appended(broker) == before + many.value.sent
        assert p.dropped() == {}


def test_a_wrong_word_is_refused(broker: Broker) -> None:
    with pytest.raises(ValueError, match="on_full is 'wait'; allowed: 'block', 'drop', 'raise'"):
        producer(broker, "wait")


def test_a_forked_child_may_not_ask_what_was_dropped(broker: Broker) -> None:
    import os

    with producer(broker, "drop") as p:
        p.send("one", b"").result(40)
        child = os.fork()
        if not child:
            try:
                p.dropped()
            except ForkedError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_asyncio_producer_drops_and_raises_without_waiting(broker: Broker) -> None:
    async def main() -> None:
        bridge = Bridge(asyncio.get_running_loop())
        try:
            await drops(bridge)
            await raises(bridge)
        finally:
            bridge.close()

    async def drops(bridge: Bridge) -> None:
        async with AioProducer(FakeClient(broker), bridge, on_full="drop") as p:
            await p.send_and_wait("one", b"first")
            broker.writer.paused = 1
            receipts = [await p.send("one", BIG) for _ in range(500)]
            lost = sum(r.dropped for r in receipts)
            assert 0 < lost < 500
            many = await p.send_many("one", [BIG] * 100)
            assert len(many) + many.dropped == 100
            keyed = await p.send_many("one", [BIG] * 100, [b"k"] * 100)
            assert (len(keyed), keyed.dropped) == (0, 100)
            assert p.dropped() == {ONE: lost + many.dropped + keyed.dropped}
            with pytest.raises(BufferFull):
                await next(r for r in receipts if r.dropped)
            resume(broker)
        assert appended(broker) == 1 + 500 - lost + len(many)

    async def raises(bridge: Bridge) -> None:
        async with AioProducer(FakeClient(broker), bridge, on_full="raise") as p:
            await p.send_and_wait("one", b"first")
            broker.writer.paused = 1
            with pytest.raises(BufferFull, match="is full"):
                for _ in range(500):
                    await p.send("one", BIG)
            with pytest.raises(BufferFull) as caught:
                await p.send_many("one", [BIG] * 100)
            assert caught.value.sent == 0
            resume(broker)

    async def limited() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(limited())
