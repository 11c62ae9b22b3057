# Whole batches of producers elsewhere, published as they are; client/relay.py queues them and asks the broker.
# Included by producer.pyx; the way into the ring is producer_relay.h.

RELAY_TAKEN = <int>SHMB_PUT_OK            # in the ring: its outcome will be mailed (with acks none there is none)
RELAY_FULL = <int>SHMB_PUT_NO_ROOM        # `room` is mailed when there may be some
RELAY_MOVING = <int>SHMB_PUT_BUSY         # to another ring: `moved` is mailed behind it
RELAY_REFUSED = <int>SHMB_PUT_REFUSED     # an earlier batch of its producer epoch was rejected: refusal() says how
RELAY_UNREADY = <int>SHMB_PUT_STALE       # prepare() first


def relay_sender(connection, metadata, Outlets outlets, Mailbox mailbox, moved, chained):
    """The Sender behind RelayTopics. `moved` is mailed when lanes are in other rings than before; `chained`: a
    rejection takes the later batches of its producer, epoch and partition along (invariant 7)."""
    cdef Sender sender = Sender(
        connection, metadata, outlets, acks="durable", compression=None, linger_ms=0, max_block_ms=0,
        delivery_timeout_ms=1, idempotent=False, batch_bytes=1 << 20,
        foreign=<int>SHMB_FOREIGN_CHAINED if chained else <int>SHMB_FOREIGN_SINGLE)
    sender.moved = lambda: mailbox.put(moved)
    return sender


@cython.final
@cython.freelist(64)
cdef class RelayedBatch:
    """A batch that publish() took: comes out of the mailbox when its outcome is known."""

    def __init__(self):
        raise TypeError("made by RelayTopic.publish()")

    def __dealloc__(self):
        if self.b != NULL and self.lanes._generation == shmb_fork_generation:
            shmb_pbatch_py_release(self.b)

    def outcome(self, why):
        """(base offset, None), -1 where it is not known any more, or (-1, error). `why`: as mailed."""
        if not shmb_pbatch_settled(self.b):
            return -1, _in_vain(why, self.lanes, self.b)
        if shmb_pbatch_state(self.b) < SHMB_PB_FAILED:
            return self.b.base_offset, None
        return -1, _error_of(self.b, self.lanes)


@cython.final
cdef class RelayTopic:
    """One producer's way into one topic. publish() never blocks; prepare() does, and belongs on another thread."""

    def __init__(self, Sender sender, Mailbox mailbox, info, int64_t producer_id):
        """`info`: the topic's TopicInfo; `producer_id`: as in its batches, -1 without sequences."""
        self.sender = sender
        self.mailbox = mailbox
        self.producer_id = producer_id
        self.lanes = Lanes(sender, info)
        sender.topics[self] = self.lanes

    def close(self):
        """Forgets it; what is in the ring goes on."""
        self.sender.topics.pop(self, None)

    @property
    def name(self):
        """Of the topic."""
        return self.lanes.name

    def writer(self, int32_t partition):
        """The writer whose ring a batch would go into, or -1: prepare() first."""
        cdef shmb_lane *lane = self.lane(partition)
        if lane == NULL or lane.stale:
            return -1
        return (<shmb_writer_head *>lane.table).writer

    cdef shmb_lane *lane(self, int32_t partition):
        if partition < 0 or partition >= self.lanes.partitions:
            return NULL
        return self.lanes.lanes[partition]

    def busy(self):
        """Whether something of it has no receipt yet."""
        cdef int32_t p
        for p in range(self.lanes.partitions):
            if self.lanes.lanes[p] != NULL and self.lanes.lanes[p].in_flight:
                return True
        return False

    def prepare(self, int32_t partition, size):
        """Makes publish() possible for a batch of `size` bytes: finds the partition, opens its writer's ring,
        replaces one that was dropped or is too small. Blocks. Raises UnknownTopic, RecordTooLarge, MemoryBudget,
        and what a control request does."""
        cdef shmb_lane *lane
        cdef Sender sender = self.sender
        if partition < 0:
            raise errors.UnknownTopic(self.lanes.name, partition, self.lanes.partitions)
        with sender.outlets.mutex:
            if partition >= self.lanes.partitions:
                self.lanes.grow()
                if partition >= self.lanes.partitions:
                    raise errors.UnknownTopic(self.lanes.name, partition, self.lanes.partitions)
            lane = self.lanes.lanes[partition]
            if lane == NULL:
                lane = self.lanes.lane(partition)
                shmb_lane_make_foreign(lane, <shmb_foreign>sender.foreign, self.producer_id)
            elif lane.stale:
                self.lanes.lane(partition)
            elif shmb_observe32(&lane.out.ring.back.detached):
                sender.detached(lane.out)
            if size + sizeof(shmb_frame) > lane.out.ring.capacity:
                self.enlarge(lane, size)

    cdef int enlarge(self, shmb_lane *lane, uint64_t size) except -1:
        if size > self.lanes.max_bytes:
            self.lanes.grow()
        if size > self.lanes.max_bytes:
            raise errors.RecordTooLarge(
                f"a batch of {size} bytes is larger than the {self.lanes.max_bytes} bytes that topic "
                f"{self.lanes.name!r} allows; raise its max.message.bytes or send smaller batches",
                size_bytes=size, limit_bytes=self.lanes.max_bytes)
        return self.sender.enlarge(self.lanes, lane, size)

    def publish(self, int32_t partition, batch, int acks, tag, room):
        """Copies the batch into its writer's ring, as it is. Returns RELAY_…: TAKEN, or why not.

        `batch`: any contiguous buffer, not needed any more after TAKEN; nothing but its header is looked at.
        `acks`: 0 none, 1 memory, 2 durable. TAKEN: the RelayedBatch with `tag` is mailed when it has its outcome,
        never with acks none. FULL: `room` is mailed once there may be room. Not thread-safe; never blocks.
        """
        cdef shmb_lane *lane = self.lane(partition)
        cdef shmb_watch *w = NULL
        cdef shmb_pbatch *b = NULL
        cdef shmb_put put
        cdef Py_buffer view
        cdef RelayedBatch relayed
        cdef uint64_t tail = 0, receipts = 0
        cdef int stir = 0
        if lane == NULL:
            return RELAY_UNREADY
        relayed = RelayedBatch.__new__(RelayedBatch)
        relayed.lanes = self.lanes
        relayed.tag = tag
        PyObject_GetBuffer(batch, &view, PyBUF_SIMPLE)
        try:
            if view.len < SHMB_BATCH_HEADER_BYTES or view.len > INT32_MAX:
                raise errors.InvalidRecord(f"a batch of {view.len} bytes")
            if acks != SHMB_ACKS_NONE:
                w = self.mailbox.watch(relayed)
            put = shmb_lane_relay(lane, <const uint8_t *>view.buf, <uint32_t>view.len, acks, w, &b, &stir,
                                  &tail, &receipts)
        finally:
            PyBuffer_Release(&view)
        if put == SHMB_PUT_OK:
            if acks != SHMB_ACKS_NONE:
                relayed.b = b
            if stir:
                shmb_tender_stir()
                self.sender.outlets.watched()
            return RELAY_TAKEN
        _drop(w)
        if put == SHMB_PUT_NO_ROOM:
            self.watch_room(lane, room, tail, receipts)
        elif put == SHMB_PUT_NO_MEMORY:
            raise MemoryError("no memory for a batch")
        elif put == SHMB_PUT_DETACHED or put == SHMB_PUT_TOO_LARGE:
            return RELAY_UNREADY
        return <int>put

    cdef watch_room(self, shmb_lane *lane, room, uint64_t tail, uint64_t receipts):
        cdef shmb_watch *w = self.mailbox.watch(room)
        cdef shmb_outlet *o = shmb_lane_lock(lane)
        shmb_outlet_watch_room(o, w, tail, receipts)
        shmb_unlock(&o.lock)
        shmb_tender_stir()
        self.sender.outlets.watched()

    def refusal(self, int32_t partition, int32_t base_sequence):
        """The error of a batch that was REFUSED: the rejection itself, where it is the rejected one that came
        again, and EarlierRejected for those behind it."""
        cdef shmb_lane *lane = self.lane(partition)
        cdef str where = f"{self.lanes.name}-{partition}"
        cause = errors.from_code(lane.failed_error, "", topic=self.lanes.name, partition=partition)
        cause.args = (f"{where}: {cause.message}",)
        return cause if base_sequence == lane.failed_sequence else _earlier(where, cause)

    def why_waiting(self, int32_t partition):
        """What the writer says of the head of the ring, for people; "" if nothing."""
        cdef shmb_lane *lane = self.lane(partition)
        return "" if lane == NULL or lane.stale else _why_blocked(lane).strip(" ()")


def batch_producer(batch):
    """(producer id, -1 without; base sequence) as the batch's header says; InvalidRecord without a whole header."""
    cdef Py_buffer view
    PyObject_GetBuffer(batch, &view, PyBUF_SIMPLE)
    try:
        if view.len < SHMB_BATCH_HEADER_BYTES:
            raise errors.InvalidRecord(f"a batch of {view.len} bytes")
        return (shmb_batch_producer_id(<const uint8_t *>view.buf),
                shmb_batch_base_sequence(<const uint8_t *>view.buf))
    finally:
        PyBuffer_Release(&view)
