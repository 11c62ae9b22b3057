# Receipts: what send() and send_many() return. Included by producer.pyx.
#
# A receipt is a pointer to its batch and a number in it: 48 bytes, unseen by the garbage collector. It
# keeps the batch's C struct (counted) and the sender alive; it never keeps a Producer from being dropped.


@cython.no_gc
@cython.freelist(256)
@cython.final
cdef class Receipt:
    """The outcome of one send(). Thread-safe; made before a fork, it raises ForkedError in the child."""

    def __dealloc__(self):
        if self._b != NULL and self._lanes._generation == shmb_fork_generation:
            shmb_pbatch_py_release(self._b)

    def __init__(self):
        raise TypeError("receipts are made by send()")

    def __repr__(self):
        if self._lanes._generation != shmb_fork_generation:
            return "<Receipt of a parent process>"
        return f"<Receipt {self._lanes.name}-{self._b.lane.partition} {_state_name(self._b)}>"

    def __await__(self):
        """As result(), without blocking the loop; any number of tasks may. Only of an asyncio producer.

        Cancelled, it leaves the record and the receipt alone. Raises OutcomeUnknown once
        delivery_timeout_ms has passed, BrokerGone, ClosedError, or why the record was rejected.
        """
        _alive(self._lanes)
        return _await_receipt(self).__await__()

    def done(self):
        """Whether the outcome is known: acknowledged as acks asks for, or failed. Never blocks."""
        _alive(self._lanes)
        return _done(self._b)

    def result(self, timeout=None):
        """Waits for the outcome and returns RecordMetadata; seals the record's batch if it is open.

        `timeout` in seconds; None waits up to delivery_timeout_ms after the send. Raises TimedOut
        (the record may still arrive), OutcomeUnknown, BrokerGone, or why the record was rejected.
        With acks="durable" the record is on stable storage when this returns.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        b = self._b
        offset = None if b.base_offset < 0 else b.base_offset + self._index
        return RecordMetadata(self._lanes.name, b.lane.partition, offset, self._timestamp)

    def add_done_callback(self, fn):
        """Calls `fn(receipt)` once, when the outcome is known, on the client's callback thread.

        Always there, also when it is known already; one thread a process, so a callback that blocks
        holds up the others. What it raises is logged to the logger "shmbroker". Also called when there
        is nothing to wait for any more: delivery_timeout_ms has passed, the broker did not come back,
        or the producer was closed; then result(0) in it says so. flush() and close() return after the
        callbacks of what they waited for. The record is not sealed early for it.
        """
        _alive(self._lanes)
        _add_callback(self, fn)

    @property
    def dropped(self):
        """Whether the record found no room and was dropped (on_full="drop"): result() raises BufferFull."""
        _alive(self._lanes)
        return self._b.error == SHMB_E_FULL

    def exception(self, timeout=None):
        """Waits like result() and returns why the record failed, or None. Raises only TimedOut,
        BrokerGone and OutcomeUnknown of the wait itself."""
        _alive(self._lanes)
        _await(self._lanes, self._b, timeout)
        if shmb_pbatch_state(self._b) < SHMB_PB_FAILED:
            return None
        if not self._looked:
            self._looked = 1
            _look_at(self._b, 1)
        return _error_of(self._b, self._lanes)


@cython.no_gc
@cython.final
cdef class ManyReceipt:
    """The outcome of one send_many(). As Receipt, for all its records together."""

    def __init__(self):
        raise TypeError("receipts are made by send_many()")

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self._segments != NULL:
            if self._lanes._generation == shmb_fork_generation:
                for i in range(self._used):
                    shmb_pbatch_py_release(self._segments[i].b)
            free(self._segments)

    def __len__(self):
        return self.count

    def __await__(self):
        """As result(), without blocking the loop; see Receipt."""
        _alive(self._lanes)
        return _await_many(self).__await__()

    cdef int add(self, shmb_pbatch *b, int32_t first, int32_t count) except -1:
        self.count += count
        if self._used and self._segments[self._used - 1].b == b:
            self._segments[self._used - 1].count += count
            return 0
        cdef Py_ssize_t room
        cdef void *more
        if self._used == self._room:
            room = self._room * 2 if self._room else 4
            more = realloc(self._segments, room * sizeof(segment))
            if more == NULL:
                raise MemoryError()
            self._segments = <segment *>more
            self._room = room
        self._segments[self._used].b = b
        self._segments[self._used].first = first
        self._segments[self._used].count = count
        shmb_pbatch_py_hold(b)
        self._used += 1
        return 0

    def done(self):
        """Whether the outcome of every record is known. Never blocks."""
        _alive(self._lanes)
        return self.unsettled() == NULL

    def add_done_callback(self, fn):
        """As Receipt.add_done_callback, when the outcome of every record is known."""
        _alive(self._lanes)
        _add_callback(self, fn)

    cdef shmb_pbatch *unsettled(self):
        """The first batch whose outcome is not known yet, or NULL."""
        cdef Py_ssize_t i = self._settled
        while i < self._used:
            if not _done(self._segments[i].b):
                return self._segments[i].b
            i += 1
            self._settled = i
        return NULL

    def exception(self, timeout=None):
        """Waits for all and returns why the first failed one failed, or None; as Receipt.exception."""
        _alive(self._lanes)
        cdef Py_ssize_t i
        deadline = None if timeout is None else time.monotonic() + timeout
        found = None
        for i in range(self._used):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            _await(self._lanes, self._segments[i].b, left)
            if shmb_pbatch_state(self._segments[i].b) >= SHMB_PB_FAILED:
                if not self._looked:
                    _look_at(self._segments[i].b, self._segments[i].count)
                if found is None:
                    found = _error_of(self._segments[i].b, self._lanes)
        self._looked = 1
        if found is None and self.dropped:
            found = errors.BufferFull(
                f"{self.dropped} of {self.dropped + self.count} records for topic {self._lanes.name!r} found no "
                "room and were dropped (on_full=\"drop\"); the others were acknowledged")
        return found

    def result(self, timeout=None):
        """Waits for all and returns ManyMetadata, or raises what the first failed record met; BufferFull
        also when some were dropped.

        `timeout` in seconds; None waits up to delivery_timeout_ms after the send.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        cdef Py_ssize_t i
        cdef shmb_pbatch *b
        offsets = {}
        counts = {}
        for i in range(self._used):
            b = self._segments[i].b
            partition = b.lane.partition
            counts[partition] = counts.get(partition, 0) + self._segments[i].count
            if b.base_offset < 0:
                offsets[partition] = None
            else:
                first = b.base_offset + self._segments[i].first
                offsets[partition] = min(first, offsets.get(partition, first))
        return ManyMetadata(self._lanes.name, self.count, offsets, counts)


cdef inline int _alive(Lanes lanes) except -1:
    if lanes._generation != shmb_fork_generation:
        raise errors.ForkedError("this receipt")
    return 0


cdef bint _done(shmb_pbatch *b):
    cdef shmb_look look
    if not shmb_pbatch_settled(b):
        with nogil:
            shmb_pbatch_look(b, False, &look)
    return shmb_pbatch_settled(b)


cdef str _state_name(shmb_pbatch *b):
    return ("open", "published", "received", "done", "failed", "unknown")[shmb_pbatch_state(b)]


cdef int _look_at(shmb_pbatch *b, int32_t records) except -1:
    cdef shmb_outlet *o = shmb_lane_lock(b.lane)
    b.unlooked = max(0, b.unlooked - records)
    shmb_unlock(&o.lock)
    return 0


cdef int _await(Lanes lanes, shmb_pbatch *b, timeout) except -1:
    """Until `b` is settled. TimedOut after `timeout` s, OutcomeUnknown after the delivery timeout."""
    cdef Sender sender = lanes.sender
    cdef int64_t deadline_ns
    if shmb_pbatch_settled(b):
        return 0
    deadline_ns = b.born_ns + sender.delivery_ns if timeout is None else _deadline(timeout)
    if sender.settle(b, deadline_ns):
        return 0
    where = f"{lanes.name}-{b.lane.partition}"
    if timeout is None:
        raise _late(lanes, b)
    raise errors.TimedOut(f"no acknowledgement from {where} within {timeout:g} s{_why_blocked(b.lane)}; "
                          "it may still come")


cdef object _late(Lanes lanes, shmb_pbatch *b):
    return errors.OutcomeUnknown(
        f"a batch of {b.count} records for {lanes.name}-{b.lane.partition} was not acknowledged within "
        f"delivery_timeout_ms ({lanes.sender.delivery_ns // 1_000_000}){_why_blocked(b.lane)}; "
        "it may still be appended")


cdef object _earlier(str where, cause):
    error = errors.EarlierRejected(
        f"{where}: an earlier batch of this producer was rejected ({cause}), so this one went with it; "
        "send it again")
    error.__cause__ = cause
    return error


cdef object _error_of(shmb_pbatch *b, Lanes lanes):
    """A new exception that says what became of the batch."""
    partition = b.lane.partition
    where = f"{lanes.name}-{partition}"
    if shmb_pbatch_state(b) == SHMB_PB_UNKNOWN:
        return errors.OutcomeUnknown(
            f"whether {b.count} records for {where} were appended can't be settled: the partition was "
            "recovered or went offline before they were durable; look at its end, then send again")
    if b.error == SHMB_E_EARLIER:
        return _earlier(where, errors.from_code(b.cause, "", topic=lanes.name, partition=partition))
    if b.error == SHMB_E_FULL:
        return errors.BufferFull(f"the ring to the writer of {where} was full, and the record was dropped "
                                 "(on_full=\"drop\")")
    if b.error == errors.UnknownTopic.kafka_code:
        return errors.UnknownTopic(lanes.name)
    error = errors.from_code(b.error, "", topic=lanes.name, partition=partition)
    error.args = (f"{where}: {error.message}",)
    return error
