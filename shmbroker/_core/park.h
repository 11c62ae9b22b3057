/* Parking: how one process sleeps until another has published something.
 *
 * A park word is a 32-bit futex in the park object, on a cache line of its own; both sides write it. It
 * is 2 k + armed: a flag, and a number k that each wake-up raises so that the flag is never the same twice:
 *
 *     waiter                                  waker
 *     ------                                  -----
 *     v = word |= 1           (W1)            publish the condition (release)      (S1)
 *     seq_cst fence           (W2)            seq_cst fence                        (S2)
 *     condition true? return  (W3)            if word is armed:                    (S3)
 *     FUTEX_WAIT(word, v)     (W4)                word: v -> v + 1, FUTEX_WAKE     (S4)
 *
 * Why no wake-up is lost: the two fences are in one total order. If W2 comes first, S3 sees the word armed
 * and S4 wakes: either the waiter already sleeps, or the kernel, which compares the word under its own
 * lock, finds another number and FUTEX_WAIT returns at once. If S2 comes first, W3 sees the condition. With
 * acquire and release alone both W3 and S3 may read the old values (store buffering), on x86 too: measured,
 * 46,394 of 2 M rounds would have slept for ever.
 *
 * Several waiters may share a word (hashed groups): S4 wakes them all, and whoever finds its own
 * condition false arms again. That is why a flag alone is not enough: B looks (W3), its wake-up comes and
 * clears the flag, A arms, and B falls asleep on A's flag, its condition true (tests/model/park.pml,
 * PLAIN_FLAG). A compare-and-swap of S4 that fails lost to another waker, who wakes everybody too. A waiter
 * that died leaves the word armed: that costs one wake-up. A waker that dies inside S4 leaves it
 * cleared and the others asleep: whoever notices a death rings with shmb_park_wake_always.
 *
 * The timeout is the caller's (a user's timeout=); nothing here wakes up by itself to look again.
 */
#ifndef SHMB_PARK_H
#define SHMB_PARK_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdint.h>
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

/* What this thread's last shmb_park_arm left in a word, by the word's line within the park object. */
static _Thread_local uint32_t shmb_park_seen[1024];
static inline uint32_t *shmb_park_mine(const shmb_a32 *word)
{
    return &shmb_park_seen[((uintptr_t)word / 64) % 1024];
}

/* W1 without W2, for who arms many words and then fences once. Returns what to wait on. */
static inline uint32_t shmb_park_arm_unfenced(shmb_a32 *word)
{
    return atomic_fetch_or_explicit(word, SHMB_PARK_ARMED, memory_order_relaxed) | SHMB_PARK_ARMED;
}

/* W1 and W2. The caller looks at its condition next, and then calls shmb_park_wait in the same thread. */
static inline void shmb_park_arm(shmb_a32 *word)
{
    *shmb_park_mine(word) = shmb_park_arm_unfenced(word);
    shmb_fence_full();
}

/* FUTEX_WAIT as long as `word` shows `value`. Returns as shmb_park_wait. */
static inline int shmb_park_wait_value(shmb_a32 *word, uint32_t value, int64_t deadline_ns)
{
    struct timespec at, *limit = NULL;
    if (deadline_ns != INT64_MAX) {
        at.tv_sec = deadline_ns / 1000000000;
        at.tv_nsec = deadline_ns % 1000000000;
        limit = &at;
    }
    /* FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time; not PRIVATE: other processes wake. */
    long rc = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, limit, NULL, FUTEX_BITSET_MATCH_ANY);
    if (rc == 0 || errno == EAGAIN)
        return 0;
    return errno;
}

/* W4: sleeps until woken, a signal arrives, or `deadline_ns` (CLOCK_MONOTONIC; INT64_MAX: none).
 * Returns 0 (look again), EINTR (a signal: look for Python's handlers) or ETIMEDOUT. */
static inline int shmb_park_wait(shmb_a32 *word, int64_t deadline_ns)
{
    return shmb_park_wait_value(word, *shmb_park_mine(word), deadline_ns);
}

/* S2 to S4: call after publishing. Returns 1 when the word was armed. */
static inline int shmb_park_wake(shmb_a32 *word)
{
    shmb_fence_full();
    uint32_t v = shmb_peek32(word);
    if (__builtin_expect(!(v & SHMB_PARK_ARMED), 1))
        return 0;
    if (atomic_compare_exchange_strong_explicit(word, &v, v + 1, memory_order_acq_rel, memory_order_relaxed))
        syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    return 1;
}

/* S2 to S4 for a waiter that polls descriptors: instead of the word's sleepers an eventfd is told. */
static inline void shmb_park_ring(shmb_a32 *word, int bell)
{
    shmb_fence_full();
    uint32_t v = shmb_peek32(word);
    uint64_t one = 1;
    if (!(v & SHMB_PARK_ARMED) || !atomic_compare_exchange_strong_explicit(word, &v, v + 1, memory_order_acq_rel,
                                                                           memory_order_relaxed))
        return;
    while (write(bell, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

/* Wakes every waiter of the word whatever it shows (state changes, shutdown, somebody's death). */
static inline void shmb_park_wake_always(shmb_a32 *word)
{
    shmb_fence_full();
    uint32_t v = shmb_peek32(word);
    while (!atomic_compare_exchange_weak_explicit(word, &v, (v | SHMB_PARK_ARMED) + 1, memory_order_acq_rel,
                                                  memory_order_relaxed)) {
    }
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

static inline struct shmb_waitv shmb_waitv_on(shmb_a32 *word, uint32_t value)
{
    return (struct shmb_waitv){
        .val = value, .uaddr = (uint64_t)(uintptr_t)word, .flags = SHMB_FUTEX2_SIZE_U32};
}

/* futex_waitv as long as all `n` words show their values. Returns as shmb_park_wait; ENOSYS before Linux
 * 5.16. */
static inline int shmb_park_wait_values(struct shmb_waitv *v, unsigned n, int64_t deadline_ns)
{
    struct timespec at, *limit = NULL;
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

/* Like shmb_park_wait on all `n` armed words (n <= SHMB_WAITV_MAX). ENOSYS before Linux 5.16. */
static inline int shmb_park_wait_any(shmb_a32 *const *words, unsigned n, int64_t deadline_ns)
{
    struct shmb_waitv v[SHMB_WAITV_MAX];
    for (unsigned i = 0; i < n; i++)
        v[i] = shmb_waitv_on(words[i], *shmb_park_mine(words[i]));
    return shmb_park_wait_values(v, n, deadline_ns);
}

/* How long a Python program's sleep may last before it returns EINTR to let the caller look for signals.
 * A signal that comes between the last look and the system call, or to another thread, interrupts no
 * sleep; without this it would wait for the next wake-up. 0: never, as in the tests (they set
 * SHMBROKER_PARK_FOREVER), where a lost wake-up must hang. */
static int64_t shmb_signal_look_ns = 0;

static inline int64_t shmb_until_look(int64_t deadline_ns)
{
    if (shmb_signal_look_ns == 0)
        return deadline_ns;
    int64_t look = shmb_now_ns() + shmb_signal_look_ns;
    return look < deadline_ns ? look : deadline_ns;
}

/* As shmb_park_wait and shmb_park_wait_any, for a thread that has Python's signals to look for. */
static inline int shmb_park_wait_signals(shmb_a32 *word, int64_t deadline_ns)
{
    int64_t until = shmb_until_look(deadline_ns);
    int rc = shmb_park_wait(word, until);
    return rc == ETIMEDOUT && until != deadline_ns ? EINTR : rc;
}
static inline int shmb_park_wait_any_signals(shmb_a32 *const *words, unsigned n, int64_t deadline_ns)
{
    int64_t until = shmb_until_look(deadline_ns);
    int rc = shmb_park_wait_any(words, n, until);
    return rc == ETIMEDOUT && until != deadline_ns ? EINTR : rc;
}

#endif
