"""Checkpoints through shared memory: the client's end, which stores, and the acceptor's, which looks.

`Checkpoints` is one group member's, in its client's process: its objects, mapped writable, and a slot for
each partition that it has. `CheckpointsView` is one such object in the acceptor, mapped read-only. What
is stored and why it can't be torn is in checkpoint.h.

Neither is thread-safe: the first is the consumer's thread's, the second the acceptor's. Nothing that the
view gives out is trusted: a client may have written anything.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.mman cimport munmap

import os

_EPOCHS_KEPT = 16  # leader epochs whose records were handed out and may still be checkpointed


@cython.final
cdef class Kept:
    """One partition's slot, as long as the member has the partition."""

    def __cinit__(self):
        self.stored = self.handed = -1
        self._epoch_from = INT64_MAX
        self._epoch_now = -1
        self._epochs_before = []

    @property
    def held(self):
        """Whether the member still has the partition; else nothing is stored any more."""
        return self._slot != NULL

    cdef int32_t _epoch_of(self, int64_t offset):
        """The leader epoch under which the record at `offset` was handed out; -1: it was not."""
        if offset >= self._epoch_from:
            return self._epoch_now
        for first, leader_epoch in reversed(self._epochs_before):
            if offset >= first:
                return leader_epoch
        return -1

    cdef int _note(self, int64_t first, int32_t leader_epoch) except -1:
        """Records from `first` on are being handed out, under this leader epoch."""
        if first >= self._epoch_from and leader_epoch == self._epoch_now:
            return 0
        before = [pair for pair in self._epochs_before if pair[0] < first]
        if self._epoch_from < first:
            before.append((self._epoch_from, self._epoch_now))
        self._epochs_before = before[-_EPOCHS_KEPT:]
        self._epoch_from, self._epoch_now = first, leader_epoch
        return 0

    cdef int _put(self, int64_t offset) except -1:
        """Stores `offset` as the next to be read; 0 when the partition was let go."""
        cdef int32_t leader_epoch
        if self._slot == NULL:
            return 0
        leader_epoch = self._epoch_of(offset - 1)
        if self._turned and leader_epoch == self._leader_epoch:
            shmb_checkpoint_store(self._head, self._slot, <uint64_t>offset)
        else:
            self._leader_epoch, self._turned = leader_epoch, True
            shmb_checkpoint_turn(self._head, self._slot,
                                 <const uint8_t *>PyBytes_AS_STRING(self._topic_id),
                                 <uint32_t>self.partition, self.member_epoch, leader_epoch,
                                 <uint64_t>offset)
        self.stored = offset
        return 1

    cdef int _place(self, object mapping, uint32_t number) except -1:
        cdef size_t address = mapping.address
        self._mapping, self._number = mapping, number
        self._head = <shmb_checkpoints_head *>address
        self._slot = shmb_checkpoint_at(<void *>address, number)
        self._turned = False
        return 0

    def __repr__(self):
        return f"<checkpoint of {self.topic}-{self.partition} at {self.stored}>"


cdef class Checkpoints:
    """All slots of one member, in as many objects as it has needed."""

    def __cinit__(self):
        self._kept, self._mappings, self._free, self._open = {}, [], [], []
        self._dropped, self._dropped_before = [], []

    @property
    def mappings(self):
        """The objects, as they were added."""
        return list(self._mappings)

    def add(self, mapping not None):
        """One more object of this member, mapped writable: room for more partitions."""
        self._mappings.append(mapping)
        room = shmb_checkpoints_room(mapping.bytes)
        self._free[:0] = [(mapping, number) for number in reversed(range(room))]

    @property
    def room(self):
        """For how many partitions more there are slots."""
        return len(self._free)

    def replace(self, mapping not None):
        """The objects so far are gone: what was stored is stored again in this one, for all that the
        member has. ValueError when it has more than there is room for."""
        cdef Kept kept
        if len(self._kept) > shmb_checkpoints_room(mapping.bytes):
            raise ValueError(f"{len(self._kept)} partitions need more slots")
        self._mappings, self._free, self._dropped, self._dropped_before = [], [], [], []
        self.add(mapping)
        for kept in self._kept.values():
            self._give(kept)
            if kept.stored >= 0:
                kept._put(kept.stored)

    def take(self, str topic not None, bytes topic_id not None, int32_t partition,
             unsigned long long member_epoch):
        """The member has this partition since `member_epoch`; its slot says nothing yet.

        Taken anew under a higher epoch, what was stored counts no more. ValueError without room.
        """
        cdef Kept kept = self._kept.get((topic, partition))
        if len(topic_id) != 16:
            raise ValueError("a topic id is 16 bytes")
        if kept is not None:
            if kept.member_epoch >= member_epoch and kept._topic_id == topic_id:
                return kept
            self.drop(topic, partition)
        if not self._free:
            raise ValueError(f"no slot is left for {topic}-{partition}")
        kept = Kept.__new__(Kept)
        kept.topic, kept.partition, kept._topic_id = topic, partition, topic_id
        kept.member_epoch = member_epoch
        self._give(kept)
        self._kept[(topic, partition)] = kept
        return kept

    def drop(self, str topic not None, int32_t partition):
        """The member lets the partition go: nothing is stored for it any more. What was stored stands
        in its slot until that is given on, behind the `recycle` after next."""
        cdef Kept kept = self._kept.pop((topic, partition), None)
        if kept is None:
            return
        self._dropped.append((kept._mapping, kept._number))
        kept._slot, kept._head, kept._mapping = NULL, NULL, None
        self._last = None
        if kept._open:
            self._open.remove(kept)

    def recycle(self):
        """To be called before an assignment is taken up. What was dropped while the last one was, the
        acceptor has heard of and looked at: it gives nothing before. So those slots are free."""
        self._free += self._dropped_before
        self._dropped_before, self._dropped = self._dropped, []

    def close(self):
        """Lets all go; nothing is stored any more."""
        for topic, partition in list(self._kept):
            self.drop(topic, partition)
        self._mappings, self._free, self._dropped, self._dropped_before = [], [], [], []

    def kept(self):
        """(topic, partition) of all slots in use."""
        return list(self._kept)

    cdef int _give(self, Kept kept) except -1:
        mapping, number = self._free.pop()
        return kept._place(mapping, number)

    cdef Kept _find(self, str topic, int32_t partition):
        """The partition's slot; None: the member has it not."""
        cdef Kept last = self._last
        if last is not None and last.partition == partition and last.topic is topic:
            return last
        self._last = last = self._kept.get((topic, partition))
        return last

    def note(self, str topic not None, int32_t partition, long long first, int32_t leader_epoch):
        """Records of the partition are about to be handed out from offset `first` on, all under one
        leader epoch; its Kept, or None."""
        cdef Kept kept = self._find(topic, partition)
        if kept is not None:
            kept._note(first, leader_epoch)
            if not kept._open:
                kept._open = True
                self._open.append(kept)
        return kept

    def store(self, str topic not None, int32_t partition, long long offset):
        """Stores `offset` as the partition's next to be read; False when the member has it not."""
        cdef Kept kept = self._find(topic, partition)
        if offset < 0:
            raise ValueError(f"offsets begin at 0: {offset}")
        return kept is not None and kept._put(offset) == 1

    def store_handed(self):
        """Stores for each partition what is behind the last record handed out since the last call."""
        cdef Kept kept
        cdef Py_ssize_t i
        for i in range(len(self._open)):
            kept = self._open[i]
            kept._open = False
            if kept.handed >= 0:
                kept._put(kept.handed)
        self._open.clear()

    def committed(self, str topic not None, int32_t partition, long long offset):
        """Another way of committing has made `offset` durable: where there is a checkpoint, it follows,
        so that a broker that reads the slots again does not go back to it."""
        cdef Kept kept = self._find(topic, partition)
        if kept is not None and kept.stored >= 0 and kept.stored != offset:
            kept._put(offset)

    def sought(self, str topic not None, int32_t partition):
        """The partition is read from elsewhere: what was handed out before is not stored by itself.
        Its Kept, or None."""
        cdef Kept kept = self._find(topic, partition)
        if kept is not None:
            kept.handed = -1
        return kept


@cython.final
cdef class CheckpointsView:
    """One object in the acceptor; see `ShmObject` for its life. ValueError when its head says what no
    acceptor wrote."""

    def __init__(self, str name not None, int fd):
        cdef shmb_checkpoints_head *head
        if self._at != NULL:
            raise TypeError("a CheckpointsView is immutable")
        self.name = name
        self._bytes = os.fstat(fd).st_size
        self._at = shmb_map(fd, self._bytes, 0)
        if self._at == NULL:
            raise MemoryError(f"{name} can't be mapped")
        head = <shmb_checkpoints_head *>self._at
        # The client may write here: lengths are read once, and the room is what the size says.
        group_bytes, member_bytes = int(head.group_bytes), int(head.member_bytes)
        if group_bytes + member_bytes > SHMB_CHECKPOINT_NAMES_MAX:
            raise ValueError(f"{name} names no member")
        names = (<const char *>head.names)[:group_bytes + member_bytes]
        try:
            self.group = names[:group_bytes].decode()
            self.member = names[group_bytes:].decode()
        except UnicodeDecodeError:
            raise ValueError(f"{name} names no member") from None
        self.client = head.client
        self.slots = shmb_checkpoints_room(self._bytes)
        self._again = True
        self._seen = <shmb_checkpoint_seen *>calloc(self.slots, sizeof(shmb_checkpoint_seen))
        if self._seen == NULL:
            raise MemoryError()

    def __dealloc__(self):
        self._close()

    def close(self):
        """Unmaps; `look` raises ValueError afterwards."""
        self._close()

    cdef void _close(self) noexcept:
        if self._at != NULL:
            munmap(self._at, self._bytes)
            self._at = NULL
        free(self._seen)
        self._seen = NULL

    @property
    def stirred(self):
        """Whether something may have been stored since the last look. Costs one load."""
        return self._at != NULL and (
            self._again
            or shmb_observe(&(<shmb_checkpoints_head *>self._at).changes) != self._changes)

    def look(self, bint everything=False):
        """What was stored since the last look: rows of (slot, topic id as hex, partition, member epoch,
        offset, leader epoch). `everything`: also if the object says that there is nothing, for a client
        that may have been killed between two stores."""
        cdef shmb_checkpoint_pair pair
        cdef uint64_t changes, offset
        cdef uint32_t n
        cdef int found
        if self._at == NULL:
            raise ValueError(f"{self.name} is closed")
        rows = []
        changes = shmb_observe(&(<shmb_checkpoints_head *>self._at).changes)
        if changes == self._changes and not self._again and not everything:
            return rows
        self._changes, self._again = changes, False
        for n in range(self.slots):
            found = shmb_checkpoint_look(shmb_checkpoint_at(self._at, n), &self._seen[n], &pair)
            if found == SHMB_CHECKPOINT_RESTLESS:
                self._again = True
            if found != SHMB_CHECKPOINT_NEW:
                continue
            offset = shmb_peek(&pair.offset)
            if offset > <uint64_t>INT64_MAX or pair.leader_epoch < -1 or pair.partition > 0x7fffffff:
                raise ValueError(f"{self.name}: slot {n} holds no checkpoint")
            rows.append((n, (<char *>pair.topic_id)[:16].hex(), pair.partition, pair.member_epoch,
                         <int64_t>offset, pair.leader_epoch))
        return rows

    def forget(self, unsigned int slot):
        """What the slot said last is to be told again at the next look."""
        if slot < self.slots and self._seen != NULL:
            self._seen[slot].turn = 0
            self._again = True
