"""Compression of a batch's records section, in the framings that Kafka's clients use.

Owns the codecs' names and numbers, and nothing of the batch around them. Pure functions; cramjam
does the work. A producer compresses, a consumer decompresses, the broker does neither.

- gzip: RFC 1952. zstd: one frame of RFC 8878.
- snappy: xerial's framing, as Java's snappy streams write it: a 16-byte header, then blocks of at
  most 32 KiB, each `int32 length, raw snappy`. Raw snappy without framing is read too
  (librdkafka's).
- lz4: the LZ4 frame format with independent blocks, the only ones that Java's client reads.

Sources: Kafka's CompressionType.java, KIP-57 (LZ4 framing), snappy-java's SnappyOutputStream.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Literal

import cramjam

__all__ = ["CODECS", "Compression", "compress", "decompress"]

Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]

CODECS: Final[tuple[Compression, ...]] = ("none", "gzip", "snappy", "lz4", "zstd")
"""Names by number, which is what bits 0 to 2 of a batch's attributes say."""

_XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = _XERIAL_MAGIC + struct.pack(">ii", 1, 1)  # version, compatible with
_XERIAL_BLOCK_BYTES: Final = 32 * 1024
_INT32: Final = struct.Struct(">i")


def _gzip(data: bytes, level: int | None) -> bytes:
    return bytes(cramjam.gzip.compress(data, level=6 if level is None else level))


def _snappy(data: bytes, level: int | None) -> bytes:
    parts = [_XERIAL_HEADER]
    view = memoryview(data)
    for start in range(0, len(view), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(view[start : start + _XERIAL_BLOCK_BYTES]))
        parts += (_INT32.pack(len(block)), block)
    return b"".join(parts)


def _lz4(data: bytes, level: int | None) -> bytes:
    compressor = cramjam.lz4.Compressor(
        level=1 if level is None else level, content_checksum=False, block_linked=False
    )
    compressor.compress(data)
    return bytes(compressor.finish())


def _zstd(data: bytes, level: int | None) -> bytes:
    return bytes(cramjam.zstd.compress(data, level=3 if level is None else level))


def _un_gzip(data: bytes) -> bytes:
    return bytes(cramjam.gzip.decompress(data))


def _un_snappy(data: bytes) -> bytes:
    if not data.startswith(_XERIAL_MAGIC):
        return bytes(cramjam.snappy.decompress_raw(data))
    if len(data) < len(_XERIAL_HEADER):
        raise ValueError("snappy header is cut off")
    parts = []
    at, end = len(_XERIAL_HEADER), len(data)
    while at < end:
        if end - at < _INT32.size:
            raise ValueError("snappy block length is cut off")
        (size,) = _INT32.unpack_from(data, at)
        at += _INT32.size
        if not 0 <= size <= end - at:
            raise ValueError("snappy block reaches past the end")
        parts.append(bytes(cramjam.snappy.decompress_raw(data[at : at + size])))
        at += size
    return b"".join(parts)


def _un_lz4(data: bytes) -> bytes:
    return bytes(cramjam.lz4.decompress(data))


def _un_zstd(data: bytes) -> bytes:
    return bytes(cramjam.zstd.decompress(data))


_COMPRESS: Final[tuple[Callable[[bytes, int | None], bytes], ...]] = (
    lambda data, level: data,
    _gzip,
    _snappy,
    _lz4,
    _zstd,
)
_DECOMPRESS: Final[tuple[Callable[[bytes], bytes], ...]] = (
    lambda data: data,
    _un_gzip,
    _un_snappy,
    _un_lz4,
    _un_zstd,
)


def compress(codec: int, data: bytes, level: int | None = None) -> bytes:
    """Compresses a records section with codec `codec`; `level` None is the codec's default."""
    return _COMPRESS[codec](data, level)


def decompress(codec: int, data: bytes) -> bytes:
    """Undoes `compress`, also for what other Kafka clients wrote.

    Raises ValueError if `data` is damaged; trying again doesn't help. The result's size is not
    bounded.
    """
    try:
        return _DECOMPRESS[codec](data)
    except (cramjam.DecompressionError, ValueError) as error:
        raise ValueError(f"{CODECS[codec]} data is damaged: {error}") from error
