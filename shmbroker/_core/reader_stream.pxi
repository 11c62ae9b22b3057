# Part of reader.pyx: how a consumer waits, and the stream of its records.

# ---- Waiting ----


cdef bint awake(const shmb_watch *w, Py_ssize_t n, shmb_a32 *epoch, uint32_t seen,
                shmb_a32 *stop) noexcept nogil:
    return shmb_observe32(epoch) != seen or shmb_observe32(stop) != 0 or shmb_watch_ready(w, n)


cdef int sleep_until(const shmb_watch *w, Py_ssize_t n, shmb_a32 **words, Py_ssize_t n_words,
                     shmb_a32 *instance, shmb_a32 *epoch, uint32_t seen, shmb_a32 *stop,
                     int64_t spin_ns, int64_t deadline_ns) noexcept nogil:
    """0: something is ready, or `epoch` or `stop` changed; else EINTR or ETIMEDOUT."""
    cdef int64_t now = shmb_now_ns()
    cdef int64_t spin_end = now + spin_ns if spin_ns < INT64_MAX - now else INT64_MAX
    cdef int64_t slice_end = now + 10_000_000
    cdef Py_ssize_t i
    cdef int rc
    while now < spin_end:
        for i in range(32):
            if awake(w, n, epoch, seen, stop):
                return 0
            shmb_relax()
        now = shmb_now_ns()
        if now >= deadline_ns:
            return ETIMEDOUT
        if now >= slice_end:
            return EINTR  # a spinning thread gets no EINTR: let Python look for signals now and then
    while True:
        for i in range(n_words):
            shmb_park_arm(words[i])
        if awake(w, n, epoch, seen, stop):
            return 0
        if n_words == 1:
            rc = shmb_park_wait_signals(words[0], deadline_ns)
        else:
            rc = shmb_park_wait_any_signals(words, <unsigned>n_words, deadline_ns)
        if rc == ENOSYS:  # before Linux 5.16: the word that every append and flush rings
            words[0] = instance
            n_words = 1
        elif rc:
            return rc


def monotonic_ns():
    """CLOCK_MONOTONIC as deadlines count it."""
    return shmb_now_ns()


# ---- The stream of one consumer ----

cdef enum:
    STOPPED = 1  # what the word `_stop` says
    CALLED = 2


cdef class RecordStream:
    """A consumer's way through its partitions, as long as nothing is out of the ordinary.

    What is in the rings comes without Python in between; whatever else happens (files to be read, the
    broker gone, a partition moved, offline or deleted) ends `_quick` with None, and the subclass's
    `_slow` sorts it out. One thread at a time, others get ConcurrentUse; but `_stop_waits` may be
    called from any. The subclass sets `_readers`, `_park` and `_seen` before reading.
    """

    def __cinit__(self, *args, **kwargs):
        self._forks = forks
        self._stop = EpochWord()
        self._lock = Lock()
        self._all = []
        self._readers = []
        self._out_offset = -1

    def _check(self):
        """ForkedError in a forked child, ClosedError after close()."""
        if self._forks != forks:
            raise errors.ForkedError("this consumer")
        if shmb_observe32(self._stop._word) == STOPPED:
            raise errors.ClosedError("this consumer is closed")

    cdef int _enter(self) except -1:
        self._check()
        if not self._lock.acquire(False):
            if self._owner == get_ident():
                raise errors.ConcurrentUse("a consumer's callback can't read from it: it is inside a read; "
                                           "seek, commit and the like are fine")
            raise errors.ConcurrentUse("two threads are inside one consumer, which belongs to one "
                                       "at a time: give each thread a consumer of its own")
        self._owner = get_ident()
        return 0

    cdef int _leave(self) except -1:
        self._owner = 0
        self._lock.release()
        return 0

    def _hold(self):
        """Begins a call that is not for two threads at once; ConcurrentUse. A callback may be inside one."""
        if self._owner == get_ident() and self._calls_back:
            self._check()
            self._nested += 1
        else:
            self._enter()

    def _let_go(self):
        """Ends it."""
        if self._nested:
            self._nested -= 1
        else:
            self._leave()

    def __iter__(self):
        return self

    def __next__(self):
        """The next record; waits for it. Ends when another thread closes the consumer."""
        try:
            record = self._one(INT64_MAX)
        except errors.ClosedError:
            if self._closed_while_inside:
                self._closed_while_inside = False
                raise StopIteration from None
            raise
        if record is None:
            raise StopIteration
        return record

    def poll(self, timeout=None):
        """The next record, or None when there is none within `timeout` seconds (None: waits for ever,
        0: doesn't wait). Raises as the class says."""
        return self._one(deadline_of(timeout))

    def _next_batch(self, long long deadline_ns):
        """The next RecordBatch, or None when the deadline has passed."""
        self._enter()
        try:
            self._ask()
            self._unbuffer()
            batch = self._quick(deadline_ns)
            return self._slow(deadline_ns) if batch is None else batch
        finally:
            self._leave()

    cdef object _one(self, int64_t deadline_ns):
        if not self._buffered() or shmb_observe32(self._stop._word):
            self._enter()
            try:
                self._ask()
                self._unbuffer()
                found = self._quick(deadline_ns)
                if found is None:
                    found = self._slow(deadline_ns)
                    if found is None:
                        return None
                self._buffer(found)
            finally:
                self._leave()
        elif self._forks != forks:
            raise errors.ForkedError("this consumer")
        if self._records is None:
            raise errors.ClosedError("this consumer is closed")
        return self._pop()

    cdef bint _buffered(self):
        return self._records is not None and self._at < PyList_GET_SIZE(self._records)

    cdef object _pop(self):
        record = self._records[self._at]
        self._at += 1
        if self._kept is not None:
            self._hand_out_to(self._kept, (<Record>record).offset + 1)
        return record

    def _buffer(self, RecordBatch batch not None):
        """These records come next."""
        self._records = batch._fill(RECORDS)
        self._at = 0
        if self._checkpoints is not None:
            self._kept = self._checkpoints.note(batch.topic, batch.partition, batch.base_offset,
                                                batch.leader_epoch)

    def _ask(self):
        """Whoever asks for more is done with what was handed out before: that is stored now."""
        if self._out_offset >= 0:
            self._out._put(self._out_offset)
            self._out_offset = -1

    def _hand_out(self, RecordBatch batch not None):
        """This batch is what the user gets, whole."""
        cdef Kept kept
        if self._checkpoints is None:
            return
        kept = self._checkpoints.note(batch.topic, batch.partition, batch.base_offset,
                                                batch.leader_epoch)
        self._kept = None
        if kept is not None:
            self._hand_out_to(kept, batch.next_offset)

    def _track(self):
        """There are checkpoints from now on, in the middle of reading: what is buffered is known to them,
        and what was handed out before."""
        cdef PartitionReader reader
        cdef Record record
        cdef Kept kept
        for reader in self._all:
            kept = self._checkpoints.note(reader.topic, reader.partition, reader.position, -1)
            if kept is not None:
                kept.handed = reader.position
        if self._records is None or PyList_GET_SIZE(self._records) == 0:
            return
        record = self._records[0]
        for reader in self._all:
            if reader.partition != record.partition or reader.topic != record.topic:
                continue
            kept = self._checkpoints.note(reader.topic, reader.partition, record.offset,
                                          reader.leader_epoch)
            if kept is not None:
                self._kept = kept
                kept.handed = record.offset
                if self._at:
                    record = self._records[self._at - 1]
                    kept.handed = record.offset + 1

    def _store_record(self, what):
        """Stores what is behind a Record as its partition's checkpoint; False: it is something else, or
        the member has not its partition."""
        cdef Record record
        cdef Kept kept
        if self._checkpoints is None or type(what) is not Record:
            return False
        record = what
        kept = self._checkpoints._find(record.topic, record.partition)
        return kept is not None and kept._put(record.offset + 1) == 1

    def _sought(self, list readers):
        """These are read from elsewhere: what was handed out of them is not stored by itself."""
        cdef PartitionReader reader
        cdef Kept kept
        if self._checkpoints is None:
            return
        for reader in readers:
            kept = self._checkpoints.sought(reader.topic, reader.partition)
            if kept is not None and kept is self._out:
                self._out_offset = -1

    cdef int _hand_out_to(self, Kept kept, int64_t offset) except -1:
        if self._out_offset >= 0:
            self._out._put(self._out_offset)
        kept.handed = offset
        if self._stores_itself:
            self._out, self._out_offset = kept, offset
        return 0

    @property
    def _next_buffered(self):
        """The record that comes next, where it was fetched already."""
        return self._records[self._at] if self._buffered() else None

    @property
    def _last_record(self):
        """The record that was handed out last, as long as nothing else was done."""
        return self._records[self._at - 1] if self._records is not None and self._at else None

    def _wait(self, long long deadline_ns):
        """Waits until something changes; False at the deadline."""
        return self._sleep(deadline_ns)

    def _unbuffer(self):
        """Gives back what was fetched and not handed out, so that positions are the user's."""
        cdef Record record
        cdef PartitionReader reader
        if self._buffered():
            record = self._records[self._at]
            for reader in self._all:
                if reader.partition == record.partition and reader.topic == record.topic:
                    reader.seek(record.offset)
        self._records = None
        self._kept = None

    def _slow(self, deadline_ns):
        raise NotImplementedError

    def _quick(self, long long deadline_ns):
        """The next batch out of a ring, waiting for it; None when the deadline has passed or something
        else must be looked at."""
        while True:
            found = self._try()
            if found is not None:
                return None if found is False else found
            if deadline_ns <= 0 or not self._sleep(deadline_ns):
                return None

    def _try(self):
        """The next batch out of a ring, without waiting; None when waiting is all there is to do, and
        False when something else must be looked at (`_slow`)."""
        cdef Py_ssize_t n = PyList_GET_SIZE(self._readers), i
        cdef PartitionReader reader
        cdef RecordBatch batch
        if awake(NULL, 0, self._epoch._word, self._seen, self._stop._word):
            return False
        for i in range(n):
            reader = self._readers[(self._turn + i) % n]
            if reader.leader_epoch >= 0 and reader.was_recovered():
                return False
            batch = reader._fetch(self._most)
            if batch is not None:
                self._turn = (self._turn + i + 1) % n
                return batch
            if reader.odd():
                return False
        return None

    cdef bint _sleep(self, int64_t deadline_ns) except -1:
        """Waits until a partition has more than was read or has changed since its last fetch, or the
        attachment has, or the consumer was closed. False at the deadline. Runs signal handlers."""
        cdef Py_ssize_t n = PyList_GET_SIZE(self._readers), n_words = n
        cdef shmb_watch few[4]
        cdef shmb_a32 *few_words[4]
        cdef shmb_watch *watches = few
        cdef shmb_a32 **words = few_words
        cdef shmb_a32 *instance = word_at(self._park, SHMB_PARK_INSTANCE)
        cdef int rc
        if n > 4:
            watches = <shmb_watch *>PyMem_Malloc(n * sizeof(shmb_watch))
            words = <shmb_a32 **>PyMem_Malloc(n * sizeof(shmb_a32 *))
        try:
            if watches == NULL or words == NULL:
                raise MemoryError()
            self._describe(watches, words)
            if n == 0 or n > SHMB_WAITV_MAX:
                words[0] = instance
                n_words = 1
            while True:
                with nogil:
                    rc = sleep_until(watches, n, words, n_words, instance, self._epoch._word,
                                     self._seen, self._stop._word, self._spin_ns, deadline_ns)
                if rc == 0:
                    return True
                if rc == ETIMEDOUT:
                    return False
                if rc != EINTR:
                    raise OSError(rc, os.strerror(rc))
                PyErr_CheckSignals()
        finally:
            if n > 4:
                PyMem_Free(watches)
                PyMem_Free(words)

    cdef int _describe(self, shmb_watch *watches, shmb_a32 **words) except -1:
        """What there is to wait for, as many of each as there are readers."""
        cdef PartitionReader reader
        cdef Py_ssize_t i
        for i in range(PyList_GET_SIZE(self._readers)):
            reader = self._readers[i]
            watches[i].slot = reader._slot
            watches[i].end = (&reader._slot.log_end_offset if reader.appended
                              else &reader._slot.durable_offset)
            watches[i].position = reader.position
            watches[i].slot_epoch = reader._seen_slot_epoch
            watches[i].state = reader._seen_state
            watches[i].generation = reader._seen_generation
            words[i] = word_at(self._park, reader._park_word)
        return 0

    def _stop_waits(self):
        """Ends the present wait and all later ones. Any thread."""
        if self._owner and self._owner != get_ident():
            self._closed_while_inside = True
        self._stop.set(STOPPED)
        self._records = None
        self._out_offset = -1  # nobody asked past it
        self._wake()

    cdef int _wake(self) except -1:
        cdef PartitionReader reader
        shmb_park_wake_always(word_at(self._park, SHMB_PARK_INSTANCE))
        for reader in list(self._all):
            shmb_park_wake_always(word_at(self._park, reader._park_word))
        return 0

    def _call(self):
        """Has the thread that reads see to something (`_called`) before its next record. Any thread."""
        if self._stop.replace(0, CALLED):
            self._wake()

    @property
    def _called(self):
        """Whether there is something to be seen to."""
        return shmb_observe32(self._stop._word) == CALLED

    def _answer_call(self):
        """It is being seen to; whether there was something."""
        return self._stop.replace(CALLED, 0)

    @property
    def _stopped(self):
        """Whether `_stop_waits` was called."""
        return shmb_observe32(self._stop._word) == STOPPED

    @property
    def _owner_is_here(self):
        """Whether the thread that is inside is the caller's own."""
        return self._owner == get_ident()

    def _await_leave(self):
        """Returns when no thread is inside; False when it is the caller's own (a signal handler)."""
        if self._owner == get_ident():
            return False
        with self._lock:
            return True


cdef int64_t deadline_of(object timeout) except? -1:
    """Seconds from now (None: never) as a CLOCK_MONOTONIC time; 0: not at all."""
    if timeout is None:
        return INT64_MAX
    cdef double seconds = timeout
    if seconds != seconds or seconds < 0:
        raise ValueError(f"a timeout is a number of seconds from 0 on, not {timeout!r}")
    if seconds == 0:
        return 0
    return INT64_MAX if seconds > 4e9 else shmb_now_ns() + <int64_t>(seconds * 1e9)


def deadline(timeout):
    """When `timeout` seconds (None: never, 0: at once) will have passed, for RecordStream."""
    return deadline_of(timeout)
