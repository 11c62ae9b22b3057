/* The appender: from the log ring to the disk, and the only code that writes a segment's data.
 *
 * Whoever holds a partition's write token (invariant 5) runs shmb_flush: a flusher thread, or the
 * sequencer when nothing else waits. Whole disk units go out of the ring itself with O_DIRECT and
 * RWF_DSYNC; the partial last unit goes out through a zero-padded bounce unit in the same system call,
 * and the next write rewrites it, so that at every moment the file holds a prefix of the log followed
 * by zeros. What gathered during one write is the next write: group commit without a timer.
 *
 *      durable_position            log end
 *            |                        |
 *   |....####|########|########|####00|          units of the file
 *   ^ start                    ^ body_end
 *     one pwritev2: [start, body_end) from the ring, [body_end, +unit) from the bounce unit
 *
 * The token:  IDLE --(sequencer: something appended)--> QUEUED --(flusher pops)--> RUNNING --> IDLE
 *             IDLE --(sequencer, inline; housekeeper)--> RUNNING
 * After RUNNING -> IDLE the holder looks once more (seq_cst fence between): the sequencer, which appends and then
 * looks at the token, and the holder, which lets go and then looks at the log end, cannot both miss.
 *
 * After a failed or short write nothing is retried (invariant 12): the partition is offline.
 */
#ifndef SHMB_APPENDER_H
#define SHMB_APPENDER_H

#include <sys/uio.h>

#include "batch.h"
#include "engine.h"

#ifndef RWF_DSYNC
#define RWF_DSYNC 0x00000002
#endif
/* One durable write; a test under an emulator that lacks the system call defines its own. */
#ifndef SHMB_WRITE_DURABLE
#define SHMB_WRITE_DURABLE(fd, iov, n, at) syscall(SYS_pwritev2, fd, iov, (long)(n), (long)(at), 0L, RWF_DSYNC)
#endif
#define SHMB_IO_ERROR 56 /* Kafka's KAFKA_STORAGE_ERROR */

/* One record of the trace that the power-loss test replays: before a write with its bytes, and after
 * it (phase 1) with its result. */
struct shmb_trace {
    uint64_t magic;
    uint32_t slot;
    uint32_t phase;
    int64_t segment_base_offset;
    uint64_t file_position;
    uint64_t bytes;
    int64_t result;
    uint32_t flags;
    uint32_t pad;
    int64_t at_ns;
};
#define SHMB_TRACE_MAGIC 0x4543415254424d48ull

static inline void shmb_trace_write(struct shmb_engine *e, struct shmb_part *p, uint32_t phase, uint64_t at,
                                    const struct iovec *iov, int n, uint64_t bytes, int64_t result)
{
    struct shmb_trace t = {SHMB_TRACE_MAGIC, p->index, phase, p->flush_base_offset, at, bytes, result,
                           RWF_DSYNC, 0, shmb_now_ns()};
    struct iovec v[3] = {{&t, sizeof t}};
    for (int i = 0; i < n; i++)
        v[i + 1] = iov[i];
    ssize_t ignored = writev(e->trace_fd, v, phase ? 1 : n + 1);
    (void)ignored;
}

/* Writes [durable, end), end <= one write's reach. 0, or errno. */
static inline int shmb_write_out(struct shmb_engine *e, struct shmb_part *p, uint8_t *bounce, uint64_t durable,
                                 uint64_t end, int64_t *took_ns)
{
    uint64_t start = shmb_align_down(durable, p->unit);
    uint64_t body_end = shmb_align_down(end, p->unit);
    struct iovec iov[2];
    int n = 0;
    if (body_end > start) {
        iov[n].iov_base = p->data + start % p->capacity;
        iov[n++].iov_len = body_end - start;
    }
    if (end > body_end) {
        memcpy(bounce, p->data + body_end % p->capacity, end - body_end);
        memset(bounce + (end - body_end), 0, p->unit - (end - body_end));
        iov[n].iov_base = bounce;
        iov[n++].iov_len = p->unit;
    }
    uint64_t bytes = shmb_align_up(end, p->unit) - start;
    uint64_t at = start - p->flush_base_position;
    if (e->trace_fd >= 0)
        shmb_trace_write(e, p, 0, at, iov, n, bytes, 0);
    int64_t before = shmb_now_ns();
    long rc = SHMB_WRITE_DURABLE(p->fd, iov, n, at);
    int why = rc == (long)bytes ? 0 : rc < 0 ? errno : EIO;
    *took_ns = shmb_now_ns() - before;
    if (e->trace_fd >= 0)
        shmb_trace_write(e, p, 1, at, iov, n, bytes, why ? -why : (int64_t)bytes);
    shmb_poke(&p->slot->writes, shmb_peek(&p->slot->writes) + 1);
    shmb_poke(&p->slot->written_bytes, shmb_peek(&p->slot->written_bytes) + bytes);
    return why;
}

/* How far the next write goes, always to the end of a batch: to the log end when that is within reach,
 * otherwise to the last batch within reach that the ring's index knows, otherwise (a batch larger than the reach)
 * to the end of the next batch. So durable_position is a batch's end at every moment. */
static inline uint64_t shmb_write_target(struct shmb_engine *e, struct shmb_part *p, uint64_t durable, int64_t *offset)
{
    uint64_t end, reach = shmb_align_down(durable, p->unit) + e->flush_max_bytes;
    shmb_end_pair(p, &end, offset);
    if (end <= reach)
        return end;
    uint64_t high = shmb_observe(&p->slot->index_head);
    uint64_t low = high > p->entries_count / 2 ? high - p->entries_count / 2 : 0, best = 0;
    while (low < high) { /* entries above durable can't be overwritten now: the ring still holds them */
        uint64_t mid = low + (high - low) / 2;
        const struct shmb_index_entry *x = &p->entries[mid % p->entries_count];
        uint64_t at = shmb_peek(&x->position);
        if (at <= reach) {
            best = at;
            *offset = (int64_t)shmb_peek(&x->base_offset);
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    if (best > durable)
        return best;
    const uint8_t *batch = p->data + durable % p->capacity;
    *offset = shmb_batch_last_offset(batch) + 1;
    return durable + shmb_batch_size(batch);
}

static inline void shmb_fail(struct shmb_engine *e, struct shmb_part *p, int why)
{
    p->failed_errno = why;
    shmb_poke32(&p->slot->reason, SHMB_IO_ERROR);
    shmb_publish32(&p->slot->state, SHMB_STATE_OFFLINE);
    shmb_part_ring_all(e, p);
    shmb_want(e, p, SHMB_WANT_FAILED);
}

/* The files are switched at the end of the old segment's data; the position jumps to the new one. */
static inline void shmb_switch_segment(struct shmb_engine *e, struct shmb_part *p, uint64_t durable)
{
    struct shmb_slot *s = p->slot;
    p->sealed_base_offset = p->flush_base_offset;
    p->sealed_bytes = durable - p->flush_base_position;
    p->sealed_max_timestamp = p->roll_max_timestamp;
    p->fd = p->next_fd;
    p->flush_base_offset = (int64_t)shmb_peek(&s->append_base_offset);
    p->flush_base_position = shmb_peek(&s->append_base_position);
    uint64_t seq = shmb_peek(&s->flush_seq);
    shmb_poke(&s->flush_seq, seq + 1);
    shmb_fence_release();
    shmb_poke(&s->flush_base_offset, (uint64_t)p->flush_base_offset);
    shmb_poke(&s->flush_base_position, p->flush_base_position);
    shmb_publish(&s->durable_position, p->flush_base_position);
    shmb_publish(&s->flush_seq, seq + 2);
    shmb_mark(p, p->flush_base_position, p->flush_base_offset);
    shmb_publish32(&p->roll_ready, 0);
    shmb_publish32(&p->roll_pending, 0);
    shmb_want(e, p, SHMB_WANT_SEAL);
}

/* One write of a partition whose token the caller holds. 1: something was written or switched (call
 * again); 0: nothing to do, or it must wait for the next segment's file, or the partition is offline. */
static inline int shmb_flush_step(struct shmb_engine *e, struct shmb_part *p, uint8_t *bounce)
{
    struct shmb_slot *s = p->slot;
    if (shmb_peek32(&s->state) >= SHMB_STATE_READONLY || !p->data)
        return 0;
    uint64_t durable = shmb_peek(&s->durable_position);
    int64_t offset, took;
    uint64_t end = shmb_write_target(e, p, durable, &offset);
    if (shmb_observe32(&p->roll_pending)) {
        uint64_t roll = shmb_peek(&s->roll_from_position);
        if (end > roll && durable >= roll) {
            if (!shmb_observe32(&p->roll_ready))
                return 0;
            shmb_switch_segment(e, p, durable);
            return 1;
        }
        if (end > roll) {
            end = roll;
            offset = (int64_t)shmb_peek(&s->append_base_offset);
        }
    }
    if (end <= durable)
        return 0;
    int why = shmb_write_out(e, p, bounce, durable, end, &took);
    if (why) {
        shmb_fail(e, p, why);
        return 0;
    }
    /* One slow write (a journal commit, a neighbour) says little about the next: it counts as four. */
    uint64_t mean = shmb_peek(&s->write_ns), sample = (uint64_t)took;
    if (mean && sample > 4 * mean)
        sample = 4 * mean;
    shmb_poke(&s->write_ns, (mean * 7 + sample) / 8);
    shmb_set_durable(p, end, offset);
    shmb_park_wake(p->durable_word);
    shmb_park_wake(&e->park[SHMB_PARK_INSTANCE * (SHMB_LINE / 4)]);
    atomic_fetch_add_explicit(&e->progress, 1, memory_order_acq_rel);
    shmb_fence_full(); /* a sequencer that is not seen to have a blocked frame sees this progress before it sleeps */
    if (shmb_peek32(&e->blocked))
        shmb_park_wake(e->doorbell);
    return 1;
}

static inline int shmb_more_to_flush(struct shmb_part *p)
{
    if (!p->data || shmb_observe32(&p->slot->state) >= SHMB_STATE_READONLY)
        return 0;
    uint64_t durable = shmb_peek(&p->slot->durable_position);
    if (shmb_observe(&p->end_position) <= durable)
        return 0;
    if (shmb_observe32(&p->roll_pending) && durable >= shmb_peek(&p->slot->roll_from_position))
        return (int)shmb_observe32(&p->roll_ready); /* the housekeeper queues it when the file is there */
    return 1;
}

/* The flushers' own parking place is private to the process, so it may count: one push, one wake-up.
 * A pusher that doesn't see a sleeper (fence here) is seen by it (fence in shmb_flusher_sleep). */
static inline void shmb_flusher_wake(struct shmb_engine *e, int all)
{
    shmb_fence_full();
    if (shmb_peek32(&e->flush_sleepers) == 0)
        return;
    atomic_fetch_add_explicit(&e->flush_events, 1, memory_order_acq_rel);
    syscall(SYS_futex, &e->flush_events, FUTEX_WAKE_PRIVATE, all ? INT_MAX : 1, NULL, NULL, 0);
}
static inline int shmb_flush_pop(struct shmb_engine *e, uint64_t *index)
{
    return shmb_queue_pop(&e->flush_urgent, index) || shmb_queue_pop(&e->flush, index);
}
/* 1 and a partition, or 0 after a sleep: look again. */
static inline int shmb_flusher_sleep(struct shmb_engine *e, uint64_t *index)
{
    uint32_t seen = shmb_observe32(&e->flush_events);
    atomic_fetch_add_explicit(&e->flush_sleepers, 1, memory_order_acq_rel);
    shmb_fence_full();
    int found = shmb_flush_pop(e, index);
    if (!found && !shmb_observe32(&e->flushers_stop))
        syscall(SYS_futex, &e->flush_events, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub_explicit(&e->flush_sleepers, 1, memory_order_acq_rel);
    return found;
}

/* Gives the partition to the flushers unless someone has its token already. */
static inline void shmb_flush_request(struct shmb_engine *e, struct shmb_part *p, int urgent, int wake)
{
    uint32_t idle = SHMB_TOKEN_IDLE;
    shmb_fence_full(); /* pairs with the fence in shmb_token_release */
    if (!atomic_compare_exchange_strong_explicit(&p->token, &idle, SHMB_TOKEN_QUEUED, memory_order_acq_rel,
                                                 memory_order_acquire))
        return;
    shmb_queue_push(urgent ? &e->flush_urgent : &e->flush, p->index);
    if (wake)
        shmb_flusher_wake(e, 0);
}
static inline int shmb_token_take(struct shmb_part *p)
{
    uint32_t idle = SHMB_TOKEN_IDLE;
    return atomic_compare_exchange_strong_explicit(&p->token, &idle, SHMB_TOKEN_RUNNING, memory_order_acq_rel,
                                                   memory_order_acquire);
}
/* `wake`: 0 when the caller is a flusher, which pops again at once. */
static inline void shmb_token_release(struct shmb_engine *e, struct shmb_part *p, int wake)
{
    shmb_publish32(&p->token, SHMB_TOKEN_IDLE);
    shmb_fence_full();
    if (shmb_more_to_flush(p))
        shmb_flush_request(e, p, 0, wake);
}

/* A flusher thread's life; returns when flushers_stop is set and nothing is queued any more. `bounce`:
 * one unit, aligned to it. */
static inline void shmb_flusher_run(struct shmb_engine *e, uint8_t *bounce)
{
    uint64_t index;
    for (;;) {
        if (!shmb_flush_pop(e, &index)) {
            if (shmb_observe32(&e->flushers_stop))
                return;
            if (!shmb_flusher_sleep(e, &index))
                continue;
        }
        struct shmb_part *p = e->parts[index];
        shmb_publish32(&p->token, SHMB_TOKEN_RUNNING);
        /* One write, then back to the end of the queue: the others are not kept waiting. */
        shmb_flush_step(e, p, bounce);
        shmb_poke(&e->head->handed_writes, shmb_peek(&e->head->handed_writes) + 1);
        shmb_token_release(e, p, 0);
    }
}

#endif
