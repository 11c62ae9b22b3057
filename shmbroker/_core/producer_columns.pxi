# send_many() of what is no list: arrays, Arrow data, and records with a partition each. Included by
# producer.pyx; columns.pyx says what is taken, columns.h has the loop.
#
# The GIL is held while a batch is encoded, as with a list, and given up only in the waits. Memory of
# an array may change meanwhile all the same, under a thread without the GIL: see columns.h.


@cython.final
cdef class Rows:
    """The records of one send_many() as columns, and how far they have been taken."""

    cdef Column values
    cdef Column keys        # None: none
    cdef Column times       # None: now
    cdef bytes partitions   # int32 each; None: the key's, or the caller's choice
    cdef shmb_walk value_walk
    cdef shmb_walk key_walk
    cdef shmb_walk time_walk
    cdef int64_t count
    cdef int64_t before     # records of the runs that were taken whole

    cdef bint next_run(self, shmb_run *run) noexcept:
        """The records as far as all columns go on in one piece; False at the end."""
        run.count = self.count - self.before
        if run.count == 0:
            return False
        run.values = shmb_walk_here(&self.value_walk, &run.count)
        run.keys = shmb_walk_here(&self.key_walk, &run.count)
        run.times = shmb_walk_here(&self.time_walk, &run.count)
        run.value_first = self.value_walk.at
        run.key_first = self.key_walk.at
        run.time_first = self.time_walk.at
        run.value_kind = self.values.c.kind
        run.key_kind = SHMB_COL_FIXED if self.keys is None else self.keys.c.kind
        run.partitions = NULL
        if self.partitions is not None:
            run.partitions = <const int32_t *>PyBytes_AS_STRING(self.partitions) + self.before
        return True

    cdef void took(self, int64_t count) noexcept:
        shmb_walk_on(&self.value_walk, count)
        shmb_walk_on(&self.key_walk, count)
        shmb_walk_on(&self.time_walk, count)
        self.before += count

    cdef int item(self, const shmb_run *run, int64_t i, shmb_item *item) except -1:
        """Record `i` of a run, by the exact rules."""
        cdef shmb_row row
        cdef shmb_row_status status = shmb_run_row_any(run, i, &row)
        if status != SHMB_ROWS_OK:
            role = "value" if status == SHMB_ROWS_BAD_VALUE else "key"
            raise self.refuse(i, ValueError, (
                "its timestamp is null" if status == SHMB_ROWS_NULL_TIME
                else f"its {role}'s offsets contradict the array's"))
        if row.value_bytes > INT32_MAX // 2 or row.key_bytes > INT32_MAX // 2:
            size = max(row.value_bytes, row.key_bytes)
            error = self.refuse(i, errors.RecordTooLarge,
                                f"a value or key of {size} bytes is larger than any topic allows")
            error.size_bytes, error.limit_bytes = size, INT32_MAX // 2
            raise error
        item.value, item.value_bytes = row.value, <int32_t>row.value_bytes
        item.key, item.key_bytes = row.key, <int32_t>row.key_bytes
        if run.times == NULL:
            item.timestamp = shmb_wall_ms()
        elif 0 <= row.timestamp < SHMB_TIMESTAMP_MAX:
            item.timestamp = row.timestamp
        else:
            raise self.refuse(i, ValueError,
                              f"timestamp {row.timestamp} is not in milliseconds since 1970")
        return 0

    cdef object refuse(self, int64_t i, kind, str why):
        at = self.before + i
        return kind(f"record {at}: {why}; {at} of {self.count} records were sent")


cdef Rows _rows(values, keys, timestamps, partitions):
    """The arguments of send_many() as columns; None when they are sequences, which the loops over
    lists take. Raises before anything is sent."""
    cdef Rows rows
    cdef Column value = column_of(values, "values")
    cdef Column key = None if keys is None else column_of(keys, "keys")
    cdef Column stamp = None if timestamps is None else times_of(timestamps, "timestamps")
    if value is None and key is None and stamp is None and partitions is None:
        return None
    rows = Rows.__new__(Rows)
    rows.values = _list_column(values, "value") if value is None else value
    rows.count = rows.values.count
    rows.value_walk.column = &rows.values.c
    if keys is not None:
        rows.keys = _list_column(keys, "key") if key is None else key
        rows.key_walk.column = &rows.keys.c
        _same_length(rows, "keys", rows.keys.count)
    if timestamps is not None:
        rows.times = _list_times(timestamps) if stamp is None else stamp
        rows.time_walk.column = &rows.times.c
        _same_length(rows, "timestamps", rows.times.count)
    if partitions is not None:
        rows.partitions = array("i", partitions).tobytes()
        _same_length(rows, "partitions", len(rows.partitions) // 4)
    return rows


cdef int _same_length(Rows rows, str name, int64_t count) except -1:
    if count != rows.count:
        raise ValueError(f"{count} {name} for {rows.count} values")
    return 0


cdef Column _list_column(objects, str role):
    """Any sequence of buffers and None; each is held until the column goes."""
    cdef Py_ssize_t i
    cdef const void *at
    cdef int32_t size
    cdef list held = []
    cdef tuple kept = tuple(objects)  # nobody else can take an element away meanwhile
    cdef Column made = slices_of(len(kept), [kept, held])
    cdef shmb_slice *slices = <shmb_slice *>made.c.chunks.data if kept else NULL
    for i in range(len(kept)):
        try:
            _point(&at, &size, kept[i], role, held)
        except TypeError as error:
            raise TypeError(f"{role} {i}: {error}; 0 of {len(kept)} records were sent") from None
        slices[i].at, slices[i].bytes = <const uint8_t *>at, size
    return made


cdef Column _list_times(timestamps):
    found = array("q", bytes(8 * len(timestamps)))
    for i, timestamp in enumerate(timestamps):
        try:
            found[i] = _milliseconds(timestamp)
        except (TypeError, ValueError) as error:
            raise type(error)(f"record {i}: {error}; 0 of {len(found)} records were sent") from None
    return times_of(found, "timestamps")


cdef int _send_rows(ManyReceipt receipt, Rows rows, partition) except -1:
    """Sends the rows: the first of a batch by the exact rules, what fits behind it in one loop."""
    cdef Lanes lanes = receipt._lanes
    cdef int32_t fixed = -1 if partition is None else _partition(lanes, partition), p
    cdef shmb_run run
    cdef shmb_item item
    cdef int64_t i
    item.headers = NULL
    item.headers_bytes = 0
    item.headers_count = 0
    while rows.next_run(&run):
        i = 0
        while i < run.count:
            rows.item(&run, i, &item)
            if run.partitions != NULL:
                p = run.partitions[i]
                if p >= lanes.partitions or p < 0:
                    p = _partition(lanes, p)
            else:
                p = fixed if fixed >= 0 else lanes.choose(&item)
            i = _send_stretch(receipt, rows, &run, i, &item, p, fixed)
        rows.took(run.count)
    return 0


cdef int64_t _send_stretch(ManyReceipt receipt, Rows rows, const shmb_run *run, int64_t i,
                           const shmb_item *item, int32_t p, int32_t fixed) except -1:
    """Puts record `i` into partition `p`, and those behind it that belong there and fit its batch;
    returns the next."""
    cdef Lanes lanes = receipt._lanes
    cdef shmb_lane *lane = lanes.lanes[p]
    cdef shmb_outlet *o
    cdef shmb_pbatch *b
    cdef int32_t index, before
    cdef shmb_put rc, after = SHMB_PUT_OK
    cdef shmb_rows_batch open
    if (lane == NULL or lane.stale
            or shmb_item_bound(item) + SHMB_BATCH_HEADER_BYTES > lanes.max_bytes):
        lane = _lane_for(lanes, p, item)
    o = shmb_lane_lock(lane)
    rc = shmb_lane_put(lane, item, &b, &index)
    if rc == SHMB_PUT_OK:
        try:
            receipt.add(b, index, 1)
            i += 1
            before = open.count = b.count
            open.at, open.limit = lane.at, lane.limit
            open.partition = p
            open.partitions = lanes.partitions if fixed < 0 and lanes.partitions > 1 else 0
            open.first_timestamp, open.max_timestamp = b.first_timestamp, b.max_timestamp
            open.now = item.timestamp
            i = shmb_run_encode(run, i, &open)
            lane.at = open.at
            b.count = open.count
            b.max_timestamp = open.max_timestamp
            if b.count > before:
                receipt.add(b, before, b.count - before)
            if rows.before + i == rows.count or shmb_ingress_dry(&o.ring):
                after = shmb_lane_after(lane)
        finally:
            shmb_unlock(&o.lock)
        if after > SHMB_PUT_NO_ROOM:
            lanes.sender.after_slow(lanes, lane, after)
    else:
        shmb_unlock(&o.lock)
        _add_slow(receipt, lane, item, rc)
        i += 1
    shmb_tender_poke(lane.out)
    return i
