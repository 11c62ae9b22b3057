# Part of reader.pyx: a RecordBatch as Arrow data and as arrays, all in memory of its own.
#
# The records are decoded in one pass into one block (arrow_out.h), which Arrow arrays and NumPy's
# share afterwards. No Python object is made for a record, and the GIL is not held meanwhile.


cdef int fill_block(shmb_out_block *block, const uint8_t *p, const uint8_t *end, int64_t start,
                    size_t size, const uint8_t **bad) noexcept nogil:
    """Adds the uncompressed batches of [p, end); returns arrow_out.h's status, and which was bad."""
    cdef shmb_record_cursor cursor
    cdef int status
    while p < end:
        if not shmb_batch_attributes(p) & SHMB_ATTR_CONTROL:
            shmb_batch_cursor_init(&cursor, p)
            status = shmb_block_add(block, p, &cursor, start, size)
            if status != SHMB_RECORD_END:
                bad[0] = p
                return status
        p += shmb_batch_size(p)
    return SHMB_RECORD_END


cdef shmb_out_block *block_of(RecordBatch batch, bint large) except NULL:
    """All records of the batch; the caller owns one reference."""
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(batch._raw) + batch._begin
    cdef const uint8_t *end = <const uint8_t *>PyBytes_AS_STRING(batch._raw) + batch._end
    cdef const uint8_t *bad = NULL
    cdef shmb_record_cursor cursor
    cdef shmb_out_block *block
    cdef Py_ssize_t room = 0
    cdef size_t size = 0
    cdef int status = SHMB_RECORD_END
    cdef KafkaBatch one
    cdef list opened = batch.batches() if batch._compressed else None
    if opened is None:  # no record is smaller, so what a header promises beyond that is a lie
        size = <size_t>(end - p)
        room = min(batch._room, <Py_ssize_t>(size // SHMB_RECORD_OVERHEAD_MIN))
    else:
        for one in opened:
            room += one._room()
            one._open(&cursor)
            size += <size_t>(cursor.end - cursor.p)
    block = shmb_block_new(room, size, large or size > INT32_MAX)
    if block == NULL:
        raise MemoryError(f"no memory for {size} bytes of records")
    try:
        if opened is None:
            with nogil:
                status = fill_block(block, p, end, batch.base_offset, size, &bad)
        else:
            for one in opened:
                one._open(&cursor)
                bad = one._p
                with nogil:
                    status = shmb_block_add(block, bad, &cursor, batch.base_offset, size)
                if status != SHMB_RECORD_END:
                    break
        if status == SHMB_OUT_NO_MEMORY:
            raise MemoryError(f"no memory for {size} bytes of keys")
        if status != SHMB_RECORD_END:
            raise_record(status, bad)
    except BaseException:
        shmb_block_release(block)
        raise
    shmb_block_end(block)
    return block


cdef object numbers_of(RecordBatch batch, bint timestamps):
    """The offsets or the timestamps as array.array('q')."""
    cdef carray.array out
    cdef shmb_out_block *block = block_of(batch, False)
    try:
        out = carray.clone(carray.array("q"), block.count, False)
        if block.count:
            memcpy(out.data.as_voidptr, block.timestamps if timestamps else block.offsets,
                   <size_t>block.count * 8)
    finally:
        shmb_block_release(block)
    return out


@cython.final
cdef class ArrowBatch:
    """Offset, timestamp, key and value of a batch's records as Arrow data, in memory of its own.

    Any Arrow library takes it: `pyarrow.record_batch(batch.arrow())`, `polars.DataFrame(…)`. They
    share the memory, which goes with the last of them. Thread-safe.
    """

    cdef shmb_out_block *_block

    def __init__(self, *args):
        raise TypeError("made by RecordBatch.arrow()")

    def __dealloc__(self):
        shmb_block_release(self._block)

    def __len__(self):
        return self._block.count

    def __repr__(self):
        return f"ArrowBatch({self._block.count} records: offset, timestamp, key, value)"

    def __arrow_c_schema__(self):
        """The Arrow type: a struct of offset (int64), timestamp (ms, UTC), key, value (binary)."""
        cdef ArrowSchema *schema = <ArrowSchema *>malloc(sizeof(ArrowSchema))
        if schema == NULL or not shmb_out_schema(schema, self._block.large):
            free(schema)
            raise MemoryError()
        return PyCapsule_New(schema, "arrow_schema", &_drop_schema)

    def __arrow_c_array__(self, requested_schema=None):
        """(schema, array) capsules; `requested_schema` is not looked at, as the protocol allows."""
        cdef ArrowArray *made = <ArrowArray *>malloc(sizeof(ArrowArray))
        if made == NULL or not shmb_out_array(made, self._block):
            free(made)
            raise MemoryError()
        capsule = PyCapsule_New(made, "arrow_array", &_drop_array)
        return self.__arrow_c_schema__(), capsule


cdef void _drop_schema(object capsule) noexcept:
    cdef ArrowSchema *schema = <ArrowSchema *>PyCapsule_GetPointer(capsule, "arrow_schema")
    if schema.release != NULL:
        schema.release(schema)
    free(schema)


cdef void _drop_array(object capsule) noexcept:
    cdef ArrowArray *made = <ArrowArray *>PyCapsule_GetPointer(capsule, "arrow_array")
    if made.release != NULL:
        made.release(made)
    free(made)


cdef ArrowBatch arrow_of(RecordBatch batch, bint large):
    cdef ArrowBatch made = ArrowBatch.__new__(ArrowBatch)
    made._block = block_of(batch, large)
    return made


@cython.final
cdef class Values:
    """The bytes of a batch's values, one behind the other, as a writable buffer for NumPy."""

    cdef shmb_out_block *_block

    def __dealloc__(self):
        shmb_block_release(self._block)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._block.values.data, <Py_ssize_t>self._block.values.used,
                          False, flags)

    cdef Py_ssize_t width(self, RecordBatch batch) except -1:
        """The length that all values have; ValueError names the first that has another."""
        cdef shmb_out_block *b = self._block
        cdef int64_t wrong, has
        if b.count == 0:
            return 0
        wrong = shmb_block_first_other(b)
        if wrong >= 0:
            has = shmb_block_value_bytes(b, wrong)
            what = f"{has} bytes" if has >= 0 else "none (a tombstone)"
            rule = "the values before have" if wrong else "an array needs"
            width = shmb_block_value_bytes(b, 0)
            raise ValueError(
                f"the value at offset {b.offsets[wrong]} of {batch.topic}-{batch.partition} has "
                f"{what}, {rule} {width if wrong else 'bytes'}: batch.array() is for values of one length; "
                "batch.values() and batch.arrow() take any")
        return shmb_block_value_bytes(b, 0)


cdef object array_of(RecordBatch batch, dtype):
    cdef Values values = Values.__new__(Values)
    cdef Py_ssize_t width, size
    try:
        numpy = import_module("numpy")
    except ImportError as error:
        raise ImportError("batch.array() needs NumPy, which is not installed: pip install numpy; "
                          "batch.values() and batch.arrow() need nothing") from error
    kind = numpy.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"dtype {kind} has Python objects, which a value can't hold")
    values._block = block_of(batch, False)
    width = values.width(batch)
    if kind.itemsize == 0 and kind.kind in "SV":
        kind = numpy.dtype(f"{kind.kind}{max(1, width)}")
    size = kind.itemsize
    if width != size and (size == 0 or width == 0 or width % size):
        if len(batch):
            raise ValueError(
                f"the values of {batch.topic}-{batch.partition} from offset {batch.base_offset} on "
                f"have {width} bytes, which dtype {kind} of {size} bytes does not divide")
        width = size
    items = numpy.frombuffer(values, kind) if values._block.values.used else numpy.empty(0, kind)
    return items if width == size else items.reshape(-1, width // size)
