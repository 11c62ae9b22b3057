/* The one-word lock of this process: 0 free, 1 held, 2 held and somebody sleeps.
 *
 * Acquire on taking, release on giving back. For a few microseconds at most: never held while blocking or
 * while waiting for the GIL, so a thread with the GIL may take it. A forked child has to clear it. */
#ifndef SHMB_PROCESS_LOCK_H
#define SHMB_PROCESS_LOCK_H

#include <limits.h>

#include "park.h"

static __attribute__((noinline, unused)) void shmb_lock_slow(shmb_a32 *lock)
{
    for (int i = 0; i < 200; i++) {
        uint32_t was = 0;
        if (shmb_peek32(lock) == 0 &&
            atomic_compare_exchange_strong_explicit(lock, &was, 1, memory_order_acquire, memory_order_relaxed))
            return;
        shmb_relax();
    }
    while (atomic_exchange_explicit(lock, 2, memory_order_acquire) != 0)
        syscall(SYS_futex, lock, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
}
static inline int shmb_trylock(shmb_a32 *lock)
{
    uint32_t was = 0;
    return atomic_compare_exchange_strong_explicit(lock, &was, 1, memory_order_acquire, memory_order_relaxed);
}
static inline void shmb_lock(shmb_a32 *lock)
{
    if (__builtin_expect(!shmb_trylock(lock), 0))
        shmb_lock_slow(lock);
}
static inline void shmb_unlock(shmb_a32 *lock)
{
    if (__builtin_expect(atomic_exchange_explicit(lock, 0, memory_order_release) == 2, 0))
        syscall(SYS_futex, lock, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

#endif
