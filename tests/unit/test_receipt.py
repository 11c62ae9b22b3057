"""Receipts that call back: on the client's thread, once, whatever becomes of the record."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from producer_fake import Broker, FakeClient

from shmbroker.client.producer import Producer
from shmbroker.client.receipt import ManyReceipt, Receipt
from shmbroker.errors import (
    BrokerGone,
    ClosedError,
    DeliveryError,
    Detached,
    EarlierRejected,
    InvalidRecord,
    OutcomeUnknown,
    TimedOut,
)


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker({"one": (1, {}), "many": (200, {})})
    yield made
    made.close()


def producer(broker: Broker, **options: Any) -> Producer:
    return Producer(FakeClient(broker), **options)


def paused(broker: Broker, p: Producer) -> None:
    """Opens the ring with one record, then stops the writer from taking more."""
    p.send("one", b"first").result(40)
    broker.writer.paused = 1


def resume(broker: Broker) -> None:
    broker.writer.paused = 0
    broker.ring()


def test_a_callback_gets_its_receipt_on_the_clients_thread(broker: Broker) -> None:
    called: queue.Queue[Any] = queue.Queue()
    with producer(broker) as p:
        paused(broker, p)
        receipt = p.send("one", b"x")
        receipt.add_done_callback(lambda r: called.put((r, threading.current_thread())))
        with pytest.raises(queue.Empty):
            called.get(timeout=0.05)
        resume(broker)
        got, thread = called.get(timeout=40)
        assert got is receipt
        assert got.result(0).offset == 1
        assert thread.name == "shmbroker-callbacks"
        receipt.add_done_callback(lambda r: called.put((r, threading.current_thread())))
        assert called.get(timeout=40) == (receipt, thread)  # not at once in the caller
    assert called.empty()


def test_callbacks_of_a_receipt_are_called_in_their_order(broker: Broker) -> None:
    called: list[int] = []
    with producer(broker) as p:
        paused(broker, p)
        receipt = p.send("one", b"x")
        for n in range(5):
            receipt.add_done_callback(lambda _, n=n: called.append(n))
        resume(broker)
    assert called == list(range(5))


def test_flush_and_close_return_after_the_callbacks(broker: Broker) -> None:
    called = []
    with producer(broker, linger_ms=0) as p:
        for i in range(3000):
            p.send("many", b"x", partition=i % 200).add_done_callback(called.append)
        p.flush(40)
        assert len(called) == 3000
        assert all(receipt.done() for receipt in called)
        p.send("one", b"x").add_done_callback(called.append)
    assert len(called) == 3001


def test_nothing_but_the_callback_itself_waits_for_a_burst(broker: Broker) -> None:
    done = threading.Event()
    with producer(broker, linger_ms=20) as p:
        paused(broker, p)
        for _ in range(10):
            p.send("one", b"x").add_done_callback(lambda _: done.set())
        resume(broker)
        assert done.wait(40)  # nobody flushed


def test_what_a_callback_raises_is_logged_and_nothing_else_happens(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    called = []
    with producer(broker) as p:
        p.send("one", b"x").add_done_callback(lambda _: 1 / 0)
        p.send("one", b"x").add_done_callback(lambda _: sys.exit(3))
        p.send("one", b"x").add_done_callback(called.append)
        p.flush(40)
        with pytest.raises(TypeError, match="callback"):
            p.send("one", b"x").add_done_callback(None)  # type: ignore[arg-type]
    assert len(called) == 1
    logged = [r for r in caplog.records if "callback" in r.getMessage()]
    assert [r.exc_info[0] for r in logged if r.exc_info] == [ZeroDivisionError, SystemExit]
    assert {r.name for r in logged} == {"shmbroker"}


def test_a_callback_may_send_and_flush(broker: Broker) -> None:
    offsets: list[int | None] = []
    with producer(broker) as p:

        def again(receipt: Receipt) -> None:
            offsets.append(receipt.result(0).offset)
            if len(offsets) < 5:
                p.send("one", b"x").add_done_callback(again)
                p.flush(40)

        p.send("one", b"x").add_done_callback(again)
        deadline = time.monotonic() + 40
        while len(offsets) < 5 and time.monotonic() < deadline:
            p.flush(40)
    assert offsets == list(range(5))


def test_a_failed_record_calls_back_with_its_error(broker: Broker) -> None:
    failed = []
    p = producer(broker, linger_ms=0)
    paused(broker, p)
    broker.writer.reject = InvalidRecord.kafka_code
    for _ in range(3):
        p.send("one", b"x").add_done_callback(lambda r: failed.append(r.exception(0)))
    resume(broker)
    p.flush(40)  # the callbacks have looked at the failures
    assert [type(error) for error in failed] == [InvalidRecord, EarlierRejected, EarlierRejected]
    p.close()


def test_many_records_call_back_once_after_the_last(broker: Broker) -> None:
    called: list[ManyReceipt] = []
    with producer(broker, acks="memory") as p:
        many = p.send_many("many", [b"x" * 1000] * 5000, keys=[b"%d" % i for i in range(5000)])
        many.add_done_callback(called.append)
        p.send_many("many", []).add_done_callback(called.append)
        p.flush(40)
        assert sorted(map(len, called)) == [0, 5000]
        assert max(called, key=len).result(0).records == 5000


def test_acks_none_calls_back_when_published(broker: Broker) -> None:
    called: queue.Queue[Any] = queue.Queue()
    with producer(broker, acks="none", linger_ms=5) as p:
        paused(broker, p)
        p.send("one", b"x")
        p.send("one", b"gathers").add_done_callback(called.put)
        assert called.get(timeout=40).result(0).offset is None
        resume(broker)


def test_a_callback_comes_when_the_delivery_timeout_has_passed(broker: Broker) -> None:
    called: queue.Queue[Any] = queue.Queue()
    p = producer(broker, delivery_timeout_ms=100)
    paused(broker, p)
    p.send("one", b"x").add_done_callback(called.put)
    receipt = called.get(timeout=40)
    assert not receipt.done()
    with pytest.raises(OutcomeUnknown, match="delivery_timeout_ms"):
        receipt.result()
    resume(broker)
    assert receipt.result(40).offset == 1
    p.close()


def test_a_callback_comes_when_the_broker_does_not(broker: Broker) -> None:
    called: queue.Queue[Any] = queue.Queue()
    broker.connection.reconnect_s = 0.2
    p = producer(broker)
    paused(broker, p)
    p.send("one", b"x").add_done_callback(called.put)
    broker.connection.lose()
    receipt = called.get(timeout=40)
    with pytest.raises(BrokerGone):
        receipt.result(40)
    p.send("one", b"while it is gone").add_done_callback(called.put)
    later = called.get(timeout=40)
    broker.connection.come_back()
    resume(broker)
    assert [receipt.result(40).offset, later.result(40).offset] == [1, 2]
    p.close()


def test_a_callback_comes_at_close_for_what_is_not_settled(broker: Broker) -> None:
    called = []
    p = producer(broker)
    paused(broker, p)
    p.send("one", b"x").add_done_callback(called.append)
    with pytest.raises(TimedOut):
        p.close(timeout=0.05)
    (receipt,) = called
    assert not receipt.done()
    resume(broker)
    assert receipt.result(40).offset == 1


def test_callbacks_follow_their_batches_to_new_rings(broker: Broker) -> None:
    from shmbroker._core import shm

    called: queue.Queue[Any] = queue.Queue()
    with producer(broker, linger_ms=0) as p:
        paused(broker, p)
        for i in range(20):
            p.send("one", b"%d" % i).add_done_callback(called.put)
        broker.connection.lose()
        broker.stop_writer(1)
        for letter in "ir":
            shm.unlink(f"{broker.prefix}-{letter}1")
        broker.connection.come_back()
        got = [called.get(timeout=40).result(0).offset for _ in range(20)]
        assert got == list(range(1, 21))


def test_a_dropped_ring_calls_back_without_anybody_waiting(broker: Broker) -> None:
    called: queue.Queue[Any] = queue.Queue()
    p = producer(broker)
    paused(broker, p)
    p.send("one", b"lost").add_done_callback(called.put)
    broker.writer.detach = 1
    broker.ring()
    assert isinstance(called.get(timeout=40).exception(0), Detached)
    assert p.send("one", b"after").result(40).offset == 1
    p.close()


def test_records_for_a_topic_that_is_gone_with_the_rings_fail(broker: Broker) -> None:
    from shmbroker._core import shm
    from shmbroker.errors import UnknownTopic

    p = producer(broker, linger_ms=1000)
    paused(broker, p)
    receipts = [p.send("one", b"x") for _ in range(5)]
    partitions = broker.topics.pop("one")
    broker.connection.lose()
    broker.stop_writer(1)
    for letter in "ir":
        shm.unlink(f"{broker.prefix}-{letter}1")
    broker.connection.come_back()
    for receipt in receipts:
        assert isinstance(receipt.exception(40), UnknownTopic)
    for _ in range(3):
        with pytest.raises(UnknownTopic):
            p.send("one", b"x")
    broker.topics["one"] = partitions
    assert p.send("one", b"again").result(40).offset == 1
    p.close()


def test_eight_threads_use_every_method_at_once(broker: Broker) -> None:
    called = []
    wrong: list[BaseException] = []
    with producer(broker, batch_bytes=4000) as p:

        def work(n: int) -> None:
            try:
                for i in range(300):
                    receipt = p.send("many", b"%d" % i, key=b"%d %d" % (n, i))
                    receipt.add_done_callback(called.append)
                    many = p.send_many("many", [b"x"] * 20, partition=n)
                    many.add_done_callback(called.append)
                    assert receipt.done() in (True, False)
                    if i % 50 == n:
                        p.flush(40)
                    if i % 50 == n + 10:
                        assert receipt.result(40) == receipt.result(0)
                        assert many.exception(40) is None
                        p.send_and_wait("one", b"", timeout=40)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=[n]) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(called) == 8 * 300 * 2


def test_close_ends_another_threads_result_and_flush(broker: Broker) -> None:
    p = producer(broker)
    paused(broker, p)
    receipt = p.send("one", b"x")
    ended: queue.Queue[Any] = queue.Queue()

    def wait(call: Any) -> None:
        try:
            ended.put(call())
        except Exception as error:
            ended.put(error)

    threads = [threading.Thread(target=wait, args=[call]) for call in (receipt.result, p.flush)]
    for thread in threads:
        thread.start()
    with pytest.raises(queue.Empty):
        ended.get(timeout=0.1)
    with pytest.raises(TimedOut):
        p.close(timeout=0.05)
    for thread in threads:
        thread.join(40)
    assert {type(ended.get(timeout=40)) for _ in threads} == {ClosedError}
    resume(broker)
    assert receipt.result(40).offset == 1


def test_close_ends_a_wait_for_a_broker_that_is_gone(broker: Broker) -> None:
    p = producer(broker)
    paused(broker, p)
    receipt = p.send("one", b"x")
    broker.connection.lose()
    ended: queue.Queue[Any] = queue.Queue()

    def wait() -> None:
        try:
            ended.put(receipt.result())
        except Exception as error:
            ended.put(error)

    thread = threading.Thread(target=wait)
    thread.start()
    with pytest.raises(queue.Empty):
        ended.get(timeout=0.1)
    with pytest.raises(TimedOut):
        p.close(timeout=0.05)
    thread.join(40)
    assert isinstance(ended.get(timeout=40), ClosedError)
    broker.connection.come_back()
    resume(broker)
    assert receipt.result(40).offset == 1


def test_a_failure_that_only_a_callback_saw_without_looking_is_still_reported(
    broker: Broker,
) -> None:
    p = producer(broker, linger_ms=0)
    paused(broker, p)
    broker.writer.reject = InvalidRecord.kafka_code
    p.send("one", b"x").add_done_callback(lambda _: None)
    resume(broker)
    with pytest.raises(DeliveryError):
        p.close()


def interrupted(call: Any) -> None:
    """Ctrl+C comes while it waits."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.15, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        call()
    timer.join()


def test_ctrl_c_ends_the_waits_of_many_records_and_of_close(broker: Broker) -> None:
    p = producer(broker)
    paused(broker, p)
    many = p.send_many("one", [b"x"] * 3)
    interrupted(many.result)
    interrupted(many.exception)
    interrupted(p.close)
    assert p.closed  # an interrupted close has closed
    resume(broker)
    assert many.result(40).records == 3


def test_ctrl_c_ends_waits_for_a_broker_that_is_gone(broker: Broker) -> None:
    p = producer(broker)
    paused(broker, p)
    receipt = p.send("one", b"x")
    broker.connection.lose()
    interrupted(receipt.result)
    interrupted(p.flush)
    interrupted(lambda: p.send_many("one", [b"x" * 50_000] * 100))
    broker.connection.come_back()
    resume(broker)
    assert receipt.result(40).offset == 1
    p.close()


def test_many_watches_while_the_broker_is_gone_take_one_thread(broker: Broker) -> None:
    broker.connection.reconnect_s = 0.3
    called: queue.Queue[Any] = queue.Queue()
    p = producer(broker)
    for n in range(100):  # opens every lane
        p.send("many", b"first", partition=n)
    p.flush(40)
    broker.connection.lose()
    before = threading.active_count()
    for n in range(100):
        p.send("many", b"x", partition=n).add_done_callback(called.put)
    assert threading.active_count() <= before + 1
    for _ in range(100):
        called.get(timeout=40)
    broker.connection.come_back()
    p.close()
