"""C declarations for `feed.pyx`: what it uses of feed.h and inlet.h, and its classes."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from shmbroker._core.reader cimport Mapping, shmb_a32, shmb_a64, shmb_slot


cdef extern from "layout.h" nogil:
    enum:
        SHMB_STATE_CLOSED
        SHMB_STATE_ONLINE
        SHMB_KIND_LOG
        SHMB_KIND_WRITER
    shmb_slot *shmb_table_slot(void *table, uint32_t slot)
    uint64_t shmb_table_bytes(uint32_t slots)
    uint64_t shmb_log_bytes(uint64_t capacity)


cdef extern from "atomics.h" nogil:
    uint64_t shmb_observe(const shmb_a64 *word)
    uint32_t shmb_observe32(const shmb_a32 *word)
    void shmb_publish32(shmb_a32 *word, uint32_t value)


cdef extern from "uptake.h" nogil:
    struct shmb_uptake:
        shmb_a64 taken
        shmb_a64 wanted
        shmb_a32 rung                  # the reader has rung for this feed


cdef extern from "feed.h" nogil:
    enum:
        SHMB_FEED_LEAST                # bytes of the first ring
        SHMB_FEED_ORDER                # faults beside batch.h's
        SHMB_FEED_CREDIT
        SHMB_FEED_MEMORY
    struct shmb_feed:
        shmb_slot *slot
        shmb_uptake uptake
        uint64_t capacity              # of the ring; 0: none yet
        uint64_t end                   # position behind what is published
        int64_t next_offset            # behind it
        int32_t leader_epoch           # of the last batch; -1: unknown
        uint64_t base                  # position that the subscription's credit counts from
        uint64_t limit                 # position that it has credit to
    int shmb_feed_init(shmb_feed *f, shmb_slot *slot, shmb_a32 *park, uint32_t number, int64_t offset,
                       int32_t leader_epoch, uint64_t most, int bell)
    void shmb_feed_free(shmb_feed *f)
    int shmb_feed_open(shmb_feed *f, uint64_t generation)
    int shmb_feed_has(shmb_feed *f, int64_t offset)
    void shmb_feed_begin(shmb_feed *f)
    uint64_t shmb_feed_grant(shmb_feed *f, uint64_t spare)
    void shmb_feed_state(shmb_feed *f, uint32_t state)


cdef extern from "inlet.h" nogil:
    enum:
        SHMB_INLET_NUMBERS             # subscriptions' numbers are below this
        SHMB_INLET_STAGE               # bytes that are kept between two looks
    enum shmb_inlet_event:
        SHMB_INLET_MORE
        SHMB_INLET_FRAME
        SHMB_INLET_FAULT
        SHMB_INLET_RUBBISH
        SHMB_INLET_END
    enum shmb_inlet_known:
        SHMB_INLET_NONE
        SHMB_INLET_LIVE
        SHMB_INLET_ENDING
    struct iovec:
        void *iov_base
        size_t iov_len
    struct shmb_inlet:
        shmb_feed *feeds[1025]         # by subscription; NULL: what comes for it goes nowhere
        uint8_t known[1025]
        uint64_t heard                 # bytes that have come
        uint32_t number                # whose feed failed
        uint32_t frame_bytes           # of the frame that is whole
        int fault
        size_t from_ "from"            # what is staged
        size_t to
        uint8_t stage[1]               # SHMB_INLET_STAGE
    int shmb_inlet_places(shmb_inlet *i, iovec *v)
    void shmb_inlet_came(shmb_inlet *i, size_t n)
    shmb_inlet_event shmb_inlet_look(shmb_inlet *i)
    shmb_inlet_event shmb_inlet_read(shmb_inlet *i, int fd)
    void shmb_inlet_drop(shmb_inlet *i, uint32_t number, shmb_inlet_known known)
    enum:
        POLLIN
        POLLOUT
    struct pollfd:
        int fd
        short events
        short revents
    void shmb_inlets_wait(pollfd *p, shmb_inlet **inlets, int *events, int n, int64_t deadline_ns)


cdef class Feed:
    cdef readonly Mapping table        # of one slot
    cdef readonly uint32_t number      # which park words it rings, as a writer's number
    cdef readonly Mapping park         # whose words it rings; stays mapped
    cdef object _bell                  # stays open
    cdef shmb_feed *_feed


cdef class Inlet:
    cdef shmb_inlet *_inlet
    cdef list _feeds                   # what _inlet refers to stays
