"""C declarations of columns.h and arrow.h, and the class of columns.pyx."""

from libc.stdint cimport int32_t, int64_t, uint8_t


cdef extern from "arrow.h" nogil:
    enum:
        ARROW_FLAG_NULLABLE

    struct ArrowSchema:
        const char *format
        const char *name
        const char *metadata
        int64_t flags
        int64_t n_children
        ArrowSchema **children
        ArrowSchema *dictionary
        void (*release)(ArrowSchema *) noexcept nogil
        void *private_data

    struct ArrowArray:
        int64_t length
        int64_t null_count
        int64_t offset
        int64_t n_buffers
        int64_t n_children
        const void **buffers
        ArrowArray **children
        ArrowArray *dictionary
        void (*release)(ArrowArray *) noexcept nogil
        void *private_data

    struct ArrowArrayStream:
        int (*get_schema)(ArrowArrayStream *, ArrowSchema *out) noexcept
        int (*get_next)(ArrowArrayStream *, ArrowArray *out) noexcept
        const char *(*get_last_error)(ArrowArrayStream *) noexcept
        void (*release)(ArrowArrayStream *) noexcept
        void *private_data


cdef extern from "columns.h" nogil:
    enum shmb_column_kind:
        SHMB_COL_FIXED
        SHMB_COL_OFFSETS32
        SHMB_COL_OFFSETS64
        SHMB_COL_VIEWS
        SHMB_COL_SLICES

    enum:
        SHMB_VIEW_BYTES
        SHMB_TIMESTAMP_MAX   # ms, exclusive

    struct shmb_slice:
        const uint8_t *at
        int64_t bytes        # -1: null

    struct shmb_chunk:
        int64_t count
        const uint8_t *data
        const uint8_t *offsets
        int64_t begin
        int64_t end
        int64_t width
        const uint8_t *validity
        int64_t validity_bit
        const void **buffers
        const uint8_t *buffer_sizes
        int64_t buffer_count

    struct shmb_column:
        shmb_column_kind kind
        int64_t chunk_count
        shmb_chunk *chunks

    struct shmb_run:
        int64_t count
        shmb_column_kind value_kind
        shmb_column_kind key_kind
        const shmb_chunk *values
        const shmb_chunk *keys
        const shmb_chunk *times
        const int32_t *partitions
        int64_t value_first
        int64_t key_first
        int64_t time_first

    enum shmb_row_status:
        SHMB_ROWS_OK
        SHMB_ROWS_BAD_VALUE
        SHMB_ROWS_BAD_KEY
        SHMB_ROWS_NULL_TIME

    struct shmb_row:
        const uint8_t *value
        const uint8_t *key
        int64_t value_bytes
        int64_t key_bytes
        int64_t timestamp

    struct shmb_rows_batch:
        uint8_t *at
        const uint8_t *limit
        int32_t count
        int32_t partition
        int32_t partitions
        int64_t first_timestamp
        int64_t max_timestamp
        int64_t now

    struct shmb_walk:
        const shmb_column *column
        int64_t chunk
        int64_t at

    int64_t shmb_load64(const void *at)
    int shmb_chunk_at(shmb_column_kind kind, const shmb_chunk *c, int64_t i, const uint8_t **at,
                      int64_t *bytes)
    shmb_row_status shmb_run_row_any(const shmb_run *run, int64_t i, shmb_row *row)
    int64_t shmb_run_encode(const shmb_run *run, int64_t i, shmb_rows_batch *b)
    const shmb_chunk *shmb_walk_here(const shmb_walk *w, int64_t *count)
    void shmb_walk_on(shmb_walk *w, int64_t count)


cdef class Column:
    cdef shmb_column c
    cdef readonly int64_t count  # elements of all chunks
    cdef int64_t _room           # chunks allocated
    cdef list _owners            # of the memory: buffers, arrays, lists

    cdef shmb_chunk *add_chunk(self, int64_t count) except NULL


# What `what` is as a column of byte strings; None: a sequence of Python objects, or nothing known.
cdef Column column_of(object what, str role)
# As a column of 8-byte integers (timestamps in ms); None as above.
cdef Column times_of(object what, str role)
# `count` slices for the caller to fill; `owners` are kept as long as the column.
cdef Column slices_of(int64_t count, list owners)
