/* A batch of records as Arrow data: one struct array of offset, timestamp, key and value.
 *
 *   block (counted) ── fixed: offsets, timestamps, validity and offsets of keys and values
 *      ▲               keys, values: their bytes
 *      └── every ArrowArray handed out, the struct's and each child's, and the Python object
 *
 * The format: "+s" of offset "l", timestamp "tsm:UTC", key "z", value "z" (Z with 64-bit offsets),
 * the last two nullable. A child may be moved out of its parent and live longer, so each holds the
 * block.
 * Filled once, then read only: any thread may release, without the GIL.
 * Source: arrow.h, and https://arrow.apache.org/docs/format/Columnar.html for the buffers.
 */
#ifndef SHMB_ARROW_OUT_H
#define SHMB_ARROW_OUT_H

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "arrow.h"
#include "batch.h"

enum { SHMB_OUT_OFFSET, SHMB_OUT_TIMESTAMP, SHMB_OUT_KEY, SHMB_OUT_VALUE, SHMB_OUT_COLUMNS };

/* The bytes of one column of byte strings, and where each ends. */
struct shmb_out_bytes {
    uint8_t *data;
    uint8_t *validity;
    void *offsets; /* int32, or int64 in a large block */
    size_t validity_bytes;
    size_t used;
    int64_t nulls;
    int mixed; /* null and not null have been seen: validity is kept, and of keys the offsets */
};

struct shmb_out_block {
    _Atomic uint32_t refs;
    int large;          /* 64-bit offsets */
    int64_t room;       /* records */
    int64_t count;
    uint8_t *fixed;
    int64_t *offsets;
    int64_t *timestamps;
    struct shmb_out_bytes keys, values;
};

static inline void shmb_block_release(struct shmb_out_block *b) {
    if (b && atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1) {
        free(b->fixed);
        free(b->keys.data);
        free(b->values.data);
        free(b);
    }
}

/* For at most `room` records whose values have at most `bytes` bytes together, and their keys too.
 * NULL: no memory. */
static struct shmb_out_block *shmb_block_new(int64_t room, size_t bytes, int large) {
    size_t n = (size_t)room, bits = (n + 63) / 64 * 8, ends = (n + 2) / 2 * 2 * (large ? 8 : 4);
    struct shmb_out_block *b = (struct shmb_out_block *)calloc(1, sizeof *b);
    if (!b) return NULL;
    atomic_store_explicit(&b->refs, 1, memory_order_relaxed);
    b->large = large;
    b->room = room;
    b->fixed = (uint8_t *)malloc(16 * n + 2 * bits + 2 * ends);
    b->values.data = (uint8_t *)malloc(bytes + 1);
    if (!b->fixed || !b->values.data) {
        shmb_block_release(b);
        return NULL;
    }
    b->offsets = (int64_t *)b->fixed;
    b->timestamps = b->offsets + n;
    b->keys.offsets = b->timestamps + n;
    b->values.offsets = (uint8_t *)b->keys.offsets + ends;
    b->keys.validity = (uint8_t *)b->values.offsets + ends;
    b->values.validity = b->keys.validity + bits;
    b->keys.validity_bytes = b->values.validity_bytes = bits;
    return b;
}

SHMB_INLINE void shmb_out_end(struct shmb_out_bytes *c, int large, int64_t i) {
    if (large)
        ((int64_t *)c->offsets)[i] = (int64_t)c->used;
    else
        ((int32_t *)c->offsets)[i] = (int32_t)c->used;
}
/* From element `i` on the column has both: says of those before it that all, or none, are null. */
static __attribute__((noinline)) void shmb_out_mix(struct shmb_out_bytes *c, int large, int64_t i,
                                                   int null) {
    memset(c->validity, 0, c->validity_bytes);
    if (null) {
        memset(c->offsets, 0, (size_t)(i + 1) * (large ? 8 : 4));
        c->nulls = i;
    } else {
        memset(c->validity, 0xff, (size_t)(i >> 3));
        if (i & 7) c->validity[i >> 3] = (uint8_t)((1u << (i & 7)) - 1);
    }
    c->mixed = 1;
}

SHMB_INLINE void shmb_out_copy(struct shmb_out_bytes *c, const uint8_t *at, int32_t bytes) {
    if (bytes > 0) {
        shmb_copy_small(c->data + c->used, at, (size_t)bytes);
        c->used += (size_t)bytes;
    }
}
SHMB_INLINE void shmb_out_put_mixed(struct shmb_out_bytes *c, int large, int64_t i,
                                    const uint8_t *at, int32_t bytes) {
    shmb_out_end(c, large, i);
    if (bytes < 0)
        c->nulls++;
    else
        c->validity[i >> 3] |= (uint8_t)(1u << (i & 7));
    shmb_out_copy(c, at, bytes);
}

/* Values are most often all there, keys all absent: then their bits are not kept one by one. */
SHMB_INLINE void shmb_out_value(struct shmb_out_bytes *c, int large, int64_t i, const uint8_t *at,
                                int32_t bytes) {
    if (SHMB_LIKELY(bytes >= 0 && !c->mixed)) {
        shmb_out_end(c, large, i);
        shmb_out_copy(c, at, bytes);
        return;
    }
    if (!c->mixed) shmb_out_mix(c, large, i, 0);
    shmb_out_put_mixed(c, large, i, at, bytes);
}
SHMB_INLINE void shmb_out_key(struct shmb_out_bytes *c, int large, int64_t i, const uint8_t *at,
                              int32_t bytes) {
    if (SHMB_LIKELY(bytes < 0 && !c->mixed)) return;
    if (!c->mixed) shmb_out_mix(c, large, i, 1);
    shmb_out_put_mixed(c, large, i, at, bytes);
}

/* Appends the records of the batch at `p` with offsets from `start` on; the cursor stands on its
 * first. `key_bytes`: no keys of the block are larger together. Returns record.h's status, END when
 * all went well, or SHMB_OUT_NO_MEMORY. */
enum { SHMB_OUT_NO_MEMORY = 100 };

SHMB_INLINE int shmb_block_add_as(int large, struct shmb_out_block *b, const uint8_t *p,
                                  struct shmb_record_cursor *cursor, int64_t start,
                                  size_t key_bytes) {
    struct shmb_record r;
    int64_t base = shmb_batch_base_offset(p), skip = start - base, n = b->count, room = b->room;
    uint64_t first = (uint64_t)shmb_batch_base_timestamp(p); /* deltas wrap around, as in Java */
    int64_t *offsets = b->offsets, *timestamps = b->timestamps;
    int append_time = shmb_batch_attributes(p) & SHMB_ATTR_LOG_APPEND_TIME;
    int64_t last = shmb_batch_max_timestamp(p);
    int status;
    /* Copies: bytes that are stored could be any object's whose address somebody has. */
    struct shmb_record_cursor at = *cursor;
    struct shmb_out_bytes keys = b->keys, values = b->values;
    while ((status = shmb_record_next(&at, &r)) == SHMB_RECORD_OK) {
        if (r.offset_delta < skip) continue;
        if (SHMB_UNLIKELY(n == room)) {
            status = SHMB_RECORD_TRAILING;
            break;
        }
        if (SHMB_UNLIKELY(r.key_len > 0 && !keys.data)) {
            keys.data = (uint8_t *)malloc(key_bytes);
            if (!keys.data) return SHMB_OUT_NO_MEMORY;
        }
        offsets[n] = base + r.offset_delta;
        timestamps[n] = append_time ? last : (int64_t)(first + (uint64_t)r.timestamp_delta);
        shmb_out_key(&keys, large, n, r.key, r.key_len);
        shmb_out_value(&values, large, n, r.value, r.val_len);
        n++;
    }
    b->keys = keys;
    b->values = values;
    b->count = n;
    return status;
}
static int shmb_block_add(struct shmb_out_block *b, const uint8_t *p,
                          struct shmb_record_cursor *cursor, int64_t start, size_t key_bytes) {
    return b->large ? shmb_block_add_as(1, b, p, cursor, start, key_bytes)
                    : shmb_block_add_as(0, b, p, cursor, start, key_bytes);
}

/* After the last record: the ends of the last key and value. */
static void shmb_block_end(struct shmb_out_block *b) {
    if (b->keys.data) { /* keys are most often a small part of what they could have been */
        uint8_t *less = (uint8_t *)realloc(b->keys.data, b->keys.used + 1);
        if (less) b->keys.data = less;
    }
    if (!b->keys.mixed) shmb_out_mix(&b->keys, b->large, b->count, 1);
    shmb_out_end(&b->keys, b->large, b->count);
    shmb_out_end(&b->values, b->large, b->count);
}

/* How long value `i` is; -1: null. */
static inline int64_t shmb_block_value_bytes(const struct shmb_out_block *b, int64_t i) {
    if (b->values.nulls && !(b->values.validity[i >> 3] >> (i & 7) & 1)) return -1;
    if (b->large) return ((int64_t *)b->values.offsets)[i + 1] - ((int64_t *)b->values.offsets)[i];
    return ((int32_t *)b->values.offsets)[i + 1] - ((int32_t *)b->values.offsets)[i];
}

/* The first value that is null or not as long as the first one; -1: none. */
static inline int64_t shmb_block_first_other(const struct shmb_out_block *b) {
    int64_t width = b->count ? shmb_block_value_bytes(b, 0) : 0;
    for (int64_t i = 0; i < b->count; i++)
        if (width < 0 || shmb_block_value_bytes(b, i) != width) return i;
    return -1;
}

/* ---- The schema --------------------------------------------------------------------------- */

struct shmb_out_schema {
    struct ArrowSchema child[SHMB_OUT_COLUMNS];
    struct ArrowSchema *children[SHMB_OUT_COLUMNS];
};

/* Its text is constant. */
static void shmb_out_child_schema_release(struct ArrowSchema *s) { s->release = NULL; }

static void shmb_out_schema_release(struct ArrowSchema *s) {
    struct shmb_out_schema *own = (struct shmb_out_schema *)s->private_data;
    for (int i = 0; i < SHMB_OUT_COLUMNS; i++)
        if (own->child[i].release) own->child[i].release(&own->child[i]);
    free(own);
    s->release = NULL;
}

/* 0: no memory. */
static int shmb_out_schema(struct ArrowSchema *to, int large) {
    static const char *const names[] = {"offset", "timestamp", "key", "value"};
    const char *bytes = large ? "Z" : "z";
    const char *formats[] = {"l", "tsm:UTC", bytes, bytes};
    struct shmb_out_schema *own = (struct shmb_out_schema *)calloc(1, sizeof *own);
    if (!own) return 0;
    for (int i = 0; i < SHMB_OUT_COLUMNS; i++) {
        own->children[i] = &own->child[i];
        own->child[i].format = formats[i];
        own->child[i].name = names[i];
        own->child[i].flags = i >= SHMB_OUT_KEY ? ARROW_FLAG_NULLABLE : 0;
        own->child[i].release = shmb_out_child_schema_release;
    }
    memset(to, 0, sizeof *to);
    to->format = "+s";
    to->name = "";
    to->n_children = SHMB_OUT_COLUMNS;
    to->children = own->children;
    to->private_data = own;
    to->release = shmb_out_schema_release;
    return 1;
}

/* ---- The array ---------------------------------------------------------------------------- */

/* What one ArrowArray owns. */
struct shmb_out_array {
    struct shmb_out_block *block;
    const void *buffers[3];
    struct ArrowArray *children[SHMB_OUT_COLUMNS]; /* of the struct's; each child has a */
    struct ArrowArray child[SHMB_OUT_COLUMNS];     /* shmb_out_array of its own */
};

static void shmb_out_array_release(struct ArrowArray *a) {
    struct shmb_out_array *own = (struct shmb_out_array *)a->private_data;
    for (int64_t i = 0; i < a->n_children; i++)
        if (a->children[i]->release) a->children[i]->release(a->children[i]);
    shmb_block_release(own->block);
    free(own);
    a->release = NULL;
}

static struct shmb_out_array *shmb_out_array_new(struct ArrowArray *to, struct shmb_out_block *b,
                                                 int64_t n_buffers, int64_t nulls) {
    struct shmb_out_array *own = (struct shmb_out_array *)calloc(1, sizeof *own);
    memset(to, 0, sizeof *to);
    if (!own) return NULL;
    own->block = b;
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    to->length = b->count;
    to->null_count = nulls;
    to->n_buffers = n_buffers;
    to->buffers = own->buffers;
    to->private_data = own;
    to->release = shmb_out_array_release;
    return own;
}

/* The block as a struct array that shares it. 0: no memory. */
static int shmb_out_array(struct ArrowArray *to, struct shmb_out_block *b) {
    static const uint8_t nothing[8];
    struct shmb_out_bytes *columns[] = {NULL, NULL, &b->keys, &b->values};
    struct shmb_out_array *top = shmb_out_array_new(to, b, 1, 0), *own;
    if (!top) return 0;
    to->children = top->children;
    for (int i = 0; i < SHMB_OUT_COLUMNS; i++) {
        struct shmb_out_bytes *c = columns[i];
        top->children[i] = &top->child[i];
        own = shmb_out_array_new(&top->child[i], b, c ? 3 : 2, c ? c->nulls : 0);
        if (!own) {
            to->release(to);
            return 0;
        }
        to->n_children = i + 1;
        if (c) {
            own->buffers[0] = c->nulls ? c->validity : NULL;
            own->buffers[1] = c->offsets;
            own->buffers[2] = c->data ? c->data : nothing;
        } else {
            own->buffers[1] = i == SHMB_OUT_OFFSET ? b->offsets : b->timestamps;
        }
    }
    return 1;
}

#endif
