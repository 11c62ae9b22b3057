/* The writer's half of a private ingress ring: frames out of it, and receipts back, in their order.
 *
 * A remote client has its broker's shared objects to itself (client/remote/mirror.py): its producers
 * fill an ingress ring as they would a local one, and one thread of the process, which stands for the
 * writer, sends the frames on. A frame stays where it is until it is answered, so that it can be sent again
 * after a break: there is no other copy. An answer comes back in any order; receipts go into their places
 * in order, since the producer counts them (ingress.h), so an early one waits for those before it.
 *
 *     tail = end of what is answered <= at = end of what was taken <= head        receipts = `told`
 *
 * A receipt says that its acks are reached, so the slot's durable position is moved to its end before it is
 * put: nobody waits twice. Everything here belongs to that one thread, but the words in the shared objects.
 */
#ifndef SHMB_MIRROR_H
#define SHMB_MIRROR_H

#include <stdlib.h>
#include <string.h>

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
    uint64_t end; /* in the ring, behind the frame */
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
    uint64_t at;    /* bytes taken */
    uint64_t tail;  /* bytes answered: their places are free */
    uint64_t seen;  /* the head when there was nothing to take, or no more was wanted */
    uint64_t taken; /* frames taken */
    uint64_t told;  /* receipts put */
    struct shmb_answer *answers; /* of the frames from `told` to `taken`, each in its place */
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
static inline const struct shmb_frame *shmb_mirror_next(struct shmb_mirror *m)
{
    m->seen = shmb_observe(&m->ring->head);
    if (m->seen == m->at || m->taken - m->told >= m->slots)
        return NULL;
    return (const struct shmb_frame *)(m->data + (m->at & (m->capacity - 1)));
}

/* That frame is on its way; its place stays taken until its answer. */
static inline void shmb_mirror_take(struct shmb_mirror *m)
{
    const struct shmb_frame *f = (const struct shmb_frame *)(m->data + (m->at & (m->capacity - 1)));
    struct shmb_answer *a = &m->answers[m->taken & (m->slots - 1)];
    m->at += shmb_frame_bytes(f->length);
    a->slot = f->slot;
    a->chain = f->chain;
    a->bytes = f->length;
    a->end = m->at;
    a->known = 0;
    m->taken++;
    shmb_publish(&m->receipts->taken, m->at);
    shmb_park_wake(shmb_mirror_word(m, shmb_park_ingress(m->id)));
}

/* Has the next publication ring the bell; 1 when there was one since shmb_mirror_next or this looked: look
 * again, it may not ring. What waits for credit does not count. */
static inline int shmb_mirror_arm(struct shmb_mirror *m)
{
    shmb_park_arm_unfenced(shmb_mirror_word(m, SHMB_PARK_WRITER + m->writer));
    shmb_fence_full();
    uint64_t head = shmb_observe(&m->ring->head);
    if (head == m->seen)
        return 0;
    m->seen = head;
    return 1;
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
            .frame_end = a->end, .chain = a->chain};
        m->tail = a->end;
        m->told++;
    }
    if (m->told != before) {
        shmb_publish(&m->receipts->receipts, m->told);
        shmb_publish(&m->receipts->tail, m->tail);
        shmb_park_wake(shmb_mirror_word(m, shmb_park_ingress(m->id)));
    }
}

#endif
