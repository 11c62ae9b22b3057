"""What engine.pyx uses of the C engine. Layouts stay in C: only the fields named here are touched."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from shmbroker._core.scan cimport shmb_producers


cdef extern from "housekeep.h" nogil:
    ctypedef struct shmb_a64:
        pass
    ctypedef struct shmb_a32:
        pass
    uint64_t shmb_observe(const shmb_a64 *word)
    uint64_t shmb_peek(const shmb_a64 *word)
    void shmb_publish(shmb_a64 *word, uint64_t value)
    uint32_t shmb_observe32(const shmb_a32 *word)
    void shmb_publish32(shmb_a32 *word, uint32_t value)
    int64_t shmb_now_ns()

    enum:
        SHMB_PAGE
        SHMB_DISK_INDEX_ENTRIES
        SHMB_OP_ADD_PART
        SHMB_OP_REMOVE_PART
        SHMB_OP_HOLD
        SHMB_OP_RESUME
        SHMB_OP_ALLOC
        SHMB_OP_NEXT
        SHMB_OP_ROLL_DUE
        SHMB_OP_CEILING
        SHMB_OP_LIMITS
        SHMB_OP_INDEX_INTERVAL
        SHMB_OP_ADD_SOURCE
        SHMB_OP_REMOVE_SOURCE
        SHMB_OP_STOP

    struct shmb_slot:
        uint8_t topic_id[16]
        uint32_t partition
        shmb_a32 slot_epoch
        shmb_a32 state
        shmb_a32 reason
        shmb_a64 generation
        shmb_a64 ring_bytes
        uint32_t disk_unit
        shmb_a64 log_end_position
        shmb_a64 log_end_offset
        shmb_a64 durable_position
        shmb_a64 durable_offset
        shmb_a64 flush_base_offset
        shmb_a64 flush_base_position
        shmb_a64 append_base_offset
        shmb_a64 append_base_position
        shmb_a64 log_start_offset
        shmb_a64 bytes

    struct shmb_writer_head:
        uint32_t writer
        uint32_t slots_max
        shmb_a64 pid
        shmb_a64 incarnation
        shmb_a64 heartbeat_ns

    struct shmb_part:
        uint32_t index
        shmb_slot *slot
        uint64_t unit
        uint8_t *data
        uint64_t capacity
        uint64_t log_end
        int64_t next_offset
        int32_t leader_epoch
        uint64_t alloc_bytes
        uint64_t segment_bytes
        uint64_t max_message_bytes
        uint64_t index_interval_bytes
        uint64_t ring_need
        uint64_t ring_must
        uint64_t alloc_need
        uint64_t ring_ceiling
        int64_t max_timestamp
        int64_t max_timestamp_offset
        shmb_producers *producers
        uint8_t held
        shmb_a32 roll_pending
        shmb_a32 roll_ready
        int fd
        int64_t sealed_base_offset
        uint64_t sealed_bytes
        int64_t sealed_max_timestamp
        int failed_errno
        shmb_a32 wants
        shmb_a32 wants_queued
        void *disk_index
        shmb_a64 disk_index_head
        shmb_a64 disk_index_tail

    struct shmb_disk_index_entry:
        int64_t last_offset
        int64_t file_position
        int64_t max_timestamp
        int64_t max_timestamp_offset
        int64_t segment_base_offset

    struct shmb_source:
        uint64_t id
        uint8_t *object
        uint8_t *data
        uint64_t capacity
        uint8_t *receipts
        uint64_t slots
        uint64_t tail
        shmb_a32 *word
        shmb_part *blocked
        uint64_t blocked_ns
        shmb_a32 detached
        const char *why

    struct shmb_ingress_head:
        shmb_a64 head
        uint64_t capacity
    struct shmb_receipts_head:
        shmb_a64 tail
        uint64_t slots

    struct shmb_queue:
        pass
    struct shmb_engine:
        shmb_writer_head *head
        shmb_a32 *park
        uint32_t writer
        uint32_t slots
        uint64_t flush_max_bytes
        uint64_t inline_limit_ns
        uint64_t spin_ns
        uint64_t spin_now_ns
        uint32_t idle
        int32_t trace_fd
        shmb_a32 flushers_stop
        shmb_queue wants
        int wants_fd

    int shmb_queue_pop(shmb_queue *q, uint64_t *value)
    int shmb_engine_init(shmb_engine *e, void *table, void *park, uint32_t sources_max)
    void shmb_engine_free(shmb_engine *e)
    void shmb_command_run(shmb_engine *e, uint32_t op, shmb_part *p, shmb_source *g, uint64_t a,
                          uint64_t b, int running)
    void shmb_sequence(shmb_engine *e, uint8_t *bounce)
    void shmb_flusher_run(shmb_engine *e, uint8_t *bounce)
    void shmb_flusher_wake(shmb_engine *e, int all)
    shmb_slot *shmb_table_slot(void *table, uint32_t slot)
    shmb_part *shmb_part_new(shmb_engine *e, uint32_t slot)
    void shmb_part_fresh(shmb_part *p, uint64_t file_position, int64_t segment_base_offset,
                         int64_t next_offset, int64_t log_start_offset)
    void shmb_part_install(shmb_part *p, uint8_t *object, uint64_t capacity, uint64_t generation,
                           const uint8_t *tail, uint64_t tail_bytes)
    void shmb_part_reuse(shmb_part *p, uint8_t *object, uint64_t capacity)
    void shmb_part_state(shmb_engine *e, shmb_part *p, uint32_t state, uint32_t reason)
    void shmb_wants_clear(shmb_part *p, uint32_t bits)
    void shmb_part_rolled(shmb_engine *e, shmb_part *p, int fd)
    void shmb_marked(const shmb_part *p, int64_t *segment, uint64_t *bytes, int64_t *offset)
    void shmb_token_wait(shmb_part *p)
    void shmb_token_release(shmb_engine *e, shmb_part *p, int wake)
    void shmb_flush_request(shmb_engine *e, shmb_part *p, int urgent, int wake)
    int shmb_wait_drained(shmb_engine *e, shmb_part *p, int64_t deadline_ns)
    void shmb_adopt_segments(shmb_part *p)
    int shmb_adopt_walk(shmb_part *p, int64_t *next_offset, uint64_t *position)
    void shmb_adopt_positions(shmb_part *p, int64_t next_offset)
    void shmb_adopt_source(shmb_engine *e, shmb_source *g)
    void shmb_part_ring_all(shmb_engine *e, shmb_part *p)
    void *shmb_map(int fd, size_t bytes, int writable)
    void *shmb_map_double(int fd, size_t data_offset, size_t capacity, int writable)
    void shmb_unmap_double(void *at, size_t data_offset, size_t capacity)
    uint64_t shmb_log_data_offset(uint64_t capacity)
    uint64_t shmb_table_bytes(uint32_t slots)
    uint64_t shmb_receipts_bytes(uint64_t slots)
    uint32_t shmb_park_ingress(uint64_t ingress)
    const char *shmb_batch_error_name(int error)
    enum:
        SHMB_LINE


cdef class Engine:
    cdef shmb_engine *e
    cdef void *table
    cdef void *park
    cdef size_t table_bytes
    cdef dict parts               # slot -> Partition
    cdef dict sources             # ingress id -> Source
    cdef object lock              # one command at a time
    cdef readonly bint running    # the sequencer's thread is in its loop
    cdef readonly int flushers

    cdef uint8_t *_bounce(self) except NULL
    cdef shmb_slot *_slot(self, uint32_t slot) except NULL
    cdef _command(self, uint32_t op, shmb_part *p, shmb_source *g, uint64_t a, uint64_t b)


cdef class Partition:
    cdef Engine engine
    cdef shmb_part *p
    cdef object producers         # keeps the table alive
    cdef uint8_t *ring            # mapping of the present generation; NULL: none

    cdef _unmap(self)
    cpdef uint32_t _take_wants(self)
    cpdef _release(self)


cdef class Source:
    cdef Engine engine
    cdef shmb_source *g
    cdef size_t client_offset
    cdef size_t receipts_bytes

    cpdef _release(self)
