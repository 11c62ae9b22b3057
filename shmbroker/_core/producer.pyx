"""The producer's data plane: records into ingress rings, and what became of them.

Owns: encoding records into open batches, choosing partitions, sealing, blocking while a ring is full,
and receipts. The C below it is ingress.h (the ring), the producer_*.h (open and sealed batches; begin with
producer_state.h) and producer_thread.h (the client thread); the Python above it is client/producer.py (options, close).

Threads: every method may be called from any thread. The GIL guards Python objects and py_refs; the
outlet's one-word lock guards batches. The lock is never held while blocking or waiting for the GIL.
A forked child gets ForkedError from everything, and its destructors touch nothing.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE)
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_CheckExact, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport (
    INT32_MAX, INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t)
from libc.stdlib cimport calloc, free, realloc
from posix.unistd cimport read

from shmbroker._core.batch cimport (
    PyList_GET_ITEM, SHMB_BATCH_HEADER_BYTES, bytes_size, is_exact_bytes, put_pointers, put_values,
    shmb_header_put, shmb_header_size, shmb_partition_for_key)
from shmbroker._core.columns cimport (
    SHMB_COL_FIXED, SHMB_ROWS_BAD_VALUE, SHMB_ROWS_NULL_TIME, SHMB_ROWS_OK, SHMB_TIMESTAMP_MAX, Column,
    column_of, shmb_row, shmb_row_status, shmb_rows_batch, shmb_run, shmb_run_encode, shmb_run_row_any,
    shmb_slice, shmb_walk, shmb_walk_here, shmb_walk_on, slices_of, times_of)

import atexit
import collections
import datetime
import functools
import importlib
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from array import array

from shmbroker import errors
from shmbroker._core import shm
from shmbroker._core.compression import CODECS, compress

if not getattr(sys, "_is_gil_enabled", lambda: True)():  # importing this enables it, unless it was forbidden
    raise ImportError("shmbroker's core needs the GIL, which guards its Python objects: "
                      "run without PYTHON_GIL=0 and -X gil=0")

_log = logging.getLogger("shmbroker")
_STATES = dict(enumerate(shm.STATES))
_BLOCKS = {1: "the partition's ring is full: the disk is slower than the producers",
           2: "the partition's ring is being made or replaced",
           3: "the next segment or its space is being allocated",
           4: "the partition is being recovered"}
_ACKS = {"none": int(SHMB_ACKS_NONE), "memory": int(SHMB_ACKS_MEMORY), "durable": int(SHMB_ACKS_DURABLE)}
FULL = ("block", "drop", "raise")  # what a producer does with a record when the ring is full
cdef enum:
    FULL_BLOCK
    FULL_DROP
    FULL_RAISE
cdef enum:
    RUN = 1024  # values that are encoded at a time without the GIL
IN_FLIGHT_MAX = int(SHMB_IN_FLIGHT_MAX)  # batches without a receipt, of one producer and partition
cdef int64_t SAY_EVERY_NS = 1_000_000_000  # between two warnings of dropped records
_DEFAULT_MAX_BYTES = 1048588  # Kafka's max.message.bytes
_MANY_CPUS = (os.cpu_count() or 1) > 1
cdef int64_t SPIN_NS = 30_000 if _MANY_CPUS else 0     # before parking for a receipt or for room
cdef int64_t SPIN_DURABLE_NS = 250_000 if _MANY_CPUS else 0  # at most, for a write that is that fast
cdef unsigned int _seed = (os.getpid() * 2654435761 ^ time.time_ns()) & 0x7fffffff

RecordMetadata = collections.namedtuple("RecordMetadata", "topic partition offset timestamp")
ManyMetadata = collections.namedtuple("ManyMetadata", "topic records base_offsets counts")

# A sleep is interrupted at least this often to look for signals; see park.h.
shmb_signal_look_ns = 0 if os.environ.get("SHMBROKER_PARK_FOREVER") else 500_000_000

shmb_ticks_calibrate()
shmb_forks_count()

include "producer_outlet.pxi"
include "producer_move.pxi"
include "producer_watch.pxi"
include "producer_receipt.pxi"
include "producer_topic.pxi"
include "producer_sender.pxi"
include "producer_columns.pxi"
include "producer_relay.pxi"
include "producer_aio.pxi"
include "producer_sending.pxi"


def _stop_thread():
    with nogil:
        shmb_tender_stop()


atexit.register(_stop_thread)


# ---- Arguments ----

cdef int64_t _milliseconds(timestamp) except? -1:
    if isinstance(timestamp, datetime.datetime):
        if timestamp.tzinfo is None:
            timestamp = timestamp.astimezone()
        return (timestamp - _EPOCH) // _MS
    if not isinstance(timestamp, int):
        raise TypeError(f"timestamp is {type(timestamp).__name__}, expected milliseconds (int) or datetime")
    if not 0 <= timestamp < 1 << 62:
        raise ValueError(f"timestamp {timestamp} is not in milliseconds since 1970")
    return timestamp


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_MS = datetime.timedelta(milliseconds=1)


cdef bytes _encode_headers(headers, int32_t *count):
    """Headers as they stand in a record: (str, bytes or None) pairs, or a mapping."""
    pairs = list(headers.items()) if hasattr(headers, "items") else list(headers)
    cdef size_t size = 0
    encoded = []
    for pair in pairs:
        name, value = pair
        if not isinstance(name, str):
            raise TypeError(f"a header's name is {type(name).__name__}, expected str")
        if isinstance(value, str):
            raise TypeError(f"header {name!r} is a str: encode it, for example with .encode()")
        key = name.encode()
        value = None if value is None else bytes(memoryview(value))
        size += shmb_header_size(<int32_t>len(key), -1 if value is None else <int32_t>len(value))
        encoded.append((key, value))
    out = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(out)
    for key, value in encoded:
        if value is None:
            at = shmb_header_put(at, PyBytes_AS_STRING(key), <int32_t>len(key), NULL, -1)
        else:
            at = shmb_header_put(at, PyBytes_AS_STRING(key), <int32_t>len(key),
                                 PyBytes_AS_STRING(value), <int32_t>len(value))
    count[0] = <int32_t>len(encoded)
    return out


cdef class _Buffer:
    """A contiguous buffer held while its record is encoded."""

    cdef Py_buffer view
    cdef bint held

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    cdef int hold(self, what, str role) except -1:
        if PyUnicode_Check(what):
            raise TypeError(f"a {role} is bytes, not str: encode it, for example with .encode()")
        try:
            PyObject_GetBuffer(what, &self.view, PyBUF_SIMPLE)
        except (TypeError, ValueError, BufferError):  # NumPy and memoryview differ in what they raise
            raise TypeError(f"a {role} is {type(what).__name__}, expected a contiguous buffer "
                            "such as bytes, or None") from None
        self.held = True
        return 0


cdef inline int _point(const void **at, int32_t *size, what, str role, list held) except -1:
    """Sets a record's key or value; `held` keeps what is not bytes."""
    cdef _Buffer buffer
    cdef Py_ssize_t n
    if what is None:
        at[0] = NULL
        size[0] = -1
        return 0
    if PyBytes_CheckExact(what):
        at[0] = PyBytes_AS_STRING(what)
        n = PyBytes_GET_SIZE(what)
    else:
        buffer = _Buffer()
        buffer.hold(what, role)
        held.append(buffer)
        at[0] = buffer.view.buf
        n = buffer.view.len
    if n > INT32_MAX // 2:
        raise errors.RecordTooLarge(f"a {role} of {n} bytes is larger than any topic allows",
                                    size_bytes=n, limit_bytes=INT32_MAX // 2)
    size[0] = <int32_t>n
    return 0


cdef inline list _fill(shmb_item *item, value, key, headers, timestamp):
    """Fills a record in; returns what has to be kept until it is encoded, besides the arguments."""
    cdef list held = None
    cdef bytes encoded
    if PyBytes_CheckExact(value) and PyBytes_GET_SIZE(value) < INT32_MAX // 2:
        item.value = PyBytes_AS_STRING(value)
        item.value_bytes = <int32_t>PyBytes_GET_SIZE(value)
    else:
        held = []
        _point(&item.value, &item.value_bytes, value, "value", held)
    if key is None:
        item.key_bytes = -1
        item.key = NULL
    else:
        if held is None:
            held = []
        _point(&item.key, &item.key_bytes, key, "key", held)
    if headers is None:
        item.headers = NULL
        item.headers_bytes = 0
        item.headers_count = 0
    else:
        encoded = _encode_headers(headers, &item.headers_count)
        item.headers = PyBytes_AS_STRING(encoded)
        item.headers_bytes = <uint32_t>PyBytes_GET_SIZE(encoded)
        if held is None:
            held = []
        held.append(encoded)
    item.timestamp = shmb_wall_ms() if timestamp is None else _milliseconds(timestamp)
    return held


# ---- The calls ----

cdef class ProducerBase:
    """send() and send_many(); client/producer.py adds the rest. Thread-safe."""

    def __cinit__(self, *args, **kwargs):
        self._sender = None

    def _begin(self, Sender sender):
        self._sender = sender

    @cython.binding(False)
    def send(self, topic, value, key=None, headers=None, partition=None, timestamp=None):
        """Puts one record into the ring and returns its Receipt.

        `value`, `key`: any contiguous buffer, or None (a tombstone, no key); `headers`: (str, bytes)
        pairs; `timestamp`: ms or datetime, now by default. Without `partition` the key decides as
        Java's client does, without a key one partition is kept for a batch. Blocks while the ring is
        full, up to max_block_ms, then raises BufferFull. Raises UnknownTopic, RecordTooLarge,
        BrokerGone. Thread-safe. Nothing is promised before the receipt says so.
        """
        cdef Sender sender = self._sender
        cdef Lanes lanes
        cdef shmb_item item
        cdef int32_t p
        if sender is None or sender.generation != shmb_fork_generation or shmb_peek32(&sender.closed):
            _unusable(sender)
        lanes = sender.last if topic is sender.last_name else sender.topic(topic)
        held = _fill(&item, value, key, headers, timestamp)
        p = lanes.choose(&item) if partition is None else _partition(lanes, partition)
        return _send(lanes, p, &item)

    def send_many(self, topic, values, keys=None, partition=None, timestamps=None):
        """Puts many records into the ring and returns one ManyReceipt.

        `values`: a list of bytes (other buffers and None are taken, slower), a C-contiguous 2-D array
        (a row a value), or Arrow data (`__arrow_c_array__`, `__arrow_c_stream__`; a null is a
        tombstone); `keys`: the same; `timestamps`: ms or datetimes, an array of int64, or Arrow data.
        All are as long as `values`. Blocks as send() does. When it raises, the records before the
        culprit have been sent; how many, the message says.
        """
        return self._send_many(topic, values, keys, partition, timestamps, None)

    def _send_many(self, topic, values, keys, partition, timestamps, partitions):
        """send_many(), and `partitions`: None, or one for each record."""
        cdef Sender sender = self._sender
        cdef ManyReceipt receipt
        cdef Rows rows = None
        if sender is None or sender.generation != shmb_fork_generation or shmb_peek32(&sender.closed):
            _unusable(sender)
        _refuse_one(values)
        rows = _rows(values, keys, timestamps, partitions)
        if rows is None:
            values, keys, timestamps = _lists(values, keys, timestamps)
        receipt = ManyReceipt.__new__(ManyReceipt)
        receipt._lanes = sender.last if topic is sender.last_name else sender.topic(topic)
        try:
            if rows is not None:
                _send_rows(receipt, rows, partition)
            elif keys is None and timestamps is None:
                _send_values(receipt, values, -1 if partition is None else _partition(receipt._lanes, partition))
            else:
                _send_items(receipt, values, keys, partition, timestamps)
        except errors.BufferFull as error:
            raise _sent_before(error, receipt)
        return receipt


cdef object _sent_before(error, ManyReceipt receipt):
    """BufferFull of a send_many(), with how many records it had taken before."""
    error.sent = receipt.count
    error.args = (f"{error}; {receipt.count} records before it were sent",)
    return error


cdef _refuse_one(values):
    if isinstance(values, (str, bytes, bytearray)):
        raise TypeError(f"values is one {type(values).__name__}, expected a list of them")


cdef tuple _lists(values, keys, timestamps):
    """send_many()'s columns as lists of one length."""
    if not PyList_CheckExact(values):
        _refuse_one(values)
        values = list(values)
    for name, other in (("keys", keys), ("timestamps", timestamps)):
        if other is not None and len(other) != len(values):
            raise ValueError(f"{len(other)} {name} for {len(values)} values")
    if keys is not None and not PyList_CheckExact(keys):
        keys = list(keys)
    return values, keys, timestamps


cdef _unusable(Sender sender):
    if sender is None:
        raise errors.ClosedError("this producer was never opened")
    if sender.generation != shmb_fork_generation:
        raise errors.ForkedError("this producer")
    raise errors.ClosedError("this producer is closed")


cdef inline int32_t _partition_known(Lanes lanes, partition) except -2:
    """The number, or -1 when the topic may have got that many partitions."""
    cdef int64_t p
    if type(partition) is not int:
        partition = partition.__index__()
    p = partition
    if p < 0:
        raise errors.UnknownTopic(lanes.name, partition, lanes.partitions)
    return <int32_t>p if p < lanes.partitions else -1


cdef inline int32_t _partition(Lanes lanes, partition) except -1:
    cdef int32_t p = _partition_known(lanes, partition)
    if p < 0:
        lanes.grow()
        p = _partition_known(lanes, partition)
        if p < 0:
            raise errors.UnknownTopic(lanes.name, partition, lanes.partitions)
    return p


cdef inline Receipt _receipt(Lanes lanes, shmb_pbatch *b, int32_t index, int64_t timestamp):
    cdef Receipt receipt = Receipt.__new__(Receipt)
    receipt._lanes = lanes
    receipt._b = b
    receipt._index = index
    receipt._timestamp = timestamp
    return receipt


cdef inline Receipt _send(Lanes lanes, int32_t p, const shmb_item *item):
    cdef shmb_lane *lane = lanes.lanes[p]
    cdef shmb_pbatch *b
    cdef int32_t index
    cdef shmb_put rc, after = SHMB_PUT_OK
    if lane == NULL or shmb_item_bound(item) + SHMB_BATCH_HEADER_BYTES > lanes.max_bytes or lane.stale:
        lane = _lane_for(lanes, p, item)
    rc = shmb_lane_send(lane, item, &b, &index, &after)
    if rc != SHMB_PUT_OK:
        lanes.sender.send_slow(lanes, lane, item, rc, &b, &index)
    elif after > SHMB_PUT_NO_ROOM:
        receipt = _receipt(lanes, b, index, item.timestamp)  # holds the batch
        lanes.sender.after_slow(lanes, lane, after)
        return receipt
    shmb_tender_poke(lane.out)
    return _receipt(lanes, b, index, item.timestamp)


cdef shmb_lane *_lane_for(Lanes lanes, int32_t p, const shmb_item *item) except NULL:
    """The slow way to a lane: opens it, asks again where it is, refuses what is too large."""
    cdef shmb_lane *lane = lanes.lane(p)
    cdef uint64_t alone = shmb_item_alone(item)
    if alone > lanes.max_bytes:
        lanes.grow()  # the topic may allow more by now
    if alone > lanes.max_bytes:
        raise errors.RecordTooLarge(
            f"a record that takes {alone} bytes as a batch is larger than the {lanes.max_bytes} bytes that "
            f"topic {lanes.name!r} allows; raise its max.message.bytes or split the record",
            size_bytes=alone, limit_bytes=lanes.max_bytes)
    return lane


cdef int _send_values(ManyReceipt receipt, list values, int32_t partition) except -1:
    cdef Py_ssize_t i = 0, n = PyList_GET_SIZE(values)
    while i < n:
        i = _put_values(receipt, values, i, n, partition, True)
    return 0


cdef Py_ssize_t _put_values(ManyReceipt receipt, list values, Py_ssize_t i, Py_ssize_t n, int32_t partition,
                            bint wait) except -1:
    """The fast way: values without keys, encoded in one loop a batch. Returns the number of the first that
    was not taken: `n`, or, unless it may `wait`, one that has to."""
    cdef Lanes lanes = receipt._lanes
    cdef int32_t p
    cdef shmb_lane *lane
    cdef shmb_item item
    cdef shmb_put rc, after
    item.key = item.headers = NULL
    item.key_bytes = -1
    item.headers_bytes = 0
    item.headers_count = 0
    while i < n:
        # One record by the exact rules: it opens a batch, or closes a full one.
        held = []
        try:
            _point(&item.value, &item.value_bytes, values[i], "value", held)
        except TypeError as error:
            raise TypeError(f"value {i}: {error}; {i} of {len(values)} values were sent") from None
        item.timestamp = shmb_wall_ms()
        p = lanes.choose(&item) if partition < 0 else partition
        if not wait and not _lane_ready(lanes, p, &item):
            return i
        lane = _lane_for(lanes, p, &item)
        after = SHMB_PUT_OK
        if lane.out.ring.bell >= 0:
            rc = _put_run(receipt, lane, &item, values, &i, n, &after)
        else:
            rc = _put_batch(receipt, lane, &item, values, &i, n, &after)
        if rc == SHMB_PUT_OK:
            if after > SHMB_PUT_NO_ROOM:
                lanes.sender.after_slow(lanes, lane, after)
        elif not wait and _must_wait(lanes.sender, rc):
            return i
        else:
            _add_slow(receipt, lane, &item, rc)
            i += 1
        shmb_tender_poke(lane.out)
    return i


cdef shmb_put _put_batch(ManyReceipt receipt, shmb_lane *lane, const shmb_item *first, list values,
                         Py_ssize_t *i, Py_ssize_t n, shmb_put *after) except *:
    """values[i], which is `first`, and those after it that surely fit into the same batch; moves `i` on."""
    cdef shmb_outlet *o = shmb_lane_lock(lane)
    cdef shmb_pbatch *b
    cdef int32_t index, before
    cdef shmb_put rc = shmb_lane_put(lane, first, &b, &index)
    try:
        if rc == SHMB_PUT_OK:
            receipt.add(b, index, 1)
            i[0] += 1
            before = b.count
            try:
                put_values(&lane.at, lane.limit, values, i, &b.count, first.timestamp - b.first_timestamp)
            except TypeError:
                pass  # the caller's loop takes it, or says what is wrong
            if first.timestamp > b.max_timestamp:
                b.max_timestamp = first.timestamp
            if b.count > before:
                receipt.add(b, before, b.count - before)
            if i[0] >= n or shmb_ingress_dry(&o.ring):
                after[0] = shmb_lane_after(lane)
    finally:
        shmb_unlock(&o.lock)
    return rc


cdef shmb_put _put_run(ManyReceipt receipt, shmb_lane *lane, const shmb_item *first, list values,
                       Py_ssize_t *i, Py_ssize_t n, shmb_put *after) except *:
    """_put_batch() without the GIL: a thread of this very process is the ring's other side, and would wait
    for it. A batch of 512 KiB takes 200 us; a GIL that is just let go of between two is never got."""
    cdef PyObject *run[RUN]
    cdef PyObject *value
    cdef Py_ssize_t held = 0, k = 1, most = min(<Py_ssize_t>RUN, n - i[0])
    cdef int64_t room = lane.batch_want
    cdef shmb_outlet *o
    cdef shmb_pbatch *b
    cdef int32_t index
    cdef shmb_put rc
    while held < most and room > 0:
        value = PyList_GET_ITEM(values, i[0] + held)
        if is_exact_bytes(value):
            room -= bytes_size(value)
        elif value != <PyObject *>None and held:
            break  # the caller's loop takes it, or says what is wrong
        Py_INCREF(<object>value)
        run[held] = value
        held += 1
    try:
        with nogil:
            o = shmb_lane_lock(lane)
            rc = shmb_lane_put(lane, first, &b, &index)
            if rc == SHMB_PUT_OK:
                shmb_pbatch_hold(b)
                put_pointers(&lane.at, lane.limit, run, held, &k, &b.count,
                             first.timestamp - b.first_timestamp)
                if first.timestamp > b.max_timestamp:
                    b.max_timestamp = first.timestamp
                if i[0] + k >= n or shmb_ingress_dry(&o.ring):
                    after[0] = shmb_lane_after(lane)
            shmb_unlock(&o.lock)
        if rc == SHMB_PUT_OK:
            try:
                receipt.add(b, index, <int32_t>k)
            finally:
                shmb_pbatch_release(b)
            i[0] += k
    finally:
        for k in range(held):
            Py_DECREF(<object>run[k])
    return rc


cdef int _add_slow(ManyReceipt receipt, shmb_lane *lane, const shmb_item *item, shmb_put rc) except -1:
    """The record that the fast way did not take: in a batch after all, or dropped."""
    cdef shmb_pbatch *b
    cdef int32_t index
    cdef int dropped = receipt._lanes.sender.send_slow(receipt._lanes, lane, item, rc, &b, &index)
    try:
        if dropped:
            receipt.dropped += 1
        else:
            receipt.add(b, index, 1)
    finally:
        shmb_pbatch_py_release(b)
    return 0


cdef inline bint _must_wait(Sender sender, shmb_put rc):
    """Whether a record that the fast way did not take has to wait; what is full is dropped or refused."""
    return rc != SHMB_PUT_NO_ROOM or sender.on_full == FULL_BLOCK


cdef int _send_items(ManyReceipt receipt, list values, keys, partition, timestamps) except -1:
    cdef int32_t fixed = -1 if partition is None else _partition(receipt._lanes, partition)
    _put_items(receipt, values, keys, timestamps, 0, PyList_GET_SIZE(values), fixed, True)
    return 0


cdef Py_ssize_t _put_items(ManyReceipt receipt, list values, list keys, timestamps, Py_ssize_t i, Py_ssize_t n,
                           int32_t fixed, bint wait) except -1:
    """Values with keys or timestamps: one by one. Returns as _put_values()."""
    cdef Lanes lanes = receipt._lanes
    cdef int32_t p, index
    cdef shmb_lane *lane
    cdef shmb_pbatch *b
    cdef shmb_item item
    cdef shmb_put rc, after
    cdef int64_t now = shmb_wall_ms()
    cdef list held = []
    item.key = item.headers = NULL
    item.key_bytes = -1
    item.headers_bytes = 0
    item.headers_count = 0
    while i < n:
        if i & 255 == 0:
            now = shmb_wall_ms()
        try:
            _point(&item.value, &item.value_bytes, values[i], "value", held)
            if keys is not None:
                _point(&item.key, &item.key_bytes, keys[i], "key", held)
            item.timestamp = now if timestamps is None else _milliseconds(timestamps[i])
        except (TypeError, ValueError) as error:
            raise type(error)(f"record {i}: {error}; {i} of {len(values)} records were sent") from None
        p = fixed if fixed >= 0 else lanes.choose(&item)
        lane = lanes.lanes[p]
        if lane == NULL or lane.stale or shmb_item_bound(&item) + SHMB_BATCH_HEADER_BYTES > lanes.max_bytes:
            if not wait and not _lane_ready(lanes, p, &item):
                return i
            lane = _lane_for(lanes, p, &item)
        rc = shmb_lane_send(lane, &item, &b, &index, &after)
        if rc == SHMB_PUT_OK:
            try:
                receipt.add(b, index, 1)
            finally:
                shmb_pbatch_py_release(b)
            if after > SHMB_PUT_NO_ROOM:
                lanes.sender.after_slow(lanes, lane, after)
        elif not wait and _must_wait(lanes.sender, rc):
            return i
        else:
            _add_slow(receipt, lane, &item, rc)
        shmb_tender_poke(lane.out)
        if held:
            held.clear()
        i += 1
    return i


cdef inline bint _lane_ready(Lanes lanes, int32_t p, const shmb_item *item):
    """Whether _lane_for() will not have to ask the broker."""
    cdef shmb_lane *lane = lanes.lanes[p]
    return lane != NULL and not lane.stale


cdef int64_t _deadline(timeout) except? -1:
    """CLOCK_MONOTONIC ns; None: never."""
    if timeout is None:
        return INT64_MAX
    return shmb_now_ns() + <int64_t>(max(0.0, float(timeout)) * 1e9)


cdef object _left_s(int64_t deadline_ns):
    if deadline_ns == INT64_MAX:
        return None
    return max(0, deadline_ns - shmb_now_ns()) / 1e9


cdef void _tend(int work) noexcept with gil:
    """On the client thread: what it can't do without the GIL."""
    try:
        if work & SHMB_TENDER_COMPRESS:
            for sender in list(_compressing):
                (<Sender>sender).tend()
        if work & SHMB_TENDER_DROPPED:
            for outlets in list(_all_outlets):
                threading.Thread(target=outlets.replace_dropped, name="shmbroker-rings", daemon=True).start()
    except Exception:
        _log.exception("the client thread failed in something")


_compressing = weakref.WeakSet()
_all_outlets = weakref.WeakSet()
