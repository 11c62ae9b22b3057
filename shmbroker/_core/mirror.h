/* The writer's half of a private ingress ring: frames out of it, and receipts back, in their order.
 *
 * A remote client has its broker's shared objects to itself (client/remote/mirror.py): its producers
 * fill an ingress ring as they would a local one, and one thread of the process, which stands for the
 * writer, takes the frames and sends them. An answer comes back in any order; receipts go into their places
 * in order, since the producer counts them (ingress.h), so an early one waits for those before it.
 *
 *     tail = what was taken        receipts = `told`        answered ahead of it: `answers`
 *
 * The tail moves when a frame is taken, since it is copied then. A receipt says that its acks are
 * reached, so the slot's durable position is moved to its end before it is put: nobody waits twice.
 * Everything here belongs to that one thread, but the words in the shared objects, and `stop`.
 */
#ifndef SHMB_MIRROR_H
#define SHMB_MIRROR_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "layout.h"
#include "park.h"
#include "shm.h"

#define SHMB_MIRROR_GENERATION ((1ull << 32) | 1) /* of every slot: never recovered, never replaced */

struct shmb_answer {
    int64_t base_offset;
    uint64_t chain;
    uint32_t slot;
    int32_t error;
    uint32_t bytes; /* of the batch */
    int known;
};

struct shmb_mirror {
    struct shmb_ingress_head *ring;
    uint8_t *data;
    struct shmb_receipts_head *receipts;
    size_t receipts_bytes;
    void *table;
    shmb_a32 *park;
    uint64_t capacity, slots;
    uint64_t id;
    uint32_t writer;
    uint64_t tail;  /* bytes taken */
    uint64_t taken; /* frames taken */
    uint64_t told;  /* receipts put */
    struct shmb_answer *answers; /* of the frames from `told` to `taken`, each in its place */
    shmb_a32 stop;  /* ends shmb_mirror_ring */
};

static inline shmb_a32 *shmb_mirror_word(const struct shmb_mirror *m, uint32_t index)
{
    return m->park + index * (SHMB_LINE / sizeof *m->park);
}

/* Gives a slot to a partition, for as long as the table is there. */
static inline void shmb_mirror_assign(void *table, uint32_t slot, const uint8_t *topic_id, uint32_t partition)
{
    struct shmb_slot *s = shmb_table_slot(table, slot);
    memcpy(s->topic_id, topic_id, 16);
    s->partition = partition;
    s->disk_unit = SHMB_DISK_UNIT_MIN;
    shmb_publish(&s->generation, SHMB_MIRROR_GENERATION);
    shmb_publish32(&s->state, SHMB_STATE_ONLINE);
    shmb_publish32(&s->slot_epoch, 1);
}

/* The frame that is next, or NULL. Its batch stands behind it. */
static inline const struct shmb_frame *shmb_mirror_next(const struct shmb_mirror *m)
{
    if (shmb_observe(&m->ring->head) == m->tail || m->taken - m->told >= m->slots)
        return NULL;
    return (const struct shmb_frame *)(m->data + (m->tail & (m->capacity - 1)));
}

/* That frame was copied: its place is free. */
static inline void shmb_mirror_take(struct shmb_mirror *m)
{
    const struct shmb_frame *f = (const struct shmb_frame *)(m->data + (m->tail & (m->capacity - 1)));
    struct shmb_answer *a = &m->answers[m->taken & (m->slots - 1)];
    a->slot = f->slot;
    a->chain = f->chain;
    a->bytes = f->length;
    a->known = 0;
    m->taken++;
    m->tail += shmb_frame_bytes(f->length);
    shmb_publish(&m->receipts->tail, m->tail);
    shmb_park_wake(shmb_mirror_word(m, shmb_park_ingress(m->id)));
}

/* What became of frame `seq`; puts its receipt and those that waited for it. */
static inline void shmb_mirror_answer(struct shmb_mirror *m, uint64_t seq, int32_t error, int64_t base_offset)
{
    struct shmb_answer *a = &m->answers[seq & (m->slots - 1)];
    a->error = error;
    a->base_offset = base_offset;
    a->known = 1;
    uint64_t before = m->told;
    while (m->told < m->taken && (a = &m->answers[m->told & (m->slots - 1)])->known) {
        struct shmb_slot *s = shmb_table_slot(m->table, a->slot);
        uint64_t end = shmb_peek(&s->durable_position);
        if (!a->error) {
            end += a->bytes;
            shmb_publish(&s->log_end_position, end);
            shmb_publish(&s->durable_position, end);
            shmb_park_wake(shmb_mirror_word(m, shmb_park_durable(m->writer, a->slot)));
        }
        *shmb_receipt_at(m->receipts, m->slots, m->told) = (struct shmb_receipt){
            .frame_seq = m->told, .slot = a->slot, .error = a->error,
            .base_offset = a->error ? -1 : a->base_offset, .end_position = end,
            .generation = SHMB_MIRROR_GENERATION, .log_start_offset = -1,
            .frame_end = m->tail, .chain = a->chain};
        m->told++;
    }
    if (m->told != before) {
        shmb_publish(&m->receipts->receipts, m->told);
        shmb_park_wake(shmb_mirror_word(m, shmb_park_ingress(m->id)));
    }
}

/* Rings `bell`, an eventfd, whenever something was published, until `stop`; in a thread of its own, without
 * the GIL. It looks at what it has seen itself, not at what was taken: frames that wait for credit don't ring. */
static inline void shmb_mirror_ring(struct shmb_mirror *m, int bell)
{
    shmb_a32 *doorbell = shmb_mirror_word(m, SHMB_PARK_WRITER + m->writer);
    uint64_t seen = 0, head, one = 1;
    for (;;) {
        shmb_park_arm(doorbell);
        if (shmb_observe32(&m->stop))
            return;
        head = shmb_observe(&m->ring->head);
        if (head == seen) {
            shmb_park_wait(doorbell, INT64_MAX);
            continue;
        }
        seen = head;
        while (write(bell, &one, sizeof one) < 0 && errno == EINTR)
            ;
    }
}

#endif
