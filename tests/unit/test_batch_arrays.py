"""A consumer's batch as Arrow data and as arrays: equal to its lists, in memory of their own."""

from __future__ import annotations

import array
import gc
import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbroker._core.batch import encode_batch, encode_values
from shmbroker._core.reader import ArrowBatch, RecordBatch, split
from shmbroker.errors import CorruptBatch

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
maybe = st.none() | st.binary(max_size=300)
rows = st.lists(st.tuples(st.integers(0, 1 << 41), maybe, maybe), min_size=1, max_size=80)


def whole(raw: bytes, position: int = 0) -> RecordBatch:
    batch = split(raw, "t", 3, position)
    assert batch is not None
    return batch


def of_values(*values: bytes | None, base_offset: int = 0) -> RecordBatch:
    return whole(encode_values(list(values), 1000, base_offset=base_offset))


@given(st.lists(rows, min_size=1, max_size=4), st.data())
def test_arrow_data_says_what_the_records_say(kafka: list[Any], data: st.DataObject) -> None:
    codec, large = data.draw(st.sampled_from(CODECS)), data.draw(st.booleans())
    position = data.draw(st.integers(0, len(kafka[0]) - 1))
    raw, offset = b"", 0
    for part in kafka:
        records = [(when, key, value, [("h", b"x")]) for when, key, value in part]
        raw += encode_batch(records, base_offset=offset, compression=codec)
        offset += len(part)
    batch = whole(raw, position)
    records = batch.records()
    made = pa.record_batch(batch.arrow(large=large))
    made.validate(full=True)
    kind = pa.large_binary() if large else pa.binary()
    assert made.schema == pa.schema(
        [
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("timestamp", pa.timestamp("ms", "UTC"), nullable=False),
            pa.field("key", kind),
            pa.field("value", kind),
        ]
    )
    assert made["offset"].to_pylist() == [r.offset for r in records] == batch.offsets().tolist()
    stamps = [r.timestamp for r in records]
    assert made["timestamp"].cast(pa.int64()).to_pylist() == stamps == batch.timestamps().tolist()
    assert made["key"].to_pylist() == [r.key for r in records]
    assert made["value"].to_pylist() == [r.value for r in records]
    assert made["value"].null_count == sum(r.value is None for r in records)


def test_log_append_time_and_gaps_of_a_compacted_log_are_seen() -> None:
    records = [(1000 + i, b"k", b"v%d" % i, []) for i in range(3)]
    stamped = encode_batch(records, base_offset=5, log_append_time=True)
    batch = whole(stamped + encode_batch(records, base_offset=20))
    assert batch.offsets().tolist() == [5, 6, 7, 20, 21, 22]
    assert batch.timestamps().tolist() == [1002] * 3 + [1000, 1001, 1002]


def test_control_batches_are_left_out() -> None:
    records = [(1000, b"k", b"v", [])]
    raw = b"".join(
        encode_batch(
            records,
            base_offset=n,
            control=n == 1,
            producer_id=1,
            producer_epoch=0,
            base_sequence=n,
            transactional=True,
        )
        for n in range(3)
    )
    assert whole(raw).offsets().tolist() == [0, 2]
    assert pa.record_batch(whole(raw).arrow()).num_rows == 2


def test_what_arrow_data_was_made_of_may_go_before_it() -> None:
    batch = of_values(*(b"%050d" % i for i in range(5000)))
    expected = batch.values()
    made = batch.arrow()
    assert isinstance(made, ArrowBatch)
    assert len(made) == 5000
    assert "5000 records" in repr(made)
    first, second = pa.record_batch(made), pa.array(made)
    del batch, made
    gc.collect()
    value = second.field("value")
    del second
    gc.collect()
    assert first["value"].to_pylist() == value.to_pylist() == expected


def test_capsules_that_nobody_takes_are_released() -> None:
    made = of_values(*(bytes(1000) for _ in range(1000))).arrow()
    before = _resident_bytes()
    for _ in range(100):
        made.__arrow_c_array__()
        of_values(*(bytes(1000) for _ in range(1000))).arrow().__arrow_c_array__()
        pa.DataType._import_from_c_capsule(made.__arrow_c_schema__())
    assert _resident_bytes() - before < 50 << 20  # each is a megabyte


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_an_arrow_batch_goes_back_in_as_it_came_out() -> None:
    from shmbroker._core.columns import take, take_times

    batch = of_values(b"a", None, b"", b"ccc")
    made = pa.record_batch(batch.arrow())
    column, stamps = take(made["value"]), take_times(made["timestamp"])
    assert column is not None
    assert column.tolist() == batch.values()
    assert stamps is not None
    assert len(stamps) == 4


# ---- Arrays of values ----


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("u1", (50, 24)),
        ("<f8", (50, 3)),
        ("V24", (50,)),
        ("S24", (50,)),
        ("S", (50,)),
        ("V", (50,)),
        ([("a", "<i8"), ("b", "S16")], (50,)),
        ([("a", "<i4")], (50, 6)),
    ],
)
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_values_of_one_length_become_an_array(dtype: Any, shape: Any, codec: str) -> None:
    values = [b"%024d" % i for i in range(50)]
    batch = whole(encode_values(values, 0, compression=codec))
    made = batch.array(dtype)
    assert made.shape == shape
    assert made.dtype == np.dtype("S24" if dtype == "S" else "V24" if dtype == "V" else dtype)
    assert made.tobytes() == b"".join(values)
    made.view(np.uint8)[:1] = 0  # its own memory
    assert batch.values() == values


def test_numbers_become_a_1d_array() -> None:
    batch = of_values(*(i.to_bytes(8, "little") for i in range(100)))
    assert batch.array(np.int64).tolist() == list(range(100))
    assert batch.array("<i4").shape == (100, 2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((b"aa", b"bb", b"ccc"), "value at offset 9 of t-3 has 3 bytes, the values before have 2"),
        ((b"aa", None), r"offset 8 of t-3 has none \(a tombstone\)"),
        ((None, b"aa"), r"offset 7 of t-3 has none \(a tombstone\), an array needs bytes"),
        ((b"aaa", b"bbb"), "from offset 7 on have 3 bytes, which dtype uint16 of 2 bytes"),
        ((b"", b""), "have 0 bytes"),
    ],
)
def test_values_that_are_no_array_are_named_by_offset(values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        of_values(*values, base_offset=7).array("u2")


def test_a_dtype_of_objects_is_refused() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        of_values(b"12345678").array(object)


def test_array_says_that_numpy_is_missing_and_nothing_else_needs_it() -> None:
    program = """
import sys
sys.modules["numpy"] = None
from shmbroker._core.batch import encode_values
from shmbroker._core.reader import split
batch = split(encode_values([b"a", b"b"], 0))
assert list(batch.offsets()) == [0, 1]
batch.arrow().__arrow_c_array__()
try:
    batch.array("u1")
except ImportError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pip install numpy" in done.stdout


def test_offsets_and_times_are_sequences_that_numpy_takes_without_a_copy() -> None:
    batch = of_values(b"a", b"b", b"c", base_offset=40)
    found = batch.offsets()
    assert isinstance(found, array.array)
    assert list(found) == [40, 41, 42]
    taken = np.asarray(found)
    assert taken.dtype == np.int64
    found[0] = 7
    assert taken[0] == 7
    assert batch.offsets()[0] == 40


def test_records_that_contradict_their_header_are_told() -> None:
    raw = bytearray(encode_values([b"abc", b"def"], 0))
    raw[-3:] = b"\xff\xff\xff"
    from shmbroker._core.batch import crc32c

    raw[17:21] = crc32c(bytes(raw[21:])).to_bytes(4, "big")
    batch = whole(bytes(raw))
    for call in (batch.arrow, batch.offsets, batch.timestamps, lambda: batch.array("u1")):
        with pytest.raises(CorruptBatch, match="offset 0"):
            call()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 127, 128, 129])
def test_nulls_are_where_they_belong_at_every_length(count: int) -> None:
    for period, first in itertools.product((2, 3, 64), (0, 1)):
        values = [None if i % period == first else b"%d" % i for i in range(count)]
        keys = [None if i % period != first else b"%d" % i for i in range(count)]
        batch = whole(encode_batch((0, k, v, ()) for k, v in zip(keys, values, strict=True)))
        made = pa.record_batch(batch.arrow())
        made.validate(full=True)
        assert made["value"].to_pylist() == values
        assert made["key"].to_pylist() == keys
