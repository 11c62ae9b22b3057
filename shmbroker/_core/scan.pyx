"""Segment files read batch by batch, and the producer table, for Python.

Owns: the Python face of scan.h and producers.h, and the three system calls that `os` lacks (fallocate
without glibc's emulation, statx's direct I/O alignment, the file system's type). Who calls: the writer
process's housekeeper, readers of segments in any process, `shmbroker log`. Everything that reads a
file does so without the GIL. Functions raise OSError when the kernel does, MemoryError when malloc
fails, and return what they found otherwise: damaged bytes are a result and no exception.
"""

import os
from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.errno cimport errno
from libc.stdint cimport INT32_MAX, INT64_MAX
from libc.stdlib cimport free
from libc.string cimport memset


cdef extern from "scan.h" nogil:
    enum:
        SHMB_SCAN_END
        SHMB_SCAN_ZEROS
        SHMB_SCAN_SHORT
        SHMB_SCAN_OFFSET
        SHMB_SCAN_EPOCH
        SHMB_SCAN_IO
        SHMB_SCAN_MEMORY
        SHMB_SCAN_BATCH
        SHMB_BATCH_HEADER_BYTES

    struct shmb_scan_entry:
        int64_t offset
        int64_t position
        int64_t max_timestamp

    struct shmb_scan_epoch:
        int64_t start_offset
        int32_t epoch

    struct shmb_scan:
        int fd
        int32_t min_epoch
        int32_t max_epoch
        int64_t position
        int64_t limit
        int64_t next_offset
        int64_t index_interval_bytes
        int64_t bytes_since_index
        int64_t max_timestamp
        shmb_producers *producers
        int stop
        int error
        int64_t valid_end
        int64_t batches
        int64_t records
        int64_t stop_offset
        int32_t stop_epoch
        int64_t stop_bytes
        shmb_scan_entry *entries
        size_t entry_count
        shmb_scan_epoch *epochs
        size_t epoch_count

    struct shmb_wanted:
        int64_t min_end
        int64_t min_offset
        int32_t min_epoch
        int32_t max_epoch
        int64_t max_bytes
        int64_t end

    struct shmb_found:
        int64_t position
        int64_t bytes
        int64_t base_offset
        int32_t epoch
        int error
        int64_t last_nonzero
        int64_t read_bytes

    struct shmb_batch_at:
        int64_t position
        int64_t bytes
        int64_t base_offset
        int64_t last_offset
        int64_t max_timestamp
        int32_t epoch
        int error

    int shmb_scan_run(shmb_scan *s)
    void shmb_find_batch_after(int fd, int64_t start, const shmb_wanted *w, shmb_found *found)
    void shmb_locate(int fd, int64_t position, int64_t limit, int64_t target_offset, int by_time,
                     int64_t target_timestamp, shmb_batch_at *out)
    void shmb_header_at(int fd, int64_t position, int64_t limit, shmb_batch_at *out)
    int64_t shmb_pread_full(int fd, uint8_t *p, size_t n, int64_t position)
    int64_t shmb_measure_batches(int fd, int64_t position, int64_t limit, int64_t max_bytes,
                                 int64_t *next_offset, int *more) nogil
    int64_t shmb_whole_batches(const uint8_t *p, int64_t n, int64_t *next_offset, int64_t *needed,
                               int *foreign)
    const char *shmb_batch_error_name(int error)
    uint32_t shmb_crc32c(uint32_t seed_crc, const void *p, size_t n)


cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/stat.h>
    #include <sys/syscall.h>
    #include <sys/vfs.h>
    #include <unistd.h>

    /* Sets memory and offset alignment and returns 0; 1 where the kernel or the file system does not
     * say; 2 where it says that there is no direct I/O; -1 with errno. */
    static int shmb_statx_dioalign(int fd, uint32_t *memory, uint32_t *offset) {
    #if defined(STATX_DIOALIGN) && defined(SYS_statx)
        struct statx st;
        memset(&st, 0, sizeof st);
        if (syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, STATX_DIOALIGN, &st)) return -1;
        if (!(st.stx_mask & STATX_DIOALIGN)) return 1;
        *memory = st.stx_dio_mem_align;
        *offset = st.stx_dio_offset_align;
        return *offset ? 0 : 2;
    #else
        (void)fd, (void)memory, (void)offset;
        return 1;
    #endif
    }
    static long shmb_fstype(int fd) {
        struct statfs st;
        return fstatfs(fd, &st) ? -1 : (long)st.f_type;
    }
    """
    int shmb_statx_dioalign(int fd, uint32_t *memory, uint32_t *offset) nogil
    long shmb_fstype(int fd) nogil
    int c_fallocate "fallocate"(int fd, int mode, int64_t offset, int64_t size) nogil
    # The C API's own, on references that Cython doesn't count: resizing needs the only one.
    PyObject *bytes_new "PyBytes_FromStringAndSize"(const char *p, Py_ssize_t n) except NULL
    char *bytes_data "PyBytes_AS_STRING"(PyObject *o) nogil
    int _PyBytes_Resize(PyObject **bytes, Py_ssize_t size) except -1


# Results of scans: plain names for users, the order of enum shmb_scan_stop.
_STOPS = {
    SHMB_SCAN_END: ("end", "the end of the file"),
    SHMB_SCAN_ZEROS: ("zeros", "zeros where a batch would begin"),
    SHMB_SCAN_SHORT: ("short", "batch is cut off"),
    SHMB_SCAN_OFFSET: ("offset", "batch has another base offset than follows"),
    SHMB_SCAN_EPOCH: ("epoch", "batch has a leader epoch that can't stand here"),
}
_BATCH_STOPS = ("ok", "short", "length", "magic", "crc", "count", "attributes", "control",
                "producer", "base-offset")

ENTRY_BYTES = sizeof(shmb_scan_entry)
PRODUCER_BATCHES = SHMB_PRODUCER_BATCHES
BATCH_HEADER_BYTES = SHMB_BATCH_HEADER_BYTES

ScanResult = namedtuple("ScanResult", (
    "stop", "stop_text", "valid_end", "next_offset", "epoch", "max_timestamp", "batches", "records",
    "scanned_bytes", "stop_offset", "stop_epoch", "stop_bytes", "entries", "epochs",
    "bytes_since_index",
))
FoundBatch = namedtuple("FoundBatch", ("position", "size_bytes", "base_offset", "epoch"))
Search = namedtuple("Search", ("found", "last_nonzero", "read_bytes"))
BatchAt = namedtuple("BatchAt", (
    "position", "size_bytes", "base_offset", "last_offset", "max_timestamp", "epoch",
))


def crc32c(const unsigned char[::1] data not None, uint32_t seed=0):
    """CRC-32C of `data`, going on from `seed`."""
    if data.shape[0] == 0:
        return seed
    return shmb_crc32c(seed, &data[0], data.shape[0])


def fallocate(int fd, int64_t offset, int64_t size_bytes):
    """Reserves space for [offset, offset + size_bytes), moving the file's end; never emulated.

    Raises OSError: ENOSPC when the disk is full, EOPNOTSUPP where the file system can't.
    """
    cdef int result
    while True:
        with nogil:
            result = c_fallocate(fd, 0, offset, size_bytes)
        if result == 0:
            return
        if errno != 4:  # EINTR: go on, a large allocation meets signals
            raise OSError(errno, os.strerror(errno))


def dio_alignment(int fd):
    """(memory, offset) alignment in bytes that direct I/O on this file needs.

    None where the kernel (before Linux 6.1) or the file system does not say; (0, 0) where it says
    that the file has no direct I/O.
    """
    cdef uint32_t memory = 0, offset = 0
    cdef int result = shmb_statx_dioalign(fd, &memory, &offset)
    if result < 0:
        raise OSError(errno, os.strerror(errno))
    if result == 1:
        return None
    if result == 2:
        memory = offset = 0
    return memory, offset


def filesystem_type(int fd):
    """The magic number of the file system that `fd` is on (statfs.f_type)."""
    cdef long kind = shmb_fstype(fd)
    if kind < 0:
        raise OSError(errno, os.strerror(errno))
    return kind


cdef class ProducerTable:
    """The idempotent producers of one partition (producers.h).

    Used by one thread at a time; only `export` may run while another thread checks and records.
    """

    def __cinit__(self, uint32_t max_count=0, int64_t expiration_ms=0):
        self.ptr = <shmb_producers *>PyMem_Malloc(sizeof(shmb_producers))
        if self.ptr is NULL or shmb_producers_init(self.ptr, max_count, expiration_ms):
            raise MemoryError()

    def __dealloc__(self):
        if self.ptr is not NULL:
            shmb_producers_destroy(self.ptr)
            PyMem_Free(self.ptr)

    def __len__(self):
        return self.ptr.count

    def check(self, int64_t producer_id, int16_t epoch, int32_t base_sequence, int32_t count):
        """What to do with a batch: ("ok" | "duplicate" | "out-of-order" | "fenced" | "stale",
        base offset of the duplicate or -1)."""
        cdef int64_t dup
        cdef int verdict = shmb_producers_check(self.ptr, producer_id, epoch, base_sequence, count,
                                                &dup)
        return ("ok", "duplicate", "out-of-order", "fenced", "stale")[verdict], dup

    def record(self, int64_t producer_id, int16_t epoch, int32_t base_sequence, int32_t count,
               int64_t base_offset, int64_t timestamp_ms):
        """Remembers an appended batch."""
        if shmb_producers_record(self.ptr, producer_id, epoch, base_sequence, count, base_offset,
                                 timestamp_ms):
            raise MemoryError()

    def expire(self, int64_t now_ms):
        """Forgets producers idle for longer than the expiration; returns how many."""
        return shmb_producers_expire(self.ptr, now_ms)

    def export(self, int64_t before_offset=INT64_MAX):
        """The state at `before_offset` (exclusive) as bytes, for a checkpoint; any thread."""
        cdef int64_t size = 64 + 2048, got
        cdef bytes out
        cdef uint8_t *p
        while True:
            out = PyBytes_FromStringAndSize(NULL, size)
            p = <uint8_t *>PyBytes_AS_STRING(out)
            with nogil:
                got = shmb_producers_export(self.ptr, before_offset, p, size)
            if got >= 0:
                return out[:got]
            size = -got + 4096  # a few may come in between

    def load(self, const unsigned char[::1] data not None):
        """Adds what `export` returned. Raises ValueError for bytes that make no sense."""
        if data.shape[0] == 0:
            return
        cdef int result = shmb_producers_import(self.ptr, &data[0], data.shape[0])
        if result < 0:
            raise MemoryError()
        if result:
            raise ValueError("exported producer table is malformed")


def scan_segment(int fd, *, int64_t position, int64_t limit, int64_t expected_offset,
                 int32_t min_epoch=0, int32_t max_epoch=INT32_MAX, int64_t index_interval_bytes=0,
                 int64_t bytes_since_index=0, int64_t max_timestamp=-1,
                 ProducerTable producers=None):
    """Scans batches from `position` to `limit` (bytes, exclusive) and says where the valid prefix ends.

    `entries` is packed native-endian {int64 offset of the batch's last record; int64 position; int64
    max timestamp so far}, one every index_interval_bytes; `epochs` a list of (epoch, start offset).
    `stop` is "end", "zeros", "short", "offset", "epoch", or what is wrong with the batch there ("crc",
    "magic", "length", "count", "attributes", …). Records producers into `producers`.
    """
    cdef shmb_scan s
    memset(&s, 0, sizeof(s))
    s.fd, s.position, s.limit, s.next_offset = fd, position, limit, expected_offset
    s.min_epoch, s.max_epoch = min_epoch, max_epoch
    s.index_interval_bytes, s.bytes_since_index = index_interval_bytes, bytes_since_index
    s.max_timestamp = max_timestamp
    if producers is not None:
        s.producers = producers.ptr
    try:
        with nogil:
            shmb_scan_run(&s)
        if s.stop == SHMB_SCAN_IO:
            raise OSError(s.error, os.strerror(s.error))
        if s.stop == SHMB_SCAN_MEMORY:
            raise MemoryError()
        if s.stop >= SHMB_SCAN_BATCH:
            name = _BATCH_STOPS[s.stop - SHMB_SCAN_BATCH]
            text = shmb_batch_error_name(s.stop - SHMB_SCAN_BATCH).decode()
        else:
            name, text = _STOPS[s.stop]
        entries = (<char *>s.entries)[:s.entry_count * sizeof(shmb_scan_entry)] \
            if s.entry_count else b""
        epochs = [(s.epochs[i].epoch, s.epochs[i].start_offset) for i in range(s.epoch_count)]
        return ScanResult(name, text, s.valid_end, s.next_offset, s.min_epoch, s.max_timestamp,
                          s.batches, s.records, s.valid_end - position, s.stop_offset,
                          s.stop_epoch, s.stop_bytes, entries, epochs, s.bytes_since_index)
    finally:
        free(s.entries)
        free(s.epochs)


def find_batch_after(int fd, int64_t start, int64_t end, *, int64_t min_offset=0,
                     int32_t min_epoch=0, int32_t max_epoch=INT32_MAX, int64_t min_end=0,
                     int64_t max_batch_bytes=INT64_MAX):
    """Searches [start, end) at every byte for a whole valid batch of this log that ends behind
    `min_end`. Returns Search(found: FoundBatch or None, position of the last byte searched that is not
    zero or -1, bytes read). Holes and unwritten space cost nothing."""
    cdef shmb_wanted w
    cdef shmb_found f
    w.min_end, w.min_offset, w.end, w.max_bytes = min_end, min_offset, end, max_batch_bytes
    w.min_epoch, w.max_epoch = min_epoch, max_epoch
    with nogil:
        shmb_find_batch_after(fd, start, &w, &f)
    if f.error:
        raise OSError(f.error, os.strerror(f.error))
    found = FoundBatch(f.position, f.bytes, f.base_offset, f.epoch) if f.position >= 0 else None
    return Search(found, f.last_nonzero, f.read_bytes)


def locate(int fd, int64_t position, int64_t limit, int64_t target_offset, target_timestamp=None):
    """Walks batch headers from `position` to the first batch that holds target_offset or a later one
    and, if given, has a largest timestamp of at least target_timestamp (ms). Returns BatchAt, or None
    when there is none before `limit`. Trusts CRCs, follows no header that makes no sense."""
    cdef shmb_batch_at at
    cdef bint by_time = target_timestamp is not None
    cdef int64_t timestamp = target_timestamp if by_time else 0
    with nogil:
        shmb_locate(fd, position, limit, target_offset, by_time, timestamp, &at)
    return found_at(&at)


def header_at(int fd, int64_t position, int64_t limit):
    """The batch that begins at `position` and ends before `limit`, as BatchAt, by its header, which is
    all that is read; None when there is none."""
    cdef shmb_batch_at at
    with nogil:
        shmb_header_at(fd, position, limit, &at)
    return found_at(&at)


cdef object found_at(const shmb_batch_at *at):
    if at.error:
        raise OSError(at.error, os.strerror(at.error))
    if at.position < 0:
        return None
    return BatchAt(at.position, at.bytes, at.base_offset, at.last_offset, at.max_timestamp, at.epoch)


def measure_batches(int fd, int64_t position, int64_t limit, int64_t max_bytes,
                    int64_t next_offset=-1):
    """(bytes, next_offset, at_end) of what read_batches would give, by the batches' headers alone."""
    cdef int64_t size
    cdef int more = 0
    with nogil:
        size = shmb_measure_batches(fd, position, limit, max_bytes, &next_offset, &more)
    if size < 0:
        raise OSError(errno, os.strerror(errno))
    return size, next_offset, not more


def read_batches(int fd, int64_t position, int64_t limit, int64_t max_bytes, int64_t next_offset=-1):
    """Whole batches of the file from `position` (where one begins) on: (bytes, next_offset, at_end).

    At most max_bytes, but always one batch if there is one; nothing at or behind `limit` is read.
    next_offset is the base offset that must stand at `position` (-1: any), and afterwards the one that
    follows. at_end says that no further batch stands in the file before `limit`. One read into the
    bytes object that is returned, a second one where a batch is larger than max_bytes.
    """
    cdef int64_t got, whole = 0, needed = 0, expected, want = max_bytes
    cdef int foreign = 0
    cdef PyObject *chunk = NULL
    if want < SHMB_BATCH_HEADER_BYTES:
        want = SHMB_BATCH_HEADER_BYTES
    if want > limit - position:
        want = limit - position
    if want <= 0:
        return b"", next_offset, True
    while True:
        expected = next_offset
        chunk = bytes_new(NULL, want)
        with nogil:
            got = shmb_pread_full(fd, <uint8_t *>bytes_data(chunk), want, position)
            if got >= 0:
                whole = shmb_whole_batches(<uint8_t *>bytes_data(chunk), got, &expected, &needed,
                                           &foreign)
        if got >= 0 and (whole or not needed or got < want or needed > limit - position):
            break
        Py_DECREF(<object>chunk)  # a batch larger than the chunk: once more, as large as it needs
        if got < 0:
            raise OSError(errno, os.strerror(errno))
        want = needed
    if whole < want:
        _PyBytes_Resize(&chunk, whole)  # shrinks in place
    result = <bytes>chunk
    Py_DECREF(result)  # the reference that bytes_new() gave
    if foreign or got < want:
        return result, expected, True
    if needed:
        return result, expected, needed > limit - position - whole
    return result, expected, position + got >= limit
