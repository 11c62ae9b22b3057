"""A local consumer's native half: reading a partition's ring, waiting for more, decoding.

Runs in the client's process; writes no shared byte but park words (invariants 1 and 6). A
PartitionReader copies whole batches out of the mapped ring and then looks whether they were still
there; what is not in the ring its caller reads from the segment files and hands to `take`, which
verifies it. What is visible is decided by offsets alone, since the writer stores an end offset before
the position that belongs to it: a batch whose last offset lies below an observed end is complete.

A RecordBatch here is a stretch of one partition: one or more whole Kafka batches in memory of its
own, so that streams of tiny batches cost no object each. The classes are not thread-safe, except
EpochWord and RecordBatch, which does not change.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_INCREF
from libc.errno cimport EINTR, ENOSYS, ETIMEDOUT
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.mman cimport munmap

from shmbroker._core.batch cimport (
    SHMB_ATTR_CONTROL, SHMB_ATTR_LOG_APPEND_TIME, SHMB_BATCH_COMPACTED, SHMB_BATCH_FROM_LOG,
    SHMB_BATCH_HEADER_BYTES, SHMB_BATCH_SHORT, SHMB_RECORD_END, SHMB_RECORD_OK,
    SHMB_RECORD_OVERHEAD_MIN, Record, make_batch, make_batches, shmb_batch_attributes,
    shmb_batch_base_offset, shmb_batch_base_timestamp, shmb_batch_check, shmb_batch_compression,
    shmb_batch_cursor_init, shmb_batch_error_name, shmb_batch_last_offset,
    shmb_batch_last_offset_delta, shmb_batch_leader_epoch, shmb_batch_max_timestamp,
    shmb_batch_record_count, shmb_batch_size, shmb_record, shmb_record_cursor,
    shmb_record_error_name, shmb_record_next)
from shmbroker._core.batch cimport RecordBatch as KafkaBatch

import os
from threading import Lock, get_ident

from shmbroker import errors

cdef extern from *:
    """
    #define shmb_set_list_size(list, n) Py_SET_SIZE((PyVarObject *)(list), n)
    """
    void shmb_set_list_size(object values, Py_ssize_t n)

STATE_NAMES = ("free", "opening", "online", "no_space", "readonly", "offline", "closed")
cdef unsigned forks = 0


def _count_fork():
    global forks
    forks += 1


os.register_at_fork(after_in_child=_count_fork)


# ---- What a Connection needs ----


@cython.final
cdef class Mapping:
    """A shared-memory object mapped whole; unmapped when nobody refers to it any more."""

    def __init__(self, str name not None, int fd, *, bint writable=False):
        if self._at != NULL:
            raise TypeError("a Mapping is immutable")
        found = os.fstat(fd)
        self.name, self.inode, self.bytes = name, found.st_ino, found.st_size
        self._at = shmb_map(fd, self.bytes, writable)
        if self._at == NULL:
            raise MemoryError(f"{name} can't be mapped")

    def __dealloc__(self):
        if self._at != NULL:
            munmap(self._at, self.bytes)

    @property
    def address(self):
        """Where its first byte is, as long as this object is referenced."""
        return <size_t>self._at

    @property
    def current(self):
        """Whether the name still leads to this object."""
        try:
            return os.stat("/dev/shm" + self.name).st_ino == self.inode
        except FileNotFoundError:
            return False


cdef inline shmb_a32 *word_at(size_t park, uint32_t index) noexcept nogil:
    return <shmb_a32 *>(park + index * SHMB_LINE)


def wake_all(size_t park):
    """Wakes all waits on all words of the park object mapped at `park`, whatever the words show: a
    writer may have died between clearing a word and waking."""
    cdef int i
    with nogil:
        for i in range(SHMB_PARK_INSTANCE, SHMB_PARK_WORDS):  # the line before is the preamble
            shmb_park_wake_always(word_at(park, i))


@cython.final
cdef class EpochWord:
    """A 32-bit word of this process at a fixed address that C waits look at. Thread-safe."""

    def __cinit__(self):
        self._word = <shmb_a32 *>calloc(1, SHMB_LINE)
        if self._word == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self._word)

    @property
    def address(self):
        return <size_t>self._word

    @property
    def value(self):
        return shmb_observe32(self._word)

    def set(self, uint32_t value):
        """Stores by release; whoever waits on park words must be woken afterwards."""
        shmb_publish32(self._word, value)


# ---- Walking over batches ----


cdef void walk(const uint8_t *p, size_t room, int64_t offset, int64_t end, size_t most,
               Span *span) noexcept nogil:
    """Measures the batches at `p` that follow each other from the one with `offset` on, as far as
    they end below offset `end`, within `room` bytes, and in `most` bytes unless the first is larger.
    Anything that is not the next batch ends the span: nothing is trusted, since a ring may be
    overwritten meanwhile (the caller looks afterwards)."""
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
    VALUES, RECORDS, KEYS, OFFSETS, TIMESTAMPS


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
    """As fill_values, with records or one field of each."""
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
        elif what == KEYS:
            item = own(r.key, r.key_len)
        elif what == OFFSETS:
            item = base + r.offset_delta
        else:
            item = timestamp
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
        return self._raw[self._begin:]

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
        """The offsets, rising."""
        return self._fill(OFFSETS)

    def timestamps(self):
        """The timestamps in ms, in order."""
        return self._fill(TIMESTAMPS)

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


# ---- One partition ----


cdef class PartitionReader:
    """Reads one partition from `position` on. Not thread-safe, but `wake`.

    `table` is the Mapping of its writer's table and stays mapped; `open_ring(generation)` gives the
    ring's ShmObject or raises FileNotFoundError. Sees offsets below the durable end, or with
    `appended` below the log end.
    """

    def __init__(self, str topic, int32_t partition, *, uint32_t writer, uint32_t slot,
                 uint32_t slot_epoch, object table, object open_ring, bint appended=False,
                 int64_t position=0):
        self.topic = topic
        self.partition = partition
        self.appended = appended
        self.position = position
        self.leader_epoch = -1
        self.recovery = -1
        self.bind(writer, slot, slot_epoch, table, open_ring)

    def __dealloc__(self):
        self._unmap()

    def bind(self, uint32_t writer, uint32_t slot, uint32_t slot_epoch, object table, open_ring):
        """Points the reader at the partition's place in a table, after an attach or a move."""
        cdef size_t address = table.address
        if table is not self._table or slot_epoch != self.slot_epoch:
            self._unmap()
        self.slot_epoch = slot_epoch
        self._table = table
        self._open_ring = open_ring
        self._slot = shmb_table_slot(<void *>address, slot)
        self._park_word = (shmb_park_appended(writer, slot) if self.appended
                           else shmb_park_durable(writer, slot))
        self._seen_state = SHMB_STATE_OPENING
        self._seen_generation = 0
        self.settled = -1

    def close(self):
        """Unmaps the ring; the table goes with the reader."""
        self._unmap()

    # -- what the slot says --

    cdef int64_t _visible(self) noexcept nogil:
        return <int64_t>shmb_observe(&self._slot.log_end_offset if self.appended
                                     else &self._slot.durable_offset)

    @property
    def bound(self):
        """Whether the slot is still this partition's."""
        return shmb_observe32(&self._slot.slot_epoch) == self.slot_epoch

    @property
    def state(self):
        """Its state by name, see layout.h."""
        state = shmb_observe32(&self._slot.state)
        return STATE_NAMES[state] if state < len(STATE_NAMES) else f"unknown ({state})"

    @property
    def reason(self):
        """The error code behind the state, 0 without one."""
        return shmb_observe32(&self._slot.reason)

    @property
    def end(self):
        """One past the last visible offset."""
        return self._visible()

    @property
    def log_end_offset(self):
        """The offset of the next record to be appended."""
        return <int64_t>shmb_observe(&self._slot.log_end_offset)

    @property
    def log_start_offset(self):
        """The first offset that may be read, inclusive."""
        return <int64_t>shmb_observe(&self._slot.log_start_offset)

    @property
    def recovered(self):
        """Counts the recoveries from disk: only one of them can have cut off appended records."""
        return <int64_t>(shmb_observe(&self._slot.generation) >> 32)

    # -- reading --

    def look(self):
        """The state by name, remembered: a wait ends when it is another one, or the ring is."""
        self._seen_state = shmb_observe32(&self._slot.state)
        self._seen_generation = shmb_observe(&self._slot.generation)
        state = self._seen_state
        return STATE_NAMES[state] if state < len(STATE_NAMES) else f"unknown ({state})"

    def fetch(self, size_t most):
        """The next visible records that the ring holds: a RecordBatch of about `most` bytes, or None.

        None with `position < end` means that they must be read from the files (`file_limit`).
        Moves `position`. Raises OffsetOutOfRange when it lies before the log start or past the end.
        """
        batch = self._fetch(most)
        if batch is None and self._seen_state != SHMB_STATE_OPENING and self._outside():
            raise errors.OffsetOutOfRange(self.topic, self.partition, self.position,
                                          self.log_start_offset, self._visible())
        return batch

    cdef bint _outside(self) noexcept:
        return self._seen_state != SHMB_STATE_FREE and (
            self.position < <int64_t>shmb_observe(&self._slot.log_start_offset)
            or self.position > max(self._visible(),
                                   <int64_t>shmb_observe(&self._slot.log_end_offset)))

    cdef RecordBatch _fetch(self, size_t most):
        cdef int64_t end
        cdef RecordBatch batch
        self._seen_state = shmb_observe32(&self._slot.state)
        self._seen_generation = shmb_observe(&self._slot.generation)
        if (self._seen_state == SHMB_STATE_OPENING or self._seen_state == SHMB_STATE_FREE
                or shmb_observe32(&self._slot.slot_epoch) != self.slot_epoch):
            return None
        while True:
            end = self._visible()
            if (self.position >= end
                    or self.position < <int64_t>shmb_observe(&self._slot.log_start_offset)):
                return None
            if self._view.generation != shmb_observe(&self._slot.generation):
                self._map()
            if self._view.object == NULL:
                return None
            batch = self._from_ring(end, most)
            if batch is None or batch._room:
                return batch  # else nothing but control batches: go on

    cdef bint odd(self):
        """Whether something other than a wait is due after a fetch without result."""
        if shmb_observe32(&self._slot.slot_epoch) != self.slot_epoch:
            return True
        if self._seen_state == SHMB_STATE_OPENING:
            return False
        if self._seen_state != SHMB_STATE_FREE and self.position < self._visible():
            return True
        if self._outside():
            return True
        return self._seen_state != self.settled and (
            self._seen_state == SHMB_STATE_FREE or self._seen_state == SHMB_STATE_OFFLINE
            or self._seen_state == SHMB_STATE_CLOSED)

    cdef bint was_recovered(self) noexcept:
        """Whether the log was recovered from disk since `position` was reached by reading."""
        return <int64_t>(shmb_observe(&self._slot.generation) >> 32) != self.recovery

    cdef RecordBatch _from_ring(self, int64_t end, size_t most):
        cdef Span span
        cdef bytes raw
        cdef uint8_t *to
        cdef size_t room
        cdef RecordBatch batch
        cdef bint good, sought = False
        cdef const shmb_log_view *v = &self._view
        while True:
            with nogil:
                if not self._tracked:
                    sought = True
                    self._tracked = seek(v, self.position, &self._ring_position)
                if self._tracked:
                    walk(v.data + self._ring_position % v.capacity, v.capacity, self.position, end,
                         most, &span)
            if not self._tracked:
                return None
            if span.size:
                break
            self._tracked = False  # behind a roll, or overwritten: ask the index, once
            if sought:
                return None
        raw = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>span.size)
        to = <uint8_t *>PyBytes_AS_STRING(raw)
        with nogil:
            good = shmb_log_copy(v, self._ring_position, to, span.size)
        if not good or shmb_observe32(&self._slot.slot_epoch) != self.slot_epoch:
            self._tracked = False
            return None
        batch = new_batch(self.topic, self.partition, self.position, raw, 0, &span)
        self._ring_position += span.size
        self._moved(&span)
        return batch

    cdef void _moved(self, const Span *span) noexcept:
        self.position = span.next_offset
        self.leader_epoch = span.leader_epoch
        self.recovery = <int64_t>(shmb_observe(&self._slot.generation) >> 32)

    def seek(self, int64_t offset):
        """Goes on at `offset`."""
        if offset != self.position:
            self.position = offset
            self.leader_epoch = -1
            self._tracked = False

    def file_limit(self):
        """How far files may be read: (segment base offset, bytes of that segment, log position there,
        generation).

        All of every older segment may be read. In the last one the block at the durable end is left
        to the ring, since it is being rewritten; without a ring nobody writes, and all of it may.
        """
        cdef uint64_t generation, base_position, durable
        cdef int64_t base
        while True:
            generation = shmb_observe(&self._slot.generation)
            shmb_slot_flush_segment(self._slot, &base, &base_position, &durable)
            if shmb_observe(&self._slot.ring_bytes) != 0:
                durable = base_position + shmb_align_down(durable - base_position,
                                                          max(self._slot.disk_unit, 4096))
            if shmb_observe(&self._slot.generation) == generation:
                return base, durable - base_position, durable, generation

    def take(self, bytes raw not None, unsigned long long generation, ring_position=None):
        """Verifies what was read from a segment under `file_limit`'s generation, for `position` on.

        The bytes begin with a batch and may end within one. When they end at `file_limit`, and
        `ring_position` is the log position there, they go on with the ring's. Returns a RecordBatch,
        or None when there is no visible record from `position` on in them, or when the partition got
        another ring meanwhile. Moves `position`. Raises CorruptBatch.
        """
        cdef Span span
        cdef RecordBatch batch = None
        cdef int64_t end = self._visible()
        cdef Py_ssize_t more = 1 << 20
        cdef bytes whole = raw
        if ring_position is not None:
            whole = self._extend(raw, ring_position, generation, more)
        while True:
            measure(whole, self.position, end, &span)
            if span.size or ring_position is None or len(whole) - len(raw) < more:
                break
            more *= 4  # a batch larger than that
            whole = self._extend(raw, ring_position, generation, more)
        if (shmb_observe(&self._slot.generation) != generation
                or shmb_observe32(&self._slot.slot_epoch) != self.slot_epoch):
            return None
        if span.records:
            batch = new_batch(self.topic, self.partition, self.position, whole,
                              <Py_ssize_t>span.skipped, &span)
        if span.size:
            self._tracked = False
            self._moved(&span)
        return batch

    cdef bytes _extend(self, bytes raw, uint64_t position, uint64_t generation, Py_ssize_t most):
        """`raw` and up to `most` bytes of the ring from `position` on behind it."""
        cdef Py_ssize_t n
        cdef bytes whole
        if self._view.generation != generation:
            self._map()
        if self._view.object == NULL or self._view.generation != generation:
            return raw
        n = <Py_ssize_t>(shmb_observe(&self._slot.log_end_position if self.appended
                                      else &self._slot.durable_position) - position)
        n = min(n, most, <Py_ssize_t>self._view.capacity)
        if n <= 0:
            return raw
        whole = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(raw) + n)
        memcpy(PyBytes_AS_STRING(whole), PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
        if not shmb_log_copy(&self._view, position, PyBytes_AS_STRING(whole) + PyBytes_GET_SIZE(raw),
                             <size_t>n):
            return raw
        return whole

    cdef int _map(self) except -1:
        """Maps the ring of the slot's present generation, if it has one."""
        cdef uint64_t generation, capacity
        cdef void *at
        self._unmap()
        for _ in range(100):  # a ring may be replaced between looking and opening
            generation = shmb_observe(&self._slot.generation)
            capacity = shmb_observe(&self._slot.ring_bytes)
            if generation == 0 or capacity == 0:
                return 0
            try:
                ring = self._open_ring(generation)
            except (FileNotFoundError, ValueError):
                if shmb_observe(&self._slot.generation) == generation:
                    return 0  # the table is older than its rings: the files have all of it
                continue
            try:
                if ring.bytes != shmb_log_bytes(capacity):
                    continue
                at = shmb_map_double(ring.fileno(), shmb_log_data_offset(capacity), capacity, 0)
            finally:
                ring.close()
            if at == NULL:
                raise MemoryError(f"no address space for the ring of {self.topic}-{self.partition}")
            shmb_log_view_set(&self._view, self._slot, <const uint8_t *>at, capacity, generation)
            return 0
        return 0

    cdef void _unmap(self) noexcept:
        if self._view.object != NULL:
            shmb_unmap_double(<void *>self._view.object, shmb_log_data_offset(self._view.capacity),
                              self._view.capacity)
        memset(&self._view, 0, sizeof(shmb_log_view))
        self._tracked = False


# ---- Waiting ----


cdef struct Watch:
    const shmb_slot *slot
    const shmb_a64 *end                # what must pass `position`
    int64_t position
    uint64_t generation
    uint32_t slot_epoch
    uint32_t state


cdef bint any_ready(const Watch *w, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if (<int64_t>shmb_observe(w[i].end) > w[i].position
                or shmb_observe32(&w[i].slot.state) != w[i].state
                or shmb_observe(&w[i].slot.generation) != w[i].generation
                or shmb_observe32(&w[i].slot.slot_epoch) != w[i].slot_epoch):
            return True
    return False


cdef bint awake(const Watch *w, Py_ssize_t n, shmb_a32 *epoch, uint32_t seen,
                shmb_a32 *stop) noexcept nogil:
    return shmb_observe32(epoch) != seen or shmb_observe32(stop) != 0 or any_ready(w, n)


cdef int sleep_until(const Watch *w, Py_ssize_t n, shmb_a32 **words, Py_ssize_t n_words,
                     shmb_a32 *instance, shmb_a32 *epoch, uint32_t seen, shmb_a32 *stop,
                     int64_t spin_ns, int64_t deadline_ns) noexcept nogil:
    """0: something is ready, or `epoch` or `stop` changed; else EINTR or ETIMEDOUT."""
    cdef int64_t now = shmb_now_ns()
    cdef int64_t spin_end = now + spin_ns if spin_ns < INT64_MAX - now else INT64_MAX
    cdef int64_t slice_end = now + 10_000_000
    cdef Py_ssize_t i
    cdef int rc
    while now < spin_end:
        for i in range(32):
            if awake(w, n, epoch, seen, stop):
                return 0
            shmb_relax()
        now = shmb_now_ns()
        if now >= deadline_ns:
            return ETIMEDOUT
        if now >= slice_end:
            return EINTR  # a spinning thread gets no EINTR: let Python look for signals now and then
    while True:
        for i in range(n_words):
            shmb_park_arm(words[i])
        if awake(w, n, epoch, seen, stop):
            return 0
        if n_words == 1:
            rc = shmb_park_wait(words[0], deadline_ns)
        else:
            rc = shmb_park_wait_any(words, <unsigned>n_words, deadline_ns)
        if rc == ENOSYS:  # before Linux 5.16: the word that every append and flush rings
            words[0] = instance
            n_words = 1
        elif rc:
            return rc


def monotonic_ns():
    """CLOCK_MONOTONIC as deadlines count it."""
    return shmb_now_ns()


# ---- The stream of one consumer ----


cdef class RecordStream:
    """A consumer's way through its partitions, as long as nothing is out of the ordinary.

    What is in the rings comes without Python in between; whatever else happens (files to be read, the
    broker gone, a partition moved, offline or deleted) ends `_quick` with None, and the subclass's
    `_slow` sorts it out. One thread at a time, others get ConcurrentUse; but `_stop_waits` may be
    called from any. The subclass sets `_readers`, `_park` and `_seen` before reading.
    """

    def __cinit__(self, *args, **kwargs):
        self._forks = forks
        self._stop = EpochWord()
        self._lock = Lock()
        self._all = []
        self._readers = []

    cdef int _enter(self) except -1:
        if self._forks != forks:
            raise errors.ForkedError("this consumer")
        if shmb_observe32(self._stop._word):
            raise errors.ClosedError("this consumer is closed")
        if not self._lock.acquire(False):
            raise errors.ConcurrentUse("two threads are inside one consumer, which belongs to one "
                                       "at a time: give each thread a consumer of its own")
        self._owner = get_ident()
        return 0

    cdef int _leave(self) except -1:
        self._owner = 0
        self._lock.release()
        return 0

    def _hold(self):
        """Begins a call that is not for two threads at once; ConcurrentUse."""
        self._enter()

    def _let_go(self):
        """Ends it."""
        self._leave()

    def __iter__(self):
        return self

    def __next__(self):
        """The next record; waits for it. Ends when another thread closes the consumer."""
        try:
            record = self._one(INT64_MAX)
        except errors.ClosedError:
            if self._closed_while_inside:
                self._closed_while_inside = False
                raise StopIteration from None
            raise
        if record is None:
            raise StopIteration
        return record

    def poll(self, timeout=None):
        """The next record, or None when there is none within `timeout` seconds (None: waits for ever,
        0: doesn't wait). Raises as the class says."""
        return self._one(deadline_of(timeout))

    def _next_batch(self, long long deadline_ns):
        """The next RecordBatch, or None when the deadline has passed."""
        self._enter()
        try:
            self._unbuffer()
            batch = self._quick(deadline_ns)
            return self._slow(deadline_ns) if batch is None else batch
        finally:
            self._leave()

    cdef object _one(self, int64_t deadline_ns):
        cdef RecordBatch batch
        cdef object record
        if self._records is None or self._at >= PyList_GET_SIZE(self._records):
            self._enter()
            try:
                self._records = None
                found = self._quick(deadline_ns)
                if found is None:
                    found = self._slow(deadline_ns)
                    if found is None:
                        return None
                batch = found
                self._records = batch._fill(RECORDS)
                self._at = 0
            finally:
                self._leave()
        elif self._forks != forks:
            raise errors.ForkedError("this consumer")
        record = self._records[self._at]
        self._at += 1
        return record

    @property
    def _next_buffered(self):
        """The record that comes next, where it was fetched already."""
        if self._records is not None and self._at < PyList_GET_SIZE(self._records):
            return self._records[self._at]
        return None

    def _wait(self, long long deadline_ns):
        """Waits until something changes; False at the deadline."""
        return self._sleep(deadline_ns)

    def _unbuffer(self):
        """Gives back what was fetched and not handed out, so that positions are the user's."""
        cdef Record record
        cdef PartitionReader reader
        if self._records is not None and self._at < PyList_GET_SIZE(self._records):
            record = self._records[self._at]
            for reader in self._all:
                if reader.partition == record.partition and reader.topic == record.topic:
                    reader.seek(record.offset)
        self._records = None

    def _slow(self, deadline_ns):
        raise NotImplementedError

    def _quick(self, long long deadline_ns):
        """The next batch out of a ring, waiting for it; None when the deadline has passed or something
        else must be looked at."""
        cdef Py_ssize_t n = PyList_GET_SIZE(self._readers), i
        cdef PartitionReader reader
        cdef RecordBatch batch
        while True:
            if awake(NULL, 0, self._epoch._word, self._seen, self._stop._word):
                return None
            for i in range(n):
                reader = self._readers[(self._turn + i) % n]
                if reader.leader_epoch >= 0 and reader.was_recovered():
                    return None
                batch = reader._fetch(self._most)
                if batch is not None:
                    self._turn = (self._turn + i + 1) % n
                    return batch
                if reader.odd():
                    return None
            if deadline_ns <= 0 or not self._sleep(deadline_ns):
                return None

    cdef bint _sleep(self, int64_t deadline_ns) except -1:
        """Waits until a partition has more than was read or has changed since its last fetch, or the
        attachment has, or the consumer was closed. False at the deadline. Runs signal handlers."""
        cdef Py_ssize_t n = PyList_GET_SIZE(self._readers), n_words = n, i
        cdef PartitionReader reader
        cdef Watch few[4]
        cdef shmb_a32 *few_words[4]
        cdef Watch *watches = few
        cdef shmb_a32 **words = few_words
        cdef shmb_a32 *instance = word_at(self._park, SHMB_PARK_INSTANCE)
        cdef int rc
        if n > 4:
            watches = <Watch *>PyMem_Malloc(n * sizeof(Watch))
            words = <shmb_a32 **>PyMem_Malloc(n * sizeof(shmb_a32 *))
        try:
            if watches == NULL or words == NULL:
                raise MemoryError()
            for i in range(n):
                reader = self._readers[i]
                watches[i].slot = reader._slot
                watches[i].end = (&reader._slot.log_end_offset if reader.appended
                                  else &reader._slot.durable_offset)
                watches[i].position = reader.position
                watches[i].slot_epoch = reader.slot_epoch
                watches[i].state = reader._seen_state
                watches[i].generation = reader._seen_generation
                words[i] = word_at(self._park, reader._park_word)
            if n == 0 or n > SHMB_WAITV_MAX:
                words[0] = instance
                n_words = 1
            while True:
                with nogil:
                    rc = sleep_until(watches, n, words, n_words, instance, self._epoch._word,
                                     self._seen, self._stop._word, self._spin_ns, deadline_ns)
                if rc == 0:
                    return True
                if rc == ETIMEDOUT:
                    return False
                if rc != EINTR:
                    raise OSError(rc, os.strerror(rc))
                PyErr_CheckSignals()
        finally:
            if n > 4:
                PyMem_Free(watches)
                PyMem_Free(words)

    def _stop_waits(self):
        """Ends the present wait and all later ones. Any thread."""
        cdef PartitionReader reader
        if self._owner and self._owner != get_ident():
            self._closed_while_inside = True
        self._stop.set(1)
        shmb_park_wake_always(word_at(self._park, SHMB_PARK_INSTANCE))
        for reader in list(self._all):
            shmb_park_wake_always(word_at(self._park, reader._park_word))

    def _await_leave(self):
        """Returns when no thread is inside; False when it is the caller's own (a signal handler)."""
        if self._owner == get_ident():
            return False
        with self._lock:
            return True


cdef int64_t deadline_of(object timeout) except? -1:
    """Seconds from now (None: never) as a CLOCK_MONOTONIC time; 0: not at all."""
    if timeout is None:
        return INT64_MAX
    cdef double seconds = timeout
    if seconds != seconds or seconds < 0:
        raise ValueError(f"a timeout is a number of seconds from 0 on, not {timeout!r}")
    if seconds == 0:
        return 0
    return INT64_MAX if seconds > 4e9 else shmb_now_ns() + <int64_t>(seconds * 1e9)


def deadline(timeout):
    """When `timeout` seconds (None: never, 0: at once) will have passed, for RecordStream."""
    return deadline_of(timeout)
