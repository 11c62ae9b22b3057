/* Records into the open batches of lanes, and the calls that take the outlet's lock themselves. */
#ifndef SHMB_PRODUCER_LANES_H
#define SHMB_PRODUCER_LANES_H

#include "producer_batch.h"

struct shmb_item {            /* one record to be sent */
    const void *key;
    const void *value;
    const void *headers;      /* encoded */
    int64_t timestamp;        /* ms */
    int32_t key_bytes;        /* -1: null */
    int32_t value_bytes;      /* -1: null */
    uint32_t headers_bytes;
    int32_t headers_count;
};

/* At most this many bytes in a batch that has records already. */
static inline uint64_t shmb_item_bound(const struct shmb_item *r)
{
    return (uint64_t)(r->key_bytes > 0 ? r->key_bytes : 0) + (uint64_t)(r->value_bytes > 0 ? r->value_bytes : 0) +
           r->headers_bytes + SHMB_RECORD_OVERHEAD_MAX;
}
/* Bytes of a batch of this record alone. */
static inline uint64_t shmb_item_alone(const struct shmb_item *r)
{
    return SHMB_BATCH_HEADER_BYTES +
           shmb_record_size(0, 0, r->key_bytes, r->value_bytes, r->headers_bytes, r->headers_count);
}

/* Appends to the lane's open batch; under the lock. OK: *in holds the record as number *index. */
static inline enum shmb_put shmb_lane_put(struct shmb_lane *l, const struct shmb_item *r,
                                          struct shmb_pbatch **in, int32_t *index)
{
    uint64_t bound = shmb_item_bound(r);
    for (;;) {
        struct shmb_pbatch *b = l->open;
        if (__builtin_expect(!b, 0)) {
            uint64_t alone = shmb_item_alone(r);
            if (alone > l->batch_limit)
                return SHMB_PUT_TOO_LARGE;
            enum shmb_put rc = shmb_lane_open(l, (uint32_t)alone);
            if (rc)
                return rc;
            b = l->open;
        }
        int64_t delta = b->count ? r->timestamp - b->first_timestamp : 0;
        size_t need = (size_t)bound;
        if (__builtin_expect(l->limit - l->at < (ptrdiff_t)need, 0)) {
            need = shmb_record_size(delta, b->count, r->key_bytes, r->value_bytes, r->headers_bytes, r->headers_count);
            if (l->limit - l->at < (ptrdiff_t)need) {
                enum shmb_put rc = shmb_lane_more(l, (uint32_t)need);
                if (rc)
                    return rc;
                continue;
            }
        }
        l->at = shmb_record_put(l->at, delta, b->count, r->key, r->key_bytes, r->value, r->value_bytes, r->headers,
                                r->headers_bytes, r->headers_count);
        if (b->count == 0)
            b->first_timestamp = b->max_timestamp = r->timestamp;
        else if (r->timestamp > b->max_timestamp)
            b->max_timestamp = r->timestamp;
        *in = b;
        *index = b->count++;
        return SHMB_PUT_OK;
    }
}

/* When to seal at once, after a record was appended; under the lock. Only while the writer has run dry,
 * and then: a record that came by itself (nothing was sent for SHMB_APART_US), or enough gathered in
 * time or bytes. So a lone record leaves immediately, and a tight loop makes batches of what the
 * writer's pace allows. */
#define SHMB_APART_US 2u
#define SHMB_GATHER_US 20u
#define SHMB_GATHER_BYTES 32768
static inline enum shmb_put shmb_lane_after(struct shmb_lane *l)
{
    struct shmb_outlet *o = l->out;
    uint64_t now = shmb_ticks(), before = o->last_ticks;
    o->last_ticks = now;
    if (l->linger_ticks && (!shmb_ingress_dry(&o->ring) ||
                            (now - before < SHMB_APART_US * shmb_ticks_per_us &&
                             now - o->sealed_ticks < SHMB_GATHER_US * shmb_ticks_per_us &&
                             l->at - l->base < SHMB_GATHER_BYTES)))
        return SHMB_PUT_OK;
    return shmb_lane_seal(l);
}

/* ---- With the lock ---------------------------------------------------------------------------- */

/* Locks the lane's outlet, which may change while we wait for the lock (see shmb_lane_move). */
static inline struct shmb_outlet *shmb_lane_lock(struct shmb_lane *l)
{
    for (;;) {
        struct shmb_outlet *o = *(struct shmb_outlet *volatile *)&l->out;
        shmb_lock(&o->lock);
        if (__builtin_expect(*(struct shmb_outlet *volatile *)&l->out == o, 1))
            return o;
        shmb_unlock(&o->lock);
    }
}
/* One record; the GIL is held. The batch gets a Python reference. *after: what shmb_lane_after said. */
static inline enum shmb_put shmb_lane_send(struct shmb_lane *l, const struct shmb_item *r, struct shmb_pbatch **in,
                                           int32_t *index, enum shmb_put *after)
{
    struct shmb_outlet *o = shmb_lane_lock(l);
    enum shmb_put rc = shmb_lane_put(l, r, in, index);
    if (__builtin_expect(rc == SHMB_PUT_OK, 1)) {
        shmb_pbatch_py_hold(*in);
        *after = shmb_lane_after(l);
    }
    shmb_unlock(&o->lock);
    return rc;
}
/* Counts a record that was dropped, and returns what its receipt points to: a failed batch of no records, one a
 * lane, with a Python reference. The GIL is held. NULL: no memory. */
static inline struct shmb_pbatch *shmb_lane_refuse(struct shmb_lane *l)
{
    struct shmb_pbatch *b = l->refused;
    if (!b) {
        b = (struct shmb_pbatch *)calloc(1, sizeof *b);
        if (!b)
            return NULL;
        atomic_store_explicit(&b->refs, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&l->refs, 1, memory_order_relaxed);
        b->lane = l;
        b->base_offset = -1;
        b->error = SHMB_E_FULL;
        shmb_publish32(&b->state, SHMB_PB_FAILED);
        l->refused = b;
    }
    l->dropped++;
    shmb_pbatch_py_hold(b);
    return b;
}
/* Somebody waits for the open batch: the client thread is not to let it linger. */
static inline void shmb_lane_due(struct shmb_lane *l)
{
    struct shmb_outlet *o = shmb_lane_lock(l);
    l->opened_ticks = 0;
    shmb_unlock(&o->lock);
}
static inline enum shmb_put shmb_lane_flush(struct shmb_lane *l)
{
    struct shmb_outlet *o = shmb_lane_lock(l);
    enum shmb_put rc = l->open && l->open->count ? shmb_lane_seal(l) : SHMB_PUT_OK;
    shmb_unlock(&o->lock);
    return rc;
}

/* Drops all that the lane holds: its owner is going, and no receipt is left. */
static inline void shmb_pbatch_release_list(struct shmb_pbatch *b)
{
    while (b) {
        struct shmb_pbatch *next = b->next;
        shmb_pbatch_release(b);
        b = next;
    }
}
static inline void shmb_lane_forget(struct shmb_lane *l)
{
    struct shmb_outlet *o = shmb_lane_lock(l);
    if (l->open)
        shmb_lane_unopen(l);
    if (l->last)
        shmb_pbatch_release(l->last);
    shmb_pbatch_release_list(l->failed);
    shmb_pbatch_release_list(l->waiting);
    if (l->refused)
        shmb_pbatch_release(l->refused);
    l->refused = l->last = l->failed = l->failed_last = l->waiting = l->waiting_last = NULL;
    shmb_unlock(&o->lock);
}

/* What a waiter for one batch has to do next. */
struct shmb_look {
    uint32_t state;
    enum shmb_put put;         /* of sealing it, while it is open */
    struct shmb_outlet *out;
    struct shmb_receipts_head *back;
    shmb_a32 *word;
    uint64_t tail, receipts;   /* seen before the attempt to seal */
    uint64_t frame_seq, end_position, generation;
    uint32_t detached;
};
/* Seals the batch if it is open, takes receipts, and says where it stands. Takes the lock. */
static inline void shmb_pbatch_look(struct shmb_pbatch *b, int seal, struct shmb_look *look)
{
    struct shmb_lane *l = b->lane;
    struct shmb_outlet *o = shmb_lane_lock(l);
    look->out = o;
    look->back = o->ring.back;
    look->word = o->ring.word;
    look->tail = shmb_observe(&o->ring.back->tail);
    look->receipts = shmb_observe(&o->ring.back->receipts);
    look->put = SHMB_PUT_OK;
    if (seal && l->open == b && b->count)
        look->put = shmb_lane_seal(l);
    shmb_outlet_drain(o);
    shmb_lane_settle(l);
    look->state = shmb_pbatch_state(b);
    look->frame_seq = b->frame_seq;
    look->end_position = b->end_position;
    look->generation = b->generation;
    look->detached = shmb_observe32(&o->ring.back->detached);
    shmb_unlock(&o->lock);
}

/* For the end of compression and of a move; wakes those whom SHMB_PUT_BUSY sent away. */
static inline void shmb_lane_wait_busy(struct shmb_lane *l)
{
    while (shmb_observe32(&l->busy))
        syscall(SYS_futex, &l->busy, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
}
static inline void shmb_lane_wake_busy(struct shmb_lane *l)
{
    syscall(SYS_futex, &l->busy, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

#endif
