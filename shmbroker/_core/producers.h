/* The idempotent producers of one partition: which batches of whom are in the log already.
 *
 *   slots (open addressing, a power of two)        producers (malloc'ed, never moved)
 *   +------+------+------+------+------+           +-----------------------------------------+
 *   |  *---+--NULL|  *   | NULL | NULL |  ───────► | id, epoch, last_timestamp, sequence lock|
 *   +------+------+------+------+------+           | ring of the last 64 batches:            |
 *                                                  |   {base_sequence, count, base_offset}   |
 *                                                  +-----------------------------------------+
 *
 * Who writes: one thread at a time, the writer process's sequencer (check, record, expire), or
 * recovery before there is a sequencer. Who reads: that thread, and the housekeeper, which exports
 * the table for checkpoints and snapshots while the sequencer goes on:
 *   - a producer's fields change inside a sequence lock (odd `lock`); the exporter copies and looks
 *     again, so the hot path takes no lock;
 *   - producers come and go only under `structure`, a spin lock that export holds as a whole. The
 *     sequencer takes it for a new producer only, and may wait there for one export (about 1 ms
 *     for 4,096 producers).
 * check and record touch the slot of the producer used last without hashing. Memory is allocated
 * for a new producer only; when malloc fails, SHMB_PRODUCER_NO_MEMORY is returned and nothing changed.
 *
 * Rules (Kafka's ProducerAppendInfo and ProducerStateEntry):
 *   - an unknown producer may begin with any sequence: the table may have expired or lost it;
 *   - a lower epoch is fenced; a higher one must begin with sequence 0;
 *   - within an epoch the next sequence follows the last, and 0 follows 2^31 - 1;
 *   - a batch whose sequence and count are in the ring is a duplicate, with its old offset.
 * A batch that lies wholly before what the ring remembers is SHMB_PRODUCER_STALE: appended before,
 * too long ago to say where (Kafka's DUPLICATE_SEQUENCE_NUMBER).
 */
#ifndef SHMB_PRODUCERS_H
#define SHMB_PRODUCERS_H

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "layout.h"
#include "varint.h"

#ifndef SHMB_PRODUCER_BATCHES
#define SHMB_PRODUCER_BATCHES 64 /* remembered per producer */
#endif
_Static_assert(SHMB_PRODUCER_BATCHES >= SHMB_IN_FLIGHT_MAX, "whatever may be resent is remembered");
_Static_assert(SHMB_PRODUCER_BATCHES >= 5, "Kafka's clients have 5 requests in flight");
_Static_assert((SHMB_PRODUCER_BATCHES & (SHMB_PRODUCER_BATCHES - 1)) == 0, "a ring of 2^n");

enum {
    SHMB_PRODUCERS_MAX = 4096,               /* a partition; beyond, those idle longest are dropped */
    SHMB_PRODUCERS_EXPIRATION_MS = 86400000, /* Kafka's producer.id.expiration.ms */
    SHMB_PRODUCERS_VERSION = 1,              /* of the exported bytes */
    SHMB_PRODUCERS_EXPORT_HEAD = 8,          /* version u32, producers u32 */
    SHMB_PRODUCER_EXPORT_HEAD = 20,          /* id i64, epoch i16, batches u16, last timestamp i64 */
    SHMB_PRODUCER_EXPORT_BATCH = 16,         /* base sequence i32, count i32, base offset i64 */
};

enum shmb_producer_result {
    SHMB_PRODUCER_OK = 0,
    SHMB_PRODUCER_DUPLICATE = 1,     /* in the log at *dup_base_offset: acknowledge it again */
    SHMB_PRODUCER_OUT_OF_ORDER = 2,  /* something between it and the last batch is missing */
    SHMB_PRODUCER_INVALID_EPOCH = 3, /* a newer epoch of this id has written: fenced */
    SHMB_PRODUCER_STALE = 4,         /* in the log, too long ago to say where */
    SHMB_PRODUCER_NO_MEMORY = -1,    /* of shmb_producers_record(): nothing was recorded */
};

struct shmb_producer_batch {
    int32_t base_sequence; /* of the first record */
    int32_t count;         /* records, > 0 */
    int64_t base_offset;   /* where the first record is in the log */
};
_Static_assert(sizeof(struct shmb_producer_batch) == 16, "four a cache line");

struct shmb_producer {
    int64_t id;
    struct shmb_producer *next; /* all producers in a chain, for export; under `structure` */
    int64_t last_timestamp;     /* ms; of the newest batch */
    shmb_a32 lock;              /* odd while the fields below and last_timestamp change */
    int16_t epoch;
    uint16_t batches;           /* in the ring, at most SHMB_PRODUCER_BATCHES */
    uint32_t newest;            /* ring index of the newest batch */
    struct shmb_producer_batch ring[SHMB_PRODUCER_BATCHES];
};

struct shmb_producers {
    struct shmb_producer **slots;
    struct shmb_producer *last;  /* used last; NULL at first */
    struct shmb_producer *chain;
    uint32_t capacity;           /* slots, a power of two */
    uint32_t count;              /* producers */
    uint32_t max_count;
    shmb_a32 structure;          /* 1 while producers come or go, or are exported */
    int64_t expiration_ms;
};

/* ---- Life ---- */

static __attribute__((unused)) int shmb_producers_init(struct shmb_producers *t, uint32_t max_count,
                                                       int64_t expiration_ms) {
    memset(t, 0, sizeof *t);
    t->capacity = 16;
    t->max_count = max_count ? max_count : SHMB_PRODUCERS_MAX;
    t->expiration_ms = expiration_ms > 0 ? expiration_ms : SHMB_PRODUCERS_EXPIRATION_MS;
    t->slots = (struct shmb_producer **)calloc(t->capacity, sizeof *t->slots);
    return t->slots ? SHMB_PRODUCER_OK : SHMB_PRODUCER_NO_MEMORY;
}

static __attribute__((unused)) void shmb_producers_destroy(struct shmb_producers *t) {
    for (struct shmb_producer *p = t->chain, *next; p; p = next) {
        next = p->next;
        free(p);
    }
    free(t->slots);
    memset(t, 0, sizeof *t);
}

SHMB_INLINE void shmb_producers_lock(struct shmb_producers *t) {
    uint32_t free_word = 0;
    /* acquire: what the last holder changed is seen; its unlock is the release */
    while (!atomic_compare_exchange_weak_explicit(&t->structure, &free_word, 1,
                                                  memory_order_acquire, memory_order_relaxed)) {
        free_word = 0;
        shmb_relax();
    }
}
SHMB_INLINE void shmb_producers_unlock(struct shmb_producers *t) {
    shmb_publish32(&t->structure, 0);
}

/* ---- Finding ---- */

SHMB_INLINE uint32_t shmb_producers_place(const struct shmb_producers *t, int64_t id) {
    return (uint32_t)(((uint64_t)id * 0x9e3779b97f4a7c15ull) >> 32) & (t->capacity - 1);
}

SHMB_INLINE struct shmb_producer *shmb_producers_find(struct shmb_producers *t, int64_t id) {
    if (t->last && t->last->id == id) return t->last;
    for (uint32_t i = shmb_producers_place(t, id); t->slots[i]; i = (i + 1) & (t->capacity - 1))
        if (t->slots[i]->id == id) return t->last = t->slots[i];
    return NULL;
}

/* The sequence after `count` records that begin with `base`; 0 follows 2^31 - 1. */
SHMB_INLINE int32_t shmb_producer_sequence_after(int32_t base, int32_t count) {
    return (int32_t)(((uint32_t)base + (uint32_t)count) & 0x7fffffffu);
}

/* Whether sequence `a` lies before `b` on the circle of 2^31 sequences: less than half of it away. */
SHMB_INLINE int shmb_producer_sequence_before(int32_t a, int32_t b) {
    uint32_t distance = ((uint32_t)b - (uint32_t)a) & 0x7fffffffu;
    return distance != 0 && distance < 0x40000000u;
}

/* ---- The two calls on the way of a record; the owning thread's ---- */

/* What to do with a batch of `count` records from `base_sequence` on. Changes nothing but the cache of
 * the last producer. *dup_base_offset is set with SHMB_PRODUCER_DUPLICATE, otherwise -1. */
static inline __attribute__((unused)) int shmb_producers_check(struct shmb_producers *t, int64_t id,
                                                               int16_t epoch, int32_t base_sequence,
                                                               int32_t count,
                                                               int64_t *dup_base_offset) {
    *dup_base_offset = -1;
    const struct shmb_producer *p = shmb_producers_find(t, id);
    if (!p) return SHMB_PRODUCER_OK;
    if (epoch < p->epoch) return SHMB_PRODUCER_INVALID_EPOCH;
    if (epoch > p->epoch) return base_sequence ? SHMB_PRODUCER_OUT_OF_ORDER : SHMB_PRODUCER_OK;
    if (!p->batches) return SHMB_PRODUCER_OK; /* its batches are not in the log any more */
    const struct shmb_producer_batch *b = &p->ring[p->newest];
    if (shmb_producer_sequence_after(b->base_sequence, b->count) == base_sequence)
        return SHMB_PRODUCER_OK;
    for (uint32_t k = 0; k < p->batches; k++) {
        b = &p->ring[(p->newest - k) & (SHMB_PRODUCER_BATCHES - 1)];
        if (b->base_sequence == base_sequence && b->count == count) {
            *dup_base_offset = b->base_offset;
            return SHMB_PRODUCER_DUPLICATE;
        }
    }
    /* b is the oldest remembered batch now */
    int32_t after = shmb_producer_sequence_after(base_sequence, count);
    if (after == b->base_sequence || shmb_producer_sequence_before(after, b->base_sequence))
        return SHMB_PRODUCER_STALE;
    return SHMB_PRODUCER_OUT_OF_ORDER;
}

static int shmb_producers_add(struct shmb_producers *t, int64_t id, struct shmb_producer **added);

/* Remembers an appended batch; `timestamp_ms` is when (ms), for expiry. Checks nothing: recovery
 * records what stands in the log. */
static inline __attribute__((unused)) int shmb_producers_record(struct shmb_producers *t, int64_t id,
                                                                int16_t epoch,
                                                                int32_t base_sequence, int32_t count,
                                                                int64_t base_offset,
                                                                int64_t timestamp_ms) {
    struct shmb_producer *p = shmb_producers_find(t, id);
    if (!p) {
        int error = shmb_producers_add(t, id, &p);
        if (error) return error;
    }
    uint32_t lock = shmb_peek32(&p->lock);
    shmb_poke32(&p->lock, lock + 1);
    shmb_fence_release(); /* an exporter that sees a new field sees the odd lock too */
    if (p->epoch != epoch) {
        p->epoch = epoch;
        p->batches = 0;
    }
    p->last_timestamp = timestamp_ms;
    p->newest = (p->newest + 1) & (SHMB_PRODUCER_BATCHES - 1);
    if (p->batches < SHMB_PRODUCER_BATCHES) p->batches++;
    p->ring[p->newest] =
        (struct shmb_producer_batch){.base_sequence = base_sequence, .count = count,
                                     .base_offset = base_offset};
    shmb_publish32(&p->lock, lock + 2);
    return SHMB_PRODUCER_OK;
}

/* ---- Coming and going; under `structure` ---- */

static void shmb_producers_rehash(struct shmb_producers *t, struct shmb_producer **slots,
                                  uint32_t capacity) {
    memset(slots, 0, capacity * sizeof *slots);
    t->slots = slots;
    t->capacity = capacity;
    for (struct shmb_producer *p = t->chain; p; p = p->next) {
        uint32_t i = shmb_producers_place(t, p->id);
        while (slots[i]) i = (i + 1) & (capacity - 1);
        slots[i] = p;
    }
}

/* Drops those whose last batch is not younger than `oldest_ms`. */
static uint32_t shmb_producers_drop(struct shmb_producers *t, int64_t oldest_ms) {
    uint32_t before = t->count;
    for (struct shmb_producer **link = &t->chain; *link;) {
        struct shmb_producer *p = *link;
        if (p->last_timestamp > oldest_ms) {
            link = &p->next;
            continue;
        }
        *link = p->next;
        free(p);
        t->count--;
    }
    if (t->count != before) {
        t->last = NULL;
        shmb_producers_rehash(t, t->slots, t->capacity);
    }
    return before - t->count;
}

/* Makes room in a full table: drops the older eighth of the time it spans, at least one. */
static void shmb_producers_evict(struct shmb_producers *t) {
    int64_t oldest = INT64_MAX, newest = INT64_MIN;
    for (struct shmb_producer *p = t->chain; p; p = p->next) {
        if (p->last_timestamp < oldest) oldest = p->last_timestamp;
        if (p->last_timestamp > newest) newest = p->last_timestamp;
    }
    shmb_producers_drop(t, oldest == newest ? oldest : oldest + newest / 8 - oldest / 8);
}

static int shmb_producers_add_locked(struct shmb_producers *t, int64_t id,
                                     struct shmb_producer **added) {
    if (4 * (t->count + 1) > 3 * t->capacity) { /* a good moment to forget those long idle */
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        shmb_producers_drop(t, (int64_t)now.tv_sec * 1000 - t->expiration_ms);
    }
    if (t->count >= t->max_count) shmb_producers_evict(t);
    if (4 * (t->count + 1) > 3 * t->capacity) {
        struct shmb_producer **slots =
            (struct shmb_producer **)malloc(2 * (size_t)t->capacity * sizeof *slots);
        if (!slots) return SHMB_PRODUCER_NO_MEMORY;
        struct shmb_producer **old = t->slots;
        shmb_producers_rehash(t, slots, 2 * t->capacity);
        free(old);
    }
    struct shmb_producer *p = (struct shmb_producer *)calloc(1, sizeof *p);
    if (!p) return SHMB_PRODUCER_NO_MEMORY;
    p->id = id;
    p->epoch = -1;
    uint32_t i = shmb_producers_place(t, id);
    while (t->slots[i]) i = (i + 1) & (t->capacity - 1);
    t->slots[i] = p;
    p->next = t->chain;
    t->chain = p;
    t->count++;
    *added = t->last = p;
    return SHMB_PRODUCER_OK;
}

static int shmb_producers_add(struct shmb_producers *t, int64_t id, struct shmb_producer **added) {
    shmb_producers_lock(t);
    int error = shmb_producers_add_locked(t, id, added);
    shmb_producers_unlock(t);
    return error;
}

/* Forgets producers idle for longer than the expiration at `now_ms`; the owning thread's. Returns how
 * many. Not needed for bounded memory: a growing table does it by itself. */
static __attribute__((unused)) uint32_t shmb_producers_expire(struct shmb_producers *t,
                                                              int64_t now_ms) {
    shmb_producers_lock(t);
    uint32_t dropped = shmb_producers_drop(t, now_ms - t->expiration_ms);
    shmb_producers_unlock(t);
    return dropped;
}

/* ---- Export (any thread) and import ---- */

/* One producer as it was at one moment, while its owner may change it. */
static void shmb_producer_copy(const struct shmb_producer *p, struct shmb_producer *copy) {
    for (;;) {
        uint32_t lock = shmb_observe32(&p->lock);
        if (!(lock & 1)) {
            memcpy(copy, p, sizeof *copy);
            shmb_fence_acquire(); /* the copy is read before the lock is looked at again */
            if (shmb_peek32(&p->lock) == lock) return;
        }
        shmb_relax();
    }
}

/* Writes the table's state at `before_offset` (exclusive; batches at or above it are left out) into
 * `capacity` bytes at `out`, big endian. Returns the bytes written, or, when they might not fit, minus
 * the bytes that suffice. A producer of later batches only stays, without batches. */
static __attribute__((unused)) int64_t shmb_producers_export(struct shmb_producers *t,
                                                             int64_t before_offset, uint8_t *out,
                                                             size_t capacity) {
    const size_t each = SHMB_PRODUCER_EXPORT_HEAD + SHMB_PRODUCER_BATCHES * SHMB_PRODUCER_EXPORT_BATCH;
    shmb_producers_lock(t);
    size_t suffices = SHMB_PRODUCERS_EXPORT_HEAD + t->count * each;
    if (capacity < suffices) {
        shmb_producers_unlock(t);
        return -(int64_t)suffices;
    }
    shmb_put_be32(out, SHMB_PRODUCERS_VERSION);
    shmb_put_be32(out + 4, (int32_t)t->count);
    uint8_t *at = out + SHMB_PRODUCERS_EXPORT_HEAD;
    struct shmb_producer copy;
    for (const struct shmb_producer *p = t->chain; p; p = p->next) {
        shmb_producer_copy(p, &copy);
        uint8_t *head = at;
        uint16_t batches = 0;
        at += SHMB_PRODUCER_EXPORT_HEAD;
        for (uint32_t k = copy.batches; k-- > 0;) { /* oldest first */
            const struct shmb_producer_batch *b =
                &copy.ring[(copy.newest - k) & (SHMB_PRODUCER_BATCHES - 1)];
            if (b->base_offset >= before_offset) break;
            shmb_put_be32(at, b->base_sequence);
            shmb_put_be32(at + 4, b->count);
            shmb_put_be64(at + 8, b->base_offset);
            at += SHMB_PRODUCER_EXPORT_BATCH;
            batches++;
        }
        shmb_put_be64(head, copy.id);
        shmb_put_be16(head + 8, copy.epoch);
        shmb_put_be16(head + 10, (int16_t)batches);
        shmb_put_be64(head + 12, copy.last_timestamp);
    }
    shmb_producers_unlock(t);
    return at - out;
}

/* Adds what was exported. Returns 0, SHMB_PRODUCER_NO_MEMORY, or 1 when the bytes make no sense (what
 * was read before that stays). */
static __attribute__((unused)) int shmb_producers_import(struct shmb_producers *t, const uint8_t *p,
                                                         size_t n) {
    const uint8_t *end = p + n;
    if (n < SHMB_PRODUCERS_EXPORT_HEAD || shmb_get_be32(p) != SHMB_PRODUCERS_VERSION) return 1;
    uint32_t producers = (uint32_t)shmb_get_be32(p + 4);
    p += SHMB_PRODUCERS_EXPORT_HEAD;
    for (; producers; producers--) {
        if (end - p < SHMB_PRODUCER_EXPORT_HEAD) return 1;
        int64_t id = shmb_get_be64(p), timestamp = shmb_get_be64(p + 12);
        int16_t epoch = shmb_get_be16(p + 8);
        uint16_t batches = (uint16_t)shmb_get_be16(p + 10);
        p += SHMB_PRODUCER_EXPORT_HEAD;
        if (id < 0 || (end - p) / SHMB_PRODUCER_EXPORT_BATCH < batches) return 1;
        struct shmb_producer *producer = shmb_producers_find(t, id);
        if (!producer && shmb_producers_add(t, id, &producer)) return SHMB_PRODUCER_NO_MEMORY;
        producer->epoch = epoch;
        producer->last_timestamp = timestamp;
        for (; batches; batches--, p += SHMB_PRODUCER_EXPORT_BATCH) {
            int error = shmb_producers_record(t, id, epoch, shmb_get_be32(p), shmb_get_be32(p + 4),
                                              shmb_get_be64(p + 8), timestamp);
            if (error) return error;
        }
    }
    return p == end ? 0 : 1;
}

#endif
