/* The open batch of a lane: where it grows, and how it is sealed and published.
 *
 * A single open batch of an outlet grows in place in the ring; with a second one, all grow in staging
 * buffers and are copied in when sealed (an open batch in place would block the frames behind it).
 * Everything here is called with the outlet's lock. */
#ifndef SHMB_PRODUCER_BATCH_H
#define SHMB_PRODUCER_BATCH_H

#include "batch.h"
#include "producer_outcome.h"
#include "ticks.h"

static inline void shmb_outlet_add_open(struct shmb_outlet *o, struct shmb_lane *l)
{
    l->prev_open = NULL;
    l->next_open = o->open;
    if (o->open)
        o->open->prev_open = l;
    o->open = l;
    if (o->open_count++ == 0)
        o->poke = 1;
}
static inline void shmb_outlet_remove_open(struct shmb_outlet *o, struct shmb_lane *l)
{
    if (l->prev_open)
        l->prev_open->next_open = l->next_open;
    else
        o->open = l->next_open;
    if (l->next_open)
        l->next_open->prev_open = l->prev_open;
    o->open_count--;
}

/* Bytes that a lane may stage: all staging buffers together stay within a few MiB. */
#define SHMB_STAGING_TOTAL (4u << 20)
#define SHMB_STAGING_LEAST 8192u
static inline uint32_t shmb_lane_want(const struct shmb_lane *l)
{
    uint32_t share = SHMB_STAGING_TOTAL / (l->out->open_count ? l->out->open_count : 1);
    if (share < SHMB_STAGING_LEAST)
        share = SHMB_STAGING_LEAST;
    return l->batch_want < share ? l->batch_want : share;
}

/* Makes the staging buffer hold `bytes`; the open batch moves with it. */
static inline int shmb_lane_stage(struct shmb_lane *l, uint32_t bytes)
{
    if (l->staging_bytes >= bytes)
        return 1;
    uint32_t to = l->staging_bytes ? l->staging_bytes : 2048;
    while (to < bytes)
        to *= 2;
    uint8_t *moved = (uint8_t *)realloc(l->staging, to);
    if (!moved)
        return 0;
    if (l->open && !l->in_ring) {
        l->at = moved + (l->at - l->base);
        l->base = moved;
    }
    l->staging = moved;
    l->staging_bytes = to;
    return 1;
}
static inline void shmb_lane_staging_limit(struct shmb_lane *l, uint32_t allowed)
{
    l->limit = l->base + (allowed < l->staging_bytes ? allowed : l->staging_bytes);
}

/* The open batch leaves the ring, since another partition's is about to open. */
static inline int shmb_lane_evict(struct shmb_lane *l)
{
    uint32_t bytes = (uint32_t)(l->at - l->base);
    if (!shmb_lane_stage(l, bytes + 512))
        return 0;
    memcpy(l->staging, l->base, bytes);
    l->in_ring = 0;
    l->base = l->staging;
    l->at = l->base + bytes;
    shmb_lane_staging_limit(l, shmb_lane_want(l));
    return 1;
}

/* How far a batch in the ring may grow now. */
static inline void shmb_lane_ring_limit(struct shmb_lane *l, uint32_t allowed)
{
    uint64_t room = shmb_ingress_room(&l->out->ring);
    uint64_t most = room > sizeof(struct shmb_frame) ? room - sizeof(struct shmb_frame) : 0;
    l->limit = l->base + (allowed < most ? allowed : most);
}

/* Whether one more frame of this lane may go in flight: a place for its receipt, and a place in what the broker
 * remembers of this producer and partition. */
static inline int shmb_lane_may_fly(const struct shmb_lane *l)
{
    return l->in_flight < SHMB_IN_FLIGHT_MAX && shmb_ingress_slot_free(&l->out->ring);
}

static enum shmb_put shmb_lane_seal(struct shmb_lane *l);

/* Opens a batch for a record that needs at most `need` bytes with the batch's header. */
static __attribute__((noinline)) enum shmb_put shmb_lane_open(struct shmb_lane *l, uint32_t need)
{
    struct shmb_outlet *o = l->out;
    struct shmb_ingress *g = &o->ring;
    if (shmb_peek32(&l->busy))
        return SHMB_PUT_BUSY;
    shmb_outlet_drain(o);
    if (__builtin_expect(shmb_peek32(&g->back->detached) != 0, 0))
        return SHMB_PUT_DETACHED;
    if (l->epoch > INT16_MAX)
        return SHMB_PUT_NEW_ID;
    int in_ring = o->open_count == 0 && o->mixed == 0 && l->codec == SHMB_COMPRESSION_NONE;
    uint32_t want = l->batch_want > need ? l->batch_want : need;
    if (in_ring) {
        uint64_t room = shmb_ingress_room(g), least = shmb_frame_bytes(need);
        /* Not in a sliver of a full ring: the writer is about to give back a whole batch's room. */
        if (least < want / 4)
            least = want / 4;
        if (room < least)
            return SHMB_PUT_NO_ROOM;
    } else if (o->open_count == 1 && o->open->in_ring) {
        o->mixed = 64;
        int sizeable = o->open->at - o->open->base >= (ptrdiff_t)SHMB_STAGING_LEAST;
        if (!(sizeable && shmb_lane_seal(o->open) == SHMB_PUT_OK) && !shmb_lane_evict(o->open))
            return SHMB_PUT_NO_MEMORY;
    }
    struct shmb_pbatch *b = (struct shmb_pbatch *)calloc(1, sizeof *b);
    if (!b)
        return SHMB_PUT_NO_MEMORY;
    if (!in_ring && !shmb_lane_stage(l, need + 1024)) {
        free(b);
        return SHMB_PUT_NO_MEMORY;
    }
    atomic_store_explicit(&b->refs, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&l->refs, 1, memory_order_relaxed);
    b->lane = l;
    b->acks = l->acks;
    b->base_offset = -1;
    b->born_ns = shmb_coarse_ns();
    l->open = b;
    l->opened_ticks = shmb_ticks();
    l->full = l->compressed = 0;
    l->in_ring = (uint8_t)in_ring;
    shmb_outlet_add_open(o, l);
    if (in_ring) {
        l->base = (uint8_t *)(shmb_ingress_frame(g) + 1);
        shmb_lane_ring_limit(l, want);
    } else {
        l->base = l->staging;
        if (o->mixed)
            o->mixed--;
        uint32_t staged = shmb_lane_want(l);
        shmb_lane_staging_limit(l, staged > need ? staged : need);
    }
    l->at = shmb_batch_begin(l->base);
    return SHMB_PUT_OK;
}

/* ---- Sealing; under the lock ------------------------------------------------------------------ */

/* Takes the open batch's records out for compression: until shmb_lane_pack() nobody touches it. */
static inline void shmb_lane_hold_open(struct shmb_lane *l)
{
    shmb_publish32(&l->busy, 1);
    l->limit = l->at;
}
/* Puts them back, `bytes` of compressed ones at `packed`, or NULL where that saved nothing. The batch
 * takes no more records. The caller wakes those who wait for `busy`. */
static inline void shmb_lane_pack(struct shmb_lane *l, const void *packed, uint32_t bytes)
{
    if (packed) { /* smaller than what it replaces, so it fits */
        memcpy(l->base + SHMB_BATCH_HEADER_BYTES, packed, bytes);
        l->at = l->base + SHMB_BATCH_HEADER_BYTES + bytes;
    }
    l->compressed = packed ? 1 : 2;
    l->full = 1;
    l->limit = l->at;
    shmb_publish32(&l->busy, 0);
}

/* An open batch that never got a record. */
static inline void shmb_lane_unopen(struct shmb_lane *l)
{
    struct shmb_pbatch *b = l->open;
    shmb_outlet_remove_open(l->out, l);
    l->open = NULL;
    shmb_pbatch_release(b);
}

/* Fails the open batch, which no ring will take. */
static inline void shmb_lane_drop_open(struct shmb_lane *l, int32_t error)
{
    struct shmb_pbatch *b = l->open;
    if (!b)
        return;
    shmb_outlet_remove_open(l->out, l);
    l->open = NULL;
    shmb_pbatch_fail(b, SHMB_PB_FAILED, error); /* keeps the reference */
}

/* Seals the open batch and publishes it. NO_ROOM: it stays open, and full if it can't grow. */
static enum shmb_put shmb_lane_seal(struct shmb_lane *l)
{
    struct shmb_outlet *o = l->out;
    struct shmb_ingress *g = &o->ring;
    struct shmb_pbatch *b = l->open;
    if (shmb_peek32(&l->busy))
        return SHMB_PUT_BUSY;
    if (l->codec && !l->compressed)
        return SHMB_PUT_COMPRESS;
    if (l->epoch > INT16_MAX)
        return SHMB_PUT_NEW_ID;
    uint32_t bytes = (uint32_t)(l->at - l->base);
    if (!shmb_lane_may_fly(l)) {
        shmb_outlet_drain(o);
        if (!shmb_lane_may_fly(l))
            return SHMB_PUT_NO_ROOM; /* it goes on growing meanwhile */
    }
    if (!l->in_ring) {
        if (shmb_peek32(&g->back->detached))
            return SHMB_PUT_DETACHED;
        if (shmb_ingress_room(g) < shmb_frame_bytes(bytes))
            return SHMB_PUT_NO_ROOM;
        uint8_t *to = (uint8_t *)(shmb_ingress_frame(g) + 1);
        memcpy(to + SHMB_BATCH_HEADER_BYTES, l->base + SHMB_BATCH_HEADER_BYTES, bytes - SHMB_BATCH_HEADER_BYTES);
        l->base = to;
    }
    b->chain = l->chain;
    b->producer_id = l->producer_id;
    b->epoch = l->producer_id >= 0 ? l->epoch : -1;
    b->base_sequence = l->producer_id >= 0 ? l->sequence : -1;
    l->sequence = (int32_t)(((uint32_t)l->sequence + (uint32_t)b->count) & 0x7fffffffu);
    shmb_batch_seal(l->base, l->base + bytes, l->compressed == 1 ? l->codec : 0, b->base_sequence,
                    b->producer_id, (int16_t)b->epoch, b->first_timestamp, b->max_timestamp, b->count);
    b->frame_position = g->published;
    b->frame_bytes = (uint32_t)shmb_frame_bytes(bytes);
    b->frame_seq = g->next_seq;
    o->inflight[b->frame_seq & (g->slots - 1)] = b; /* takes over the lane's reference */
    shmb_outlet_remove_open(o, l);
    l->open = NULL;
    shmb_pbatch_hold(b);
    if (l->last)
        shmb_pbatch_release(l->last);
    l->last = b;
    shmb_publish32(&b->state, SHMB_PB_PUBLISHED);
    l->in_flight++;
    shmb_ingress_publish(g, bytes, b->acks, l->slot_index, l->slot_epoch, b->chain);
    if (b->acks == SHMB_ACKS_NONE)
        shmb_pbatch_settle_watches(b);
    o->sealed_ticks = shmb_ticks();
    o->batches++;
    o->records += (uint64_t)b->count;
    return SHMB_PUT_OK;
}

/* Makes room for `need` more bytes in the open batch, or seals it. OK: look again (open may be NULL). */
static __attribute__((noinline)) enum shmb_put shmb_lane_more(struct shmb_lane *l, uint32_t need)
{
    struct shmb_pbatch *b = l->open;
    if (shmb_peek32(&l->busy))
        return SHMB_PUT_BUSY;
    if (!l->full) {
        uint32_t bytes = (uint32_t)(l->at - l->base), want = l->in_ring ? l->batch_want : shmb_lane_want(l);
        if (b->count == 0 && want < bytes + need)
            want = bytes + need; /* a single record may fill a batch by itself */
        if (bytes + need <= want) {
            if (l->in_ring)
                shmb_lane_ring_limit(l, want);
            else if (!shmb_lane_stage(l, bytes + need))
                return SHMB_PUT_NO_MEMORY;
            else
                shmb_lane_staging_limit(l, want);
            if (l->limit - l->at >= (ptrdiff_t)need)
                return SHMB_PUT_OK;
        }
    }
    if (b->count == 0) { /* the ring has no room for even one */
        shmb_lane_unopen(l);
        return SHMB_PUT_NO_ROOM;
    }
    enum shmb_put rc = shmb_lane_seal(l);
    if (rc == SHMB_PUT_NO_ROOM) {
        l->full = 1;
        l->limit = l->at;
    }
    return rc;
}

#endif
