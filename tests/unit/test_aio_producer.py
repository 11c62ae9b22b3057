"""The asyncio producer against a fake writer, under asyncio's loop and uvloop: what is awaited
comes, what is cancelled loses nothing, and the loop is never held up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))
from producer_fake import Broker, FakeClient

from shmbroker._core.batch import RecordBatch, partition_for_key
from shmbroker.client.aio.bridge import Bridge
from shmbroker.client.aio.producer import Producer
from shmbroker.client.producer import Producer as SyncProducer
from shmbroker.client.producer import outlets_of
from shmbroker.errors import (
    BrokerGone,
    BufferFull,
    ClosedError,
    DeliveryError,
    Detached,
    EarlierRejected,
    ForkedError,
    InvalidRecord,
    OutcomeUnknown,
    RecordTooLarge,
    TimedOut,
    UnknownTopic,
)

LIMIT_S = 60


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """Runs a coroutine in a new loop, for a limited time."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def runner(main: Awaitable[Any]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(LIMIT_S):
                return await main

        with asyncio.Runner(loop_factory=factory) as loop:
            return loop.run(limited())

    return runner


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker(
        {
            "one": (1, {}),
            "many": (16, {}),
            "small": (1, {"max.message.bytes": 1000}),
            "big": (1, {"max.message.bytes": 4 << 20}),
        }
    )
    yield made
    made.close()


@contextlib.asynccontextmanager
async def bridged() -> AsyncIterator[Bridge]:
    made = Bridge(asyncio.get_running_loop())
    try:
        yield made
    finally:
        made.close()


@contextlib.asynccontextmanager
async def producer(broker: Broker, **options: Any) -> AsyncIterator[Producer]:
    async with bridged() as bridge, Producer(FakeClient(broker), bridge, **options) as made:
        yield made


def records(broker: Broker) -> list[Any]:
    """What was appended, in order."""
    raw, found = broker.logged(), []
    while raw:
        size = int.from_bytes(raw[8:12], "big") + 12
        found += RecordBatch(raw[:size]).records()
        raw = raw[size:]
    return found


async def paused(broker: Broker, p: Producer) -> None:
    """Opens the ring with one record, then stops the writer from taking more."""
    await (await p.send("one", b"first"))
    broker.writer.paused = 1


def resume(broker: Broker) -> None:
    broker.writer.paused = 0
    broker.ring()


def lose_the_rings(broker: Broker) -> None:
    from shmbroker._core import shm

    broker.connection.lose()
    ingress = broker.next_ingress
    broker.stop_writer(ingress)
    for letter in "ir":
        shm.unlink(f"{broker.prefix}-{letter}{ingress}")
    broker.connection.come_back()


async def fill(p: Producer) -> int:
    """Sends until the ring is full; the number of records it took."""
    for n in range(1000):
        try:
            async with asyncio.timeout(0.02):
                await p.send("one", b"x" * 50_000)
        except TimeoutError:
            return n
    raise AssertionError("the ring never filled")


def test_a_record_is_sent_and_acknowledged(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            receipt = await p.send("one", b"v", key=b"k", headers=[("h", b"1")], timestamp=5)
            assert await receipt == ("one", 0, 0, 5)
            assert await receipt == receipt.result(0)  # as often as one likes
            assert receipt.done()
            assert await p.send_and_wait("one", b"w", timestamp=6) == ("one", 0, 1, 6)
            assert (await (await p.send("many", None, partition=3))).partition == 3

    run(main())
    first = records(broker)[0]
    assert (first.key, first.value, list(first.headers)) == (b"k", b"v", [("h", b"1")])


def test_a_long_loop_of_sends_keeps_its_order(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            receipts = [await p.send("one", b"%d" % i) for i in range(20_000)]
            await p.flush()
            assert [r.result(0).offset for r in receipts] == list(range(20_000))

    run(main())
    assert [r.value for r in records(broker)] == [b"%d" % i for i in range(20_000)]


def test_other_tasks_get_their_turn_between_sends_that_never_wait(broker: Broker, run: Any) -> None:
    async def main() -> None:
        turns = 0
        stop = False

        async def other() -> None:
            nonlocal turns
            while not stop:
                turns += 1
                await asyncio.sleep(0)

        async with producer(broker, acks="none") as p:
            task = asyncio.create_task(other())
            for _ in range(20_000):
                await p.send("one", b"x")
            stop = True
            await task
        assert turns > 10

    run(main())


def test_keys_choose_partitions_as_the_synchronous_producer_does(broker: Broker, run: Any) -> None:
    keys = [b"key %d" % i for i in range(100)]

    async def main() -> None:
        async with producer(broker) as p:
            got = [await p.send("many", b"", key) for key in keys]
            assert [(await r).partition for r in got] == [partition_for_key(k, 16) for k in keys]

    run(main())


def test_the_tasks_of_one_turn_share_a_batch(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker, linger_ms=60_000) as p:
            await paused(broker, p)
            before = broker.writer.frames
            await p.send("one", b"leaves at once, the writer is dry")
            tasks = [asyncio.create_task(p.send_and_wait("one", b"x")) for _ in range(100)]
            await asyncio.sleep(0.05)
            resume(broker)
            await asyncio.gather(*tasks)
            assert broker.writer.frames - before <= 4

    run(main())


def test_send_works_in_gather_wait_for_and_task_groups(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            receipts = await asyncio.gather(*(p.send("one", b"a") for _ in range(10)))
            receipts.append(await asyncio.wait_for(p.send("one", b"b"), 40))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(p.send("one", b"c")) for _ in range(10)]
                assert "send" in repr(tasks[0]).lower()
            receipts += [task.result() for task in tasks]
            offsets = [m.offset for m in await asyncio.gather(*receipts)]
            assert sorted(offsets) == list(range(21))
            many = await asyncio.wait_for(await p.send_many("one", [b"d"] * 5), 40)
            assert many.base_offsets == {0: 21}

    run(main())


def test_a_send_is_awaited_once_and_one_that_never_was_says_so(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            sending = p.send("one", b"x")
            await sending
            with pytest.raises(RuntimeError, match="only once"):
                await sending
            with pytest.warns(RuntimeWarning, match="never awaited"):
                p.send("one", b"y")

    run(main())
    assert [r.value for r in records(broker)] == [b"x"]


def test_wrong_arguments_are_errors_of_the_await(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            with pytest.raises(TypeError, match="encode"):
                await p.send("one", "text")  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await p.send(5, b"")  # type: ignore[arg-type]
            with pytest.raises(UnknownTopic, match="topic create nowhere"):
                await p.send("nowhere", b"")
            with pytest.raises(UnknownTopic, match="no partition 16"):
                await p.send("many", b"", partition=16)
            with pytest.raises(UnknownTopic):
                await p.send("many", b"", partition=-1)
            with pytest.raises(RecordTooLarge, match="1000"):
                await p.send("small", b"x" * 1000)
            fits = 1000 - 61 - 2 - 1 - 2 - 1 - 2 - 1
            await (await p.send("small", b"x" * fits))
            with pytest.raises(TypeError, match=r"value 1: .*encode.*1 of 2"):
                await p.send_many("one", [b"", "text"])  # type: ignore[list-item]
            with pytest.raises(TypeError, match="expected a list"):
                await p.send_many("one", b"abc")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="1 keys for 2 values"):
                await p.send_many("one", [b"", b""], keys=[b""])

    run(main())


def test_a_record_larger_than_the_ring_gets_a_larger_ring(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            before = [await p.send("big", b"%d" % i) for i in range(100)]
            big = os.urandom(3 << 20)
            assert (await (await p.send("big", big))).offset == 100
            assert [(await r).offset for r in before] == list(range(100))

    run(main())


def test_a_full_ring_waits_without_holding_up_the_loop(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            await paused(broker, p)
            sending = asyncio.create_task(p.send_many("one", [b"x" * 10_000] * 500))
            ticks = 0
            while ticks < 20:
                await asyncio.sleep(0.005)
                ticks += 1
            assert not sending.done()
            resume(broker)
            assert (await (await sending)).records == 500

    run(main())
    assert len(records(broker)) == 501


def test_waiting_takes_no_threads(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            await paused(broker, p)
            before = threading.active_count()
            waits = [asyncio.create_task(p.send_and_wait("one", b"x" * 50_000)) for _ in range(100)]
            await asyncio.sleep(0.1)
            assert threading.active_count() == before
            resume(broker)
            offsets = [metadata.offset for metadata in await asyncio.gather(*waits)]
            assert offsets == list(range(1, 101))  # in the order in which they came

    run(main())


def test_a_ring_that_stays_full_is_buffer_full_with_the_reason(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker, max_block_ms=60) as p:
            await paused(broker, p)
            begun = time.monotonic()
            with pytest.raises(BufferFull, match=r"one-0.*max_block_ms.*slot 0"):
                for _ in range(100):
                    await p.send("one", b"x" * 50_000)
            assert time.monotonic() - begun > 0.06
            with pytest.raises(BufferFull):
                await p.send_and_wait("one", b"x" * 50_000, timeout=40)
            resume(broker)

    run(main())


def test_a_cancelled_send_has_not_taken_its_record(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            await paused(broker, p)
            taken = await fill(p)
            waiting = [asyncio.create_task(p.send("one", b"%d" % i * 50_000)) for i in range(5)]
            await asyncio.sleep(0.02)
            waiting[1].cancel()
            waiting[3].cancel()
            resume(broker)
            await asyncio.wait(waiting)
            cancelled = [task.cancelled() for task in waiting]
            assert cancelled == [False, True, False, True, False]
            at_once = asyncio.create_task(p.send("one", b"never begun"))
            at_once.cancel()
            await asyncio.wait([at_once])
            assert at_once.cancelled()
            await p.flush()
            return taken

    taken = run(main())
    got = [r.value[:1] for r in records(broker)][1 + taken :]
    assert got == [b"0", b"2", b"4"]


def test_sends_cancelled_at_any_moment_lose_and_double_nothing(broker: Broker, run: Any) -> None:
    sent: list[int] = []

    async def main() -> None:
        async def work(p: Producer, n: int) -> None:
            for i in range(n * 1000, n * 1000 + 300):
                await p.send("one", b"%d" % i + b" " * 1000)
                sent.append(i)

        async with producer(broker, batch_bytes=8192) as p:
            await paused(broker, p)
            tasks = [asyncio.create_task(work(p, n)) for n in range(20)]
            for n, task in enumerate(tasks):
                await asyncio.sleep(0.001)
                if n % 2:
                    task.cancel()
                broker.writer.paused = n % 3 == 0
                broker.ring()
            resume(broker)
            await asyncio.wait(tasks)
            assert any(task.cancelled() for task in tasks)

    run(main())
    assert sorted(int(r.value) for r in records(broker)[1:]) == sorted(sent)


def test_a_cancelled_await_leaves_the_record_and_its_receipt_alone(
    broker: Broker, run: Any
) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            await paused(broker, p)
            receipt = await p.send("one", b"x")
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await receipt
            with pytest.raises(TimedOut):
                await p.send_and_wait("one", b"y", timeout=0.02)
            with pytest.raises(TimedOut):
                await p.flush(0.02)
            waits = [asyncio.ensure_future(receipt) for _ in range(3)]
            await asyncio.sleep(0.01)
            waits[0].cancel()
            resume(broker)
            assert [m.offset for m in await asyncio.gather(*waits[1:])] == [1, 1]
            assert waits[0].cancelled()
            assert (await receipt).offset == 1

    run(main())
    assert [r.value for r in records(broker)] == [b"first", b"x", b"y"]


def test_a_receipt_may_be_asked_synchronously_in_the_loops_thread(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            receipt = await p.send("one", b"x")
            assert receipt.result(40).offset == 0
            done = asyncio.Event()
            loop = asyncio.get_running_loop()
            other = await p.send("one", b"y")
            other.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
            await done.wait()
            called: list[Any] = []
            (await p.send("one", b"z")).add_done_callback(called.append)
            await p.flush()
            assert len(called) == 1

    run(main())


def test_many_records_go_through_keys_timestamps_and_turns(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            first = await p.send_many("one", (b"%d" % i for i in range(50_000)))
            keyed = await p.send_many(
                "many",
                [b"%d" % i for i in range(2000)],
                keys=[b"%d" % i for i in range(2000)],
                timestamps=list(range(2000)),
            )
            fixed = await p.send_many("many", [bytearray(b"x"), None], partition=7)
            assert (await first).base_offsets == {0: 0}
            assert (await keyed).records == 2000
            assert (await fixed).counts == {7: 2}
            assert (await (await p.send_many("one", []))).records == 0
            with pytest.raises(TypeError):  # in the executor
                await p.send_many("one", memoryview(b"no array of rows"))

    run(main())
    assert [r.value for r in records(broker)[:50_000]].count(b"77") >= 1


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compressed_records_are_read_back(broker: Broker, run: Any, compression: Any) -> None:
    values = [b"value %d" % (i % 7) for i in range(3000)]

    async def main() -> None:
        async with producer(broker, compression=compression) as p:
            for value in values[:100]:
                await p.send("one", value)
            await p.send_and_wait("one", b"waited")
            await p.send_many("one", values)

    run(main())
    assert [r.value for r in records(broker)] == [*values[:100], b"waited", *values]


def test_acks_none_is_known_when_published(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker, acks="none") as p:
            await paused(broker, p)
            assert (await p.send_and_wait("one", b"x")).offset is None
            assert (await (await p.send_many("one", [b"x"]))).base_offsets == {0: None}
            resume(broker)

    run(main())


def test_rejections_reach_awaits_and_close(broker: Broker, run: Any) -> None:
    async def main() -> None:
        with pytest.raises(DeliveryError) as caught:
            async with producer(broker, linger_ms=0) as p:
                await paused(broker, p)
                broker.writer.reject = InvalidRecord.kafka_code
                first = await p.send("one", b"1")
                second = await p.send("one", b"2")
                await p.send("one", b"nobody looks")
                resume(broker)
                with pytest.raises(InvalidRecord):
                    await first
                with pytest.raises(EarlierRejected):
                    await second
        assert caught.value.count == 1

    run(main())


def test_waits_follow_their_records_to_new_rings(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker, linger_ms=0) as p:
            await paused(broker, p)
            waits = [asyncio.create_task(p.send_and_wait("one", b"%d" % i)) for i in range(50)]
            await asyncio.sleep(0.02)
            await asyncio.to_thread(lose_the_rings, broker)
            offsets = [metadata.offset for metadata in await asyncio.gather(*waits)]
            assert offsets == list(range(1, 51))
            assert (await p.send_and_wait("one", b"after")).offset == 51

    run(main())


def test_room_is_found_in_the_new_ring(broker: Broker, run: Any) -> None:
    async def main() -> int:
        async with producer(broker, linger_ms=0) as p:
            await paused(broker, p)
            taken = await fill(p)
            waits = [asyncio.create_task(p.send("one", b"x" * 50_000)) for _ in range(10)]
            await asyncio.sleep(0.02)
            await asyncio.to_thread(lose_the_rings, broker)
            await asyncio.gather(*waits)
            await p.flush()
            return taken

    taken = run(main())
    assert len(records(broker)) == 1 + taken + 10


def test_every_wait_ends_in_broker_gone_when_it_stays_away(broker: Broker, run: Any) -> None:
    broker.connection.reconnect_s = 0.2

    async def main() -> None:
        async with bridged() as bridge:
            p = Producer(FakeClient(broker), bridge)
            await paused(broker, p)
            receipt = await p.send("one", b"x")
            await fill(p)
            waits = [
                asyncio.ensure_future(what)
                for what in (receipt, p.flush(), p.send("one", b"x" * 50_000))
            ]
            await asyncio.sleep(0.02)
            broker.connection.lose()
            begun = time.monotonic()
            ends = await asyncio.gather(*waits, return_exceptions=True)
            assert [type(end) for end in ends] == [BrokerGone] * 3
            assert time.monotonic() - begun < 15
            with pytest.raises(BrokerGone):
                await receipt
            broker.connection.come_back()
            resume(broker)
            assert (await receipt).offset == 1
            await p.close()

    run(main())


def test_the_delivery_timeout_ends_a_wait_and_a_flush(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker, delivery_timeout_ms=80) as p:
            await paused(broker, p)
            receipt = await p.send("one", b"x")
            with pytest.raises(OutcomeUnknown, match="delivery_timeout_ms"):
                await receipt
            with pytest.raises(OutcomeUnknown):
                await p.flush()
            resume(broker)
            assert receipt.result(40).offset == 1

    run(main())


def test_close_ends_every_other_wait(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with bridged() as bridge:
            p = Producer(FakeClient(broker), bridge)
            await paused(broker, p)
            receipt = await p.send("one", b"x")
            await fill(p)
            waits = [
                asyncio.ensure_future(what)
                for what in (receipt, p.flush(), p.send("one", b"x" * 50_000))
            ]
            await asyncio.sleep(0.02)
            with pytest.raises(TimedOut):
                await p.close(timeout=0.05)
            ends = await asyncio.gather(*waits, return_exceptions=True)
            assert [type(end) for end in ends] == [ClosedError] * 3
            await p.close()
            for call in (p.send("one", b""), p.send_many("one", [b""]), p.flush(), receipt):
                with pytest.raises(ClosedError):
                    await call
            resume(broker)
            assert receipt.result(40).offset == 1

    run(main())


def test_a_dropped_ring_fails_what_is_awaited_and_is_replaced(broker: Broker, run: Any) -> None:
    async def main() -> None:
        async with producer(broker) as p:
            await paused(broker, p)
            receipt = await p.send("one", b"lost")
            broker.writer.detach = 1
            broker.ring()
            with pytest.raises(Detached):
                await receipt
            assert (await p.send_and_wait("one", b"after")).offset == 1

    run(main())


def test_an_exception_in_the_block_publishes_without_waiting(broker: Broker, run: Any) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with producer(broker, linger_ms=60_000) as p:
                await paused(broker, p)
                await p.send("one", b"x")
                await p.send("one", b"y")
                raise ZeroDivisionError
        resume(broker)

    run(main())
    deadline = time.monotonic() + 40
    while len(records(broker)) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [r.value for r in records(broker)] == [b"first", b"x", b"y"]


def test_both_twins_share_the_rings_of_a_client(broker: Broker, run: Any) -> None:
    async def main() -> None:
        client = FakeClient(broker)
        async with bridged() as bridge, Producer(client, bridge) as p:
            with SyncProducer(client) as blocking:
                for i in range(1000):
                    await p.send("one", b"%d" % i)
                    blocking.send("one", b"%d" % i)
                receipt = blocking.send("one", b"")
                with pytest.raises(TypeError, match=r"result\(\)"):
                    await receipt
        assert len(outlets_of(client.connection).counters()) == 1

    run(main())
    assert len(records(broker)) == 2001


def test_a_producer_belongs_to_its_loop(broker: Broker, run: Any) -> None:
    async def elsewhere(receipt: Any) -> None:
        await receipt

    async def main() -> None:
        async with producer(broker) as p:
            await paused(broker, p)
            receipt = await p.send("one", b"x")

            def other() -> None:
                with pytest.raises(RuntimeError, match="another event loop"):
                    asyncio.run(elsewhere(receipt))

            await asyncio.to_thread(other)
            resume(broker)

    run(main())


def test_an_unclosed_producer_is_a_resource_warning_and_its_records_arrive(
    broker: Broker, run: Any
) -> None:
    async def main() -> None:
        async with bridged() as bridge:
            made = [Producer(FakeClient(broker), bridge)]
            receipt = await made[0].send("one", b"x")
            while sys.getrefcount(made[0]) > 2:  # the executor that opened the ring
                await asyncio.sleep(0.001)
            with pytest.warns(ResourceWarning, match="unclosed"):
                made.clear()
            assert receipt.result(40).offset == 0

    run(main())


def test_a_producer_left_behind_by_its_loop_is_only_a_resource_warning(
    broker: Broker, run: Any
) -> None:
    left: list[Any] = []

    async def main() -> None:
        bridge = Bridge(asyncio.get_running_loop())
        p = Producer(FakeClient(broker), bridge)
        await paused(broker, p)
        receipt = await p.send("one", b"x")
        await fill(p)
        left.extend((bridge, receipt, p))
        waits = [
            asyncio.ensure_future(what)
            for what in (receipt, p.flush(), p.send("one", b"x" * 50_000))
        ]
        await asyncio.sleep(0.02)
        assert not any(wait.done() for wait in waits)

    run(main())
    resume(broker)

    def drop() -> None:
        left.pop()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed"):
        drop()
    bridge, receipt = left
    assert receipt.result(40).offset == 1
    bridge.close()


def test_a_forked_child_gets_forked_error(broker: Broker) -> None:
    async def child(p: Producer, receipt: Any) -> None:
        for call in (p.send("one", b""), p.send_many("one", [b""]), p.flush(), p.close(), receipt):
            with pytest.raises(ForkedError):
                await call

    async def main() -> None:
        async with producer(broker) as p:
            receipt = await p.send("one", b"x")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    step = child(p, receipt)
                    with pytest.raises(StopIteration):
                        step.send(None)  # without the parent's loop: nothing there waits
                    del receipt, p, step
                    gc.collect()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
            assert (await receipt).offset == 0

    asyncio.run(main())
