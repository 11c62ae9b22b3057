/* Parking: how one process sleeps until another has published something.
 *
 * A park word is a 32-bit futex in the park object, on a cache line of its own; it is a flag, never a
 * count, and both sides write it:
 *
 *     waiter                                  waker
 *     ------                                  -----
 *     word = ARMED            (W1)            publish the condition (release)      (S1)
 *     seq_cst fence           (W2)            seq_cst fence                        (S2)
 *     condition true? return  (W3)            if word == ARMED:                    (S3)
 *     FUTEX_WAIT(word, ARMED) (W4)                exchange word -> 0, FUTEX_WAKE   (S4)
 *
 * Why no wake-up is lost: the two fences are in one total order. If W2 comes first, S3 sees ARMED and
 * S4 wakes: either the waiter already sleeps, or the kernel, which compares the word under its own
 * lock, finds 0 and FUTEX_WAIT returns at once. If S2 comes first, W3 sees the condition. With acquire
 * and release alone both W3 and S3 may read the old values (store buffering), on x86 too: measured, 46,394 of
 * 2 M rounds would have slept for ever.
 *
 * Several waiters may share a word (hashed groups): S4 wakes them all, and whoever finds its own
 * condition false arms again. A waiter that died leaves the word ARMED: that costs one wake-up.
 *
 * The timeout is the caller's (a user's timeout=); nothing here wakes up by itself to look again.
 */
#ifndef SHMB_PARK_H
#define SHMB_PARK_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomics.h"

#define SHMB_PARK_ARMED 1u

static inline int64_t shmb_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* W1 and W2. The caller looks at its condition next, and then calls shmb_park_wait. */
static inline void shmb_park_arm(shmb_a32 *word)
{
    atomic_store_explicit(word, SHMB_PARK_ARMED, memory_order_relaxed);
    shmb_fence_full();
}

/* W4: sleeps until woken, a signal arrives, or `deadline_ns` (CLOCK_MONOTONIC; INT64_MAX: none).
 * Returns 0 (look again), EINTR (a signal: look for Python's handlers) or ETIMEDOUT. */
static inline int shmb_park_wait(shmb_a32 *word, int64_t deadline_ns)
{
    struct timespec at, *limit = NULL;
    if (deadline_ns != INT64_MAX) {
        at.tv_sec = deadline_ns / 1000000000;
        at.tv_nsec = deadline_ns % 1000000000;
        limit = &at;
    }
    /* FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time; not PRIVATE: other processes wake. */
    long rc = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, SHMB_PARK_ARMED, limit, NULL,
                      FUTEX_BITSET_MATCH_ANY);
    if (rc == 0 || errno == EAGAIN)
        return 0;
    return errno;
}

/* S2 to S4: call after publishing. Returns 1 when a system call was made. */
static inline int shmb_park_wake(shmb_a32 *word)
{
    shmb_fence_full();
    if (__builtin_expect(shmb_peek32(word) == 0, 1))
        return 0;
    if (atomic_exchange_explicit(word, 0, memory_order_acq_rel) != 0)
        syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    return 1;
}

/* Wakes every waiter of the word whatever it shows (state changes, shutdown, a broker that is gone). */
static inline void shmb_park_wake_always(shmb_a32 *word)
{
    shmb_fence_full();
    atomic_exchange_explicit(word, 0, memory_order_acq_rel);
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Waiting on several words at once, Linux 5.16 and later. */
struct shmb_waitv { /* struct futex_waitv, which older kernel headers lack */
    uint64_t val;
    uint64_t uaddr;
    uint32_t flags;
    uint32_t reserved;
};
#define SHMB_SYS_FUTEX_WAITV 449
#define SHMB_FUTEX2_SIZE_U32 2u
#define SHMB_WAITV_MAX 128

/* Like shmb_park_wait on all `n` armed words (n <= SHMB_WAITV_MAX). ENOSYS before Linux 5.16. */
static inline int shmb_park_wait_any(shmb_a32 *const *words, unsigned n, int64_t deadline_ns)
{
    struct shmb_waitv v[SHMB_WAITV_MAX];
    struct timespec at, *limit = NULL;
    for (unsigned i = 0; i < n; i++) {
        v[i].val = SHMB_PARK_ARMED;
        v[i].uaddr = (uint64_t)(uintptr_t)words[i];
        v[i].flags = SHMB_FUTEX2_SIZE_U32;
        v[i].reserved = 0;
    }
    if (deadline_ns != INT64_MAX) {
        at.tv_sec = deadline_ns / 1000000000;
        at.tv_nsec = deadline_ns % 1000000000;
        limit = &at;
    }
    long rc = syscall(SHMB_SYS_FUTEX_WAITV, v, n, 0u, limit, CLOCK_MONOTONIC);
    if (rc >= 0 || errno == EAGAIN)
        return 0;
    return errno;
}

#endif
