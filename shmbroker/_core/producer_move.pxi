# Lanes that move to other rings: a larger one, one for one that the writer dropped, or new ones after the broker
# lost the old. Included by producer.pyx.


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
        for sender in {(<Lanes>at[0]).sender for at in self.topics}:
            if (<Sender>sender).moved is not None:
                (<Sender>sender).moved()

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
        except BaseException as error:
            self.strand(getattr(error, "kafka_code", errors.OutcomeUnknown.kafka_code))
            raise
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
        if gap and lane.producer_id >= 0 and not lane.foreign:
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
            if lane.foreign:
                self.foreign_in_flight(old, b, seq == head, found)
            elif b.chain != lane.chain:  # one before it was rejected (invariant 7)
                b.cause = lane.failed_error
                self.fail(old.o, b, SHMB_PB_FAILED, SHMB_E_EARLIER)
            elif seq == head and (lane.producer_id < 0 or b.epoch != lane.epoch):
                self.fail(old.o, b, SHMB_PB_UNKNOWN, SHMB_E_UNKNOWN_OUTCOME)  # no sequence that could tell
            else:
                found.append((old, <size_t>b))

    cdef foreign_in_flight(self, Outlet old, shmb_pbatch *b, bint head, list found):
        cdef shmb_lane *lane = b.lane
        if lane.broken and b.chain == lane.chain:
            b.cause = lane.failed_error
            self.fail(old.o, b, SHMB_PB_FAILED, SHMB_E_EARLIER)
        elif head and lane.producer_id < 0:
            self.fail(old.o, b, SHMB_PB_UNKNOWN, SHMB_E_UNKNOWN_OUTCOME)
        else:
            b.resent = 1  # so that a gap before it, whose outcome nobody can tell, makes its own unknown too
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
                info = topic.place(p)
            except errors.UnknownTopic:
                self.orphan(topic.lanes[p], errors.UnknownTopic.kafka_code)
                continue
            _place(topic, topic.lanes[p], info, self.outlets.get(info.writer), True)

    cdef strand(self, int32_t error):
        """No new ring could be had for some: their old one is about to be unmapped."""
        cdef Outlet old
        for old in self.olds:
            for at in self.topics:
                if self.lane(at).out == old.o:
                    self.orphan(self.lane(at), error)

    cdef orphan(self, shmb_lane *lane, int32_t error):
        """It has no ring any more: what was open fails, and the next send asks where to go."""
        cdef shmb_outlet *o = lane.out
        shmb_lock(&o.lock)
        lane.stale = 1
        shmb_lane_drop_open(lane, error)
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
