# The asyncio producer's data plane: waits that are futures of the loop, settled through a mailbox; send_many()
# and flush(). Included by producer.pyx, before producer_sending.pxi.
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
            self.end(future, why)

    cdef end(self, future, why):
        if not future.done() and not self.loop.is_closed():
            future.set_result(why)

    def close(self):
        """Ends every wait with ClosedError, and the waits to come."""
        if self.closed:
            return
        self.closed = True
        for future in list(self.rooms):
            self.end(future, SHMB_WHY_CLOSED)
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
    try:
        while i < n:
            stop = min(n, i + CHUNK)
            if keys is None and timestamps is None:
                i = _put_values(receipt, values, i, stop, fixed, False)
            else:
                i = _put_items(receipt, values, keys, timestamps, i, stop, fixed, False)
            if i < stop:  # this one has to wait
                one = await _sending(producer, topic, values[i], None if keys is None else keys[i], None,
                                     None if fixed < 0 else fixed, None if timestamps is None else timestamps[i])
                if one._b.error == SHMB_E_FULL:
                    receipt.dropped += 1
                else:
                    receipt.add(one._b, one._index, 1)
                i += 1
            elif i < n:
                await asyncio.sleep(0)
    except errors.BufferFull as error:
        raise _sent_before(error, receipt)
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
