"""The Python face of the record batch: encode, decode, check; and what a consumer gets.

The format, its checks and its inner loops are batch.h's and record.h's; this module turns them
into Python objects. It owns no state and belongs to no process: encoding happens in producers,
decoding in consumers and tools. Input is any contiguous buffer. What is decoded was verified
first (lengths, CRC, counts), and damaged input raises CorruptBatch, whatever its bytes are.
Nothing handed out is a view of the input, except that a RecordBatch shares immutable `bytes` with
whoever else holds them.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from collections import namedtuple

from shmbroker._core.compression import CODECS, compress, decompress
from shmbroker.errors import CorruptBatch

cdef extern from *:
    """
    #define shmb_set_list_size(list, n) Py_SET_SIZE((PyVarObject *)(list), n)
    """
    # Ends a list made by PyList_New() before slots that were never filled.
    void shmb_set_list_size(object values, Py_ssize_t n)

cdef int FROM_LOG = SHMB_BATCH_FROM_LOG | SHMB_BATCH_COMPACTED


cdef int batch_failed(int error, Py_ssize_t position) except -1:
    name = shmb_batch_error_name(error).decode()
    raise CorruptBatch(f"{name} (at byte {position})")


cdef int record_failed(int error, const uint8_t *p) except -1:
    name = shmb_record_error_name(error).decode()
    raise CorruptBatch(f"{name} (in the batch at offset {shmb_batch_base_offset(p)})")


@cython.final
cdef class Buffer:
    """A contiguous buffer, held until the object goes."""

    cdef Py_buffer view
    cdef const uint8_t *p
    cdef size_t n

    def __cinit__(self, object data):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.p = <const uint8_t *>self.view.buf
        self.n = <size_t>self.view.len

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


# ---- Checksums and partitions ----


def crc32c(data, uint32_t crc=0):
    """CRC-32C of `data` (any contiguous buffer), continuing from `crc`, the sum of the bytes
    before."""
    cdef Buffer b = Buffer(data)
    if b.n < 65536:
        return shmb_crc32c(crc, b.p, b.n)
    with nogil:
        crc = shmb_crc32c(crc, b.p, b.n)
    return crc


def crc32c_implementation():
    """Which implementation this host uses: one of those that crc32c.h lists."""
    return shmb_crc32c_impl_name().decode()


def murmur2(key):
    """Kafka's hash of a key (any contiguous buffer), signed as Java's `Utils.murmur2` returns
    it."""
    cdef Buffer b = Buffer(key)
    return <int32_t>shmb_murmur2(b.p, b.n)


def partition_for_key(key, int32_t n):
    """The partition (0 to n - 1) that Kafka's Java client chooses for `key` (any contiguous
    buffer)."""
    if n < 1:
        raise ValueError(f"a topic has at least one partition, not {n}")
    cdef Buffer b = Buffer(key)
    return shmb_partition_for_key(b.p, b.n, n)


# ---- Headers of batches ----

_FIELDS = ("position", "size", "base_offset", "last_offset", "leader_epoch", "crc", "attributes",
           "compression", "log_append_time", "transactional", "control", "base_timestamp",
           "max_timestamp", "producer_id", "producer_epoch", "base_sequence", "count")


class BatchInfo(namedtuple("BatchInfo", _FIELDS)):
    """A batch's header: `position` (its first byte in the buffer) and `size` in bytes, offsets
    inclusive, timestamps in ms, `compression` by name; producer_id, producer_epoch and
    base_sequence -1 if unused."""

    __slots__ = ()


cdef object make_info(const uint8_t *p, Py_ssize_t position):
    cdef int attributes = shmb_batch_attributes(p)
    return BatchInfo(
        position, shmb_batch_size(p), shmb_batch_base_offset(p), shmb_batch_last_offset(p),
        shmb_batch_leader_epoch(p), shmb_batch_crc(p), attributes,
        CODECS[attributes & SHMB_ATTR_COMPRESSION],
        bool(attributes & SHMB_ATTR_LOG_APPEND_TIME), bool(attributes & SHMB_ATTR_TRANSACTIONAL),
        bool(attributes & SHMB_ATTR_CONTROL), shmb_batch_base_timestamp(p),
        shmb_batch_max_timestamp(p), shmb_batch_producer_id(p), shmb_batch_producer_epoch(p),
        shmb_batch_base_sequence(p), shmb_batch_record_count(p))


cdef object info_at(Buffer b, Py_ssize_t position, bint verify):
    cdef size_t size
    cdef int error
    if position < 0 or <size_t>position > b.n:
        raise ValueError(f"position {position} lies outside of the buffer's {b.n} bytes")
    if <size_t>position == b.n:
        return None
    error = shmb_batch_check(b.p + position, b.n - <size_t>position,
                             FROM_LOG | (0 if verify else SHMB_BATCH_SKIP_CRC), &size)
    if error:
        batch_failed(error, position)
    return make_info(b.p + position, position)


def next_batch(buf, Py_ssize_t pos=0, *, bint verify=True):
    """The header of the batch that begins at byte `pos`, or None at the end of the buffer; the
    next one begins at `.position + .size`. Raises CorruptBatch if no whole valid batch stands
    there."""
    return info_at(Buffer(buf), pos, verify)


def batch_headers(buf, *, bint verify=True):
    """Yields the headers of the batches that fill `buf`. Raises CorruptBatch at one that is
    damaged or cut off, after all before it."""
    cdef Buffer b = Buffer(buf)
    cdef Py_ssize_t position = 0
    while (info := info_at(b, position, verify)) is not None:
        yield info
        position = info.position + info.size


def validate(buf, *, bint from_log=False, bint compacted=False):
    """Checks that `buf` is exactly one valid batch, as the sequencer does with a client's;
    `from_log` also allows what only the broker sets, `compacted` missing records. Raises
    CorruptBatch."""
    cdef Buffer b = Buffer(buf)
    cdef unsigned flags = ((SHMB_BATCH_FROM_LOG if from_log else 0) |
                           (SHMB_BATCH_COMPACTED if compacted else 0))
    cdef int error
    with nogil:
        error = shmb_batch_validate(b.p, b.n, flags)
    if error:
        batch_failed(error, 0)


def find_batch(buf, int64_t min_base_offset=0, int32_t min_epoch=0, int32_t max_epoch=0x7fffffff,
               size_t max_batch_bytes=0x7fffffff):
    """The first place in `buf` where a whole valid batch of such offset and epoch stands, or -1
    (batch.h, shmb_batch_find)."""
    cdef Buffer b = Buffer(buf)
    cdef size_t size
    cdef ptrdiff_t at
    with nogil:
        at = shmb_batch_find(b.p, b.n, min_base_offset, min_epoch, max_epoch, max_batch_bytes,
                             &size)
    return at


include "record.pxi"  # Record
include "record_batch.pxi"  # RecordBatch, split_batches, decode_values, decode_records
include "encode.pxi"  # encode_batch, encode_values
