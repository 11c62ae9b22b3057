"""Serializers, deserializers and partitioners: what they get, and what is said when one fails."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from consumer_fakes import FakeBroker, FakePartition

sys.path.insert(0, str(Path(__file__).parent))
from producer_fake import Broker, FakeClient

from shmbroker._core.batch import Record, RecordBatch
from shmbroker.client.client import Client
from shmbroker.client.consumer import Consumer
from shmbroker.client.local_connection import LocalConnection
from shmbroker.client.producer import Producer
from shmbroker.client.serializing import DeserializingConsumer, Incoming, SerializingProducer
from shmbroker.errors import SerializationError


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def fail(_what: Any) -> bytes:
    raise RuntimeError("no such schema")


# --- on the way in -------------------------------------------------------------------------------


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker({"one": (1, {}), "many": (8, {})})
    yield made
    made.close()


def producer(broker: Broker, **options: Any) -> SerializingProducer:
    return SerializingProducer(FakeClient(broker), **options)


def sent(broker: Broker) -> list[Record]:
    raw, found = broker.logged() if broker.fakes else b"", []
    while raw:
        size = int.from_bytes(raw[8:12], "big") + 12
        found += RecordBatch(raw[:size]).records()
        raw = raw[size:]
    return found


def test_serializers_make_bytes_of_keys_and_values_and_none_stays_none(broker: Broker) -> None:
    with producer(broker, key_serializer=str.encode, value_serializer=as_json) as p:
        p.send("one", {"a": 1}, key="k", headers={"h": b"1"}, timestamp=5).result(40)
        p.send("one", None).result(40)
        p.send_and_wait("one", [1], "k", timeout=40)
        p.send_many("one", [1, None, "x"], ["a", None, "c"], timestamps=[1, 2, 3]).result(40)
        p.send_many("one", (n for n in [4, 5])).result(40)
    found = sent(broker)
    assert [r.value for r in found] == [b'{"a": 1}', None, b"[1]", b"1", None, b'"x"', b"4", b"5"]
    assert [r.key for r in found] == [b"k", None, b"k", b"a", None, b"c", None, None]
    assert (found[0].timestamp, list(found[0].headers)) == (5, [("h", b"1")])
    assert [r.timestamp for r in found[3:6]] == [1, 2, 3]


def test_a_serializer_may_return_any_buffer_or_none(broker: Broker) -> None:
    answers: Iterator[Any] = iter([bytearray(b"a"), memoryview(b"b"), None, np.zeros(2, np.uint8)])
    with producer(broker, value_serializer=lambda _value: next(answers)) as p:
        p.send_many("one", [1, 2, 3, 4]).result(40)
    assert [r.value for r in sent(broker)] == [b"a", b"b", None, b"\0\0"]


def test_a_serializer_that_fails_is_named_with_topic_and_cause_and_sends_nothing(
    broker: Broker,
) -> None:
    with producer(broker, key_serializer=fail, value_serializer=as_json) as p:
        with pytest.raises(
            SerializationError, match="key_serializer for topic 'one' failed: RuntimeError: no such"
        ) as caught:
            p.send("one", 1, key="k")
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert caught.value.topic == "one"
        assert not caught.value.retriable
        with pytest.raises(
            SerializationError, match=r"value_serializer .* \(value 1; none were sent"
        ):
            p.send_many("one", [1, {1, 2}])
    with producer(broker, value_serializer=lambda value: value) as p:
        for value in ("text", 5, [b""]):
            with pytest.raises(
                SerializationError, match=f"returned {type(value).__name__}, expected"
            ):
                p.send("one", value)
    assert sent(broker) == []


def test_a_partitioner_chooses_where_nobody_else_has(broker: Broker) -> None:
    asked: list[Any] = []

    def choose(topic: str, key: bytes | None, partitions: int) -> int:
        asked.append((topic, key, partitions))
        return np.int64(len(asked) % partitions)  # type: ignore[return-value]

    with producer(broker, partitioner=choose, key_serializer=str.encode) as p:
        assert p.send("many", b"v", key="k").result(40).partition == 1
        assert p.send("many", b"v").result(40).partition == 2
        assert p.send("many", b"v", key="k", partition=7).result(40).partition == 7
        assert asked == [("many", b"k", 8), ("many", None, 8)]
        many = p.send_many("many", [b"v"] * 4, ["a", "b", None, "d"]).result(40)
        assert many.counts == {3: 1, 4: 1, 5: 1, 6: 1}
        assert asked[2:] == [("many", key, 8) for key in (b"a", b"b", None, b"d")]
        assert p.send_many("many", [b"v"] * 4, partition=0).result(40).counts == {0: 4}
        assert p.send_many("many", iter([b"v"] * 3)).result(40).records == 3


def test_a_partitioner_is_asked_for_arrays_and_arrow_data_too(broker: Broker) -> None:
    def choose(_topic: str, key: bytes | None, partitions: int) -> int:
        return 0 if key is None else key[0] % partitions

    rows = np.zeros((4, 3), np.uint8)
    keys = [b"\1", b"\2", None, b"\2"]
    with producer(broker, partitioner=choose) as p:
        for many in (keys, pa.array(keys), pa.chunked_array([keys[:1], keys[1:]])):
            for values in (rows, pa.array([b"a"] * 4), pa.chunked_array([[b"a"] * 4])):
                assert p.send_many("many", values, many).result(40).counts == {0: 1, 1: 1, 2: 2}
        assert p.send_many("many", rows).result(40).counts == {0: 4}
        with pytest.raises(ValueError, match="4 keys for 3 values"):
            p.send_many("many", rows[:3], keys)
        with pytest.raises(TypeError, match="one bytes"):
            p.send_many("many", b"abc")


@pytest.mark.parametrize(("answer", "words"), [(8, "chose partition 8"), (-1, "partition -1")])
def test_a_partitioner_that_leaves_the_topic_is_refused(
    broker: Broker, answer: int, words: str
) -> None:
    with (
        producer(broker, partitioner=lambda *_: answer) as p,
        pytest.raises(SerializationError, match=f"{words}.*return 0 to 7"),
    ):
        p.send("many", b"")


@pytest.mark.parametrize("answer", [None, "1", 1.5])
def test_a_partitioner_returns_an_int(broker: Broker, answer: Any) -> None:
    with (
        producer(broker, partitioner=lambda *_: answer) as p,
        pytest.raises(SerializationError, match="partitioner for topic 'many' failed: TypeError"),
    ):
        p.send_many("many", [b""])


def test_what_is_no_function_is_refused_by_name(broker: Broker) -> None:
    for name in ("partitioner", "key_serializer", "value_serializer"):
        with pytest.raises(TypeError, match=f"{name} is str, expected a function"):
            producer(broker, **{name: "json"})


def test_a_coroutine_function_is_refused_with_the_way_out(broker: Broker) -> None:
    async def encode(value: Any) -> bytes:
        return as_json(value)

    with pytest.raises(TypeError, match=r"value_serializer is a coroutine function.*await before"):
        producer(broker, value_serializer=encode)
    with pytest.raises(TypeError, match=r"key_deserializer is a coroutine function.*or after"):
        Incoming(key_deserializer=encode)


# --- on the way out ------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBroker]:
    with FakeBroker(tmp_path, partitions=1) as made:
        yield made


@pytest.fixture
def log(fake: FakeBroker) -> FakePartition:
    fake.partitions[0].make_ring(1 << 16)
    return fake.partitions[0]


@pytest.fixture
def client(fake: FakeBroker) -> Iterator[Client]:
    with Client(LocalConnection(fake.places, timeout=5.0, reconnect_s=10.0)) as made:
        yield made


def test_without_functions_producer_and_consumer_are_the_plain_ones(
    client: Client, log: FakePartition
) -> None:
    with client.consumer("t") as consumer, client.producer() as plain:
        assert type(consumer) is Consumer
        assert type(plain) is Producer
    with client.consumer("t", value_deserializer=bytes.decode) as consumer:
        assert type(consumer) is DeserializingConsumer
    with client.producer(value_serializer=as_json) as made:
        assert type(made) is SerializingProducer
    with pytest.raises(TypeError, match="value_deserializer is int"):
        client.consumer("t", value_deserializer=5)  # type: ignore[call-overload]


def test_records_come_decoded_one_by_one_and_in_batches(client: Client, log: FakePartition) -> None:
    log.append(b"1", None, b"[2]")
    log.flush()
    with client.consumer("t", start="earliest", value_deserializer=json.loads) as consumer:
        first = consumer.poll(40)
        assert first is not None
        assert (first.value, first.key, first.raw.value) == (1, None, b"1")
        assert (first.topic, first.partition, first.offset) == ("t", 0, 0)
        assert first.timestamp == first.raw.timestamp
        assert list(first.headers) == []
        assert "t-0@0" in repr(first)
        assert [next(consumer).value, next(consumer).value] == [None, [2]]
        assert consumer.poll(0) is None
        consumer.seek(0)
        (batch,) = consumer.batches(timeout=0)
        consumer.seek(0)
        polled = consumer.poll_batch(40)
        assert polled is not None
        assert polled.values() == batch.values()
        assert consumer.poll_batch(0) is None
        assert batch.values() == [1, None, [2]]
        assert batch.keys() == [None] * 3
        assert [r.value for r in batch] == [r.value for r in batch.records()] == [1, None, [2]]
        assert (len(batch), batch.topic, list(batch.offsets())) == (3, "t", [0, 1, 2])
        assert batch.undecoded.values() == [b"1", None, b"[2]"]
        assert pa.record_batch(batch.arrow()).num_rows == 3
        assert "Decoded" in repr(batch)


def test_reading_goes_on_behind_a_record_that_can_not_be_decoded(
    client: Client, log: FakePartition
) -> None:
    log.append(b"1", b"{", b"3", b"}", b"5")
    log.flush()
    with client.consumer("t", start="earliest", value_deserializer=json.loads) as consumer:
        assert next(consumer).value == 1
        with pytest.raises(
            SerializationError, match=r"value of the record at offset 1 of t-0"
        ) as c:
            consumer.poll(40)
        error = c.value
        assert (error.topic, error.partition, error.offset) == ("t", 0, 1)
        assert error.record.value == b"{"
        assert isinstance(error.__cause__, json.JSONDecodeError)
        assert pickle.loads(pickle.dumps(error)).record.value == b"{"
        assert consumer.position() == 2
        assert next(consumer).value == 3
        with pytest.raises(SerializationError, match="offset 3"):
            next(consumer)
        assert [record.value for record in (next(consumer),)] == [5]
        consumer.seek(0)
        (batch,) = consumer.batches(timeout=0)
        for call in (batch.values, batch.records):
            with pytest.raises(SerializationError, match="offset 1"):
                call()
        assert batch.keys() == [None] * 5
        records, good = iter(batch), []
        while True:
            try:
                good.append(next(records).value)
            except SerializationError:
                continue
            except StopIteration:
                break
        assert good == [1, 3, 5]
        assert consumer.position() == 5


def test_a_key_that_can_not_be_decoded_says_so(client: Client, log: FakePartition) -> None:
    log.append(b"1")
    log.flush()
    with client.consumer("t", start="earliest", key_deserializer=fail) as consumer:
        record = consumer.poll(40)
        assert record is not None
        assert (record.key, record.value) == (None, b"1")  # no key: nobody is asked
