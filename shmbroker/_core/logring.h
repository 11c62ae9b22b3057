/* Reading a log ring from outside the writer: copy, then look whether it was still there.
 *
 * The ring's data is written by the sequencer alone; durable_position and the flush segment by the
 * holder of the write token. A reader announces nothing (invariant 6).
 */
#ifndef SHMB_LOGRING_H
#define SHMB_LOGRING_H

#include <string.h>

#include "layout.h"

struct shmb_log_view {             /* one mapped generation of a ring, read-only */
    const struct shmb_slot *slot;
    const uint8_t *object;         /* the whole mapping; NULL: none */
    const uint8_t *data;           /* double mapped */
    const struct shmb_index_entry *index;
    uint64_t capacity;
    uint64_t index_entries;
    uint64_t generation;
};

static inline void shmb_log_view_set(struct shmb_log_view *v, const struct shmb_slot *slot,
                                     const uint8_t *object, uint64_t capacity, uint64_t generation)
{
    v->slot = slot;
    v->object = object;
    v->data = object + shmb_log_data_offset(capacity);
    v->index = (const struct shmb_index_entry *)(object + SHMB_PAGE);
    v->capacity = capacity;
    v->index_entries = shmb_log_index_entries(capacity);
    v->generation = generation;
}

/* Whether bytes copied from `position` on were not overwritten before the copy ended.
 *
 * The writer: stores reserved = R (relaxed), release fence, then stores bytes over positions below
 * R - capacity. The reader: copies, acquire fence, loads reserved. If a copied byte came from one of
 * those later stores, that load-store pair together with the two fences synchronises (C11 7.17.4: a
 * release fence before the store, an acquire fence after the load that read it), so the reader's load
 * of reserved returns R or more, and the check fails. The bytes themselves are copied by memcpy: a
 * racing copy is thrown away, never looked at. */
static inline int shmb_slot_still_there(const struct shmb_slot *slot, uint64_t position, uint64_t capacity)
{
    shmb_fence_acquire();
    uint64_t reserved = shmb_peek(&slot->reserved_position);
    return reserved <= position + capacity;
}

/* Copies n bytes at `position`. 1: good; 0: lapped or another generation (go on from the file). */
static inline int shmb_log_copy(const struct shmb_log_view *v, uint64_t position, void *to, size_t n)
{
    if (n > v->capacity)
        return 0;
    memcpy(to, v->data + position % v->capacity, n);
    return shmb_slot_still_there(v->slot, position, v->capacity) &&
           shmb_peek(&v->slot->generation) == v->generation;
}

/* The greatest index entry with base offset <= `offset` that is still in the ring: 1 and the entry, or
 * 0. The caller walks from there by the batches' own lengths. */
static inline int shmb_log_find(const struct shmb_log_view *v, int64_t offset, int64_t *base_offset,
                                uint64_t *position)
{
    uint64_t head = shmb_observe(&v->slot->index_head);
    uint64_t low = head > v->index_entries ? head - v->index_entries : 0;
    uint64_t high = head; /* binary search in [low, high): entries rise in both fields */
    int found = 0;
    while (low < high) {
        uint64_t mid = low + (high - low) / 2;
        const struct shmb_index_entry *e = &v->index[mid % v->index_entries];
        /* Position first, by acquire; the writer stores it last, by release. So an old offset can't come
         * with a newer position; a newer offset comes with a `reserved` that refuses the position. */
        uint64_t p = shmb_observe(&e->position);
        int64_t o = (int64_t)shmb_peek(&e->base_offset);
        if (!shmb_slot_still_there(v->slot, p, v->capacity)) {
            low = mid + 1; /* overwritten, or about to be: too old */
        } else if (o <= offset) {
            found = 1;
            *base_offset = o;
            *position = p;
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return found;
}

/* The segment that durable_position lies in, and that position, as one consistent triple. */
static inline void shmb_slot_flush_segment(const struct shmb_slot *slot, int64_t *base_offset,
                                           uint64_t *base_position, uint64_t *durable_position)
{
    for (;;) {
        uint64_t before = shmb_observe(&slot->flush_seq);
        *base_offset = (int64_t)shmb_peek(&slot->flush_base_offset);
        *base_position = shmb_peek(&slot->flush_base_position);
        *durable_position = shmb_observe(&slot->durable_position);
        shmb_fence_acquire();
        if (!(before & 1) && shmb_peek(&slot->flush_seq) == before)
            return;
        shmb_relax();
    }
}

#endif
