# Part of reader.pyx: measuring stretches of batches, and the RecordBatch made of one.

# ---- Walking over batches ----


cdef void walk(const uint8_t *p, size_t room, int64_t offset, int64_t end, size_t most,
               Span *span) noexcept nogil:
    """Measures the batches at `p` that follow each other from the one with `offset` on, as far as
    they end below offset `end`, within `room` bytes, and in `most` bytes unless the first is larger.
    Anything that is not the next batch ends the span: nothing is trusted, since a ring may be
    overwritten meanwhile (the caller looks afterwards). Another leader epoch ends it too, so that a
    record's is its stretch's (a checkpoint stores both)."""
    cdef size_t at = 0, size
    cdef int64_t base, last, next_offset = offset
    cdef int32_t delta, count
    span.size = span.skipped = 0
    span.next_offset = offset
    span.records = 0
    span.leader_epoch = -1
    span.compressed = 0
    while at + SHMB_BATCH_HEADER_BYTES <= room and at < most:
        base = shmb_batch_base_offset(p + at)
        delta = shmb_batch_last_offset_delta(p + at)
        size = shmb_batch_size(p + at)
        count = shmb_batch_record_count(p + at)
        if p[at + 16] != 2 or delta < 0 or count < 0 or size < SHMB_BATCH_HEADER_BYTES:
            break
        if size > room - at or (at and at + size > most):
            break
        if base < 0 or base >= end or (base > next_offset if at == 0 else base != next_offset):
            break
        last = base + delta
        if last >= end or last < next_offset:
            break
        if at and shmb_batch_leader_epoch(p + at) != span.leader_epoch:
            break
        at += size
        next_offset = last + 1
        span.leader_epoch = shmb_batch_leader_epoch(p + at - size)
        if not shmb_batch_attributes(p + at - size) & SHMB_ATTR_CONTROL:
            span.records += count
            span.compressed |= shmb_batch_compression(p + at - size)
    span.size = at
    span.next_offset = next_offset


cdef int check(const uint8_t *p, size_t n, int64_t offset, int64_t end, Span *span,
               size_t *bad) noexcept nogil:
    """Verifies the batches in `n` bytes of a segment, CRC included, and measures those from the one
    with `offset` on that end below `end`. Returns batch.h's error, and where; a batch that the end
    of the bytes cuts off is none. Offsets rise and may have gaps (compaction)."""
    cdef size_t at = 0, size
    cdef int64_t last, next_offset = offset
    cdef int error
    span.size = span.skipped = 0
    span.next_offset = offset
    span.records = 0
    span.leader_epoch = -1
    span.compressed = 0
    while at < n:
        error = shmb_batch_check(p + at, n - at, SHMB_BATCH_FROM_LOG | SHMB_BATCH_COMPACTED, &size)
        if error == SHMB_BATCH_SHORT:
            break
        if error:
            bad[0] = at
            return 0 if span.size else error  # what is whole first; the next call meets it again
        last = shmb_batch_last_offset(p + at)
        if last >= end:
            break
        if last < next_offset:  # older than asked for, only in front
            if span.size:
                break
            span.skipped += size
        else:
            if span.size and shmb_batch_leader_epoch(p + at) != span.leader_epoch:
                break  # as in `walk`
            span.size += size
            next_offset = last + 1
            span.leader_epoch = shmb_batch_leader_epoch(p + at)
            if not shmb_batch_attributes(p + at) & SHMB_ATTR_CONTROL:
                span.records += shmb_batch_record_count(p + at)
                span.compressed |= shmb_batch_compression(p + at)
        at += size
    span.next_offset = next_offset
    return 0


cdef int seek(const shmb_log_view *v, int64_t offset, uint64_t *position) noexcept nogil:
    """Finds the batch with `offset` in the ring by its index: 1 and where it begins, or 0."""
    cdef int64_t base
    cdef uint64_t first = 0, at
    cdef const uint8_t *p
    cdef int64_t last
    if not shmb_log_find(v, offset, &base, &first):
        return 0
    at = first
    while at - first < v.capacity - SHMB_BATCH_HEADER_BYTES:
        p = v.data + at % v.capacity
        if p[16] != 2 or shmb_batch_base_offset(p) != base or shmb_batch_last_offset_delta(p) < 0:
            return 0
        last = shmb_batch_last_offset(p)
        if last >= offset:
            position[0] = at
            return shmb_slot_still_there(v.slot, first, v.capacity)
        if shmb_batch_size(p) > v.capacity:
            return 0
        at += shmb_batch_size(p)
        base = last + 1
    return 0


# ---- What the user gets ----


cdef enum:
    VALUES, RECORDS, KEYS


cdef inline object own(const uint8_t *p, int32_t n):
    return PyBytes_FromStringAndSize(<const char *>p, n) if n >= 0 else None


cdef Py_ssize_t fill_values(list out, Py_ssize_t at, const uint8_t *p, shmb_record_cursor *cursor,
                            int64_t start_offset) except -1:
    """Puts the values of the batch at `p` into the empty slots of `out` from `at` on; returns the slot
    after them. The cursor promises no more records than there are slots."""
    cdef shmb_record r
    cdef int64_t skip = start_offset - shmb_batch_base_offset(p)
    cdef int status
    cdef object value
    while True:
        status = shmb_record_next(cursor, &r)
        if status != SHMB_RECORD_OK:
            break
        if r.offset_delta < skip:
            continue
        value = own(r.value, r.val_len)
        Py_INCREF(value)
        PyList_SET_ITEM(out, at, value)
        at += 1
    if status != SHMB_RECORD_END:
        raise_record(status, p)
    return at


cdef Py_ssize_t fill_records(list out, Py_ssize_t at, const uint8_t *p, shmb_record_cursor *cursor,
                             int64_t start_offset, int what, str topic,
                             int32_t partition) except -1:
    """As fill_values, with records or their keys."""
    cdef shmb_record r
    cdef Record record
    cdef int64_t base = shmb_batch_base_offset(p), skip = start_offset - base, timestamp
    # Unsigned, since deltas of absurd timestamps wrap around, as they do in Java.
    cdef uint64_t first = <uint64_t>shmb_batch_base_timestamp(p)
    cdef bint append_time = shmb_batch_attributes(p) & SHMB_ATTR_LOG_APPEND_TIME
    cdef int64_t last = shmb_batch_max_timestamp(p)
    cdef int status
    cdef object item
    while True:
        status = shmb_record_next(cursor, &r)
        if status != SHMB_RECORD_OK:
            break
        if r.offset_delta < skip:
            continue
        timestamp = last if append_time else <int64_t>(first + <uint64_t>r.timestamp_delta)
        if what == RECORDS:
            record = Record.__new__(Record)
            record.topic = topic
            record.partition = partition
            record.offset = base + r.offset_delta
            record.timestamp = timestamp
            if r.key_len >= 0:
                record.key = own(r.key, r.key_len)
            if r.val_len >= 0:
                record.value = own(r.value, r.val_len)
            if r.header_count:
                record._headers = own(r.headers, <int32_t>r.headers_size)
                record._header_count = r.header_count
            item = record
        else:
            item = own(r.key, r.key_len)
        Py_INCREF(item)
        PyList_SET_ITEM(out, at, item)
        at += 1
    if status != SHMB_RECORD_END:
        raise_record(status, p)
    return at


cdef int raise_record(int status, const uint8_t *p) except -1:
    raise errors.CorruptBatch(f"{shmb_record_error_name(status).decode()} (in the batch at offset "
                              f"{shmb_batch_base_offset(p)}): its producer encoded it wrongly")


@cython.final
cdef class RecordBatch:
    """Consecutive records of one partition, from `base_offset` (inclusive) to `next_offset`.

    One or more whole Kafka batches in memory of its own; `raw` has them, `batches()` one by one.
    Immutable; safe to share between threads. Decoding raises CorruptBatch if a producer's records
    contradict their batch's header or each other.
    """

    def __init__(self, *args):
        raise TypeError("made by a consumer; to decode bytes use shmbroker._core.batch")

    @property
    def raw(self):
        return self._raw[self._begin:self._end]

    def __len__(self):
        return self._length

    def __iter__(self):
        return iter(self._fill(RECORDS))

    def __repr__(self):
        return (f"RecordBatch(topic={self.topic!r}, partition={self.partition}, "
                f"base_offset={self.base_offset}, next_offset={self.next_offset})")

    def values(self):
        """The values, bytes or None, in order."""
        return self._fill(VALUES)

    def records(self):
        """The records, in order."""
        return self._fill(RECORDS)

    def keys(self):
        """The keys, bytes or None, in order."""
        return self._fill(KEYS)

    def offsets(self):
        """The offsets, rising, as array.array('q'): a sequence of int, and a buffer that NumPy takes
        without a copy."""
        return numbers_of(self, False)

    def timestamps(self):
        """The timestamps in ms, in order, as array.array('q')."""
        return numbers_of(self, True)

    def arrow(self, *, bint large=False):
        """Offset, timestamp, key and value of all records as Arrow data, see ArrowBatch.

        `large`: 64-bit offsets of keys and values (large_binary) also below 2 GiB, which need them.
        """
        return arrow_of(self, large)

    def array(self, dtype):
        """The values, all of one length, as a NumPy array of `dtype` that owns its memory.

        1-D where a value is one item of `dtype`, else 2-D with a row a value; "S" and "V" take the
        values' length. Raises ValueError, with the offset of the first that differs, for values of
        several lengths or a length that `dtype` doesn't divide; ImportError without NumPy.
        """
        return array_of(self, dtype)

    def batches(self):
        """The Kafka batches one by one, as `shmbroker._core.batch.RecordBatch`."""
        return make_batches(self._raw, <const uint8_t *>PyBytes_AS_STRING(self._raw) + self._begin,
                            <size_t>(PyBytes_GET_SIZE(self._raw) - self._begin), self.topic,
                            self.partition, self.base_offset, False)

    cdef list _fill(self, int what):
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(self._raw) + self._begin
        cdef const uint8_t *end = <const uint8_t *>PyBytes_AS_STRING(self._raw) + self._end
        cdef shmb_record_cursor cursor
        cdef Py_ssize_t at = 0, room = 0
        cdef KafkaBatch one
        cdef list out, opened
        if self._compressed:  # what their headers promise is believed once they are open
            opened = self.batches()
            for one in opened:
                room += one._room()
            out = PyList_New(room)
            for one in opened:
                one._open(&cursor)
                at = self._fill_one(out, at, one._p, &cursor, what)
        else:
            out = PyList_New(self._room)
            while p < end:
                if not shmb_batch_attributes(p) & SHMB_ATTR_CONTROL:
                    shmb_batch_cursor_init(&cursor, p)
                    at = self._fill_one(out, at, p, &cursor, what)
                p += shmb_batch_size(p)
        shmb_set_list_size(out, at)
        return out

    cdef inline Py_ssize_t _fill_one(self, list out, Py_ssize_t at, const uint8_t *p,
                                     shmb_record_cursor *cursor, int what) except -1:
        if what == VALUES:
            return fill_values(out, at, p, cursor, self.base_offset)
        return fill_records(out, at, p, cursor, self.base_offset, what, self.topic, self.partition)


cdef RecordBatch new_batch(str topic, int32_t partition, int64_t position, bytes raw,
                           Py_ssize_t begin, const Span *span):
    """The batches of `span`, which begin at byte `begin` of `raw`, from offset `position` on."""
    cdef RecordBatch batch = RecordBatch.__new__(RecordBatch)
    cdef const uint8_t *first = <const uint8_t *>PyBytes_AS_STRING(raw) + begin
    cdef int64_t base = shmb_batch_base_offset(first)
    batch.topic = topic
    batch.partition = partition
    batch.base_offset = max(base, position)
    batch.next_offset = span.next_offset
    batch.leader_epoch = span.leader_epoch
    batch._raw = raw
    batch._begin = begin
    batch._end = begin + <Py_ssize_t>span.size
    batch._room = span.records
    batch._compressed = span.compressed != 0
    batch._length = span.records
    if base < position and not shmb_batch_attributes(first) & SHMB_ATTR_CONTROL:
        batch._length = max(0, span.records - (position - base))
    return batch


def split(raw not None, str topic not None="", int32_t partition=-1, int64_t position=0):
    """Whole Kafka batches in `raw` (any buffer) as one RecordBatch, verified; None when there is no
    record from `position` on. Raises CorruptBatch."""
    cdef bytes owned = raw if type(raw) is bytes else bytes(memoryview(raw))
    cdef Span span
    measure(owned, position, INT64_MAX, &span)
    if span.records == 0:
        return None
    return new_batch(topic, partition, position, owned, <Py_ssize_t>span.skipped, &span)


cdef int measure(bytes raw, int64_t position, int64_t end, Span *span) except -1:
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(raw)
    cdef size_t n = <size_t>PyBytes_GET_SIZE(raw), bad = 0
    cdef int error
    with nogil:
        error = check(p, n, position, end, span, &bad)
    if error:
        raise errors.CorruptBatch(f"{shmb_batch_error_name(error).decode()} (at byte {bad} of what "
                                  f"was read for offset {position})")
    return 0
