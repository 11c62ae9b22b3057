# Part of reader.pyx: one partition, from its ring, or out of bytes that its caller read from a segment.


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
        self._uptake = NULL
        self._slot = shmb_table_slot(<void *>address, slot)
        self._park_word = (shmb_park_appended(writer, slot) if self.appended
                           else shmb_park_durable(writer, slot))
        self._see()
        self.unborn = False
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
        self._see()
        state = self._seen_state
        return STATE_NAMES[state] if state < len(STATE_NAMES) else f"unknown ({state})"

    def fetch(self, size_t most):
        """The next visible records that the ring holds: a RecordBatch of about `most` bytes, or None.

        None with `position < end` means that they must be read from the files (`file_limit`).
        Moves `position`. Raises OffsetOutOfRange when it lies before the log start or past the end.
        """
        batch = self._fetch(most)
        if (batch is None and self._seen_state != SHMB_STATE_OPENING
                and self._seen_slot_epoch == self.slot_epoch and self._outside()):
            raise errors.OffsetOutOfRange(self.topic, self.partition, self.position,
                                          self.log_start_offset, self._visible())
        return batch

    cdef void _see(self) noexcept:
        self._seen_slot_epoch = shmb_observe32(&self._slot.slot_epoch)
        self._seen_state = shmb_observe32(&self._slot.state)
        self._seen_generation = shmb_observe(&self._slot.generation)

    cdef bint _outside(self) noexcept:
        return self._seen_state != SHMB_STATE_FREE and (
            self.position < <int64_t>shmb_observe(&self._slot.log_start_offset)
            or self.position > max(self._visible(),
                                   <int64_t>shmb_observe(&self._slot.log_end_offset)))

    cdef RecordBatch _fetch(self, size_t most):
        cdef int64_t end
        cdef RecordBatch batch
        self._see()
        if (self._seen_state == SHMB_STATE_OPENING or self._seen_state == SHMB_STATE_FREE
                or self._seen_slot_epoch != self.slot_epoch):
            return None
        self.unborn = False
        if self._uptake != NULL and self._tracked:  # what was fetched before is handed out, or back
            shmb_uptake_tell(self._uptake, self._ring_position)
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
        if self._seen_slot_epoch != self.slot_epoch:
            return not self.unborn
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
