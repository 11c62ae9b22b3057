/* What became of the batches that were sealed: receipts taken, durability awaited, rejections, lost rings.
 *
 * Everything here is called with the outlet's lock. */
#ifndef SHMB_PRODUCER_OUTCOME_H
#define SHMB_PRODUCER_OUTCOME_H

#include "producer_watch.h"

static inline void shmb_pbatch_fail(struct shmb_pbatch *b, enum shmb_pbatch_state state, int32_t error)
{
    struct shmb_lane *l = b->lane;
    b->error = error;
    if (l->foreign) { /* whoever watches it is told; nobody flushes */
        shmb_publish32(&b->state, state);
        shmb_pbatch_settle_watches(b);
        shmb_pbatch_release(b);
        return;
    }
    b->unlooked = b->count;
    b->next = NULL;
    if (l->failed_last)
        l->failed_last->next = b;
    else
        l->failed = b;
    l->failed_last = b;
    shmb_publish32(&b->state, state);
    shmb_pbatch_settle_watches(b);
}

/* Moves what has become durable out of the lane's waiting list. */
static inline void shmb_lane_settle(struct shmb_lane *l)
{
    struct shmb_pbatch *b;
    while ((b = l->waiting)) {
        int verdict = shmb_durable_verdict(l->slot, l->slot_epoch, b->end_position, b->generation);
        if (verdict == 0)
            return;
        l->waiting = b->next;
        if (!l->waiting)
            l->waiting_last = NULL;
        if (verdict > 0) {
            shmb_publish32(&b->state, SHMB_PB_DONE);
            shmb_pbatch_settle_watches(b);
            shmb_pbatch_release(b);
        } else {
            shmb_pbatch_fail(b, SHMB_PB_UNKNOWN, SHMB_E_UNKNOWN_OUTCOME); /* keeps the reference */
        }
    }
}

/* The first rejection of a chain ends it, and the epoch of an idempotent lane: what is sealed later begins anew
 * at sequence 0. What was in the ring already is rejected by the writer, with SHMB_E_EARLIER. A foreign producer
 * raises its epoch by itself: until it does, nothing more of its chain is published (`broken`), since the receipts,
 * which are the writer's memory of the rejection, are about to be written over. */
static inline void shmb_lane_rejected(struct shmb_lane *l, struct shmb_pbatch *b, int32_t error)
{
    if (error == 3)
        l->stale = 1;
    if (error == SHMB_E_EARLIER) {
        b->cause = l->failed_error;
    } else if (b->chain == l->chain && l->foreign) {
        if (l->foreign == SHMB_FOREIGN_CHAINED) {
            l->failed_error = error;
            l->failed_sequence = b->base_sequence;
            l->broken = l->producer_id >= 0;
            l->chain += l->producer_id < 0;
        }
    } else if (b->chain == l->chain) {
        l->failed_error = error;
        l->chain++;
        if (l->producer_id >= 0 && b->producer_id == l->producer_id && b->epoch == l->epoch) {
            l->epoch++;
            l->sequence = 0;
        }
    }
    if (b->resent && error == SHMB_E_SEQUENCE_GAP)
        shmb_pbatch_fail(b, SHMB_PB_UNKNOWN, SHMB_E_UNKNOWN_OUTCOME);
    else
        shmb_pbatch_fail(b, SHMB_PB_FAILED, error);
}

static inline void shmb_pbatch_received(struct shmb_pbatch *b, const struct shmb_receipt *r)
{
    struct shmb_lane *l = b->lane;
    if (__builtin_expect(r->error != 0, 0)) {
        shmb_lane_rejected(l, b, r->error);
        return;
    }
    b->end_position = r->end_position;
    b->generation = r->generation;
    if (b->acks != SHMB_ACKS_NONE && r->base_offset >= 0) /* not so of a resend that is long past: known already */
        b->base_offset = r->base_offset;
    if (b->acks != SHMB_ACKS_DURABLE) {
        shmb_publish32(&b->state, SHMB_PB_DONE);
        shmb_pbatch_settle_watches(b);
        shmb_pbatch_release(b);
        return;
    }
    b->next = NULL;
    if (l->waiting_last)
        l->waiting_last->next = b;
    else
        l->waiting = b;
    l->waiting_last = b;
    shmb_publish32(&b->state, SHMB_PB_RECEIVED);
    shmb_lane_settle(l);
}

/* Takes all receipts that have arrived. Returns how many. */
static inline unsigned shmb_outlet_drain(struct shmb_outlet *o)
{
    const struct shmb_receipt *r;
    unsigned n = 0;
    while ((r = shmb_ingress_receipt(&o->ring))) {
        uint64_t place = o->ring.received & (o->ring.slots - 1);
        struct shmb_pbatch *b = o->inflight[place];
        o->inflight[place] = NULL;
        o->ring.received++;
        n++;
        if (b) {
            b->lane->in_flight--;
            shmb_pbatch_received(b, r);
        }
    }
    return n;
}

/* The writer has dropped the ring: frames without receipt were not appended, and end with `error`. */
static inline void shmb_outlet_abandon(struct shmb_outlet *o, int32_t error)
{
    shmb_outlet_drain(o);
    for (; o->ring.received < o->ring.next_seq; o->ring.received++) {
        uint64_t place = o->ring.received & (o->ring.slots - 1);
        struct shmb_pbatch *b = o->inflight[place];
        o->inflight[place] = NULL;
        if (b) {
            b->lane->in_flight--;
            shmb_lane_rejected(b->lane, b, error);
        }
    }
}

#endif
