"""A remote client's own copy of what a broker shares: a writer table, ingress rings and their receipts.

Owns: the memory, in memfds of this process, and the writer's half of each ring (mirror.h). A MirrorRing
belongs to one thread, the connection's, but the `open_` methods, for any. What is in the rings comes from
producers of this very process, and is trusted as far as that.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdlib cimport calloc, free
from posix.mman cimport munmap

import os

from shmbroker._core.shm import PARK_BYTES, ShmObject, ingress_bytes

_TOPIC_ID_BYTES = 16


def _memory(str name, uint64_t size):
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mapped(str name, uint64_t size):
    fd = _memory(name, size)
    try:
        return Mapping(name, fd, writable=True)
    finally:
        os.close(fd)


def new_park():
    """Park words of this process alone, mapped."""
    return _mapped("shmb-park", PARK_BYTES)


def new_table():
    """A writer table without partitions, mapped: SLOTS_MAX slots, of which memory is taken as they
    are used."""
    return _mapped("shmb-table", shmb_table_bytes(SHMB_SLOTS_MAX))


def assign(Mapping table not None, uint32_t slot, bytes topic_id not None, uint32_t partition):
    """Makes `slot` that partition's, online and with slot epoch 1, for the table's life."""
    if slot >= SHMB_SLOTS_MAX or len(topic_id) != _TOPIC_ID_BYTES:
        raise ValueError(f"slot {slot}, topic id of {len(topic_id)} bytes")
    shmb_mirror_assign(table._at, slot, <const uint8_t *>topic_id, partition)


cdef class MirrorRing:
    """One ingress ring: frames out, answers in.

    `capacity` in bytes, a power of two of at least 64 KiB; `slots` receipts, a power of two.
    """

    def __cinit__(self, Mapping park not None, Mapping table not None, uint64_t ident, uint32_t writer,
                  uint64_t capacity, uint64_t slots):
        cdef shmb_mirror *m
        self._ring_fd = self._receipts_fd = -1
        if capacity < SHMB_PAGE or capacity & (capacity - 1) or slots < 2 or slots & (slots - 1):
            raise ValueError(f"a ring of {capacity} bytes with {slots} receipts")
        self._park, self._table = park, table
        m = self._m = <shmb_mirror *>calloc(1, sizeof(shmb_mirror))
        if m == NULL:
            raise MemoryError()
        m.capacity, m.slots, m.id, m.writer = capacity, slots, ident, writer
        m.table, m.park = table._at, <shmb_a32 *>park._at
        m.receipts_bytes = shmb_receipts_bytes(slots)
        self._ring_fd = _memory("shmb-ingress", ingress_bytes(capacity))
        self._receipts_fd = _memory("shmb-receipts", m.receipts_bytes)
        m.answers = <shmb_answer *>calloc(slots, sizeof(shmb_answer))
        m.ring = <shmb_ingress_head *>shmb_map_double(self._ring_fd, SHMB_PAGE, capacity, 1)
        m.receipts = <shmb_receipts_head *>shmb_map(self._receipts_fd, m.receipts_bytes, 1)
        if m.answers == NULL or m.ring == NULL or m.receipts == NULL:
            raise MemoryError(f"no memory for a ring of {capacity} bytes")
        m.data = <uint8_t *>m.ring + SHMB_PAGE
        m.ring.capacity = capacity
        m.receipts.slots = slots

    def __dealloc__(self):
        cdef shmb_mirror *m = self._m
        if m != NULL:
            if m.ring != NULL:
                shmb_unmap_double(m.ring, SHMB_PAGE, m.capacity)
            if m.receipts != NULL:
                munmap(m.receipts, m.receipts_bytes)
            free(m.answers)
            free(m)
        if self._ring_fd >= 0:
            os.close(self._ring_fd)
        if self._receipts_fd >= 0:
            os.close(self._receipts_fd)

    @property
    def ident(self):
        """The ingress id."""
        return self._m.id

    @property
    def writer(self):
        """Whose ring it is, by the number of its table."""
        return self._m.writer

    @property
    def capacity(self):
        """Bytes."""
        return self._m.capacity

    @property
    def pending_bytes(self):
        """Published and not taken."""
        return shmb_observe(&self._m.ring.head) - self._m.at

    @property
    def unanswered(self):
        """Frames that were taken and have no receipt."""
        return self._m.taken - self._m.told

    def open_ring(self):
        """The ring as a ShmObject of the caller's."""
        return ShmObject("shmb-ingress", os.dup(self._ring_fd), SHMB_KIND_INGRESS, self._m.id,
                         ingress_bytes(self._m.capacity))

    def open_receipts(self):
        """Its receipts, likewise."""
        return ShmObject("shmb-receipts", os.dup(self._receipts_fd), SHMB_KIND_RECEIPTS, self._m.id,
                         self._m.receipts_bytes)

    def next_slot(self):
        """Whose the next frame is: its slot; -1 when there is none."""
        cdef const shmb_frame *f = shmb_mirror_next(self._m)
        return -1 if f == NULL else <int>f.slot

    def take(self):
        """The next frame: (sequence, acks, batch), the batch a view of its place in the ring, which is
        used again once the frame and all before it are answered: let go of it before.

        Call it only after `next_slot` has named one."""
        cdef const shmb_frame *f = shmb_mirror_next(self._m)
        cdef size_t start
        cdef tuple found  # declared, since Cython would infer the type of a const field for ever
        if f == NULL:
            raise IndexError("no frame")
        start = <size_t>(<const uint8_t *>f - self._m.data) + sizeof(shmb_frame)
        found = (f.frame_seq, f.acks, memoryview(self)[start:start + f.length])
        shmb_mirror_take(self._m)
        return found

    def answer(self, uint64_t seq, int32_t error, int64_t base_offset):
        """What became of a frame that was taken: an error's number, or 0 and its base offset, -1 if
        unknown, once what its acks ask for is reached. Each once, in any order."""
        if not self._m.told <= seq < self._m.taken:
            raise ValueError(f"frame {seq} waits for no answer")
        shmb_mirror_answer(self._m, seq, error, base_offset)

    def arm(self):
        """Has the next publication ring the producers' bell; whether there was one since `next_slot` or
        this was asked: look again then, it may not ring."""
        return shmb_mirror_arm(self._m) != 0

    def __getbuffer__(self, Py_buffer *view, int flags):
        # Both maps of the ring, read-only: a batch is in one piece.
        PyBuffer_FillInfo(view, self, self._m.data, 2 * self._m.capacity, 1, flags)
