/* The client's half of an ingress ring: places for frames, their publication, receipts, and waits.
 *
 *        tail (the writer's)        published = head (ours)
 *          v                          v
 *   +------+--------+--------+--------+----------------------------+- - - - - - - - - - - - -+
 *   | free | frame  | frame  | frame  | the next frame grows here  | data, mapped once more   |
 *   +------+--------+--------+--------+----------------------------+- - - - - - - - - - - - -+
 *            seq n     n + 1    n + 2    next_seq = n + 3
 *
 * Who writes: this process alone writes the ring and its head; the writer writes tail and receipts,
 * which are mapped read-only here (invariant 1). Within the process the outlet's lock (producer_state.h)
 * guards every field of struct shmb_ingress; the waits below take no lock and read shared words only.
 *
 * Order of stores: the frame's bytes, then head by release (the writer observes it by acquire), then
 * shmb_park_wake's fence and look at the doorbell. A frame is in flight until its receipt was taken; at
 * most `slots` - 1 are, so the writer never waits for a place for a receipt (invariant 7).
 */
#ifndef SHMB_INGRESS_H
#define SHMB_INGRESS_H

#include "layout.h"
#include "park.h"

struct shmb_ingress {
    struct shmb_ingress_head *head;  /* the ring object */
    struct shmb_receipts_head *back; /* the receipts object, read-only */
    uint8_t *data;                   /* `capacity` bytes, mapped twice in a row */
    uint64_t capacity;               /* bytes, a power of two */
    uint64_t slots;                  /* receipt places, a power of two */
    shmb_a32 *word;                  /* rung by the writer: space and receipts for this ring */
    shmb_a32 *doorbell;              /* the writer's */
    uint64_t id;                     /* ingress id, as the control channel names it */
    uint64_t published;              /* bytes; what `head` shows */
    uint64_t next_seq;               /* of the next frame */
    uint64_t received;               /* receipts taken: frames below it are settled */
    uint32_t ahead;                  /* frames without a receipt that don't count as work left (see dry) */
    int bell;                        /* an eventfd to tell instead of waking the doorbell; -1: none */
};

/* Takes over a ring from its shared words: a new one (all zero), or our own after a reattachment. */
static inline void shmb_ingress_init(struct shmb_ingress *g, void *ring, void *receipts, shmb_a32 *park,
                                     uint32_t writer, uint64_t id)
{
    g->head = (struct shmb_ingress_head *)ring;
    g->back = (struct shmb_receipts_head *)receipts;
    g->data = (uint8_t *)ring + SHMB_PAGE;
    g->capacity = g->head->capacity;
    g->slots = g->back->slots;
    g->word = park + shmb_park_ingress(id) * (SHMB_LINE / sizeof *park);
    g->doorbell = park + (SHMB_PARK_WRITER + writer) * (SHMB_LINE / sizeof *park);
    g->id = id;
    g->bell = -1;
    g->published = shmb_peek(&g->head->head);
    g->received = g->next_seq = shmb_observe(&g->back->receipts);
}

/* ---- Publishing ------------------------------------------------------------------------------- */

/* Bytes that may be written behind `published`. Acquire: the writer has finished reading them. */
static inline uint64_t shmb_ingress_room(const struct shmb_ingress *g)
{
    return g->capacity - (g->published - shmb_observe(&g->back->tail));
}
/* End of what was taken out. A remote client's connection keeps what it took where it is (mirror.h). */
static inline uint64_t shmb_ingress_passed(const struct shmb_ingress *g)
{
    return shmb_observe(g->bell < 0 ? &g->back->tail : &g->back->taken);
}
/* The writer has taken everything that was published: it waits for us. By receipts, which it stores just
 * before the tail, so that whoever has seen a receipt finds the writer dry. Where a receipt is a round trip
 * away (a remote client's private ring) a few frames may be on their way, if all were taken. */
static inline int shmb_ingress_dry(const struct shmb_ingress *g)
{
    uint64_t flying = g->next_seq - shmb_peek(&g->back->receipts);
    return flying == 0 || (flying <= g->ahead && shmb_ingress_passed(g) == g->published);
}
/* Whether another frame may go in flight. Counted from receipts taken, not from those written: a place
 * is free once we have read what stands in it. */
static inline int shmb_ingress_slot_free(const struct shmb_ingress *g)
{
    return g->next_seq - g->received < g->slots - 1;
}
/* Where the next frame's header stands; its batch follows, in one piece by the double mapping. */
static inline struct shmb_frame *shmb_ingress_frame(const struct shmb_ingress *g)
{
    return (struct shmb_frame *)(g->data + (g->published & (g->capacity - 1)));
}
/* Publishes the frame whose batch of `length` bytes already stands behind shmb_ingress_frame(). The
 * caller has seen room and a free receipt place. Returns its sequence. */
static inline uint64_t shmb_ingress_publish(struct shmb_ingress *g, uint32_t length, uint16_t acks,
                                            uint32_t slot, uint32_t slot_epoch, uint64_t chain)
{
    struct shmb_frame *f = shmb_ingress_frame(g);
    f->length = length;
    f->acks = acks;
    f->flags = 0;
    f->slot = slot;
    f->slot_epoch = slot_epoch;
    f->frame_seq = g->next_seq;
    f->chain = chain;
    g->published += shmb_frame_bytes(length);
    shmb_publish(&g->head->head, g->published);
    if (__builtin_expect(g->bell < 0, 1))
        shmb_park_wake(g->doorbell);
    else
        shmb_park_ring(g->doorbell, g->bell);
    return g->next_seq++;
}

/* ---- Receipts --------------------------------------------------------------------------------- */

/* The next receipt that has arrived, or NULL; g->received is its frame's sequence. The caller copies
 * what it needs and then adds one to g->received, which gives the place back. */
static inline const struct shmb_receipt *shmb_ingress_receipt(const struct shmb_ingress *g)
{
    if (g->received == g->next_seq || shmb_observe(&g->back->receipts) <= g->received)
        return NULL;
    return shmb_receipt_at(g->back, g->slots, g->received);
}

/* ---- Waiting ---------------------------------------------------------------------------------- */

enum shmb_wait {
    SHMB_WAIT_OK = 0,  /* the condition may be true now: look */
    SHMB_WAIT_SIGNAL,  /* a signal arrived: let Python look at its handlers */
    SHMB_WAIT_TIMEOUT, /* the deadline has passed */
    SHMB_WAIT_GONE,    /* the attachment has changed: `epoch` is no longer what it was */
    SHMB_WAIT_CLOSED,  /* the producer was closed by another thread */
};

/* What ends a wait besides its condition. Whoever changes these words wakes every park word then. */
struct shmb_waiter {
    const shmb_a32 *epoch;  /* of the connection; odd while the broker is gone */
    uint32_t epoch_seen;    /* read before the condition was last found false */
    const shmb_a32 *closed; /* not 0: closed; may be NULL */
    int64_t deadline_ns;    /* CLOCK_MONOTONIC; INT64_MAX: none */
    int64_t spin_ns;        /* how long to look before sleeping */
};

typedef int (*shmb_condition)(const void *about, uint64_t a, uint64_t b);

static inline int shmb_wait_ended(const struct shmb_waiter *w, enum shmb_wait *why)
{
    if (shmb_observe32(w->epoch) != w->epoch_seen)
        return *why = SHMB_WAIT_GONE, 1;
    if (w->closed && shmb_observe32(w->closed))
        return *why = SHMB_WAIT_CLOSED, 1;
    return 0;
}

/* Until `condition`; inlined with a constant one. No lock is held, no GIL, and no timeout but the
 * caller's: a lost wake-up would be a bug, and would show. */
static inline __attribute__((always_inline)) enum shmb_wait
shmb_wait_until(shmb_a32 *word, const struct shmb_waiter *w, shmb_condition condition, const void *about,
                uint64_t a, uint64_t b)
{
    enum shmb_wait why;
    if (w->spin_ns > 0) {
        int64_t until = shmb_now_ns() + w->spin_ns;
        if (until > w->deadline_ns)
            until = w->deadline_ns;
        do {
            for (int i = 0; i < 32; i++) {
                if (condition(about, a, b))
                    return SHMB_WAIT_OK;
                shmb_relax();
            }
            if (shmb_wait_ended(w, &why))
                return why;
        } while (shmb_now_ns() < until);
    }
    for (;;) {
        shmb_park_arm(word); /* the fence that pairs with the waker's, see park.h */
        if (condition(about, a, b))
            return SHMB_WAIT_OK;
        if (shmb_wait_ended(w, &why))
            return why;
        switch (shmb_park_wait_signals(word, w->deadline_ns)) {
        case EINTR:
            return SHMB_WAIT_SIGNAL;
        case ETIMEDOUT:
            return condition(about, a, b) ? SHMB_WAIT_OK : SHMB_WAIT_TIMEOUT;
        default:
            break;
        }
    }
}

static inline int shmb_condition_progress(const void *about, uint64_t tail, uint64_t receipts)
{
    const struct shmb_receipts_head *r = (const struct shmb_receipts_head *)about;
    return shmb_observe(&r->tail) != tail || shmb_observe(&r->receipts) != receipts || shmb_peek32(&r->detached);
}
static inline int shmb_condition_taken(const void *about, uint64_t tail, uint64_t unused)
{
    const struct shmb_receipts_head *r = (const struct shmb_receipts_head *)about;
    (void)unused;
    return (int64_t)(shmb_observe(&r->tail) - tail) >= 0 || shmb_peek32(&r->detached);
}
static inline int shmb_condition_receipt(const void *about, uint64_t seq, uint64_t unused)
{
    const struct shmb_receipts_head *r = (const struct shmb_receipts_head *)about;
    (void)unused;
    return shmb_observe(&r->receipts) > seq || shmb_peek32(&r->detached);
}
/* Durable up to `end`, or something happened that makes waiting for it vain (shmb_durable_verdict). */
static inline int shmb_condition_durable(const void *about, uint64_t end, uint64_t generation)
{
    const struct shmb_slot *s = (const struct shmb_slot *)about;
    uint32_t state = shmb_observe32(&s->state);
    return shmb_observe(&s->durable_position) >= end || shmb_peek(&s->generation) >> 32 != generation >> 32 ||
           state == SHMB_STATE_OFFLINE || state == SHMB_STATE_FREE;
}

/* Until the writer has taken a frame or given a receipt beyond what was seen under the lock. */
static inline enum shmb_wait shmb_wait_progress(struct shmb_receipts_head *back, shmb_a32 *word, uint64_t tail,
                                                uint64_t receipts, const struct shmb_waiter *w)
{
    return shmb_wait_until(word, w, shmb_condition_progress, back, tail, receipts);
}
/* For those who found no room when `tail` and `receipts` were these: until the writer has taken a quarter of
 * the ring, or all of it; when it was a receipt's place that was missing, until there is progress. Whoever is
 * woken needs the GIL next: one that is woken for each frame takes it from a remote connection's
 * thread each time, which needs it to take the next one (measured: 0.37 GB/s against 1.1). */
static inline enum shmb_wait shmb_wait_room(const struct shmb_ingress *g, uint64_t tail, uint64_t receipts,
                                            const struct shmb_waiter *w)
{
    uint64_t published = g->published, quarter = g->capacity / 4;
    if (published - tail <= 3 * quarter)
        return shmb_wait_progress(g->back, g->word, tail, receipts, w);
    return shmb_wait_until(g->word, w, shmb_condition_taken, g->back,
                           tail + quarter < published ? tail + quarter : published, 0);
}
/* Until frame `seq` has its receipt. */
static inline enum shmb_wait shmb_wait_receipt(struct shmb_receipts_head *back, shmb_a32 *word, uint64_t seq,
                                               const struct shmb_waiter *w)
{
    return shmb_wait_until(word, w, shmb_condition_receipt, back, seq, 0);
}
/* Until what ends at `end` in that generation is durable, or never will be. */
static inline enum shmb_wait shmb_wait_durable(const struct shmb_slot *slot, shmb_a32 *word, uint64_t end,
                                               uint64_t generation, const struct shmb_waiter *w)
{
    return shmb_wait_until(word, w, shmb_condition_durable, slot, end, generation);
}

/* Of a batch that was received in `generation` with its end at `end`: 1 durable, 0 not yet, -1 can't be
 * told any more (invariant 4). The generation is read on both sides of the position, since a position
 * means something in its own generation only. */
static inline int shmb_durable_verdict(const struct shmb_slot *s, uint32_t slot_epoch, uint64_t end,
                                       uint64_t generation)
{
    if (shmb_observe(&s->generation) >> 32 != generation >> 32)
        return -1;
    uint32_t state = shmb_observe32(&s->state);
    int durable = shmb_observe(&s->durable_position) >= end;
    shmb_fence_acquire();
    if (shmb_peek(&s->generation) >> 32 != generation >> 32 || shmb_peek32(&s->slot_epoch) != slot_epoch)
        return -1;
    if (durable)
        return 1;
    return state == SHMB_STATE_OFFLINE || state == SHMB_STATE_FREE ? -1 : 0;
}

#endif
