"""The record batch: round trips, damage, and agreement with the codecs of two Kafka clients."""

from __future__ import annotations

import contextlib
import gc
import pickle
import struct
import sys
import threading
import warnings
from typing import Any

import aiokafka.record.default_records as aiokafka_records
import cramjam
import pytest
from aiokafka.record.memory_records import MemoryRecords as AiokafkaMemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbroker._core import compression
from shmbroker._core.batch import (
    CorruptBatch,
    Record,
    RecordBatch,
    batch_headers,
    crc32c,
    decode_records,
    decode_values,
    encode_batch,
    encode_values,
    find_batch,
    next_batch,
    split_batches,
    validate,
)
from shmbroker._core.compression import CODECS, Compression

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka.codec
    import kafka.record.default_records as kafka_records
    from kafka.record.memory_records import MemoryRecords as KafkaMemoryRecords

Row = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]

HEADER_BYTES, CRC_AT, ATTRIBUTES_AT, COUNT_AT = 61, 17, 21, 57

maybe_bytes = st.none() | st.binary(max_size=300)
headers = st.lists(st.tuples(st.text(max_size=10), st.none() | st.binary(max_size=20)), max_size=3)
rows = st.lists(
    st.tuples(st.integers(-1, 2**42), maybe_bytes, maybe_bytes, headers), min_size=1, max_size=30
)
any_timestamps = st.integers(-(2**63), 2**63 - 1)
codecs = st.sampled_from(CODECS)

SAMPLE: list[Row] = [
    (1_700_000_000_000, None, b"first", []),
    (1_700_000_000_005, b"key", None, [("trace", b"1"), ("none", None), ("", b"")]),
    (1_699_999_999_999, b"", b"", [("ä", b"\xff")]),
    (1_700_000_000_001, b"k" * 70, b"v" * 9000, []),
]


def unpacked(records: list[Record]) -> list[Row]:
    return [(r.timestamp, r.key, r.value, r.headers) for r in records]


def resealed(batch: bytes | bytearray) -> bytes:
    """The batch with its CRC made right again, as a faulty client would send it."""
    out = bytearray(batch)
    struct.pack_into(">I", out, CRC_AT, crc32c(out[ATTRIBUTES_AT:]))
    return bytes(out)


# ---- Round trips ----


@given(rows, codecs, st.integers(0, 2**62))
def test_what_is_encoded_is_decoded_again(rows: list[Row], codec: Compression, base: int) -> None:
    batch = encode_batch(rows, base_offset=base, compression=codec)
    records = decode_records(batch, "t", 3)
    assert unpacked(records) == rows
    assert [r.offset for r in records] == list(range(base, base + len(rows)))
    assert {(r.topic, r.partition) for r in records} == {("t", 3)}
    assert decode_values(batch) == [row[2] for row in rows]
    validate(batch)


@given(st.lists(any_timestamps, min_size=1, max_size=5))
def test_absurd_timestamps_survive(timestamps: list[int]) -> None:
    batch = encode_batch([(t, None, b"", []) for t in timestamps])
    assert RecordBatch(batch).timestamps() == timestamps
    assert RecordBatch(batch).max_timestamp == max(timestamps)


@given(st.lists(maybe_bytes, min_size=1, max_size=200), codecs)
def test_values_alone_encode_to_the_same_batch(
    values: list[bytes | None], codec: Compression
) -> None:
    slow = encode_batch([(7, None, value, ()) for value in values], compression=codec)
    assert encode_values(values, 7, compression=codec) == slow


@pytest.mark.parametrize("count", [1, 63, 64, 65, 5000, 20_000])
def test_batches_of_many_records_keep_their_order(count: int) -> None:
    values = [b"%d" % i for i in range(count)]
    assert decode_values(encode_values(values, 0)) == values


def test_a_large_value_passes() -> None:
    value = bytes(range(256)) * 40_000
    for codec in CODECS:
        assert decode_values(encode_values([value, b"x"], 0, compression=codec)) == [value, b"x"]


def test_any_contiguous_buffer_is_taken() -> None:
    batch = encode_batch([(0, bytearray(b"k"), memoryview(b"v"), [("h", bytearray(b"1"))])])
    for buffer in (batch, bytearray(batch), memoryview(batch)):
        assert decode_values(buffer) == [b"v"]
        assert RecordBatch(buffer).keys() == [b"k"]
        assert len(list(batch_headers(buffer))) == 1
    with pytest.raises(BufferError):
        decode_values(memoryview(batch)[::2])


def test_a_record_batch_outlives_the_buffer_it_was_made_of() -> None:
    source = bytearray(encode_batch(SAMPLE))
    batch = RecordBatch(source)
    source[:] = bytes(len(source))
    assert unpacked(batch.records()) == SAMPLE


def test_what_is_no_record_is_refused() -> None:
    bad: Any
    for bad in ([], [(0, "key", None, [])], [(0, None, 5, [])], [(0, None, None, [(b"k", b"")])]):
        with pytest.raises((TypeError, ValueError)):
            encode_batch(bad)
    with pytest.raises(ValueError, match="at least one record"):
        encode_values([], 0)
    with pytest.raises(TypeError, match="value 1 is int, expected bytes or None"):
        encode_values([b"", 5, b""], 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none, gzip, snappy, lz4, zstd, not 'brotli'"):
        encode_batch(SAMPLE, compression="brotli")  # type: ignore[arg-type]


# ---- Headers and several batches ----


def test_a_header_tells_all_its_fields() -> None:
    batch = encode_batch(
        SAMPLE,
        base_offset=1000,
        leader_epoch=4,
        producer_id=2**40,
        producer_epoch=3,
        base_sequence=17,
        compression="zstd",
        transactional=True,
    )
    info = next_batch(b"xyz" + batch, 3)
    assert info is not None
    assert (info.position, info.size) == (3, len(batch))
    assert (info.base_offset, info.last_offset) == (1000, 1003)
    assert (info.leader_epoch, info.compression, info.transactional) == (4, "zstd", True)
    assert (info.producer_id, info.producer_epoch, info.base_sequence) == (2**40, 3, 17)
    assert (info.base_timestamp, info.max_timestamp) == (SAMPLE[0][0], SAMPLE[1][0])
    assert (info.count, info.control, info.log_append_time) == (4, False, False)
    assert next_batch(b"xyz" + batch, 3 + len(batch)) is None
    with pytest.raises(ValueError, match="outside"):
        next_batch(batch, len(batch) + 1)


def test_batches_in_a_row_are_walked_and_decoded_as_one() -> None:
    parts = [
        encode_batch(SAMPLE, base_offset=4 * i, compression=codec) for i, codec in enumerate(CODECS)
    ]
    buffer = b"".join(parts)
    assert [i.base_offset for i in batch_headers(buffer)] == [0, 4, 8, 12, 16]
    assert decode_values(buffer) == [row[2] for row in SAMPLE] * 5
    assert [r.offset for r in decode_records(buffer)] == list(range(20))
    assert [batch.raw for batch in split_batches(buffer, "t", 1)] == parts
    assert decode_values(b"") == []


@given(st.integers(-3, 25))
def test_records_below_the_start_offset_are_dropped(start: int) -> None:
    buffer = b"".join(
        encode_batch(SAMPLE, base_offset=4 * i, compression=codec) for i, codec in enumerate(CODECS)
    )
    expected = [offset for offset in range(20) if offset >= start]
    assert [r.offset for r in decode_records(buffer, start_offset=start)] == expected
    assert decode_values(buffer, start) == [SAMPLE[offset % 4][2] for offset in expected]
    batches = split_batches(buffer, start_offset=start)
    assert sum(len(batch) for batch in batches) == len(expected)
    assert [r.offset for batch in batches for r in batch] == expected


def test_control_batches_are_left_out() -> None:
    control = encode_batch([(0, b"\0\0\0\0", b"", [])], base_offset=1, producer_id=1,
                           producer_epoch=0, control=True)  # fmt: skip
    buffer = encode_batch(SAMPLE[:1]) + control + encode_batch(SAMPLE[:1], base_offset=2)
    assert [r.offset for r in decode_records(buffer)] == [0, 2]
    assert [i.control for i in batch_headers(buffer)] == [False, True, False]
    assert RecordBatch(control).is_control


def test_log_append_time_overrides_the_records_own() -> None:
    batch = encode_batch(SAMPLE, log_append_time=True)
    assert RecordBatch(batch).timestamps() == [SAMPLE[1][0]] * 4


def test_a_record_batch_behaves_as_its_records() -> None:
    raw = encode_batch(SAMPLE, base_offset=10, leader_epoch=2)
    batch = RecordBatch(raw, "t", 1)
    assert (batch.topic, batch.partition, batch.base_offset, batch.last_offset) == ("t", 1, 10, 13)
    assert (len(batch), batch.count, batch.leader_epoch, batch.raw) == (4, 4, 2, raw)
    assert batch.values() == [row[2] for row in SAMPLE]
    assert batch.keys() == [row[1] for row in SAMPLE]
    assert batch.offsets() == [10, 11, 12, 13]
    assert batch.timestamps() == [row[0] for row in SAMPLE]
    assert unpacked(list(batch)) == SAMPLE
    assert pickle.loads(pickle.dumps(batch)).records() == batch.records()
    assert "base_offset=10" in repr(batch)


def test_a_compacted_batch_with_holes_is_read() -> None:
    raw = bytearray(encode_batch(SAMPLE[:2], base_offset=5))
    struct.pack_into(">i", raw, 23, 9)  # lastOffsetDelta
    batch = RecordBatch(resealed(raw))
    assert (batch.count, batch.last_offset, batch.offsets()) == (2, 14, [5, 6])
    validate(batch.raw, from_log=True, compacted=True)
    with pytest.raises(CorruptBatch, match="record count"):
        validate(batch.raw)


# ---- Records ----


def test_a_record_is_immutable_comparable_hashable_and_picklable() -> None:
    record = decode_records(encode_batch(SAMPLE[1:2], base_offset=8), "t", 2)[0]
    same = Record("t", 2, 8, SAMPLE[1][0], b"key", None, SAMPLE[1][3])
    assert record is not same
    assert record == same
    assert hash(record) == hash(same)
    assert record != Record("t", 2, 9, SAMPLE[1][0], b"key", None, SAMPLE[1][3])
    assert record != Record("t", 2, 8, SAMPLE[1][0], b"key", None)
    assert record != "record"
    assert pickle.loads(pickle.dumps(record)) == record
    assert eval(repr(record), {"Record": Record}) == record
    record.headers.append(("more", b""))
    assert record.headers == SAMPLE[1][3]
    with pytest.raises(AttributeError):
        record.value = b""  # type: ignore[misc]
    with pytest.raises(TypeError, match="immutable"):
        record.__init__("t", 0, 0, 0, None, None)


def test_header_keys_that_are_not_utf_8_survive() -> None:
    record = Record("t", 0, 0, 0, None, None, [("\udcff", b"")])
    batch = encode_batch([(0, None, None, record.headers)])
    assert decode_records(batch, "t", 0)[0] == record


def test_decoding_again_and_again_leaks_nothing() -> None:
    batch = encode_batch(SAMPLE * 50)
    decode_records(batch), decode_values(batch)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(100):
        decode_records(batch), decode_values(batch)
    gc.collect()
    assert sys.getallocatedblocks() - before < 100


# ---- Damage ----


@given(rows, codecs, st.data())
def test_a_batch_cut_off_anywhere_is_an_error(
    rows: list[Row], codec: Compression, data: st.DataObject
) -> None:
    batch = encode_batch(rows, compression=codec)
    cut = batch[: data.draw(st.integers(1, len(batch) - 1))]
    for read in (decode_values, decode_records, validate, RecordBatch, next_batch):
        with pytest.raises(CorruptBatch, match="cut off"):
            read(cut)


@given(rows, codecs, st.data())
def test_a_changed_byte_anywhere_is_an_error_or_outside_of_the_checksum(
    rows: list[Row], codec: Compression, data: st.DataObject
) -> None:
    batch = bytearray(encode_batch(rows, compression=codec))
    at = data.draw(st.integers(0, len(batch) - 1))
    batch[at] ^= data.draw(st.integers(1, 255))
    if at < 8 or 12 <= at < 16:  # base offset, leader epoch: stamped after the checksum was made
        if batch[0] < 0x80:
            assert decode_values(batch) == [row[2] for row in rows]
        else:
            with pytest.raises(CorruptBatch, match="base offset"):
                decode_values(batch)
    else:
        for read in (decode_values, decode_records, validate, RecordBatch):
            with pytest.raises(CorruptBatch):
                read(batch)


@settings(max_examples=500)
@given(rows, codecs, st.data())
def test_records_damaged_under_a_right_checksum_never_crash(
    rows: list[Row], codec: Compression, data: st.DataObject
) -> None:
    batch = bytearray(encode_batch(rows, compression=codec))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(HEADER_BYTES, len(batch) - 1))
        batch[at] = data.draw(st.integers(0, 255))
    try:
        records = decode_records(resealed(batch))
    except CorruptBatch:
        return
    assert len(records) == len(rows)


@given(st.binary(max_size=300))
def test_rubbish_is_an_error(rubbish: bytes) -> None:
    if rubbish:
        with pytest.raises(CorruptBatch):
            decode_values(rubbish)
    assert find_batch(rubbish) == -1


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"\x0c\0\0\0\x01\0\0", "ok"),
        (b"\x0c\0\0\0\x01\0\0\0", "behind the last record"),
        (b"\x0e\0\0\0\x01\0\0\0", "contradict"),
        (b"\x0a\0\0\0\x01\0\0", "contradict"),
        (b"\x0c\0\0\0\x03\0\0", "contradict"),
        (b"\x0c\0\0\0\x01\x03\0", "contradict"),
        (b"\x0c\0\0\0\x01\x02\0", "cut off"),
        (b"\x0c\0\0\x02\x01\0\0", "out of order"),
        (b"\x0c\0\0\x01\x01\0\0", "out of order"),
        (b"\x0c\0\0\0\x01\0\x01", "headers are malformed"),
        (b"\x0c\0\0\0\x01\0\x02", "headers are malformed"),
        (b"\xff\xff\xff\xff\x0f\0\0", "contradict"),
        (b"\xfe\xff\xff\xff\x0f\0\0", "cut off"),
        (b"\xff\xff\xff\xff\xff\xff\xff", "cut off"),
    ],
)
def test_nonsense_inside_a_record_is_named(records: bytes, message: str) -> None:
    batch = bytearray(encode_batch([(0, None, b"", [])]))
    batch[HEADER_BYTES:] = records
    struct.pack_into(">i", batch, 8, len(batch) - 12)
    if message == "ok":
        assert decode_values(resealed(batch)) == [b""]
        return
    for read in (decode_values, decode_records):
        with pytest.raises(CorruptBatch, match=message):
            read(resealed(batch))


@pytest.mark.parametrize("codec", CODECS[1:])
def test_a_lying_count_above_compressed_records_allocates_nothing(codec: Compression) -> None:
    batch = bytearray(encode_batch(SAMPLE, compression=codec))
    struct.pack_into(">i", batch, 23, 2**31 - 2)
    struct.pack_into(">i", batch, COUNT_AT, 2**31 - 1)
    with pytest.raises(CorruptBatch, match="record count"):
        decode_values(resealed(batch))


@settings(max_examples=300)
@given(st.sampled_from(range(1, 5)), st.binary(min_size=20, max_size=2000), st.data())
def test_damaged_compressed_data_is_an_error_or_other_bytes(
    codec: int, plain: bytes, data: st.DataObject
) -> None:
    packed = bytearray(compression.compress(codec, plain * 3))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ValueError):
        compression.decompress(codec, bytes(packed))


@pytest.mark.parametrize(
    "tail", [b"", b"\0", b"\0\0\0\x09abc", b"\xff\xff\xff\xff", b"\0\0\0\x02\xff\xff"]
)
def test_damaged_snappy_framing_is_an_error(tail: bytes) -> None:
    packed = compression.compress(2, b"some data") + tail
    if tail:
        with pytest.raises(ValueError, match="snappy data is damaged"):
            compression.decompress(2, packed)
    with pytest.raises(ValueError, match="snappy data is damaged"):
        compression.decompress(2, packed[:12])


def test_a_buffer_changed_by_another_thread_meanwhile_never_crashes() -> None:
    batch = bytearray(encode_batch(SAMPLE * 500, compression="zstd") * 4)
    good, stop = bytes(batch), threading.Event()

    def scribble() -> None:
        at = 0
        while not stop.is_set():
            at = (at + 7) % len(batch)
            batch[at] ^= 0x5A
            batch[COUNT_AT] ^= 0x01
            batch[:] = good

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(15):
            with contextlib.suppress(CorruptBatch):
                decode_values(batch, verify=False)
    finally:
        stop.set()
        thread.join()


def test_a_batch_is_found_behind_rubbish() -> None:
    batch = encode_batch(SAMPLE, base_offset=50, leader_epoch=3)
    buffer = bytes(5000) + b"\x02" * 999 + batch + bytes(100)
    assert find_batch(buffer, 50, 3) == 5999
    assert find_batch(buffer, 51, 3) == find_batch(buffer, 50, 4) == -1
    assert find_batch(buffer, 50, 0, 2) == find_batch(buffer, 50, 3, 3, len(batch) - 1) == -1
    assert find_batch(buffer[:-101], 50, 3) == -1


# ---- Other implementations ----

KAFKA_PYTHON_HAS = {
    "none": True,
    "gzip": kafka.codec.has_gzip(),
    "snappy": kafka.codec.has_snappy(),
    "lz4": kafka.codec.has_lz4(),
    "zstd": kafka.codec.has_zstd(),
}
READERS = {
    "aiokafka": aiokafka_records.DefaultRecordBatch,
    "aiokafka in Python": aiokafka_records._DefaultRecordBatchPy,
    "kafka-python": kafka_records.DefaultRecordBatch,
}
BUILDERS = {
    "aiokafka": aiokafka_records.DefaultRecordBatchBuilder,
    "aiokafka in Python": aiokafka_records._DefaultRecordBatchBuilderPy,
    "kafka-python": kafka_records.DefaultRecordBatchBuilder,
}


def skip_unless_installed(client: str, codec: str) -> None:
    if client == "kafka-python" and not KAFKA_PYTHON_HAS[codec]:
        pytest.skip(f"kafka-python has no {codec} codec here")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("client", READERS)
def test_other_clients_read_what_we_encode(client: str, codec: Compression) -> None:
    skip_unless_installed(client, codec)
    large: Row = (1_700_000_000_001, None, bytes(range(256)) * 1000, [])  # several blocks

    @settings(max_examples=30)
    @given(rows)
    def check(rows: list[Row]) -> None:
        rows = [*rows, large]
        batch = encode_batch(
            rows, base_offset=7, producer_id=5, producer_epoch=1, base_sequence=3, compression=codec
        )
        theirs = READERS[client](bytearray(batch))
        assert theirs.validate_crc()
        assert (theirs.base_offset, theirs.compression_type) == (7, CODECS.index(codec))
        assert (theirs.producer_id, theirs.producer_epoch, theirs.base_sequence) == (5, 1, 3)
        assert theirs.max_timestamp == max(row[0] for row in rows)
        assert [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in theirs] == [
            (7 + i, *row) for i, row in enumerate(rows)
        ]

    check()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("client", BUILDERS)
def test_we_read_what_other_clients_encode(client: str, codec: Compression) -> None:
    skip_unless_installed(client, codec)

    @settings(max_examples=30)
    @given(rows)
    def check(rows: list[Row]) -> None:
        # aiokafka's builder takes a first timestamp of -1 for none.
        rows = [(0, None, b"", []), *rows, (1_700_000_000_001, None, bytes(range(256)) * 1000, [])]
        builder = BUILDERS[client](
            magic=2, compression_type=CODECS.index(codec), is_transactional=False,
            producer_id=5, producer_epoch=1, base_sequence=3, batch_size=1 << 30,
        )  # fmt: skip
        for i, (timestamp, key, value, headers) in enumerate(rows):
            assert builder.append(i, timestamp, key, value, headers) is not None
        batch = bytes(builder.build())
        validate(batch)
        assert unpacked(decode_records(batch)) == rows
        assert decode_values(batch) == [row[2] for row in rows]
        assert next_batch(batch).compression == codec  # type: ignore[union-attr]
        if codec == "none":  # without a codec's freedom the bytes themselves are equal
            ours = encode_batch(rows, producer_id=5, producer_epoch=1, base_sequence=3)
            assert ours[:12] + ours[16:] == batch[:12] + batch[16:]  # leader epoch: -1 or 0

    check()


@pytest.mark.parametrize("memory_records", [AiokafkaMemoryRecords, KafkaMemoryRecords])
def test_other_clients_walk_a_log_of_ours_to_its_end(memory_records: Any) -> None:
    log = b"".join(encode_batch(SAMPLE, base_offset=4 * i) for i in range(100))
    records, offsets = memory_records(log), []
    while records.has_next():
        offsets += [record.offset for record in records.next_batch()]
    assert offsets == list(range(400))


def test_lz4_blocks_are_independent_as_javas_client_requires() -> None:
    packed = compression.compress(3, bytes(300_000))
    assert packed[:4] == b"\x04\x22\x4d\x18"
    assert packed[4] & 0xE0 == 0x60  # version 1, block independence
    assert packed[4] & 0x09 == 0  # no content size, no dictionary: Java reads neither


def test_snappy_blocks_bear_xerials_framing_and_raw_snappy_is_read_too() -> None:
    plain = bytes(range(256)) * 300
    packed = compression.compress(2, plain)
    assert packed.startswith(b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01")
    assert kafka.codec.snappy_decode(packed) == plain if kafka.codec.has_snappy() else True
    assert compression.decompress(2, bytes(cramjam.snappy.compress_raw(plain))) == plain
