"""Encoding whole batches from Python; a part of batch.pyx. Runs in producers."""


cdef bytes as_bytes(object data):
    return data if data is None or type(data) is bytes else bytes(memoryview(data))


cdef int codec_number(str name) except -1:
    if name not in CODECS:
        raise ValueError(f"compression is one of {', '.join(CODECS)}, not {name!r}")
    return CODECS.index(name)


cdef bytes new_batch(Py_ssize_t records_size):
    """Uninitialised bytes for a batch with a records section of that size."""
    if records_size > 0x7fffffff - <Py_ssize_t>SHMB_BATCH_HEADER_BYTES:
        raise ValueError(f"records of {records_size} bytes don't fit into one batch")
    return PyBytes_FromStringAndSize(NULL, SHMB_BATCH_HEADER_BYTES + records_size)


cdef bytes seal_batch(bytes batch, int codec, object level, int attributes, int64_t first,
                      int64_t last, int32_t count, int64_t base_offset, int32_t leader_epoch,
                      int64_t producer_id, int16_t producer_epoch, int32_t base_sequence):
    """Compresses the records of a batch made by new_batch() if asked for, and fills its header."""
    cdef bytes records
    cdef uint8_t *p
    if codec != SHMB_COMPRESSION_NONE:
        records = compress(codec, batch[SHMB_BATCH_HEADER_BYTES:], level)
        batch = new_batch(len(records))
        memcpy(PyBytes_AS_STRING(batch) + SHMB_BATCH_HEADER_BYTES, PyBytes_AS_STRING(records),
               <size_t>len(records))
    p = <uint8_t *>PyBytes_AS_STRING(batch)
    shmb_batch_seal(p, p + PyBytes_GET_SIZE(batch), attributes | codec, base_sequence, producer_id,
                    producer_epoch, first, last, count)
    shmb_batch_stamp(p, base_offset, leader_epoch)
    return batch


def encode_batch(records, *, int64_t base_offset=0, int32_t leader_epoch=0, int64_t producer_id=-1,
                 int16_t producer_epoch=-1, int32_t base_sequence=-1, str compression="none",
                 level=None, bint transactional=False, bint control=False,
                 bint log_append_time=False):
    """One batch of `records`: (timestamp in ms, key, value, headers) each; key and value are
    buffers or None, headers (str, buffer or None) pairs. `level` is the codec's, None its
    default. Raises ValueError for no records at all or more than fit into a batch (2 GiB),
    TypeError for what is no record."""
    cdef int codec = codec_number(compression)
    cdef int64_t timestamp, first = 0, last = 0, delta
    cdef int32_t count = 0, header_count, key_len, val_len
    cdef Py_ssize_t size = 0, n
    cdef bytes key, value, headers, batch
    cdef list items = []
    cdef uint8_t *p
    for record in records:
        timestamp, key_, value_, headers_ = record
        key, value = as_bytes(key_), as_bytes(value_)
        headers = encode_headers(headers_, &header_count)
        if count == 0:
            first = last = timestamp
        last = max(last, timestamp)
        delta = <int64_t>(<uint64_t>timestamp - <uint64_t>first)  # wraps, as in Java
        n = ((0 if key is None else len(key)) + (0 if value is None else len(value))
             + len(headers))
        if n > 0x7fffffff - 64:  # so that lengths fit their int32
            raise ValueError(f"a record of {n} bytes doesn't fit into a batch")
        key_len = -1 if key is None else <int32_t>len(key)
        val_len = -1 if value is None else <int32_t>len(value)
        size += <Py_ssize_t>shmb_record_size(delta, count, key_len, val_len, <size_t>len(headers),
                                             header_count)
        items.append((delta, key, value, headers, header_count))
        count += 1
    if not items:
        raise ValueError("a batch holds at least one record")
    batch = new_batch(size)
    p = shmb_batch_begin(<uint8_t *>PyBytes_AS_STRING(batch))
    count = 0
    for delta, key, value, headers, header_count in items:
        p = shmb_record_put(
            p, delta, count,
            NULL if key is None else PyBytes_AS_STRING(key),
            -1 if key is None else <int32_t>len(key),
            NULL if value is None else PyBytes_AS_STRING(value),
            -1 if value is None else <int32_t>len(value),
            PyBytes_AS_STRING(headers), <size_t>len(headers), header_count)
        count += 1
    cdef int attributes = ((SHMB_ATTR_TRANSACTIONAL if transactional else 0)
                           | (SHMB_ATTR_CONTROL if control else 0)
                           | (SHMB_ATTR_LOG_APPEND_TIME if log_append_time else 0))
    return seal_batch(batch, codec, level, attributes, first, last, count, base_offset,
                      leader_epoch, producer_id, producer_epoch, base_sequence)


def encode_values(list values not None, int64_t timestamp, *, int64_t base_offset=0,
                  int32_t leader_epoch=0, int64_t producer_id=-1, int16_t producer_epoch=-1,
                  int32_t base_sequence=-1, str compression="none", level=None):
    """One batch of records without keys and headers, all of one `timestamp` (ms): encode_batch's
    fast path. `values` are bytes or None. Raises as encode_batch."""
    cdef int codec = codec_number(compression)
    cdef Py_ssize_t room = SHMB_RECORD_OVERHEAD_MAX, i = 0
    cdef int32_t count = 0
    cdef uint8_t *p
    cdef uint8_t *start
    cdef bytes batch
    if not values:
        raise ValueError("a batch holds at least one record")
    for value in values:
        room += SHMB_RECORD_OVERHEAD_MAX + (PyBytes_GET_SIZE(value) if type(value) is bytes else 0)
    batch = new_batch(room)
    start = p = shmb_batch_begin(<uint8_t *>PyBytes_AS_STRING(batch))
    put_values(&p, start + room, values, &i, &count, 0)
    batch = batch[:SHMB_BATCH_HEADER_BYTES + (p - start)]
    return seal_batch(batch, codec, level, 0, timestamp, timestamp, count, base_offset,
                      leader_epoch, producer_id, producer_epoch, base_sequence)
