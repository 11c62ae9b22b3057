"""What `producer.pyx` uses of the headers of the client's side, and its classes."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<stdlib.h>" nogil:
    int rand_r(unsigned int *seed)


cdef extern from "atomics.h" nogil:
    ctypedef struct shmb_a64:
        pass
    ctypedef struct shmb_a32:
        pass
    uint64_t shmb_observe(const shmb_a64 *word)
    uint32_t shmb_observe32(const shmb_a32 *word)
    uint32_t shmb_peek32(const shmb_a32 *word)
    void shmb_publish32(shmb_a32 *word, uint32_t value)
    void shmb_poke32(shmb_a32 *word, uint32_t value)


cdef extern from "layout.h" nogil:
    enum:
        SHMB_PAGE
        SHMB_LINE
        SHMB_ACKS_NONE
        SHMB_ACKS_MEMORY
        SHMB_ACKS_DURABLE
        SHMB_IN_FLIGHT_MAX

    struct shmb_slot:
        shmb_a32 slot_epoch
        shmb_a32 state
        shmb_a32 blocked_why
        shmb_a64 write_ns
        shmb_a64 durable_position

    struct shmb_writer_head:
        uint32_t writer

    struct shmb_receipts_head:
        shmb_a64 tail
        shmb_a64 receipts
        shmb_a32 detached

    struct shmb_frame:
        uint32_t slot

    uint32_t shmb_park_durable(uint32_t writer, uint32_t slot)
    shmb_slot *shmb_table_slot(void *table, uint32_t slot)


cdef extern from "shm.h" nogil:
    void *shmb_map(int fd, size_t bytes, int writable)
    void *shmb_map_double(int fd, size_t data_offset, size_t capacity, int writable)
    void shmb_unmap_double(void *at, size_t data_offset, size_t capacity)


cdef extern from "park.h" nogil:
    int64_t shmb_now_ns()
    int64_t shmb_signal_look_ns    # 0: sleeps end only when woken
    void shmb_park_wake_always(shmb_a32 *word)


cdef extern from "ingress.h" nogil:
    enum shmb_wait:
        SHMB_WAIT_OK
        SHMB_WAIT_SIGNAL
        SHMB_WAIT_TIMEOUT
        SHMB_WAIT_GONE
        SHMB_WAIT_CLOSED

    struct shmb_ingress_head:
        pass

    struct shmb_ingress:
        shmb_ingress_head *head
        shmb_receipts_head *back
        uint8_t *data
        uint64_t capacity        # bytes
        uint64_t slots
        shmb_a32 *word
        uint64_t id
        uint64_t published
        uint64_t next_seq
        uint64_t received
        uint32_t ahead
        int bell

    struct shmb_waiter:
        const shmb_a32 *epoch
        uint32_t epoch_seen
        const shmb_a32 *closed
        int64_t deadline_ns      # CLOCK_MONOTONIC
        int64_t spin_ns

    uint64_t shmb_ingress_passed(const shmb_ingress *g)
    void shmb_ingress_init(shmb_ingress *g, void *ring, void *receipts, shmb_a32 *park,
                           uint32_t writer, uint64_t id)
    bint shmb_ingress_dry(const shmb_ingress *g)
    shmb_wait shmb_wait_progress(shmb_receipts_head *back, shmb_a32 *word, uint64_t tail,
                                 uint64_t receipts, const shmb_waiter *w)
    shmb_wait shmb_wait_room(const shmb_ingress *g, uint64_t tail, uint64_t receipts,
                             const shmb_waiter *w)
    shmb_wait shmb_wait_receipt(shmb_receipts_head *back, shmb_a32 *word, uint64_t seq,
                                const shmb_waiter *w)
    shmb_wait shmb_wait_durable(const shmb_slot *slot, shmb_a32 *word, uint64_t end,
                                uint64_t generation, const shmb_waiter *w)


cdef extern from "producer_lanes.h" nogil:
    enum shmb_why:
        SHMB_WHY_SETTLED
        SHMB_WHY_LATE
        SHMB_WHY_GONE
        SHMB_WHY_CLOSED

    enum shmb_foreign:
        SHMB_OWN
        SHMB_FOREIGN_CHAINED
        SHMB_FOREIGN_SINGLE

    struct shmb_mailbox:
        int fd
    struct shmb_watch:
        shmb_watch *next
        void *object
        shmb_why why

    enum:
        SHMB_PB_OPEN
        SHMB_PB_PUBLISHED
        SHMB_PB_RECEIVED
        SHMB_PB_DONE
        SHMB_PB_FAILED
        SHMB_PB_UNKNOWN
        SHMB_E_UNKNOWN_OUTCOME
        SHMB_E_DETACHED
        SHMB_E_FULL
        SHMB_E_EARLIER

    enum shmb_put:
        SHMB_PUT_OK
        SHMB_PUT_NO_ROOM
        SHMB_PUT_TOO_LARGE
        SHMB_PUT_COMPRESS
        SHMB_PUT_BUSY
        SHMB_PUT_NEW_ID
        SHMB_PUT_NO_MEMORY
        SHMB_PUT_DETACHED
        SHMB_PUT_STALE
        SHMB_PUT_REFUSED

    struct shmb_pbatch:
        uint32_t py_refs
        int32_t count
        int64_t base_offset
        uint64_t frame_position
        int32_t error
        int32_t cause
        int32_t unlooked
        uint16_t resent
        int32_t base_sequence
        int32_t epoch
        uint64_t chain
        int64_t first_timestamp
        int64_t max_timestamp
        int64_t born_ns
        shmb_lane *lane
        shmb_pbatch *next

    struct shmb_outlet:
        shmb_a32 lock
        shmb_a32 refs
        size_t receipts_bytes
        uint32_t open_count
        shmb_lane *open
        shmb_ingress ring
        shmb_pbatch **inflight
        uint64_t batches
        uint64_t records
        shmb_lane *watched
        uint32_t dropped
        uint32_t epoch

    struct shmb_lane:
        shmb_a32 refs
        shmb_outlet *out
        void *table
        shmb_slot *slot
        shmb_a32 *durable_word
        int32_t partition
        uint32_t slot_index
        uint32_t slot_epoch
        uint16_t acks
        uint16_t codec
        uint32_t batch_limit
        uint32_t batch_want
        uint64_t linger_ticks
        int64_t producer_id
        int32_t epoch
        int32_t sequence
        int32_t failed_error
        int32_t failed_sequence
        uint32_t broken
        uint8_t foreign
        uint32_t in_flight
        uint64_t chain
        uint32_t stale
        shmb_a32 busy
        shmb_pbatch *open
        uint8_t *base
        uint8_t *at
        uint8_t *limit
        uint8_t compressed
        shmb_lane *next_open
        shmb_pbatch *waiting
        shmb_pbatch *waiting_last
        shmb_pbatch *failed
        shmb_pbatch *failed_last
        shmb_pbatch *last
        int64_t delivery_ns
        uint64_t dropped         # records; the GIL's

    struct shmb_item:
        const void *key
        const void *value
        const void *headers      # encoded
        int64_t timestamp        # ms
        int32_t key_bytes        # -1: null
        int32_t value_bytes      # -1: null
        uint32_t headers_bytes
        int32_t headers_count

    struct shmb_look:
        uint32_t state
        shmb_put put
        shmb_outlet *out
        shmb_receipts_head *back
        shmb_a32 *word
        uint64_t tail
        uint64_t receipts
        uint64_t frame_seq
        uint64_t end_position
        uint64_t generation
        uint32_t detached

    uint64_t shmb_ticks_per_us
    void shmb_ticks_calibrate()
    int64_t shmb_wall_ms()
    void shmb_lock(shmb_a32 *lock)
    void shmb_unlock(shmb_a32 *lock)
    uint64_t shmb_chain_begin()
    void shmb_lane_release(shmb_lane *l)
    void shmb_pbatch_hold(shmb_pbatch *b)
    void shmb_pbatch_release(shmb_pbatch *b)
    void shmb_pbatch_py_hold(shmb_pbatch *b)
    void shmb_pbatch_py_release(shmb_pbatch *b)
    void shmb_pbatch_fail(shmb_pbatch *b, int state, int32_t error)
    bint shmb_pbatch_settled(const shmb_pbatch *b)
    uint32_t shmb_pbatch_state(const shmb_pbatch *b)
    void shmb_pbatch_look(shmb_pbatch *b, bint seal, shmb_look *look)
    uint64_t shmb_item_alone(const shmb_item *r)
    uint64_t shmb_item_bound(const shmb_item *r)
    unsigned shmb_outlet_drain(shmb_outlet *o)
    void shmb_outlet_abandon(shmb_outlet *o, int32_t error)
    shmb_outlet *shmb_lane_lock(shmb_lane *l)
    shmb_put shmb_lane_put(shmb_lane *l, const shmb_item *r, shmb_pbatch **pb, int32_t *index)
    shmb_put shmb_lane_after(shmb_lane *l)
    shmb_put shmb_lane_send(shmb_lane *l, const shmb_item *r, shmb_pbatch **pb, int32_t *index,
                            shmb_put *after)
    shmb_put shmb_lane_flush(shmb_lane *l)
    shmb_pbatch *shmb_lane_refuse(shmb_lane *l)
    void shmb_lane_due(shmb_lane *l)
    void shmb_lane_forget(shmb_lane *l)
    void shmb_outlet_hold(shmb_outlet *o)
    void shmb_outlet_release(shmb_outlet *o)
    void shmb_outlet_unmap_ring(shmb_outlet *o)
    void shmb_lane_settle(shmb_lane *l)
    void shmb_lane_drop_open(shmb_lane *l, int32_t error)
    shmb_mailbox *shmb_mailbox_new(int fd)
    void shmb_mailbox_release(shmb_mailbox *m)
    shmb_watch *shmb_mailbox_take(shmb_mailbox *m)
    shmb_watch *shmb_watch_new(shmb_mailbox *to, void *object)
    void shmb_watch_free(shmb_watch *w)
    void shmb_watch_mail(shmb_watch *w, shmb_why why)
    int shmb_pbatch_watch(shmb_pbatch *b, shmb_watch *w)
    shmb_watch *shmb_pbatch_unwatch(shmb_pbatch *b, const void *object)
    void shmb_lane_tell(shmb_lane *l, shmb_why why)
    void shmb_outlet_watch_room(shmb_outlet *o, shmb_watch *w, uint64_t tail, uint64_t receipts)
    void shmb_outlet_tell_room(shmb_outlet *o, shmb_why why)
    shmb_watch *shmb_outlet_unwatch_room(shmb_outlet *o, const void *object)
    void shmb_lane_hold_open(shmb_lane *l)
    void shmb_lane_pack(shmb_lane *l, const void *packed, uint32_t size)
    void shmb_lane_wait_busy(shmb_lane *l)
    void shmb_lane_wake_busy(shmb_lane *l)


cdef extern from "producer_move.h" nogil:
    int shmb_lane_move_begin(shmb_lane *l)
    void shmb_lane_move(shmb_lane *l, shmb_outlet *to)
    void shmb_lane_move_end(shmb_lane *l)
    shmb_put shmb_pbatch_republish(shmb_pbatch *b, const shmb_ingress *old)


cdef extern from "producer_relay.h" nogil:
    int64_t shmb_batch_producer_id(const uint8_t *batch)
    int32_t shmb_batch_base_sequence(const uint8_t *batch)
    void shmb_lane_make_foreign(shmb_lane *l, shmb_foreign kind, int64_t producer_id)
    shmb_put shmb_lane_relay(shmb_lane *l, const uint8_t *data, uint32_t length, uint16_t acks, shmb_watch *w,
                             shmb_pbatch **out, int *stir, uint64_t *tail, uint64_t *receipts)


cdef extern from "producer_thread.h" nogil:
    struct shmb_tender_state "shmb_tender":
        shmb_a32 interval_us
        shmb_a32 again_us
    shmb_tender_state shmb_tender
    uint32_t shmb_fork_generation
    void shmb_forks_count()
    void shmb_tender_poke(shmb_outlet *o)
    enum:
        SHMB_TENDER_COMPRESS
        SHMB_TENDER_DROPPED
    int shmb_tender_start(void (*python)(int work) noexcept)
    void shmb_tender_stir()
    void shmb_tender_stop()
    void shmb_tender_add(shmb_outlet *o)
    void shmb_tender_remove(shmb_outlet *o)


cdef class Mailbox:
    cdef shmb_mailbox *m
    cdef uint32_t _generation          # fork generation that made it

    cpdef list take(self)
    cpdef int put(self, what) except -1
    cdef shmb_watch *watch(self, what) except NULL


cdef class Outlet:
    cdef shmb_outlet *o
    cdef readonly uint32_t writer      # index
    cdef readonly bint retired         # its lanes have moved to another ring
    cdef uint32_t _generation          # fork generation that made it
    cdef object _ring_inode
    cdef str _ring_name                # as the connection opened it
    cdef readonly object table         # Mapping of the writer's table
    cdef readonly object park          # Mapping of the park words



cdef class Outlets:
    cdef object __weakref__
    cdef readonly object connection
    cdef object _epoch_owner
    cdef const shmb_a32 *epoch         # of the connection; odd while the broker is gone
    cdef uint32_t confirmed            # the value of `epoch` at the last confirm()
    cdef object mutex                  # RLock: opening, moving
    cdef dict by_writer                # writer -> Outlet
    cdef list retired                  # their receipts stay mapped: waiters may still look at them
    cdef object states                 # WeakSet of Sender
    cdef str gone                      # what BrokerGone said last
    cdef bint confirming               # a thread is about it
    cdef uint32_t ring_bytes
    cdef uint32_t slots

    cdef Outlet get(self, uint32_t writer)
    cdef confirm_aside(self)
    cdef watched(self)
    cdef int confirm(self, timeout, given_up=*) except -1
    cdef bint _keeps(self, Outlet outlet)
    cdef int _move(self, list olds, bint resend, uint64_t capacity) except -1


cdef class Held


cdef class Lanes:
    cdef readonly str name             # of the topic
    cdef str id                        # of the topic, where another one of that name will not do
    cdef Sender sender
    cdef int32_t partitions
    cdef int32_t sticky                # partition of records without a key, until its batch is sealed
    cdef uint64_t max_bytes            # of a batch: max.message.bytes
    cdef shmb_lane **lanes             # by partition; NULL: not opened yet
    cdef uint32_t _generation

    cdef shmb_lane *lane(self, int32_t partition) except NULL
    cdef int32_t choose(self, const shmb_item *item)
    cdef int grow(self) except -1
    cdef place(self, int32_t partition)
    cdef int find_again(self, shmb_lane *lane, int32_t partition) except -1


cdef class Sender:
    cdef object __weakref__
    cdef readonly object connection
    cdef object metadata
    cdef Outlets outlets
    cdef dict topics                   # name -> Lanes
    cdef str last_name
    cdef Lanes last
    cdef shmb_a32 closed
    cdef uint32_t generation           # fork generation that made it
    cdef int acks
    cdef int codec
    cdef bint idempotent
    cdef bint warned_uncompressed
    cdef int64_t producer_id           # -1: not asked for yet
    cdef uint32_t batch_bytes
    cdef int64_t linger_ms
    cdef int64_t max_block_ns
    cdef int64_t delivery_ns

    cdef int foreign                   # enum shmb_foreign of its lanes
    cdef object moved                  # called when its lanes have moved to other rings, or None
    cdef int on_full                   # FULL_*
    cdef int64_t said_ns               # when dropped records were last warned of
    cdef int64_t unsaid                # dropped since then

    cdef object mail                   # LoopMail of an asyncio producer, or None

    cdef int usable(self) except -1
    cdef object full(self, Lanes topic, shmb_lane *lane)
    cdef shmb_pbatch *drop(self, Lanes topic, shmb_lane *lane) except NULL
    cdef shmb_put seal_now(self, shmb_lane *lane)
    cdef Held newest_unsettled(self, Lanes topic, int32_t p)
    cdef Lanes topic(self, str name)
    cdef int settle(self, shmb_pbatch *b, int64_t deadline_ns) except -1
    cdef int waited(self, int why, shmb_lane *lane, int64_t deadline_ns, bint was_closed) except -1
    cdef int unblock(self, int put, Lanes topic, shmb_lane *lane, const shmb_item *item, uint64_t tail,
                     uint64_t receipts, int64_t deadline_ns) except -1
    cdef int compress(self, shmb_lane *lane) except -1
    cdef int seal(self, Lanes topic, shmb_lane *lane, int64_t deadline_ns) except -1
    cdef int send_slow(self, Lanes topic, shmb_lane *lane, const shmb_item *item, shmb_put rc,
                       shmb_pbatch **pb, int32_t *index) except -1
    cdef int after_slow(self, Lanes topic, shmb_lane *lane, shmb_put after) except -1
    cdef tend(self)
    cdef warn_uncompressed(self, error)
    cdef int new_id(self, shmb_lane *lane) except -1
    cdef int detached(self, shmb_outlet *o) except -1
    cdef int enlarge(self, Lanes topic, shmb_lane *lane, uint64_t alone) except -1


cdef class Receipt:
    cdef Lanes _lanes
    cdef shmb_pbatch *_b
    cdef int64_t _timestamp            # ms
    cdef int32_t _index                # in its batch
    cdef uint8_t _looked               # somebody saw that it failed


cdef struct segment:
    shmb_pbatch *b
    int32_t count                      # of this call's records in it
    int32_t first                      # index of the first one


cdef class ManyReceipt:
    cdef Lanes _lanes
    cdef segment *_segments
    cdef Py_ssize_t _used
    cdef Py_ssize_t _room
    cdef readonly Py_ssize_t count     # records that were taken
    cdef readonly Py_ssize_t dropped   # records that were not, with on_full="drop"
    cdef Py_ssize_t _settled           # segments from the first on whose outcome is known
    cdef uint8_t _looked

    cdef int add(self, shmb_pbatch *b, int32_t first, int32_t count) except -1
    cdef shmb_pbatch *unsettled(self)


cdef class ProducerBase:
    cdef Sender _sender


cdef class LoopMail:
    cdef readonly object loop
    cdef object bridge                 # client/aio/bridge.py
    cdef Mailbox mailbox               # of futures; its eventfd is the bridge's
    cdef dict to_seal                  # (Lanes, partition): None, in order
    cdef set rooms                     # futures that wait for room
    cdef object room                   # the one that an attempt has just made
    cdef dict lines                    # (Lanes, partition): deque of Spot
    cdef int in_line                   # of all of them
    cdef bint closed

    cdef end(self, future, why)
    cdef check(self)
    cdef seal_soon(self, Lanes lanes, int32_t p)
    cdef object watch(self, Held held)
    cdef object future(self)
    cdef turn(self, line)
    cdef object watch_room(self, shmb_lane *lane, uint64_t tail, uint64_t receipts, Outlets outlets)
    cdef unwatch_room(self, shmb_lane *lane, future)


cdef class RelayedBatch:
    cdef Lanes lanes
    cdef shmb_pbatch *b                # one Python reference; NULL: not taken
    cdef readonly object tag           # the caller's


cdef class RelayTopic:
    cdef Sender sender
    cdef Lanes lanes
    cdef Mailbox mailbox               # of outcomes and of room
    cdef int64_t producer_id           # -1: no sequences

    cdef shmb_lane *lane(self, int32_t partition)
    cdef int enlarge(self, shmb_lane *lane, uint64_t size) except -1
    cdef watch_room(self, shmb_lane *lane, room, uint64_t tail, uint64_t receipts)


cdef class Spot:
    cdef object future                 # while it waits

    cdef end(self, why)


cdef class Held:
    cdef Lanes lanes
    cdef shmb_pbatch *b                # one Python reference


cdef class AsyncProducerBase:
    cdef Sender _sender
    cdef LoopMail mail
    cdef ProducerBase blocking         # for what is done in the executor
    cdef int streak                    # sends since the loop had a turn


cdef class Sending:
    cdef AsyncProducerBase producer
    cdef object topic
    cdef object value
    cdef tuple more                    # key, headers, partition, timestamp, or None: each costs on the way
    cdef object inner                  # the coroutine of the slow way
    cdef shmb_put put                  # what stopped the last attempt
    cdef int32_t p
    cdef int need
    cdef bint begun
    cdef bint fits                     # the record's size was checked

    cdef Receipt attempt(self, bint watching)
