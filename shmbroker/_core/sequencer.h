/* The sequencer: frames from the ingress rings, in one order, into the log rings.
 *
 * One thread a writer process, in C, without the GIL. For each frame, in this order (the model in
 * tests/model explores a crash after every step):
 *
 *   1  load the frame's length once and bound it; find the partition
 *   2  reserved_position = end (relaxed); release fence            invariant 2: readers behind a writer
 *   3  copy the batch into the log ring; validate the copy; check producer epoch and sequence
 *   4  stamp base offset and leader epoch; ring index entry
 *   5  intent: which frame becomes which log end                   invariant 8
 *   6  log_end_offset, log_end_position (release)                  from here on the frame is consumed
 *   7  receipt into its place; receipts (release)
 *   8  ingress tail (release)
 *
 * A frame that must wait for something that passes by itself (space in the ring, a segment, a ring) stays where
 * it is and its ingress ring waits: that is the backpressure. Anything that is the frame's own fault gets
 * an error receipt; a ring that holds no frames is detached.
 */
#ifndef SHMB_SEQUENCER_H
#define SHMB_SEQUENCER_H

#include "appender.h"
#include "chain.h"

/* Kafka's error codes, and our own from 1000 on (shmbroker/errors.py has the table). */
enum {
    SHMB_E_CORRUPT = 2,
    SHMB_E_UNKNOWN_PARTITION = 3,
    SHMB_E_TOO_LARGE = 10,
    SHMB_E_OUT_OF_ORDER = 45,
    SHMB_E_INVALID_EPOCH = 47,
    SHMB_E_STORAGE = 56,
    SHMB_E_INVALID_RECORD = 87,
    SHMB_E_NOT_SUPPORTED = 1003,
    SHMB_E_EARLIER = 1011,
    SHMB_E_READ_ONLY = 1012,
    SHMB_E_BAD_FRAME = 1004,
};

enum shmb_step { SHMB_STEP_EMPTY = 0, SHMB_STEP_DONE, SHMB_STEP_BLOCKED };

static inline void shmb_receipt_put(struct shmb_source *g, struct shmb_receipt *r, uint64_t tail)
{
    struct shmb_receipts_head *h = (struct shmb_receipts_head *)g->receipts;
    r->frame_end = tail;
    *shmb_receipt_at(g->receipts, g->slots, r->frame_seq) = *r;
    g->next_seq = r->frame_seq + 1;
    g->tail = tail;
    shmb_publish(&h->receipts, g->next_seq);
    shmb_publish(&h->tail, tail);
}

/* Stops reading a ring whose client writes rubbish; the housekeeper logs the reason and unmaps it. */
static inline enum shmb_step shmb_detach(struct shmb_engine *e, struct shmb_source *g, const char *why)
{
    struct shmb_receipts_head *h = (struct shmb_receipts_head *)g->receipts;
    g->why = why;
    shmb_publish32(&h->detached, SHMB_E_BAD_FRAME);
    shmb_publish32(&g->detached, SHMB_E_BAD_FRAME);
    shmb_park_wake_always(g->word);
    uint64_t one = 1;
    ssize_t ignored = write(e->wants_fd, &one, sizeof one);
    (void)ignored;
    return SHMB_STEP_EMPTY;
}

static inline enum shmb_step shmb_reject(struct shmb_engine *e, struct shmb_source *g, const struct shmb_frame *f,
                                         uint64_t seq, uint64_t frame_bytes, int32_t error)
{
    struct shmb_receipt r = {seq, f->slot, error, -1, 0, 0, -1, 0, g->chain};
    g->rejected_end = seq + 1;
    shmb_poke(&e->head->rejected, shmb_peek(&e->head->rejected) + 1);
    shmb_receipt_put(g, &r, g->tail + frame_bytes);
    return SHMB_STEP_DONE;
}

static inline enum shmb_step shmb_block(struct shmb_engine *e, struct shmb_source *g, struct shmb_part *p,
                                        enum shmb_block why)
{
    if (g->blocked != p) {
        if (!g->blocked)
            shmb_poke32(&e->blocked, shmb_peek32(&e->blocked) + 1);
        g->blocked = p;
        g->blocked_ns = (uint64_t)shmb_now_ns();
        if (shmb_peek(&p->slot->blocked_ns) == 0)
            shmb_poke(&p->slot->blocked_ns, g->blocked_ns);
    }
    shmb_poke32(&p->slot->blocked_why, why);
    return SHMB_STEP_BLOCKED;
}
static inline void shmb_unblock(struct shmb_engine *e, struct shmb_source *g)
{
    if (g->blocked) {
        shmb_poke32(&e->blocked, shmb_peek32(&e->blocked) - 1);
        shmb_poke32(&g->blocked->slot->blocked_why, SHMB_BLOCK_NONE);
        shmb_poke(&g->blocked->slot->blocked_ns, 0);
        g->blocked = NULL;
    }
}

/* A roll: the next batch begins a new segment at the next multiple of the unit. The words are stored
 * so that append_base_position comes last: an adopting writer believes the others only then. */
static inline void shmb_roll(struct shmb_engine *e, struct shmb_part *p)
{
    struct shmb_slot *s = p->slot;
    p->append_position = shmb_align_up(p->log_end, p->unit);
    p->append_base_position = p->append_position;
    p->append_base_offset = p->next_offset;
    p->roll_max_timestamp = p->max_timestamp;
    p->max_timestamp = -1;
    p->max_timestamp_offset = p->next_offset;
    p->last_disk_index = 0;
    p->alloc_bytes = p->next_alloc_bytes;
    p->next_alloc_bytes = 0;
    p->roll_due = 0;
    p->seen_space = 0;
    p->index_all = 1;
    shmb_publish(&s->roll_from_position, p->log_end);
    shmb_publish(&s->append_base_offset, (uint64_t)p->append_base_offset);
    shmb_publish(&s->append_base_position, p->append_base_position);
    shmb_publish32(&p->roll_ready, 0);
    shmb_publish32(&p->roll_pending, 1);
    shmb_want(e, p, SHMB_WANT_ROLL);
}

/* Room for `bytes` more: in the segment, in its allocation, in the ring. NONE, or why not yet. */
static inline enum shmb_block shmb_make_room(struct shmb_engine *e, struct shmb_part *p, uint64_t bytes)
{
    if (p->held)
        return SHMB_BLOCK_NO_RING;
    if (!p->data || bytes + p->unit > p->capacity) {
        p->ring_need = p->ring_must = bytes + p->unit;
        shmb_want(e, p, SHMB_WANT_RING);
        return SHMB_BLOCK_NO_RING;
    }
    uint64_t used = p->append_position - p->append_base_position;
    if (used > 0 && (used + bytes > p->segment_bytes || p->roll_due)) {
        if (p->next_alloc_bytes == 0 || shmb_observe32(&p->roll_pending)) {
            shmb_want(e, p, SHMB_WANT_NEXT);
            return SHMB_BLOCK_SEGMENT;
        }
        shmb_roll(e, p);
        used = 0;
    }
    p->alloc_need = used + bytes;
    if (used + bytes > p->alloc_bytes) {
        shmb_want(e, p, SHMB_WANT_ALLOC);
        return SHMB_BLOCK_SEGMENT;
    }
    if (!p->seen_space && (used + bytes > p->alloc_bytes / 2 || used + bytes > p->segment_bytes / 4 * 3)) {
        p->seen_space = 1; /* once an allocation step: grow it, or prepare the next segment, ahead of need */
        shmb_want(e, p, p->alloc_bytes < p->segment_bytes ? SHMB_WANT_ALLOC : SHMB_WANT_NEXT);
    }
    uint64_t end = p->append_position + bytes;
    if (end > shmb_align_down(p->durable_seen, p->unit) + p->capacity) {
        p->durable_seen = shmb_observe(&p->slot->durable_position);
        if (end > shmb_align_down(p->durable_seen, p->unit) + p->capacity) {
            if (p->capacity < p->ring_ceiling) {
                p->ring_need = p->capacity * 4 < p->ring_ceiling ? p->capacity * 4 : p->ring_ceiling;
                shmb_want(e, p, SHMB_WANT_RING);
            }
            shmb_flush_request(e, p, 1, 1);
            return SHMB_BLOCK_RING_FULL;
        }
    }
    return SHMB_BLOCK_NONE;
}

static inline void shmb_index_put(struct shmb_part *p, uint64_t position)
{
    if (!p->index_all && position - p->last_index_position < SHMB_INDEX_STEP)
        return;
    struct shmb_index_entry *x = &p->entries[p->index_head % p->entries_count];
    shmb_poke(&x->base_offset, (uint64_t)p->next_offset);
    shmb_publish(&x->position, position); /* after the offset: shmb_log_find takes them in the other order */
    p->index_head++;
    p->last_index_position = position;
    p->index_all = 0;
    shmb_publish(&p->slot->index_head, p->index_head);
}

/* Kafka's rule: an entry when more than index.interval.bytes were appended since the last. When the
 * housekeeper is behind, entries are left out: the index is sparser, never wrong. */
static inline void shmb_disk_index_put(struct shmb_engine *e, struct shmb_part *p, int64_t last_offset)
{
    uint64_t at = p->append_position - p->append_base_position;
    if (at - p->last_disk_index <= p->index_interval_bytes || !p->disk_index)
        return;
    uint64_t head = shmb_peek(&p->disk_index_head);
    uint64_t used = head - shmb_observe(&p->disk_index_tail);
    if (used >= SHMB_DISK_INDEX_ENTRIES / 2)
        shmb_want(e, p, SHMB_WANT_INDEX);
    if (used >= SHMB_DISK_INDEX_ENTRIES)
        return;
    struct shmb_disk_index_entry *x = &p->disk_index[head % SHMB_DISK_INDEX_ENTRIES];
    x->last_offset = last_offset;
    x->file_position = (int64_t)at;
    x->max_timestamp = p->max_timestamp;
    x->max_timestamp_offset = p->max_timestamp_offset;
    x->segment_base_offset = p->append_base_offset;
    shmb_publish(&p->disk_index_head, head + 1);
    p->last_disk_index = at;
}

/* Producer id, epoch and sequence. 0: append it; 1: a duplicate (*base_offset is the first one's);
 * otherwise a negated error code. */
static inline int shmb_check_producer(struct shmb_part *p, const uint8_t *b, int64_t *base_offset)
{
    if (shmb_batch_producer_id(b) < 0)
        return 0;
    int64_t first = -1;
    switch (shmb_producers_check(p->producers, shmb_batch_producer_id(b), shmb_batch_producer_epoch(b),
                                 shmb_batch_base_sequence(b), shmb_batch_record_count(b), &first)) {
    case SHMB_PRODUCER_OK:
        return 0;
    case SHMB_PRODUCER_DUPLICATE:
    case SHMB_PRODUCER_STALE: /* appended too long ago to say where: success all the same */
        *base_offset = first;
        return 1;
    case SHMB_PRODUCER_INVALID_EPOCH:
        return -SHMB_E_INVALID_EPOCH;
    default:
        return -SHMB_E_OUT_OF_ORDER;
    }
}

static inline void shmb_intent_put(struct shmb_engine *e, const struct shmb_source *g, const struct shmb_part *p,
                                   uint64_t seq, uint64_t frame_bytes, uint64_t end, int64_t base_offset)
{
    struct shmb_intent *t = &e->head->intent;
    /* end_position is taken back first and given last: a crash between leaves an intent that says nothing. */
    shmb_publish(&t->end_position, UINT64_MAX);
    shmb_publish(&t->ingress, g->id);
    shmb_publish(&t->frame_position, g->tail);
    shmb_publish(&t->frame_seq, seq);
    shmb_publish(&t->slot, p->index);
    shmb_publish(&t->frame_bytes, frame_bytes);
    shmb_publish(&t->base_offset, (uint64_t)base_offset);
    shmb_publish(&t->generation, shmb_peek(&p->slot->generation));
    shmb_publish(&t->end_position, end);
}

static inline struct shmb_receipt shmb_receipt_of(const struct shmb_part *p, uint64_t seq, int64_t base_offset,
                                                  uint64_t end)
{
    struct shmb_receipt r = {seq, p->index, 0, base_offset, end, shmb_peek(&p->slot->generation),
                             (int64_t)shmb_peek(&p->slot->log_start_offset), 0, 0};
    return r;
}

static inline void shmb_mark_dirty(struct shmb_engine *e, struct shmb_part *p, uint16_t acks)
{
    if (acks == SHMB_ACKS_DURABLE)
        p->wants_durable = 1;
    if (!p->dirty) {
        p->dirty = 1;
        e->dirty[e->dirty_count++] = p;
    }
}

static inline int32_t shmb_batch_fault(int bad)
{
    switch (bad) {
    case SHMB_BATCH_CRC: return SHMB_E_CORRUPT;
    case SHMB_BATCH_TRANSACTIONAL: return SHMB_E_NOT_SUPPORTED;
    default: return SHMB_E_INVALID_RECORD;
    }
}

/* Steps 2 to 8 for a frame whose header is good and for which there is room. */
static inline enum shmb_step shmb_append(struct shmb_engine *e, struct shmb_source *g, struct shmb_part *p,
                                         const struct shmb_frame *f, uint64_t seq, uint32_t length, uint16_t acks)
{
    struct shmb_slot *s = p->slot;
    uint64_t at = p->append_position, end = at + length, frame_bytes = shmb_frame_bytes(length);
    uint8_t *to = p->data + at % p->capacity;
    shmb_set_reserved(p, end);
    shmb_fence_release();
    memcpy(to, (const uint8_t *)f + sizeof *f, length);

    int bad = shmb_batch_validate(to, length, SHMB_BATCH_FROM_CLIENT);
    if (bad)
        return shmb_reject(e, g, f, seq, frame_bytes, shmb_batch_fault(bad));
    int64_t base_offset = p->next_offset, max_timestamp = shmb_batch_max_timestamp(to);
    int32_t count = shmb_batch_record_count(to);
    int known = shmb_check_producer(p, to, &base_offset);
    if (known < 0)
        return shmb_reject(e, g, f, seq, frame_bytes, -known);
    if (known == 1) { /* consumed before: success, with the first one's offset */
        struct shmb_receipt r = shmb_receipt_of(p, seq, base_offset, p->log_end);
        shmb_receipt_put(g, &r, g->tail + frame_bytes);
        return SHMB_STEP_DONE;
    }
    if (shmb_batch_producer_id(to) >= 0 &&
        shmb_producers_record(p->producers, shmb_batch_producer_id(to), shmb_batch_producer_epoch(to),
                              shmb_batch_base_sequence(to), count, base_offset, max_timestamp) != 0)
        return shmb_reject(e, g, f, seq, frame_bytes, SHMB_E_STORAGE); /* no memory for a new producer */
    shmb_batch_stamp(to, base_offset, p->leader_epoch);
    if (max_timestamp > p->max_timestamp) {
        p->max_timestamp = max_timestamp;
        p->max_timestamp_offset = base_offset + count - 1;
    }
    shmb_disk_index_put(e, p, base_offset + count - 1);
    shmb_index_put(p, at);
    shmb_intent_put(e, g, p, seq, frame_bytes, end, base_offset);
    shmb_set_log_end(p, end, base_offset + count);
    struct shmb_receipt r = shmb_receipt_of(p, seq, base_offset, end);
    shmb_receipt_put(g, &r, g->tail + frame_bytes);
    shmb_poke(&s->batches, shmb_peek(&s->batches) + 1);
    shmb_poke(&s->records, shmb_peek(&s->records) + (uint64_t)count);
    shmb_poke(&s->bytes, shmb_peek(&s->bytes) + length);
    shmb_mark_dirty(e, p, acks);
    return SHMB_STEP_DONE;
}

static inline enum shmb_step shmb_step_frame(struct shmb_engine *e, struct shmb_source *g)
{
    const struct shmb_ingress_head *h = (const struct shmb_ingress_head *)g->object;
    uint64_t ready = shmb_observe(&h->head) - g->tail;
    if (ready == 0)
        return SHMB_STEP_EMPTY;
    if (ready > g->capacity || ready < sizeof(struct shmb_frame))
        return shmb_detach(e, g, "its head is outside the ring");
    const struct shmb_frame *f = (const struct shmb_frame *)(g->data + g->tail % g->capacity);
    /* Each field once: the client can still change them. */
    uint32_t length = *(const volatile uint32_t *)&f->length;
    uint32_t slot = *(const volatile uint32_t *)&f->slot;
    uint16_t acks = *(const volatile uint16_t *)&f->acks;
    uint64_t seq = *(const volatile uint64_t *)&f->frame_seq;
    uint64_t frame_bytes = shmb_frame_bytes(length);
    if (frame_bytes > ready)
        return shmb_detach(e, g, "a frame's length passes the published end");
    if (seq != g->next_seq)
        return shmb_detach(e, g, "a frame is out of sequence");
    g->chain = *(const volatile uint64_t *)&f->chain;
    if (__builtin_expect(g->rejected_end != 0, 0) && seq - g->rejected_end < g->slots &&
        shmb_chain_broken(g->receipts, g->slots, seq, g->chain))
        return shmb_reject(e, g, f, seq, frame_bytes, SHMB_E_EARLIER);
    struct shmb_part *p = slot < e->slots ? e->parts[slot] : NULL;
    if (!p || p->slot_epoch != *(const volatile uint32_t *)&f->slot_epoch)
        return shmb_reject(e, g, f, seq, frame_bytes, SHMB_E_UNKNOWN_PARTITION);
    switch (shmb_observe32(&p->slot->state)) {
    case SHMB_STATE_ONLINE:
    case SHMB_STATE_NO_SPACE:
        break;
    case SHMB_STATE_OPENING:
        return shmb_block(e, g, p, SHMB_BLOCK_OPENING);
    case SHMB_STATE_READONLY:
        return shmb_reject(e, g, f, seq, frame_bytes, SHMB_E_READ_ONLY);
    case SHMB_STATE_OFFLINE:
        return shmb_reject(e, g, f, seq, frame_bytes, SHMB_E_STORAGE);
    default:
        return shmb_reject(e, g, f, seq, frame_bytes, SHMB_E_UNKNOWN_PARTITION);
    }
    if (length > p->max_message_bytes)
        return shmb_reject(e, g, f, seq, frame_bytes, SHMB_E_TOO_LARGE);
    if (length < SHMB_BATCH_HEADER_BYTES)
        return shmb_reject(e, g, f, seq, frame_bytes, SHMB_E_INVALID_RECORD);
    enum shmb_block why = shmb_make_room(e, p, length);
    if (why)
        return shmb_block(e, g, p, why);
    return shmb_append(e, g, p, f, seq, length, acks);
}

/* Takes what one ring has, up to the quantum. Returns the number of frames; g->blocked says the rest. */
static inline unsigned shmb_drain_source(struct shmb_engine *e, struct shmb_source *g)
{
    unsigned frames = 0;
    uint64_t stop = g->tail + e->frame_quantum_bytes;
    while (g->tail < stop) {
        enum shmb_step step = shmb_step_frame(e, g);
        if (step == SHMB_STEP_DONE) {
            frames++;
            shmb_unblock(e, g);
            continue;
        }
        break;
    }
    if (frames) {
        shmb_poke(&e->head->frames, shmb_peek(&e->head->frames) + frames);
        shmb_park_wake(g->word);
    }
    return frames;
}

static inline int shmb_sources_ready(struct shmb_engine *e)
{
    for (uint32_t i = 0; i < e->sources_count; i++) {
        struct shmb_source *g = e->sources[i];
        if (!shmb_peek32(&g->detached) && !g->blocked &&
            shmb_observe(&((const struct shmb_ingress_head *)g->object)->head) != g->tail)
            return 1;
    }
    return 0;
}

/* After a pass: consumers are told, and what was appended is written: by ourselves when one partition
 * alone asked for durable and nothing else waits, otherwise by the flushers. */
static inline void shmb_dispatch(struct shmb_engine *e, uint8_t *bounce)
{
    for (uint32_t i = 0; i < e->dirty_count; i++)
        shmb_park_wake(e->dirty[i]->appended_word);
    shmb_park_wake(&e->park[SHMB_PARK_INSTANCE * (SHMB_LINE / 4)]);
    struct shmb_part *one = e->dirty[0];
    if (e->dirty_count == 1 && one->wants_durable && shmb_peek(&one->slot->write_ns) < e->inline_limit_ns &&
        !shmb_sources_ready(e) && shmb_token_take(one)) {
        shmb_flush_step(e, one, bounce);
        shmb_poke(&e->head->inline_writes, shmb_peek(&e->head->inline_writes) + 1);
        shmb_token_release(e, one, 1);
    } else {
        for (uint32_t i = 0; i < e->dirty_count; i++)
            shmb_flush_request(e, e->dirty[i], 0, 1);
    }
    for (uint32_t i = 0; i < e->dirty_count; i++)
        e->dirty[i]->dirty = e->dirty[i]->wants_durable = 0;
    e->dirty_count = 0;
}

/* The housekeeper's command, if there is one. 1: stop. */
static inline int shmb_obey(struct shmb_engine *e)
{
    if (!shmb_observe32(&e->command_full))
        return 0;
    struct shmb_command *c = &e->command;
    struct shmb_part *p = c->part;
    int stop = 0;
    switch (c->op) {
    case SHMB_OP_ADD_PART: e->parts[p->index] = p; break;
    case SHMB_OP_REMOVE_PART: e->parts[p->index] = NULL; break;
    case SHMB_OP_HOLD: p->held = 1; break;
    case SHMB_OP_RESUME: p->held = 0; break;
    case SHMB_OP_ALLOC:
        if (p->append_base_offset == (int64_t)c->a && c->b > p->alloc_bytes) {
            p->alloc_bytes = c->b;
            p->seen_space = 0;
        }
        break;
    case SHMB_OP_NEXT: p->next_alloc_bytes = c->b; break;
    case SHMB_OP_ROLL_DUE: p->roll_due = p->append_base_offset == (int64_t)c->a; break;
    case SHMB_OP_CEILING: p->ring_ceiling = c->a; break;
    case SHMB_OP_LIMITS:
        p->segment_bytes = c->a;
        p->max_message_bytes = c->b;
        p->seen_space = 0; /* the next segment may be due earlier than was thought */
        break;
    case SHMB_OP_INDEX_INTERVAL: p->index_interval_bytes = c->a; break;
    case SHMB_OP_ADD_SOURCE: e->sources[e->sources_count++] = c->source; break;
    case SHMB_OP_REMOVE_SOURCE:
        for (uint32_t i = 0; i < e->sources_count; i++)
            if (e->sources[i] == c->source) {
                shmb_unblock(e, c->source);
                e->sources[i] = e->sources[--e->sources_count];
                break;
            }
        break;
    case SHMB_OP_STOP: stop = 1; break;
    default: break;
    }
    shmb_publish32(&e->command_full, 0);
    atomic_exchange_explicit(&e->command_done, 1, memory_order_acq_rel);
    syscall(SYS_futex, &e->command_done, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    return stop;
}

static inline unsigned shmb_pass(struct shmb_engine *e, uint8_t *bounce)
{
    unsigned frames = 0;
    for (uint32_t i = 0; i < e->sources_count; i++)
        if (!shmb_peek32(&e->sources[i]->detached))
            frames += shmb_drain_source(e, e->sources[i]);
    if (e->dirty_count)
        shmb_dispatch(e, bounce);
    return frames;
}

/* Whether anything has happened that a pass would act on: for a blocked frame that is progress since the
 * last pass (`progress`: seen before it). */
static inline int shmb_stirred(struct shmb_engine *e, uint64_t progress)
{
    return shmb_observe32(&e->command_full) || shmb_sources_ready(e) ||
           (shmb_peek32(&e->blocked) && shmb_observe(&e->progress) != progress);
}

/* Looks for work before a sleep; 1: there is some. Adaptive: as long as may be once looking was worth it,
 * half as long after each time that it was not, so that a writer with little to do leaves its core to
 * others; each SPIN_PROBE-th time as long as may be again, since only then can it be found worth it. */
#define SHMB_SPIN_PROBE 16u
#define SHMB_SPIN_LEAST_NS 1000u
static inline int shmb_spin(struct shmb_engine *e, uint64_t progress)
{
    if (e->idle == SHMB_IDLE_PARK)
        return 0;
    uint64_t spin = ++e->idles % SHMB_SPIN_PROBE ? e->spin_now_ns : e->spin_ns;
    if (e->idle == SHMB_IDLE_ADAPTIVE && spin < SHMB_SPIN_LEAST_NS)
        return 0;
    int64_t until = e->idle == SHMB_IDLE_SPIN ? INT64_MAX : shmb_now_ns() + (int64_t)spin;
    do {
        for (int i = 0; i < 64; i++) {
            shmb_relax();
            if (shmb_stirred(e, progress)) {
                e->spin_now_ns = e->spin_ns;
                return 1;
            }
        }
    } while (until == INT64_MAX || shmb_now_ns() < until);
    e->spin_now_ns /= 2;
    return 0;
}

/* The sequencer thread's life. `bounce`: one unit, aligned to it. Returns at SHMB_OP_STOP. */
static inline void shmb_sequence(struct shmb_engine *e, uint8_t *bounce)
{
    for (;;) {
        uint64_t progress = shmb_observe(&e->progress);
        if (shmb_obey(e))
            return;
        if (shmb_pass(e, bounce))
            continue;
        if (shmb_spin(e, progress))
            continue;
        shmb_park_arm(e->doorbell);
        if (shmb_stirred(e, progress))
            continue;
        shmb_poke(&e->head->sequencer_parks, shmb_peek(&e->head->sequencer_parks) + 1);
        shmb_park_wait(e->doorbell, INT64_MAX);
    }
}

#endif
