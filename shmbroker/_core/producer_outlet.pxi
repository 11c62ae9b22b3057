# The rings of one connection, opened, replaced and enlarged. Included by producer.pyx.
#
# One Outlet a writer. A ring is ours as long as its name leads to the object that we mapped: a broker that
# adopted the rings after its death kept it, and there is nothing to do. Otherwise its lanes move to a new
# ring and what is unacknowledged is published again, under the same producer ids and sequences, from
# the old ring's memory, which stays mapped (invariant 10).

DEFAULT_RING_BYTES = 1 << 20
DEFAULT_SLOTS = 256  # of all partitions together; one has at most SHMB_IN_FLIGHT_MAX frames in flight


@cython.no_gc  # the client thread uses what its members map until __dealloc__ has removed it
@cython.final
cdef class Outlet:
    """One ingress ring and its receipts, mapped. Made and kept by Outlets."""

    def __cinit__(self, connection, uint32_t writer, uint32_t epoch, uint64_t capacity, uint64_t slots):
        cdef size_t park
        self._generation = shmb_fork_generation
        self.o = <shmb_outlet *>calloc(1, sizeof(shmb_outlet))
        if self.o == NULL:
            raise MemoryError()
        shmb_poke32(&self.o.refs, 1)
        self.writer = writer
        self.table = connection.table(writer)
        self.park = connection.park
        park = self.park.address
        said = connection.request("open_ingress", writer=writer, capacity=capacity, slots=slots)
        cdef uint64_t ident = said["ingress"]
        cdef uint64_t granted = said["capacity"]
        cdef void *ring_at
        cdef void *receipts_at
        ring = connection.open_object(f"i{ident}", shm.KIND_INGRESS, writable=True)
        try:
            ring_at = shmb_map_double(ring.fileno(), SHMB_PAGE, granted, 1)
            self._ring_path = "/dev/shm" + ring.name
            self._ring_inode = os.fstat(ring.fileno()).st_ino
        finally:
            ring.close()
        if ring_at == NULL:
            raise MemoryError(f"ingress ring {ident} can't be mapped")
        self.o.ring.head = <shmb_ingress_head *>ring_at
        self.o.ring.capacity = granted
        receipts = connection.open_object(f"r{ident}", shm.KIND_RECEIPTS)
        try:
            self.o.receipts_bytes = receipts.bytes
            receipts_at = shmb_map(receipts.fileno(), self.o.receipts_bytes, 0)
        finally:
            receipts.close()
        if receipts_at == NULL:
            raise MemoryError(f"receipts {ident} can't be mapped")
        shmb_ingress_init(&self.o.ring, ring_at, receipts_at, <shmb_a32 *>park, writer, ident)
        self.o.inflight = <shmb_pbatch **>calloc(self.o.ring.slots, sizeof(shmb_pbatch *))
        if self.o.inflight == NULL:
            raise MemoryError()
        self.o.epoch = epoch
        error = shmb_tender_start(_tend)
        if error:
            raise OSError(error, "the client thread can't be started")
        shmb_tender_add(self.o)

    def __dealloc__(self):
        cdef uint64_t i
        if self._generation != shmb_fork_generation or self.o == NULL:
            return
        shmb_tender_remove(self.o)
        if self.o.inflight != NULL:
            shmb_lock(&self.o.lock)
            for i in range(self.o.ring.slots):
                if self.o.inflight[i] != NULL:
                    shmb_pbatch_release(self.o.inflight[i])
                    self.o.inflight[i] = NULL
            shmb_unlock(&self.o.lock)
        shmb_outlet_release(self.o)

    cdef bint _same(self):
        try:
            return os.stat(self._ring_path).st_ino == self._ring_inode
        except FileNotFoundError:
            return False

    @property
    def ingress(self):
        """The ingress id."""
        return self.o.ring.id

    def counters(self):
        """Batches and records published, ring bytes, frames in flight."""
        return {"batches": self.o.batches, "records": self.o.records, "capacity": self.o.ring.capacity,
                "in_flight": self.o.ring.next_seq - self.o.ring.received}


@cython.final
cdef class Outlets:
    """All rings of one connection, shared by its producers. Thread-safe."""

    def __init__(self, connection, ring_bytes=DEFAULT_RING_BYTES, slots=DEFAULT_SLOTS):
        cdef size_t word
        self.connection = connection
        self._epoch_owner = connection.epoch
        word = connection.epoch.address
        self.epoch = <const shmb_a32 *>word
        self.confirmed = shmb_observe32(self.epoch) & ~<uint32_t>1
        self.mutex = threading.RLock()
        self.by_writer = {}
        self.retired = []
        self.states = weakref.WeakSet()
        self.gone = "the broker went away"
        self.ring_bytes = ring_bytes
        self.slots = slots
        connection.listen(self)
        _all_outlets.add(self)

    def on_gone(self):
        """Blocking waits end by themselves: they look at the epoch; what is watched is seen to here."""
        self._see_to(self._confirm_quietly)

    def on_reattached(self, adopted):
        """What is unacknowledged is settled also when no call is waiting; not on the watcher's thread."""
        self._see_to(self._confirm_quietly)

    def _see_to(self, what):
        threading.Thread(target=what, name="shmbroker-resend", daemon=True).start()

    def _confirm_quietly(self):
        try:
            self.confirm(None)
        except errors.ClosedError:
            self.end_watches(SHMB_WHY_CLOSED)
        except errors.BrokerGone as error:
            _log.warning("records were not sent again: %s", error)
            self.gone = str(error)
            self.end_watches(SHMB_WHY_GONE)
        except errors.ShmbrokerError as error:
            _log.warning("records could not be sent again after the broker came back: %s", error)

    cdef watched(self):
        """Something is watched from now on: if the broker is gone, somebody must say when it is for good."""
        if shmb_observe32(self.epoch) & 1:
            self._see_to(self._confirm_quietly)

    def end_watches(self, why):
        """There is no use in waiting for anything of this connection."""
        cdef Outlet outlet
        with self.mutex:
            for outlet in list(self.by_writer.values()):
                shmb_lock(&outlet.o.lock)
                while outlet.o.watched != NULL:
                    shmb_lane_tell(outlet.o.watched, why)
                shmb_outlet_tell_room(outlet.o, why)
                shmb_unlock(&outlet.o.lock)

    def replace_dropped(self):
        """New rings for those that a writer dropped while something in them was watched."""
        cdef Outlet outlet
        try:
            with self.mutex:
                for outlet in list(self.by_writer.values()):
                    if outlet.o.dropped:
                        self._move([outlet], False, 0)
        except errors.ShmbrokerError as error:
            _log.warning("a ring that the broker dropped was not replaced: %s", error)
            self.end_watches(SHMB_WHY_GONE)

    def counters(self):
        """Outlet.counters() by writer."""
        with self.mutex:
            return {writer: (<Outlet>outlet).counters() for writer, outlet in self.by_writer.items()}

    cdef Outlet get(self, uint32_t writer):
        with self.mutex:
            found = self.by_writer.get(writer)
            if found is None:
                found = Outlet(self.connection, writer, self.confirmed, self.ring_bytes, self.slots)
                self.by_writer[writer] = found
            return <Outlet>found

    cdef int confirm(self, timeout, given_up=None) except -1:
        """Waits for the broker if it is gone, and moves lanes whose rings it has not kept.

        Raises BrokerGone, TimedOut, ClosedError (also once `given_up` is true).
        """
        while True:
            self.connection.attached(timeout, given_up)
            with self.mutex:
                epoch = shmb_observe32(self.epoch)
                if epoch == self.confirmed:
                    return 0
                if epoch & 1:
                    continue
                olds = [o for o in self.by_writer.values() if not (<Outlet>o)._same()]
                if olds:
                    self._move(olds, True, 0)
                self.confirmed = epoch
                for outlet in self.by_writer.values():
                    (<Outlet>outlet).o.epoch = epoch
                return 0

    cdef int _move(self, list olds, bint resend, uint64_t capacity) except -1:
        """Moves every lane of `olds` to new rings. With `resend` the broker has lost the old ones."""
        moving = _Move(self, olds)
        moving.begin()
        try:
            moving.run(resend, capacity)
        finally:
            moving.end()
        return 0


cdef class _Move:
    """The lanes that move, busy from begin() to end()."""

    cdef Outlets outlets
    cdef list olds
    cdef list topics                   # of (Lanes, partition)

    def __init__(self, Outlets outlets, list olds):
        self.outlets = outlets
        self.olds = olds
        self.topics = []

    cdef shmb_lane *lane(self, tuple at):
        return (<Lanes>at[0]).lanes[<int32_t>at[1]]

    cdef begin(self):
        cdef Lanes topic
        cdef Sender sender
        cdef int32_t p
        cdef shmb_lane *lane
        cdef int begun
        old_addresses = {<size_t>(<Outlet>old).o for old in self.olds}
        for sender in list(self.outlets.states):
            for topic in list(sender.topics.values()):
                for p in range(topic.partitions):
                    lane = topic.lanes[p]
                    if lane == NULL or <size_t>lane.out not in old_addresses:
                        continue
                    with nogil:
                        begun = shmb_lane_move_begin(lane)
                        while not begun:
                            shmb_lane_wait_busy(lane)
                            begun = shmb_lane_move_begin(lane)
                    self.topics.append((topic, p))

    cdef end(self):
        cdef shmb_lane *lane
        for at in self.topics:
            lane = self.lane(at)
            with nogil:
                shmb_lane_move_end(lane)

    cdef run(self, bint resend, uint64_t capacity):
        cdef Outlet old
        cdef shmb_outlet *o
        cdef shmb_lane *lane
        for old in self.olds:
            o = old.o
            shmb_lock(&o.lock)
            shmb_outlet_drain(o)
            detached = shmb_observe32(&o.ring.back.detached) != 0
            if detached and not resend:
                shmb_outlet_abandon(o, SHMB_E_DETACHED)
            shmb_unlock(&o.lock)
            if not resend:
                self.drained(old)
            capacity = max(capacity, o.ring.capacity)
        for at in self.topics:
            lane = self.lane(at)
            shmb_lock(&lane.out.lock)
            shmb_lane_settle(lane)
            shmb_unlock(&lane.out.lock)
        for old in self.olds:
            self.outlets.by_writer.pop(old.writer, None)
        before = self.outlets.ring_bytes
        self.outlets.ring_bytes = max(before, capacity)
        pending = self.pending(resend)
        try:
            self.place(resend)
            while pending:
                self.again(pending[0])
                pending.pop(0)
        finally:
            self.outlets.ring_bytes = before
            for batch in pending:  # it went wrong in the middle: nobody can tell
                self.unknown(batch)
            for old in self.olds:
                self.retire(old, resend)

    cdef drained(self, Outlet old):
        """Until everything published has its receipt; the broker lives."""
        cdef shmb_outlet *o = old.o
        cdef shmb_waiter w
        cdef uint64_t tail, receipts
        cdef int why
        w.epoch = self.outlets.epoch
        w.epoch_seen = self.outlets.confirmed
        w.closed = NULL
        w.deadline_ns = INT64_MAX
        w.spin_ns = 0
        while True:
            with nogil:
                tail = shmb_observe(&o.ring.back.tail)
                receipts = shmb_observe(&o.ring.back.receipts)
                shmb_lock(&o.lock)
                shmb_outlet_drain(o)
                why = o.ring.received == o.ring.next_seq
                shmb_unlock(&o.lock)
                if not why:
                    why = shmb_wait_progress(o.ring.back, o.ring.word, tail, receipts, &w)
                else:
                    why = -1
            if why == -1:
                return
            if why == SHMB_WAIT_SIGNAL:
                PyErr_CheckSignals()
            elif why == SHMB_WAIT_GONE:
                raise errors.BrokerGone("the broker went away while a ring was being replaced; try again")

    cdef list pending(self, bint resend):
        """(outlet, batch) of all that must be published again, in order for each lane."""
        cdef Outlet old
        found = []
        if resend:
            by_address = {<size_t>(<Outlet>old).o: old for old in self.olds}
            for at in self.topics:
                self.received(by_address[<size_t>self.lane(at).out], self.lane(at), found)
            for old in self.olds:
                self.in_flight(old, found)
        return found

    cdef received(self, Outlet old, shmb_lane *lane, list found):
        """What was appended and not yet durable, as far as the old ring still holds it."""
        cdef shmb_ingress *ring = &old.o.ring
        cdef shmb_pbatch *b
        cdef shmb_pbatch *next
        cdef bint gap = False
        shmb_lock(&old.o.lock)
        b = lane.waiting
        lane.waiting = lane.waiting_last = NULL
        shmb_unlock(&old.o.lock)
        while b != NULL:
            next = b.next
            # Half a ring back nothing can have been overwritten, not even by a batch growing in place.
            if lane.producer_id >= 0 and not gap and b.frame_position + ring.capacity // 2 >= ring.published:
                b.resent = 1
                found.append((old, <size_t>b))
            else:
                gap = True
                self.fail(old.o, b, SHMB_PB_UNKNOWN, SHMB_E_UNKNOWN_OUTCOME)
            b = next
        if gap and lane.producer_id >= 0:
            lane.epoch += 1
            lane.sequence = 0

    cdef in_flight(self, Outlet old, list found):
        """What has no receipt. The frame at the head alone may be in the log all the same."""
        cdef shmb_ingress *ring = &old.o.ring
        cdef shmb_pbatch *b
        cdef shmb_lane *lane
        cdef uint64_t seq, head
        shmb_lock(&old.o.lock)
        head = ring.received
        ring.received = ring.next_seq
        shmb_unlock(&old.o.lock)
        for seq in range(head, ring.next_seq):
            b = old.o.inflight[seq & (ring.slots - 1)]
            old.o.inflight[seq & (ring.slots - 1)] = NULL
            if b == NULL:
                continue
            lane = b.lane
            lane.in_flight -= 1
            if b.chain != lane.chain:  # one before it was rejected (invariant 7)
                b.cause = lane.failed_error
                self.fail(old.o, b, SHMB_PB_FAILED, SHMB_E_EARLIER)
            elif seq == head and (lane.producer_id < 0 or b.epoch != lane.epoch):
                self.fail(old.o, b, SHMB_PB_UNKNOWN, SHMB_E_UNKNOWN_OUTCOME)  # no sequence that could tell
            else:
                found.append((old, <size_t>b))

    cdef fail(self, shmb_outlet *o, shmb_pbatch *b, int state, int32_t error):
        shmb_lock(&o.lock)
        shmb_pbatch_fail(b, state, error)
        shmb_unlock(&o.lock)

    cdef place(self, bint ask):
        """Gives every lane its new ring, and what metadata says of its partition now."""
        cdef Lanes topic
        cdef int32_t p
        for topic, p in self.topics:
            if ask:
                topic.sender.metadata.forget(topic.name)
        for topic, p in self.topics:
            try:
                info = topic.sender.metadata.partition(topic.name, p)
            except errors.UnknownTopic:
                self.orphan(topic.lanes[p])
                continue
            _place(topic, topic.lanes[p], info, self.outlets.get(info.writer), True)

    cdef orphan(self, shmb_lane *lane):
        """Its topic is gone: what was open fails, and the next send asks again."""
        cdef shmb_outlet *o = lane.out
        shmb_lock(&o.lock)
        lane.stale = 1
        shmb_lane_drop_open(lane, errors.UnknownTopic.kafka_code)
        shmb_unlock(&o.lock)

    cdef again(self, tuple item):
        cdef Outlet old = item[0]
        cdef shmb_pbatch *b = <shmb_pbatch *><size_t>item[1]
        cdef shmb_outlet *o = b.lane.out
        cdef shmb_waiter w
        cdef uint64_t tail, receipts
        cdef int put, why
        if o == old.o:  # its topic is gone
            self.fail(o, b, SHMB_PB_FAILED, errors.UnknownTopic.kafka_code)
            return
        w.epoch = self.outlets.epoch
        w.epoch_seen = shmb_observe32(self.outlets.epoch)
        w.closed = NULL
        w.deadline_ns = INT64_MAX
        w.spin_ns = 0
        while True:
            why = SHMB_WAIT_OK
            with nogil:
                tail = shmb_observe(&o.ring.back.tail)
                receipts = shmb_observe(&o.ring.back.receipts)
                put = shmb_pbatch_republish(b, &old.o.ring)
                if put == SHMB_PUT_NO_ROOM:
                    why = shmb_wait_progress(o.ring.back, o.ring.word, tail, receipts, &w)
            if put == SHMB_PUT_OK:
                return
            if why == SHMB_WAIT_SIGNAL:
                PyErr_CheckSignals()
            elif why == SHMB_WAIT_GONE or put != SHMB_PUT_NO_ROOM:
                raise errors.BrokerGone("the broker went away again while records were sent again")

    cdef unknown(self, tuple item):
        cdef shmb_pbatch *b = <shmb_pbatch *><size_t>item[1]
        cdef shmb_outlet *o = shmb_lane_lock(b.lane)
        shmb_pbatch_fail(b, SHMB_PB_UNKNOWN, SHMB_E_UNKNOWN_OUTCOME)
        shmb_unlock(&o.lock)

    cdef retire(self, Outlet old, bint lost):
        """Its ring is unmapped; the rest stays for threads that are still waiting on its receipts."""
        old.retired = True
        shmb_tender_remove(old.o)
        shmb_lock(&old.o.lock)
        shmb_outlet_tell_room(old.o, SHMB_WHY_SETTLED)  # they try again, in the new ring
        shmb_unlock(&old.o.lock)
        shmb_tender_stir()
        shmb_outlet_unmap_ring(old.o)
        self.outlets.retired.append(old)
        if not lost:
            try:
                self.outlets.connection.request("close_ingress", ingress=old.o.ring.id)
            except errors.ShmbrokerError as error:
                _log.debug("ingress %d was not closed: %s", old.o.ring.id, error)


cdef _place(Lanes topic, shmb_lane *lane, info, Outlet outlet, bint move):
    """Sets where a lane's frames go: the ring, and the partition's slot in the writer's table."""
    cdef size_t table = outlet.table.address, park = outlet.park.address
    cdef uint64_t most = outlet.o.ring.capacity - sizeof(shmb_frame)  # a frame may fill an empty ring
    lane.slot_index = info.slot
    lane.slot_epoch = info.slot_epoch
    lane.table = <void *>table
    lane.slot = shmb_table_slot(lane.table, lane.slot_index)
    lane.durable_word = (<shmb_a32 *>park) + shmb_park_durable(info.writer, info.slot) * (SHMB_LINE // 4)
    lane.batch_limit = <uint32_t>min(topic.max_bytes, most)
    lane.batch_want = min(lane.batch_limit, topic.sender.batch_bytes, <uint32_t>(outlet.o.ring.capacity // 4))
    lane.stale = 0
    if move:
        shmb_lane_move(lane, outlet.o)
    else:
        shmb_outlet_hold(outlet.o)
        lane.out = outlet.o


cdef str _why_blocked(shmb_lane *lane):
    """" (…)" with what the writer says of the frame at the head of the lane's ring; "" if nothing."""
    cdef shmb_outlet *o = shmb_lane_lock(lane)
    cdef uint64_t tail = shmb_observe(&o.ring.back.tail)
    cdef uint32_t slot = lane.slot_index
    cdef shmb_slot *at
    if tail != o.ring.published:
        slot = (<shmb_frame *>(o.ring.data + (tail & (o.ring.capacity - 1)))).slot
    shmb_unlock(&o.lock)
    at = shmb_table_slot(lane.table, slot)
    state = shmb_observe32(&at.state)
    why = shmb_observe32(&at.blocked_why)
    words = []
    if tail != o.ring.published:
        words.append(f"the frame at the head of the ring is for slot {slot}")
    if state != 2:
        words.append(f"its partition is {_STATES.get(state, state)}")
    if why:
        words.append(_BLOCKS.get(why, f"reason {why}"))
    return f" ({'; '.join(words)})" if words else ""
