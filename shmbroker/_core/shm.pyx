"""Shared-memory objects by name: made, opened, listed, swept; writer tables read.

Owns: the life of the files under /dev/shm; what is in them is layout.h's, and written by the process
that layout.h names. The acceptor makes and unlinks all objects but the log rings, which are their
writer's; a client opens what it was told the name of.

Invariants: every byte is reserved before the object is used (`posix_fallocate`), so no store ends in
SIGBUS; mode 0600; `ready` is stored last, so a half-made object is never taken for a whole one; an
object of another boot or data directory is never opened, only swept (invariant 10).
"""

import errno
import os

import posix_ipc

from libc.string cimport memcpy
from posix.mman cimport munmap

from shmbroker import errors

PAGE_BYTES = int(SHMB_PAGE)
LINE_BYTES = int(SHMB_LINE)
SLOTS_MAX = int(SHMB_SLOTS_MAX)
WRITERS_MAX = int(SHMB_WRITERS_MAX)
LAYOUT_VERSION = int(SHMB_LAYOUT_VERSION)
PARK_BYTES = int(SHMB_PARK_WORDS) * LINE_BYTES
KIND_PARK = int(SHMB_KIND_PARK)
KIND_WRITER = int(SHMB_KIND_WRITER)
KIND_LOG = int(SHMB_KIND_LOG)
KIND_INGRESS = int(SHMB_KIND_INGRESS)
KIND_RECEIPTS = int(SHMB_KIND_RECEIPTS)
KIND_CHECKPOINTS = int(SHMB_KIND_CHECKPOINTS)

STATES = ("free", "opening", "online", "no_space", "readonly", "offline", "closed")
BLOCKS = ("none", "ring_full", "no_ring", "segment", "opening")
_KIND_NAMES = {KIND_PARK: "park words", KIND_WRITER: "writer table", KIND_LOG: "log ring",
               KIND_INGRESS: "ingress ring", KIND_RECEIPTS: "receipts",
               KIND_CHECKPOINTS: "checkpoints"}
_STRANGERS = {int(SHMB_NOT_READY): "was never finished",
              int(SHMB_OTHER_FORMAT): "has another format",
              int(SHMB_OTHER_KIND): "is of another kind",
              int(SHMB_OTHER_BOOT): "is of an earlier boot",
              int(SHMB_OTHER_DIR): "is of another data directory",
              int(SHMB_OTHER_SIZE): "has not the size it claims"}
_DIRECTORY = "/dev/shm"


def log_bytes(unsigned long long capacity):
    """Bytes of a log ring's object whose data capacity is `capacity` bytes."""
    return shmb_log_bytes(capacity)


def receipts_bytes(unsigned long long slots):
    """Bytes of a receipts object of `slots` receipts."""
    return shmb_receipts_bytes(slots)


def ingress_bytes(unsigned long long capacity):
    """Bytes of an ingress ring's object whose data capacity is `capacity` bytes."""
    return shmb_align_up(SHMB_PAGE + capacity, SHMB_PAGE)


def table_bytes(unsigned int slots):
    """Bytes of a writer table of `slots` partitions."""
    return shmb_table_bytes(slots)


def checkpoints_bytes(unsigned int slots):
    """Bytes of an object for the checkpoints of `slots` partitions."""
    return shmb_checkpoints_bytes(slots)


def checkpoints_slots(unsigned long long size):
    """How many slots an object for checkpoints of `size` bytes has."""
    return shmb_checkpoints_room(size)


cdef class ShmObject:
    """An open object; owns its descriptor, and nothing else. Not thread-safe."""

    def __cinit__(self, str name, int fd, int kind, int owner, unsigned long long size):
        self.name, self._fd, self.kind, self.owner, self.bytes = name, fd, kind, owner, size

    def __dealloc__(self):
        if self._fd >= 0:
            os.close(self._fd)

    def fileno(self):
        """The descriptor, for mmap and flock; ValueError once closed."""
        if self._fd < 0:
            raise ValueError(f"{self.name} is closed")
        return self._fd

    def close(self):
        """Closes the descriptor; mappings and the object stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def unlink(self):
        """Removes the name; memory goes with the last mapping. No error when it is gone already."""
        unlink(self.name)

    def __repr__(self):
        return f"<ShmObject {self.name} {self.bytes} bytes>"


def free_bytes():
    """Bytes that /dev/shm has free."""
    at = os.statvfs(_DIRECTORY)
    return at.f_bavail * at.f_frsize


def create(str name, int kind, int owner, unsigned long long size, bytes boot_id, bytes dir_id, *,
           int slots=0, unsigned long long capacity=0, long client_pid=0, int client=0,
           str group="", str member=""):
    """Makes an object, zeroed and with every byte reserved; FileExistsError when the name is taken.

    `size` in bytes; `slots` goes into the head of a writer table or of receipts, `capacity` (bytes)
    and `client_pid` into that of an ingress ring, `client` and the names into that of checkpoints,
    which have all the slots that there is room for. Raises MemoryBudget when /dev/shm has no room:
    nothing is left behind, and it may be tried again once there is.
    """
    cdef void *at
    if len(boot_id) != 16 or len(dir_id) != 16:
        raise ValueError("boot_id and dir_id are 16 bytes")
    try:
        made = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.ExistentialError:
        raise FileExistsError(errno.EEXIST, "shared memory exists already", name) from None
    cdef int fd = made.fd
    try:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                unlink(name)  # gives back what was reserved, before the free bytes are read
                os.ftruncate(fd, 0)
                raise _no_room(_KIND_NAMES.get(kind, "object"), size) from None
            raise
        at = shmb_map(fd, SHMB_PAGE, 1)
        if at == NULL:
            raise MemoryError(f"{name} can't be mapped")
        if kind == SHMB_KIND_WRITER:
            (<shmb_writer_head *>at).writer = owner
            (<shmb_writer_head *>at).slots_max = slots
        elif kind == SHMB_KIND_INGRESS:
            (<shmb_ingress_head *>at).capacity = capacity
            (<shmb_ingress_head *>at).client_pid = client_pid
        elif kind == SHMB_KIND_RECEIPTS:
            (<shmb_receipts_head *>at).slots = slots
        elif kind == SHMB_KIND_CHECKPOINTS:
            _name_checkpoints(<shmb_checkpoints_head *>at, size, client, group.encode(),
                              member.encode())
        shmb_preamble_write(at, kind, owner, size, boot_id, dir_id)
        munmap(at, SHMB_PAGE)
    except BaseException:
        os.close(fd)
        unlink(name)
        raise
    return ShmObject(name, fd, kind, owner, size)


cdef int _name_checkpoints(shmb_checkpoints_head *head, uint64_t size, int client, bytes group,
                           bytes member) except -1:
    cdef bytes names = group + member
    if len(names) > SHMB_CHECKPOINT_NAMES_MAX:
        raise ValueError(f"{len(names)} bytes of names; at most {int(SHMB_CHECKPOINT_NAMES_MAX)}")
    head.client = client
    head.slots = shmb_checkpoints_room(size)
    head.group_bytes = <uint32_t>len(group)
    head.member_bytes = <uint32_t>len(member)
    memcpy(head.names, <const char *>names, len(names))
    return 0


def _no_room(str what, size):
    free = free_bytes()
    return errors.MemoryBudget(
        f"{_DIRECTORY} has no room: {size} bytes are needed for {what}, {free} are free; "
        f"free some (ls -l {_DIRECTORY}), or enlarge it: mount -o remount,size=1G {_DIRECTORY}",
        needed_bytes=size, available_bytes=free)


def open_existing(str name, int kind, bytes boot_id, bytes dir_id, *, bint writable=False):
    """Opens an object of this boot and data directory.

    Raises FileNotFoundError, or ValueError with the reason when it is not ours (see `inspect`).
    """
    try:
        found = posix_ipc.SharedMemory(name, 0, read_only=not writable)
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(errno.ENOENT, "no such shared memory", name) from None
    cdef int fd = found.fd
    cdef int why, owner = 0
    cdef unsigned long long size = os.fstat(fd).st_size
    cdef void *at
    if size < SHMB_PAGE:
        why = SHMB_NOT_READY
    else:
        at = shmb_map(fd, SHMB_PAGE, 0)
        if at == NULL:
            os.close(fd)
            raise MemoryError(f"{name} can't be mapped")
        why = shmb_preamble_check(at, kind, size, boot_id, dir_id)
        owner = (<shmb_preamble *>at).owner
        munmap(at, SHMB_PAGE)
    if why != SHMB_OURS:
        os.close(fd)
        raise ValueError(f"shared memory {name} {_STRANGERS[why]}")
    return ShmObject(name, fd, kind, owner, size)


def unlink(str name):
    """Removes a name; no error when it is gone already."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        pass


def list_prefix(str prefix):
    """The names, sorted, that begin with `prefix` and a dash."""
    start = prefix[1:] + "-"
    return sorted("/" + entry for entry in os.listdir(_DIRECTORY) if entry.startswith(start))


cdef int _kind_of(str name, str prefix):
    letter = name[len(prefix) + 1:len(prefix) + 2]
    return {"p": KIND_PARK, "w": KIND_WRITER, "l": KIND_LOG, "i": KIND_INGRESS,
            "r": KIND_RECEIPTS, "k": KIND_CHECKPOINTS}.get(letter, 0)


def list_ours(str prefix, bytes boot_id, bytes dir_id):
    """Name -> (kind, owner, bytes) of the prefix's whole objects of this boot and directory."""
    ours = {}
    for name in list_prefix(prefix):
        try:
            found = open_existing(name, _kind_of(name, prefix), boot_id, dir_id)
        except (ValueError, FileNotFoundError, PermissionError):
            continue
        ours[name] = (found.kind, found.owner, found.bytes)
        found.close()
    return ours


def sweep(str prefix, bytes boot_id, bytes dir_id, *, bint ours_too=False):
    """Unlinks the prefix's objects of other boots and directories, and unfinished ones.

    With `ours_too` every object of the prefix goes: a clean start or stop. The caller holds the data
    directory's lock, so nobody else makes objects under this prefix. Returns the names removed.
    """
    keep = {} if ours_too else list_ours(prefix, boot_id, dir_id)
    gone = [name for name in list_prefix(prefix) if name not in keep]
    for name in gone:
        unlink(name)
    return gone


cdef class TableView:
    """A writer table, mapped read-only. Values are read one by one while the writer stores them:
    each is whole, together they are no snapshot. Not thread-safe."""

    def __cinit__(self, str path):
        cdef int fd
        self._at = NULL
        self.path = path
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._bytes = os.fstat(fd).st_size
            if self._bytes < SHMB_PAGE:
                raise ValueError(f"{path} was never finished")
            self._at = shmb_map(fd, self._bytes, 0)
        finally:
            os.close(fd)
        if self._at == NULL:
            raise MemoryError(f"{path} can't be mapped")
        cdef shmb_preamble *preamble = <shmb_preamble *>self._at
        if not shmb_observe32(&preamble.ready) or preamble.kind != SHMB_KIND_WRITER:
            raise ValueError(f"{path} is no writer table")
        self.slots_max = min((<shmb_writer_head *>self._at).slots_max,
                             (self._bytes - SHMB_PAGE) // sizeof(shmb_slot))

    def __dealloc__(self):
        if self._at != NULL:
            munmap(self._at, self._bytes)

    def close(self):
        """Unmaps the table; everything else raises ValueError afterwards."""
        if self._at != NULL:
            munmap(self._at, self._bytes)
            self._at = NULL

    cdef shmb_slot *_slot(self, int slot) except NULL:
        if self._at == NULL:
            raise ValueError(f"{self.path} is closed")
        if not 0 <= slot < self.slots_max:
            raise IndexError(f"slot {slot} of {self.slots_max}")
        return shmb_table_slot(self._at, slot)

    def slot_epoch(self, int slot):
        """The epoch of the slot's present or last partition."""
        return shmb_observe32(&self._slot(slot).slot_epoch)

    def state(self, int slot):
        """The slot's state, one of STATES."""
        return _named(STATES, shmb_observe32(&self._slot(slot).state))

    def sample(self, int slot):
        """What pressure is judged by: state, log end and durable position, ring bytes, mean ns of a write,
        why a batch waits and since when (CLOCK_MONOTONIC ns, 0: none waits)."""
        return _sample(self._slot(slot))

    def stirring(self, int upto):
        """(slot, sample) of those below `upto` that are somebody's and not at rest: in a state other than
        online, with something unsynced, or with a batch that waits."""
        cdef int n
        cdef unsigned int state
        cdef shmb_slot *s
        found = []
        if self._at == NULL:
            raise ValueError(f"{self.path} is closed")
        for n in range(min(upto, self.slots_max)):
            s = shmb_table_slot(self._at, n)
            state = shmb_observe32(&s.state)
            if state == SHMB_STATE_FREE:
                continue
            if (state != SHMB_STATE_ONLINE or shmb_peek32(&s.blocked_why)
                    or shmb_peek(&s.durable_position) != shmb_peek(&s.log_end_position)):
                found.append((n, _sample(s)))
        return found

    def heartbeat(self):
        """When the writer's housekeeper last said that it is there (CLOCK_MONOTONIC ns, 0: never), and how
        many frames it has taken so far."""
        if self._at == NULL:
            raise ValueError(f"{self.path} is closed")
        return (shmb_peek(&(<shmb_writer_head *>self._at).heartbeat_ns),
                shmb_peek(&(<shmb_writer_head *>self._at).frames))

    def head(self):
        """The head by field name: pid, incarnation, heartbeat, counters, and the intent or None."""
        if self._at == NULL:
            raise ValueError(f"{self.path} is closed")
        cdef shmb_writer_head *h = <shmb_writer_head *>self._at
        cdef shmb_intent *i = &h.intent
        intent = None
        if shmb_observe(&i.ingress):
            intent = {"ingress": shmb_peek(&i.ingress), "frame_position": shmb_peek(&i.frame_position),
                      "frame_seq": shmb_peek(&i.frame_seq), "slot": shmb_peek(&i.slot),
                      "end_position": shmb_peek(&i.end_position),
                      "base_offset": shmb_peek(&i.base_offset),
                      "generation": shmb_peek(&i.generation)}
        return {"writer": h.writer, "slots_max": self.slots_max, "pid": shmb_peek(&h.pid),
                "incarnation": shmb_peek(&h.incarnation),
                "heartbeat_ns": shmb_peek(&h.heartbeat_ns), "intent": intent,
                "sequencer_parks": shmb_peek(&h.sequencer_parks),
                "inline_writes": shmb_peek(&h.inline_writes),
                "handed_writes": shmb_peek(&h.handed_writes),
                "frames": shmb_peek(&h.frames), "rejected": shmb_peek(&h.rejected)}

    def slot(self, int slot):
        """Every field of one slot by its name in layout.h; `topic_id` as hex, states as text."""
        cdef shmb_slot *s = self._slot(slot)
        state = _named(STATES, shmb_observe32(&s.state))
        return {"slot": slot, "topic_id": (<char *>s.topic_id)[:16].hex(),
                "partition": s.partition, "slot_epoch": shmb_peek32(&s.slot_epoch), "state": state,
                "reason": shmb_peek32(&s.reason), "generation": shmb_observe(&s.generation),
                "ring_bytes": shmb_peek(&s.ring_bytes), "disk_unit": s.disk_unit,
                "durable_position": shmb_observe(&s.durable_position),
                "durable_offset": shmb_peek(&s.durable_offset),
                "log_end_position": shmb_observe(&s.log_end_position),
                "log_end_offset": shmb_peek(&s.log_end_offset),
                "reserved_position": shmb_peek(&s.reserved_position),
                "index_head": shmb_peek(&s.index_head),
                "flush_base_offset": shmb_peek(&s.flush_base_offset),
                "flush_base_position": shmb_peek(&s.flush_base_position),
                "append_base_offset": shmb_peek(&s.append_base_offset),
                "append_base_position": shmb_peek(&s.append_base_position),
                "roll_from_position": shmb_peek(&s.roll_from_position),
                "log_start_offset": shmb_peek(&s.log_start_offset),
                "leader_epoch": shmb_peek32(&s.leader_epoch),
                "batches": shmb_peek(&s.batches), "records": shmb_peek(&s.records),
                "bytes": shmb_peek(&s.bytes), "writes": shmb_peek(&s.writes),
                "written_bytes": shmb_peek(&s.written_bytes), "write_ns": shmb_peek(&s.write_ns),
                "blocked_ns": shmb_peek(&s.blocked_ns),
                "blocked_why": _named(BLOCKS, shmb_peek32(&s.blocked_why))}

    def slots(self):
        """Those slots, as `slot` gives them, that are somebody's."""
        return [self.slot(n) for n in range(self.slots_max) if self.state(n) != "free"]


cdef tuple _sample(shmb_slot *s):
    durable = shmb_observe(&s.durable_position)  # before the log end, which is never below it
    return (_named(STATES, shmb_observe32(&s.state)), shmb_observe(&s.log_end_position), durable,
            shmb_peek(&s.ring_bytes), shmb_peek(&s.write_ns), _named(BLOCKS, shmb_peek32(&s.blocked_why)),
            shmb_peek(&s.blocked_ns))


def sample_at(size_t table, unsigned int slot):
    """As TableView.sample, with the slot's epoch in front, of the table mapped at `table`; and the writer's
    heartbeat behind. The caller keeps the mapping."""
    cdef shmb_slot *s = shmb_table_slot(<void *>table, slot)
    return (shmb_observe32(&s.slot_epoch), _sample(s), shmb_peek(&(<shmb_writer_head *>table).heartbeat_ns))


cdef str _named(tuple names, unsigned int value):
    return names[value] if value < len(names) else f"unknown ({value})"


def read_table(str path):
    """The head of a writer table as `TableView.head` gives it, with `slots` beside."""
    view = TableView(path)
    try:
        return {**view.head(), "slots": view.slots()}
    finally:
        view.close()


def read_ingress(str prefix, unsigned int ingress):
    """Positions of one ingress ring and its receipts; FileNotFoundError when either is gone."""
    cdef void *at
    found = {}
    for letter in "ir":
        fd = os.open(f"{_DIRECTORY}{prefix}-{letter}{ingress}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = shmb_map(fd, SHMB_PAGE, 0) if os.fstat(fd).st_size >= SHMB_PAGE else NULL
        finally:
            os.close(fd)
        if at == NULL:
            raise FileNotFoundError(errno.ENOENT, "not a whole ingress ring", f"{prefix}-{letter}{ingress}")
        if letter == "i":
            found["head"] = shmb_observe(&(<shmb_ingress_head *>at).head)
            found["capacity"] = (<shmb_ingress_head *>at).capacity
            found["client_pid"] = (<shmb_ingress_head *>at).client_pid
        else:
            found["tail"] = shmb_observe(&(<shmb_receipts_head *>at).tail)
            found["receipts"] = shmb_observe(&(<shmb_receipts_head *>at).receipts)
            found["detached"] = shmb_observe32(&(<shmb_receipts_head *>at).detached)
            found["slots"] = (<shmb_receipts_head *>at).slots
        munmap(at, SHMB_PAGE)
    return found
