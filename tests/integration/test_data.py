"""Arrays, Arrow data and serializers against a real broker: what goes in comes out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from shmbroker._core.batch import partition_for_key
from shmbroker.errors import SerializationError

if TYPE_CHECKING:
    from conftest import Broker

    from shmbroker import RecordBatch
    from shmbroker.client.client import Client


def batches(client: Client, topic: str, **options: Any) -> list[RecordBatch]:
    found, got = [], 0
    with client.consumer(topic, start="earliest", **options) as consumer:
        ends = sum(consumer.end_offsets().values())
        for batch in consumer.batches(timeout=40):
            found.append(batch)
            got += len(batch)
            if got >= ends:
                break
    return found


def test_arrays_and_arrow_data_come_out_as_they_went_in(broker: Broker) -> None:
    rows = np.random.default_rng(7).integers(0, 256, (30_000, 40), np.uint8)
    values = [bytes(row) for row in rows]
    texts = pa.chunked_array([["a", None, "ccc"], [], ["é" * 5000] * 20])
    with broker.client() as client, client.producer() as producer:
        for topic in ("array", "arrow", "list", "texts"):
            client.create_topic(topic, partitions=1)
        sent = {
            "array": producer.send_many("array", rows),
            "arrow": producer.send_many("arrow", pa.array(values)),
            "list": producer.send_many("list", values),
            "texts": producer.send_many("texts", texts),
        }
        for receipt in sent.values():
            assert receipt.result(40).base_offsets == {0: 0}
        for topic in ("array", "arrow", "list"):
            found = batches(client, topic)
            assert [value for batch in found for value in batch.values()] == values
            made = np.concatenate([batch.array(np.uint8) for batch in found])
            assert np.array_equal(made, rows)
            table = pa.Table.from_batches([pa.record_batch(batch.arrow()) for batch in found])
            table.validate(full=True)
            assert table["value"].to_pylist() == values
            assert table["offset"].to_pylist() == list(range(30_000))
            assert table["key"].null_count == 30_000
        (value,) = (pa.record_batch(b.arrow())["value"] for b in batches(client, "texts"))
        assert value.cast(pa.string()).to_pylist() == texts.to_pylist()


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_keys_and_times_out_of_arrow_are_sends_own(broker: Broker, compression: Any) -> None:
    count, base = 2000, 1_700_000_000_000
    keys = [b"key %d" % (i % 40) for i in range(count)]
    table = pa.table(
        {
            "key": keys,
            "value": [None if i % 7 == 0 else b"%d" % i for i in range(count)],
            "at": pa.array([(base + i) * 1000 for i in range(count)], pa.timestamp("us", "UTC")),
        }
    )
    with broker.client() as client, client.producer(compression=compression) as producer:
        client.create_topic("keyed", partitions=4)
        receipt = producer.send_many(
            "keyed", table["value"], keys=table["key"], timestamps=table["at"]
        )
        where = [partition_for_key(key, 4) for key in keys]
        assert receipt.result(40).counts == {p: where.count(p) for p in set(where)}
        assert producer.send("keyed", b"x", key=keys[5]).result(40).partition == where[5]
        seen: dict[int, list[tuple[Any, ...]]] = {p: [] for p in range(4)}
        for batch in batches(client, "keyed"):
            made = pa.record_batch(batch.arrow())
            made.validate(full=True)
            stamps = made["timestamp"].cast(pa.int64()).to_pylist()
            rows = zip(stamps, made["key"].to_pylist(), made["value"].to_pylist(), strict=True)
            seen[batch.partition] += rows
            assert list(batch.timestamps()) == stamps
    seen[where[5]].pop()
    expected = list(zip(range(base, base + count), keys, table["value"].to_pylist(), strict=True))
    for p in range(4):
        assert seen[p] == [row for row, chosen in zip(expected, where, strict=True) if chosen == p]


def test_values_and_timestamps_of_every_kind(broker: Broker) -> None:
    when = datetime(2024, 5, 1, 12, tzinfo=UTC)
    ms = int(when.timestamp() * 1000)
    with broker.client() as client, client.producer() as producer:
        client.create_topic("kinds", partitions=1)
        for value in (b"ab", bytearray(b"ab"), memoryview(b"ab"), np.frombuffer(b"ab", "u1")):
            producer.send("kinds", value, key=value, timestamp=when)
        producer.send("kinds", None, timestamp=ms)
        producer.send_many("kinds", [b"ab", None], timestamps=[when, ms])
        producer.flush()
        with pytest.raises(TypeError, match="encode"):
            producer.send("kinds", "text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="encode"):
            producer.send_many("kinds", ["text"])  # type: ignore[list-item]
        found = [record for batch in batches(client, "kinds") for record in batch.records()]
    assert [r.value for r in found] == [b"ab"] * 4 + [None, b"ab", None]
    assert {r.timestamp for r in found} == {ms}


def test_serializers_and_deserializers_meet(broker: Broker) -> None:
    def dumps(value: Any) -> bytes:
        return json.dumps(value).encode()

    with (
        broker.client() as client,
        client.producer(
            key_serializer=str.encode,
            value_serializer=dumps,
            partitioner=lambda topic, key, partitions: len(key or b"") % partitions,
        ) as producer,
    ):
        client.create_topic("json", partitions=3)
        producer.send("json", {"n": 1}, key="a").result(40)
        producer.send_many("json", [{"n": 2}, None], keys=["bb", "bb"]).result(40)
        with client.producer() as plain:
            plain.send("json", b"no json", partition=2).result(40)
        producer.send("json", {"n": 3}, key="bb").result(40)
        with client.consumer(
            "json", start="earliest", key_deserializer=bytes.decode, value_deserializer=json.loads
        ) as consumer:
            found, failed = [], []
            while len(found) + len(failed) < 5:
                try:
                    record = consumer.poll(40)
                except SerializationError as error:
                    failed.append((error.topic, error.partition, error.offset, error.record.value))
                else:
                    assert record is not None
                    found.append((record.partition, record.offset, record.key, record.value))
    assert failed == [("json", 2, 2, b"no json")]
    assert sorted(found, key=lambda r: r[:2]) == [
        (1, 0, "a", {"n": 1}),
        (2, 0, "bb", {"n": 2}),
        (2, 1, "bb", None),
        (2, 3, "bb", {"n": 3}),
    ]
