"""Batches as a consumer gets them, and decoding into lists; a part of batch.pyx."""

# Python's allocator unmaps an arena (1 MiB) as soon as nothing in it is in use. A consumer that
# drops one list of small values and decodes the next would so unmap and fault in the same memory
# for ever: measured 81 instead of 25 ns a value where a page fault costs 2 us. A few blocks of
# the same size, one in a thousand values, replaced in turn, keep at most PIN_COUNT arenas mapped.
cdef enum:
    PIN_COUNT = 32
    PIN_EVERY = 1024        # values; a power of two
    PIN_LARGEST_BYTES = 480  # larger objects don't come out of arenas
cdef list pins = [None] * PIN_COUNT
cdef Py_ssize_t next_pin = 0


cdef int pin_arena(Py_ssize_t size) except -1:
    global next_pin
    pins[next_pin % PIN_COUNT] = PyBytes_FromStringAndSize(NULL, size)
    next_pin += 1
    return 0


@cython.final
cdef class RecordBatch:
    """One verified batch of a partition: what a consumer's `batches()` yields.

    Records below `start_offset` are dropped from all that it returns, since a fetch may begin in
    the middle of a batch; `base_offset`, `count` and `raw` are the whole batch's, `len()` is what
    remains (as the header says: a compacted batch may hold fewer). Immutable; safe to share
    between threads. Decoding raises CorruptBatch if the producer's records contradict the header
    or each other.
    """

    def __init__(self, raw, str topic not None="", int32_t partition=-1, int64_t start_offset=0, *,
                 bint verify=True):
        if self._p != NULL:
            raise TypeError("a RecordBatch is immutable")
        cdef bytes owned = raw if type(raw) is bytes else bytes(memoryview(raw))
        cdef RecordBatch made = make_batch(
            owned, <const uint8_t *>PyBytes_AS_STRING(owned), <size_t>PyBytes_GET_SIZE(owned),
            topic, partition, start_offset, verify)
        self.topic = topic
        self.partition = partition
        self.start_offset = start_offset
        self._owner = owned
        self._p = made._p
        self._size = made._size

    @property
    def raw(self):
        if type(self._owner) is bytes and <size_t>PyBytes_GET_SIZE(self._owner) == self._size:
            return self._owner
        return PyBytes_FromStringAndSize(<const char *>self._p, <Py_ssize_t>self._size)

    @property
    def info(self):
        return make_info(self._p, 0)

    @property
    def base_offset(self):
        return shmb_batch_base_offset(self._p)

    @property
    def last_offset(self):
        return shmb_batch_last_offset(self._p)

    @property
    def leader_epoch(self):
        return shmb_batch_leader_epoch(self._p)

    @property
    def base_timestamp(self):
        return shmb_batch_base_timestamp(self._p)

    @property
    def max_timestamp(self):
        return shmb_batch_max_timestamp(self._p)

    @property
    def producer_id(self):
        return shmb_batch_producer_id(self._p)

    @property
    def producer_epoch(self):
        return shmb_batch_producer_epoch(self._p)

    @property
    def base_sequence(self):
        return shmb_batch_base_sequence(self._p)

    @property
    def count(self):
        return shmb_batch_record_count(self._p)

    @property
    def compression(self):
        return CODECS[shmb_batch_compression(self._p)]

    @property
    def is_control(self):
        return bool(shmb_batch_attributes(self._p) & SHMB_ATTR_CONTROL)

    @property
    def is_transactional(self):
        return bool(shmb_batch_attributes(self._p) & SHMB_ATTR_TRANSACTIONAL)

    def __len__(self):
        cdef int64_t first = max(self.start_offset, shmb_batch_base_offset(self._p))
        cdef int64_t left = shmb_batch_last_offset(self._p) - first + 1
        return max(0, min(left, shmb_batch_record_count(self._p)))

    def __iter__(self):
        return iter(records_of([self]))

    def __repr__(self):
        return (f"RecordBatch(topic={self.topic!r}, partition={self.partition}, "
                f"base_offset={self.base_offset}, count={self.count}, size={self._size})")

    def __reduce__(self):
        return RecordBatch, (self.raw, self.topic, self.partition, self.start_offset)

    def values(self):
        """The values, bytes or None, in order."""
        return values_of([self])

    def records(self):
        """The records, in order."""
        return records_of([self])

    def keys(self):
        """The keys, bytes or None, in order."""
        return [record.key for record in records_of([self])]

    def offsets(self):
        """The offsets, rising."""
        return [record.offset for record in records_of([self])]

    def timestamps(self):
        """The timestamps in ms, in order."""
        return [record.timestamp for record in records_of([self])]

    cdef int _open(self, shmb_record_cursor *cursor) except -1:
        """Sets `cursor` on the records, which are decompressed once. The size is the one that was
        verified, since another thread could write to the buffer meanwhile if it is not `bytes`."""
        cdef int codec = shmb_batch_compression(self._p)
        if codec == SHMB_COMPRESSION_NONE:
            shmb_record_cursor_init(cursor, self._p + SHMB_BATCH_HEADER_BYTES,
                                    self._size - SHMB_BATCH_HEADER_BYTES,
                                    shmb_batch_record_count(self._p),
                                    shmb_batch_last_offset_delta(self._p))
            return 0
        if self._inflated is None:
            try:
                self._inflated = decompress(
                    codec, (<const char *>self._p)[SHMB_BATCH_HEADER_BYTES:self._size])
            except ValueError as error:
                raise CorruptBatch(
                    f"{error} (in the batch at offset {self.base_offset})") from error
        shmb_record_cursor_init(
            cursor, <const uint8_t *>PyBytes_AS_STRING(self._inflated),
            <size_t>PyBytes_GET_SIZE(self._inflated), shmb_batch_record_count(self._p),
            shmb_batch_last_offset_delta(self._p))
        return 0

    cdef Py_ssize_t _room(self) except -1:
        """How many slots of a list the records need at most; the header alone isn't trusted."""
        cdef shmb_record_cursor cursor
        self._open(&cursor)
        if cursor.left > (cursor.end - cursor.p) // SHMB_RECORD_OVERHEAD_MIN:
            batch_failed(SHMB_BATCH_COUNT, 0)
        return cursor.left

    cdef Py_ssize_t _fill_values(self, list out, Py_ssize_t at) except -1:
        """Puts the values into the empty slots of `out` from `at` on; returns the slot after
        them."""
        cdef shmb_record_cursor cursor
        cdef shmb_record r
        cdef int status
        cdef Py_ssize_t room = PyList_GET_SIZE(out)
        cdef int64_t skip = self.start_offset - shmb_batch_base_offset(self._p)
        cdef object value
        self._open(&cursor)
        while True:
            status = shmb_record_next(&cursor, &r)
            if status != SHMB_RECORD_OK:
                break
            if r.offset_delta < skip:
                continue
            if r.val_len >= 0:
                value = PyBytes_FromStringAndSize(<const char *>r.value, r.val_len)
                if at & (PIN_EVERY - 1) == PIN_EVERY // 2 and r.val_len <= PIN_LARGEST_BYTES:
                    pin_arena(r.val_len)
            else:
                value = None
            if at >= room:
                record_failed(SHMB_RECORD_TRAILING, self._p)
            Py_INCREF(value)
            PyList_SET_ITEM(out, at, value)
            at += 1
        if status != SHMB_RECORD_END:
            record_failed(status, self._p)
        return at

    cdef Py_ssize_t _fill_records(self, list out, Py_ssize_t at) except -1:
        """As _fill_values, with records."""
        cdef shmb_record_cursor cursor
        cdef shmb_record r
        cdef Record record
        cdef int status
        cdef Py_ssize_t room = PyList_GET_SIZE(out)
        cdef int64_t base = shmb_batch_base_offset(self._p), skip = self.start_offset - base
        # Unsigned, since deltas of absurd timestamps wrap around, as they do in Java.
        cdef uint64_t first = <uint64_t>shmb_batch_base_timestamp(self._p)
        cdef bint append_time = shmb_batch_attributes(self._p) & SHMB_ATTR_LOG_APPEND_TIME
        cdef int64_t last = shmb_batch_max_timestamp(self._p)
        self._open(&cursor)
        while True:
            status = shmb_record_next(&cursor, &r)
            if status != SHMB_RECORD_OK:
                break
            if r.offset_delta < skip:
                continue
            record = Record.__new__(Record)
            record.topic = self.topic
            record.partition = self.partition
            record.offset = base + r.offset_delta
            record.timestamp = <int64_t>(first + <uint64_t>r.timestamp_delta)
            if append_time:
                record.timestamp = last
            if r.key_len >= 0:
                record.key = PyBytes_FromStringAndSize(<const char *>r.key, r.key_len)
            if r.val_len >= 0:
                record.value = PyBytes_FromStringAndSize(<const char *>r.value, r.val_len)
                if at & (PIN_EVERY - 1) == PIN_EVERY // 2 and r.val_len <= PIN_LARGEST_BYTES:
                    pin_arena(r.val_len)
            if r.header_count:
                record._headers = PyBytes_FromStringAndSize(<const char *>r.headers,
                                                            <Py_ssize_t>r.headers_size)
                record._header_count = r.header_count
            if at >= room:
                record_failed(SHMB_RECORD_TRAILING, self._p)
            Py_INCREF(record)
            PyList_SET_ITEM(out, at, record)
            at += 1
        if status != SHMB_RECORD_END:
            record_failed(status, self._p)
        return at


cdef RecordBatch make_batch(object owner, const uint8_t *p, size_t size, str topic,
                            int32_t partition, int64_t start_offset, bint verify):
    cdef int error = shmb_batch_validate(p, size,
                                         FROM_LOG | (0 if verify else SHMB_BATCH_SKIP_CRC))
    if error:
        batch_failed(error, 0)
    cdef RecordBatch batch = RecordBatch.__new__(RecordBatch)
    batch.topic = topic
    batch.partition = partition
    batch.start_offset = start_offset
    batch._owner = owner
    batch._p = p
    batch._size = size
    return batch


cdef list make_batches(object owner, const uint8_t *p, size_t n, str topic, int32_t partition,
                       int64_t start_offset, bint verify):
    cdef size_t at = 0, size
    cdef int error
    cdef list batches = []
    while at < n:
        error = shmb_batch_check(p + at, n - at, FROM_LOG | (0 if verify else SHMB_BATCH_SKIP_CRC),
                                 &size)
        if error:
            batch_failed(error, <Py_ssize_t>at)
        if (not shmb_batch_attributes(p + at) & SHMB_ATTR_CONTROL
                and shmb_batch_last_offset(p + at) >= start_offset):
            batches.append(
                make_batch(owner, p + at, size, topic, partition, start_offset, False))
        at += size
    return batches


cdef list values_of(list batches):
    cdef RecordBatch batch
    cdef Py_ssize_t room = 0, at = 0
    for batch in batches:
        room += batch._room()
    cdef list out = PyList_New(room)
    for batch in batches:
        at = batch._fill_values(out, at)
    shmb_set_list_size(out, at)
    return out


cdef list records_of(list batches):
    cdef RecordBatch batch
    cdef Py_ssize_t room = 0, at = 0
    for batch in batches:
        room += batch._room()
    cdef list out = PyList_New(room)
    for batch in batches:
        at = batch._fill_records(out, at)
    shmb_set_list_size(out, at)
    return out


def split_batches(buf, str topic not None="", int32_t partition=-1, int64_t start_offset=0, *,
                  bint verify=True):
    """The data batches that fill `buf`, from the one with `start_offset` on; control batches are
    left out. `bytes` are shared, other buffers copied. Raises CorruptBatch if one is damaged or
    cut off."""
    cdef bytes owned = buf if type(buf) is bytes else bytes(memoryview(buf))
    return make_batches(owned, <const uint8_t *>PyBytes_AS_STRING(owned),
                        <size_t>PyBytes_GET_SIZE(owned), topic, partition, start_offset, verify)


def decode_values(buf, int64_t start_offset=0, *, bint verify=True):
    """The values (bytes or None) of all batches that fill `buf`, in order. As split_batches."""
    cdef Buffer b = Buffer(buf)
    return values_of(make_batches(b, b.p, b.n, "", -1, start_offset, verify))


def decode_records(buf, str topic not None="", int32_t partition=-1, int64_t start_offset=0, *,
                   bint verify=True):
    """The records of all batches that fill `buf`, in order. As split_batches."""
    cdef Buffer b = Buffer(buf)
    return records_of(make_batches(b, b.p, b.n, topic, partition, start_offset, verify))
