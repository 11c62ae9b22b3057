/* Taking over what a killed writer left in shared memory: rings, positions, and the frame in doubt.
 *
 * Runs in the new writer before its sequencer starts, so alone. What it believes of the table's words,
 * and why that is enough: a killed process has executed a prefix of its stores, in program order, and all
 * of them are visible once it is reaped; so each word is old or new, and of an ordered group a prefix is new.
 */
#ifndef SHMB_ADOPT_H
#define SHMB_ADOPT_H

#include "sequencer.h"

/* Finishes a segment switch that was cut short, and forgets a roll that was never published:
 * append_base_position is the last word of a roll and flush_seq is odd inside a switch. */
static inline void shmb_adopt_segments(struct shmb_part *p)
{
    struct shmb_slot *s = p->slot;
    uint64_t seq = shmb_peek(&s->flush_seq);
    if (seq & 1) {
        shmb_poke(&s->flush_base_offset, shmb_peek(&s->append_base_offset));
        shmb_poke(&s->flush_base_position, shmb_peek(&s->append_base_position));
        shmb_poke(&s->durable_position, shmb_peek(&s->append_base_position));
        shmb_publish(&s->flush_seq, seq + 1);
    }
    if (shmb_peek(&s->append_base_position) == shmb_peek(&s->flush_base_position))
        shmb_poke(&s->append_base_offset, shmb_peek(&s->flush_base_offset));
}

/* Walks what is appended and not durable, verifying every batch, and enters its producers.
 * 0 and the offset after the last batch; or the error of the first bad batch, whose position is set. */
static inline int shmb_adopt_walk(struct shmb_part *p, int64_t *next_offset, uint64_t *position)
{
    struct shmb_slot *s = p->slot;
    uint64_t end = shmb_peek(&s->log_end_position), at = shmb_peek(&s->durable_position);
    uint64_t roll_to = shmb_peek(&s->append_base_position);
    int rolling = roll_to != shmb_peek(&s->flush_base_position);
    uint64_t roll_from = shmb_peek(&s->roll_from_position);
    int64_t offset = (int64_t)shmb_peek(&s->durable_offset);
    while (at < end) {
        if (rolling && at == roll_from && end > roll_to)
            at = roll_to;
        const uint8_t *b = p->data + at % p->capacity;
        size_t size;
        *position = at;
        int bad = shmb_batch_check(b, end - at, SHMB_BATCH_FROM_LOG, &size);
        if (bad)
            return bad;
        /* durable_offset is stored before durable_position: batches below it are written already. */
        if (shmb_batch_base_offset(b) > offset)
            return SHMB_BATCH_OFFSET;
        if (shmb_batch_producer_id(b) >= 0 &&
            shmb_producers_record(p->producers, shmb_batch_producer_id(b), shmb_batch_producer_epoch(b),
                                  shmb_batch_base_sequence(b), shmb_batch_record_count(b),
                                  shmb_batch_base_offset(b), shmb_batch_max_timestamp(b)) != 0)
            return SHMB_BATCH_PRODUCER;
        if (shmb_batch_max_timestamp(b) > p->max_timestamp) {
            p->max_timestamp = shmb_batch_max_timestamp(b);
            p->max_timestamp_offset = shmb_batch_last_offset(b);
        }
        offset = shmb_batch_last_offset(b) + 1;
        at += size;
    }
    *next_offset = offset;
    return 0;
}

/* Sets the private state from the table's; `next_offset` from the walk (or durable_offset without a ring). */
static inline void shmb_adopt_positions(struct shmb_part *p, int64_t next_offset)
{
    struct shmb_slot *s = p->slot;
    uint64_t durable = shmb_peek(&s->durable_position), end = shmb_peek(&s->log_end_position);
    if (end < durable) { /* killed between a segment switch and the append it was for: can't be, but costs nothing */
        end = durable;
        shmb_publish(&s->log_end_position, end);
    }
    p->log_end = end;
    p->append_base_position = shmb_peek(&s->append_base_position);
    p->append_base_offset = (int64_t)shmb_peek(&s->append_base_offset);
    p->append_position = end > p->append_base_position ? end : p->append_base_position;
    p->next_offset = next_offset;
    p->index_head = shmb_peek(&s->index_head);
    p->index_all = 1;
    p->durable_seen = durable;
    p->flush_base_position = shmb_peek(&s->flush_base_position);
    p->flush_base_offset = (int64_t)shmb_peek(&s->flush_base_offset);
    shmb_publish32(&p->roll_pending, p->append_base_position != p->flush_base_position);
    shmb_end_pair_set(p, end, next_offset);
    shmb_mark(p, durable, (int64_t)shmb_peek(&s->durable_offset));
    shmb_publish(&s->log_end_offset, (uint64_t)next_offset);
}

/* The frame in doubt (invariant 8). Sets tail and next_seq of a source that is attached again.
 *
 * A frame whose receipt was written is settled, whatever the verdict: the client may have seen it, so it is
 * never judged again; the receipt says where the frame ended. A frame that was published in the log without
 * its receipt gets it now. Nothing is read from the client's memory. Whoever the dead writer may have
 * failed to wake is woken. */
static inline void shmb_adopt_source(struct shmb_engine *e, struct shmb_source *g)
{
    struct shmb_receipts_head *h = (struct shmb_receipts_head *)g->receipts;
    const struct shmb_intent *t = &e->head->intent;
    g->tail = shmb_peek(&h->tail);
    g->next_seq = shmb_peek(&h->receipts);
    if (g->next_seq > 0) {
        const struct shmb_receipt *last = shmb_receipt_at(g->receipts, g->slots, g->next_seq - 1);
        if (last->frame_end > g->tail) {
            g->tail = last->frame_end;
            shmb_publish(&h->tail, g->tail);
        }
    }
    uint64_t slot = shmb_peek(&t->slot), end = shmb_peek(&t->end_position);
    if (shmb_peek(&t->ingress) == g->id && shmb_peek(&t->frame_position) == g->tail &&
        shmb_peek(&t->frame_seq) == g->next_seq && end != UINT64_MAX && slot < e->slots && e->parts[slot] &&
        shmb_peek(&e->parts[slot]->slot->generation) >> 32 == shmb_peek(&t->generation) >> 32 &&
        shmb_peek(&e->parts[slot]->slot->log_end_position) >= end) {
        struct shmb_receipt r = shmb_receipt_of(e->parts[slot], shmb_peek(&t->frame_seq),
                                                (int64_t)shmb_peek(&t->base_offset), end);
        shmb_receipt_put(g, &r, g->tail + shmb_peek(&t->frame_bytes));
    }
    g->rejected_end = shmb_chain_rejected_end(g->receipts, g->slots, g->next_seq);
    shmb_park_wake_always(g->word);
}

#endif
