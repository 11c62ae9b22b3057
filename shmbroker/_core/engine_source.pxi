# An ingress ring as the writer sees it. Included by engine.pyx.


cdef class Source:
    """An ingress ring as the writer sees it."""

    def __dealloc__(self):
        self._release()

    cpdef _release(self):
        if self.g is not NULL:
            if self.g.object is not NULL:
                shmb_unmap_double(<void *>self.g.object, SHMB_PAGE, self.g.capacity)
            if self.g.receipts is not NULL:
                munmap(self.g.receipts, self.receipts_bytes)
            free(self.g)
            self.g = NULL

    @property
    def id(self):
        """Ingress id."""
        return self.g.id

    @property
    def pending_bytes(self):
        """Published and not consumed, bytes."""
        head = shmb_observe(&(<shmb_ingress_head *>self.g.object).head)
        return head - shmb_peek(&(<shmb_receipts_head *>self.g.receipts).tail)

    @property
    def detached(self):
        """Why the ring is no longer read, or None."""
        if not shmb_observe32(&self.g.detached):
            return None
        return self.g.why.decode()

    def describe(self):
        """For `status`: id, capacity and pending bytes, the slot that the head frame waits for and since when."""
        cdef shmb_part *blocked = self.g.blocked
        return {
            "ingress": self.g.id,
            "capacity": self.g.capacity,
            "pending_bytes": self.pending_bytes,
            "blocked_slot": None if blocked is NULL else blocked.index,
            "blocked_ns": 0 if blocked is NULL else self.g.blocked_ns,
            "detached": self.detached,
        }
