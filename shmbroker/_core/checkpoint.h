/* Checkpoints: how far a member of a group has come, put where its death leaves it.
 *
 * Who writes: the client, one thread at a time. Who reads: the acceptor, now and then, and last when the
 * member has ended. Layout: struct shmb_checkpoint in layout.h.
 *
 * The ordinary checkpoint is one release store of the next offset. The second store, to the object's word
 * of changes, tells nothing but that a look is worth while: the acceptor's last look does without it.
 *
 * An offset counts only with what stands beside it: partition, the member epoch since which the member has
 * it, and the leader epoch of the record before. Those change rarely, and then all together: the client
 * writes them with the first offset into the pair that does not count, and publishes the turn. So there is
 * a whole pair at any time, also if the client is killed between two of its stores.
 *
 * Why a reader never joins two pairs. It observes turn t, copies pair t & 1, fences (acquire), and loads the
 * turn again. That pair is written over only for turn t + 2, behind a release fence that stands behind the
 * publication of t + 1. A reader whose copy has any of those bytes has read a store behind that fence, so its
 * own fence makes the second load see t + 1 at least, and it copies again. While the turn stays t only the
 * offset changes, and each of them is one word, true with the rest of its pair.
 *
 * Why nothing is missed. The offset is stored before `changes`, by release: who sees the number sees the
 * offset, or a later one. Who doesn't see it yet, sees it at the next look.
 */
#ifndef SHMB_CHECKPOINT_H
#define SHMB_CHECKPOINT_H

#include <string.h>

#include "layout.h"

static inline struct shmb_checkpoint_pair *shmb_checkpoint_pair(struct shmb_checkpoint *slot, uint64_t turn)
{
    return turn & 1 ? &slot->odd : &slot->even;
}
/* ---- the client ---- */

/* The next offset of a slot's present pair. */
static inline void shmb_checkpoint_store(struct shmb_checkpoints_head *head, struct shmb_checkpoint *slot,
                                         uint64_t offset)
{
    shmb_publish(&shmb_checkpoint_pair(slot, shmb_peek(&slot->turn))->offset, offset);
    shmb_publish(&head->changes, shmb_peek(&head->changes) + 1);
}

/* Another pair: the slot is given to a partition, or the leader epoch is another one. */
static inline void shmb_checkpoint_turn(struct shmb_checkpoints_head *head, struct shmb_checkpoint *slot,
                                        const uint8_t topic_id[16], uint32_t partition, uint64_t member_epoch,
                                        int32_t leader_epoch, uint64_t offset)
{
    uint64_t turn = shmb_peek(&slot->turn) + 1;
    struct shmb_checkpoint_pair *pair = shmb_checkpoint_pair(slot, turn);
    shmb_fence_release(); /* the turn before is seen by whoever sees any byte of this one */
    shmb_poke(&pair->offset, offset);
    pair->member_epoch = member_epoch;
    memcpy(pair->topic_id, topic_id, 16);
    pair->partition = partition;
    pair->leader_epoch = leader_epoch;
    shmb_publish(&slot->turn, turn);
    shmb_publish(&head->changes, shmb_peek(&head->changes) + 1);
}

/* ---- the acceptor ---- */

struct shmb_checkpoint_seen { /* the last that was read of a slot */
    uint64_t turn;
    uint64_t offset;
};

#define SHMB_CHECKPOINT_TRIES 1000 /* a client that turns faster than this is none of ours */

enum shmb_checkpoint_found { SHMB_CHECKPOINT_SAME = 0, SHMB_CHECKPOINT_NEW, SHMB_CHECKPOINT_RESTLESS };

/* What a slot says, into `copy`, if that is another than `seen`, which is then this one. RESTLESS: it was
 * changed at each try, and is to be looked at again. */
static inline enum shmb_checkpoint_found shmb_checkpoint_look(const struct shmb_checkpoint *shared,
                                                              struct shmb_checkpoint_seen *seen,
                                                              struct shmb_checkpoint_pair *copy)
{
    struct shmb_checkpoint *slot = (struct shmb_checkpoint *)shared; /* read only */
    for (int i = 0; i < SHMB_CHECKPOINT_TRIES; i++) {
        uint64_t turn = shmb_observe(&slot->turn);
        if (turn == 0)
            return SHMB_CHECKPOINT_SAME;
        const struct shmb_checkpoint_pair *pair = shmb_checkpoint_pair(slot, turn);
        uint64_t offset = shmb_observe(&pair->offset);
        if (turn == seen->turn && offset == seen->offset)
            return SHMB_CHECKPOINT_SAME;
        memcpy(copy, pair, sizeof *copy);
        shmb_fence_acquire();
        if (shmb_peek(&slot->turn) != turn) {
            shmb_relax();
            continue;
        }
        shmb_poke(&copy->offset, offset);
        seen->turn = turn;
        seen->offset = offset;
        return SHMB_CHECKPOINT_NEW;
    }
    return SHMB_CHECKPOINT_RESTLESS;
}

#endif
