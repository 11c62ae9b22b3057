"""Records and their headers; a part of batch.pyx."""

cdef list decode_headers(bytes encoded, int32_t count):
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(encoded)
    cdef const uint8_t *end = p + PyBytes_GET_SIZE(encoded)
    cdef const uint8_t *key
    cdef const uint8_t *value
    cdef int32_t key_len, val_len
    cdef list headers = []
    for _ in range(count):
        p = shmb_header_get(p, end, &key, &key_len, &value, &val_len)
        if p == NULL:
            raise CorruptBatch("record's headers are malformed")
        headers.append(((<const char *>key)[:key_len].decode("utf-8", "surrogateescape"),
                        None if val_len < 0 else (<const char *>value)[:val_len]))
    return headers


cdef bytes encode_headers(object headers, int32_t *count):
    """Encodes (str, bytes or None) pairs, in order; b"" for none. Sets how many."""
    cdef list pairs = []
    cdef size_t size = 0
    cdef bytes out, name
    cdef uint8_t *p
    count[0] = 0
    if not headers:
        return b""
    for key, value in headers:
        name = (<str?>key).encode("utf-8", "surrogateescape")
        if value is not None and type(value) is not bytes:
            value = bytes(memoryview(value))
        pairs.append((name, value))
        size += shmb_header_size(<int32_t>len(name), -1 if value is None else <int32_t>len(value))
    if size > 0x7fffffff:
        raise ValueError(f"headers of {size} bytes are too large for a record")
    out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
    p = <uint8_t *>PyBytes_AS_STRING(out)
    for name, value in pairs:
        if value is None:
            p = shmb_header_put(p, PyBytes_AS_STRING(name), <int32_t>len(name), NULL, -1)
        else:
            p = shmb_header_put(p, PyBytes_AS_STRING(name), <int32_t>len(name),
                                PyBytes_AS_STRING(<bytes>value), <int32_t>len(<bytes>value))
    count[0] = <int32_t>len(pairs)
    return out


# Without garbage collection: str, bytes and numbers can't form a cycle, and tracking millions of
# short-lived records costs more than making them.
@cython.final
@cython.no_gc
@cython.freelist(512)
cdef class Record:
    """One record: `topic`, `partition`, `offset`, `timestamp` (ms since 1970 UTC), `key`, `value`
    (bytes or None), `headers` (a new list of (str, bytes or None) each time). Immutable, hashable,
    picklable."""

    def __init__(self, str topic not None, int32_t partition, int64_t offset, int64_t timestamp,
                 bytes key, bytes value, headers=()):
        if self.topic is not None:
            raise TypeError("a Record is immutable")
        cdef int32_t count
        cdef bytes encoded = encode_headers(headers, &count)
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.timestamp = timestamp
        self.key = key
        self.value = value
        if count:
            self._headers = encoded
            self._header_count = count

    @property
    def headers(self):
        if self._headers is None:
            return []
        return decode_headers(self._headers, self._header_count)

    def __repr__(self):
        return (f"Record(topic={self.topic!r}, partition={self.partition}, offset={self.offset}, "
                f"timestamp={self.timestamp}, key={self.key!r}, value={self.value!r}, "
                f"headers={self.headers!r})")

    def __eq__(self, other):
        if type(other) is not Record:
            return NotImplemented
        cdef Record o = <Record>other
        return (self.offset == o.offset and self.partition == o.partition
                and self.timestamp == o.timestamp and self.topic == o.topic
                and self.key == o.key and self.value == o.value and self._headers == o._headers)

    def __hash__(self):
        return hash((self.topic, self.partition, self.offset, self.timestamp, self.key,
                     self.value))

    def __reduce__(self):
        return Record, (self.topic, self.partition, self.offset, self.timestamp, self.key,
                        self.value, self.headers)
