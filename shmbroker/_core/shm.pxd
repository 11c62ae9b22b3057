"""What `shm.pyx` uses of layout.h and shm.h: names only, offsets stay in C."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t


cdef extern from "atomics.h" nogil:
    ctypedef struct shmb_a64:
        pass
    ctypedef struct shmb_a32:
        pass
    uint64_t shmb_observe(const shmb_a64 *word)
    uint64_t shmb_peek(const shmb_a64 *word)
    uint32_t shmb_observe32(const shmb_a32 *word)
    uint32_t shmb_peek32(const shmb_a32 *word)


cdef extern from "layout.h" nogil:
    enum:
        SHMB_LAYOUT_VERSION
        SHMB_PAGE                # bytes of a head; the unit of capacities
        SHMB_SLOTS_MAX           # of one writer table
        SHMB_WRITERS_MAX
        SHMB_PARK_WORDS
        SHMB_LINE
        SHMB_KIND_PARK
        SHMB_KIND_WRITER
        SHMB_KIND_LOG
        SHMB_KIND_INGRESS
        SHMB_KIND_RECEIPTS
        SHMB_KIND_CHECKPOINTS
        SHMB_CHECKPOINT_NAMES_MAX  # bytes of a group's name and a member id

    struct shmb_preamble:
        uint32_t kind
        uint8_t boot_id[16]
        uint8_t dir_id[16]
        uint64_t object_bytes
        shmb_a32 ready           # stored last; without it the object is rubbish
        uint32_t owner           # writer index, ingress id, or number of the checkpoints

    enum:
        SHMB_STATE_FREE
        SHMB_STATE_ONLINE

    struct shmb_slot:
        uint8_t topic_id[16]
        uint32_t partition
        shmb_a32 slot_epoch
        shmb_a32 state           # enum shmb_state
        shmb_a32 reason          # error code behind the state; 0: none
        shmb_a64 generation
        shmb_a64 ring_bytes
        uint32_t disk_unit
        shmb_a64 reserved_position
        shmb_a64 log_end_position      # exclusive
        shmb_a64 log_end_offset        # of the next record
        shmb_a64 index_head
        shmb_a64 durable_position      # exclusive
        shmb_a64 durable_offset        # the high watermark
        shmb_a64 flush_base_offset
        shmb_a64 flush_base_position
        shmb_a64 append_base_offset
        shmb_a64 append_base_position
        shmb_a64 roll_from_position
        shmb_a64 log_start_offset      # inclusive
        shmb_a32 leader_epoch
        shmb_a64 batches
        shmb_a64 records
        shmb_a64 bytes
        shmb_a64 writes
        shmb_a64 written_bytes
        shmb_a64 write_ns
        shmb_a64 blocked_ns
        shmb_a32 blocked_why           # enum shmb_block

    struct shmb_intent:
        shmb_a64 ingress
        shmb_a64 frame_position
        shmb_a64 frame_seq
        shmb_a64 slot
        shmb_a64 end_position
        shmb_a64 base_offset
        shmb_a64 generation

    struct shmb_writer_head:
        shmb_preamble preamble
        uint32_t writer
        uint32_t slots_max
        shmb_a64 pid
        shmb_a64 incarnation
        shmb_a64 heartbeat_ns
        shmb_intent intent
        shmb_a64 sequencer_parks
        shmb_a64 inline_writes
        shmb_a64 handed_writes
        shmb_a64 frames
        shmb_a64 rejected

    struct shmb_ingress_head:
        shmb_a64 head            # end of what is published, bytes
        uint64_t capacity        # bytes
        uint64_t client_pid

    struct shmb_receipts_head:
        shmb_a64 tail            # end of what is consumed, bytes of the ingress ring
        shmb_a64 receipts        # written so far
        shmb_a32 detached        # error code; 0: attached
        uint64_t slots

    struct shmb_checkpoints_head:
        uint64_t client          # the attached client's number
        uint32_t slots
        uint32_t group_bytes
        uint32_t member_bytes
        uint8_t *names           # the group's, then the member id

    shmb_slot *shmb_table_slot(void *table, uint32_t slot)
    uint64_t shmb_table_bytes(uint32_t slots)
    uint64_t shmb_log_bytes(uint64_t capacity)
    uint64_t shmb_receipts_bytes(uint64_t slots)
    uint64_t shmb_checkpoints_bytes(uint32_t slots)
    uint32_t shmb_checkpoints_room(uint64_t object_bytes)
    uint64_t shmb_align_up(uint64_t n, uint64_t unit)


cdef extern from "shm.h" nogil:
    enum:
        SHMB_OURS
        SHMB_NOT_READY
        SHMB_OTHER_FORMAT
        SHMB_OTHER_KIND
        SHMB_OTHER_BOOT
        SHMB_OTHER_DIR
        SHMB_OTHER_SIZE
    void *shmb_map(int fd, size_t bytes, int writable)
    void shmb_preamble_write(void *object, uint32_t kind, uint32_t owner, uint64_t bytes,
                             const uint8_t *boot_id, const uint8_t *dir_id)
    int shmb_preamble_check(const void *object, uint32_t kind, uint64_t bytes,
                            const uint8_t *boot_id, const uint8_t *dir_id)


cdef class ShmObject:
    cdef readonly str name           # "/shmb-…", as POSIX names it
    cdef readonly int kind           # KIND_*
    cdef readonly int owner          # writer index, ingress id, or number of the checkpoints
    cdef readonly unsigned long long bytes
    cdef int _fd                     # -1 once closed


cdef class TableView:
    cdef readonly str path           # the file under /dev/shm
    cdef readonly int slots_max
    cdef void *_at                   # read-only mapping; NULL once closed
    cdef size_t _bytes

    cdef shmb_slot *_slot(self, int slot) except NULL
