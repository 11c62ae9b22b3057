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
        self.e.spin_ns = spin_ns
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


cdef class Source:
    """An ingress ring as the writer sees it."""

    def __dealloc__(self):
        self._release()

    cpdef _release(self):
        if self.g is not NULL:
            if self.g.object is not NULL:
                shmb_unmap_double(<void *>self.g.object, SHMB_PAGE, self.g.capacity)
            if self.g.receipts is not NULL:
                munmap(self.g.receipts, self.receipts_bytes)
            free(self.g)
            self.g = NULL

    @property
    def id(self):
        """Ingress id."""
        return self.g.id

    @property
    def pending_bytes(self):
        """Published and not consumed, bytes."""
        head = shmb_observe(&(<shmb_ingress_head *>self.g.object).head)
        return head - shmb_peek(&(<shmb_receipts_head *>self.g.receipts).tail)

    @property
    def detached(self):
        """Why the ring is no longer read, or None."""
        if not shmb_observe32(&self.g.detached):
            return None
        return self.g.why.decode()

    def describe(self):
        """For `status`: id, capacity and pending bytes, the slot that the head frame waits for."""
        cdef shmb_part *blocked = self.g.blocked
        return {
            "ingress": self.g.id,
            "capacity": self.g.capacity,
            "pending_bytes": self.pending_bytes,
            "blocked_slot": None if blocked is NULL else blocked.index,
            "detached": self.detached,
        }


cdef class Partition:
    """One partition in the engine; the housekeeper's handle."""

    def __dealloc__(self):
        self._release()

    cpdef _release(self):
        if self.p is not NULL:
            self._unmap()
            free(self.p.disk_index)
            free(self.p)
            self.p = NULL

    cdef _unmap(self):
        if self.ring is not NULL:
            shmb_unmap_double(self.ring, shmb_log_data_offset(self.p.capacity), self.p.capacity)
            self.ring = NULL

    cpdef uint32_t _take_wants(self):
        cdef uint32_t bits
        shmb_publish32(&self.p.wants_queued, 0)
        bits = shmb_observe32(&self.p.wants)
        return bits

    @property
    def wants(self):
        """The WANT_* bits raised and not yet done."""
        return shmb_observe32(&self.p.wants)

    def done(self, uint32_t bits):
        """Clears want bits: they may be raised again. Call before acting, so that nothing is missed."""
        shmb_wants_clear(self.p, bits)

    @property
    def slot(self):
        return self.p.index

    @property
    def state(self):
        """State's name."""
        return STATES[shmb_observe32(&self.p.slot.state)]

    def set_state(self, str state, uint32_t reason=0):
        """Publishes the state and wakes every waiter of the partition."""
        cdef uint32_t number = STATES.index(state)
        with nogil:
            shmb_part_state(self.engine.e, self.p, number, reason)

    @property
    def ring_bytes(self):
        """Capacity of the ring, 0 without one."""
        return self.p.capacity if self.ring is not NULL else 0

    @property
    def ring_need(self):
        """What the sequencer asked for with WANT_RING, bytes."""
        return self.p.ring_need

    @property
    def ring_must(self):
        """The part of `ring_need` that a waiting frame can't do without; 0: growth would only be faster."""
        return self.p.ring_must

    @property
    def alloc_need(self):
        """Bytes of the active segment that must be reserved at least."""
        return self.p.alloc_need

    @property
    def generation(self):
        return shmb_peek(&self.p.slot.generation)

    @property
    def roll_waits(self):
        """Base offset of a segment that has yet to be named, or None."""
        if shmb_observe32(&self.p.roll_pending) and not shmb_observe32(&self.p.roll_ready):
            return <int64_t>shmb_peek(&self.p.slot.append_base_offset)
        return None

    @property
    def appended_bytes(self):
        """Bytes of batches appended since the slot was made."""
        return shmb_peek(&self.p.slot.bytes)

    @property
    def log_end_offset(self):
        return <int64_t>shmb_observe(&self.p.slot.log_end_offset)

    @property
    def append_segment(self):
        """(base offset, bytes) of the segment that is appended to."""
        position = shmb_observe(&self.p.slot.log_end_position)
        base = shmb_peek(&self.p.slot.append_base_position)
        return <int64_t>shmb_peek(&self.p.slot.append_base_offset), max(0, position - base)

    @property
    def max_timestamp(self):
        """Largest timestamp in the segment that is appended to, ms; -1: none."""
        return self.p.max_timestamp

    def durable(self):
        """(segment base offset, durable bytes of that segment, durable offset), consistent."""
        cdef int64_t segment = 0, offset = 0
        cdef uint64_t nbytes = 0
        shmb_marked(self.p, &segment, &nbytes, &offset)
        return segment, nbytes, offset

    def set_log_start(self, int64_t offset):
        shmb_publish(&self.p.slot.log_start_offset, <uint64_t>offset)

    def hold(self):
        """Frames for this partition wait from here on (their ingress rings with them)."""
        self.engine._command(SHMB_OP_HOLD, self.p, NULL, 0, 0)

    def resume(self):
        """Ends `hold`."""
        self.engine._command(SHMB_OP_RESUME, self.p, NULL, 0, 0)

    def wait_drained(self, double timeout):
        """Waits until all that was appended is durable. False after `timeout` seconds or when offline."""
        cdef int64_t deadline = shmb_now_ns() + <int64_t>(timeout * 1e9)
        cdef int done
        with nogil:
            done = shmb_wait_drained(self.engine.e, self.p, deadline)
        return bool(done)

    def install_ring(self, int fd, uint64_t capacity, uint64_t generation, tail):
        """Replaces the ring: held and drained. `fd` -1 takes the ring away. `tail`: the bytes of the
        partial last unit, or None to take them from the ring that is replaced."""
        cdef uint8_t *object = NULL
        cdef uint8_t *old = self.ring
        cdef uint64_t old_capacity = self.p.capacity
        cdef uint64_t n = self.p.log_end % self.p.unit
        cdef const uint8_t[:] view
        cdef bytes kept
        if fd >= 0:
            object = <uint8_t *>shmb_map_double(fd, shmb_log_data_offset(capacity), capacity, 1)
            _mapped(object, "the log ring")
            if tail is None:
                kept = (<char *>(self.p.data + (self.p.log_end - n) % old_capacity))[:n] if n else b""
            else:
                kept = bytes(tail)
            if <uint64_t>len(kept) != n:
                raise ValueError(f"the partial unit has {n} bytes, not {len(kept)}")
        with nogil:
            shmb_token_wait(self.p)
        view = kept if fd >= 0 and n else b"\0"
        shmb_part_install(self.p, object, capacity, generation, &view[0], n if fd >= 0 else 0)
        shmb_token_release(self.engine.e, self.p, 1)
        self.ring = object
        shmb_part_ring_all(self.engine.e, self.p)
        if old is not NULL:
            shmb_unmap_double(old, shmb_log_data_offset(old_capacity), old_capacity)

    def set_alloc(self, int64_t segment_base_offset, uint64_t allocated_bytes):
        """The active segment has been preallocated that far."""
        self.engine._command(SHMB_OP_ALLOC, self.p, NULL, <uint64_t>segment_base_offset, allocated_bytes)

    def set_next(self, uint64_t allocated_bytes):
        """A next segment is prepared."""
        self.engine._command(SHMB_OP_NEXT, self.p, NULL, 0, allocated_bytes)

    def set_limits(self, uint64_t segment_bytes, uint64_t max_message_bytes, uint64_t index_interval_bytes):
        """The topic's settings have changed: these hold from the next batch on."""
        self.engine._command(SHMB_OP_LIMITS, self.p, NULL, segment_bytes, max_message_bytes)
        self.engine._command(SHMB_OP_INDEX_INTERVAL, self.p, NULL, index_interval_bytes, 0)

    def set_ring_ceiling(self, uint64_t capacity):
        """A full ring asks to grow only while it is smaller than this."""
        self.engine._command(SHMB_OP_CEILING, self.p, NULL, capacity, 0)

    def roll_due(self, int64_t segment_base_offset):
        """segment.ms has passed for that segment: the next batch begins another."""
        self.engine._command(SHMB_OP_ROLL_DUE, self.p, NULL, <uint64_t>segment_base_offset, 0)

    def rolled(self, int fd):
        """The prepared segment has its name and may be written through `fd`."""
        with nogil:
            shmb_part_rolled(self.engine.e, self.p, fd)

    def set_fd(self, int fd):
        """The file of the active segment, while there was none before (first append)."""
        self.p.fd = fd

    @property
    def sealed(self):
        """(base offset, length in bytes, max timestamp) of the segment that WANT_SEAL speaks of."""
        return self.p.sealed_base_offset, self.p.sealed_bytes, self.p.sealed_max_timestamp

    @property
    def failed_errno(self):
        return self.p.failed_errno

    def collect_index(self):
        """The disk index entries gathered since the last call: list of
        (segment base offset, packed native int64 triples last offset, file position, max timestamp)."""
        cdef uint64_t tail = shmb_peek(&self.p.disk_index_tail), head = shmb_observe(&self.p.disk_index_head)
        cdef shmb_disk_index_entry *ring = <shmb_disk_index_entry *>self.p.disk_index
        cdef shmb_disk_index_entry *x
        cdef list found = []
        cdef int64_t base = -1
        cdef int64_t[3] triple
        cdef bytearray packed = bytearray()
        while tail < head:
            x = &ring[tail % SHMB_DISK_INDEX_ENTRIES]
            if x.segment_base_offset != base:
                if packed:
                    found.append((base, bytes(packed)))
                    packed = bytearray()
                base = x.segment_base_offset
            triple[0] = x.last_offset
            triple[1] = x.file_position
            triple[2] = x.max_timestamp
            packed += (<char *>triple)[:24]
            tail += 1
        shmb_publish(&self.p.disk_index_tail, tail)
        if packed:
            found.append((base, bytes(packed)))
        return found
