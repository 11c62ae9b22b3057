"""C declarations for `checkpoint.pyx`: what it uses of layout.h and checkpoint.h, and its classes."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "atomics.h" nogil:
    ctypedef struct shmb_a64:
        pass
    uint64_t shmb_observe(const shmb_a64 *word)
    uint64_t shmb_peek(const shmb_a64 *word)


cdef extern from "layout.h" nogil:
    enum:
        SHMB_CHECKPOINT_NAMES_MAX
    struct shmb_checkpoints_head:
        shmb_a64 changes         # one more behind each store
        uint64_t client          # the attached client's number
        uint32_t group_bytes
        uint32_t member_bytes
        uint8_t *names           # the group's, then the member id
    struct shmb_checkpoint_pair:
        shmb_a64 offset          # the next to be read
        uint64_t member_epoch    # since which the member has the partition
        uint8_t topic_id[16]
        uint32_t partition
        int32_t leader_epoch     # of the record before; -1: not known
    struct shmb_checkpoint:
        pass
    shmb_checkpoint *shmb_checkpoint_at(void *object, uint32_t slot)
    uint64_t shmb_checkpoints_bytes(uint32_t slots)
    uint32_t shmb_checkpoints_room(uint64_t object_bytes)


cdef extern from "checkpoint.h" nogil:
    enum:
        SHMB_CHECKPOINT_SAME
        SHMB_CHECKPOINT_NEW
        SHMB_CHECKPOINT_RESTLESS
    struct shmb_checkpoint_seen:
        uint64_t turn
        uint64_t offset
    void shmb_checkpoint_store(shmb_checkpoints_head *head, shmb_checkpoint *slot, uint64_t offset)
    void shmb_checkpoint_turn(shmb_checkpoints_head *head, shmb_checkpoint *slot,
                              const uint8_t *topic_id, uint32_t partition, uint64_t member_epoch,
                              int32_t leader_epoch, uint64_t offset)
    int shmb_checkpoint_look(const shmb_checkpoint *slot, shmb_checkpoint_seen *seen,
                             shmb_checkpoint_pair *copy)


cdef extern from "shm.h" nogil:
    void *shmb_map(int fd, size_t bytes, int writable)


cdef class Kept:
    cdef readonly str topic
    cdef readonly int32_t partition
    cdef readonly uint64_t member_epoch  # since which the member has it
    cdef readonly int64_t stored         # the last offset stored; -1: none
    cdef public int64_t handed           # behind the last record handed out; -1: none since
    cdef bytes _topic_id                 # 16 bytes
    cdef object _mapping                 # keeps the slot mapped; None: it was let go
    cdef shmb_checkpoints_head *_head
    cdef shmb_checkpoint *_slot          # NULL: let go
    cdef uint32_t _number                # of the slot in its object
    cdef int32_t _leader_epoch           # of the slot's present pair
    cdef bint _turned                    # the slot has a pair of this partition
    cdef int64_t _epoch_from             # offsets from here on were handed out under _epoch_now
    cdef int32_t _epoch_now
    cdef list _epochs_before             # (first offset, leader epoch) of earlier ones, oldest first
    cdef bint _open                      # listed among those handed out

    cdef int32_t _epoch_of(self, int64_t offset)
    cdef int _put(self, int64_t offset) except -1
    cdef int _note(self, int64_t first, int32_t leader_epoch) except -1
    cdef int _place(self, object mapping, uint32_t number) except -1


cdef class Checkpoints:
    cdef dict _kept                      # (topic, partition) -> Kept
    cdef list _mappings
    cdef list _free                      # (Mapping, slot), the next to be taken last
    cdef list _dropped                   # likewise, since the last `recycle`
    cdef list _dropped_before            # and before that
    cdef list _open                      # Kept from which records were handed out since `store_all`
    cdef Kept _last                      # found last

    cdef int _give(self, Kept kept) except -1
    cdef Kept _find(self, str topic, int32_t partition)


cdef class CheckpointsView:
    cdef readonly str name               # of the object
    cdef readonly str group
    cdef readonly str member
    cdef readonly unsigned long long client
    cdef readonly unsigned int slots
    cdef void *_at                       # read-only mapping; NULL once closed
    cdef size_t _bytes
    cdef uint64_t _changes               # as seen at the last look
    cdef bint _again                     # a look is due whatever `changes` says
    cdef shmb_checkpoint_seen *_seen     # of each slot

    cdef void _close(self) noexcept
