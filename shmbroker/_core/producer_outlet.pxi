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
        self.o.ring.bell = -1
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
            self._ring_name = ring.name
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
        self.o.ring.ahead = connection.frames_ahead
        if "bell" in said:  # a copy of ours: the connection may close its own before we are gone
            self.o.ring.bell = os.dup(said["bell"])
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

    @property
    def ingress(self):
        """The ingress id."""
        return self.o.ring.id

    def standing(self):
        """How full the ring is: (bytes published and not consumed, capacity, frames without a receipt, places
        for receipts, slot of the batch in front or -1)."""
        cdef int64_t front = -1
        cdef uint64_t tail, used, flying
        shmb_lock(&self.o.lock)
        tail = shmb_observe(&self.o.ring.back.tail)
        used = self.o.ring.published - tail
        if used and self.o.ring.data != NULL:
            front = (<shmb_frame *>(self.o.ring.data + (tail & (self.o.ring.capacity - 1)))).slot
        flying = self.o.ring.next_seq - shmb_observe(&self.o.ring.back.receipts)
        shmb_unlock(&self.o.lock)
        return used, self.o.ring.capacity, flying, self.o.ring.slots, front

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
        self.confirm_aside()

    def on_reattached(self, adopted):
        """What is unacknowledged is settled also when no call is waiting; not on the watcher's thread."""
        self.confirm_aside()

    cdef confirm_aside(self):
        """confirm() in a thread, one at a time; ends what is watched when the broker is gone for good."""
        if not self.confirming:
            self.confirming = True
            threading.Thread(target=self._confirm_quietly, name="shmbroker-resend", daemon=True).start()

    def _confirm_quietly(self):
        while self.confirming:
            why = SHMB_WHY_SETTLED
            try:
                self.confirm(None)
            except errors.ClosedError:
                why = SHMB_WHY_CLOSED
            except errors.BrokerGone as error:
                _log.warning("records were not sent again: %s", error)
                self.gone = str(error)
                why = SHMB_WHY_GONE
            except errors.ShmbrokerError as error:
                _log.warning("records could not be sent again after the broker came back: %s", error)
                self.gone = str(error)
                why = SHMB_WHY_GONE
            # In this order: what is watched from here on finds nobody, and starts a thread of its own.
            self.confirming = False
            if why != SHMB_WHY_SETTLED:
                self.end_watches(why)
            elif shmb_observe32(self.epoch) != self.confirmed:  # it went again, and may not have started one
                self.confirming = True

    cdef watched(self):
        """Something is watched from now on: if the broker is gone, somebody must say when it is for good."""
        if shmb_observe32(self.epoch) & 1:
            self.confirm_aside()

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

    def standing(self):
        """Outlet.standing() by writer."""
        with self.mutex:
            return {writer: (<Outlet>outlet).standing() for writer, outlet in self.by_writer.items()}

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
                olds = [o for o in self.by_writer.values() if not self._keeps(<Outlet>o)]
                if olds:
                    self._move(olds, True, 0)
                self.confirmed = epoch
                for outlet in self.by_writer.values():
                    (<Outlet>outlet).o.epoch = epoch
                return 0

    cdef bint _keeps(self, Outlet outlet):
        return self.connection.keeps(outlet._ring_name, outlet._ring_inode)

    cdef int _move(self, list olds, bint resend, uint64_t capacity) except -1:
        """Moves every lane of `olds` to new rings. With `resend` the broker has lost the old ones."""
        moving = _Move(self, olds)
        moving.begin()
        try:
            moving.run(resend, capacity)
        finally:
            moving.end()
        return 0


cdef void _limit(Lanes topic, shmb_lane *lane, uint64_t capacity):
    """How large a batch may and should be; with the lane's lock, or while nobody uses the lane."""
    cdef uint64_t most = capacity - sizeof(shmb_frame)  # a frame may fill an empty ring
    lane.batch_limit = <uint32_t>min(topic.max_bytes, most)
    lane.batch_want = min(lane.batch_limit, topic.sender.batch_bytes, <uint32_t>(capacity // 4))


cdef _place(Lanes topic, shmb_lane *lane, info, Outlet outlet, bint move):
    """Sets where a lane's frames go: the ring, and the partition's slot in the writer's table."""
    cdef size_t table = outlet.table.address, park = outlet.park.address
    lane.slot_index = info.slot
    lane.slot_epoch = info.slot_epoch
    lane.table = <void *>table
    lane.slot = shmb_table_slot(lane.table, lane.slot_index)
    lane.durable_word = (<shmb_a32 *>park) + shmb_park_durable(info.writer, info.slot) * (SHMB_LINE // 4)
    _limit(topic, lane, outlet.o.ring.capacity)
    lane.stale = 0
    if move:
        shmb_lane_move(lane, outlet.o)
    else:
        shmb_outlet_hold(outlet.o)
        lane.out = outlet.o


cdef str _why_blocked(shmb_lane *lane):
    """" (…)" with what the writer says of the frame at the head of the lane's ring; "" if nothing."""
    cdef shmb_outlet *o = shmb_lane_lock(lane)
    cdef uint64_t tail = shmb_ingress_passed(&o.ring)
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
