"""Feeds and inlets for Python: what a remote consumer reads from, and the receiver that fills it.

Owns: the private slot and ring of one consumer's partition (feed.h), and a connection's way from its
socket into them (inlet.h). A Feed is filled by one thread, its client's receiver, and read by one
PartitionReader, in whatever thread; `open_ring`, `has` and the properties are for both. An Inlet is
the receiver's alone.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_WRITE
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from shmbroker._core.batch cimport shmb_batch_error_name
from shmbroker._core.reader cimport PartitionReader

import os

from shmbroker._core.shm import ShmObject

LEAST_BYTES = int(SHMB_FEED_LEAST)
SUBSCRIPTIONS = int(SHMB_INLET_NUMBERS) - 1
STAGE_BYTES = int(SHMB_INLET_STAGE)
MORE, FRAME, FAULT, RUBBISH, END = (int(SHMB_INLET_MORE), int(SHMB_INLET_FRAME), int(SHMB_INLET_FAULT),
                                    int(SHMB_INLET_RUBBISH), int(SHMB_INLET_END))
_FAULTS = {int(SHMB_FEED_ORDER): "not the offset that comes next",
           int(SHMB_FEED_CREDIT): "more than there is credit for",
           int(SHMB_FEED_MEMORY): "no memory for a ring as large as that"}


def fault_text(int fault):
    """What an Inlet's `fault` means."""
    return _FAULTS.get(fault) or shmb_batch_error_name(fault).decode()


cdef class Feed:
    """The ring of one partition from `offset` on: empty, and without memory until a batch comes.

    `leader_epoch` is that of the record in front of `offset`, -1 if unknown. `number` spreads feeds over
    the words of `park`; `most` bytes is how far its ring grows by itself; `bell.fileno()` is an eventfd
    that is rung when credit is due (`rang`).
    """

    def __init__(self, Mapping park not None, uint32_t number, int64_t offset, int32_t leader_epoch,
                 uint64_t most, object bell not None):
        if self._feed != NULL:
            raise TypeError("a Feed is made once")
        fd = os.memfd_create("shmb-slot", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, shmb_table_bytes(1))
            self.table = Mapping("slot", fd, writable=True)
        finally:
            os.close(fd)
        self.park, self._bell, self.number = park, bell, number
        cdef shmb_feed *made = <shmb_feed *>calloc(1, sizeof(shmb_feed))
        if made == NULL or shmb_feed_init(made, shmb_table_slot(self.table._at, 0), <shmb_a32 *>park._at, number,
                                          offset, leader_epoch, most, bell.fileno()):
            free(made)
            raise MemoryError()
        self._feed = made

    def __dealloc__(self):
        if self._feed != NULL:
            shmb_feed_free(self._feed)
            free(self._feed)

    def feeds(self, PartitionReader reader not None):
        """Has `reader` read from here, where it is: its position is to be the feed's `offset`."""
        reader.bind(self.number, 0, 1, self.table, self.open_ring)  # which keeps this object, too
        reader._uptake = &self._feed.uptake

    def open_ring(self, uint64_t generation):
        """The ring of `generation` as a ShmObject, once, for the one reader; FileNotFoundError when it
        was replaced."""
        cdef int fd = shmb_feed_open(self._feed, generation)
        if fd < 0:
            raise FileNotFoundError(f"generation {generation}")
        return ShmObject("feed", fd, SHMB_KIND_LOG, 0, os.fstat(fd).st_size)

    def has(self, int64_t offset):
        """Whether `offset` is here."""
        return shmb_feed_has(self._feed, offset) != 0

    @property
    def next_offset(self):
        """One past the last offset that is here."""
        return <int64_t>shmb_observe(&self._feed.slot.log_end_offset)

    @property
    def leader_epoch(self):
        """Of the last batch that came, or as given; -1: unknown. For the receiver."""
        return self._feed.leader_epoch

    @property
    def capacity(self):
        """Bytes of the ring; 0 as long as there is none."""
        return self._feed.capacity

    @property
    def untaken(self):
        """Bytes that came and that the reader may still look at. For the receiver."""
        return self._feed.end - shmb_observe(&self._feed.uptake.taken)

    def begin(self):
        """A subscription begins behind what is here: credit counts anew, half a frame is forgotten."""
        shmb_feed_begin(self._feed)

    def grant(self, uint64_t spare):
        """Bytes of credit since `begin`; the bell rings when there is more to grant. The ring becomes
        larger where the reader waited for credit, as long as that takes no more than `spare` bytes."""
        return shmb_feed_grant(self._feed, spare)

    def rang(self):
        """Whether the reader has rung since this was asked last."""
        if not shmb_observe32(&self._feed.uptake.rung):
            return False
        shmb_publish32(&self._feed.uptake.rung, 0)
        return True

    def close(self):
        """Nothing comes any more: the reader's waits end when it has read what is here."""
        shmb_feed_state(self._feed, SHMB_STATE_CLOSED)

    def free(self):
        """Nobody reads it any more, and no Inlet lists it: gives its ring back. For the receiver."""
        shmb_feed_free(self._feed)


cdef class Inlet:
    """What one connection's socket gives, sorted: batches into feeds, other frames out of `frame`.

    `receive`, `put` and `came` say what is to be seen to: MORE (nothing), FRAME, FAULT (`number`'s feed
    got a `fault`, and is fed no more), RUBBISH (the connection is over), END (`fault`: its errno). After
    any but MORE call `receive` again, since more may have come with it.
    """

    def __init__(self):
        if self._inlet != NULL:
            raise TypeError("an Inlet is made once")
        self._inlet = <shmb_inlet *>calloc(1, sizeof(shmb_inlet))
        if self._inlet == NULL:
            raise MemoryError()
        self._feeds = [None] * SHMB_INLET_NUMBERS

    def __dealloc__(self):
        free(self._inlet)

    def list(self, uint32_t number, Feed feed not None):
        """Batches of subscription `number` go into `feed` from now on."""
        if not 0 < number < SHMB_INLET_NUMBERS:
            raise IndexError(f"subscription {number}")
        self._feeds[number] = feed
        self._inlet.feeds[number] = feed._feed
        self._inlet.known[number] = SHMB_INLET_LIVE

    def drop(self, uint32_t number, bint ended):
        """Batches of `number` go nowhere, or with `ended` may not come any more."""
        if not 0 < number < SHMB_INLET_NUMBERS:
            raise IndexError(f"subscription {number}")
        shmb_inlet_drop(self._inlet, number, SHMB_INLET_NONE if ended else SHMB_INLET_ENDING)
        self._feeds[number] = None

    def receive(self, int fd):
        """Reads from a socket that does not block until there is no more, or something to see to."""
        cdef shmb_inlet_event event
        with nogil:
            event = shmb_inlet_read(self._inlet, fd)
        return event

    def put(self, bytes data not None):
        """What was received in front of all that comes: at most STAGE_BYTES."""
        cdef size_t n = len(data)
        if self._inlet.to or n > SHMB_INLET_STAGE:
            raise ValueError(f"{n} bytes in front of {self._inlet.to}")
        memcpy(self._inlet.stage, <const char *>data, n)
        return self.came(n)

    def frame(self):
        """The frame that is whole, taken."""
        cdef uint32_t n = self._inlet.frame_bytes
        data = PyBytes_FromStringAndSize(<char *>self._inlet.stage + self._inlet.from_, n)
        self._inlet.from_ += n
        self._inlet.frame_bytes = 0
        return data

    @property
    def heard(self):
        """Bytes that have come so far."""
        return self._inlet.heard

    @property
    def number(self):
        """The subscription of a FAULT."""
        return self._inlet.number

    @property
    def fault(self):
        """What `fault_text` explains; at END an errno."""
        return self._inlet.fault

    def place(self):
        """Where what comes next belongs, for a socket that decrypts: fill some of it, call `came`."""
        cdef iovec v[2]
        shmb_inlet_places(self._inlet, v)
        return PyMemoryView_FromMemory(<char *>v[0].iov_base, <Py_ssize_t>v[0].iov_len, PyBUF_WRITE)

    def came(self, size_t n):
        """So many bytes have come into `place`; 0: looks at what is left."""
        cdef shmb_inlet_event event
        with nogil:
            shmb_inlet_came(self._inlet, n)
            event = shmb_inlet_look(self._inlet)
        return event


def wait(int bell, list watched not None, int64_t deadline_ns):
    """Receives, without the GIL, until something is to be seen to or the deadline has passed.

    `watched`: (descriptor, its Inlet or None, whether to wait until it can be written). Returns for the bell
    and each of them what there is: 0 nothing; of one with an inlet its event; else, and in the high half
    (<< 8) for all, poll's events.
    """
    cdef int n = len(watched) + 1, i
    cdef pollfd *polled = <pollfd *>calloc(n, sizeof(pollfd))
    cdef shmb_inlet **inlets = <shmb_inlet **>calloc(n, sizeof(shmb_inlet *))
    cdef int *events = <int *>calloc(n, sizeof(int))
    cdef Inlet inlet
    try:
        if polled == NULL or inlets == NULL or events == NULL:
            raise MemoryError()
        polled[0].fd, polled[0].events = bell, POLLIN
        for i in range(1, n):
            fd, inlet, write = watched[i - 1]
            polled[i].fd = fd
            polled[i].events = <short>(POLLIN | (POLLOUT if write else 0))
            inlets[i] = NULL if inlet is None else inlet._inlet
        with nogil:
            shmb_inlets_wait(polled, inlets, events, n, deadline_ns)
        return [events[i] | (polled[i].revents << 8) for i in range(n)]
    finally:
        free(polled)
        free(inlets)
        free(events)
