/* A feed: a partition of a broker elsewhere, laid down as a log ring of this process.
 *
 *     socket --readv--> ring (memfd, double mapped)  <--copies-- PartitionReader, as from a broker's ring
 *                       slot (memfd, one of a table)
 *
 * The receiver is the only writer of slot and ring; one reader. The words are layout.h's, so that reader.pyx
 * and watch.h read and wait as on any ring: positions count the bytes that came, `durable_offset` and
 * `log_end_offset` are both the end of what is here, of the one that the subscription shows. There is no ring
 * before the first batch.
 *
 * Invariants: nothing above the reader's `taken` is overwritten: room is made first, by a larger ring of the
 * next generation, which what was not taken is copied to. Credit is what has room, less the largest batch that
 * was seen, by which a broker may pass it; so a ring grows for a larger batch, and otherwise when its reader
 * waited for credit. A frame is published whole, after the CRC of each of its batches was found right.
 * Receiver: one thread, without the GIL. `lock` covers what opening a ring from the reader's thread looks at.
 */
#ifndef SHMB_FEED_H
#define SHMB_FEED_H

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "batch.h"
#include "layout.h"
#include "logring.h"
#include "park.h"
#include "shm.h"
#include "uptake.h"

#define SHMB_FEED_LEAST (256u << 10)

/* Faults beside batch.h's. */
enum shmb_feed_fault {
    SHMB_FEED_ORDER = 200, /* not the batches that come next */
    SHMB_FEED_CREDIT,      /* more than was granted */
    SHMB_FEED_MEMORY,      /* no memory for a larger ring */
};

struct shmb_feed {
    struct shmb_slot *slot;
    shmb_a32 *appended_word, *durable_word, *instance_word;
    struct shmb_uptake uptake;
    pthread_mutex_t lock;
    int fd; /* of the ring, until its reader has mapped it; -1: none */
    uint64_t generation;
    uint64_t capacity;
    uint8_t *object;
    /* the receiver's */
    uint64_t most;            /* capacity that it grows to by itself */
    uint64_t end;             /* position behind what is published */
    int64_t next_offset;      /* behind it, or where the first subscription began */
    int32_t leader_epoch;     /* of the last batch, or of the record in front; -1: unknown */
    int fresh;                /* nothing has come of this subscription: its first batch may begin below */
    uint64_t base;            /* position that the subscription's credit counts from */
    uint64_t limit;           /* position that it has credit to */
    uint64_t largest;         /* bytes of the largest batch so far */
    uint64_t index_head, last_index_position;
    int index_next;           /* the next batch gets an entry however near it is */
};

static inline uint8_t *shmb_feed_data(const struct shmb_feed *f) { return f->object + shmb_log_data_offset(f->capacity); }
static inline uint8_t *shmb_feed_at(const struct shmb_feed *f, uint64_t position)
{
    return shmb_feed_data(f) + position % f->capacity;
}

static int shmb_feed_init(struct shmb_feed *f, struct shmb_slot *slot, shmb_a32 *park, uint32_t number, int64_t offset,
                          int32_t leader_epoch, uint64_t most, int bell)
{
    f->slot = slot;
    f->appended_word = park + shmb_park_appended(number, 0) * (SHMB_LINE / 4);
    f->durable_word = park + shmb_park_durable(number, 0) * (SHMB_LINE / 4);
    f->instance_word = park + SHMB_PARK_INSTANCE * (SHMB_LINE / 4);
    shmb_poke(&f->uptake.wanted, UINT64_MAX);
    f->uptake.bell = bell;
    f->fd = -1;
    f->most = most;
    f->next_offset = offset;
    f->leader_epoch = leader_epoch;
    f->fresh = 1;
    slot->disk_unit = SHMB_DISK_UNIT_MIN;
    shmb_poke(&slot->log_end_offset, (uint64_t)offset);
    shmb_poke(&slot->durable_offset, (uint64_t)offset);
    shmb_poke32(&slot->slot_epoch, 1);
    shmb_publish32(&slot->state, SHMB_STATE_ONLINE);
    return pthread_mutex_init(&f->lock, NULL);
}

/* Nothing comes any more and nobody reads it: gives the ring back. The receiver, or who has the last of it. */
static void shmb_feed_free(struct shmb_feed *f)
{
    pthread_mutex_lock(&f->lock);
    if (f->object)
        shmb_unmap_double(f->object, shmb_log_data_offset(f->capacity), f->capacity);
    if (f->fd >= 0)
        close(f->fd);
    f->object = NULL;
    f->capacity = 0;
    f->fd = -1;
    pthread_mutex_unlock(&f->lock);
}

static inline void shmb_feed_index(struct shmb_feed *f, int64_t base_offset, uint64_t position)
{
    if (!f->index_next && position - f->last_index_position < SHMB_INDEX_STEP)
        return;
    struct shmb_index_entry *all = (struct shmb_index_entry *)(f->object + SHMB_PAGE);
    struct shmb_index_entry *x = &all[f->index_head % shmb_log_index_entries(f->capacity)];
    shmb_poke(&x->base_offset, (uint64_t)base_offset);
    shmb_publish(&x->position, position); /* after the offset, as in sequencer.h */
    f->last_index_position = position;
    f->index_next = 0;
    shmb_publish(&f->slot->index_head, ++f->index_head);
}

/* Indexes anew what stands in [from, end) of a new ring: whole batches, found good before. */
static inline void shmb_feed_index_all(struct shmb_feed *f, uint64_t from)
{
    f->index_head = 0;
    shmb_publish(&f->slot->index_head, 0);
    for (f->index_next = 1; from < f->end;) {
        const uint8_t *p = shmb_feed_at(f, from);
        shmb_feed_index(f, shmb_batch_base_offset(p), from);
        from += shmb_batch_size(p);
    }
    f->index_next |= f->index_head == 0;
}

/* A ring of `capacity` bytes, a power of two, instead of the present one. 0, or an errno. */
static int shmb_feed_ring(struct shmb_feed *f, uint64_t capacity)
{
    uint64_t offset = shmb_log_data_offset(capacity);
    int fd = memfd_create("shmb-feed", MFD_CLOEXEC), why;
    if (fd < 0)
        return errno;
    uint8_t *object;
    if (ftruncate(fd, (off_t)shmb_log_bytes(capacity)) || !(object = shmb_map_double(fd, offset, capacity, 1))) {
        why = errno;
        close(fd);
        return why;
    }
    uint64_t from = shmb_observe(&f->uptake.taken);
    if (f->end > from)
        memcpy(object + offset + from % capacity, shmb_feed_at(f, from), f->end - from);
    pthread_mutex_lock(&f->lock);
    if (f->object) {
        shmb_unmap_double(f->object, shmb_log_data_offset(f->capacity), f->capacity);
        if (f->fd >= 0)
            close(f->fd);
    }
    f->object = object;
    f->fd = fd;
    f->capacity = capacity;
    shmb_feed_index_all(f, from);
    shmb_publish(&f->slot->ring_bytes, capacity);
    shmb_publish(&f->slot->generation, ++f->generation);
    pthread_mutex_unlock(&f->lock);
    return 0;
}

/* The descriptor of the ring of `generation`, the caller's now: its one reader maps it once, so that a feed
 * costs none. -1 when it is another generation's turn. */
static int shmb_feed_open(struct shmb_feed *f, uint64_t generation)
{
    int fd = -1;
    pthread_mutex_lock(&f->lock);
    if (f->generation == generation) {
        fd = f->fd;
        f->fd = -1;
    }
    pthread_mutex_unlock(&f->lock);
    return fd;
}

/* Whether a batch that is here has `offset`: 1 or 0. For the reader's thread, which did not find it. */
static int shmb_feed_has(struct shmb_feed *f, int64_t offset)
{
    int has = 0;
    int64_t base;
    uint64_t at;
    struct shmb_log_view v;
    pthread_mutex_lock(&f->lock);
    if (f->object) {
        shmb_log_view_set(&v, f->slot, f->object, f->capacity, f->generation);
        has = offset < (int64_t)shmb_observe(&f->slot->log_end_offset) && shmb_log_find(&v, offset, &base, &at);
    }
    pthread_mutex_unlock(&f->lock);
    return has;
}

static inline uint64_t shmb_feed_power(uint64_t bytes)
{
    uint64_t power = SHMB_FEED_LEAST;
    while (power < bytes)
        power *= 2;
    return power;
}

/* Has room for `size` bytes behind what is published, so that they may be received there. 0, or a fault. */
static int shmb_feed_room(struct shmb_feed *f, uint64_t size)
{
    if (f->end >= f->limit)
        return SHMB_FEED_CREDIT;
    uint64_t need = f->end - shmb_observe(&f->uptake.taken) + size;
    if (need > f->capacity && shmb_feed_ring(f, shmb_feed_power(need)))
        return SHMB_FEED_MEMORY;
    shmb_publish(&f->slot->reserved_position, f->end + size);
    shmb_fence_release(); /* before the bytes: logring.h */
    return 0;
}

/* The batches of one frame, received behind what is published: looks at them and publishes them. 0, or a
 * fault; what stands in front of the fault is published. */
static int shmb_feed_take(struct shmb_feed *f, uint64_t size)
{
    uint64_t at = f->end, stop = f->end + size, granted = f->limit;
    int64_t next = f->next_offset;
    int fault = 0;
    while (at < stop && !fault) {
        const uint8_t *p = shmb_feed_at(f, at);
        size_t bytes;
        fault = shmb_batch_check(p, stop - at, SHMB_BATCH_FROM_LOG | SHMB_BATCH_COMPACTED, &bytes);
        if (fault)
            break;
        int64_t base = shmb_batch_base_offset(p), last = shmb_batch_last_offset(p);
        if (last < next || base > next || (base < next && !f->fresh))
            fault = SHMB_FEED_ORDER; /* the next of its partition, without gap and without repeat */
        else if (stop > granted && size > bytes)
            fault = SHMB_FEED_CREDIT; /* one batch may pass the credit, several may not */
        if (fault)
            break;
        f->index_next |= f->fresh;
        shmb_feed_index(f, base, at);
        f->fresh = 0;
        f->leader_epoch = shmb_batch_leader_epoch(p);
        if (bytes > f->largest)
            f->largest = bytes;
        next = last + 1;
        at += bytes;
    }
    f->end = at;
    f->next_offset = next;
    struct shmb_slot *s = f->slot;
    shmb_publish(&s->log_end_offset, (uint64_t)next);
    shmb_publish(&s->log_end_position, at);
    shmb_publish(&s->durable_offset, (uint64_t)next);
    shmb_publish(&s->durable_position, at);
    shmb_park_wake(f->appended_word);
    shmb_park_wake(f->durable_word);
    shmb_park_wake(f->instance_word);
    return fault;
}

/* A subscription begins behind what is here; a frame that was cut off is forgotten. */
static void shmb_feed_begin(struct shmb_feed *f)
{
    f->base = f->limit = f->end;
    f->fresh = 1;
}

/* Bytes of credit since the subscription began, after what the reader has taken. Makes the ring larger when
 * the reader waited for credit, unless that would pass `spare` bytes; wants to hear of the next quarter. */
static uint64_t shmb_feed_grant(struct shmb_feed *f, uint64_t spare)
{
    for (;;) {
        uint64_t taken = shmb_observe(&f->uptake.taken);
        uint64_t capacity = f->capacity ? f->capacity : SHMB_FEED_LEAST;
        if (f->capacity && taken >= f->limit && taken == f->end && f->limit > f->base && capacity < f->most &&
            capacity <= spare && shmb_feed_ring(f, 2 * capacity) == 0)
            capacity = f->capacity;
        uint64_t held = f->largest ? f->largest : capacity / 4;
        if (held >= capacity)
            held = capacity - 1;
        if (taken + capacity - held > f->limit)
            f->limit = taken + capacity - held;
        uint64_t next = taken + capacity / 4;
        if (!shmb_uptake_want(&f->uptake, next < f->limit ? next : f->limit))
            return f->limit - f->base;
    }
}

/* Every change of state wakes who waits. */
static void shmb_feed_state(struct shmb_feed *f, uint32_t state)
{
    shmb_publish32(&f->slot->state, state);
    shmb_park_wake_always(f->appended_word);
    shmb_park_wake_always(f->durable_word);
    shmb_park_wake_always(f->instance_word);
}

#endif
