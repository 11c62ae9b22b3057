"""Arrays and Arrow data as columns of records: what is taken, what is refused, by what words."""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arrow_by_hand import HandMade, HandMadeStream
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from producer_fake import Broker, FakeClient

from shmbroker._core.batch import Record, RecordBatch, partition_for_key
from shmbroker._core.columns import Column, take, take_times
from shmbroker.client.producer import Producer
from shmbroker.errors import RecordTooLarge, UnknownTopic

TYPES = [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.string(),
    pa.large_string(),
    pa.string_view(),
]
texts = st.lists(st.none() | st.text(max_size=20), max_size=30)


def listed(what: Any) -> list[bytes | None]:
    column = take(what)
    assert column is not None
    found = column.tolist()
    assert len(column) == column.count == len(found)
    return found


def encoded(values: list[str | None]) -> list[bytes | None]:
    return [None if value is None else value.encode() for value in values]


def offsets(*values: int, code: str = "i") -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


# ---- What is taken ----


@given(texts, st.sampled_from(TYPES), st.integers(0, 40), st.integers(0, 40))
def test_arrow_arrays_of_every_kind_sliced_anywhere_give_their_values(
    values: list[str | None], kind: Any, first: int, count: int
) -> None:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
    made = pa.array(values if text else encoded(values), kind)
    assert listed(made) == encoded(values)
    assert listed(made.slice(first, count)) == encoded(values[first : first + count])


@given(st.lists(texts, max_size=5), st.sampled_from(TYPES[:3]), st.integers(0, 60))
def test_chunked_arrays_give_the_values_of_all_chunks(
    chunks: list[list[str | None]], kind: Any, first: int
) -> None:
    made = pa.chunked_array([pa.array(encoded(chunk), kind) for chunk in chunks], kind)
    values = [value for chunk in chunks for value in encoded(chunk)]
    assert listed(made) == values
    assert listed(made.slice(first)) == values[first:]


@given(st.lists(st.none() | st.binary(min_size=5, max_size=5), max_size=20), st.integers(0, 25))
def test_fixed_size_binary_is_taken(values: list[bytes | None], first: int) -> None:
    assert listed(pa.array(values, pa.binary(5)).slice(first)) == values[first:]


@pytest.mark.parametrize("dtype", ["u1", "<f8", ">i4", "S3", "V7", [("a", "<i4"), ("b", "S3")]])
def test_a_row_of_a_2d_array_is_a_value(dtype: Any) -> None:
    width = np.dtype(dtype).itemsize
    raw = bytes(i % 251 for i in range(6 * 3 * width))
    made = np.frombuffer(raw, dtype).reshape(6, 3)
    assert listed(made) == [raw[i : i + 3 * width] for i in range(0, len(raw), 3 * width)]


@pytest.mark.parametrize("dtype", ["S3", "S1", "V7", [("a", "<i4"), ("O", "S3")]])
def test_an_item_of_a_1d_array_of_records_is_a_value(dtype: Any) -> None:
    width = np.dtype(dtype).itemsize
    raw = bytes(i % 251 for i in range(6 * width))
    assert listed(np.frombuffer(raw, dtype)) == [
        raw[i : i + width] for i in range(0, 6 * width, width)
    ]


def test_arrays_need_no_numpy() -> None:
    assert listed(memoryview(b"abcdef").cast("B", [3, 2])) == [b"ab", b"cd", b"ef"]


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (4, 0)])
def test_empty_arrays_are_so_many_empty_values(shape: tuple[int, int]) -> None:
    assert listed(np.zeros(shape, np.uint8)) == [b""] * shape[0]


@pytest.mark.parametrize("what", [[b"a"], (b"a",), iter([b"a"]), np.array([b"a", None], object)])
def test_sequences_of_objects_are_left_to_the_loop_over_lists(what: Any) -> None:
    assert take(what) is None


# ---- What is refused ----


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            np.zeros((4, 4), np.uint8)[:, ::2],
            r"values is a 2-D ndarray .*not C-contiguous.*ascontig",
        ),
        (np.zeros((4, 4), np.uint8).T[1:], "not C-contiguous"),
        (np.zeros((4, 4), np.uint8)[::2], "not C-contiguous"),
        (np.zeros(4, np.uint8), r"values is a 1-D ndarray .*reshape\(-1"),
        (np.zeros(4, np.int64), "1-D"),
        (np.zeros((2, 2, 2), np.uint8), r"3-D.*reshape\(len\(values\), -1\)"),
        (np.zeros((), np.uint8), "0-D"),
        (np.zeros((2, 2), object), "Python objects"),
        (np.zeros(2, [("a", object)]), "Python objects"),
        (memoryview(b"abc"), "1-D"),
        (array.array("q", [1]), "1-D"),
        (pa.array([1, 2]), "format 'l', expected binary"),
        (pa.array([[b"a"]]), "format"),
        (pa.nulls(3), "format 'n'"),
        (pa.array(["a"]).dictionary_encode(), "dictionary_decode"),
        (pa.table({"a": [b"x"]}), "one column"),
        (pa.record_batch({"a": [b"x"]}), "one column"),
        (pa.chunked_array([[1]]), "format 'l'"),
    ],
)
def test_what_is_no_column_of_byte_strings_is_refused_by_name(what: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        take(what)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (np.zeros(4, np.int32), "64-bit integers"),
        (np.zeros((4, 1), np.int64), "2-D"),
        (np.zeros(4, np.float64), "64-bit integers"),
        (np.zeros(4, ">i8"), "64-bit integers"),
        (np.zeros(8, np.int64)[::2], "not C-contiguous"),
        (pa.array([1], pa.int32()), "format 'i', expected int64"),
        (pa.array([b"x"]), "expected int64"),
    ],
)
def test_what_is_no_column_of_times_is_refused_by_name(what: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"timestamps is .*{words}"):
        take_times(what)


def times(what: Any) -> list[int | None]:
    column = take_times(what)
    assert column is not None
    return [
        None if raw is None else int.from_bytes(raw, "little", signed=True)
        for raw in column.tolist()
    ]


def test_times_of_every_unit_become_milliseconds() -> None:
    whole = 1_700_000_000_000
    assert times(array.array("q", [0, whole])) == [0, whole]
    assert times(np.array([whole], np.int64)) == [whole]
    assert times(np.array([], np.int64)) == []
    assert times(pa.array([whole, None])) == [whole, None]
    for unit, ticks in (("s", 1), ("ms", 1000), ("us", 10**6), ("ns", 10**9)):
        for zone in (None, "UTC", "Europe/Berlin"):
            made = pa.array([7, whole * ticks // 1000, None], pa.timestamp(unit, zone))
            assert times(made.slice(1)) == [whole, None]
    assert times(pa.array([-1, 1 << 62], pa.timestamp("s"))) == [-1, -1]  # which no record may bear


# ---- Arrow data that contradicts itself ----

BAD_ARRAYS = {
    "a negative length": (b"z", [None, offsets(0, 1), b"a"], -1, {}),
    "a huge length": (b"z", [None, offsets(0, 1), b"a"], 1 << 62, {}),
    "a negative offset": (b"z", [None, offsets(0, 1), b"a"], 1, {"offset": -1}),
    "a huge offset": (b"z", [None, offsets(0, 1), b"a"], 1, {"offset": (1 << 63) - 1}),
    "no buffers": (b"z", [], 1, {}),
    "no buffers at all": (b"z", [None, offsets(0, 1), b"a"], 1, {"no_buffers": 1}),
    "too few buffers": (b"z", [None, offsets(0, 1)], 1, {}),
    "too many buffers": (b"z", [None, offsets(0, 1), b"a", b"b"], 1, {}),
    "too few buffers of fixed size": (b"w:1", [None], 1, {}),
    "no offsets": (b"z", [None, None, b"a"], 1, {}),
    "no data": (b"z", [None, offsets(0, 1), None], 1, {}),
    "no data of fixed size": (b"w:4", [None, None], 1, {}),
    "no bitmap for its nulls": (b"z", [None, offsets(0, 1), b"a"], 1, {"null_count": 1}),
    "more nulls than elements": (b"z", [b"\0", offsets(0, 1), b"a"], 1, {"null_count": 2}),
    "an impossible count of nulls": (b"z", [b"\0", offsets(0, 1), b"a"], 1, {"null_count": -2}),
    "a negative first offset": (b"z", [None, offsets(-1, 1), b"a"], 1, {}),
    "ends before it begins": (b"z", [None, offsets(1, 0), b"a"], 1, {}),
    "a negative large offset": (b"Z", [None, offsets(-9, 1, code="q"), b"a"], 1, {}),
    "a huge large offset": (b"Z", [None, offsets(0, (1 << 63) - 1, code="q"), b"a"], 1, {}),
    "children": (b"z", [None, offsets(0, 1), b"a"], 1, {"n_children": 1}),
    "no sizes of its view's buffers": (b"vz", [None, bytes(16), b"abc", None], 1, {}),
    "no format": (None, [None, offsets(0, 1), b"a"], 1, {}),
    "more bytes than there is memory": (b"w:999999999", [None, b"a"], 1 << 40, {}),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_an_arrow_array_that_can_not_be_is_refused_and_released(name: str) -> None:
    form, buffers, length, more = BAD_ARRAYS[name]
    made = HandMade(form, buffers, length, **more)
    with pytest.raises(ValueError, match="values"):
        take(made)
    assert made.released == made.made == 2


BAD_ELEMENTS = {
    "offsets that fall": (b"z", [None, offsets(0, 4, 2, 5), b"abcde"], 3),
    "an offset before the first": (b"z", [None, offsets(2, 1, 3), b"abc"], 2),
    "an offset behind the last": (b"z", [None, offsets(0, 1 << 30, 3), b"abc"], 2),
    "large offsets that fall": (b"Z", [None, offsets(0, 1 << 40, 2, code="q"), b"abc"], 2),
    "a negative view": (b"vz", [None, struct.pack("<i12x", -1), b"abc", offsets(3, code="q")], 1),
    "a view of no buffer": (
        b"vz",
        [None, struct.pack("<i4xii", 13, 1, 0), b"a" * 13, offsets(13, code="q")],
        1,
    ),
    "a view behind its buffer": (
        b"vz",
        [None, struct.pack("<i4xii", 13, 0, 1), b"a" * 13, offsets(13, code="q")],
        1,
    ),
    "a view before its buffer": (
        b"vz",
        [None, struct.pack("<i4xii", 13, 0, -1), b"a" * 13, offsets(13, code="q")],
        1,
    ),
    "a view of the buffer that is missing": (
        b"vz",
        [None, struct.pack("<i4xii", 13, 0, 0), None, offsets(13, code="q")],
        1,
    ),
}


@pytest.mark.parametrize("name", BAD_ELEMENTS)
def test_an_element_that_can_not_be_is_never_followed(name: str, broker: Broker) -> None:
    made = HandMade(*BAD_ELEMENTS[name])
    column = take(made)
    assert column is not None
    with pytest.raises(ValueError, match="contradict"):
        column.tolist()
    with Producer(FakeClient(broker)) as producer:
        with pytest.raises(ValueError, match=r"record \d: .*value's offsets .*records were sent"):
            producer.send_many("one", made)
        with pytest.raises(ValueError, match="key's offsets"):
            producer.send_many("one", [b"v"] * len(column), made)
    del column
    assert made.released == made.made == 6


def test_offsets_that_change_after_they_were_taken_are_not_followed() -> None:
    made = HandMade(b"z", [None, offsets(0, 1, 3), b"abc"], 2)
    column = take(made)
    assert column is not None
    assert column.tolist() == [b"a", b"bc"]
    where = made.buffers[1]
    assert where is not None
    where[4:8] = offsets(1 << 30)
    with pytest.raises(ValueError, match="element 0"):
        column.tolist()
    where[4:8] = offsets(2)
    assert column.tolist() == [b"ab", b"c"]


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
        producer.send_many("one", made).result(5)
        assert made.released == made.made == 2
        with pytest.raises(UnknownTopic):
            producer.send_many("nowhere", made)
    assert made.released == made.made == 4
    assert [r.value for r in sent(broker)] == [b"a", b"bc"]


def test_a_stream_is_read_to_its_end_and_all_of_it_is_released() -> None:
    made = HandMade(b"z", [None, offsets(0, 1, 3), b"abc"], 2)
    stream = HandMadeStream(made, 3)
    assert listed(stream) == [b"a", b"bc"] * 3
    assert made.released == made.made == 4
    assert stream.released == 1
    with pytest.raises(ValueError, match="released already"):
        take(stream)


def test_a_stream_that_fails_says_why_and_is_released() -> None:
    for says, words in ((b"the disk is gone", "the disk is gone"), (None, "error 5")):
        made = HandMade(b"z", [None, offsets(0, 1, 3), b"abc"], 2)
        stream = HandMadeStream(made, 2, error=5, says=says)
        with pytest.raises(ValueError, match=f"stream of values failed: {words}"):
            take(stream)
        assert made.released == made.made == 3
        assert stream.released == 1


def test_a_stream_of_bad_arrays_is_released() -> None:
    made = HandMade(b"z", [None, offsets(1, 0), b"abc"], 1)
    stream = HandMadeStream(made, 2)
    with pytest.raises(ValueError, match="offsets go from 1 to 0"):
        take(stream)
    assert made.released == made.made == 2
    assert stream.released == 1


class _Wrong:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __arrow_c_array__(self, requested_schema: object = None) -> Any:
        return self.answer


def test_what_is_no_capsule_is_refused() -> None:
    schema, _ = HandMade(b"z", [], 0).__arrow_c_array__()
    for answer in (None, (schema,), (schema, schema), (1, 2)):
        with pytest.raises((TypeError, ValueError)):
            take(_Wrong(answer))


# ---- Into records ----


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
            assert receipt.result(10).records == count
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
            ).result(5)
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
        counts = producer.send_many("many", rows, pa.array(keys)).result(5).counts
        expected = [partition_for_key(key, 16) for key in keys]
        assert counts == {p: expected.count(p) for p in set(expected)}
        assert producer.send_many("many", rows, pa.array(keys), partition=3).result(5).counts == {
            3: 5000
        }
        assert set(producer.send_many("many", rows, partition=15).result(5).counts) == {15}
        with pytest.raises(UnknownTopic):
            producer.send_many("many", rows, partition=16)
        each = [i % 7 for i in range(5000)]
        spread = producer._send_many("many", rows, None, None, None, each).result(5).counts
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
            producer.send_many("one", rows, timestamps=way).result(5)
            producer.send_many("one", [b"a", b"b", b"c"], timestamps=way).result(5)
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
        producer.send_many("one", [bytearray(b"x"), memoryview(b"y")], keys).result(5)
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
            producer.send("one", value, key=value).result(5)
        producer.send_many("one", good).result(5)
        producer.send_many("one", good, good).result(5)
    assert [r.value for r in sent(broker)] == ([b"ab"] * 6 + [None]) * 3
    assert [r.key for r in sent(broker)][:7] == [b"ab"] * 6 + [None]


def test_a_column_is_made_by_take_only() -> None:
    with pytest.raises(TypeError, match="take"):
        Column()
