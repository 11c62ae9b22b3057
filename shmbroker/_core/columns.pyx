"""Columns out of Python objects: buffers and Arrow data as values, keys or timestamps of records.

Owns: what is taken for a column and what is refused, by name; the buffers, arrays and streams
behind it until the column goes. Neither NumPy nor pyarrow is needed: arrays speak the buffer
protocol, Arrow objects `__arrow_c_array__` or `__arrow_c_stream__` (arrow.h). The loops over a
column are columns.h's.

Whatever an array claims is checked here once for the whole of it, and in columns.h element by
element when it is used. Runs in producers; a Column does not change, and threads may share it.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FULL_RO, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.list cimport PyList_CheckExact
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

import re

_TAKEN = "binary, large_binary, fixed_size_binary, string, large_string, binary_view or string_view"
# The buffer protocol's format of an item that is one value, not a number.
_RECORD = re.compile(r"[@=<>!]?(\d*s|\d+x|T\{.*\})", re.DOTALL)
cdef int64_t _LARGEST = INT64_MAX >> 8  # elements or bytes that any sum here may have


# ---- Who owns what ----


@cython.final
cdef class _Buffer:
    """A buffer of Python's, exported until this object goes."""

    cdef Py_buffer view
    cdef bint held

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


@cython.final
cdef class Column:
    """Byte strings, or integers of 8 bytes, in memory that this object keeps. Immutable."""

    def __init__(self, *args):
        raise TypeError("made by take() and take_times()")

    def __dealloc__(self):
        free(self.c.chunks)

    def __len__(self):
        return self.count

    cdef shmb_chunk *add_chunk(self, int64_t count) except NULL:
        """A zeroed chunk of `count` elements, more than none."""
        cdef shmb_chunk *more
        if self.c.chunk_count == self._room:
            self._room = max(1, self._room * 2)
            more = <shmb_chunk *>realloc(self.c.chunks, self._room * sizeof(shmb_chunk))
            if more == NULL:
                raise MemoryError()
            self.c.chunks = more
        more = &self.c.chunks[self.c.chunk_count]
        memset(more, 0, sizeof(shmb_chunk))
        more.count = count
        self.c.chunk_count += 1
        self.count += count
        return more

    def tolist(self):
        """Every element as bytes, or None. Raises ValueError where the column contradicts itself."""
        cdef int64_t k, i, size
        cdef const uint8_t *at
        found = []
        for k in range(self.c.chunk_count):
            for i in range(self.c.chunks[k].count):
                if not shmb_chunk_at(self.c.kind, &self.c.chunks[k], i, &at, &size):
                    raise ValueError(f"element {len(found)}: its offsets contradict the array's")
                found.append(None if size < 0 else PyBytes_FromStringAndSize(<const char *>at, size))
        return found


cdef Column _new(shmb_column_kind kind):
    cdef Column made = Column.__new__(Column)
    made.c.kind = kind
    made._owners = []
    return made


cdef Column slices_of(int64_t count, list owners):
    cdef Column made = _new(SHMB_COL_SLICES)
    memory = PyBytes_FromStringAndSize(NULL, count * sizeof(shmb_slice))
    made._owners = [memory, owners]
    if count:
        made.add_chunk(count).data = <const uint8_t *>PyBytes_AS_STRING(memory)
    return made


# ---- What is taken ----


cdef Column column_of(object what, str role):
    if isinstance(what, Column):
        return what
    if PyList_CheckExact(what) or isinstance(what, tuple):
        return None
    if hasattr(what, "__arrow_c_array__"):
        return _of_array(what, role, False)
    if hasattr(what, "__arrow_c_stream__"):
        return _of_stream(what, role, False)
    if PyObject_CheckBuffer(what):
        return _of_buffer(what, role)
    return None


cdef Column times_of(object what, str role):
    if isinstance(what, Column):
        return what
    if PyList_CheckExact(what) or isinstance(what, tuple):
        return None
    if hasattr(what, "__arrow_c_array__"):
        return _of_array(what, role, True)
    if hasattr(what, "__arrow_c_stream__"):
        return _of_stream(what, role, True)
    if PyObject_CheckBuffer(what):
        return _of_integers(what, role)
    return None


def take(what, str role="values"):
    """A 2-D array or Arrow data as a Column, None for a sequence of objects. `role` is its name in
    errors. Raises TypeError for what is neither, ValueError for Arrow data that can't be right."""
    return column_of(what, role)


def take_times(what, str role="timestamps"):
    """A 1-D array of 64-bit integers (ms), or Arrow int64 or timestamps, as a Column of 8-byte
    integers in ms. As take()."""
    return times_of(what, role)


# ---- Buffers ----


cdef _Buffer _exported(object what, str role):
    cdef _Buffer b = _Buffer()
    PyObject_GetBuffer(what, &b.view, PyBUF_FULL_RO)
    b.held = True
    if not PyBuffer_IsContiguous(&b.view, b"C"):
        raise TypeError(f"{role} is {_shape(what, b)} that is not C-contiguous; copy it, for "
                        "example with numpy.ascontiguousarray()")
    if b.view.suboffsets != NULL:
        raise TypeError(f"{role} is {_shape(what, b)} with suboffsets; copy it into one piece")
    return b


cdef str _format(_Buffer b):
    return "B" if b.view.format == NULL else (<bytes>b.view.format).decode("utf-8", "replace")


cdef str _shape(object what, _Buffer b):
    return f"a {b.view.ndim}-D {type(what).__name__} of {_format(b)!r} items"


cdef Column _of_buffer(object what, str role):
    """A row a value; of a 1-D array of records (dtype S, V or with fields) an item a value."""
    cdef _Buffer b = _exported(what, role)
    cdef Column made
    cdef int64_t width
    cdef str form = _format(b)
    cdef bint record = _RECORD.fullmatch(form) is not None
    cdef str types = re.sub(r":[^:]*:", "", form)  # the names of fields stand between colons
    if "O" in types and b.view.ndim == 1 and not record:
        return None  # a sequence of objects after all
    if "O" in types:
        raise TypeError(f"{role} is {_shape(what, b)}: Python objects have no bytes here; "
                        "pass a list")
    if "w" in types:
        raise TypeError(f"{role} is {_shape(what, b)}, which is text: encode it, for example with "
                        f"numpy.char.encode({role})")
    if b.view.ndim == 2:
        width = b.view.shape[1] * b.view.itemsize
    elif b.view.ndim == 1 and record:
        width = b.view.itemsize
    else:
        way = (f"a 1-D array is one value or many? {role}.reshape(-1, bytes_each) makes rows of it"
               if b.view.ndim == 1 else f"{role}.reshape(len({role}), -1) makes rows of it")
        raise TypeError(f"{role} is {_shape(what, b)}, expected a list, a 2-D array (a row a "
                        f"record) or Arrow data; {way}")
    made = _new(SHMB_COL_FIXED)
    made._owners.append(b)
    if b.view.shape[0]:
        _fixed(made, b.view.shape[0], <const uint8_t *>b.view.buf, width)
    return made


cdef Column _of_integers(object what, str role):
    cdef _Buffer b = _exported(what, role)
    cdef Column made
    cdef str form = _format(b)
    if "O" in form and b.view.ndim == 1:
        return None
    if b.view.ndim != 1 or b.view.itemsize != 8 or form.lstrip("@=<") not in ("l", "q"):
        raise TypeError(f"{role} is {_shape(what, b)}, expected a 1-D array of 64-bit integers, "
                        "in ms")
    made = _new(SHMB_COL_FIXED)
    made._owners.append(b)
    if b.view.shape[0]:
        _fixed(made, b.view.shape[0], <const uint8_t *>b.view.buf, 8)
    return made


cdef shmb_chunk *_fixed(Column column, int64_t count, const uint8_t *data,
                        int64_t width) except NULL:
    cdef shmb_chunk *c = column.add_chunk(count)
    c.data = data
    c.width = width
    return c


include "columns_arrow.pxi"
