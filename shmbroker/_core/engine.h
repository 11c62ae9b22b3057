/* The writer process's private state: what the sequencer, the flushers and the housekeeper share.
 *
 * Threads of one writer process, and what each may touch:
 *
 *   sequencer    (1)  sequencer.h: frames from the ingress rings into the log rings. Owns every field
 *                     marked S, and executes the housekeeper's commands between two passes.
 *   flushers     (n)  appender.h: whoever holds a partition's write token (`token` == RUNNING) owns the
 *                     fields marked T and writes its files. The sequencer may take it for one write.
 *   housekeeper  (1)  engine.pyx from Python: files, rings, checkpoints. Changes S fields only by a
 *                     command (shmb_command), T fields only while it holds the token.
 *
 * No lock is taken and nothing is allocated by sequencer and flushers.
 */
#ifndef SHMB_ENGINE_H
#define SHMB_ENGINE_H

#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "layout.h"
#include "mpmc.h"
#include "park.h"
#include "producers.h"

/* What a partition wants of the housekeeper (bits). */
enum {
    SHMB_WANT_RING = 1,      /* its first ring, or a larger one: `ring_need` bytes at least */
    SHMB_WANT_ALLOC = 2,     /* more of the active segment preallocated */
    SHMB_WANT_NEXT = 4,      /* a next segment prepared */
    SHMB_WANT_ROLL = 8,      /* the prepared segment given its name: append_base_offset */
    SHMB_WANT_SEAL = 16,     /* the segment before the active one is whole: cut, index, checkpoint */
    SHMB_WANT_INDEX = 32,    /* disk index entries collected */
    SHMB_WANT_FAILED = 64,   /* a write failed: errno in `failed_errno` */
};

enum { SHMB_TOKEN_IDLE = 0, SHMB_TOKEN_QUEUED, SHMB_TOKEN_RUNNING };

#define SHMB_DISK_INDEX_ENTRIES 1024u
struct shmb_disk_index_entry {     /* for .index and .timeindex */
    int64_t last_offset;           /* of the batch at file_position, as Kafka indexes it */
    int64_t file_position;
    int64_t max_timestamp;         /* largest so far in the segment */
    int64_t max_timestamp_offset;  /* last offset of the batch that has it */
    int64_t segment_base_offset;
};

struct shmb_part {
    uint32_t index;                /* slot number */
    uint32_t slot_epoch;
    struct shmb_slot *slot;
    uint64_t unit;                 /* disk unit, bytes */
    shmb_a32 *appended_word;
    shmb_a32 *durable_word;
    /* the ring: changed while the partition is held and the token taken */
    uint8_t *data;                 /* NULL: none */
    struct shmb_index_entry *entries;
    uint64_t capacity;
    uint64_t entries_count;
    /* S */
    uint64_t log_end;              /* == slot->log_end_position */
    uint64_t append_position;      /* where the next batch goes: log_end, or past a roll */
    int64_t next_offset;
    uint64_t index_head;
    uint64_t last_index_position;
    uint64_t durable_seen;         /* a durable_position seen lately */
    uint64_t append_base_position;
    int64_t append_base_offset;
    uint64_t alloc_bytes;          /* of the active segment */
    uint64_t next_alloc_bytes;     /* of the prepared segment; 0: none prepared */
    uint64_t segment_bytes;
    uint64_t max_message_bytes;
    uint64_t index_interval_bytes;
    uint64_t last_disk_index;      /* file position of the last disk index entry */
    int64_t max_timestamp;
    int64_t max_timestamp_offset;
    int64_t roll_max_timestamp;    /* of the segment that the pending roll ended */
    struct shmb_producers *producers;
    uint64_t ring_need;
    uint64_t ring_must;            /* what the frame at hand can't do without, bytes; 0: only faster */
    uint64_t alloc_need;           /* WANT_ALLOC: file bytes that must be reserved at least */
    uint64_t ring_ceiling;         /* a full ring asks to grow only while it is smaller */
    int32_t leader_epoch;
    uint8_t held;                  /* by the housekeeper: frames wait */
    uint8_t dirty;                 /* in this pass's list */
    uint8_t wants_durable;         /* a frame of this pass asked for durable */
    uint8_t roll_due;              /* segment.ms has passed */
    uint8_t index_all;             /* the next batch gets a ring index entry whatever the step */
    uint8_t seen_space;            /* a half-used allocation was reported */
    /* log end and offset as a pair, for the token holder (seqlock; S writes) */
    shmb_a64 end_seq;
    shmb_a64 end_position;
    shmb_a64 end_offset;
    /* T, for the housekeeper's checkpoints: one consistent set (seqlock) */
    shmb_a64 mark_seq;
    shmb_a64 mark_segment;         /* base offset of the segment the durable end lies in */
    shmb_a64 mark_bytes;           /* durable bytes of it */
    shmb_a64 mark_offset;          /* durable offset there */
    /* T */
    shmb_a32 token;
    shmb_a32 roll_pending;         /* S sets at a roll; T clears when the files are switched */
    shmb_a32 roll_ready;           /* housekeeper: next_fd is named and open */
    int fd;
    int next_fd;
    uint64_t flush_base_position;
    int64_t flush_base_offset;
    int64_t sealed_base_offset;    /* the segment that WANT_SEAL speaks of, and its length; the next
                                    * switch, which needs the next shmb_part_rolled, overwrites it */
    uint64_t sealed_bytes;
    int64_t sealed_max_timestamp;
    int failed_errno;
    /* wants, and the disk index entries on their way to the housekeeper (S pushes, it pops) */
    shmb_a32 wants;
    shmb_a32 wants_queued;
    struct shmb_disk_index_entry *disk_index;
    shmb_a64 disk_index_head;
    shmb_a64 disk_index_tail;
};

struct shmb_source {               /* an ingress ring, seen by the writer; S */
    uint64_t id;
    const uint8_t *object;         /* client's: head page, data mapped twice */
    const uint8_t *data;
    uint64_t capacity;
    uint8_t *receipts;             /* ours */
    uint64_t slots;
    uint64_t tail;
    uint64_t next_seq;
    uint64_t chain;                /* of the frame in hand */
    uint64_t rejected_end;         /* behind the newest rejected frame; 0: none (chain.h) */
    shmb_a32 *word;                /* the client's park word */
    struct shmb_part *blocked;     /* the frame at the head waits for this partition … */
    uint64_t blocked_ns;           /* … since then (CLOCK_MONOTONIC) */
    shmb_a32 detached;             /* Kafka or own code: rubbish seen; no longer read */
    const char *why;               /* the reason, for the log */
    shmb_a32 drained;              /* nothing published is left */
};

/* Commands of the housekeeper, executed by the sequencer between two passes. */
enum shmb_op {
    SHMB_OP_NONE = 0,
    SHMB_OP_ADD_PART,
    SHMB_OP_REMOVE_PART,
    SHMB_OP_HOLD,
    SHMB_OP_RESUME,
    SHMB_OP_ALLOC,                 /* a: segment base offset, b: allocated bytes */
    SHMB_OP_NEXT,                  /* b: allocated bytes of the prepared segment */
    SHMB_OP_ROLL_DUE,
    SHMB_OP_CEILING,               /* a: ring_ceiling */
    SHMB_OP_LIMITS,                /* a: segment_bytes, b: max_message_bytes */
    SHMB_OP_INDEX_INTERVAL,        /* a: index_interval_bytes */
    SHMB_OP_ADD_SOURCE,
    SHMB_OP_REMOVE_SOURCE,
    SHMB_OP_STOP,
};
struct shmb_command {
    uint32_t op;
    struct shmb_part *part;
    struct shmb_source *source;
    uint64_t a, b;
};

enum { SHMB_IDLE_ADAPTIVE = 0, SHMB_IDLE_SPIN, SHMB_IDLE_PARK };

struct shmb_engine {
    struct shmb_writer_head *head;
    shmb_a32 *park;                /* the park object */
    shmb_a32 *doorbell;
    uint32_t writer;
    uint32_t slots;
    struct shmb_part **parts;      /* by slot number; S */
    struct shmb_source **sources;  /* S */
    uint32_t sources_count;
    struct shmb_part **dirty;      /* S: this pass's list */
    uint32_t dirty_count;
    uint64_t flush_max_bytes;
    uint64_t inline_limit_ns;      /* inline writes while the mean write is below this; 0: never */
    uint64_t spin_ns;              /* the most that is looked before a sleep; adaptive: see sequencer.h */
    uint64_t spin_now_ns;          /* S: what looking has been worth of late */
    uint32_t idles;                /* S: times that there was nothing to do */
    uint32_t idle;
    int32_t trace_fd;              /* records every write (power-loss test); -1: off */
    struct shmb_queue flush_urgent;
    struct shmb_queue flush;
    shmb_a32 flush_events;         /* private futex: flushers park here */
    shmb_a32 flush_sleepers;
    shmb_a32 flushers_stop;
    struct shmb_queue wants;
    int wants_fd;                  /* eventfd: the housekeeper polls it */
    shmb_a64 progress;             /* counts what may unblock a frame */
    shmb_a32 blocked;              /* S: rings whose first frame waits; without, no flush wakes the sequencer */
    /* mailbox */
    struct shmb_command command;
    shmb_a32 command_full;
    shmb_a32 command_done;         /* private futex for the housekeeper */
    uint64_t frame_quantum_bytes;
};

static inline void shmb_want(struct shmb_engine *e, struct shmb_part *p, uint32_t bits)
{
    if ((shmb_peek32(&p->wants) & bits) == bits)
        return;
    atomic_fetch_or_explicit(&p->wants, bits, memory_order_acq_rel);
    if (atomic_exchange_explicit(&p->wants_queued, 1, memory_order_acq_rel) == 0)
        shmb_queue_push(&e->wants, p->index);
    uint64_t one = 1;
    ssize_t ignored = write(e->wants_fd, &one, sizeof one);
    (void)ignored; /* EAGAIN: the counter is full, so the housekeeper is awake */
}

/* State changes ring both words of the partition: every waiter looks again (invariant 4). */
static inline void shmb_part_ring_all(struct shmb_engine *e, struct shmb_part *p)
{
    shmb_park_wake_always(p->appended_word);
    shmb_park_wake_always(p->durable_word);
    shmb_park_wake_always(&e->park[SHMB_PARK_INSTANCE * (SHMB_LINE / 4)]);
}

static inline void shmb_end_pair(const struct shmb_part *p, uint64_t *position, int64_t *offset)
{
    for (;;) {
        uint64_t before = shmb_observe(&p->end_seq);
        *position = shmb_peek(&p->end_position);
        *offset = (int64_t)shmb_peek(&p->end_offset);
        shmb_fence_acquire();
        if (!(before & 1) && shmb_peek(&p->end_seq) == before)
            return;
        shmb_relax();
    }
}
static inline void shmb_end_pair_set(struct shmb_part *p, uint64_t position, int64_t offset)
{
    uint64_t seq = shmb_peek(&p->end_seq);
    shmb_poke(&p->end_seq, seq + 1);
    shmb_fence_release();
    shmb_poke(&p->end_position, position);
    shmb_poke(&p->end_offset, (uint64_t)offset);
    shmb_publish(&p->end_seq, seq + 2);
}

/* The only setters of the three positions; each asserts invariant 5. */
static inline void shmb_positions_fault(const char *what)
{
    static const char head[] = "shmbroker: invariant 5 broken: ";
    ssize_t ignored = write(2, head, sizeof head - 1);
    ignored = write(2, what, __builtin_strlen(what));
    ignored = write(2, "\n", 1);
    (void)ignored;
    abort();
}
static inline void shmb_set_reserved(struct shmb_part *p, uint64_t position)
{
    if (__builtin_expect(position < shmb_peek(&p->slot->reserved_position), 0))
        return; /* a rejected batch had reserved more: it never goes back */
    if (__builtin_expect(position > shmb_align_down(p->durable_seen, p->unit) + p->capacity, 0))
        shmb_positions_fault("reserved_position past the ring");
    shmb_poke(&p->slot->reserved_position, position);
}
static inline void shmb_set_log_end(struct shmb_part *p, uint64_t position, int64_t offset)
{
    if (__builtin_expect(position > shmb_peek(&p->slot->reserved_position) || position < p->log_end, 0))
        shmb_positions_fault("log_end_position outside [log end, reserved]");
    p->log_end = position;
    p->append_position = position;
    p->next_offset = offset;
    shmb_publish(&p->slot->log_end_offset, (uint64_t)offset);
    shmb_publish(&p->slot->log_end_position, position);
    /* Last: the token holder writes up to this pair, and durable must not pass the slot's log end. */
    shmb_end_pair_set(p, position, offset);
}
static inline void shmb_mark(struct shmb_part *p, uint64_t position, int64_t offset)
{
    uint64_t seq = shmb_peek(&p->mark_seq);
    shmb_poke(&p->mark_seq, seq + 1);
    shmb_fence_release();
    shmb_poke(&p->mark_segment, (uint64_t)p->flush_base_offset);
    shmb_poke(&p->mark_bytes, position - p->flush_base_position);
    shmb_poke(&p->mark_offset, (uint64_t)offset);
    shmb_publish(&p->mark_seq, seq + 2);
}
static inline void shmb_marked(const struct shmb_part *p, int64_t *segment, uint64_t *bytes, int64_t *offset)
{
    for (;;) {
        uint64_t before = shmb_observe(&p->mark_seq);
        *segment = (int64_t)shmb_peek(&p->mark_segment);
        *bytes = shmb_peek(&p->mark_bytes);
        *offset = (int64_t)shmb_peek(&p->mark_offset);
        shmb_fence_acquire();
        if (!(before & 1) && shmb_peek(&p->mark_seq) == before)
            return;
        shmb_relax();
    }
}
static inline void shmb_set_durable(struct shmb_part *p, uint64_t position, int64_t offset)
{
    if (__builtin_expect(position < shmb_peek(&p->slot->durable_position) ||
                         position > shmb_observe(&p->end_position), 0))
        shmb_positions_fault("durable_position outside [durable, log end]");
    shmb_publish(&p->slot->durable_offset, (uint64_t)offset);
    shmb_publish(&p->slot->durable_position, position);
    shmb_mark(p, position, offset);
}

#endif
