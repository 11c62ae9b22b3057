# Being told instead of waiting: mailboxes for watches (producer_watch.h), and done callbacks. Included by
# producer.pyx.


@cython.final
@cython.no_gc  # what lies in it is freed by __dealloc__
cdef class Mailbox:
    """Where watches arrive. Its owner reads 8 bytes from the eventfd when something came, and takes all."""

    def __cinit__(self, int fd):
        """Takes over `fd`."""
        self._generation = shmb_fork_generation
        self.m = shmb_mailbox_new(fd)
        if self.m == NULL:
            os.close(fd)
            raise MemoryError()

    def __dealloc__(self):
        if self.m != NULL and self._generation == shmb_fork_generation:
            self.take()
            shmb_mailbox_release(self.m)

    cpdef list take(self):
        """(object, why) of all that came, oldest first."""
        cdef shmb_watch *w = shmb_mailbox_take(self.m)
        cdef shmb_watch *next
        found = []
        while w != NULL:
            next = w.next
            found.append((<object>w.object, <int>w.why))
            Py_DECREF(<object>w.object)
            shmb_watch_free(w)
            w = next
        return found

    cpdef int put(self, what) except -1:
        """Mails something at once."""
        shmb_watch_mail(self.watch(what), SHMB_WHY_SETTLED)
        return 0

    cdef shmb_watch *watch(self, what) except NULL:
        cdef shmb_watch *w = shmb_watch_new(self.m, <void *>what)
        if w == NULL:
            raise MemoryError()
        Py_INCREF(what)
        return w


cdef int _watch(Lanes lanes, shmb_pbatch *b, Mailbox to, what) except -1:
    """Mails `what` when the batch is settled, or when there is no use in waiting for it."""
    cdef shmb_watch *w = to.watch(what)
    cdef shmb_outlet *o = shmb_lane_lock(b.lane)
    cdef bint stir = False
    if shmb_pbatch_settled(b):
        shmb_watch_mail(w, SHMB_WHY_SETTLED)
    else:
        stir = shmb_pbatch_watch(b, w)
    shmb_unlock(&o.lock)
    if stir:
        shmb_tender_stir()
        lanes.sender.outlets.watched()
    return 0


cdef int _unwatch(shmb_pbatch *b, what) except -1:
    """Takes back a watch that may not have been mailed yet."""
    cdef shmb_outlet *o = shmb_lane_lock(b.lane)
    cdef shmb_watch *w = shmb_pbatch_unwatch(b, <void *>what)
    shmb_unlock(&o.lock)
    _drop(w)
    return 0


cdef _drop(shmb_watch *w):
    if w != NULL:
        Py_DECREF(<object>w.object)
        shmb_watch_free(w)


# ---- Callbacks ----

class _Callbacks:
    """The thread on which done callbacks run: one a process, from the first callback on."""

    def __init__(self):
        self.mailbox = Mailbox(os.eventfd(0, os.EFD_CLOEXEC))
        self.generation = shmb_fork_generation
        self.thread = threading.Thread(target=self.run, name="shmbroker-callbacks", daemon=True)
        self.thread.start()

    def run(self):
        cdef Mailbox mailbox = self.mailbox
        cdef int fd = mailbox.m.fd
        cdef uint64_t count
        while True:
            with nogil:
                read(fd, &count, sizeof(count))
            for what, why in mailbox.take():
                self.one(mailbox, what[0], what[1], why)
            what = None  # keeps no receipt while it sleeps

    def one(self, mailbox, receipt, fn, why):
        if why == SHMB_WHY_SETTLED and type(receipt) is ManyReceipt:
            if _watch_next(<ManyReceipt>receipt, mailbox, (receipt, fn)):
                return
        try:
            fn(receipt)
        except BaseException:
            _log.exception("the callback %r of %r failed", fn, receipt)

    def wait(self, timeout):
        """Until what was settled before this call has had its callbacks; not on the thread itself."""
        cdef Mailbox mailbox = self.mailbox
        if threading.current_thread() is not self.thread:
            reached = threading.Event()
            mailbox.put((None, lambda _: reached.set()))
            reached.wait(timeout)


_callbacks = None
_callbacks_lock = threading.Lock()


cdef _the_callbacks():
    global _callbacks, _callbacks_lock
    if _callbacks is None or _callbacks.generation != shmb_fork_generation:
        if _callbacks is not None:  # the parent's; its lock may have been held at the fork
            _callbacks_lock = threading.Lock()
        with _callbacks_lock:
            if _callbacks is None or _callbacks.generation != shmb_fork_generation:
                _callbacks = _Callbacks()
    return _callbacks


cdef _wait_for_callbacks(int64_t deadline_ns):
    if _callbacks is not None and _callbacks.generation == shmb_fork_generation:
        _callbacks.wait(_left_s(deadline_ns))


cdef bint _watch_next(ManyReceipt receipt, Mailbox to, what) except -1:
    """Watches the receipt's first unsettled batch; 0 when there is none."""
    cdef shmb_pbatch *b = receipt.unsettled()
    if b == NULL:
        return False
    _watch(receipt._lanes, b, to, what)
    return True


cdef _add_callback(receipt, fn):
    cdef Mailbox mailbox
    if not callable(fn):
        raise TypeError(f"a callback is {type(fn).__name__}, expected something to call with the receipt")
    mailbox = _the_callbacks().mailbox
    what = (receipt, fn)
    if type(receipt) is ManyReceipt:
        if not _watch_next(<ManyReceipt>receipt, mailbox, what):
            mailbox.put(what)
    else:
        _watch((<Receipt>receipt)._lanes, (<Receipt>receipt)._b, mailbox, what)
