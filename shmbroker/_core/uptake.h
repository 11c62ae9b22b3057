/* Uptake: how far a reader has used up a ring whose writer waits for that.
 *
 * A log ring's readers announce nothing (invariant 6). A feed (feed.h) is a ring of this process with one
 * reader, filled by a receiver that overwrites nothing before it was taken, and that asks for more as room
 * comes; so here the reader says how far it is, and rings an eventfd when the receiver wants to know.
 *
 * Reader: stores `taken`, full fence, looks at `wanted`. Receiver: stores `wanted`, full fence, looks at
 * `taken`. So one of them sees the other (park.h argues the same), and no ring is lost.
 */
#ifndef SHMB_UPTAKE_H
#define SHMB_UPTAKE_H

#include <unistd.h>

#include "atomics.h"

struct shmb_uptake {
    shmb_a64 taken;  /* reader: log position below which it will look at nothing any more */
    shmb_a64 wanted; /* receiver: ring the bell when taken has come so far; UINT64_MAX: don't */
    shmb_a32 rung;   /* the reader has rung for this one; the receiver clears it */
    int bell;        /* an eventfd, non-blocking; not owned */
};

/* The reader has handed out everything below `position`. It never goes back. */
static inline void shmb_uptake_tell(struct shmb_uptake *u, uint64_t position)
{
    if (position <= shmb_peek(&u->taken))
        return;
    shmb_publish(&u->taken, position);
    shmb_fence_full();
    uint64_t wanted = shmb_observe(&u->wanted);
    if (position < wanted ||
        !atomic_compare_exchange_strong_explicit(&u->wanted, &wanted, UINT64_MAX, memory_order_acq_rel,
                                                 memory_order_relaxed))
        return;
    shmb_publish32(&u->rung, 1);
    uint64_t more = 1;
    if (write(u->bell, &more, sizeof more) < 0) {
        /* EAGAIN: it is readable as it is */
    }
}

/* Has the bell rung at `position`; 1 when the reader has come so far already, and no bell rings. */
static inline int shmb_uptake_want(struct shmb_uptake *u, uint64_t position)
{
    shmb_publish(&u->wanted, position);
    shmb_fence_full();
    if (shmb_observe(&u->taken) < position)
        return 0;
    uint64_t wanted = position;
    return atomic_compare_exchange_strong_explicit(&u->wanted, &wanted, UINT64_MAX, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

#endif
