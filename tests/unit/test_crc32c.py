"""CRC-32C and murmur2 against published vectors and other implementations."""

from __future__ import annotations

import array
import random
import warnings

import aiokafka.partitioner
import crc32c as pypi_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbroker._core.batch import crc32c, crc32c_implementation, murmur2, partition_for_key

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka.partitioner.default


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (
            bytes.fromhex(
                "01c00000000000000000000000000000140000000000040000000014"
                "0000001828000000000000000200000000000000"
            ),
            0xD9963A56,
        ),
    ],
)
def test_crc32c_gives_the_vectors_of_rfc_3720(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def test_crc32c_equals_pypis_for_each_length_and_alignment() -> None:
    data = random.Random(1).randbytes(1 << 20)
    lengths = [*range(1200), 4095, 4096, 6143, 6144, 6145, 65535, 65536, 999_999]
    for length in lengths:
        piece = memoryview(data)[length % 64 :][:length]
        assert crc32c(piece) == pypi_crc32c.crc32c(bytes(piece)), length


@given(st.binary(max_size=3000), st.integers(0, 3000))
def test_crc32c_of_a_whole_is_continued_from_its_parts(data: bytes, cut: int) -> None:
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_crc32c_takes_any_contiguous_buffer_and_no_other() -> None:
    numbers = array.array("i", range(100))
    assert crc32c(numbers) == crc32c(bytes(numbers)) == crc32c(bytearray(bytes(numbers)))
    with pytest.raises(BufferError):
        crc32c(memoryview(bytes(100))[::2])
    with pytest.raises(TypeError):
        crc32c("text")  # type: ignore[arg-type]


def test_the_implementation_in_use_is_named() -> None:
    assert crc32c_implementation() in {"avx512-vpclmul", "sse4.2", "armv8-crc", "portable"}


# UtilsTest.java, testMurmur2
MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "expected"), MURMUR2.items())
def test_murmur2_gives_the_vectors_of_kafkas_tests(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected
    assert partition_for_key(key, 1000) == (expected & 0x7FFFFFFF) % 1000


@given(st.binary(max_size=100), st.integers(1, 2**31 - 1))
def test_partitions_equal_those_of_aiokafka_and_kafka_python(key: bytes, partitions: int) -> None:
    assert murmur2(key) & 0xFFFFFFFF == aiokafka.partitioner.murmur2(key) & 0xFFFFFFFF
    assert murmur2(key) & 0xFFFFFFFF == kafka.partitioner.default.murmur2(key) & 0xFFFFFFFF
    assert partition_for_key(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


def test_a_partition_of_no_partitions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one partition"):
        partition_for_key(b"key", 0)
