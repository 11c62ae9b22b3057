# The asyncio producer's data plane: send() as an awaitable that is usually done at its first step, and waits
# that are futures of the loop, settled through a mailbox. Included by producer.pyx.
#
# Everything here belongs to the loop's thread, but for what runs in the loop's executor: the few things that
# ask the broker (a topic's place, a ring) and so block. No wait has a thread: who waits for an outcome or for
# room has a watch (producer_watch.h), the client thread mails it, the bridge's eventfd wakes the loop.

asyncio = None  # imported by the first asyncio producer: the others need not pay for it


cdef enum:
    NEED_ROOM = 1      # in the ring
    NEED_THREAD        # prepare() in the executor
    NEED_TURN          # other tasks are due
    TURN_EVERY = 1024  # sends in a row before the loop gets a turn: under a millisecond
    CHUNK = 16384      # records of send_many() between two turns
    WHY_FULL = -1      # no shmb_why: the time for waiting for room is up


@cython.final
cdef class LoopMail:
    """What the client thread tells one producer's loop."""

    def __init__(self, bridge):
        global asyncio
        if asyncio is None:
            asyncio = importlib.import_module("asyncio")
        self.loop = bridge.loop
        self.bridge = bridge
        self.mailbox = Mailbox(os.dup(bridge.fd))
        self.to_seal = {}
        self.rooms = set()
        self.lines = {}
        bridge.on_wake(self.deliver)

    def deliver(self):
        """In the loop, after a wake: ends the waits whose watches were mailed."""
        for future, why in self.mailbox.take():
            if not future.done():
                future.set_result(why)

    def close(self):
        """Ends every wait with ClosedError, and the waits to come."""
        if self.closed:
            return
        self.closed = True
        for future in list(self.rooms):
            if not future.done():
                future.set_result(SHMB_WHY_CLOSED)
        self.deliver()
        self.bridge.off_wake(self.deliver)

    cdef check(self):
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("this producer belongs to another event loop: make one in each loop")
        if self.closed:
            raise errors.ClosedError("this producer is closed, and nothing more is known of the record")

    cdef seal_soon(self, Lanes lanes, int32_t p):
        """Seals the open batch when the tasks that are ready now have had their turn, so they share it."""
        if not self.to_seal:
            self.loop.call_soon(self.seal)
        self.to_seal[lanes, p] = None

    def seal(self):
        """See seal_soon."""
        cdef Lanes lanes
        cdef shmb_put put
        todo, self.to_seal = self.to_seal, {}
        for lanes, p in todo:
            put = lanes.sender.seal_now(lanes.lanes[<int32_t>p])
            if put == SHMB_PUT_NEW_ID:
                self.loop.run_in_executor(None, lanes.sender.renew, lanes, p)

    cdef object watch(self, Held held):
        """A future of why the batch's watch was mailed; the batch is sealed soon."""
        cdef shmb_pbatch *b = held.b
        self.check()
        future = self.loop.create_future()
        _watch(held.lanes, b, self.mailbox, future)
        if shmb_pbatch_state(b) == SHMB_PB_OPEN:
            self.seal_soon(held.lanes, b.lane.partition)
        return future

    cdef object future(self):
        """Of a wait for room."""
        self.check()
        future = self.loop.create_future()
        self.rooms.add(future)
        return future

    cdef turn(self, line):
        """Lets the first in line try."""
        if line:
            (<Spot>line[0]).end(SHMB_WHY_SETTLED)

    cdef object watch_room(self, shmb_lane *lane, uint64_t tail, uint64_t receipts, Outlets outlets):
        cdef shmb_watch *w
        cdef shmb_outlet *o
        future = self.future()
        w = self.mailbox.watch(future)
        o = shmb_lane_lock(lane)
        shmb_outlet_watch_room(o, w, tail, receipts)
        shmb_unlock(&o.lock)
        shmb_tender_stir()
        outlets.watched()
        return future

    cdef unwatch_room(self, shmb_lane *lane, future):
        cdef shmb_outlet *o = shmb_lane_lock(lane)
        cdef shmb_watch *w = shmb_outlet_unwatch_room(o, <void *>future)
        shmb_unlock(&o.lock)
        _drop(w)


@cython.final
cdef class Held:
    """A batch kept over an await."""

    def __dealloc__(self):
        if self.b != NULL and self.lanes._generation == shmb_fork_generation:
            shmb_pbatch_py_release(self.b)


cdef Held _hold(Lanes lanes, shmb_pbatch *b):
    cdef Held held = Held.__new__(Held)
    held.lanes = lanes
    held.b = b
    shmb_pbatch_py_hold(b)
    return held


cdef object _in_vain(int why, Lanes lanes, shmb_pbatch *b):
    """The error of a wait that ended without an outcome."""
    if why == SHMB_WHY_LATE:
        return _late(lanes, b)
    if why == SHMB_WHY_GONE:
        return errors.BrokerGone(lanes.sender.outlets.gone)
    return errors.ClosedError("this producer was closed while the call waited; the record may still be appended")


async def _settled(LoopMail mail, Held held):
    """Waits for a batch's outcome. OutcomeUnknown after the delivery timeout, BrokerGone, ClosedError."""
    future = mail.watch(held)
    try:
        why = await future
    except BaseException:
        _unwatch(held.b, future)
        raise
    if why != SHMB_WHY_SETTLED:
        raise _in_vain(why, held.lanes, held.b)


cdef LoopMail _mail_of(Lanes lanes):
    mail = lanes.sender.mail
    if mail is None:
        raise TypeError("this receipt is of a synchronous producer: call result(), or send with shmbroker.aio")
    return <LoopMail>mail


async def _await_receipt(Receipt receipt):
    mail = _mail_of(receipt._lanes)
    if not _done(receipt._b):
        await _settled(mail, _hold(receipt._lanes, receipt._b))
    return receipt.result(0)


async def _await_many(ManyReceipt receipt):
    cdef shmb_pbatch *b = receipt.unsettled()
    mail = _mail_of(receipt._lanes)
    while b != NULL:
        await _settled(mail, _hold(receipt._lanes, b))
        b = receipt.unsettled()
    return receipt.result(0)


# ---- send() ----

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


# ---- send_many(), flush() ----

async def _send_many(AsyncProducerBase producer, topic, values, keys, partition, timestamps):
    cdef Sender sender = producer._sender
    cdef ManyReceipt receipt = ManyReceipt.__new__(ManyReceipt)
    cdef Receipt one
    cdef Py_ssize_t i = 0, n, stop
    cdef int32_t fixed = -1
    sender.usable()
    if _is_column(values) or _is_column(keys) or _is_column(timestamps):
        call = functools.partial(producer.blocking.send_many, topic, values, keys, partition, timestamps)
        return await producer.mail.loop.run_in_executor(None, call)
    values, keys, timestamps = _lists(values, keys, timestamps)
    if sender.topics.get(topic) is None:
        await producer.mail.loop.run_in_executor(None, sender.topic, topic)
    receipt._lanes = sender.topic(topic)
    if partition is not None:
        fixed = _partition_known(receipt._lanes, partition)
        if fixed < 0:
            await producer.mail.loop.run_in_executor(None, receipt._lanes.has, partition)
            fixed = _partition_known(receipt._lanes, partition)
    n = len(values)
    while i < n:
        stop = min(n, i + CHUNK)
        if keys is None and timestamps is None:
            i = _put_values(receipt, values, i, stop, fixed, False)
        else:
            i = _put_items(receipt, values, keys, timestamps, i, stop, fixed, False)
        if i < stop:  # this one has to wait
            one = await _sending(producer, topic, values[i], None if keys is None else keys[i], None,
                                 None if fixed < 0 else fixed, None if timestamps is None else timestamps[i])
            receipt.add(one._b, one._index, 1)
            i += 1
        elif i < n:
            await asyncio.sleep(0)
    return receipt


cdef bint _is_column(what):
    """Arrays and Arrow data, which the synchronous send_many() takes as they are, in the executor."""
    if what is None or isinstance(what, (list, tuple, str, bytes, bytearray)):
        return False
    return (hasattr(what, "__arrow_c_array__") or hasattr(what, "__arrow_c_stream__")
            or PyObject_CheckBuffer(what))


async def _flush(AsyncProducerBase producer):
    """Publishes every open batch and waits until everything sent before is settled, and called back."""
    cdef Sender sender = producer._sender
    cdef LoopMail mail = producer.mail
    cdef Lanes lanes
    cdef Held held
    sender.usable()
    mail.check()
    for lanes in list(sender.topics.values()):
        for p in range(lanes.partitions):
            await _publish(producer, lanes, p)
    for lanes in list(sender.topics.values()):
        for p in range(lanes.partitions):
            held = sender.newest_unsettled(lanes, p)
            while held is not None:
                await _settled(mail, held)
                held = sender.newest_unsettled(lanes, p)
    if _callbacks is not None and _callbacks.generation == shmb_fork_generation:
        done = mail.loop.create_future()
        (<Mailbox>_callbacks.mailbox).put(
            (None, lambda _: mail.loop.call_soon_threadsafe(lambda: done.done() or done.set_result(None))))
        await done


async def _publish(AsyncProducerBase producer, Lanes lanes, p):
    cdef Sender sender = producer._sender
    cdef shmb_lane *lane = lanes.lanes[<int32_t>p]
    cdef uint64_t tail, receipts
    cdef shmb_put put
    while lane != NULL and lane.open != NULL:
        tail = shmb_observe(&lane.out.ring.back.tail)
        receipts = shmb_observe(&lane.out.ring.back.receipts)
        put = sender.seal_now(lane)
        if put == SHMB_PUT_NO_ROOM:
            future = producer.mail.watch_room(lane, tail, receipts, sender.outlets)
            why = await _room(producer.mail, lanes, p, future,
                              producer.mail.loop.time() + sender.delivery_ns / 1e9)
            if why != SHMB_WHY_SETTLED:
                raise _no_room(why, lanes, p)
        elif put != SHMB_PUT_OK:
            await producer.mail.loop.run_in_executor(None, sender.renew, lanes, p)


cdef inline Sending _sending(AsyncProducerBase producer, topic, value, key, headers, partition, timestamp):
    cdef Sending s = Sending.__new__(Sending)
    s.producer = producer
    s.topic = topic
    s.value = value
    if key is not None or headers is not None or partition is not None or timestamp is not None:
        s.more = (key, headers, partition, timestamp)
    return s


cdef class AsyncProducerBase:
    """send() and send_many(); client/aio/producer.py adds the rest. For the loop's thread."""

    def _begin(self, Sender sender, bridge):
        self._sender = sender
        self.mail = sender.mail = LoopMail(bridge)
        self.blocking = ProducerBase()
        self.blocking._begin(sender)

    @cython.binding(False)
    def send(self, topic, value, key=None, headers=None, partition=None, timestamp=None):
        """`await` it: puts one record into the ring and gives its Receipt, which can be awaited too.

        Arguments as of the synchronous send(). Usually done without giving the loop a turn; while the
        ring is full it waits, up to max_block_ms, then raises BufferFull. Cancelled, it has not taken
        the record; without an exception it has. Raises UnknownTopic, RecordTooLarge, BrokerGone.
        """
        return _sending(self, topic, value, key, headers, partition, timestamp)

    def send_many(self, topic, values, keys=None, partition=None, timestamps=None):
        """`await` it: puts many records into the ring and gives one ManyReceipt.

        Arguments as of the synchronous send_many(); arrays and Arrow data are taken in a thread of the
        loop's executor. Cancelled, it has taken the first so many of them.
        """
        return _send_many(self, topic, values, keys, partition, timestamps)

    def _flush(self):
        return _flush(self)

    def _end_waits(self):
        """Ends what waits: receipts and room with ClosedError; callbacks run."""
        self._sender.end_watches(0)
        self.mail.close()
