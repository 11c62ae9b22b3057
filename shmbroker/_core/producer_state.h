/* A process's rings, lanes and batches: what each is, and who keeps whom alive.
 *
 *   outlet (one a ring) ── ring ── lock ── inflight[frame_seq] ──► batch PUBLISHED
 *      │ open lanes                                                   │ receipt
 *      ▼                                                              ▼
 *   lane (producer x partition) ── open ──► batch OPEN       lane.waiting ──► RECEIVED ──► DONE
 *      │ base, at, limit: in the ring or in a staging buffer          └─► lane.failed ──► FAILED, UNKNOWN
 *
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
#ifndef SHMB_PRODUCER_STATE_H
#define SHMB_PRODUCER_STATE_H

#include <stdlib.h>

#include "ingress.h"
#include "process_lock.h"
#include "shm.h"

enum shmb_pbatch_state {
    SHMB_PB_OPEN = 0,  /* takes records, or waits for room in the ring */
    SHMB_PB_PUBLISHED, /* in flight */
    SHMB_PB_RECEIVED,  /* appended; its durability is waited for */
    SHMB_PB_DONE,      /* acknowledged as its acks ask for */
    SHMB_PB_FAILED,    /* rejected: not in the log */
    SHMB_PB_UNKNOWN,   /* may or may not be in the log (invariant 4) */
};

/* Own error numbers of a batch that no receipt carries; errors.py has the classes. */
enum { SHMB_E_UNKNOWN_OUTCOME = 1002, SHMB_E_DETACHED = 1004, SHMB_E_FULL = 1008, SHMB_E_EARLIER = 1011 };
enum { SHMB_E_SEQUENCE_GAP = 45 };

/* Why a watch was mailed. */
enum shmb_why {
    SHMB_WHY_SETTLED = 0, /* the batch has its outcome; or, of room: look again */
    SHMB_WHY_LATE,        /* its delivery timeout has passed */
    SHMB_WHY_GONE,        /* the broker went away and did not come back in time */
    SHMB_WHY_CLOSED,      /* the producer was closed */
};

struct shmb_mailbox {     /* producer_watch.h */
    shmb_a32 lock;
    shmb_a32 refs;        /* its owner, and each watch */
    int fd;               /* an eventfd of its own */
    struct shmb_watch *first, *last;
};
struct shmb_watch {
    struct shmb_watch *next;
    struct shmb_mailbox *to;
    void *object;         /* the mailbox's owner's */
    enum shmb_why why;
};

/* Whose records a lane carries. A foreign lane's batches come whole from somewhere else, with producer id, epoch
 * and sequences of a producer there, which nobody here changes (producer_relay.h). */
enum shmb_foreign {
    SHMB_OWN = 0,
    SHMB_FOREIGN_CHAINED, /* a rejection takes the rest of its producer epoch along */
    SHMB_FOREIGN_SINGLE,  /* each batch for itself: the sequences alone decide */
};

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
    uint16_t acks;
    uint16_t resent;          /* may be in the log already, further back than the broker remembers */
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
    struct shmb_watch *watches;
    struct shmb_pbatch *watched_next, *watched_prev; /* in lane.watched, by age */
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
    struct shmb_lane *watched;     /* list of lanes with watched batches */
    struct shmb_watch *room;       /* those who wait for room in the ring, newest first … */
    uint64_t room_tail;            /* … who saw these before they tried */
    uint64_t room_receipts;
    uint32_t dropped;              /* Python was told that the writer has dropped the ring */
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
    uint16_t acks;                 /* of what is sealed here; of a foreign lane each batch has its own */
    uint16_t codec;                /* SHMB_COMPRESSION_* */
    uint32_t batch_limit;          /* bytes of a batch; at most max.message.bytes and what the ring holds */
    uint32_t batch_want;           /* bytes after which a batch is sealed though more would be allowed */
    uint64_t linger_ticks;
    int64_t producer_id;           /* -1: no sequences */
    int32_t epoch;                 /* of this producer in this partition; above 32767: a new id is needed */
    int32_t sequence;              /* of the next record */
    int32_t failed_error;          /* what broke the last chain */
    int32_t failed_sequence;       /* of a foreign lane: base sequence of the batch that did */
    uint32_t in_flight;            /* at most SHMB_IN_FLIGHT_MAX */
    uint64_t chain;                /* chain.h: number of the lane in this process, and of its rejections */
    uint32_t stale;                /* a receipt said that the partition is elsewhere: ask again */
    uint32_t broken;               /* of a foreign lane: nothing more of this epoch is published */
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
    uint8_t foreign;               /* enum shmb_foreign */
    uint64_t opened_ticks;
    struct shmb_lane *next_open, *prev_open;
    struct shmb_pbatch *waiting, *waiting_last; /* received, not yet durable; in order */
    struct shmb_pbatch *failed, *failed_last;   /* not yet reported by flush() or close() */
    struct shmb_pbatch *last;                   /* newest published one */
    int64_t delivery_ns;                        /* how long a batch may take, from its first record */
    struct shmb_pbatch *watched, *watched_last;
    struct shmb_lane *next_watched, *prev_watched;
    uint64_t dropped;                           /* records that found no room (on_full="drop"); the GIL's */
    struct shmb_pbatch *refused;                /* what their receipts point to; NULL: there was none yet */
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
    SHMB_PUT_STALE,     /* the partition is elsewhere, or gone: ask again */
    SHMB_PUT_REFUSED,   /* an earlier batch of this chain was rejected */
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
        if (o->ring.bell >= 0)
            close(o->ring.bell);
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
static inline int shmb_pbatch_settled(const struct shmb_pbatch *b)
{
    uint32_t state = shmb_pbatch_state(b);
    return state >= SHMB_PB_DONE || (b->acks == SHMB_ACKS_NONE && state >= SHMB_PB_PUBLISHED);
}

#endif
