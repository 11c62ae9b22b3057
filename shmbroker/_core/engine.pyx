"""The writer's engine for Python: threads run the C loops, the housekeeper changes what they work on.

Owns: the process-private state of one writer (engine.h). Who calls: `run_sequencer` and `run_flusher`
each fill a thread of their own, without the GIL; everything else belongs to one housekeeper thread.
Shared memory: maps the writer table, log rings and receipts writable, ingress rings read-only.
"""

import errno
import os
import threading
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.mman cimport munmap
from posix.stdlib cimport posix_memalign

from shmbroker._core.scan cimport ProducerTable

STATES = ("free", "opening", "online", "no_space", "readonly", "offline", "closed")
IDLE = {"adaptive": 0, "spin": 1, "park": 2}
WANT_RING, WANT_ALLOC, WANT_NEXT, WANT_ROLL, WANT_SEAL, WANT_INDEX, WANT_FAILED = 1, 2, 4, 8, 16, 32, 64


cdef _mapped(void *at, str what):
    if at is NULL:
        raise OSError(errno.ENOMEM, f"cannot map {what}")


cdef class Engine:
    """The engine of one writer process over its table and the park object.

    `table_fd`, `park_fd`: open shared-memory objects (not kept). `flush_max_bytes`: the largest
    write. `inline_limit_ns`: the sequencer writes by itself while the mean write takes less; 0
    never. `trace_fd`: a file that gets every write (tests); -1 none.
    """

    def __cinit__(self, int table_fd, int park_fd, *, uint32_t sources_max=4096,
                  uint64_t flush_max_bytes=4 << 20, uint64_t inline_limit_ns=300_000,
                  uint64_t spin_ns=30_000, str idle="adaptive", int trace_fd=-1):
        cdef int why
        self.parts = {}
        self.sources = {}
        self.lock = threading.Lock()
        self.table_bytes = os.fstat(table_fd).st_size
        self.table = shmb_map(table_fd, self.table_bytes, 1)
        _mapped(self.table, "the writer table")
        self.park = shmb_map(park_fd, SHMB_PAGE, 1)
        _mapped(self.park, "the park object")
        self.e = <shmb_engine *>calloc(1, sizeof(shmb_engine))
        if self.e is NULL:
            raise MemoryError()
        why = shmb_engine_init(self.e, self.table, self.park, sources_max)
        if why:
            raise OSError(why, "cannot set up the engine")
        self.e.flush_max_bytes = flush_max_bytes
        self.e.inline_limit_ns = inline_limit_ns
        self.e.spin_ns = self.e.spin_now_ns = spin_ns
        self.e.idle = IDLE[idle]
        self.e.trace_fd = trace_fd

    def __dealloc__(self):
        if self.e is not NULL:
            shmb_engine_free(self.e)
            free(self.e)
        if self.table is not NULL:
            munmap(self.table, self.table_bytes)
        if self.park is not NULL:
            munmap(self.park, SHMB_PAGE)

    @property
    def events_fd(self):
        """An eventfd that is readable when `take_wants` has something."""
        return self.e.wants_fd

    @property
    def slots(self):
        """Slots in the writer table."""
        return self.e.slots

    def claim(self):
        """Makes this process the table's writer; returns its incarnation."""
        shmb_publish(&self.e.head.pid, os.getpid())
        shmb_publish(&self.e.head.incarnation, shmb_peek(&self.e.head.incarnation) + 1)
        self.heartbeat()
        return shmb_peek(&self.e.head.incarnation)

    def heartbeat(self):
        """Stores the monotonic time in the table's head."""
        shmb_publish(&self.e.head.heartbeat_ns, <uint64_t>shmb_now_ns())

    # -- threads ---------------------------------------------------------------------------------

    cdef uint8_t *_bounce(self) except NULL:
        cdef void *at = NULL
        if posix_memalign(&at, SHMB_PAGE, SHMB_PAGE):
            raise MemoryError()
        return <uint8_t *>at

    def run_sequencer(self):
        """The sequencer's thread: returns after `stop_sequencer`."""
        cdef uint8_t *bounce = self._bounce()
        with self.lock:
            self.running = True
        with nogil:
            shmb_sequence(self.e, bounce)
        free(bounce)

    def run_flusher(self):
        """One flusher's thread: returns after `stop_flushers`."""
        cdef uint8_t *bounce = self._bounce()
        self.flushers += 1
        with nogil:
            shmb_flusher_run(self.e, bounce)
        self.flushers -= 1
        free(bounce)

    def stop_sequencer(self):
        """Ends `run_sequencer`; returns when it sequences no more."""
        if self.running:
            self._command(SHMB_OP_STOP, NULL, NULL, 0, 0)
            self.running = False

    def stop_flushers(self):
        """Ends every `run_flusher` after the write it is in."""
        shmb_publish32(&self.e.flushers_stop, 1)
        with nogil:
            shmb_flusher_wake(self.e, 1)

    cdef _command(self, uint32_t op, shmb_part *p, shmb_source *g, uint64_t a, uint64_t b):
        cdef int running
        with self.lock:
            running = self.running
            with nogil:
                shmb_command_run(self.e, op, p, g, a, b, running)

    # -- partitions ------------------------------------------------------------------------------

    def assign_slot(self, uint32_t slot, bytes topic_id, uint32_t partition, uint32_t slot_epoch):
        """Names the partition that a slot is for; its state becomes "opening"."""
        cdef shmb_slot *s = self._slot(slot)
        if len(topic_id) != 16:
            raise ValueError("a topic id has 16 bytes")
        memcpy(s.topic_id, <const char *>topic_id, 16)
        s.partition = partition
        shmb_publish32(&s.slot_epoch, slot_epoch)
        shmb_publish32(&s.state, STATES.index("opening"))

    def free_slot(self, uint32_t slot):
        """The slot is nobody's; its epoch and positions stay, so that what comes next goes on behind them."""
        shmb_publish32(&self._slot(slot).state, STATES.index("free"))

    def mark_slot(self, uint32_t slot, str state, uint32_t reason):
        """Publishes a state for a slot that has no Partition: nothing could be opened there."""
        shmb_publish32(&self._slot(slot).reason, reason)
        shmb_publish32(&self._slot(slot).state, STATES.index(state))

    def slot_info(self, uint32_t slot):
        """What the table says of a slot, for taking it over from a killed writer."""
        cdef shmb_slot *s = self._slot(slot)
        return {
            "topic_id": (<char *>s.topic_id)[:16],
            "partition": s.partition,
            "slot_epoch": shmb_observe32(&s.slot_epoch),
            "state": STATES[shmb_observe32(&s.state)],
            "generation": shmb_observe(&s.generation),
            "ring_bytes": shmb_observe(&s.ring_bytes),
            "durable_offset": <int64_t>shmb_observe(&s.durable_offset),
            "flush_base_offset": <int64_t>shmb_peek(&s.flush_base_offset),
            "append_base_offset": <int64_t>shmb_peek(&s.append_base_offset),
            "durable_bytes": shmb_peek(&s.durable_position) - shmb_peek(&s.flush_base_position),
        }

    def settle_slot(self, uint32_t slot):
        """Completes a segment switch or roll that a killed writer was in; before `slot_info`."""
        cdef shmb_part probe
        probe.slot = self._slot(slot)
        shmb_adopt_segments(&probe)

    cdef shmb_slot *_slot(self, uint32_t slot) except NULL:
        if slot >= self.e.slots:
            raise ValueError(f"the writer table has {self.e.slots} slots; there is no slot {slot}")
        return shmb_table_slot(self.table, slot)

    def partition(self, uint32_t slot):
        """The Partition in `slot`, or None."""
        return self.parts.get(slot)

    def partitions(self):
        """All partitions of this writer."""
        return list(self.parts.values())

    def open_partition(self, uint32_t slot, ProducerTable producers, *, int fd, bint adopt,
                       uint64_t file_position, int64_t segment_base_offset, int64_t next_offset,
                       int64_t log_start_offset, int32_t leader_epoch, uint64_t alloc_bytes,
                       uint64_t segment_bytes, uint64_t max_message_bytes,
                       uint64_t index_interval_bytes, int64_t max_timestamp, uint32_t unit,
                       uint64_t ring_ceiling, int ring_fd=-1, uint64_t ring_bytes=0):
        """Makes a partition known; its state is left to `Partition.set_state`.

        `adopt`: the slot's positions and the ring behind `ring_fd` (-1: it had none) are those of a
        killed writer: every batch past the durable position is verified first. Raises ValueError
        naming the first bad one; the caller then recovers from disk instead.
        """
        cdef Partition part = Partition.__new__(Partition)
        cdef int64_t offset = next_offset
        cdef uint64_t position = 0
        cdef int bad
        cdef shmb_part *p = shmb_part_new(self.e, slot)
        if p is NULL:
            raise MemoryError()
        part.engine = self
        part.p = p
        part.producers = producers
        p.producers = producers.ptr
        p.unit = unit
        p.ring_ceiling = ring_ceiling
        p.leader_epoch = leader_epoch
        p.segment_bytes = segment_bytes
        p.max_message_bytes = max_message_bytes
        p.index_interval_bytes = index_interval_bytes
        p.max_timestamp = max_timestamp
        p.max_timestamp_offset = next_offset
        p.alloc_bytes = alloc_bytes
        p.fd = fd
        p.disk_index = calloc(SHMB_DISK_INDEX_ENTRIES, sizeof(shmb_disk_index_entry))
        if p.disk_index is NULL:
            raise MemoryError()
        p.slot.disk_unit = unit
        if adopt:
            shmb_adopt_segments(p)
            if ring_fd >= 0:
                part.ring = <uint8_t *>shmb_map_double(ring_fd, shmb_log_data_offset(ring_bytes), ring_bytes, 1)
                _mapped(part.ring, "the log ring")
                shmb_part_reuse(p, part.ring, ring_bytes)
                with nogil:
                    bad = shmb_adopt_walk(p, &offset, &position)
                if bad:
                    raise ValueError(f"{shmb_batch_error_name(bad).decode()} at log position {position}")
            shmb_adopt_positions(p, offset)
        else:
            shmb_part_fresh(p, file_position, segment_base_offset, next_offset, log_start_offset)
        self.parts[slot] = part
        self._command(SHMB_OP_ADD_PART, p, NULL, 0, 0)
        if adopt:
            with nogil:
                shmb_flush_request(self.e, p, 0, 1)
        return part

    def close_partition(self, uint32_t slot):
        """Forgets a partition. It must be held, drained or dead."""
        cdef Partition part = self.parts.pop(slot)
        with nogil:
            shmb_token_wait(part.p)
        self._command(SHMB_OP_REMOVE_PART, part.p, NULL, 0, 0)
        part._release()

    def take_wants(self):
        """What partitions want: list of (Partition, WANT_* bits). Empties the list."""
        cdef uint64_t slot
        cdef uint32_t bits
        cdef Partition part
        cdef list found = []
        try:
            os.eventfd_read(self.e.wants_fd)
        except BlockingIOError:
            pass
        while shmb_queue_pop(&self.e.wants, &slot):
            part = self.parts.get(slot)
            if part is None:
                continue
            bits = part._take_wants()
            if bits:
                found.append((part, bits))
        return found

    # -- ingress ---------------------------------------------------------------------------------

    def add_source(self, uint64_t ingress, int client_fd, int receipts_fd, uint64_t capacity, uint64_t slots):
        """Attaches an ingress ring and its receipts; settles the frame that a killed writer left in doubt.

        Raises OSError when it cannot be mapped. `capacity` (bytes) and `slots` are the acceptor's, not the client's.
        """
        cdef Source source = Source.__new__(Source)
        cdef shmb_source *g = <shmb_source *>calloc(1, sizeof(shmb_source))
        if g is NULL:
            raise MemoryError()
        source.engine = self
        source.g = g
        g.id = ingress
        g.capacity = capacity
        g.slots = slots
        g.object = <uint8_t *>shmb_map_double(client_fd, SHMB_PAGE, capacity, 0)
        _mapped(<void *>g.object, "the ingress ring")
        g.data = g.object + SHMB_PAGE
        source.receipts_bytes = shmb_receipts_bytes(slots)
        g.receipts = <uint8_t *>shmb_map(receipts_fd, source.receipts_bytes, 1)
        _mapped(g.receipts, "the receipts")
        g.word = self.e.park + shmb_park_ingress(ingress) * (SHMB_LINE // 4)
        shmb_adopt_source(self.e, g)
        self.sources[ingress] = source
        self._command(SHMB_OP_ADD_SOURCE, NULL, g, 0, 0)
        return source

    def remove_source(self, uint64_t ingress):
        """Detaches an ingress ring; what it still holds is not appended."""
        cdef Source source = self.sources.pop(ingress)
        self._command(SHMB_OP_REMOVE_SOURCE, NULL, source.g, 0, 0)
        source._release()

    def source(self, uint64_t ingress):
        """The Source, or None."""
        return self.sources.get(ingress)

    def all_sources(self):
        """Every attached ingress ring."""
        return list(self.sources.values())


include "engine_source.pxi"
include "engine_partition.pxi"
