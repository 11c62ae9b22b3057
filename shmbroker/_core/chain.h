/* Chains: after a rejection the later frames of that producer and partition fail with it (invariant 7).
 *
 * A chain is what one producer sends to one partition until a frame of it is rejected. The client gives it a
 * number that is unique in its process, and another one once it has seen the rejection; every frame and every
 * receipt bears it (0: none, each frame for itself). So producers without sequences are covered too, and the
 * first batches of a producer that the partition does not know yet, which may begin with any sequence.
 *
 * Who remembers: the receipts themselves, so a killed writer forgets nothing (invariant 8). A client has fewer
 * frames in flight than there are places for receipts, and goes on under another number as soon as it has read
 * the rejection: while a frame of the old number can be in the ring, the receipt that broke it is in its place.
 */
#ifndef SHMB_CHAIN_H
#define SHMB_CHAIN_H

#include "layout.h"

/* Whether a frame of `chain` has been rejected; `seq` is the number of the frame in hand. */
static inline int shmb_chain_broken(void *receipts, uint64_t slots, uint64_t seq, uint64_t chain)
{
    if (!chain)
        return 0;
    for (uint64_t n = seq > slots ? seq - slots : 0; n < seq; n++) {
        const struct shmb_receipt *r = shmb_receipt_at(receipts, slots, n);
        if (r->chain == chain && r->error)
            return 1;
    }
    return 0;
}
/* The end (exclusive) of the frames below `seq` that hold the newest rejection; 0: none is remembered. */
static inline uint64_t shmb_chain_rejected_end(void *receipts, uint64_t slots, uint64_t seq)
{
    for (uint64_t n = seq; n > 0 && seq - n < slots; n--)
        if (shmb_receipt_at(receipts, slots, n - 1)->error)
            return n;
    return 0;
}

#endif
