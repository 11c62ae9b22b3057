# Part of columns.pyx: Arrow data by `__arrow_c_array__` and `__arrow_c_stream__`.
#
# The structs are moved out of their capsules and released with the objects here, errors or not.


@cython.final
cdef class _Schema:
    """An ArrowSchema that was moved here."""

    cdef ArrowSchema s

    def __dealloc__(self):
        if self.s.release != NULL:
            self.s.release(&self.s)


@cython.final
cdef class _Array:
    """An ArrowArray that was moved here."""

    cdef ArrowArray a

    def __dealloc__(self):
        if self.a.release != NULL:
            self.a.release(&self.a)


@cython.final
cdef class _Stream:
    """An ArrowArrayStream that was moved here."""

    cdef ArrowArrayStream s

    def __dealloc__(self):
        if self.s.release != NULL:
            self.s.release(&self.s)


cdef class _Kind:
    """What a schema's format string says."""

    cdef shmb_column_kind kind
    cdef int64_t width    # FIXED: bytes an element
    cdef int64_t times    # of times: ms are value * times / over
    cdef int64_t over


cdef _Kind _kind_of(const ArrowSchema *s, str role, bint integers):
    cdef _Kind kind = _Kind()
    if s.format == NULL:
        raise ValueError(f"{role} is an Arrow array without a format")
    form = (<bytes>s.format).decode("utf-8", "replace")
    kind.times = kind.over = 1
    if form.startswith("+s"):
        raise TypeError(f"{role} is an Arrow table or struct array, expected one column of it, "
                        "for example table['value']")
    if s.dictionary != NULL:
        raise TypeError(f"{role} is a dictionary-encoded Arrow array, expected "
                        f"{_expected(integers)}; decode it, for example with .dictionary_decode()")
    if integers:
        kind.kind, kind.width = SHMB_COL_FIXED, 8
        if form == "l" or form.startswith("tsm:"):
            return kind
        if form.startswith("tss:"):
            kind.times = 1000
        elif form.startswith("tsu:"):
            kind.over = 1000
        elif form.startswith("tsn:"):
            kind.over = 1_000_000
        else:
            raise TypeError(
                f"{role} is an Arrow array of format {form!r}, expected {_expected(True)}")
        return kind
    if form in ("z", "u"):
        kind.kind = SHMB_COL_OFFSETS32
    elif form in ("Z", "U"):
        kind.kind = SHMB_COL_OFFSETS64
    elif form in ("vz", "vu"):
        kind.kind = SHMB_COL_VIEWS
    elif re.fullmatch(r"w:\d{1,9}", form):
        kind.kind, kind.width = SHMB_COL_FIXED, int(form[2:])
    else:
        raise TypeError(f"{role} is an Arrow array of format {form!r}, expected {_expected(False)}")
    return kind


cdef str _expected(bint integers):
    return "int64 (ms) or timestamps" if integers else _TAKEN


cdef Column _of_array(object what, str role, bint integers):
    cdef _Schema schema = _Schema()
    cdef _Array array = _Array()
    cdef ArrowSchema *from_schema
    cdef ArrowArray *from_array
    cdef _Kind kind
    cdef Column made
    capsules = what.__arrow_c_array__()
    if not isinstance(capsules, tuple) or len(capsules) != 2:
        raise TypeError(f"{role}: __arrow_c_array__() returned no pair of capsules")
    from_schema = <ArrowSchema *>PyCapsule_GetPointer(capsules[0], "arrow_schema")
    from_array = <ArrowArray *>PyCapsule_GetPointer(capsules[1], "arrow_array")
    if from_schema.release == NULL or from_array.release == NULL:
        raise ValueError(f"{role} is an Arrow array that was released already")
    schema.s, array.a = from_schema[0], from_array[0]
    from_schema.release = NULL
    from_array.release = NULL
    kind = _kind_of(&schema.s, role, integers)
    made = _new(kind.kind)
    _add_array(made, array, kind, role)
    return made


cdef Column _of_stream(object what, str role, bint integers):
    """All arrays of a stream; it is read to its end."""
    cdef _Stream stream = _Stream()
    cdef _Schema schema = _Schema()
    cdef _Array array
    cdef ArrowArrayStream *source
    cdef _Kind kind
    cdef Column made
    cdef int error
    capsule = what.__arrow_c_stream__()  # kept until it has been emptied
    source = <ArrowArrayStream *>PyCapsule_GetPointer(capsule, "arrow_array_stream")
    if source.release == NULL:
        raise ValueError(f"{role} is an Arrow stream that was released already")
    stream.s = source[0]
    source.release = NULL
    error = stream.s.get_schema(&stream.s, &schema.s)
    if error:
        schema.s.release = NULL
        raise _failed(stream, role, error)
    kind = _kind_of(&schema.s, role, integers)
    made = _new(kind.kind)
    while True:
        array = _Array()
        error = stream.s.get_next(&stream.s, &array.a)
        if error:
            array.a.release = NULL
            raise _failed(stream, role, error)
        if array.a.release == NULL:
            return made
        _add_array(made, array, kind, role)


cdef object _failed(_Stream stream, str role, int error):
    cdef const char *said = stream.s.get_last_error(&stream.s)
    text = f"error {error}" if said == NULL else (<bytes>said).decode("utf-8", "replace")
    return ValueError(f"the Arrow stream of {role} failed: {text}")


cdef int _add_array(Column column, _Array array, _Kind kind, str role) except -1:
    """The chunk of an array, after what it says of itself was found possible."""
    cdef ArrowArray *a = &array.a
    cdef int64_t least = 3 if kind.kind != SHMB_COL_FIXED else 2
    cdef const uint8_t *data
    cdef shmb_chunk c
    if a.length < 0 or a.offset < 0 or a.length > _LARGEST or a.offset > _LARGEST:
        raise ValueError(f"{role}: an Arrow array of length {a.length} at offset {a.offset}")
    if a.null_count < -1 or a.null_count > a.length:
        raise ValueError(f"{role}: an Arrow array of {a.length} elements has {a.null_count} nulls")
    if a.length == 0:
        return 0
    if a.n_children or a.dictionary != NULL:
        raise ValueError(f"{role}: an Arrow array of byte strings has children or a dictionary")
    if a.buffers == NULL or a.n_buffers < least or (
            a.n_buffers > least and kind.kind != SHMB_COL_VIEWS):
        raise ValueError(f"{role}: an Arrow array of {a.n_buffers} buffers, expected {least}")
    memset(&c, 0, sizeof(c))
    c.count = a.length
    if a.null_count != 0:
        c.validity = <const uint8_t *>a.buffers[0]
        c.validity_bit = a.offset
        if c.validity == NULL and a.null_count > 0:
            raise ValueError(f"{role}: an Arrow array with {a.null_count} nulls lacks its bitmap")
    data = <const uint8_t *>a.buffers[1]
    if kind.kind == SHMB_COL_FIXED:
        c.width = kind.width
        if data == NULL and c.width:
            raise ValueError(f"{role}: an Arrow array of {a.length} elements lacks its data")
        if c.width and a.length + a.offset > _LARGEST // c.width:
            raise ValueError(f"{role}: an Arrow array of {a.length} elements of {c.width} bytes")
        c.data = data + a.offset * c.width if data != NULL else data
    elif data == NULL:
        raise ValueError(f"{role}: an Arrow array of {a.length} elements lacks its offsets")
    elif kind.kind == SHMB_COL_VIEWS:
        c.data = data + a.offset * SHMB_VIEW_BYTES
        c.buffer_count = a.n_buffers - 3
        c.buffers = a.buffers + 2
        c.buffer_sizes = <const uint8_t *>a.buffers[a.n_buffers - 1]
        if c.buffer_count and c.buffer_sizes == NULL:
            raise ValueError(f"{role}: an Arrow array of views lacks the sizes of its buffers")
    else:
        _take_offsets(&c, a, kind.kind, data, role)
    if kind.times == kind.over:
        column._owners.append(array)
    else:
        _scale(column, &c, kind)
        if c.validity != NULL:
            column._owners.append(array)
    column.add_chunk(a.length)[0] = c
    return 0


cdef int _take_offsets(shmb_chunk *c, const ArrowArray *a, shmb_column_kind kind,
                       const uint8_t *offsets, str role) except -1:
    cdef int32_t small
    if kind == SHMB_COL_OFFSETS32:
        c.offsets = offsets + 4 * a.offset
        memcpy(&small, c.offsets, 4)
        c.begin = small
        memcpy(&small, c.offsets + 4 * a.length, 4)
        c.end = small
    else:
        c.offsets = offsets + 8 * a.offset
        c.begin = shmb_load64(c.offsets)
        c.end = shmb_load64(c.offsets + 8 * a.length)
    c.data = <const uint8_t *>a.buffers[2]
    if c.begin < 0 or c.end < c.begin or c.end > _LARGEST:
        raise ValueError(f"{role}: an Arrow array whose offsets go from {c.begin} to {c.end}")
    if c.data == NULL and c.end > c.begin:
        raise ValueError(f"{role}: an Arrow array with {c.end - c.begin} bytes of data lacks them")
    return 0


cdef int _scale(Column column, shmb_chunk *c, _Kind kind) except -1:
    """Times of another unit, as milliseconds; what has none as -1, which no record may bear."""
    cdef int64_t i, value
    memory = PyBytes_FromStringAndSize(NULL, c.count * 8)
    cdef int64_t *to = <int64_t *>PyBytes_AS_STRING(memory)
    for i in range(c.count):
        value = shmb_load64(c.data + 8 * i)
        if value < 0 or value >= SHMB_TIMESTAMP_MAX // kind.times:
            to[i] = -1
        else:
            to[i] = value * kind.times // kind.over
    column._owners.append(memory)
    c.data = <const uint8_t *>to
    return 0
