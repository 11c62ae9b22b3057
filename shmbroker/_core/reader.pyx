"""A local consumer's native half: reading a partition's ring, waiting for more, decoding.

Runs in the client's process; writes no shared byte but park words (invariants 1 and 6). A
PartitionReader copies whole batches out of the mapped ring and then looks whether they were still
there; what is not in the ring its caller reads from the segment files and hands to `take`, which
verifies it. What is visible is decided by offsets alone, since the writer stores an end offset before
the position that belongs to it: a batch whose last offset lies below an observed end is complete.

A RecordBatch here is a stretch of one partition: one or more whole Kafka batches in memory of its
own, so that streams of tiny batches cost no object each. The classes are not thread-safe, except
EpochWord and RecordBatch, which does not change.
"""

cimport cython
from cpython cimport array as carray
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_INCREF
from libc.errno cimport EINTR, ENOSYS, ETIMEDOUT
from libc.stdint cimport INT32_MAX, INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.mman cimport munmap

from shmbroker._core.batch cimport (
    SHMB_ATTR_CONTROL, SHMB_ATTR_LOG_APPEND_TIME, SHMB_BATCH_COMPACTED, SHMB_BATCH_FROM_LOG,
    SHMB_BATCH_HEADER_BYTES, SHMB_BATCH_SHORT, SHMB_RECORD_END, SHMB_RECORD_OK,
    SHMB_RECORD_OVERHEAD_MIN, Record, make_batch, make_batches, shmb_batch_attributes,
    shmb_batch_base_offset, shmb_batch_base_timestamp, shmb_batch_check, shmb_batch_compression,
    shmb_batch_cursor_init, shmb_batch_error_name, shmb_batch_last_offset,
    shmb_batch_last_offset_delta, shmb_batch_leader_epoch, shmb_batch_max_timestamp,
    shmb_batch_record_count, shmb_batch_size, shmb_record, shmb_record_cursor,
    shmb_record_error_name, shmb_record_next)
from shmbroker._core.batch cimport RecordBatch as KafkaBatch
from shmbroker._core.columns cimport ArrowArray, ArrowSchema

import os
from importlib import import_module
from threading import Lock, get_ident

from shmbroker import errors

cdef extern from *:
    """
    #define shmb_set_list_size(list, n) Py_SET_SIZE((PyVarObject *)(list), n)
    """
    void shmb_set_list_size(object values, Py_ssize_t n)

STATE_NAMES = ("free", "opening", "online", "no_space", "readonly", "offline", "closed")
cdef unsigned forks = 0


def _count_fork():
    global forks
    forks += 1


os.register_at_fork(after_in_child=_count_fork)


# ---- What a Connection needs ----


@cython.final
cdef class Mapping:
    """A shared-memory object mapped whole; unmapped when nobody refers to it any more."""

    def __init__(self, str name not None, int fd, *, bint writable=False):
        if self._at != NULL:
            raise TypeError("a Mapping is immutable")
        found = os.fstat(fd)
        self.name, self.inode, self.bytes = name, found.st_ino, found.st_size
        self._at = shmb_map(fd, self.bytes, writable)
        if self._at == NULL:
            raise MemoryError(f"{name} can't be mapped")

    def __dealloc__(self):
        if self._at != NULL:
            munmap(self._at, self.bytes)

    @property
    def address(self):
        """Where its first byte is, as long as this object is referenced."""
        return <size_t>self._at

    @property
    def current(self):
        """Whether the name still leads to this object."""
        try:
            return os.stat("/dev/shm" + self.name).st_ino == self.inode
        except FileNotFoundError:
            return False


cdef inline shmb_a32 *word_at(size_t park, uint32_t index) noexcept nogil:
    return <shmb_a32 *>(park + index * SHMB_LINE)


def wake_all(size_t park):
    """Wakes all waits on all words of the park object mapped at `park`, whatever the words show: a
    writer may have died between clearing a word and waking."""
    cdef int i
    with nogil:
        for i in range(SHMB_PARK_INSTANCE, SHMB_PARK_WORDS):  # the line before is the preamble
            shmb_park_wake_always(word_at(park, i))


@cython.final
cdef class EpochWord:
    """A 32-bit word of this process at a fixed address that C waits look at. Thread-safe."""

    def __cinit__(self):
        self._word = <shmb_a32 *>calloc(1, SHMB_LINE)
        if self._word == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self._word)

    @property
    def address(self):
        return <size_t>self._word

    @property
    def value(self):
        return shmb_observe32(self._word)

    def set(self, uint32_t value):
        """Stores by release; whoever waits on park words must be woken afterwards."""
        shmb_publish32(self._word, value)

    def replace(self, uint32_t value, uint32_t by):
        """Stores `by` if the word shows `value`; whether it did."""
        return shmb_replace32(self._word, value, by) != 0


# A sleep is interrupted at least this often to look for signals; see park.h.
shmb_signal_look_ns = 0 if os.environ.get("SHMBROKER_PARK_FOREVER") else 500_000_000

include "reader_records.pxi"
include "reader_arrow.pxi"
include "reader_partition.pxi"
include "reader_shared.pxi"
include "reader_stream.pxi"
include "reader_watch.pxi"
