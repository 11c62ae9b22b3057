"""C declarations of producers.h and the class that owns a producer table.

The writer's engine cimports `ProducerTable` and hands `table.ptr` to the sequencer: recovery fills the
table, the sequencer uses the very same one, the housekeeper exports it. The headers hold the
contracts.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t


cdef extern from "producers.h" nogil:
    enum:
        SHMB_PRODUCER_BATCHES        # remembered per producer
        SHMB_PRODUCERS_MAX           # producers a partition
        SHMB_PRODUCERS_EXPIRATION_MS
        SHMB_PRODUCER_OK             # results of shmb_producers_check()
        SHMB_PRODUCER_DUPLICATE
        SHMB_PRODUCER_OUT_OF_ORDER
        SHMB_PRODUCER_INVALID_EPOCH
        SHMB_PRODUCER_STALE
        SHMB_PRODUCER_NO_MEMORY      # of shmb_producers_record()

    struct shmb_producers:
        uint32_t count               # producers in the table

    int shmb_producers_init(shmb_producers *t, uint32_t max_count, int64_t expiration_ms)
    void shmb_producers_destroy(shmb_producers *t)
    int shmb_producers_check(shmb_producers *t, int64_t id, int16_t epoch, int32_t base_sequence,
                             int32_t count, int64_t *dup_base_offset)
    int shmb_producers_record(shmb_producers *t, int64_t id, int16_t epoch, int32_t base_sequence,
                              int32_t count, int64_t base_offset, int64_t timestamp_ms)
    uint32_t shmb_producers_expire(shmb_producers *t, int64_t now_ms)
    int64_t shmb_producers_export(shmb_producers *t, int64_t before_offset, uint8_t *out,
                                  size_t capacity)
    int shmb_producers_import(shmb_producers *t, const uint8_t *p, size_t n)


cdef class ProducerTable:
    cdef shmb_producers *ptr  # never NULL and never moved while the object lives
