# One partition in the engine, as the housekeeper holds it. Included by engine.pyx.


cdef class Partition:
    """One partition in the engine; the housekeeper's handle."""

    def __dealloc__(self):
        self._release()

    cpdef _release(self):
        if self.p is not NULL:
            self._unmap()
            free(self.p.disk_index)
            free(self.p)
            self.p = NULL

    cdef _unmap(self):
        if self.ring is not NULL:
            shmb_unmap_double(self.ring, shmb_log_data_offset(self.p.capacity), self.p.capacity)
            self.ring = NULL

    cpdef uint32_t _take_wants(self):
        cdef uint32_t bits
        shmb_publish32(&self.p.wants_queued, 0)
        bits = shmb_observe32(&self.p.wants)
        return bits

    @property
    def wants(self):
        """The WANT_* bits raised and not yet done."""
        return shmb_observe32(&self.p.wants)

    def done(self, uint32_t bits):
        """Clears want bits: they may be raised again. Call before acting, so that nothing is missed."""
        shmb_wants_clear(self.p, bits)

    @property
    def slot(self):
        return self.p.index

    @property
    def state(self):
        """State's name."""
        return STATES[shmb_observe32(&self.p.slot.state)]

    def set_state(self, str state, uint32_t reason=0):
        """Publishes the state and wakes every waiter of the partition."""
        cdef uint32_t number = STATES.index(state)
        with nogil:
            shmb_part_state(self.engine.e, self.p, number, reason)

    @property
    def ring_bytes(self):
        """Capacity of the ring, 0 without one."""
        return self.p.capacity if self.ring is not NULL else 0

    @property
    def ring_need(self):
        """What the sequencer asked for with WANT_RING, bytes."""
        return self.p.ring_need

    @property
    def ring_must(self):
        """The part of `ring_need` that a waiting frame can't do without; 0: growth would only be faster."""
        return self.p.ring_must

    @property
    def alloc_need(self):
        """Bytes of the active segment that must be reserved at least."""
        return self.p.alloc_need

    @property
    def generation(self):
        return shmb_peek(&self.p.slot.generation)

    @property
    def roll_waits(self):
        """Base offset of a segment that has yet to be named, or None."""
        if shmb_observe32(&self.p.roll_pending) and not shmb_observe32(&self.p.roll_ready):
            return <int64_t>shmb_peek(&self.p.slot.append_base_offset)
        return None

    @property
    def appended_bytes(self):
        """Bytes of batches appended since the slot was made."""
        return shmb_peek(&self.p.slot.bytes)

    @property
    def log_end_offset(self):
        return <int64_t>shmb_observe(&self.p.slot.log_end_offset)

    @property
    def append_segment(self):
        """(base offset, bytes) of the segment that is appended to."""
        position = shmb_observe(&self.p.slot.log_end_position)
        base = shmb_peek(&self.p.slot.append_base_position)
        return <int64_t>shmb_peek(&self.p.slot.append_base_offset), max(0, position - base)

    @property
    def max_timestamp(self):
        """Largest timestamp in the segment that is appended to, ms; -1: none."""
        return self.p.max_timestamp

    def durable(self):
        """(segment base offset, durable bytes of that segment, durable offset), consistent."""
        cdef int64_t segment = 0, offset = 0
        cdef uint64_t nbytes = 0
        shmb_marked(self.p, &segment, &nbytes, &offset)
        return segment, nbytes, offset

    def set_log_start(self, int64_t offset):
        shmb_publish(&self.p.slot.log_start_offset, <uint64_t>offset)

    def hold(self):
        """Frames for this partition wait from here on (their ingress rings with them)."""
        self.engine._command(SHMB_OP_HOLD, self.p, NULL, 0, 0)

    def resume(self):
        """Ends `hold`."""
        self.engine._command(SHMB_OP_RESUME, self.p, NULL, 0, 0)

    def wait_drained(self, double timeout):
        """Waits until all that was appended is durable. False after `timeout` seconds or when offline."""
        cdef int64_t deadline = shmb_now_ns() + <int64_t>(timeout * 1e9)
        cdef int done
        with nogil:
            done = shmb_wait_drained(self.engine.e, self.p, deadline)
        return bool(done)

    def install_ring(self, int fd, uint64_t capacity, uint64_t generation, tail):
        """Replaces the ring: held and drained. `fd` -1 takes the ring away. `tail`: the bytes of the
        partial last unit, or None to take them from the ring that is replaced."""
        cdef uint8_t *object = NULL
        cdef uint8_t *old = self.ring
        cdef uint64_t old_capacity = self.p.capacity
        cdef uint64_t n = self.p.log_end % self.p.unit
        cdef const uint8_t[:] view
        cdef bytes kept
        if fd >= 0:
            object = <uint8_t *>shmb_map_double(fd, shmb_log_data_offset(capacity), capacity, 1)
            _mapped(object, "the log ring")
            if tail is None:
                kept = (<char *>(self.p.data + (self.p.log_end - n) % old_capacity))[:n] if n else b""
            else:
                kept = bytes(tail)
            if <uint64_t>len(kept) != n:
                raise ValueError(f"the partial unit has {n} bytes, not {len(kept)}")
        with nogil:
            shmb_token_wait(self.p)
        view = kept if fd >= 0 and n else b"\0"
        shmb_part_install(self.p, object, capacity, generation, &view[0], n if fd >= 0 else 0)
        shmb_token_release(self.engine.e, self.p, 1)
        self.ring = object
        shmb_part_ring_all(self.engine.e, self.p)
        if old is not NULL:
            shmb_unmap_double(old, shmb_log_data_offset(old_capacity), old_capacity)

    def set_alloc(self, int64_t segment_base_offset, uint64_t allocated_bytes):
        """The active segment has been preallocated that far."""
        self.engine._command(SHMB_OP_ALLOC, self.p, NULL, <uint64_t>segment_base_offset, allocated_bytes)

    def set_next(self, uint64_t allocated_bytes):
        """A next segment is prepared."""
        self.engine._command(SHMB_OP_NEXT, self.p, NULL, 0, allocated_bytes)

    def set_limits(self, uint64_t segment_bytes, uint64_t max_message_bytes, uint64_t index_interval_bytes):
        """The topic's settings have changed: these hold from the next batch on."""
        self.engine._command(SHMB_OP_LIMITS, self.p, NULL, segment_bytes, max_message_bytes)
        self.engine._command(SHMB_OP_INDEX_INTERVAL, self.p, NULL, index_interval_bytes, 0)

    def set_ring_ceiling(self, uint64_t capacity):
        """A full ring asks to grow only while it is smaller than this."""
        self.engine._command(SHMB_OP_CEILING, self.p, NULL, capacity, 0)

    def roll_due(self, int64_t segment_base_offset):
        """segment.ms has passed for that segment: the next batch begins another."""
        self.engine._command(SHMB_OP_ROLL_DUE, self.p, NULL, <uint64_t>segment_base_offset, 0)

    def rolled(self, int fd):
        """The prepared segment has its name and may be written through `fd`."""
        with nogil:
            shmb_part_rolled(self.engine.e, self.p, fd)

    def set_fd(self, int fd):
        """The file of the active segment, while there was none before (first append)."""
        self.p.fd = fd

    @property
    def sealed(self):
        """(base offset, length in bytes, max timestamp) of the segment that WANT_SEAL speaks of."""
        return self.p.sealed_base_offset, self.p.sealed_bytes, self.p.sealed_max_timestamp

    @property
    def failed_errno(self):
        return self.p.failed_errno

    def collect_index(self):
        """The disk index entries gathered since the last call: list of
        (segment base offset, packed native int64 triples last offset, file position, max timestamp)."""
        cdef uint64_t tail = shmb_peek(&self.p.disk_index_tail), head = shmb_observe(&self.p.disk_index_head)
        cdef shmb_disk_index_entry *ring = <shmb_disk_index_entry *>self.p.disk_index
        cdef shmb_disk_index_entry *x
        cdef list found = []
        cdef int64_t base = -1
        cdef int64_t[3] triple
        cdef bytearray packed = bytearray()
        while tail < head:
            x = &ring[tail % SHMB_DISK_INDEX_ENTRIES]
            if x.segment_base_offset != base:
                if packed:
                    found.append((base, bytes(packed)))
                    packed = bytearray()
                base = x.segment_base_offset
            triple[0] = x.last_offset
            triple[1] = x.file_position
            triple[2] = x.max_timestamp
            packed += (<char *>triple)[:24]
            tail += 1
        shmb_publish(&self.p.disk_index_tail, tail)
        if packed:
            found.append((base, bytes(packed)))
        return found
