"""C declarations for `reader.pyx`: what it uses of layout.h, park.h and logring.h, and its classes."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from shmbroker._core.batch cimport shmb_record_cursor
from shmbroker._core.checkpoint cimport Checkpoints, Kept
from shmbroker._core.columns cimport ArrowArray, ArrowSchema


cdef extern from "atomics.h" nogil:
    ctypedef struct shmb_a64:
        pass
    ctypedef struct shmb_a32:
        pass
    uint64_t shmb_observe(const shmb_a64 *word)
    uint64_t shmb_peek(const shmb_a64 *word)
    uint32_t shmb_observe32(const shmb_a32 *word)
    void shmb_publish32(shmb_a32 *word, uint32_t value)
    bint shmb_replace32(shmb_a32 *word, uint32_t value, uint32_t by)
    void shmb_relax()


cdef extern from "layout.h" nogil:
    enum:
        SHMB_PAGE
        SHMB_LINE
        SHMB_PARK_WORDS
        SHMB_PARK_INSTANCE
        SHMB_STATE_FREE
        SHMB_STATE_OPENING
        SHMB_STATE_OFFLINE
        SHMB_STATE_CLOSED

    struct shmb_slot:                  # the fields that readers look at; meanings in layout.h
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
        shmb_a64 log_start_offset
        shmb_a32 current_epoch "leader_epoch"

    uint32_t shmb_park_appended(uint32_t writer, uint32_t slot)
    uint32_t shmb_park_durable(uint32_t writer, uint32_t slot)
    shmb_slot *shmb_table_slot(void *table, uint32_t slot)
    uint64_t shmb_log_data_offset(uint64_t capacity)
    uint64_t shmb_log_bytes(uint64_t capacity)
    uint64_t shmb_align_down(uint64_t n, uint64_t unit)


cdef extern from "shm.h" nogil:
    void *shmb_map(int fd, size_t bytes, int writable)
    void *shmb_map_double(int fd, size_t data_offset, size_t capacity, int writable)
    void shmb_unmap_double(void *at, size_t data_offset, size_t capacity)


cdef extern from "logring.h" nogil:
    struct shmb_index_entry:
        pass
    struct shmb_log_view:              # one mapped generation
        const shmb_slot *slot
        const uint8_t *object          # NULL: none
        const uint8_t *data
        uint64_t capacity
        uint64_t generation
    void shmb_log_view_set(shmb_log_view *v, const shmb_slot *slot, const uint8_t *object,
                           uint64_t capacity, uint64_t generation)
    int shmb_slot_still_there(const shmb_slot *slot, uint64_t position, uint64_t capacity)
    int shmb_log_copy(const shmb_log_view *v, uint64_t position, void *to, size_t n)
    int shmb_log_find(const shmb_log_view *v, int64_t offset, int64_t *base_offset,
                      uint64_t *position)
    void shmb_slot_flush_segment(const shmb_slot *slot, int64_t *base_offset,
                                 uint64_t *base_position, uint64_t *durable_position)


cdef extern from "uptake.h" nogil:
    struct shmb_uptake:                # how far a feed's reader is
        pass
    void shmb_uptake_tell(shmb_uptake *u, uint64_t position)


cdef extern from "park.h" nogil:
    int64_t shmb_now_ns()
    void shmb_park_arm(shmb_a32 *word)
    int64_t shmb_signal_look_ns    # 0: sleeps end only when woken
    int shmb_park_wait_signals(shmb_a32 *word, int64_t deadline_ns)
    void shmb_park_wake_always(shmb_a32 *word)
    int shmb_park_wait_any_signals(shmb_a32 **words, unsigned n, int64_t deadline_ns)
    enum:
        SHMB_WAITV_MAX


cdef extern from "watch.h" nogil:
    struct shmb_watch:                 # one partition that is waited for
        const shmb_slot *slot
        const shmb_a64 *end
        int64_t position
        uint64_t generation
        uint32_t slot_epoch
        uint32_t state
    int shmb_watch_ready(const shmb_watch *w, size_t n)
    struct shmb_waiter:                # one consumer of an event loop that waits
        shmb_a32 fired
        size_t n
        shmb_watch *watches
        shmb_a32 **words
        shmb_a32 *instance
        shmb_a32 *epoch
        uint32_t seen
        shmb_a32 *stop
    struct shmb_watcher:               # the thread that waits for them
        pass
    int shmb_watcher_init(shmb_watcher *s, int eventfd)
    int shmb_watcher_add(shmb_watcher *s, shmb_waiter *w)
    void shmb_watcher_remove(shmb_watcher *s, shmb_waiter *w)
    void shmb_watcher_stop(shmb_watcher *s)
cdef extern from "arrow_out.h" nogil:
    enum:
        SHMB_OUT_NO_MEMORY
    struct shmb_out_bytes:
        uint8_t *data
        size_t used                    # bytes
    struct shmb_out_block:
        int large                      # 64-bit offsets
        int64_t count                  # records
        int64_t *offsets
        int64_t *timestamps            # ms
        shmb_out_bytes keys
        shmb_out_bytes values
    shmb_out_block *shmb_block_new(int64_t room, size_t size, int large)
    void shmb_block_release(shmb_out_block *b)
    int shmb_block_add(shmb_out_block *b, const uint8_t *p, shmb_record_cursor *cursor, int64_t start,
                       size_t key_bytes)
    void shmb_block_end(shmb_out_block *b)
    int64_t shmb_block_value_bytes(const shmb_out_block *b, int64_t i)
    int64_t shmb_block_first_other(const shmb_out_block *b)
    int shmb_out_schema(ArrowSchema *to, int large)
    int shmb_out_array(ArrowArray *to, shmb_out_block *b)


cdef class Mapping:
    cdef readonly str name             # "/shmb-…"
    cdef readonly uint64_t inode       # another object of the same name has another
    cdef readonly size_t bytes
    cdef void *_at


cdef class EpochWord:
    cdef shmb_a32 *_word               # process-local; raised when the attachment changes


cdef struct Span:                      # whole batches, one behind the other
    size_t size                        # bytes of them
    size_t skipped                     # bytes in front of them that are older than asked for
    int64_t next_offset                # one past the last record
    int64_t records                    # that the headers promise, control batches left out
    int32_t leader_epoch               # of all of them; -1: none
    int compressed                     # not 0: one of them is


cdef class RecordBatch:
    cdef readonly str topic
    cdef readonly int32_t partition
    cdef readonly int64_t base_offset  # of the first record handed out, inclusive
    cdef readonly int64_t next_offset  # one past the last
    cdef readonly int32_t leader_epoch  # of every Kafka batch in it
    cdef bytes _raw                    # whole Kafka batches, verified
    cdef Py_ssize_t _begin             # where they begin in it
    cdef Py_ssize_t _end               # and end
    cdef Py_ssize_t _room              # records that their headers promise
    cdef Py_ssize_t _length            # of them from base_offset on
    cdef bint _compressed              # one of them is

    cdef list _fill(self, int what)
    cdef Py_ssize_t _fill_one(self, list out, Py_ssize_t at, const uint8_t *p,
                              shmb_record_cursor *cursor, int what) except -1


cdef class PartitionReader:
    cdef readonly str topic
    cdef readonly int32_t partition
    cdef readonly uint32_t slot_epoch  # that the slot must have
    cdef readonly bint appended        # isolation: log end instead of durable end
    cdef public int64_t position       # offset of the next record to read
    cdef public int32_t leader_epoch   # of the batch before position; -1: unknown
    cdef public int64_t recovery       # high half of the generation last read under; -1: none
    cdef object _table                 # keeps the slot mapped
    cdef object _open_ring             # generation -> ShmObject
    cdef shmb_slot *_slot
    cdef uint32_t _park_word           # index
    cdef shmb_log_view _view           # object NULL: no ring mapped
    cdef bint _tracked                 # _ring_position is that of `position`
    cdef uint64_t _ring_position
    cdef shmb_uptake *_uptake          # the feed's, that _open_ring keeps; NULL: a broker's ring
    cdef uint32_t _seen_state          # by the last fetch: a wait ends when they differ
    cdef uint64_t _seen_generation
    cdef uint32_t _seen_slot_epoch
    cdef public bint unborn            # the slot is to become this partition's: wait for it
    cdef public int64_t settled        # a state that the caller knows and waits in; -1: none

    cdef RecordBatch _fetch(self, size_t most)
    cdef void _see(self) noexcept
    cdef bint _outside(self) noexcept
    cdef bint odd(self)
    cdef bint was_recovered(self) noexcept
    cdef int64_t _visible(self) noexcept nogil
    cdef RecordBatch _from_ring(self, int64_t end, size_t most)
    cdef bytes _extend(self, bytes raw, uint64_t position, uint64_t generation, Py_ssize_t most)
    cdef void _moved(self, const Span *span) noexcept
    cdef int _map(self) except -1
    cdef void _unmap(self) noexcept


cdef class SharedReader(PartitionReader):
    pass


cdef class RecordStream:
    cdef list _records                 # fetched; handed out below _at; None: none
    cdef Py_ssize_t _at
    cdef unsigned _forks               # of this process when the stream was made
    cdef object _lock                  # held while a thread is inside
    cdef object _owner                 # that thread
    cdef EpochWord _stop               # not 0: closed, or there is something to be seen to
    cdef public bint _calls_back       # the user's code runs inside a read
    cdef unsigned _nested              # calls of that code's that are inside
    cdef Py_ssize_t _turn              # the reader that is asked first
    cdef public list _all              # every PartitionReader
    cdef public list _readers          # those that are not paused; replaced, never changed
    cdef public EpochWord _epoch       # the connection's
    cdef public uint32_t _seen         # value of it that the readers are bound under
    cdef public size_t _park           # address of the mapped park words
    cdef public size_t _most           # bytes of a fetch
    cdef public int64_t _spin_ns       # before it parks
    cdef public bint _closed_while_inside  # so that an iteration ends instead of raising
    # What a group member's position becomes in shared memory (checkpoint.pyx)
    cdef public Checkpoints _checkpoints  # None: nothing does
    cdef public bint _stores_itself    # each position that was asked past
    cdef Kept _kept                    # of the partition that `_records` are of; None: none
    cdef Kept _out                     # of what was handed out last
    cdef int64_t _out_offset           # behind it; -1: it was asked past

    cdef int _enter(self) except -1
    cdef int _leave(self) except -1
    cdef object _one(self, int64_t deadline_ns)
    cdef bint _buffered(self)
    cdef object _pop(self)
    cdef int _hand_out_to(self, Kept kept, int64_t offset) except -1
    cdef int _describe(self, shmb_watch *watches, shmb_a32 **words) except -1
    cdef bint _sleep(self, int64_t deadline_ns) except -1
    cdef int _wake(self) except -1


cdef class Watcher:
    cdef shmb_watcher *_watcher        # NULL: closed
    cdef unsigned _forks               # of this process when it was made
    cdef set _parks                    # every park object it may have slept on stays mapped


cdef class Waiter:
    cdef shmb_waiter _waiter
    cdef Watcher _watcher              # None: not listed
    cdef list _tables                  # and words: what _waiter points to stays

    cdef int _fill(self, RecordStream stream, Py_ssize_t n) except -1


cdef class AsyncRecords:
    cdef public RecordStream _stream   # None: not begun

    cdef object _fetched(self)


cdef class NextRecord:
    cdef AsyncRecords _of
    cdef object _rest                  # the coroutine that waits; None: none yet

    cdef object _ready(self)
    cdef object _coroutine(self)
