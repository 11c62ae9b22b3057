/* Moving lanes to another ring: a larger one, or a new one after the broker lost the old.
 *
 * Every lane is made busy, what is in flight is published again from the old ring's memory, which is still
 * mapped, and then the lanes go on. The mover holds the Python lock of all rings (producer_outlet.pxi). */
#ifndef SHMB_PRODUCER_MOVE_H
#define SHMB_PRODUCER_MOVE_H

#include "producer_lanes.h"

/* Begins a move; 0 when the lane is busy with compression: wait and try again. Takes the lock. */
static inline int shmb_lane_move_begin(struct shmb_lane *l)
{
    struct shmb_outlet *o = shmb_lane_lock(l);
    int ok = !shmb_peek32(&l->busy);
    if (ok && l->open && l->in_ring)
        ok = shmb_lane_evict(l);
    if (ok)
        shmb_lane_hold_open(l);
    shmb_unlock(&o->lock);
    return ok;
}
/* To another outlet; nobody but the mover touches a busy lane. Takes both locks, one after the other. */
static inline void shmb_lane_move(struct shmb_lane *l, struct shmb_outlet *to)
{
    struct shmb_outlet *o = l->out;
    if (o == to)
        return;
    shmb_lock(&o->lock);
    if (l->open)
        shmb_outlet_remove_open(o, l);
    if (l->watched)
        shmb_lane_watch_end(o, l);
    *(struct shmb_outlet *volatile *)&l->out = to;
    shmb_unlock(&o->lock);
    shmb_lock(&to->lock);
    if (l->open)
        shmb_outlet_add_open(to, l);
    if (l->watched)
        shmb_lane_watch_begin(to, l);
    shmb_unlock(&to->lock);
    shmb_outlet_hold(to);
    shmb_outlet_release(o);
}
static inline void shmb_lane_move_end(struct shmb_lane *l)
{
    struct shmb_outlet *o = shmb_lane_lock(l);
    if (l->open && !l->full)
        shmb_lane_staging_limit(l, shmb_lane_want(l));
    shmb_publish32(&l->busy, 0);
    shmb_unlock(&o->lock);
    shmb_lane_wake_busy(l);
}
/* Publishes a batch once more, in the lane's new ring, out of the memory of the old. A batch of an epoch
 * that has ended gets the lane's present one. Takes the lock. */
static inline enum shmb_put shmb_pbatch_republish(struct shmb_pbatch *b, const struct shmb_ingress *old)
{
    struct shmb_lane *l = b->lane;
    struct shmb_outlet *o = shmb_lane_lock(l);
    struct shmb_ingress *g = &o->ring;
    enum shmb_put rc = SHMB_PUT_OK;
    const struct shmb_frame *from = (const struct shmb_frame *)(old->data + (b->frame_position & (old->capacity - 1)));
    uint32_t bytes = from->length;
    shmb_outlet_drain(o);
    if (shmb_ingress_room(g) < b->frame_bytes || !shmb_lane_may_fly(l)) {
        rc = b->frame_bytes > g->capacity ? SHMB_PUT_TOO_LARGE : SHMB_PUT_NO_ROOM;
    } else {
        uint8_t *to = (uint8_t *)(shmb_ingress_frame(g) + 1);
        memcpy(to, from + 1, bytes);
        if (!l->foreign && l->producer_id >= 0 && b->epoch != l->epoch) {
            b->epoch = l->epoch;
            b->base_sequence = l->sequence;
            l->sequence = (int32_t)(((uint32_t)l->sequence + (uint32_t)b->count) & 0x7fffffffu);
            shmb_put_be16(to + SHMB_BATCH_PRODUCER_EPOCH, (int16_t)b->epoch);
            shmb_put_be32(to + SHMB_BATCH_BASE_SEQUENCE, b->base_sequence);
            shmb_batch_put_crc(to, bytes);
        }
        if (!l->foreign)
            b->chain = l->chain;
        b->frame_position = g->published;
        b->frame_seq = g->next_seq;
        b->next = NULL;
        l->in_flight++;
        o->inflight[b->frame_seq & (g->slots - 1)] = b;
        shmb_publish32(&b->state, SHMB_PB_PUBLISHED);
        shmb_ingress_publish(g, bytes, b->acks, l->slot_index, l->slot_epoch, b->chain);
    }
    shmb_unlock(&o->lock);
    return rc;
}

#endif
