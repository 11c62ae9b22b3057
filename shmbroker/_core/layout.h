/* Every byte that two processes share: the layout of the shared-memory objects, and nothing else.
 *
 * Names (prefix = "/shmb-<uid>-<8 hex of the data directory id>"), who writes, who reads:
 *
 *   <prefix>-p          park words       written by all       64 KiB
 *   <prefix>-w<N>       writer table     writer N             64 KiB head + slots of 512 B
 *   <prefix>-l<N>.<S>.<G>  log ring      writer N             offset index + data; S slot, G generation
 *   <prefix>-i<I>       ingress ring     the client           64 KiB head + data; I ingress id
 *   <prefix>-r<I>       receipts         the writer           64 KiB head + slots of 64 B
 *   <prefix>-k<K>       checkpoints      the client           2 KiB head + slots of 128 B; of one member of a group
 *
 * Every object but the park words has one writing process; all others map it read-only (invariant 1).
 * All words are native endian (one host). Positions are bytes, exclusive at an end; offsets are record
 * numbers. "Position" is always a log position (invariant 4) unless it says file or ring.
 */
#ifndef SHMB_LAYOUT_H
#define SHMB_LAYOUT_H

#include <stddef.h>

#include "atomics.h"

#define SHMB_LAYOUT_VERSION 1u
#define SHMB_PAGE 65536u            /* aarch64's largest page: the unit of heads and capacities */
#define SHMB_DISK_UNIT_MIN 4096u
#define SHMB_MAGIC 0x314b4f5242424d48ull /* "HMBBROK1" */
#define SHMB_LINE 64u

enum shmb_kind { SHMB_KIND_PARK = 1, SHMB_KIND_WRITER, SHMB_KIND_LOG, SHMB_KIND_INGRESS, SHMB_KIND_RECEIPTS,
                 SHMB_KIND_CHECKPOINTS };

/* First in every object. `ready` is stored last, by release: an object without it is rubbish. */
struct shmb_preamble {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t kind;
    uint8_t boot_id[16];     /* the rings of another boot are swept, never adopted (invariant 10) */
    uint8_t dir_id[16];      /* the data directory's id */
    uint64_t object_bytes;
    shmb_a32 ready;
    uint32_t owner;          /* writer index, ingress id, or number of the checkpoints */
};
_Static_assert(sizeof(struct shmb_preamble) == 64, "preamble is a line");

/* ---- park object: 1024 words, a line each ---------------------------------------------------- */
#define SHMB_PARK_WORDS 1024u
#define SHMB_PARK_INSTANCE 1u       /* rung with every append or flush when someone waits on it */
#define SHMB_PARK_WRITER 2u         /* + writer index: the sequencer's doorbell */
#define SHMB_WRITERS_MAX 62u
#define SHMB_PARK_PARTITION 64u     /* + 2 * (hash % 224) (+ 1: durable) */
#define SHMB_PARK_PARTITION_GROUPS 224u
#define SHMB_PARK_INGRESS 512u      /* + ingress id % 512: space and receipts for that client */
#define SHMB_PARK_INGRESS_GROUPS 512u

static inline uint32_t shmb_park_appended(uint32_t writer, uint32_t slot)
{
    return SHMB_PARK_PARTITION + 2 * ((writer * 61u + slot) % SHMB_PARK_PARTITION_GROUPS);
}
static inline uint32_t shmb_park_durable(uint32_t writer, uint32_t slot)
{
    return shmb_park_appended(writer, slot) + 1;
}
static inline uint32_t shmb_park_ingress(uint64_t ingress)
{
    return SHMB_PARK_INGRESS + (uint32_t)(ingress % SHMB_PARK_INGRESS_GROUPS);
}
_Static_assert(SHMB_PARK_PARTITION + 2 * SHMB_PARK_PARTITION_GROUPS == SHMB_PARK_INGRESS, "park map");
_Static_assert(SHMB_PARK_WORDS * SHMB_LINE == SHMB_PAGE, "the park object is one page");

/* ---- writer table ----------------------------------------------------------------------------- */
#define SHMB_SLOTS_MAX 8192u

enum shmb_state {            /* of a partition; every change rings both of its park words */
    SHMB_STATE_FREE = 0,     /* the slot is nobody's */
    SHMB_STATE_OPENING,      /* being recovered */
    SHMB_STATE_ONLINE,
    SHMB_STATE_NO_SPACE,     /* readable; frames wait until the disk has room; returns by itself */
    SHMB_STATE_READONLY,     /* damage below the durable end: `shmbroker log repair` */
    SHMB_STATE_OFFLINE,      /* a write failed: recovered from disk at the next start, never flushed */
    SHMB_STATE_CLOSED,       /* drained and closed: the broker stops, or the topic is deleted */
};

/* One partition. Lines are grouped by who stores how often, so that readers of one don't pay for
 * stores to another. */
struct shmb_slot {
    /* line 0: identity, stored when the slot is assigned */
    uint8_t topic_id[16];
    uint32_t partition;
    shmb_a32 slot_epoch;          /* raised when the slot is given to another partition */
    shmb_a32 state;               /* enum shmb_state */
    shmb_a32 reason;              /* Kafka or own error code behind the state; text is in `status` */
    shmb_a64 generation;          /* of the ring; 0: none. High 32 bits: raised by recovery from disk */
    shmb_a64 ring_bytes;          /* data capacity of that generation's ring */
    uint32_t disk_unit;           /* bytes; positions are congruent to file positions modulo it */
    uint32_t pad0;
    uint8_t fill0[8];
    /* line 1: sequencer */
    shmb_a64 reserved_position;   /* the sequencer may have overwritten the ring up to here - capacity */
    uint8_t fill1[56];
    /* line 2: sequencer, after each batch */
    shmb_a64 log_end_position;    /* exclusive end of what is appended */
    shmb_a64 log_end_offset;      /* offset of the next record; stored before log_end_position */
    shmb_a64 index_head;          /* entries ever put into the ring's index; the newest is head - 1 */
    uint8_t fill2[40];
    /* line 3: the holder of the write token, after each write */
    shmb_a64 durable_position;    /* exclusive end of what is on stable storage */
    shmb_a64 durable_offset;      /* the high watermark: records below it are durable; stored first */
    shmb_a64 flush_seq;           /* odd while the next two change (seqlock) */
    shmb_a64 flush_base_offset;   /* base offset of the segment that durable_position lies in */
    shmb_a64 flush_base_position; /* position of that segment's first byte */
    uint8_t fill3[24];
    /* line 4: sequencer, at a roll; housekeeper */
    shmb_a64 append_base_offset;  /* the segment that log_end_position lies in */
    shmb_a64 append_base_position;
    shmb_a64 roll_from_position;  /* end of the data of the segment before it */
    shmb_a64 log_start_offset;    /* first offset a consumer may read */
    shmb_a32 leader_epoch;
    uint32_t pad4;
    uint8_t fill4[24];
    /* line 5: counters for `status` */
    shmb_a64 batches;
    shmb_a64 records;
    shmb_a64 bytes;
    shmb_a64 writes;
    shmb_a64 written_bytes;
    shmb_a64 write_ns;            /* exponential mean of a write's time */
    shmb_a64 blocked_ns;          /* since when a frame waits here (CLOCK_MONOTONIC); 0: none */
    shmb_a32 blocked_why;         /* enum shmb_block */
    uint32_t pad5;
    uint8_t fill6[128];
};
_Static_assert(sizeof(struct shmb_slot) == 512, "slot is 512 bytes");
_Static_assert(offsetof(struct shmb_slot, reserved_position) == 64, "line 1");
_Static_assert(offsetof(struct shmb_slot, log_end_position) == 128, "line 2");
_Static_assert(offsetof(struct shmb_slot, durable_position) == 192, "line 3");
_Static_assert(offsetof(struct shmb_slot, append_base_offset) == 256, "line 4");
_Static_assert(offsetof(struct shmb_slot, batches) == 320, "line 5");

enum shmb_block {            /* why the frame at the head of an ingress ring waits */
    SHMB_BLOCK_NONE = 0,
    SHMB_BLOCK_RING_FULL,    /* the disk is slower than the producers: backpressure */
    SHMB_BLOCK_NO_RING,      /* the ring is being made, or replaced */
    SHMB_BLOCK_SEGMENT,      /* the next segment or its space is being allocated */
    SHMB_BLOCK_OPENING,      /* the partition is being recovered */
};

/* What the sequencer is about to publish (invariant 8). Stored before log_end_position: after a crash
 * the frame counts as consumed when the slot's log_end_position has reached `end_position`. */
struct shmb_intent {
    shmb_a64 ingress;             /* ingress id; 0: none */
    shmb_a64 frame_position;      /* of the frame in the ingress ring */
    shmb_a64 frame_seq;
    shmb_a64 slot;
    shmb_a64 end_position;        /* log end after this batch */
    shmb_a64 base_offset;
    shmb_a64 generation;
    shmb_a64 frame_bytes;         /* as judged; the client's own word may have changed since */
};
_Static_assert(sizeof(struct shmb_intent) == 64, "intent is a line");

struct shmb_writer_head {
    struct shmb_preamble preamble;
    uint32_t writer;
    uint32_t slots_max;
    shmb_a64 pid;
    shmb_a64 incarnation;         /* raised by each process that takes the table over */
    shmb_a64 heartbeat_ns;        /* CLOCK_MONOTONIC, by the housekeeper */
    uint8_t fill0[32];
    struct shmb_intent intent;
    shmb_a64 sequencer_parks;
    shmb_a64 inline_writes;
    shmb_a64 handed_writes;
    shmb_a64 frames;
    shmb_a64 rejected;
    uint8_t fill1[24];
};
_Static_assert(offsetof(struct shmb_writer_head, intent) == 128, "intent has its own line");
_Static_assert(sizeof(struct shmb_writer_head) <= SHMB_PAGE, "head fits its page");

static inline struct shmb_slot *shmb_table_slot(void *table, uint32_t slot)
{
    return (struct shmb_slot *)((uint8_t *)table + SHMB_PAGE) + slot;
}
static inline uint64_t shmb_table_bytes(uint32_t slots)
{
    return shmb_align_up(SHMB_PAGE + (uint64_t)slots * sizeof(struct shmb_slot), SHMB_PAGE);
}

/* ---- log ring --------------------------------------------------------------------------------- */
/*  0        64 KiB              64 KiB + index            + capacity
 *  +--------+-------------------+-------------------------+- - - - - - - - - - - - - +
 *  | head   | index entries     | data                    | data, mapped once more   |
 *  +--------+-------------------+-------------------------+- - - - - - - - - - - - - +
 * The head page holds the preamble only; all moving words are in the slot, so that readers find them
 * without the ring and across generations.
 */
struct shmb_index_entry {         /* a batch begins at `position`; one every 4 KiB, and one at each roll */
    shmb_a64 base_offset;
    shmb_a64 position;
};
#define SHMB_INDEX_STEP 4096u
/* Twice what one lap can hold: one entry a step and one a roll, which are steps apart. */
static inline uint64_t shmb_log_index_entries(uint64_t capacity)
{
    return 2 * (capacity / SHMB_INDEX_STEP);
}
static inline uint64_t shmb_log_data_offset(uint64_t capacity)
{
    return SHMB_PAGE +
           shmb_align_up(shmb_log_index_entries(capacity) * sizeof(struct shmb_index_entry), SHMB_PAGE);
}
static inline uint64_t shmb_log_bytes(uint64_t capacity) { return shmb_log_data_offset(capacity) + capacity; }

/* ---- ingress ring and receipts ---------------------------------------------------------------- */
struct shmb_ingress_head {        /* the client's */
    struct shmb_preamble preamble;
    shmb_a64 head;                /* end of what is published, bytes; capacity is a power of two */
    uint8_t fill0[56];
    uint64_t capacity;
    uint64_t client_pid;
    uint8_t fill1[48];
};
_Static_assert(offsetof(struct shmb_ingress_head, head) == 64, "head has its own line");

enum { SHMB_ACKS_NONE = 0, SHMB_ACKS_MEMORY = 1, SHMB_ACKS_DURABLE = 2 };

/* Frames without a receipt, of one producer and partition. A client resends those after the loss of a ring,
 * and the table of producers (producers.h) remembers as many batches, so each one's outcome can be told
 * (invariant 8). A ring may have more: its receipt places are shared by all partitions. */
#define SHMB_IN_FLIGHT_MAX 64u

/* A frame: this header, then the batch, padded to 8 bytes. Never split (double mapping). */
struct shmb_frame {
    uint32_t length;              /* bytes of the batch */
    uint16_t acks;
    uint16_t flags;
    uint32_t slot;
    uint32_t slot_epoch;
    uint64_t frame_seq;           /* 0, 1, 2 … within this ring; the receipt's place */
    uint64_t chain;               /* chain.h; 0: none */
};
_Static_assert(sizeof(struct shmb_frame) == 32, "frame header");
static inline uint64_t shmb_frame_bytes(uint64_t batch_bytes)
{
    return shmb_align_up(sizeof(struct shmb_frame) + batch_bytes, 8);
}

struct shmb_receipts_head {       /* the writer's */
    struct shmb_preamble preamble;
    shmb_a64 tail;                /* end of what is consumed, bytes of the ingress ring */
    shmb_a64 receipts;            /* receipts written: the frames below this number have theirs */
    shmb_a32 detached;            /* error code: the writer has dropped this ring; 0: attached */
    uint32_t pad;
    shmb_a64 taken;               /* a remote client's own ring: end of what was sent on (mirror.h) */
    uint8_t fill[32];
    uint64_t slots;               /* receipt slots, a power of two; frames in flight stay below it */
    uint8_t fill1[56];
};
_Static_assert(offsetof(struct shmb_receipts_head, tail) == 64, "tail has its own line");

struct shmb_receipt {             /* frame n's is in slot n % slots */
    uint64_t frame_seq;
    uint32_t slot;
    int32_t error;                /* Kafka's code, 0 is success (a duplicate is success too) */
    int64_t base_offset;          /* -1 with an error */
    uint64_t end_position;        /* acknowledged as durable when durable_position has reached it … */
    uint64_t generation;          /* … while the high 32 bits of the generation are these */
    int64_t log_start_offset;
    uint64_t frame_end;           /* ingress position behind the frame: the tail that goes with it */
    uint64_t chain;               /* the frame's */
};
_Static_assert(sizeof(struct shmb_receipt) == 64, "receipt is a line");

static inline struct shmb_receipt *shmb_receipt_at(void *receipts, uint64_t slots, uint64_t seq)
{
    return (struct shmb_receipt *)((uint8_t *)receipts + SHMB_PAGE) + (seq & (slots - 1));
}
static inline uint64_t shmb_receipts_bytes(uint64_t slots)
{
    return shmb_align_up(SHMB_PAGE + slots * sizeof(struct shmb_receipt), SHMB_PAGE);
}

/* ---- checkpoints ------------------------------------------------------------------------------ */
/* Of one member of a consumer group: a slot for each partition that it has. The acceptor makes the object and
 * fills the head's line 2 and names; then it is the client's, and the acceptor reads (checkpoint.h). Head and
 * slots share their pages: a member with less than 500 partitions takes one. */
#define SHMB_CHECKPOINT_NAMES_MAX 1856u /* group (249 characters) and member id (64), UTF-8 */

struct shmb_checkpoints_head {
    struct shmb_preamble preamble;
    /* line 1: the client's, at each checkpoint */
    shmb_a64 changes;             /* one more behind each store: whoever saw it need not look at the slots */
    uint8_t fill1[56];
    /* line 2: the acceptor's, before `ready` */
    uint64_t client;              /* the attached client's number */
    uint32_t slots;
    uint32_t group_bytes;         /* of the names: the group's, then the member id */
    uint32_t member_bytes;
    uint8_t fill2[44];
    uint8_t names[SHMB_CHECKPOINT_NAMES_MAX];
};
_Static_assert(offsetof(struct shmb_checkpoints_head, changes) == 64, "changes has its own line");
_Static_assert(offsetof(struct shmb_checkpoints_head, names) == 192, "names follow line 2");
_Static_assert(sizeof(struct shmb_checkpoints_head) == 2048, "head of checkpoints");

struct shmb_checkpoint_pair {     /* what belongs together, and is true of every offset stored in it */
    shmb_a64 offset;              /* the next to be read: the word that a checkpoint stores */
    uint64_t member_epoch;        /* since which the member has the partition */
    uint8_t topic_id[16];
    uint32_t partition;
    int32_t leader_epoch;         /* of the record before; -1: not known */
};
_Static_assert(sizeof(struct shmb_checkpoint_pair) == 40, "pair");

struct shmb_checkpoint {          /* two lines, a pair in each; turn & 1 says which counts */
    struct shmb_checkpoint_pair even;
    shmb_a64 turn;                /* 0: never used */
    uint8_t fill0[16];
    struct shmb_checkpoint_pair odd;
    uint8_t fill1[24];
};
_Static_assert(sizeof(struct shmb_checkpoint) == 128, "checkpoint is two lines");
_Static_assert(offsetof(struct shmb_checkpoint, odd) == 64, "each pair lies in a line of its own");

static inline struct shmb_checkpoint *shmb_checkpoint_at(void *object, uint32_t slot)
{
    return (struct shmb_checkpoint *)((uint8_t *)object + sizeof(struct shmb_checkpoints_head)) + slot;
}
static inline uint64_t shmb_checkpoints_bytes(uint32_t slots)
{
    return shmb_align_up(sizeof(struct shmb_checkpoints_head) + (uint64_t)slots * sizeof(struct shmb_checkpoint),
                         SHMB_PAGE);
}
static inline uint32_t shmb_checkpoints_room(uint64_t object_bytes)
{
    return (uint32_t)((object_bytes - sizeof(struct shmb_checkpoints_head)) / sizeof(struct shmb_checkpoint));
}

#endif
