/* Open batches of this process, and what became of the sealed ones.
 *
 *   outlet (one a ring) ── ring ── lock ── inflight[frame_seq] ──► batch PUBLISHED
 *      │ open lanes                                                   │ receipt
 *      ▼                                                              ▼
 *   lane (producer x partition) ── open ──► batch OPEN       lane.waiting ──► RECEIVED ──► DONE
 *      │ base, at, limit: in the ring or in a staging buffer          └─► lane.failed ──► FAILED, UNKNOWN
 *
 * A single open batch of an outlet grows in place in the ring; with a second one, all grow in staging
 * buffers and are copied in when sealed (an open batch in place would block the frames behind it).
 * Sequences are given when a batch is sealed, so they are in the order of the ring.
 *
 * Locking: the outlet's lock guards the outlet, its lanes, and their batches' fields; `state` may be read
 * without it (stored last, by release). It is never held while blocking or while waiting for the GIL.
 * py_refs belongs to the GIL. No function here needs the GIL or calls Python.
 *
 * Lives: a batch is counted by its lane or its place in flight, by lane.last, and once for all Python
 * receipts; a lane by its owner and its batches; an outlet by its owner and its lanes. Python clears cycles in
 * any order, so nothing here relies on who is freed first.
 */
#ifndef SHMB_PRODUCER_LANES_H
#define SHMB_PRODUCER_LANES_H

#include <stdlib.h>

#include "batch.h"
#include "ingress.h"
#include "shm.h"

/* ---- Cheap time ------------------------------------------------------------------------------- */

static uint64_t shmb_ticks_per_us = 1000;

static inline uint64_t shmb_ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    uint64_t t;
    __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(t));
    return t;
#endif
}
static __attribute__((unused)) void shmb_ticks_calibrate(void)
{
#if defined(__x86_64__)
    int64_t from_ns = shmb_now_ns();
    uint64_t from = shmb_ticks();
    while (shmb_now_ns() - from_ns < 200000)
        shmb_relax();
    shmb_ticks_per_us = (shmb_ticks() - from) * 1000 / (uint64_t)(shmb_now_ns() - from_ns);
#else
    uint64_t hz;
    __asm__ __volatile__("mrs %0, cntfrq_el0" : "=r"(hz));
    shmb_ticks_per_us = hz / 1000000;
#endif
    if (!shmb_ticks_per_us)
        shmb_ticks_per_us = 1;
}
/* ms since 1970, from a clock that costs a few ns and moves every 1 to 10 ms. */
static inline int64_t shmb_wall_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME_COARSE, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}
static inline int64_t shmb_coarse_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- The one-word lock of this process -------------------------------------------------------- */
/* 0 free, 1 held, 2 held and somebody sleeps. Acquire on taking, release on giving back. */

static __attribute__((noinline, unused)) void shmb_lock_slow(shmb_a32 *lock)
{
    for (int i = 0; i < 200; i++) {
        uint32_t was = 0;
        if (shmb_peek32(lock) == 0 &&
            atomic_compare_exchange_strong_explicit(lock, &was, 1, memory_order_acquire, memory_order_relaxed))
            return;
        shmb_relax();
    }
    while (atomic_exchange_explicit(lock, 2, memory_order_acquire) != 0)
        syscall(SYS_futex, lock, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
}
static inline int shmb_trylock(shmb_a32 *lock)
{
    uint32_t was = 0;
    return atomic_compare_exchange_strong_explicit(lock, &was, 1, memory_order_acquire, memory_order_relaxed);
}
static inline void shmb_lock(shmb_a32 *lock)
{
    if (__builtin_expect(!shmb_trylock(lock), 0))
        shmb_lock_slow(lock);
}
static inline void shmb_unlock(shmb_a32 *lock)
{
    if (__builtin_expect(atomic_exchange_explicit(lock, 0, memory_order_release) == 2, 0))
        syscall(SYS_futex, lock, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* ---- Structures ------------------------------------------------------------------------------- */

enum shmb_pbatch_state {
    SHMB_PB_OPEN = 0,  /* takes records, or waits for room in the ring */
    SHMB_PB_PUBLISHED, /* in flight */
    SHMB_PB_RECEIVED,  /* appended; its durability is waited for */
    SHMB_PB_DONE,      /* acknowledged as its acks ask for */
    SHMB_PB_FAILED,    /* rejected: not in the log */
    SHMB_PB_UNKNOWN,   /* may or may not be in the log (invariant 4) */
};

/* Own error numbers of a batch that no receipt carries; errors.py has the classes. */
enum { SHMB_E_UNKNOWN_OUTCOME = 1002, SHMB_E_DETACHED = 1004, SHMB_E_EARLIER = 1011 };
enum { SHMB_E_SEQUENCE_GAP = 45 };

struct shmb_lane;

struct shmb_pbatch {
    shmb_a32 state;           /* enum shmb_pbatch_state */
    shmb_a32 refs;
    uint32_t py_refs;         /* Python receipts; together one of `refs`. The GIL's */
    int32_t count;            /* records */
    int64_t base_offset;      /* -1 until received, and with acks none */
    uint64_t end_position;    /* of the receipt */
    uint64_t generation;
    uint64_t chain;           /* the lane's, when it was sealed */
    uint64_t frame_seq;
    uint64_t frame_position;  /* in the ring, for a resend */
    uint32_t frame_bytes;
    int32_t error;            /* number of errors.py; 0: none */
    uint32_t resent;          /* may be in the log already, further back than the broker remembers */
    int32_t cause;            /* with SHMB_E_EARLIER: what the earlier batch met */
    int32_t unlooked;         /* failed records whose receipts nobody has looked at */
    int32_t base_sequence;
    int32_t epoch;
    int64_t producer_id;
    int64_t first_timestamp;  /* ms */
    int64_t max_timestamp;    /* ms */
    int64_t born_ns;          /* CLOCK_MONOTONIC_COARSE, for the delivery timeout */
    struct shmb_lane *lane;
    struct shmb_pbatch *next; /* in lane.waiting or lane.failed */
};

struct shmb_outlet {
    shmb_a32 lock;
    shmb_a32 refs;                 /* its Python owner, and each lane */
    size_t receipts_bytes;         /* of the mapping */
    uint32_t open_count;           /* lanes with an open batch */
    struct shmb_lane *open;        /* list of them */
    struct shmb_ingress ring;
    struct shmb_pbatch **inflight; /* ring.slots places */
    uint64_t last_ticks;           /* of the last record */
    uint64_t sealed_ticks;         /* of the last seal */
    uint32_t mixed;                /* batches still to be opened in staging, after partitions alternated */
    uint32_t poke;                 /* the client thread has yet to be told of open batches */
    uint64_t batches;              /* published so far */
    uint64_t records;
    uint32_t epoch;                /* of the attachment under which the ring was last found to be ours */
    struct shmb_outlet *next;      /* the client thread's list */
};

struct shmb_lane {
    shmb_a32 refs;
    struct shmb_outlet *out;
    void *table;                   /* the writer's, read-only */
    struct shmb_slot *slot;        /* the partition's, in that table */
    shmb_a32 *durable_word;
    int32_t partition;
    uint32_t slot_index;
    uint32_t slot_epoch;
    uint16_t acks;
    uint16_t codec;                /* SHMB_COMPRESSION_* */
    uint32_t batch_limit;          /* bytes of a batch; at most max.message.bytes and what the ring holds */
    uint32_t batch_want;           /* bytes after which a batch is sealed though more would be allowed */
    uint64_t linger_ticks;
    int64_t producer_id;           /* -1: no sequences */
    int32_t epoch;                 /* of this producer in this partition; above 32767: a new id is needed */
    int32_t sequence;              /* of the next record */
    int32_t failed_error;          /* what broke the last chain */
    uint32_t in_flight;            /* at most SHMB_IN_FLIGHT_MAX */
    uint64_t chain;                /* chain.h: number of the lane in this process, and of its rejections */
    uint32_t stale;                /* a receipt said that the partition is elsewhere: ask again */
    shmb_a32 busy;                 /* being compressed: nobody may touch the open batch */
    struct shmb_pbatch *open;
    uint8_t *base;                 /* the open batch: header, then records */
    uint8_t *at;                   /* where the next record goes */
    uint8_t *limit;                /* no record reaches behind it; `at` while full or busy */
    uint8_t *staging;              /* staging_bytes, or NULL */
    uint32_t staging_bytes;
    uint8_t in_ring;               /* the open batch grows in the ring */
    uint8_t full;                  /* takes no more records, waits for room in the ring */
    uint8_t compressed;            /* what stands between base + header and at is compressed */
    uint8_t spare;
    uint64_t opened_ticks;
    struct shmb_lane *next_open, *prev_open;
    struct shmb_pbatch *waiting, *waiting_last; /* received, not yet durable; in order */
    struct shmb_pbatch *failed, *failed_last;   /* not yet reported by flush() or close() */
    struct shmb_pbatch *last;                   /* newest published one */
};

enum shmb_put {
    SHMB_PUT_OK = 0,
    SHMB_PUT_NO_ROOM,   /* the ring is full, or no receipt place is free: wait for progress */
    SHMB_PUT_TOO_LARGE, /* the record needs a larger ring */
    SHMB_PUT_COMPRESS,  /* the open batch must be compressed first, with the GIL */
    SHMB_PUT_BUSY,      /* another thread compresses it: wait for lane.busy */
    SHMB_PUT_NEW_ID,    /* the producer's epochs are used up */
    SHMB_PUT_NO_MEMORY,
    SHMB_PUT_DETACHED,  /* the broker has dropped this ring */
};

/* A new lane's first chain: unique in this process, and so in every ring of it. */
static inline uint64_t shmb_chain_begin(void)
{
    static shmb_a32 lanes;
    return (uint64_t)(atomic_fetch_add_explicit(&lanes, 1, memory_order_relaxed) + 1) << 32;
}

/* ---- Lives ------------------------------------------------------------------------------------ */

static inline void shmb_outlet_hold(struct shmb_outlet *o)
{
    atomic_fetch_add_explicit(&o->refs, 1, memory_order_relaxed);
}
static inline void shmb_outlet_unmap_ring(struct shmb_outlet *o)
{
    if (o->ring.head)
        shmb_unmap_double(o->ring.head, SHMB_PAGE, o->ring.capacity);
    o->ring.head = NULL;
    o->ring.data = NULL;
}
static inline void shmb_outlet_release(struct shmb_outlet *o)
{
    if (atomic_fetch_sub_explicit(&o->refs, 1, memory_order_acq_rel) == 1) {
        shmb_outlet_unmap_ring(o);
        if (o->ring.back)
            munmap(o->ring.back, o->receipts_bytes);
        free(o->inflight);
        free(o);
    }
}
static inline void shmb_lane_release(struct shmb_lane *l)
{
    if (atomic_fetch_sub_explicit(&l->refs, 1, memory_order_acq_rel) == 1) {
        if (l->out)
            shmb_outlet_release(l->out);
        free(l->staging);
        free(l);
    }
}
static inline void shmb_pbatch_hold(struct shmb_pbatch *b)
{
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
}
static inline void shmb_pbatch_release(struct shmb_pbatch *b)
{
    if (atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1) {
        shmb_lane_release(b->lane);
        free(b);
    }
}
/* For Python receipts, under the GIL. */
static inline void shmb_pbatch_py_hold(struct shmb_pbatch *b)
{
    if (b->py_refs++ == 0)
        shmb_pbatch_hold(b);
}
static inline void shmb_pbatch_py_release(struct shmb_pbatch *b)
{
    if (--b->py_refs == 0)
        shmb_pbatch_release(b);
}
static inline uint32_t shmb_pbatch_state(const struct shmb_pbatch *b) { return shmb_observe32(&b->state); }

/* ---- Outcomes; under the lock ----------------------------------------------------------------- */

static inline void shmb_pbatch_fail(struct shmb_pbatch *b, enum shmb_pbatch_state state, int32_t error)
{
    struct shmb_lane *l = b->lane;
    b->error = error;
    b->unlooked = b->count;
    b->next = NULL;
    if (l->failed_last)
        l->failed_last->next = b;
    else
        l->failed = b;
    l->failed_last = b;
    shmb_publish32(&b->state, state);
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
            shmb_pbatch_release(b);
        } else {
            shmb_pbatch_fail(b, SHMB_PB_UNKNOWN, SHMB_E_UNKNOWN_OUTCOME); /* keeps the reference */
        }
    }
}

/* The first rejection of a chain ends it, and the epoch of an idempotent lane: what is sealed later begins anew
 * at sequence 0. What was in the ring already is rejected by the writer, with SHMB_E_EARLIER. */
static inline void shmb_lane_rejected(struct shmb_lane *l, struct shmb_pbatch *b, int32_t error)
{
    if (error == 3)
        l->stale = 1;
    if (error == SHMB_E_EARLIER) {
        b->cause = l->failed_error;
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
    if (l->acks != SHMB_ACKS_NONE && r->base_offset >= 0) /* not so of a resend that is long past: known already */
        b->base_offset = r->base_offset;
    if (l->acks != SHMB_ACKS_DURABLE) {
        shmb_publish32(&b->state, SHMB_PB_DONE);
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

/* ---- Opening; under the lock ------------------------------------------------------------------ */

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
    shmb_ingress_publish(g, bytes, l->acks, l->slot_index, l->slot_epoch, b->chain);
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

/* ---- Records ---------------------------------------------------------------------------------- */

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
    l->last = l->failed = l->failed_last = l->waiting = l->waiting_last = NULL;
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
static inline int shmb_pbatch_settled(const struct shmb_pbatch *b)
{
    uint32_t state = shmb_pbatch_state(b);
    return state >= SHMB_PB_DONE || (b->lane->acks == SHMB_ACKS_NONE && state >= SHMB_PB_PUBLISHED);
}
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

/* ---- Moving to another ring ------------------------------------------------------------------- */
/* A larger ring, or a new one after the broker lost the old: every lane is made busy, what is in flight
 * is published again from the old ring's memory, which is still mapped, and then the lanes go on. */

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
    *(struct shmb_outlet *volatile *)&l->out = to;
    shmb_unlock(&o->lock);
    shmb_lock(&to->lock);
    if (l->open)
        shmb_outlet_add_open(to, l);
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
        if (l->producer_id >= 0 && b->epoch != l->epoch) {
            b->epoch = l->epoch;
            b->base_sequence = l->sequence;
            l->sequence = (int32_t)(((uint32_t)l->sequence + (uint32_t)b->count) & 0x7fffffffu);
            shmb_put_be16(to + SHMB_BATCH_PRODUCER_EPOCH, (int16_t)b->epoch);
            shmb_put_be32(to + SHMB_BATCH_BASE_SEQUENCE, b->base_sequence);
            shmb_batch_put_crc(to, bytes);
        }
        b->chain = l->chain;
        b->frame_position = g->published;
        b->frame_seq = g->next_seq;
        b->next = NULL;
        l->in_flight++;
        o->inflight[b->frame_seq & (g->slots - 1)] = b;
        shmb_publish32(&b->state, SHMB_PB_PUBLISHED);
        shmb_ingress_publish(g, bytes, l->acks, l->slot_index, l->slot_epoch, b->chain);
    }
    shmb_unlock(&o->lock);
    return rc;
}

#endif
