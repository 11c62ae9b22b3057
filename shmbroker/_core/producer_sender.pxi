# One producer: what its options mean to the core, and the slow ways around send(): blocking, compressing, flushing.
# Included by producer.pyx. A Sender outlives its Producer as long as receipts need it.


@cython.final
cdef class Sender:
    """One producer's state, shared with its receipts."""

    def __init__(self, connection, metadata, Outlets outlets, *, acks, compression, linger_ms, max_block_ms,
                 delivery_timeout_ms, idempotent, batch_bytes, on_full="block", foreign=0):
        self.generation = shmb_fork_generation
        self.connection = connection
        self.metadata = metadata
        self.outlets = outlets
        self.topics = {}
        self.last_name = None
        self.acks = _ACKS[acks]
        self.codec = CODECS.index(compression or "none")
        self.idempotent = idempotent
        self.foreign = foreign
        self.producer_id = -1
        self.batch_bytes = batch_bytes
        self.linger_ms = linger_ms
        self.max_block_ns = max_block_ms * 1_000_000
        self.delivery_ns = delivery_timeout_ms * 1_000_000
        self.on_full = FULL.index(on_full)
        outlets.states.add(self)
        if not foreign:  # who asks for each topic where it needs to
            metadata.listen(self)
        interval = max(50, min(1000, linger_ms * 500))
        if interval < shmb_peek32(&shmb_tender.again_us):
            shmb_poke32(&shmb_tender.again_us, interval)
        if not foreign and interval < shmb_peek32(&shmb_tender.interval_us):  # whole batches don't linger
            shmb_poke32(&shmb_tender.interval_us, interval)
        if self.codec:
            _compressing.add(self)

    cdef int usable(self) except -1:
        if self.generation != shmb_fork_generation or shmb_peek32(&self.closed):
            _unusable(self)
        return 0

    def check(self):
        """ForkedError in a forked child, ClosedError after close()."""
        self.usable()

    def on_topics(self, names):
        """Topics (None: any) were altered: asks for them, not on the watcher's thread."""
        if self.generation != shmb_fork_generation or shmb_peek32(&self.closed):
            return
        known = [topic for name, topic in list(self.topics.items()) if names is None or name in names]
        if known:
            threading.Thread(target=self._learn, args=(known,), name="shmbroker-topics", daemon=True).start()

    def _learn(self, list known):
        cdef Lanes topic
        for topic in known:
            try:
                topic.grow()
            except errors.ShmbrokerError as error:  # deleted, or gone again: the next send says so
                _log.debug("topic %s: %s", topic.name, error)

    @property
    def forked(self):
        """Whether this is a forked child of the process that made it."""
        return self.generation != shmb_fork_generation

    def close(self):
        """No more records; ends the waits of other threads' send()."""
        if self.generation != shmb_fork_generation:
            return
        shmb_publish32(&self.closed, 1)
        self.say_dropped("")
        if not self.connection.closed:
            self.connection.wake_all()
            self.connection.notify()

    def is_closed(self):
        return shmb_peek32(&self.closed) != 0

    def end_watches(self, timeout=None):
        """After close(): nobody waits for what is not settled; callbacks run, awaits end in ClosedError.

        Waits up to `timeout` s (delivery_timeout_ms by default) for the callbacks.
        """
        cdef Lanes topic
        cdef int32_t p
        cdef shmb_outlet *o
        if self.generation != shmb_fork_generation:
            return
        for topic in list(self.topics.values()):
            for p in range(topic.partitions):
                if topic.lanes[p] != NULL:
                    o = shmb_lane_lock(topic.lanes[p])
                    shmb_lane_tell(topic.lanes[p], SHMB_WHY_CLOSED)
                    shmb_unlock(&o.lock)
        if timeout != 0:
            _wait_for_callbacks(shmb_now_ns() + self.delivery_ns if timeout is None else _deadline(timeout))

    cdef Lanes topic(self, str name):
        found = self.topics.get(name)
        if found is None:
            if name is None:
                raise TypeError("topic is None, expected str")
            found = self.topics.setdefault(name, Lanes(self, self.metadata.get(name)))
        self.last = found
        self.last_name = name
        return found

    # ---- Waiting ----

    cdef int waited(self, int why, shmb_lane *lane, int64_t deadline_ns, bint was_closed) except -1:
        """What a wait's end means: 1 look again, 0 the deadline has passed. `was_closed`: before it began."""
        if why == SHMB_WAIT_SIGNAL:
            PyErr_CheckSignals()
        elif why == SHMB_WAIT_TIMEOUT:
            return 0
        elif why == SHMB_WAIT_CLOSED:
            raise errors.ClosedError("this producer was closed while the call waited")
        elif why == SHMB_WAIT_GONE:
            try:
                self.outlets.confirm(_left_s(deadline_ns), None if was_closed else self.is_closed)
            except errors.TimedOut:
                if shmb_now_ns() < deadline_ns:
                    raise
                return 0
        return 1

    cdef int settle(self, shmb_pbatch *b, int64_t deadline_ns) except -1:
        """Seals the batch if need be and waits for its outcome: 1 settled, 0 the deadline has passed."""
        cdef shmb_look look
        cdef shmb_waiter w
        cdef shmb_lane *lane = b.lane
        cdef int why
        cdef bint compress_it
        cdef bint was_closed = self.is_closed()  # a receipt may be asked after close(), but close() ends waits
        w.epoch = self.outlets.epoch
        w.closed = NULL if was_closed else &self.closed
        w.deadline_ns = deadline_ns
        while True:
            why = SHMB_WAIT_OK
            compress_it = False
            w.epoch_seen = self.outlets.confirmed
            w.spin_ns = SPIN_NS
            look.put = SHMB_PUT_OK
            look.detached = 0
            with nogil:
                shmb_pbatch_look(b, True, &look)
                if shmb_pbatch_settled(b):
                    pass
                elif look.detached:
                    pass
                elif look.state == SHMB_PB_OPEN:
                    if look.put == SHMB_PUT_NO_ROOM:
                        why = shmb_wait_progress(look.back, look.word, look.tail, look.receipts, &w)
                    elif look.put == SHMB_PUT_BUSY:
                        shmb_lane_wait_busy(lane)
                elif look.state == SHMB_PB_PUBLISHED:
                    why = shmb_wait_receipt(look.back, look.word, look.frame_seq, &w)
                else:
                    if SPIN_DURABLE_NS:
                        w.spin_ns = SPIN_DURABLE_NS
                    why = shmb_wait_durable(lane.slot, lane.durable_word, look.end_position, look.generation, &w)
            if shmb_pbatch_settled(b):
                return 1
            if look.detached:
                self.detached(look.out)
            elif look.put == SHMB_PUT_COMPRESS:
                self.compress(lane)
            elif look.put == SHMB_PUT_NEW_ID:
                self.new_id(lane)
            elif not self.waited(why, lane, deadline_ns, was_closed):
                return shmb_pbatch_settled(b)

    cdef int unblock(self, int put, Lanes topic, shmb_lane *lane, const shmb_item *item, uint64_t tail,
                     uint64_t receipts, int64_t deadline_ns) except -1:
        """Does what `put` asks for, so that the caller can try again; BufferFull at the deadline."""
        cdef shmb_waiter w
        cdef int why
        cdef shmb_outlet *o = lane.out
        if put == SHMB_PUT_NO_ROOM:
            w.epoch = self.outlets.epoch
            w.epoch_seen = self.outlets.confirmed
            w.closed = &self.closed
            w.deadline_ns = deadline_ns
            w.spin_ns = SPIN_NS
            with nogil:
                why = shmb_wait_room(&o.ring, tail, receipts, &w)
            if not self.waited(why, lane, deadline_ns, False):
                raise self.full(topic, lane)
        elif put == SHMB_PUT_BUSY:
            with nogil:
                shmb_lane_wait_busy(lane)
        elif put == SHMB_PUT_COMPRESS:
            self.compress(lane)
        elif put == SHMB_PUT_NEW_ID:
            self.new_id(lane)
        elif put == SHMB_PUT_DETACHED:
            self.detached(o)
        elif put == SHMB_PUT_TOO_LARGE:
            self.enlarge(topic, lane, shmb_item_alone(item))
        elif put == SHMB_PUT_NO_MEMORY:
            raise MemoryError("no memory for a batch")
        return 0

    cdef int send_slow(self, Lanes topic, shmb_lane *lane, const shmb_item *item, shmb_put rc,
                       shmb_pbatch **pb, int32_t *index) except -1:
        """Until the record is in a batch, of which the caller then owns one Python reference.

        1: it was dropped, and the batch stands for that.
        """
        cdef int64_t deadline_ns = shmb_now_ns() + self.max_block_ns
        cdef uint64_t tail = 0, receipts = 0
        cdef shmb_put after = SHMB_PUT_OK
        cdef bint first = True
        while True:
            if rc == SHMB_PUT_OK:
                if after > SHMB_PUT_NO_ROOM:
                    self.after_slow(topic, lane, after)
                return 0
            if rc == SHMB_PUT_NO_ROOM and self.on_full != FULL_BLOCK:
                if self.on_full == FULL_RAISE:
                    raise self.full(topic, lane)
                pb[0] = self.drop(topic, lane)
                index[0] = 0
                return 1
            if not first or rc != SHMB_PUT_NO_ROOM:
                self.unblock(rc, topic, lane, item, tail, receipts, deadline_ns)
                self.usable()
            first = False
            tail = shmb_observe(&lane.out.ring.back.tail)
            receipts = shmb_observe(&lane.out.ring.back.receipts)
            rc = shmb_lane_send(lane, item, pb, index, &after)

    cdef int after_slow(self, Lanes topic, shmb_lane *lane, shmb_put after) except -1:
        """The record is taken; its batch wants to be sealed and needs Python for it."""
        if after == SHMB_PUT_COMPRESS:
            self.compress(lane)
            shmb_lane_flush(lane)  # without room it stays open: the client thread, or the next send
        elif after == SHMB_PUT_NEW_ID:
            self.new_id(lane)
        return 0

    cdef object full(self, Lanes topic, shmb_lane *lane):
        how = f"stayed full for max_block_ms ({self.max_block_ns // 1_000_000})"
        if self.on_full != FULL_BLOCK:
            how = "is full"
        return errors.BufferFull(f"the ring to the writer of {topic.name}-{lane.partition} {how}"
                                 f"{_why_blocked(lane)}; the record was not taken")

    cdef shmb_pbatch *drop(self, Lanes topic, shmb_lane *lane) except NULL:
        """Drops a record for which there is no room: counts it, and warns at most once a second. The batch
        that its receipt points to."""
        cdef shmb_pbatch *b = shmb_lane_refuse(lane)
        cdef int64_t now = shmb_now_ns()
        if b == NULL:
            raise MemoryError("no memory for a receipt")
        self.unsaid += 1
        if now - self.said_ns >= SAY_EVERY_NS:
            self.said_ns = now
            self.say_dropped(f"; the last for {topic.name}-{lane.partition}: the ring to its writer is full"
                             f"{_why_blocked(lane)}")
        return b

    def say_dropped(self, str where):
        """Warns of what was dropped since the last warning."""
        if self.unsaid:
            count, self.unsaid = self.unsaid, 0
            were = "record was" if count == 1 else "records were"
            _log.warning("%d %s dropped (on_full=\"drop\")%s", count, were, where)

    def places(self):
        """Where the partitions are that were sent to: (topic, partition, writer, slot, slot epoch, batches
        without a receipt) each."""
        cdef Lanes topic
        cdef int32_t p
        cdef shmb_lane *lane
        cdef shmb_outlet *o
        cdef Outlet outlet
        if self.generation != shmb_fork_generation:
            raise errors.ForkedError("this producer")
        found = []
        with self.outlets.mutex:
            writers = {<size_t>(<Outlet>outlet).o: writer for writer, outlet in self.outlets.by_writer.items()}
            for topic in list(self.topics.values()):
                for p in range(topic.partitions):
                    lane = topic.lanes[p]
                    if lane != NULL and <size_t>lane.out in writers:
                        o = shmb_lane_lock(lane)
                        shmb_outlet_drain(o)  # nobody else takes receipts of a producer that stands still
                        shmb_lane_settle(lane)
                        shmb_unlock(&o.lock)
                        found.append((topic.name, p, writers[<size_t>lane.out], lane.slot_index,
                                      lane.slot_epoch, lane.in_flight))
        return found

    def dropped(self):
        """Records dropped so far, by (topic, partition); those of which none was are absent."""
        cdef Lanes topic
        cdef int32_t p
        if self.generation != shmb_fork_generation:
            raise errors.ForkedError("this producer")
        found = {}
        for topic in list(self.topics.values()):
            for p in range(topic.partitions):
                if topic.lanes[p] != NULL and topic.lanes[p].dropped:
                    found[topic.name, p] = topic.lanes[p].dropped
        return found

    # ---- What needs Python ----

    cdef int compress(self, shmb_lane *lane) except -1:
        """Compresses the open batch, so that it can be sealed."""
        cdef shmb_outlet *o = shmb_lane_lock(lane)
        cdef uint8_t *records
        cdef Py_ssize_t n
        cdef bytes packed = None
        if lane.open == NULL or lane.open.count == 0 or lane.compressed or shmb_peek32(&lane.busy):
            shmb_unlock(&o.lock)
            return 0
        shmb_lane_hold_open(lane)
        records = lane.base + SHMB_BATCH_HEADER_BYTES
        n = lane.at - records
        shmb_unlock(&o.lock)
        try:
            packed = compress(self.codec, PyBytes_FromStringAndSize(<char *>records, n))
            if PyBytes_GET_SIZE(packed) >= n:
                packed = None
        except Exception as error:  # nothing is wrong with the records: they go as they are
            self.warn_uncompressed(error)
        finally:
            o = shmb_lane_lock(lane)
            if packed is None:
                shmb_lane_pack(lane, NULL, 0)
            else:
                shmb_lane_pack(lane, PyBytes_AS_STRING(packed), <uint32_t>PyBytes_GET_SIZE(packed))
            shmb_unlock(&o.lock)
            shmb_lane_wake_busy(lane)
        return 0

    cdef shmb_put seal_now(self, shmb_lane *lane):
        """Seals the open batch as far as that needs no waiting; else the client thread does when it can."""
        cdef shmb_put put
        shmb_lane_due(lane)
        put = shmb_lane_flush(lane)
        if put == SHMB_PUT_COMPRESS:
            self.compress(lane)
            put = shmb_lane_flush(lane)
        shmb_tender_poke(lane.out)
        return put

    def renew(self, Lanes topic, p):
        """Does what the open batch of a lane needs, other than room, to be sealed. May block."""
        cdef shmb_lane *lane = topic.lanes[<int32_t>p]
        cdef shmb_put put = shmb_lane_flush(lane)
        if put != SHMB_PUT_OK and put != SHMB_PUT_NO_ROOM:
            self.unblock(put, topic, lane, NULL, 0, 0, INT64_MAX)
            shmb_lane_flush(lane)

    cdef Held newest_unsettled(self, Lanes topic, int32_t p):
        """The batch after whose outcome a flush has nothing more to wait for; None: it has nothing."""
        cdef shmb_lane *lane = topic.lanes[p]
        cdef shmb_pbatch *b
        cdef shmb_outlet *o
        if lane == NULL:
            return None
        o = shmb_lane_lock(lane)
        shmb_outlet_drain(o)
        shmb_lane_settle(lane)
        b = lane.last
        if b == NULL or shmb_pbatch_settled(b):
            b = lane.waiting_last
        if b != NULL:
            shmb_pbatch_hold(b)
        shmb_unlock(&o.lock)
        if b == NULL:
            return None
        held = _hold(topic, b)
        shmb_pbatch_release(b)
        return held

    cdef warn_uncompressed(self, error):
        if not self.warned_uncompressed:
            self.warned_uncompressed = True
            _log.warning("%s compression failed (%s: %s): batches of which it fails are sent uncompressed; "
                         "this is said once a producer", CODECS[self.codec], type(error).__name__, error)

    cdef tend(self):
        """On the client thread, with the GIL: what the linger has run out for."""
        cdef Lanes topic
        cdef int32_t p
        cdef shmb_lane *lane
        if self.generation != shmb_fork_generation:
            return
        for topic in list(self.topics.values()):
            for p in range(topic.partitions):
                lane = topic.lanes[p]
                if lane != NULL and lane.open != NULL and lane.codec:
                    self.compress(lane)
                    shmb_lane_flush(lane)

    cdef int new_id(self, shmb_lane *lane) except -1:
        """The epochs of this producer id are used up in this partition."""
        cdef int64_t producer_id = self.connection.request("init_producer")["producer_id"]
        cdef shmb_outlet *o = shmb_lane_lock(lane)
        if lane.epoch > 32767:
            lane.producer_id = producer_id
            lane.epoch = 0
            lane.sequence = 0
        shmb_unlock(&o.lock)
        return 0

    cdef int detached(self, shmb_outlet *o) except -1:
        """The writer has dropped the ring: what is in it fails, later records get a new one."""
        cdef Outlet outlet
        with self.outlets.mutex:
            for outlet in list(self.outlets.by_writer.values()):
                if outlet.o == o:
                    self.outlets._move([outlet], False, 0)
        return 0

    cdef int enlarge(self, Lanes topic, shmb_lane *lane, uint64_t alone) except -1:
        """A ring of which half holds the topic's largest batch, or as much of one as the broker grants."""
        cdef Outlet outlet
        cdef uint64_t capacity = 1 << 16
        while capacity // 2 - sizeof(shmb_frame) < topic.max_bytes:
            capacity *= 2
        with self.outlets.mutex:
            for outlet in list(self.outlets.by_writer.values()):
                if outlet.o == lane.out and alone > lane.batch_limit:
                    self.outlets._move([outlet], False, capacity)
        if alone > lane.batch_limit:
            raise errors.RecordTooLarge(
                f"a record that takes {alone} bytes as a batch does not fit the ring of "
                f"{lane.out.ring.capacity} bytes that the broker grants; split the record",
                size_bytes=alone, limit_bytes=lane.batch_limit)
        return 0

    # ---- Flushing ----

    cdef int seal(self, Lanes topic, shmb_lane *lane, int64_t deadline_ns) except -1:
        """Publishes the open batch, waiting for room: 1 done, 0 the deadline has passed."""
        cdef shmb_put rc
        cdef uint64_t tail, receipts
        while True:
            tail = shmb_observe(&lane.out.ring.back.tail)
            receipts = shmb_observe(&lane.out.ring.back.receipts)
            rc = shmb_lane_flush(lane)
            if rc == SHMB_PUT_OK:
                return 1
            if shmb_now_ns() >= deadline_ns:
                return 0
            try:
                self.unblock(rc, topic, lane, NULL, tail, receipts, deadline_ns)
            except errors.BufferFull:
                return 0

    def flush(self, timeout=None):
        """Publishes every open batch and waits until everything sent before is settled.

        Returns whether it is; raises BrokerGone, ClosedError. Failures are `failures`' to report.
        """
        cdef Lanes topic
        cdef int32_t p
        cdef shmb_lane *lane
        cdef shmb_pbatch *b
        cdef shmb_outlet *o
        cdef int done
        cdef int64_t deadline_ns = shmb_now_ns() + self.delivery_ns if timeout is None else _deadline(timeout)
        if self.generation != shmb_fork_generation:
            raise errors.ForkedError("this producer")
        for topic in list(self.topics.values()):
            for p in range(topic.partitions):
                lane = topic.lanes[p]
                if lane != NULL and lane.open != NULL and not self.seal(topic, lane, deadline_ns):
                    return False
        for topic in list(self.topics.values()):
            for p in range(topic.partitions):
                lane = topic.lanes[p]
                while lane != NULL:
                    o = shmb_lane_lock(lane)
                    shmb_outlet_drain(o)
                    shmb_lane_settle(lane)
                    b = lane.last
                    if b == NULL or shmb_pbatch_settled(b):
                        b = lane.waiting_last
                    if b != NULL:
                        shmb_pbatch_hold(b)
                    shmb_unlock(&o.lock)
                    if b == NULL:
                        break
                    try:
                        done = self.settle(b, deadline_ns)
                    finally:
                        shmb_pbatch_release(b)
                    if not done:
                        return False
        _wait_for_callbacks(deadline_ns)
        return True

    def publish(self):
        """Publishes what is open as far as there is room; waits for nothing."""
        cdef Lanes topic
        cdef int32_t p
        if self.generation != shmb_fork_generation:
            return
        for topic in list(self.topics.values()):
            for p in range(topic.partitions):
                if topic.lanes[p] != NULL and topic.lanes[p].open != NULL:
                    if self.codec:
                        self.compress(topic.lanes[p])
                    shmb_lane_flush(topic.lanes[p])

    def failures(self):
        """(count, first cause) of failed records that nobody has looked at, once; (0, None)."""
        cdef Lanes topic
        cdef int32_t p
        cdef shmb_lane *lane
        cdef shmb_pbatch *b
        cdef shmb_outlet *o
        count, first = 0, None
        for topic in list(self.topics.values()):
            for p in range(topic.partitions):
                lane = topic.lanes[p]
                if lane == NULL:
                    continue
                while True:
                    o = shmb_lane_lock(lane)
                    b = lane.failed
                    if b != NULL:
                        lane.failed = b.next
                        if lane.failed == NULL:
                            lane.failed_last = NULL
                        unlooked = b.unlooked
                        b.unlooked = 0
                    shmb_unlock(&o.lock)
                    if b == NULL:
                        break
                    if unlooked:
                        count += unlooked
                        if first is None:
                            first = _error_of(b, topic)
                    shmb_pbatch_release(b)
        return count, first
