"""The producer against a fake writer: what is sent arrives once and in order, whatever happens."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from producer_fake import Broker, FakeClient

from shmbroker._core.batch import RecordBatch, partition_for_key
from shmbroker.client.producer import Producer, outlets_of
from shmbroker.errors import (
    BufferFull,
    ClosedError,
    DeliveryError,
    EarlierRejected,
    ForkedError,
    InvalidRecord,
    MemoryBudget,
    OutcomeUnknown,
    RecordTooLarge,
    TimedOut,
    UnknownTopic,
)


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


def producer(broker: Broker, **options: Any) -> Producer:
    return Producer(FakeClient(broker), **options)


def batches(broker: Broker) -> list[Any]:
    """What was appended, batch by batch, parsed by the reader's own code."""
    raw, found = broker.logged(), []
    while raw:
        size = int.from_bytes(raw[8:12], "big") + 12
        found.append(RecordBatch(raw[:size]))
        raw = raw[size:]
    return found


def records(broker: Broker) -> list[Any]:
    return [record for batch in batches(broker) for record in batch.records()]


def paused(broker: Broker, p: Producer, topic: str = "one") -> None:
    """Opens the ring with one record, then stops the writer from taking more."""
    p.send(topic, b"first").result(40)
    broker.writer.paused = 1


def resume(broker: Broker) -> None:
    broker.writer.paused = 0
    broker.ring()


def test_a_record_arrives_with_all_its_fields(broker: Broker) -> None:
    with producer(broker) as p:
        headers = [("h", b"1"), ("n", None)]
        receipt = p.send("one", b"value", key=b"key", headers=headers, timestamp=5)
        assert receipt.result(40) == ("one", 0, 0, 5)
        assert receipt.done()
    (record,) = records(broker)
    assert (record.key, record.value, record.timestamp) == (b"key", b"value", 5)
    assert list(record.headers) == [("h", b"1"), ("n", None)]


def test_offsets_count_on_within_and_across_batches(broker: Broker) -> None:
    with producer(broker) as p:
        receipts = [p.send("one", b"%d" % i) for i in range(50_000)]
        p.flush(40)
        assert [r.result(0).offset for r in receipts] == list(range(50_000))
    assert [r.value for r in records(broker)] == [b"%d" % i for i in range(50_000)]


@pytest.mark.parametrize("value", [bytearray(b"abc"), memoryview(b"abc"), memoryview(b"abcd")[:3]])
def test_any_contiguous_buffer_is_a_value(broker: Broker, value: Any) -> None:
    with producer(broker) as p:
        p.send("one", value, key=value).result(40)
        p.send_many("one", [b"x", value, None]).result(40)
    assert [r.value for r in records(broker)] == [b"abc", b"x", b"abc", None]


def test_a_text_is_refused_and_says_encode(broker: Broker) -> None:
    with producer(broker) as p:
        with pytest.raises(TypeError, match="encode"):
            p.send("one", "text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="encode"):
            p.send("one", b"", key="text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"value 1: .*encode.*1 of 2"):
            p.send_many("one", [b"", "text"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="expected a list"):
            p.send_many("one", b"abc")  # type: ignore[arg-type]
        with pytest.raises((TypeError, BufferError)):
            p.send("one", memoryview(b"abcdef")[::2])


def test_none_is_a_tombstone_and_timestamps_may_be_datetimes(broker: Broker) -> None:
    with producer(broker) as p:
        when = datetime(2020, 1, 2, tzinfo=UTC)
        assert p.send("one", None, key=b"k", timestamp=when).result(40).timestamp == 1577923200000
        with pytest.raises(ValueError, match="milliseconds"):
            p.send("one", b"", timestamp=-1)
    (record,) = records(broker)
    assert (record.key, record.value) == (b"k", None)


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
def test_every_compression_is_read_back(broker: Broker, compression: Any) -> None:
    values = [b"value %d" % (i % 7) for i in range(5000)]
    with producer(broker, compression=compression, linger_ms=50) as p:
        p.send_many("one", values)
        for value in values[:100]:
            p.send("one", value)
    assert [r.value for r in records(broker)] == values + values[:100]
    encoded = sum(len(v) + 8 for v in values)
    assert compression is None or broker.writer.bytes < encoded / 2


def test_incompressible_records_are_sent_as_they_are(broker: Broker) -> None:
    with producer(broker, compression="zstd") as p:
        value = os.urandom(1000)
        p.send("one", value).result(40)
    assert [r.value for r in records(broker)] == [value]


def test_keys_choose_partitions_as_javas_client_does(broker: Broker) -> None:
    keys = [b"key %d" % i for i in range(300)]
    with producer(broker) as p:
        got = [p.send("many", b"", key=k) for k in keys]
        assert [r.result(40).partition for r in got] == [partition_for_key(k, 16) for k in keys]
        many = p.send_many("many", [b""] * 300, keys=keys).result(40)
        assert sum(many.counts.values()) == many.records == 300
        assert set(many.base_offsets) == {partition_for_key(k, 16) for k in keys}


def test_records_without_a_key_stick_to_a_partition_for_a_batch(broker: Broker) -> None:
    with producer(broker, linger_ms=1000) as p:
        paused(broker, p, "many")
        p.send("many", b"leaves at once, the writer is dry")
        got = [p.send("many", b"x" * 50) for _ in range(500)]
        resume(broker)
        assert len({r.result(40).partition for r in got}) == 1
        many = p.send_many("many", [b"y" * 100] * 20_000).result(40)
        assert len(many.base_offsets) > 1  # 2 MB: a batch is 128 KiB, more where room is waited for


def test_order_within_a_partition_holds_when_keys_alternate(broker: Broker) -> None:
    rng = random.Random(7)
    keys = [b"%d" % rng.randrange(64) for _ in range(40_000)]
    with producer(broker, batch_bytes=4096) as p:
        for i, key in enumerate(keys):
            p.send("many", b"%d" % i, key=key)
    seen: dict[bytes, list[int]] = {}
    for record in records(broker):
        seen.setdefault(record.key, []).append(int(record.value))
    assert sum(map(len, seen.values())) == len(keys)
    assert all(order == sorted(order) for order in seen.values())


def test_an_unknown_topic_or_partition_is_an_error_at_once(broker: Broker) -> None:
    with producer(broker) as p:
        with pytest.raises(UnknownTopic, match="topic create nowhere"):
            p.send("nowhere", b"")
        with pytest.raises(UnknownTopic, match="no partition 16"):
            p.send("many", b"", partition=16)
        with pytest.raises(UnknownTopic):
            p.send("many", b"", partition=-1)
        with pytest.raises(TypeError):
            p.send(5, b"")  # type: ignore[arg-type]


def test_a_partition_added_later_is_found(broker: Broker) -> None:
    with producer(broker) as p:
        p.send("one", b"").result(40)
        broker.topics["one"] = (2, {})
        broker.slot_of["one", 1] = (50, 7)
        broker.lib.fake_slot_init(broker.table, 50, 7)
        assert p.send("one", b"", partition=1).result(40).partition == 1


def test_a_record_too_large_for_its_topic_names_both_sizes(broker: Broker) -> None:
    with producer(broker) as p:
        with pytest.raises(RecordTooLarge, match="1000") as caught:
            p.send("small", b"x" * 1000)
        assert caught.value.limit_bytes == 1000
        assert caught.value.size_bytes > 1000
        fits = 1000 - 61 - 2 - 1 - 2 - 1 - 2 - 1  # batch; length, attributes, deltas, key, value
        p.send("small", b"x" * fits).result(40)
        with pytest.raises(RecordTooLarge):
            p.send("small", b"x" * (fits + 1))


def test_a_record_larger_than_the_ring_gets_a_larger_ring(broker: Broker) -> None:
    with producer(broker) as p:
        before = [p.send("big", b"%d" % i) for i in range(1000)]
        big = os.urandom(3 << 20)
        assert p.send("big", big).result(40).offset == 1000
        assert p.send("big", b"after").result(40).offset == 1001
        assert [r.result(40).offset for r in before] == list(range(1000))
    assert [op for op, _ in broker.requests].count("open_ingress") == 2
    assert "close_ingress" in [op for op, _ in broker.requests]
    assert [r.value for r in records(broker)][1000:] == [big, b"after"]


def test_a_larger_ring_that_the_broker_has_no_memory_for_costs_no_ring_and_no_record(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(capacity: int, slots: int) -> dict[str, int]:
        raise MemoryBudget("no room for a ring")

    with producer(broker) as p:
        before = [p.send("big", b"%d" % i) for i in range(100)]
        with monkeypatch.context() as patched:
            patched.setattr(broker, "open_ingress", refuse)
            for _ in range(2):  # the old ring is gone: small ones must not go there either
                with pytest.raises(MemoryBudget):
                    p.send("big", bytes(3 << 20))
                with pytest.raises(MemoryBudget):
                    p.send("big", b"small")
        assert p.send("big", bytes(3 << 20)).result(40).offset == 100
        assert [r.result(40).offset for r in before] == list(range(100))
        assert p.send("big", b"after").result(40).offset == 101


def test_a_lone_record_is_published_at_once(broker: Broker) -> None:
    with producer(broker, linger_ms=60_000) as p:
        p.send("one", b"opens the ring").result(40)
        for i in range(20):
            deadline = time.monotonic() + 40
            p.send("one", b"alone")
            while broker.writer.records < i + 2 and time.monotonic() < deadline:
                time.sleep(0.0001)
            assert broker.writer.records == i + 2


def test_the_rest_of_a_burst_arrives_while_the_program_holds_the_gil(broker: Broker) -> None:
    with producer(broker, linger_ms=5) as p:
        p.send("one", b"opens the ring").result(40)
        for _ in range(997):
            p.send("one", b"burst")
        before = sys.getswitchinterval()
        sys.setswitchinterval(60)
        try:
            deadline = time.monotonic() + 40
            while broker.writer.records < 998 and time.monotonic() < deadline:
                pass  # no bytecode here gives the GIL away
        finally:
            sys.setswitchinterval(before)
        assert broker.writer.records == 998


def test_a_batch_that_waits_for_a_busy_writer_leaves_at_linger(broker: Broker) -> None:
    with producer(broker, linger_ms=5) as p:
        paused(broker, p)
        p.send("one", b"leaves at once, the writer is dry")
        p.send("one", b"waits")
        (counters,) = outlets_of(broker.connection).counters().values()
        assert counters["in_flight"] == 1
        deadline = time.monotonic() + 40
        while counters["in_flight"] == 1 and time.monotonic() < deadline:
            (counters,) = outlets_of(broker.connection).counters().values()
        assert counters["in_flight"] == 2
        resume(broker)


def test_a_full_ring_blocks_and_ends_in_buffer_full_with_the_reason(broker: Broker) -> None:
    with producer(broker, max_block_ms=50) as p:
        paused(broker, p)
        begun = time.monotonic()
        with pytest.raises(BufferFull, match=r"one-0.*max_block_ms.*slot 0") as caught:
            for _ in range(100):
                p.send("one", b"x" * 50_000)
        assert isinstance(caught.value, TimeoutError)
        assert time.monotonic() - begun > 0.05
        resume(broker)


def test_a_blocked_send_goes_on_when_the_writer_does(broker: Broker) -> None:
    with producer(broker) as p:
        paused(broker, p)
        timer = threading.Timer(0.1, resume, [broker])
        timer.start()
        values = [os.urandom(10_000) for _ in range(500)]
        assert p.send_many("one", values).result(40).records == 500
        timer.join()
    assert [r.value for r in records(broker)][1:] == values


def test_ctrl_c_ends_a_blocked_send(broker: Broker) -> None:
    with producer(broker) as p:
        paused(broker, p)
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            p.send_many("one", [b"x" * 50_000] * 100)
        timer.join()
        resume(broker)


def test_ctrl_c_ends_result_and_flush(broker: Broker) -> None:
    with producer(broker) as p:
        paused(broker, p)
        receipt = p.send("one", b"")
        main = threading.main_thread().ident
        assert main is not None
        for wait in (receipt.result, p.flush):
            timer = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT])
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                wait()
            timer.join()
        resume(broker)


def test_result_with_a_timeout_says_timed_out_and_can_be_asked_again(broker: Broker) -> None:
    with producer(broker) as p:
        paused(broker, p)
        receipt = p.send("one", b"")
        assert not receipt.done()
        with pytest.raises(TimedOut, match="one-0"):
            receipt.result(0.05)
        with pytest.raises(TimedOut):
            p.flush(0.05)
        resume(broker)
        assert receipt.result(40).offset == 1


def test_the_delivery_timeout_ends_a_wait_without_one_of_its_own(broker: Broker) -> None:
    p = producer(broker, delivery_timeout_ms=80)
    paused(broker, p)
    receipt = p.send("one", b"")
    with pytest.raises(OutcomeUnknown, match="delivery_timeout_ms"):
        receipt.result()
    resume(broker)
    assert receipt.result(40).offset == 1
    p.close()


def test_durable_waits_for_the_disk_and_memory_does_not(broker: Broker) -> None:
    with producer(broker) as durable, producer(broker, acks="memory") as memory:
        durable.send("one", b"").result(40)
        broker.writer.not_durable = 1
        waiting = durable.send("one", b"")
        assert memory.send("one", b"").result(40).offset is not None
        with pytest.raises(TimedOut):
            waiting.result(0.05)
        assert not waiting.done()
        broker.lib.fake_slot_durable(broker.table, 0)
        broker.ring()
        assert waiting.result(40).offset == 1
        broker.writer.not_durable = 0


def test_acks_none_is_done_when_published_and_knows_no_offset(broker: Broker) -> None:
    with producer(broker, acks="none") as p:
        paused(broker, p)
        receipt = p.send("one", b"x")
        assert receipt.result(0) == ("one", 0, None, receipt.result(0).timestamp)
        assert p.send_many("one", [b"x"]).result(40).base_offsets == {0: None}
        resume(broker)


def test_a_rejection_takes_the_later_batches_with_it_and_then_goes_on(broker: Broker) -> None:
    p = producer(broker, linger_ms=0)
    paused(broker, p)
    broker.writer.reject = InvalidRecord.kafka_code
    first, second, third = (p.send("one", b"%d" % i) for i in range(3))
    resume(broker)
    with pytest.raises(InvalidRecord, match="one-0"):
        first.result(40)
    for later in (second, third):
        with pytest.raises(EarlierRejected) as caught:
            later.result(40)
        assert isinstance(caught.value.__cause__, InvalidRecord)
    assert p.send("one", b"after").result(40).offset == 1
    p.close()
    assert [r.value for r in records(broker)] == [b"first", b"after"]


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_what_is_in_the_ring_fails_with_the_batch_before_it(
    broker: Broker, idempotent: bool, known: bool
) -> None:
    p = producer(broker, linger_ms=0, idempotent=idempotent)
    other = producer(broker, linger_ms=0, idempotent=idempotent)
    paused(broker, other)
    if known:
        resume(broker)
        p.send("one", b"known").result(40)
        broker.writer.paused = 1
    broker.writer.reject = InvalidRecord.kafka_code
    mine = [p.send("one", b"%d" % i) for i in range(5)]
    others = other.send("one", b"other's")
    resume(broker)
    assert isinstance(mine[0].exception(40), InvalidRecord)
    for later in mine[1:]:
        error = later.exception(40)
        assert isinstance(error, EarlierRejected)
        assert isinstance(error.__cause__, InvalidRecord)
    others.result(40)
    p.send("one", b"after").result(40)
    p.close()
    other.close()
    wanted = [b"first", *([b"known"] if known else []), b"other's", b"after"]
    assert [r.value for r in records(broker)] == wanted


def test_flush_reports_failures_that_nobody_looked_at_once(broker: Broker) -> None:
    p = producer(broker, linger_ms=0)
    paused(broker, p)
    broker.writer.reject = InvalidRecord.kafka_code
    looked, unlooked = p.send("one", b"1"), p.send("one", b"2")
    resume(broker)
    assert isinstance(looked.exception(40), InvalidRecord)
    with pytest.raises(DeliveryError) as caught:
        p.flush(40)
    assert caught.value.count == 1
    assert isinstance(caught.value.first, EarlierRejected)
    p.flush(40)  # it was said once
    assert isinstance(unlooked.exception(), EarlierRejected)
    broker.writer.reject = InvalidRecord.kafka_code
    p.send_many("one", [b"x"] * 10)
    with pytest.raises(DeliveryError) as caught:
        p.close()
    assert caught.value.count == 10


def test_a_with_block_reports_failures_only_when_it_ends_cleanly(broker: Broker) -> None:
    with pytest.raises(DeliveryError), producer(broker) as p:
        p.send("one", b"").result(40)
        broker.writer.reject = InvalidRecord.kafka_code
        p.send("one", b"")
    with pytest.raises(ZeroDivisionError), producer(broker) as p:
        broker.writer.reject = InvalidRecord.kafka_code
        p.send("one", b"")
        raise ZeroDivisionError


def test_an_offline_partition_leaves_the_outcome_unknown(broker: Broker) -> None:
    p = producer(broker)
    p.send("one", b"").result(40)
    broker.writer.not_durable = 1
    receipt = p.send("one", b"")
    with pytest.raises(TimedOut):
        receipt.result(0.02)
    broker.lib.fake_slot_state(broker.table, 0, 5, 0)
    broker.ring()
    with pytest.raises(OutcomeUnknown, match="one-0"):
        receipt.result(40)
    p.close()


def test_a_recovered_generation_leaves_the_outcome_unknown(broker: Broker) -> None:
    p = producer(broker)
    p.send("one", b"").result(40)
    broker.writer.not_durable = 1
    p.send("one", b"")
    with pytest.raises(TimedOut):
        p.flush(0.05)
    broker.lib.fake_slot_state(broker.table, 0, 2, 2 << 32 | 1)
    broker.ring()
    with pytest.raises(DeliveryError) as caught:
        p.flush(40)
    assert isinstance(caught.value.first, OutcomeUnknown)
    p.close()


def test_a_wait_outlives_a_broker_that_comes_back_with_the_same_rings(broker: Broker) -> None:
    with producer(broker) as p:
        paused(broker, p)
        receipt = p.send("one", b"x")
        threading.Timer(0.1, broker.connection.lose).start()
        with pytest.raises(TimedOut):
            receipt.result(0.3)
        broker.connection.come_back()
        resume(broker)
        assert receipt.result(40).offset == 1
        assert p.send("one", b"y").result(40).offset == 2
    assert [op for op, _ in broker.requests].count("open_ingress") == 1


def test_unacknowledged_batches_are_sent_again_when_the_rings_are_gone(broker: Broker) -> None:
    from shmbroker._core import shm

    with producer(broker, linger_ms=0) as p:
        paused(broker, p)
        receipts = [p.send("one", b"%d" % i) for i in range(100)]
        open_one = p.send("one", b"still open")
        broker.connection.lose()
        broker.stop_writer(1)
        for letter in "ir":
            shm.unlink(f"{broker.prefix}-{letter}1")
        broker.connection.come_back()
        assert [r.result(40).offset for r in receipts] == list(range(1, 101))
        assert open_one.result(40).offset == 101
        assert p.send("one", b"after").result(40).offset == 102
    assert [r.value for r in records(broker)] == [
        b"first",
        *(b"%d" % i for i in range(100)),
        b"still open",
        b"after",
    ]


def test_what_was_appended_before_the_rings_were_lost_is_not_doubled(broker: Broker) -> None:
    from shmbroker._core import shm

    with producer(broker, linger_ms=0) as p:
        p.send("one", b"first").result(40)
        broker.writer.not_durable = 1
        received = [p.send("one", b"%d" % i) for i in range(10)]
        with pytest.raises(TimedOut):
            received[-1].result(0.1)
        broker.connection.lose()
        broker.stop_writer(1)
        for letter in "ir":
            shm.unlink(f"{broker.prefix}-{letter}1")
        broker.connection.come_back()
        assert [r.result(40).offset for r in received] == list(range(1, 11))
    assert [r.value for r in records(broker)] == [b"first", *(b"%d" % i for i in range(10))]


def lose_the_rings(broker: Broker) -> None:
    """The broker dies, and its successor has no rings."""
    from shmbroker._core import shm

    broker.connection.lose()
    ingress = broker.next_ingress
    broker.stop_writer(ingress)
    for letter in "ir":
        shm.unlink(f"{broker.prefix}-{letter}{ingress}")
    broker.connection.come_back()


def test_no_more_frames_are_in_flight_than_the_broker_remembers(broker: Broker) -> None:
    with producer(broker, linger_ms=0) as p, producer(broker, linger_ms=0) as other:
        paused(broker, p)
        receipts = [p.send("one", b"%d" % i) for i in range(200)]
        (counters,) = outlets_of(broker.connection).counters().values()
        assert counters["in_flight"] == 64
        elsewhere = other.send("many", b"another partition has places of its own")
        (counters,) = outlets_of(broker.connection).counters().values()
        assert counters["in_flight"] == 65
        resume(broker)
        assert [r.result(40).offset for r in receipts] == list(range(1, 201))
        elsewhere.result(40)


def test_more_than_the_broker_remembers_is_appended_once_and_keeps_its_offsets(
    broker: Broker,
) -> None:
    with producer(broker, linger_ms=0) as p:
        p.send("one", b"first").result(40)
        broker.writer.not_durable = 1
        received = []
        for i in range(200):
            received.append(p.send("one", b"%d" % i))
            while broker.writer.records < i + 2:
                pass
        with pytest.raises(TimedOut):
            received[-1].result(0.05)
        lose_the_rings(broker)
        assert [r.result(40).offset for r in received] == list(range(1, 201))
    assert [r.value for r in records(broker)] == [b"first", *(b"%d" % i for i in range(200))]


def test_without_sequences_the_frame_in_doubt_is_not_sent_again(broker: Broker) -> None:
    p = producer(broker, linger_ms=0, idempotent=False)
    paused(broker, p)
    doubtful, *others = [p.send("one", b"%d" % i) for i in range(3)]
    lose_the_rings(broker)
    with pytest.raises(OutcomeUnknown):
        doubtful.result(40)
    assert [r.result(40).offset for r in others] == [1, 2]
    p.close()
    assert [r.value for r in records(broker)] == [b"first", b"1", b"2"]


def test_a_batch_that_can_t_be_compressed_is_sent_as_it_is(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(codec: int, data: bytes) -> bytes:
        raise MemoryError("no room")

    monkeypatch.setattr("shmbroker._core.producer.compress", fail)
    with producer(broker, compression="zstd") as p:
        p.send("one", b"opens the ring").result(40)
        at_once = p.send("one", b"a" * 1000)
        at_once.result(40)
        broker.writer.paused = 1
        p.send("one", b"leaves at once, the writer is dry")
        by_the_client_thread = p.send("one", b"b" * 1000)
        resume(broker)
        deadline = time.monotonic() + 40
        while not by_the_client_thread.done() and time.monotonic() < deadline:
            time.sleep(0.001)
        assert by_the_client_thread.done()
        assert by_the_client_thread.exception(0) is None
    assert [r.value for r in records(broker)][1::2] == [b"a" * 1000, b"b" * 1000]
    assert [r.getMessage() for r in caplog.records if "zstd" in r.getMessage()] == [
        "zstd compression failed (MemoryError: no room): batches of which it fails are sent "
        "uncompressed; this is said once a producer"
    ]


def test_a_ring_that_the_writer_dropped_fails_its_records_and_is_replaced(broker: Broker) -> None:
    from shmbroker.errors import Detached

    p = producer(broker)
    paused(broker, p)
    receipt = p.send("one", b"lost")
    broker.writer.detach = 1
    broker.ring()
    with pytest.raises(Detached):
        receipt.result(40)
    assert p.send("one", b"after").result(40).offset == 1
    p.close()


def test_producers_of_one_client_share_a_ring(broker: Broker) -> None:
    client = FakeClient(broker)
    with Producer(client) as a, Producer(client) as b:
        for i in range(2000):
            (a if i % 3 else b).send("one", b"%d" % i)
    assert sorted(int(r.value) for r in records(broker)) == list(range(2000))
    assert [op for op, _ in broker.requests].count("open_ingress") == 1


def test_threads_may_share_a_producer(broker: Broker) -> None:
    with producer(broker, batch_bytes=2000) as p:

        def work(n: int) -> None:
            for i in range(3000):
                receipt = p.send("many", b"%d" % i, key=b"%d" % n)
                if i % 500 == 0:
                    receipt.result(40)

        threads = [threading.Thread(target=work, args=[n]) for n in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    seen: dict[bytes, list[int]] = {}
    for record in records(broker):
        seen.setdefault(record.key, []).append(int(record.value))
    assert seen == {b"%d" % n: list(range(3000)) for n in range(8)}


def test_close_ends_another_threads_blocked_send(broker: Broker) -> None:
    p = producer(broker, delivery_timeout_ms=300)
    paused(broker, p)
    ended: list[BaseException] = []

    def work() -> None:
        try:
            p.send_many("one", [b"x" * 50_000] * 100)
        except ClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    with pytest.raises(OutcomeUnknown):
        p.close()
    thread.join(40)
    assert len(ended) == 1
    with pytest.raises(ClosedError):
        p.send("one", b"")
    p.close()
    resume(broker)


def test_options_are_checked(broker: Broker) -> None:
    for wrong in (
        {"acks": "all"},
        {"compression": "brotli"},
        {"linger_ms": -1},
        {"batch_bytes": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            producer(broker, **wrong)
    with pytest.raises(TypeError, match="linger_ms"):
        producer(broker, linger_ms=0.5)


def test_without_idempotence_there_is_no_producer_id(broker: Broker) -> None:
    with producer(broker, idempotent=False) as p:
        p.send("one", b"x").result(40)
    assert "init_producer" not in [op for op, _ in broker.requests]
    assert broker.logged()[43:51] == b"\xff" * 8


def test_an_unclosed_producer_is_a_resource_warning_and_its_records_arrive(broker: Broker) -> None:
    made = [producer(broker)]
    receipt = made[0].send("one", b"x")
    with pytest.warns(ResourceWarning, match="unclosed"):
        made.clear()
    assert receipt.result(40).offset == 0


def test_a_forked_child_gets_forked_error_and_its_destructors_touch_nothing(broker: Broker) -> None:
    p = producer(broker)
    receipt = p.send("one", b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (p.flush, p.close, receipt.result, receipt.done, receipt.exception):
                with pytest.raises(ForkedError):
                    call()
            with pytest.raises(ForkedError):
                p.send("one", b"")
            with pytest.raises(ForkedError):
                p.send_many("one", [b""])
            del receipt, p
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert receipt.result(40).offset == 0
    p.close()


def test_memory_does_not_grow_with_receipts_dropped(broker: Broker) -> None:
    import psutil

    me = psutil.Process()
    with producer(broker, acks="memory") as p:
        for _ in range(50_000):
            p.send("one", b"x" * 100)
        p.flush(40)
        before = me.memory_info().rss
        for _ in range(500_000):
            p.send("one", b"x" * 100)
        p.flush(40)
        assert me.memory_info().rss - before < 8 << 20


def test_an_interpreter_that_forbids_the_gil_is_told_so() -> None:
    program = "import sys; sys._is_gil_enabled = lambda: False; import shmbroker._core.producer"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ImportError: shmbroker's core needs the GIL" in done.stderr
