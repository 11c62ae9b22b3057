# One topic's partitions as one producer fills them. Included by producer.pyx.


@cython.final
cdef class Lanes:
    """A topic's partitions as one producer fills them."""

    def __cinit__(self, Sender sender, info):
        self._generation = shmb_fork_generation
        self.sender = sender
        self.name = info.name
        self.id = info.id if sender.foreign else None
        self.max_bytes = int(info.config.get("max.message.bytes", _DEFAULT_MAX_BYTES))
        self.partitions = len(info.partitions)
        self.lanes = <shmb_lane **>calloc(max(self.partitions, 1), sizeof(shmb_lane *))
        if self.lanes == NULL:
            raise MemoryError()
        self.sticky = <int32_t>(rand_r(&_seed) % self.partitions)

    def __dealloc__(self):
        cdef int32_t p
        cdef shmb_lane *lane
        if self._generation != shmb_fork_generation or self.lanes == NULL:
            return
        for p in range(self.partitions):
            lane = self.lanes[p]
            if lane != NULL:
                shmb_lane_forget(lane)
                shmb_lane_release(lane)
        free(self.lanes)

    cdef int32_t choose(self, const shmb_item *item):
        cdef shmb_lane *lane
        if item.key_bytes >= 0:
            return shmb_partition_for_key(item.key, item.key_bytes, self.partitions)
        if self.partitions > 1:
            lane = self.lanes[self.sticky]
            if lane != NULL and lane.open == NULL:  # its batch is sealed: another partition's turn
                self.sticky = <int32_t>(rand_r(&_seed) % self.partitions)
        return self.sticky

    cdef place(self, int32_t partition):
        """Where the partition is (PartitionInfo). UnknownTopic, also when it is another topic of the same name
        and the lanes are of this one only."""
        info = self.sender.metadata.partition(self.name, partition)
        if self.id is not None and self.sender.metadata.get(self.name).id != self.id:
            raise errors.UnknownTopic(self.name)
        return info

    def has(self, partition):
        """Asks the broker if need be; raises UnknownTopic without that partition."""
        _partition(self, partition)

    cdef int grow(self) except -1:
        """Asks whether the topic has got more partitions, or another max.message.bytes."""
        cdef int32_t n, p
        cdef void *more
        cdef shmb_lane *lane
        cdef shmb_outlet *o
        self.sender.metadata.forget(self.name)
        info = self.sender.metadata.get(self.name)
        n = len(info.partitions)
        with self.sender.outlets.mutex:
            self.max_bytes = int(info.config.get("max.message.bytes", _DEFAULT_MAX_BYTES))
            for p in range(self.partitions):
                lane = self.lanes[p]
                if lane != NULL:
                    o = shmb_lane_lock(lane)
                    _limit(self, lane, o.ring.capacity)
                    shmb_unlock(&o.lock)
            if n > self.partitions:
                more = realloc(self.lanes, n * sizeof(shmb_lane *))
                if more == NULL:
                    raise MemoryError()
                self.lanes = <shmb_lane **>more
                for p in range(self.partitions, n):
                    self.lanes[p] = NULL
                self.partitions = n
        return 0

    cdef shmb_lane *lane(self, int32_t partition) except NULL:
        """The lane, opened at its first use; asked for again where a receipt said it has moved."""
        cdef shmb_lane *lane = self.lanes[partition]
        cdef Sender sender = self.sender
        cdef Outlets outlets = sender.outlets
        if lane != NULL and not lane.stale:
            return lane
        with outlets.mutex:
            lane = self.lanes[partition]
            if lane != NULL:
                if lane.stale:
                    self.find_again(lane, partition)
                return lane
            if shmb_observe32(outlets.epoch) != outlets.confirmed:
                outlets.confirm(None)
            info = self.place(partition)
            if sender.idempotent and sender.producer_id < 0:
                sender.producer_id = sender.connection.request("init_producer")["producer_id"]
            outlet = outlets.get(info.writer)
            lane = <shmb_lane *>calloc(1, sizeof(shmb_lane))
            if lane == NULL:
                raise MemoryError()
            shmb_poke32(&lane.refs, 1)
            lane.partition = partition
            lane.acks = sender.acks
            lane.codec = sender.codec
            lane.linger_ticks = sender.linger_ms * 1000 * shmb_ticks_per_us
            lane.producer_id = sender.producer_id if sender.idempotent else -1
            lane.chain = shmb_chain_begin()
            lane.delivery_ns = sender.delivery_ns
            _place(self, lane, info, outlet, False)
            self.lanes[partition] = lane
            return lane

    cdef int find_again(self, shmb_lane *lane, int32_t partition) except -1:
        self.sender.metadata.forget(self.name)
        info = self.place(partition)  # UnknownTopic: it was deleted
        lane.stale = 0
        try:
            outlet = self.sender.outlets.get(info.writer)
        except BaseException:
            lane.stale = 1  # its old ring may be gone: nothing may be put there
            raise
        if info.slot != lane.slot_index or info.slot_epoch != lane.slot_epoch or outlet.o != lane.out:
            while not shmb_lane_move_begin(lane):
                with nogil:
                    shmb_lane_wait_busy(lane)
            _place(self, lane, info, outlet, True)
            if not lane.foreign:
                lane.epoch += 1
                lane.sequence = 0
            shmb_lane_move_end(lane)
        return 0
