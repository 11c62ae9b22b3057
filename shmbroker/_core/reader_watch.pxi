# Part of reader.pyx: consumers of an event loop: the thread that waits for them, and records in `async for`.

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    ctypedef struct PyAsyncMethods:
        PySendResult (*am_send)(PyObject *, PyObject *, PyObject **) except? PYGEN_ERROR
    ctypedef struct PyTypeObject:
        PyObject *(*tp_iternext)(PyObject *) except? NULL
        PyAsyncMethods *tp_as_async
    PySendResult PyIter_Send(PyObject *, PyObject *, PyObject **)
    void PyErr_SetObject(PyObject *, PyObject *)
    void Py_XDECREF(PyObject *)


@cython.final
@cython.no_gc_clear  # the thread uses what it refers to until __dealloc__
cdef class Watcher:
    """One thread in C, without the GIL, that waits for all consumers of one event loop (watch.h).

    Started by the first wait, it writes 8 to `fd`, an eventfd, when a Waiter has fired. Waiters are
    listed and taken off in any thread. In a forked child there is no thread, and nothing is touched.
    """

    def __init__(self, int fd):
        if self._watcher != NULL:
            raise TypeError("a Watcher is made once")
        self._forks = forks
        self._parks = set()
        self._watcher = <shmb_watcher *>calloc(1, sizeof(shmb_watcher))
        if self._watcher == NULL or shmb_watcher_init(self._watcher, fd):
            raise MemoryError()

    def watch(self, RecordStream stream not None):
        """A Waiter that fires when `stream` has something to look at. `_try` must have said None, and
        nothing may be done with the stream until the Waiter is off."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        cdef PartitionReader reader
        cdef Py_ssize_t n = PyList_GET_SIZE(stream._readers)
        cdef int error
        if self._forks != forks:
            raise errors.ForkedError("this client")
        if self._watcher == NULL:
            raise errors.ClosedError("this client is closed")
        waiter._fill(stream, n)
        for reader in stream._readers:
            waiter._tables.append(reader._table)
        self._parks.add(stream._park_map)
        error = shmb_watcher_add(self._watcher, &waiter._waiter)
        if error:
            raise OSError(error, os.strerror(error))
        waiter._watcher = self
        return waiter

    def close(self):
        """Ends the thread; no Waiter fires any more. Twice is fine."""
        if self._watcher == NULL or self._forks != forks:
            return
        with nogil:
            shmb_watcher_stop(self._watcher)
        free(self._watcher)
        self._watcher = NULL

    def __dealloc__(self):
        if self._watcher != NULL and self._forks == forks:
            with nogil:
                shmb_watcher_stop(self._watcher)
            free(self._watcher)


@cython.final
@cython.no_gc_clear  # as above
cdef class Waiter:
    """One wait of one consumer, made by `Watcher.watch`: fires once, or is taken off."""

    cdef int _fill(self, RecordStream stream, Py_ssize_t n) except -1:
        self._tables = []
        self._waiter.n = n
        self._waiter.watches = <shmb_watch *>PyMem_Malloc(max(n, 1) * sizeof(shmb_watch))
        self._waiter.words = <shmb_a32 **>PyMem_Malloc(max(n, 1) * sizeof(shmb_a32 *))
        if self._waiter.watches == NULL or self._waiter.words == NULL:
            raise MemoryError()
        stream._describe(self._waiter.watches, self._waiter.words)
        self._waiter.instance = word_at(stream._park, SHMB_PARK_INSTANCE)
        self._waiter.epoch = stream._epoch._word
        self._waiter.seen = stream._seen
        self._waiter.stop = stream._stop._word
        self._tables += [stream._epoch, stream._stop, stream._park_map]
        return 0

    @property
    def fired(self):
        """Whether there is something to look at."""
        return shmb_observe32(&self._waiter.fired) != 0

    def off(self):
        """Waits no more; twice is fine."""
        cdef Watcher watcher = self._watcher
        self._watcher = None
        if watcher is not None and watcher._watcher != NULL and watcher._forks == forks:
            shmb_watcher_remove(watcher._watcher, &self._waiter)

    def __dealloc__(self):
        if (self._watcher is not None and self._watcher._watcher != NULL
                and self._watcher._forks == forks):
            shmb_watcher_remove(self._watcher._watcher, &self._waiter)
        PyMem_Free(self._waiter.watches)
        PyMem_Free(self._waiter.words)


cdef class AsyncRecords:
    """An asynchronous iterator over the records of a RecordStream.

    A record that was fetched already comes without a Future and without giving way to the event loop;
    for others there is the subclass's coroutine `_next`. A record is taken when its awaitable is awaited,
    so one that is made and never awaited loses none.
    """

    def __aiter__(self):
        return self

    def __anext__(self):
        """The next record; waits for it."""
        cdef NextRecord made = NextRecord.__new__(NextRecord)
        made._of = self
        return made

    def _take(self):
        """The record that was fetched already, or None."""
        return self._fetched()

    cdef object _fetched(self):
        cdef RecordStream stream = self._stream
        if (stream is None or stream._forks != forks or not stream._buffered()
                or shmb_observe32(stream._stop._word)):
            return None
        return stream._pop()


@cython.final
@cython.freelist(16)
cdef class NextRecord:
    """What `__anext__` returns: awaitable once."""

    cdef object _ready(self):
        """The record that was fetched already, taken; None without one."""
        return None if self._rest is not None else self._of._fetched()

    cdef object _coroutine(self):
        if self._rest is None:
            self._rest = self._of._next()
        return self._rest

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        """As a coroutine does."""
        record = self._ready()
        if record is not None:
            raise StopIteration(record)
        return self._coroutine().send(value)

    def throw(self, kind, value=None, trace=None):
        """Ends it with an error; no record was taken."""
        rest = self._coroutine()
        return rest.throw(kind) if value is None else rest.throw(kind, value, trace)

    def close(self):
        """Ends it."""
        if self._rest is not None:
            self._rest.close()


# `__next__` costs 300 ns a record for the StopIteration that carries it. So a record that is ready goes
# through slots of the type: am_send, which Python 3.10 and 3.11 call, returns it, and tp_iternext, which
# later ones call, sets the exception without making one first.

cdef PySendResult next_send(PyObject *self, PyObject *value, PyObject **result) except? PYGEN_ERROR:
    cdef NextRecord awaited = <NextRecord>self
    result[0] = NULL
    record = awaited._ready()
    if record is None:
        awaited._coroutine()
        return PyIter_Send(<PyObject *>awaited._rest, value, result)
    Py_INCREF(record)
    result[0] = <PyObject *>record
    return PYGEN_RETURN


cdef PyObject *next_iternext(PyObject *self) except? NULL:
    cdef PyObject *result
    if next_send(self, <PyObject *>None, &result) == PYGEN_RETURN:
        PyErr_SetObject(<PyObject *>StopIteration, result)
        Py_XDECREF(result)
        return NULL
    return result


(<PyTypeObject *>NextRecord).tp_iternext = next_iternext
(<PyTypeObject *>NextRecord).tp_as_async.am_send = next_send
