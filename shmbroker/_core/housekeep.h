/* What the housekeeper does to the engine, each as one small function: commands to the sequencer, rings,
 * files. Called by engine.pyx from one Python thread, most of them without the GIL.
 */
#ifndef SHMB_HOUSEKEEP_H
#define SHMB_HOUSEKEEP_H

#include "adopt.h"
#include "shm.h"

/* Hands a command to the sequencer and waits until it is done. The sequencer looks between two passes;
 * when its thread doesn't run (before the start, after the stop) the caller executes it itself. */
static inline void shmb_command_run(struct shmb_engine *e, uint32_t op, struct shmb_part *p,
                                    struct shmb_source *g, uint64_t a, uint64_t b, int running)
{
    e->command = (struct shmb_command){op, p, g, a, b};
    shmb_publish32(&e->command_done, 0);
    shmb_publish32(&e->command_full, 1);
    if (!running) {
        shmb_obey(e);
        return;
    }
    shmb_park_wake_always(e->doorbell); /* a client may have died between clearing the word and FUTEX_WAKE */
    while (!shmb_observe32(&e->command_done))
        syscall(SYS_futex, &e->command_done, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static inline void shmb_engine_free(struct shmb_engine *e)
{
    free(e->parts);
    free(e->sources);
    free(e->dirty);
    free(e->flush.cells);
    free(e->flush_urgent.cells);
    free(e->wants.cells);
    if (e->wants_fd >= 0)
        close(e->wants_fd);
}

/* 0, or errno. `e` is zeroed memory. */
static inline int shmb_engine_init(struct shmb_engine *e, void *table, void *park, uint32_t sources_max)
{
    uint64_t queue = 1;
    e->wants_fd = -1;
    e->head = table;
    e->park = park;
    e->writer = e->head->writer;
    e->slots = e->head->slots_max;
    e->doorbell = e->park + (SHMB_PARK_WRITER + e->writer) * (SHMB_LINE / 4);
    e->trace_fd = -1;
    e->frame_quantum_bytes = 1 << 20;
    while (queue < e->slots)
        queue *= 2;
    e->parts = calloc(e->slots, sizeof *e->parts);
    e->dirty = calloc(e->slots, sizeof *e->dirty);
    e->sources = calloc(sources_max, sizeof *e->sources);
    if (!e->parts || !e->dirty || !e->sources || shmb_queue_init(&e->flush, queue) ||
        shmb_queue_init(&e->flush_urgent, queue) || shmb_queue_init(&e->wants, queue))
        return ENOMEM;
    e->wants_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return e->wants_fd < 0 ? errno : 0;
}

static inline struct shmb_part *shmb_part_new(struct shmb_engine *e, uint32_t slot)
{
    struct shmb_part *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->index = slot;
    p->slot = shmb_table_slot(e->head, slot);
    p->slot_epoch = shmb_peek32(&p->slot->slot_epoch);
    p->appended_word = e->park + shmb_park_appended(e->writer, slot) * (SHMB_LINE / 4);
    p->durable_word = e->park + shmb_park_durable(e->writer, slot) * (SHMB_LINE / 4);
    p->fd = p->next_fd = -1;
    p->max_timestamp = -1;
    return p;
}

/* A slot's words for a partition that was recovered from disk. The position goes on behind whatever the
 * slot had reserved before, congruent to the file position (invariants 4 and 5); the generation's high half is
 * raised, so that whoever waited under the old one resolves anew. */
static inline void shmb_part_fresh(struct shmb_part *p, uint64_t file_position, int64_t segment_base_offset,
                                   int64_t next_offset, int64_t log_start_offset)
{
    struct shmb_slot *s = p->slot;
    uint64_t base = shmb_align_up(shmb_peek(&s->reserved_position), p->unit), at = base + file_position;
    uint64_t seq = shmb_peek(&s->flush_seq) & ~(uint64_t)1;
    shmb_publish(&s->generation, ((shmb_peek(&s->generation) >> 32) + 1) << 32);
    shmb_publish(&s->ring_bytes, 0);
    shmb_publish(&s->index_head, 0);
    shmb_publish(&s->reserved_position, at);
    shmb_publish(&s->flush_seq, seq + 1);
    shmb_fence_release();
    shmb_poke(&s->flush_base_offset, (uint64_t)segment_base_offset);
    shmb_poke(&s->flush_base_position, base);
    shmb_publish(&s->durable_offset, (uint64_t)next_offset);
    shmb_publish(&s->durable_position, at);
    shmb_publish(&s->flush_seq, seq + 2);
    shmb_publish(&s->append_base_offset, (uint64_t)segment_base_offset);
    shmb_publish(&s->append_base_position, base);
    shmb_publish(&s->log_start_offset, (uint64_t)log_start_offset);
    shmb_publish(&s->log_end_offset, (uint64_t)next_offset);
    shmb_publish(&s->log_end_position, at);
    shmb_publish32(&s->leader_epoch, (uint32_t)p->leader_epoch);
    shmb_adopt_positions(p, next_offset);
    p->last_disk_index = file_position;
}

/* Puts a mapped ring object in the place of the present one (or none). The partition is held and
 * drained and the token is the caller's. `tail`: the bytes of the partial last unit, loaded at its place. */
static inline void shmb_part_install(struct shmb_part *p, uint8_t *object, uint64_t capacity, uint64_t generation,
                                     const uint8_t *tail, uint64_t tail_bytes)
{
    struct shmb_slot *s = p->slot;
    p->data = object ? object + shmb_log_data_offset(capacity) : NULL;
    p->entries = object ? (struct shmb_index_entry *)(object + SHMB_PAGE) : NULL;
    p->capacity = capacity;
    p->entries_count = object ? shmb_log_index_entries(capacity) : 0;
    p->index_head = 0;
    p->index_all = 1;
    p->ring_need = p->ring_must = 0;
    if (tail_bytes)
        memcpy(p->data + (p->log_end - tail_bytes) % capacity, tail, tail_bytes);
    shmb_publish(&s->index_head, 0);
    shmb_publish(&s->ring_bytes, capacity);
    shmb_publish(&s->generation, generation);
}

/* The ring that a killed writer left. */
static inline void shmb_part_reuse(struct shmb_part *p, uint8_t *object, uint64_t capacity)
{
    p->data = object + shmb_log_data_offset(capacity);
    p->entries = (struct shmb_index_entry *)(object + SHMB_PAGE);
    p->capacity = capacity;
    p->entries_count = shmb_log_index_entries(capacity);
}

/* Takes the token however long a write lasts. */
static inline void shmb_token_wait(struct shmb_part *p)
{
    struct timespec nap = {0, 20000};
    while (!shmb_token_take(p))
        nanosleep(&nap, NULL);
}

/* Waits until all that is appended is durable, the state is no longer writable, or the deadline has passed.
 * 1: drained. */
static inline int shmb_wait_drained(struct shmb_engine *e, struct shmb_part *p, int64_t deadline_ns)
{
    for (;;) {
        shmb_flush_request(e, p, 1, 1);
        shmb_park_arm(p->durable_word);
        if (shmb_observe(&p->slot->durable_position) >= shmb_observe(&p->end_position))
            return 1;
        if (shmb_observe32(&p->slot->state) >= SHMB_STATE_READONLY)
            return 0;
        if (shmb_park_wait(p->durable_word, deadline_ns) == ETIMEDOUT)
            return 0;
    }
}

static inline void shmb_part_state(struct shmb_engine *e, struct shmb_part *p, uint32_t state, uint32_t reason)
{
    shmb_publish32(&p->slot->reason, reason);
    shmb_publish32(&p->slot->state, state);
    atomic_fetch_add_explicit(&e->progress, 1, memory_order_acq_rel);
    shmb_park_wake_always(e->doorbell);
    shmb_part_ring_all(e, p);
}

static inline void shmb_wants_clear(struct shmb_part *p, uint32_t bits)
{
    atomic_fetch_and_explicit(&p->wants, ~bits, memory_order_acq_rel);
}

/* The next segment's file has its name: the flushers may go on. */
static inline void shmb_part_rolled(struct shmb_engine *e, struct shmb_part *p, int fd)
{
    p->next_fd = fd;
    shmb_publish32(&p->roll_ready, 1);
    shmb_flush_request(e, p, 1, 1);
}

#endif
