/* Cheap time: a counter for intervals of microseconds, and two clocks that cost a few ns. */
#ifndef SHMB_TICKS_H
#define SHMB_TICKS_H

#include "park.h"

static uint64_t shmb_ticks_per_us = 1000;

static inline uint64_t shmb_ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    uint64_t t;
    __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(t));
    return t;
#endif
}
/* Both clocks at one moment: between two looks at the one that are close together, as they are not when
 * the thread was put off the core there. Returns the one, and the other in *ticks. */
#define SHMB_LOOKS 100
static inline int64_t shmb_ticks_moment(uint64_t *ticks)
{
    int64_t at_ns = 0, best_ns = INT64_MAX;
    for (int i = 0; i < SHMB_LOOKS && best_ns > 1000; i++) {
        int64_t before_ns = shmb_now_ns();
        uint64_t found = shmb_ticks();
        int64_t after_ns = shmb_now_ns();
        if (after_ns - before_ns < best_ns) {
            best_ns = after_ns - before_ns;
            at_ns = before_ns + best_ns / 2;
            *ticks = found;
        }
    }
    return at_ns;
}
static __attribute__((unused)) void shmb_ticks_calibrate(void)
{
#if defined(__x86_64__)
    uint64_t from = 0, to = 0;
    int64_t from_ns = shmb_ticks_moment(&from);
    while (shmb_now_ns() - from_ns < 200000)
        shmb_relax();
    int64_t to_ns = shmb_ticks_moment(&to);
    shmb_ticks_per_us = (to - from) * 1000 / (uint64_t)(to_ns - from_ns);
#else
    uint64_t hz;
    __asm__ __volatile__("mrs %0, cntfrq_el0" : "=r"(hz));
    shmb_ticks_per_us = hz / 1000000;
#endif
    if (!shmb_ticks_per_us)
        shmb_ticks_per_us = 1;
}
/* ms since 1970, from a clock that costs a few ns and moves every 1 to 10 ms. */
static inline int64_t shmb_wall_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME_COARSE, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}
static inline int64_t shmb_coarse_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif
