/* Columns: the values, keys or timestamps of many records, in memory that somebody else owns.
 *
 *   column ── chunks[] ── data, and what says where in it element i lies:
 *       FIXED      data + i * width
 *       OFFSETS32  data + offsets[i] .. offsets[i + 1], int32 each
 *       OFFSETS64  the same, int64 each
 *       VIEWS      16 bytes each: length, then the bytes themselves, or which buffer and where in it
 *       SLICES     struct shmb_slice each: out of a list of Python objects
 *
 * Who made the memory is trusted no further than the interface forces us to: an element is asked
 * for its place once, the place is checked against what the chunk said when it was taken, and only
 * then followed. So memory that another thread changes meanwhile gives other bytes, or an error,
 * but no access outside. (How long a buffer of 32- or 64-bit offsets is, and the data behind it,
 * the C data interface does not say; that its last offset is right is the producer's word, as for
 * every consumer of it.) Nothing here allocates, calls Python or needs the GIL.
 * Source of the layouts: https://arrow.apache.org/docs/format/Columnar.html
 */
#ifndef SHMB_COLUMNS_H
#define SHMB_COLUMNS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "record.h"

enum shmb_column_kind {
    SHMB_COL_FIXED = 0,
    SHMB_COL_OFFSETS32,
    SHMB_COL_OFFSETS64,
    SHMB_COL_VIEWS,
    SHMB_COL_SLICES,
};

enum { SHMB_VIEW_BYTES = 16, SHMB_VIEW_INLINE = 12 };

struct shmb_slice {
    const uint8_t *at;
    int64_t bytes; /* -1: null */
};

struct shmb_chunk {
    int64_t count;           /* elements */
    const uint8_t *data;     /* of element 0; with OFFSETS: what they count from */
    const uint8_t *offsets;  /* of element 0; may be unaligned */
    int64_t begin, end;      /* OFFSETS: the first and the last of them when the chunk was taken */
    int64_t width;           /* FIXED: bytes */
    const uint8_t *validity; /* a bit an element, least significant first; NULL: none is null */
    int64_t validity_bit;    /* of element 0 */
    const void *const *buffers; /* VIEWS: what they point into */
    const uint8_t *buffer_sizes; /* int64 each; may be unaligned */
    int64_t buffer_count;
};

struct shmb_column {
    enum shmb_column_kind kind;
    int64_t chunk_count;
    struct shmb_chunk *chunks; /* none of them empty */
};

/* ---- One element ------------------------------------------------------------------------- */

SHMB_INLINE int32_t shmb_load32(const void *at) {
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}
SHMB_INLINE int64_t shmb_load64(const void *at) {
    int64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

SHMB_INLINE int shmb_view_at(const struct shmb_chunk *c, const uint8_t *view, const uint8_t **at,
                             int64_t *bytes) {
    int32_t length = shmb_load32(view);
    *bytes = length;
    if (length < 0) return 0;
    if (length <= SHMB_VIEW_INLINE) {
        *at = view + 4;
        return 1;
    }
    int32_t buffer = shmb_load32(view + 8), offset = shmb_load32(view + 12);
    if (buffer < 0 || buffer >= c->buffer_count || offset < 0) return 0;
    if (offset + (int64_t)length > shmb_load64(c->buffer_sizes + 8 * (int64_t)buffer)) return 0;
    const uint8_t *base = (const uint8_t *)c->buffers[buffer];
    if (!base) return 0;
    *at = base + offset;
    return 1;
}

/* Where element `i` of a chunk lies; *bytes -1: null. 0: it contradicts what the chunk said. */
SHMB_INLINE int shmb_chunk_at(enum shmb_column_kind kind, const struct shmb_chunk *c, int64_t i,
                              const uint8_t **at, int64_t *bytes) {
    int64_t from, to;
    if (c->validity) {
        int64_t bit = c->validity_bit + i;
        if (!(c->validity[bit >> 3] >> (bit & 7) & 1)) {
            *at = NULL;
            *bytes = -1;
            return 1;
        }
    }
    switch (kind) {
    case SHMB_COL_FIXED:
        *at = c->data + i * c->width;
        *bytes = c->width;
        return 1;
    case SHMB_COL_VIEWS:
        return shmb_view_at(c, c->data + i * SHMB_VIEW_BYTES, at, bytes);
    case SHMB_COL_SLICES: {
        const struct shmb_slice *slice = (const struct shmb_slice *)c->data + i;
        *at = slice->at;
        *bytes = slice->bytes;
        return 1;
    }
    case SHMB_COL_OFFSETS32:
        from = shmb_load32(c->offsets + 4 * i);
        to = shmb_load32(c->offsets + 4 * i + 4);
        break;
    default:
        from = shmb_load64(c->offsets + 8 * i);
        to = shmb_load64(c->offsets + 8 * i + 8);
    }
    if (SHMB_UNLIKELY(from < c->begin) || SHMB_UNLIKELY(to < from) || SHMB_UNLIKELY(to > c->end))
        return 0;
    *at = c->data + from;
    *bytes = to - from;
    return 1;
}

/* ---- Records out of columns -------------------------------------------------------------- */

/* A run: records whose values, keys and times each lie in one chunk. */
struct shmb_run {
    int64_t count;
    enum shmb_column_kind value_kind, key_kind;
    const struct shmb_chunk *values;
    const struct shmb_chunk *keys;       /* NULL: none */
    const struct shmb_chunk *times;      /* NULL: none; FIXED, 8 bytes each, ms */
    const int32_t *partitions;           /* NULL: the key's, or the caller's choice */
    int64_t value_first, key_first, time_first; /* index in their chunk of the run's record 0 */
};

enum shmb_row_status {
    SHMB_ROWS_OK = 0,
    SHMB_ROWS_BAD_VALUE,
    SHMB_ROWS_BAD_KEY,
    SHMB_ROWS_NULL_TIME,
};

struct shmb_row {
    const uint8_t *value, *key;
    int64_t value_bytes, key_bytes; /* -1: null */
    int64_t timestamp;              /* ms; only where the run has times */
};

SHMB_INLINE enum shmb_row_status shmb_run_row(enum shmb_column_kind kind,
                                              const struct shmb_run *run, int64_t i,
                                              struct shmb_row *row) {
    const uint8_t *at;
    int64_t bytes;
    if (!shmb_chunk_at(kind, run->values, run->value_first + i, &row->value, &row->value_bytes))
        return SHMB_ROWS_BAD_VALUE;
    row->key = NULL;
    row->key_bytes = -1;
    row->timestamp = 0;
    if (run->keys &&
        !shmb_chunk_at(run->key_kind, run->keys, run->key_first + i, &row->key, &row->key_bytes))
        return SHMB_ROWS_BAD_KEY;
    if (run->times) {
        shmb_chunk_at(SHMB_COL_FIXED, run->times, run->time_first + i, &at, &bytes);
        if (bytes < 0) return SHMB_ROWS_NULL_TIME;
        row->timestamp = shmb_load64(at);
    }
    return SHMB_ROWS_OK;
}

static __attribute__((unused)) enum shmb_row_status shmb_run_row_any(
    const struct shmb_run *run, int64_t i, struct shmb_row *row) {
    return shmb_run_row(run->value_kind, run, i, row);
}

/* The open batch that records go to, and what a timestamp may be. */
struct shmb_rows_batch {
    uint8_t *at;
    const uint8_t *limit;
    int32_t count;
    int32_t partition;       /* of the batch */
    int32_t partitions;      /* of the topic; 0: every record goes to this batch */
    int64_t first_timestamp; /* ms */
    int64_t max_timestamp;
    int64_t now;             /* for records without a time of their own */
};

#define SHMB_TIMESTAMP_MAX ((int64_t)1 << 62) /* exclusive */

SHMB_INLINE int64_t shmb_run_encode_kind(enum shmb_column_kind kind, int plain,
                                         const struct shmb_run *run, int64_t i,
                                         struct shmb_rows_batch *b) {
    struct shmb_row row;
    uint8_t *p = b->at;
    int32_t count = b->count;
    int64_t delta = b->now - b->first_timestamp;
    for (; i < run->count; i++) {
        if (SHMB_UNLIKELY(shmb_run_row(kind, run, i, &row) != SHMB_ROWS_OK)) break;
        /* Unsigned: the sum of two lengths that a column claims can't overflow. */
        uint64_t size = row.value_bytes > 0 ? (uint64_t)row.value_bytes : 0;
        if (!plain && row.key_bytes > 0) size += (uint64_t)row.key_bytes;
        ptrdiff_t room = b->limit - p - SHMB_RECORD_OVERHEAD_MAX;
        if (room < 0 || size > (uint64_t)room) break;
        if (plain) {
            p = shmb_record_put(p, delta, count, NULL, -1, row.value, (int32_t)row.value_bytes,
                                NULL, 0, 0);
        } else {
            if (run->partitions) {
                if (run->partitions[i] != b->partition) break;
            } else if (b->partitions && row.key_bytes >= 0) {
                if (shmb_partition_for_key(row.key, (size_t)row.key_bytes, b->partitions) !=
                    b->partition)
                    break;
            }
            if (run->times) {
                if (row.timestamp < 0 || row.timestamp >= SHMB_TIMESTAMP_MAX) break;
                delta = row.timestamp - b->first_timestamp;
                if (row.timestamp > b->max_timestamp) b->max_timestamp = row.timestamp;
            }
            p = shmb_record_put(p, delta, count, row.key, (int32_t)row.key_bytes, row.value,
                                (int32_t)row.value_bytes, NULL, 0, 0);
        }
        count++;
    }
    b->at = p;
    b->count = count;
    return i;
}

/* Encodes records `i` and following of a run into the batch as far as they surely fit and belong to
 * it; returns the first that was not, which the caller takes by the exact rules or refuses. */
static __attribute__((unused)) int64_t shmb_run_encode(const struct shmb_run *run, int64_t i,
                                                       struct shmb_rows_batch *b) {
    if (run->keys || run->times || run->partitions)
        return shmb_run_encode_kind(run->value_kind, 0, run, i, b);
    switch (run->value_kind) { /* constants, so that each gets a loop of its own */
    case SHMB_COL_FIXED: return shmb_run_encode_kind(SHMB_COL_FIXED, 1, run, i, b);
    case SHMB_COL_OFFSETS32: return shmb_run_encode_kind(SHMB_COL_OFFSETS32, 1, run, i, b);
    case SHMB_COL_OFFSETS64: return shmb_run_encode_kind(SHMB_COL_OFFSETS64, 1, run, i, b);
    default: return shmb_run_encode_kind(run->value_kind, 1, run, i, b);
    }
}

/* ---- Walking several columns at once ----------------------------------------------------- */

struct shmb_walk {
    const struct shmb_column *column; /* NULL: there is none */
    int64_t chunk;                    /* the one that the next run begins in */
    int64_t at;                       /* its element there */
};

/* Where the run begins in a column; cuts it at the end of the chunk. Every chunk has an element. */
static inline const struct shmb_chunk *shmb_walk_here(const struct shmb_walk *w, int64_t *count) {
    if (!w->column) return NULL;
    const struct shmb_chunk *c = &w->column->chunks[w->chunk];
    if (c->count - w->at < *count) *count = c->count - w->at;
    return c;
}
static inline void shmb_walk_on(struct shmb_walk *w, int64_t count) {
    if (w->column && (w->at += count) == w->column->chunks[w->chunk].count) {
        w->chunk++;
        w->at = 0;
    }
}

#endif
