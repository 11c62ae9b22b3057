"""C declarations for `mirror.pyx`: what it uses of mirror.h, and its classes."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from shmbroker._core.reader cimport Mapping, shmb_a32, shmb_a64


cdef extern from "layout.h" nogil:
    enum:
        SHMB_PAGE
        SHMB_SLOTS_MAX
        SHMB_KIND_INGRESS
        SHMB_KIND_RECEIPTS
        SHMB_KIND_WRITER
    struct shmb_frame:
        uint32_t length
        uint16_t acks
        uint32_t slot
        uint64_t frame_seq
    struct shmb_ingress_head:
        shmb_a64 head
        uint64_t capacity
    struct shmb_receipts_head:
        uint64_t slots
    uint64_t shmb_table_bytes(uint32_t slots)
    uint64_t shmb_receipts_bytes(uint64_t slots)


cdef extern from "atomics.h" nogil:
    uint64_t shmb_observe(const shmb_a64 *word)


cdef extern from "shm.h" nogil:
    void *shmb_map(int fd, size_t bytes, int writable)
    void *shmb_map_double(int fd, size_t data_offset, size_t capacity, int writable)
    void shmb_unmap_double(void *at, size_t data_offset, size_t capacity)


cdef extern from "mirror.h" nogil:
    struct shmb_answer:
        uint64_t chain
    struct shmb_mirror:
        shmb_ingress_head *ring
        uint8_t *data
        shmb_receipts_head *receipts
        size_t receipts_bytes
        void *table
        shmb_a32 *park
        uint64_t capacity, slots, id
        uint32_t writer
        uint64_t at, taken, told
        shmb_answer *answers
    void shmb_mirror_assign(void *table, uint32_t slot, const uint8_t *topic_id, uint32_t partition)
    const shmb_frame *shmb_mirror_next(shmb_mirror *m)
    void shmb_mirror_take(shmb_mirror *m)
    void shmb_mirror_answer(shmb_mirror *m, uint64_t seq, int32_t error, int64_t base_offset)
    int shmb_mirror_arm(shmb_mirror *m)


cdef class MirrorRing:
    cdef shmb_mirror *_m
    cdef object _park, _table          # mapped as long as this is there
    cdef int _ring_fd, _receipts_fd
