"""Arrays and Arrow data as columns of records: what is taken, what is refused, by what words."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arrow_by_hand import BAD_ELEMENTS, HandMade, HandMadeStream, offsets
from hypothesis import given
from hypothesis import strategies as st

from shmbroker._core.columns import Column, take, take_times

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


@pytest.mark.parametrize("dtype", ["S3", "S1", "V7", [("w", "<i4"), ("O", "S3")]])
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
        (np.array(["a", "b"]), r"text: encode it, for example with numpy.char.encode\(values\)"),
        (np.array([["a", "b"]]), "text: encode it"),
        (np.zeros(2, [("w", "U3")]), "text: encode it"),
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


@pytest.mark.parametrize("name", BAD_ELEMENTS)
def test_an_element_that_can_not_be_is_never_followed(name: str) -> None:
    made = HandMade(*BAD_ELEMENTS[name])
    column = take(made)
    assert column is not None
    with pytest.raises(ValueError, match="contradict"):
        column.tolist()
    del column
    assert made.released == made.made == 2


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


def test_a_column_is_made_by_take_only() -> None:
    with pytest.raises(TypeError, match="take"):
        Column()
