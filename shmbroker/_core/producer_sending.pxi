# The asyncio send(): an awaitable that is usually done at its first step, and the line of those for whom there is
# no room. Included by producer.pyx; see producer_aio.pxi for who runs it.


@cython.no_gc  # the cycle with `inner` ends with the wait, or with close(), which a dropped task calls
@cython.freelist(64)
@cython.final
cdef class Sending:
    """One send(), to be awaited once. A coroutine to asyncio; its first step takes the record, or waits."""

    def __init__(self):
        raise TypeError("made by send()")

    def __dealloc__(self):
        if not self.begun:
            warnings.warn("a send() was never awaited, so its record was not sent", RuntimeWarning)

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        """One step, as of a coroutine."""
        cdef int done = 0
        result = _sending_step(self, &done)
        if done:
            raise StopIteration(result)
        return result

    def throw(self, *exception):
        """Ends the wait with an exception: the record has not been taken."""
        self.begun = True
        if self.inner is None:
            raise exception[0]
        try:
            return self.inner.throw(*exception)
        except BaseException:  # StopIteration too: it is over
            self.inner = None
            raise

    def close(self):
        """Gives up: the record has not been taken."""
        self.begun = True
        inner, self.inner = self.inner, None
        if inner is not None:
            inner.close()

    cdef Receipt attempt(self, bint watching):
        """Takes the record if that needs no waiting; otherwise None, and `need` says what it needs.

        `watching`: it is the first in line; if there is no room, mail.room is a future of some.
        """
        cdef Sender sender = self.producer._sender
        cdef Lanes lanes
        cdef shmb_item item
        cdef shmb_lane *lane
        cdef shmb_pbatch *b
        cdef int32_t p, index
        cdef uint64_t tail = 0, receipts = 0
        cdef shmb_put rc, after = SHMB_PUT_OK
        cdef Receipt receipt
        if sender is None or sender.generation != shmb_fork_generation or shmb_peek32(&sender.closed):
            _unusable(sender)
        if self.producer.streak >= TURN_EVERY and not watching:
            self.producer.streak = 0
            self.need = NEED_TURN
            return None
        self.producer.streak += 1
        if self.more is None:
            held = _fill(&item, self.value, None, None, None)
        else:
            held = _fill(&item, self.value, self.more[0], self.more[1], self.more[3])
        self.need = NEED_THREAD
        self.p = -1
        lanes = sender.last if self.topic is sender.last_name else sender.topics.get(self.topic)
        if lanes is None:
            return None
        if self.more is None or self.more[2] is None:
            p = lanes.choose(&item)
        else:
            p = _partition_known(lanes, self.more[2])
            if p < 0:
                return None
        self.p = p
        lane = lanes.lanes[p]
        if lane == NULL or lane.stale or (
                not self.fits and shmb_item_bound(&item) + SHMB_BATCH_HEADER_BYTES > lanes.max_bytes):
            return None
        if watching:
            tail = shmb_observe(&lane.out.ring.back.tail)
            receipts = shmb_observe(&lane.out.ring.back.receipts)
        elif self.producer.mail.in_line:  # others have waited longer
            self.need = NEED_ROOM
            return None
        rc = shmb_lane_send(lane, &item, &b, &index, &after)
        if rc == SHMB_PUT_OK:
            receipt = _receipt(lanes, b, index, item.timestamp)
            if after > SHMB_PUT_NO_ROOM:
                self.producer.mail.seal_soon(lanes, p)
            shmb_tender_poke(lane.out)
            return receipt
        if not _must_wait(sender, rc):
            if sender.on_full == FULL_RAISE:
                raise sender.full(lanes, lane)
            return _receipt(lanes, sender.drop(lanes, lane), 0, item.timestamp)
        self.put = rc
        if rc == SHMB_PUT_NO_ROOM:
            if watching:
                self.producer.mail.room = self.producer.mail.watch_room(lane, tail, receipts, sender.outlets)
            self.need = NEED_ROOM
        return None

    def prepare(self):
        """In the executor: whatever has to ask the broker, or to wait for another thread."""
        cdef Sender sender = self.producer._sender
        cdef Lanes lanes
        cdef shmb_item item
        cdef shmb_lane *lane
        sender.usable()
        lanes = sender.topic(self.topic)
        key, headers, partition, timestamp = self.more or (None, None, None, None)
        held = _fill(&item, self.value, key, headers, timestamp)
        if partition is not None:
            self.p = _partition(lanes, partition)
        elif self.p < 0:
            self.p = lanes.choose(&item)
        lane = _lane_for(lanes, self.p, &item)
        self.fits = True
        if self.put != SHMB_PUT_OK and self.put != SHMB_PUT_NO_ROOM:
            sender.unblock(self.put, lanes, lane, &item, 0, 0, INT64_MAX)
        self.put = SHMB_PUT_OK


cdef object _sending_step(object o, int *done):
    cdef Sending s = <Sending>o
    if s.inner is None:
        if s.begun:
            raise RuntimeError("a send() can be awaited only once; await its receipt as often as you like")
        s.begun = True
        receipt = s.attempt(False)
        if receipt is not None:
            done[0] = 1
            return receipt
        s.inner = _send_slowly(s)
    try:
        return s.inner.send(None)
    except StopIteration as stop:
        s.inner = None
        done[0] = 1
        return stop.value
    except BaseException:
        s.inner = None
        raise


cdef extern from "awaitable.h":
    void shmb_awaitable_install(object type, object (*step)(object, int *))


shmb_awaitable_install(Sending, _sending_step)


async def _send_slowly(Sending s):
    loop = s.producer.mail.loop
    cdef Receipt receipt = None
    deadline = loop.time() + s.producer._sender.max_block_ns / 1e9
    while receipt is None:
        if s.need == NEED_ROOM:
            receipt = await _in_line(s, deadline)
            continue
        if s.need == NEED_TURN:
            await asyncio.sleep(0)
        else:
            await loop.run_in_executor(None, s.prepare)
        receipt = s.attempt(False)
    return receipt


@cython.final
cdef class Spot:
    """A place in the line of those who wait for room for one partition."""

    cdef end(self, why):
        if self.future is not None and not self.future.done():
            self.future.set_result(why)


async def _in_line(Sending s, deadline):
    """The receipt, behind those who came before; None when the record needs something other than room.

    Only the first one tries, and watches the ring; whoever leaves lets the next one try. BufferFull at
    `deadline` (the loop's time), BrokerGone, ClosedError.
    """
    cdef Lanes lanes = s.producer._sender.topics[s.topic]
    cdef LoopMail mail = s.producer.mail
    cdef Spot spot = Spot()
    cdef Receipt receipt
    key = (lanes, s.p)
    line = mail.lines.setdefault(key, collections.deque())
    line.append(spot)
    mail.in_line += 1
    why = SHMB_WHY_SETTLED
    try:
        while True:
            if line[0] is spot:
                receipt = s.attempt(True)
                if receipt is not None or s.need != NEED_ROOM:
                    return receipt
                spot.future, mail.room = mail.room, None
            else:
                spot.future = mail.future()
            why = await _room(mail, lanes, s.p, spot.future, deadline)
            if why != SHMB_WHY_SETTLED:
                raise _no_room(why, lanes, s.p)
    finally:
        mail.in_line -= 1
        line.remove(spot)
        if why == SHMB_WHY_SETTLED or why == WHY_FULL:
            mail.turn(line)
        else:
            for other in line:
                (<Spot>other).end(why)
        if not line:
            mail.lines.pop(key, None)


def _full(future):
    if not future.done():
        future.set_result(WHY_FULL)


async def _room(LoopMail mail, Lanes lanes, p, future, deadline):
    """Until there may be room for a partition; why the wait ended."""
    timer = mail.loop.call_at(deadline, _full, future)
    try:
        return await future
    finally:
        timer.cancel()
        mail.rooms.discard(future)
        mail.unwatch_room(lanes.lanes[<int32_t>p], future)


cdef object _no_room(why, Lanes lanes, p):
    if why == WHY_FULL:
        return lanes.sender.full(lanes, lanes.lanes[<int32_t>p])
    return _in_vain(why, lanes, NULL)


cdef inline Sending _sending(AsyncProducerBase producer, topic, value, key, headers, partition, timestamp):
    cdef Sending s = Sending.__new__(Sending)
    s.producer = producer
    s.topic = topic
    s.value = value
    if key is not None or headers is not None or partition is not None or timestamp is not None:
        s.more = (key, headers, partition, timestamp)
    return s
