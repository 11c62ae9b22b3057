/* Batches that somebody else has encoded, into the rings: one copy, no look at the records.
 *
 *   RelayTopic.publish (GIL) ── shmb_lane_relay ──► ring ──► receipt ──► watch ──► mailbox ── eventfd
 *
 * A foreign lane is one producer elsewhere and one partition. Producer id, epoch and sequence are that producer's and
 * stay as they are, so whatever comes twice is found by the partition. Its chain (chain.h) is the producer's epoch:
 * another epoch, another chain. Everything but the way in (waits, receipts, lost rings, moves) is as of any lane.
 */
#ifndef SHMB_PRODUCER_RELAY_H
#define SHMB_PRODUCER_RELAY_H

#include "producer_move.h"

/* Makes a new lane a foreign one; before anybody uses it. */
static inline void shmb_lane_make_foreign(struct shmb_lane *l, enum shmb_foreign kind, int64_t producer_id)
{
    l->foreign = (uint8_t)kind;
    l->acks = SHMB_ACKS_DURABLE; /* the client thread sleeps on durability too */
    l->producer_id = producer_id;
    l->epoch = -1;
    l->delivery_ns = INT64_MAX / 2; /* who sent it decides how long to wait */
    if (kind == SHMB_FOREIGN_SINGLE)
        l->chain = 0;
}

/* Copies a batch of `length` bytes (a header at least) into the ring and publishes it; under the lock. `w` is hung
 * on it unless acks is none; *stir: the client thread must learn of it. */
static enum shmb_put shmb_lane_relay_locked(struct shmb_lane *l, const uint8_t *from, uint32_t length, uint16_t acks,
                                            struct shmb_watch *w, struct shmb_pbatch **out, int *stir)
{
    struct shmb_outlet *o = l->out;
    struct shmb_ingress *g = &o->ring;
    int32_t epoch = shmb_batch_producer_epoch(from);
    shmb_outlet_drain(o);
    if (shmb_peek32(&l->busy))
        return SHMB_PUT_BUSY;
    if (l->producer_id >= 0 && epoch != l->epoch) {
        l->epoch = epoch;
        l->broken = 0;
        l->chain += l->foreign == SHMB_FOREIGN_CHAINED;
    }
    if (l->broken)
        return SHMB_PUT_REFUSED;
    if (l->stale)
        return SHMB_PUT_STALE;
    if (shmb_peek32(&g->back->detached))
        return SHMB_PUT_DETACHED;
    if (shmb_frame_bytes(length) > g->capacity)
        return SHMB_PUT_TOO_LARGE;
    if (!shmb_lane_may_fly(l) || shmb_ingress_room(g) < shmb_frame_bytes(length))
        return SHMB_PUT_NO_ROOM;
    struct shmb_pbatch *b = (struct shmb_pbatch *)calloc(1, sizeof *b);
    if (!b)
        return SHMB_PUT_NO_MEMORY;
    shmb_poke32(&b->refs, 1); /* its place in flight */
    atomic_fetch_add_explicit(&l->refs, 1, memory_order_relaxed);
    b->lane = l;
    b->acks = acks;
    b->base_offset = -1;
    b->born_ns = shmb_coarse_ns();
    b->count = shmb_batch_record_count(from); /* for counters and messages: the writer judges it */
    b->chain = l->chain;
    b->producer_id = shmb_batch_producer_id(from);
    b->epoch = epoch;
    b->base_sequence = shmb_batch_base_sequence(from);
    b->frame_position = g->published;
    b->frame_bytes = (uint32_t)shmb_frame_bytes(length);
    b->frame_seq = g->next_seq;
    o->inflight[b->frame_seq & (g->slots - 1)] = b;
    memcpy(shmb_ingress_frame(g) + 1, from, length);
    shmb_publish32(&b->state, SHMB_PB_PUBLISHED);
    l->in_flight++;
    if (acks != SHMB_ACKS_NONE) {
        shmb_pbatch_py_hold(b);
        *stir = shmb_pbatch_watch(b, w);
    }
    shmb_ingress_publish(g, length, acks, l->slot_index, l->slot_epoch, b->chain);
    o->batches++;
    o->records += b->count > 0 ? (uint64_t)b->count : 0;
    *out = b;
    return SHMB_PUT_OK;
}
/* The same, with the lock; the GIL is held. With SHMB_PUT_NO_ROOM *tail and *receipts are what was seen before, for
 * shmb_outlet_watch_room(). The batch has a Python reference unless acks is none. */
static inline enum shmb_put shmb_lane_relay(struct shmb_lane *l, const uint8_t *from, uint32_t length, uint16_t acks,
                                            struct shmb_watch *w, struct shmb_pbatch **out, int *stir,
                                            uint64_t *tail, uint64_t *receipts)
{
    struct shmb_outlet *o = shmb_lane_lock(l);
    *tail = shmb_observe(&o->ring.back->tail);
    *receipts = shmb_observe(&o->ring.back->receipts);
    enum shmb_put rc = shmb_lane_relay_locked(l, from, length, acks, w, out, stir);
    shmb_unlock(&o->lock);
    return rc;
}

#endif
