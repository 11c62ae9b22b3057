"""C declarations of crc32c.h, varint.h, record.h and batch.h, and the classes of batch.pyx.

Whoever cimports this gets everything that runs without the GIL, and `put_values`, the producer's
inner loop. The headers hold the contracts and the picture of the format.
"""

from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t


cdef extern from "crc32c.h" nogil:
    uint32_t shmb_crc32c(uint32_t seed_crc, const void *p, size_t n)
    const char *shmb_crc32c_impl_name()


cdef extern from "varint.h" nogil:
    int16_t shmb_get_be16(const void *p)
    int32_t shmb_get_be32(const void *p)
    int64_t shmb_get_be64(const void *p)
    void shmb_put_be16(void *p, int16_t value)
    void shmb_put_be32(void *p, int32_t value)
    void shmb_put_be64(void *p, int64_t value)
    size_t shmb_varint_size(int64_t v)
    uint8_t *shmb_varint_put(uint8_t *p, int64_t v)
    const uint8_t *shmb_varint_get32(const uint8_t *p, const uint8_t *end, int32_t *v)
    const uint8_t *shmb_varint_get64(const uint8_t *p, const uint8_t *end, int64_t *v)
    uint32_t shmb_murmur2(const void *key, size_t n)
    int32_t shmb_partition_for_key(const void *key, size_t n, int32_t partitions)


cdef extern from "record.h" nogil:
    enum:
        SHMB_RECORD_OVERHEAD_MIN  # bytes of a record besides key, value, headers: at least
        SHMB_RECORD_OVERHEAD_MAX  # at most
        SHMB_RECORD_END           # results of shmb_record_next(); errors are below 0
        SHMB_RECORD_OK
        SHMB_RECORD_TRUNCATED
        SHMB_RECORD_LENGTH
        SHMB_RECORD_OFFSET
        SHMB_RECORD_HEADERS
        SHMB_RECORD_TRAILING

    struct shmb_record:
        int64_t timestamp_delta  # ms since baseTimestamp
        const uint8_t *key       # key_len bytes
        const uint8_t *value     # val_len bytes
        const uint8_t *headers   # headers_size bytes, encoded and verified
        size_t headers_size      # bytes
        int32_t offset_delta     # since baseOffset
        int32_t key_len          # bytes, -1 = null
        int32_t val_len          # bytes, -1 = null
        int32_t header_count     # >= 0

    struct shmb_record_cursor:
        const uint8_t *p           # next byte to read
        const uint8_t *end         # first byte behind the records
        int32_t left               # records still promised
        int32_t offset_delta       # of the record before, -1 at the start
        int32_t last_offset_delta  # largest allowed

    const char *shmb_record_error_name(int status)
    size_t shmb_record_size(int64_t ts_delta, int32_t off_delta, int32_t key_len, int32_t val_len,
                            size_t headers_size, int32_t header_count)
    uint8_t *shmb_record_put(uint8_t *p, int64_t ts_delta, int32_t off_delta, const void *key,
                             int32_t key_len, const void *value, int32_t val_len,
                             const void *headers, size_t headers_size, int32_t header_count)
    size_t shmb_header_size(int32_t key_len, int32_t val_len)
    uint8_t *shmb_header_put(uint8_t *p, const void *key, int32_t key_len, const void *value,
                             int32_t val_len)
    const uint8_t *shmb_header_get(const uint8_t *p, const uint8_t *end, const uint8_t **key,
                                   int32_t *key_len, const uint8_t **value, int32_t *val_len)
    void shmb_record_cursor_init(shmb_record_cursor *c, const uint8_t *records, size_t n,
                                 int32_t count, int32_t last_offset_delta)
    int shmb_record_next(shmb_record_cursor *c, shmb_record *r)


cdef extern from "batch.h" nogil:
    enum:
        SHMB_BATCH_HEADER_BYTES  # 61: where the records begin
        SHMB_BATCH_LOG_OVERHEAD  # 12: bytes that batchLength leaves out
        SHMB_BATCH_ATTRIBUTES    # 21: where the CRC's cover begins
        SHMB_ATTR_COMPRESSION    # bits 0-2
        SHMB_ATTR_LOG_APPEND_TIME
        SHMB_ATTR_TRANSACTIONAL
        SHMB_ATTR_CONTROL
        SHMB_ATTR_DELETE_HORIZON
        SHMB_ATTR_KNOWN          # all bits with a meaning
        SHMB_COMPRESSION_NONE
        SHMB_COMPRESSION_GZIP
        SHMB_COMPRESSION_SNAPPY
        SHMB_COMPRESSION_LZ4
        SHMB_COMPRESSION_ZSTD
        SHMB_BATCH_OK            # results of shmb_batch_check() and shmb_batch_validate()
        SHMB_BATCH_SHORT
        SHMB_BATCH_LENGTH
        SHMB_BATCH_MAGIC
        SHMB_BATCH_CRC
        SHMB_BATCH_COUNT
        SHMB_BATCH_ATTR
        SHMB_BATCH_CONTROL
        SHMB_BATCH_PRODUCER
        SHMB_BATCH_OFFSET
        SHMB_BATCH_FROM_CLIENT   # flags of the same
        SHMB_BATCH_FROM_LOG
        SHMB_BATCH_COMPACTED
        SHMB_BATCH_SKIP_CRC

    const char *shmb_batch_error_name(int error)
    int64_t shmb_batch_base_offset(const uint8_t *p)
    size_t shmb_batch_size(const uint8_t *p)
    int32_t shmb_batch_leader_epoch(const uint8_t *p)
    uint32_t shmb_batch_crc(const uint8_t *p)
    int shmb_batch_attributes(const uint8_t *p)
    int shmb_batch_compression(const uint8_t *p)
    int32_t shmb_batch_last_offset_delta(const uint8_t *p)
    int64_t shmb_batch_last_offset(const uint8_t *p)
    int64_t shmb_batch_base_timestamp(const uint8_t *p)
    int64_t shmb_batch_max_timestamp(const uint8_t *p)
    int64_t shmb_batch_producer_id(const uint8_t *p)
    int16_t shmb_batch_producer_epoch(const uint8_t *p)
    int32_t shmb_batch_base_sequence(const uint8_t *p)
    int32_t shmb_batch_record_count(const uint8_t *p)
    uint8_t *shmb_batch_begin(uint8_t *p)
    size_t shmb_batch_seal(uint8_t *p, const uint8_t *end, int attributes, int32_t base_sequence,
                           int64_t producer_id, int16_t producer_epoch, int64_t first_ts,
                           int64_t max_ts, int32_t count)
    void shmb_batch_stamp(uint8_t *p, int64_t base_offset, int32_t leader_epoch)
    int shmb_batch_check(const uint8_t *p, size_t n, unsigned flags, size_t *size)
    int shmb_batch_validate(const uint8_t *p, size_t n, unsigned flags)
    ptrdiff_t shmb_batch_find(const uint8_t *p, size_t n, int64_t min_base_offset,
                              int32_t min_epoch, int32_t max_epoch, size_t max_batch_bytes,
                              size_t *size)
    void shmb_batch_cursor_init(shmb_record_cursor *c, const uint8_t *p)


cdef extern from *:
    """
    #define shmb_prefetch(p) __builtin_prefetch(p)
    """
    void shmb_prefetch(const void *p) nogil
    # The C API's own names, for borrowed pointers: a loop over a list needs no reference counts.
    PyObject **list_items "PySequence_Fast_ITEMS"(object values)
    PyObject *PyList_GET_ITEM(object values, Py_ssize_t i)
    bint is_exact_bytes "PyBytes_CheckExact"(PyObject *o) nogil
    Py_ssize_t bytes_size "PyBytes_GET_SIZE"(PyObject *o) nogil
    const char *bytes_data "PyBytes_AS_STRING"(PyObject *o) nogil


cdef inline bint put_pointers(uint8_t **end, const uint8_t *limit, PyObject **values, Py_ssize_t n,
                              Py_ssize_t *i, int32_t *count, int64_t ts_delta) noexcept nogil:
    """Encodes values[i:n] (bytes or None, without keys) as records number `count` and following at `end`,
    as far as they surely fit before `limit`; moves all three on. True: values[i] is of another type.
    Allocates nothing; nobody may let go of the values or change the array meanwhile."""
    cdef uint8_t *p = end[0]
    cdef Py_ssize_t k = i[0], size
    cdef int32_t c = count[0]
    cdef PyObject *value
    cdef bint wrong = False
    while k < n:
        value = values[k]
        if k + 16 < n:  # values lie scattered on the heap: fetch two lines of a later one
            shmb_prefetch(<char *>values[k + 16])
            shmb_prefetch(<char *>values[k + 16] + 64)
        if is_exact_bytes(value):
            size = bytes_size(value)
            if limit - p < size + SHMB_RECORD_OVERHEAD_MAX:
                break
            p = shmb_record_put(p, ts_delta, c, NULL, -1, bytes_data(value), <int32_t>size, NULL,
                                0, 0)
        elif value == <PyObject *>None:
            if limit - p < SHMB_RECORD_OVERHEAD_MAX:
                break
            p = shmb_record_put(p, ts_delta, c, NULL, -1, NULL, -1, NULL, 0, 0)
        else:
            wrong = True
            break
        k += 1
        c += 1
    end[0] = p
    i[0] = k
    count[0] = c
    return wrong


cdef inline int put_values(uint8_t **end, const uint8_t *limit, list values, Py_ssize_t *i,
                           int32_t *count, int64_t ts_delta) except -1:
    """put_pointers() of a list, under the GIL. Raises TypeError for another type: `i` is the culprit
    then, all before it is encoded."""
    if put_pointers(end, limit, list_items(values), PyList_GET_SIZE(values), i, count, ts_delta):
        raise TypeError(f"value {i[0]} is {type(values[i[0]]).__name__}, expected bytes or None")
    return 0


cdef class Record:
    cdef readonly str topic         # "" where the caller named none; None before __init__
    cdef readonly bytes key         # or None
    cdef readonly bytes value       # or None
    cdef bytes _headers             # encoded headers, None without any; decoded when asked for
    cdef readonly int64_t offset    # in the partition
    cdef readonly int64_t timestamp  # ms since 1970-01-01 UTC
    cdef readonly int32_t partition  # -1 where the caller named none
    cdef int32_t _header_count      # headers in _headers


cdef class RecordBatch:
    cdef readonly str topic            # as with Record
    cdef readonly int32_t partition
    cdef readonly int64_t start_offset  # records below it are dropped; inclusive
    cdef object _owner                 # keeps the memory behind _p alive
    cdef bytes _inflated               # decompressed records, once they were asked for
    cdef const uint8_t *_p             # the batch, verified
    cdef size_t _size                  # bytes of it

    cdef int _open(self, shmb_record_cursor *cursor) except -1
    cdef Py_ssize_t _room(self) except -1
    cdef Py_ssize_t _fill_values(self, list out, Py_ssize_t at) except -1
    cdef Py_ssize_t _fill_records(self, list out, Py_ssize_t at) except -1


# One batch within memory that `owner` keeps alive and nobody changes. verify=False where its CRC
# was checked before. Raises CorruptBatch.
cdef RecordBatch make_batch(object owner, const uint8_t *p, size_t size, str topic,
                            int32_t partition, int64_t start_offset, bint verify)

# All data batches of [p, p + n), which must be whole, from start_offset on. As make_batch.
cdef list make_batches(object owner, const uint8_t *p, size_t n, str topic, int32_t partition,
                       int64_t start_offset, bint verify)

# The values / records of several batches in one list.
cdef list values_of(list batches)
cdef list records_of(list batches)
