"""Arrays and Arrow data through send_many, over a fake writer: the records that come of them."""

from __future__ import annotations

import array
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arrow_by_hand import BAD_ELEMENTS, HandMade, offsets
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from producer_fake import Broker, FakeClient

from shmbroker._core.batch import Record, RecordBatch, partition_for_key
from shmbroker.client.producer import Producer
from shmbroker.errors import RecordTooLarge, UnknownTopic


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker({"one": (1, {}), "many": (16, {}), "small": (1, {"max.message.bytes": 1000})})
    yield made
    made.close()


def sent(broker: Broker) -> list[Record]:
    """What was appended, in order."""
    raw, found = broker.logged() if broker.fakes else b"", []
    while raw:
        size = int.from_bytes(raw[8:12], "big") + 12
        found += RecordBatch(raw[:size]).records()
        raw = raw[size:]
    return found


@pytest.mark.parametrize("count", [0, 1, 7, 15_000])
@pytest.mark.parametrize("size", [0, 1, 100])
def test_arrays_arrow_and_lists_send_the_same_records(
    broker: Broker, count: int, size: int
) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (count, size), np.uint8)
    values = [bytes(row) for row in rows]
    with Producer(FakeClient(broker)) as producer:
        for what in (
            rows,
            values,
            pa.array(values, pa.binary()),
            pa.array(values, pa.large_binary()),
        ):
            receipt = producer.send_many("one", what)
            assert receipt.count == len(receipt) == count
            assert receipt.result(40).records == count
    assert [r.value for r in sent(broker)] == values * 4
    assert all(r.key is None for r in sent(broker))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_columns_cut_into_chunks_anywhere_stay_in_step(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 40))
    values = [b"v%d" % i if i % 5 else None for i in range(count)]
    keys = [b"k%d" % (i % 3) if i % 4 else None for i in range(count)]
    stamps = list(range(1000, 1000 + count))

    def cut(items: list[Any], kind: Any) -> Any:
        way = data.draw(st.sampled_from(["list", "array", "chunks"]))
        if way == "list":
            return items
        if way == "array":
            return pa.array(items, kind)
        places = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
        parts = [items[a:b] for a, b in zip([0, *places], [*places, count], strict=True)]
        return pa.chunked_array([pa.array(part, kind) for part in parts], kind)

    with_keys, with_stamps = data.draw(st.booleans()), data.draw(st.booleans())
    broker = Broker({"one": (1, {})})
    try:
        with Producer(FakeClient(broker)) as producer:
            producer.send_many(
                "one",
                cut(values, pa.binary()),
                cut(keys, pa.large_binary()) if with_keys else None,
                timestamps=cut(stamps, pa.int64()) if with_stamps else None,
            ).result(40)
        found = sent(broker)
    finally:
        broker.close()
    assert [r.value for r in found] == values
    assert [r.key for r in found] == (keys if with_keys else [None] * count)
    if with_stamps:
        assert [r.timestamp for r in found] == stamps


def test_keys_choose_the_partition_as_send_does(broker: Broker) -> None:
    keys = [b"%d" % (i % 50) for i in range(5000)]
    rows = np.zeros((5000, 8), np.uint8)
    with Producer(FakeClient(broker)) as producer:
        counts = producer.send_many("many", rows, pa.array(keys)).result(40).counts
        expected = [partition_for_key(key, 16) for key in keys]
        assert counts == {p: expected.count(p) for p in set(expected)}
        assert producer.send_many("many", rows, pa.array(keys), partition=3).result(40).counts == {
            3: 5000
        }
        assert set(producer.send_many("many", rows, partition=15).result(40).counts) == {15}
        with pytest.raises(UnknownTopic):
            producer.send_many("many", rows, partition=16)
        each = [i % 7 for i in range(5000)]
        spread = producer._send_many("many", rows, None, None, None, each).result(40).counts
        assert spread == {p: each.count(p) for p in range(7)}
        with pytest.raises(UnknownTopic):
            producer._send_many("many", rows, None, None, None, [16] * 5000)


def test_keys_and_times_are_as_many_as_values(broker: Broker) -> None:
    rows = np.zeros((3, 8), np.uint8)
    with Producer(FakeClient(broker)) as producer:
        with pytest.raises(ValueError, match="2 keys for 3 values"):
            producer.send_many("one", rows, [b"a", b"b"])
        with pytest.raises(ValueError, match="4 timestamps for 3 values"):
            producer.send_many("one", rows, timestamps=np.zeros(4, np.int64))
        with pytest.raises(ValueError, match="4 keys for 1 values"):
            producer.send_many("one", [b""], np.zeros((4, 1), np.uint8))


def test_timestamps_come_as_numbers_datetimes_buffers_and_arrow(broker: Broker) -> None:
    when = datetime(2024, 1, 1, tzinfo=UTC)
    first = int(when.timestamp() * 1000)
    rows = np.zeros((3, 2), np.uint8)
    stamps = np.array([first, first + 1, first - 1], np.int64)
    ways = [
        [first, when, first - 1],
        tuple(stamps.tolist()),
        stamps,
        array.array("q", stamps.tolist()),
        pa.array(stamps),
        pa.array(stamps, pa.timestamp("ms", "UTC")),
        stamps.view("M8[ms]").astype("M8[ns]").view("i8").view("i8") // 1_000_000,
        pa.array(stamps * 1000, pa.timestamp("us")),
    ]
    with Producer(FakeClient(broker)) as producer:
        for way in ways:
            producer.send_many("one", rows, timestamps=way).result(40)
            producer.send_many("one", [b"a", b"b", b"c"], timestamps=way).result(40)
    expected = [stamps.tolist(), [first, first, first - 1]]
    found = [r.timestamp for r in sent(broker)]
    assert found == expected[1] * 2 + expected[0] * 2 * (len(ways) - 1)


@pytest.mark.parametrize(
    ("stamps", "words"),
    [
        ([1, 2, None], "record 2: timestamp is NoneType.*0 of 3"),
        ([1, -2, 3], "record 1: timestamp -2.*0 of 3"),
        (np.array([1, 2, -1], np.int64), "record 2: timestamp -1 is not in milliseconds.*2 of 3"),
        (pa.array([1, None, 3]), "record 1: its timestamp is null; 1 of 3"),
        (pa.array([1, 1 << 62, 3]), "record 1: timestamp .* is not in milliseconds"),
    ],
)
def test_a_timestamp_that_is_none_is_refused_by_its_record(
    broker: Broker, stamps: Any, words: str
) -> None:
    with (
        Producer(FakeClient(broker)) as producer,
        pytest.raises((TypeError, ValueError), match=words),
    ):
        producer.send_many("one", np.zeros((3, 1), np.uint8), timestamps=stamps)


def test_a_value_of_a_list_beside_a_column_is_named_when_it_is_wrong(broker: Broker) -> None:
    keys = pa.array(["a", "b"])
    with Producer(FakeClient(broker)) as producer:
        with pytest.raises(TypeError, match=r"value 1: .*not str: encode it.*0 of 2"):
            producer.send_many("one", [b"x", "y"], keys)
        with pytest.raises(TypeError, match="key 0: a key is int"):
            producer.send_many("one", np.zeros((2, 1), np.uint8), [1, b"x"])  # type: ignore[list-item]
        producer.send_many("one", [bytearray(b"x"), memoryview(b"y")], keys).result(40)
    assert [(r.key, r.value) for r in sent(broker)] == [(b"a", b"x"), (b"b", b"y")]


@pytest.mark.parametrize(
    "value",
    [np.zeros(8, np.uint8)[::2], memoryview(b"abcdef")[::2], "text", 5, 1.5, object(), [b"a"]],
    ids=lambda v: type(v).__name__,
)
def test_a_value_is_any_contiguous_buffer_and_nothing_else(broker: Broker, value: Any) -> None:
    says = "encode it" if isinstance(value, str) else "expected a contiguous buffer"
    with Producer(FakeClient(broker)) as producer:
        with pytest.raises(TypeError, match=says):
            producer.send("one", value)
        with pytest.raises(TypeError, match=says):
            producer.send("one", b"", key=value)
        with pytest.raises(TypeError, match=f"value 1: .*{says}.*; 1 of 2 values were sent"):
            producer.send_many("one", [b"good", value])
        with pytest.raises(TypeError, match=f"record 1: .*{says}.*; 1 of 2 records were sent"):
            producer.send_many("one", [b"good", b"good"], [b"key", value])
    assert [r.value for r in sent(broker)] == [b"good"] * 2


def test_buffers_of_every_kind_are_values_and_none_is_a_tombstone(broker: Broker) -> None:
    good = [
        bytearray(b"ab"),
        memoryview(b"ab"),
        array.array("B", b"ab"),
        np.frombuffer(b"ab", np.uint8),
        np.frombuffer(b"abab", np.uint8).reshape(2, 2)[1],
        pa.py_buffer(b"ab"),
        None,
    ]
    with Producer(FakeClient(broker)) as producer:
        for value in good:
            producer.send("one", value, key=value).result(40)
        producer.send_many("one", good).result(40)
        producer.send_many("one", good, good).result(40)
    assert [r.value for r in sent(broker)] == ([b"ab"] * 6 + [None]) * 3
    assert [r.key for r in sent(broker)][:7] == [b"ab"] * 6 + [None]


def test_a_value_that_claims_more_than_any_topic_allows_is_not_followed(broker: Broker) -> None:
    huge = HandMade(b"z", [None, offsets(0, 1, (1 << 31) - 1), b"abc"], 2)
    large = HandMade(b"Z", [None, offsets(0, 1, 1 << 40, code="q"), b"abc"], 2)
    with Producer(FakeClient(broker)) as producer:
        for made in (huge, large):
            with pytest.raises(RecordTooLarge, match="1 of 2 records were sent"):
                producer.send_many("one", made)
            with pytest.raises(RecordTooLarge, match="1 of 2 records were sent"):
                producer.send_many("one", [b""] * 2, made)
            assert made.released == made.made == 4
        small = HandMade(b"z", [None, offsets(0, 1 << 20), b"abc"], 1)
        with pytest.raises(RecordTooLarge, match="small"):
            producer.send_many("small", small)
    assert [r.value for r in sent(broker)] == [b"a", b"", b"a", b""]


def test_an_array_is_released_when_the_call_is_over(broker: Broker) -> None:
    made = HandMade(b"z", [b"\xfe", offsets(7, 0, 1, 3), b"abc"], 2, offset=1, null_count=-1)
    with Producer(FakeClient(broker)) as producer:
        producer.send_many("one", made).result(40)
        assert made.released == made.made == 2
        with pytest.raises(UnknownTopic):
            producer.send_many("nowhere", made)
    assert made.released == made.made == 4
    assert [r.value for r in sent(broker)] == [b"a", b"bc"]


@pytest.mark.parametrize("name", BAD_ELEMENTS)
def test_an_element_that_can_not_be_ends_the_call(name: str, broker: Broker) -> None:
    made = HandMade(*BAD_ELEMENTS[name])
    count = BAD_ELEMENTS[name][2]
    with Producer(FakeClient(broker)) as producer:
        with pytest.raises(ValueError, match=r"record \d: .*value's offsets .*records were sent"):
            producer.send_many("one", made)
        with pytest.raises(ValueError, match="key's offsets"):
            producer.send_many("one", [b"v"] * count, made)
    assert made.released == made.made == 4
