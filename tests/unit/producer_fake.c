/* A writer for the producer's tests: takes frames, judges them as the sequencer does, keeps no log. It runs
 * in a thread of the test's process; the words of struct fake say what it shall do. */
#include <stdlib.h>
#include <sys/mman.h>

#include "batch.h"
#include "chain.h"
#include "ingress.h"
#include "producers.h"

struct fake {
    uint8_t *ring, *receipts, *table; /* of one ingress; the ring mapped twice in a row */
    shmb_a32 *park;
    uint64_t ingress;
    uint32_t writer, slots_max;
    shmb_a32 stop;
    shmb_a32 paused;       /* takes no frames */
    shmb_a32 not_durable;  /* appends, and never says durable */
    shmb_a32 reject;       /* error for the next frame; then 0 */
    shmb_a32 spin;         /* never parks */
    shmb_a32 detach;       /* drops the ring */
    shmb_a64 frames, records, bytes, parks, rung;
    uint8_t *log;          /* log_bytes of it: the last batches as they came, one behind the other */
    uint64_t log_bytes, log_end;
};

static shmb_a32 *word(struct fake *f, uint32_t n) { return f->park + n * (SHMB_LINE / 4); }

static struct shmb_producers *producers_of(struct fake *f, uint32_t slot)
{
    static struct { uint8_t *table; struct shmb_producers at[8192]; } all;
    if (all.table != f->table) {
        memset(&all, 0, sizeof all);
        all.table = f->table;
    }
    if (!all.at[slot].slots)
        shmb_producers_init(&all.at[slot], 0, 0);
    return &all.at[slot];
}

static struct shmb_receipt judge(struct fake *f, const struct shmb_frame *frame)
{
    struct shmb_slot *s = shmb_table_slot(f->table, frame->slot);
    const uint8_t *b = (const uint8_t *)(frame + 1);
    const struct shmb_receipts_head *back = (const struct shmb_receipts_head *)f->receipts;
    struct shmb_receipt r = {
        .frame_seq = frame->frame_seq, .slot = frame->slot, .base_offset = -1, .chain = frame->chain};
    if (shmb_chain_broken(f->receipts, back->slots, frame->frame_seq, frame->chain))
        return r.error = 1011, r;
    if (frame->slot >= f->slots_max || shmb_peek32(&s->slot_epoch) != frame->slot_epoch)
        return r.error = 3, r;
    if (shmb_batch_validate(b, frame->length, SHMB_BATCH_FROM_CLIENT))
        return r.error = 2, r;
    uint32_t reject = atomic_exchange(&f->reject, 0);
    if (reject)
        return r.error = (int32_t)reject, r;
    int64_t id = shmb_batch_producer_id(b), base = (int64_t)shmb_peek(&s->log_end_offset);
    int32_t count = shmb_batch_record_count(b);
    uint64_t end = shmb_peek(&s->log_end_position);
    if (id >= 0) {
        struct shmb_producers *t = producers_of(f, frame->slot);
        int verdict = shmb_producers_check(t, id, shmb_batch_producer_epoch(b), shmb_batch_base_sequence(b), count, &base);
        if (verdict == SHMB_PRODUCER_STALE) /* success, as the sequencer has it */
            return r.end_position = end, r.generation = shmb_peek(&s->generation), r;
        if (verdict > 1)
            return r.error = verdict == SHMB_PRODUCER_INVALID_EPOCH ? 47 : 45, r;
        if (verdict == 0) {
            base = (int64_t)shmb_peek(&s->log_end_offset);
            shmb_producers_record(t, id, shmb_batch_producer_epoch(b), shmb_batch_base_sequence(b), count, base, 0);
        }
        if (verdict == 1)
            count = 0;
    }
    if (count) {
        end += frame->length;
        if (f->log && f->log_end + frame->length <= f->log_bytes) {
            memcpy(f->log + f->log_end, b, frame->length);
            shmb_batch_stamp(f->log + f->log_end, base, 0);
            f->log_end += frame->length;
        }
    }
    shmb_publish(&s->log_end_offset, shmb_peek(&s->log_end_offset) + (uint64_t)count);
    shmb_publish(&s->log_end_position, end);
    shmb_poke(&f->records, shmb_peek(&f->records) + (uint64_t)count);
    r.base_offset = base;
    r.end_position = end;
    r.generation = shmb_peek(&s->generation);
    return r;
}

static int step(struct fake *f)
{
    struct shmb_receipts_head *back = (struct shmb_receipts_head *)f->receipts;
    const struct shmb_ingress_head *head = (const struct shmb_ingress_head *)f->ring;
    uint64_t tail = shmb_peek(&back->tail), to = shmb_observe(&head->head);
    if (shmb_observe32(&f->detach) && !shmb_peek32(&back->detached)) {
        shmb_publish32(&back->detached, 1004);
        shmb_park_wake_always(word(f, shmb_park_ingress(f->ingress)));
    }
    if (tail == to || shmb_observe32(&f->paused) || shmb_peek32(&back->detached))
        return 0;
    while (tail != to) {
        const struct shmb_frame *frame = (const struct shmb_frame *)(f->ring + SHMB_PAGE + (tail & (head->capacity - 1)));
        struct shmb_receipt r = judge(f, frame);
        *shmb_receipt_at(f->receipts, back->slots, frame->frame_seq) = r;
        shmb_publish(&back->receipts, frame->frame_seq + 1);
        uint32_t slot = frame->slot;
        shmb_poke(&f->bytes, shmb_peek(&f->bytes) + frame->length);
        shmb_poke(&f->frames, shmb_peek(&f->frames) + 1);
        tail += shmb_frame_bytes(frame->length);
        shmb_publish(&back->tail, tail);
        shmb_park_wake(word(f, shmb_park_ingress(f->ingress)));
        if (!shmb_peek32(&f->not_durable) && slot < f->slots_max) {
            struct shmb_slot *s = shmb_table_slot(f->table, slot);
            shmb_publish(&s->durable_position, shmb_peek(&s->log_end_position));
            shmb_park_wake(word(f, shmb_park_durable(f->writer, slot)));
        }
    }
    return 1;
}

/* Until `stop`. Called without the GIL. */
void fake_run(struct fake *f)
{
    shmb_a32 *bell = word(f, SHMB_PARK_WRITER + f->writer);
    while (!shmb_observe32(&f->stop)) {
        if (step(f))
            continue;
        int stirred = 0;
        for (int i = 0; i < 2000 && !stirred; i++) {
            shmb_relax();
            stirred = step(f);
        }
        if (stirred || shmb_peek32(&f->spin))
            continue;
        shmb_park_arm(bell);
        if (step(f) || shmb_observe32(&f->stop))
            continue;
        shmb_poke(&f->parks, shmb_peek(&f->parks) + 1);
        shmb_park_wait(bell, INT64_MAX);
    }
}
/* After a change of a word of `f` or of the table. */
void fake_ring_all(struct fake *f)
{
    for (uint32_t n = 0; n < SHMB_PARK_WORDS; n++)
        shmb_park_wake_always(word(f, n));
}
void fake_slot_init(uint8_t *table, uint32_t slot, uint32_t epoch)
{
    struct shmb_slot *s = shmb_table_slot(table, slot);
    s->partition = slot;
    shmb_publish(&s->generation, 1ull << 32 | 1);
    shmb_publish32(&s->slot_epoch, epoch);
    shmb_publish32(&s->state, SHMB_STATE_ONLINE);
}
void fake_slot_state(uint8_t *table, uint32_t slot, uint32_t state, uint64_t generation)
{
    struct shmb_slot *s = shmb_table_slot(table, slot);
    if (generation)
        shmb_publish(&s->generation, generation);
    shmb_publish32(&s->state, state);
}
void fake_slot_durable(uint8_t *table, uint32_t slot)
{
    struct shmb_slot *s = shmb_table_slot(table, slot);
    shmb_publish(&s->durable_position, shmb_peek(&s->log_end_position));
}
void *fake_map_double(int fd, size_t capacity)
{
    void *at = mmap(NULL, SHMB_PAGE + 2 * capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mmap(at, SHMB_PAGE + capacity, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
    mmap((uint8_t *)at + SHMB_PAGE + capacity, capacity, PROT_READ, MAP_SHARED | MAP_FIXED, fd, SHMB_PAGE);
    return at;
}
void *fake_map(int fd, size_t bytes) { return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0); }
void fake_unmap(void *at, size_t bytes) { munmap(at, bytes); }
