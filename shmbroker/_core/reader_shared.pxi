# Part of reader.pyx: one partition's ring for many who read it at places of their own, as bytes.


@cython.final
cdef class SharedReader(PartitionReader):
    """A PartitionReader that keeps nobody's place: who asks says where, and gets places, not records.

    For a reader process, whose subscriptions share the mapped ring of a partition. `position` is only
    what a Watcher waits to be passed. Not thread-safe.
    """

    def ends(self):
        """(log start offset, high watermark, log end offset), as of now."""
        return (<int64_t>shmb_observe(&self._slot.log_start_offset),
                <int64_t>shmb_observe(&self._slot.durable_offset),
                <int64_t>shmb_observe(&self._slot.log_end_offset))

    @property
    def current_epoch(self):
        """The leader epoch that the next batch will get."""
        return <int32_t>shmb_observe32(&self._slot.current_epoch)

    @property
    def generation(self):
        """Of the ring that there is now; 0: none."""
        return shmb_observe(&self._slot.generation)

    def stretch(self, int64_t offset, size_t most, uint64_t generation=0, uint64_t position=0):
        """Whole visible batches in the ring, the first of which has `offset`: (generation, log position,
        bytes, next offset, leader epoch of the last), or None when the ring hasn't them.

        At most `most` bytes, but always one batch. `generation` and `position` are where `offset` was
        when somebody looked last; 0: nobody knows.
        """
        cdef Span span
        cdef int64_t end
        cdef bint found, good
        cdef const shmb_log_view *v = &self._view
        if self._seen_slot_epoch != self.slot_epoch:
            return None
        end = self._visible()
        if offset >= end or offset < <int64_t>shmb_observe(&self._slot.log_start_offset):
            return None
        if v.generation != shmb_observe(&self._slot.generation):
            self._map()
        if v.object == NULL:
            return None
        span.size = 0
        with nogil:
            if generation == v.generation and position:
                walk(v.data + position % v.capacity, v.capacity, offset, end, most, &span)
            if span.size == 0:  # behind a roll, or overwritten, or not known
                found = seek(v, offset, &position)
                if found:
                    walk(v.data + position % v.capacity, v.capacity, offset, end, most, &span)
            good = (span.size and shmb_slot_still_there(v.slot, position, v.capacity)
                    and shmb_observe(&self._slot.generation) == v.generation)
        if not good or shmb_observe32(&self._slot.slot_epoch) != self.slot_epoch:
            return None
        return v.generation, position, span.size, span.next_offset, span.leader_epoch

    def copy(self, uint64_t generation, uint64_t position, unsigned char[::1] to not None, size_t n):
        """Copies `n` bytes of the ring from log position `position` on into `to`. False when they are
        gone, or the ring is another one: look in the files."""
        cdef bint good
        if (n == 0 or n > <size_t>to.shape[0] or self._view.object == NULL
                or self._view.generation != generation):
            return False
        with nogil:
            good = shmb_log_copy(&self._view, position, &to[0], n)
        return good and shmb_observe32(&self._slot.slot_epoch) == self.slot_epoch
