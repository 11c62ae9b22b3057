/* The time-stamp counter's rate: right also when the thread that measures it was put off the core in the midst.
 *
 *   gcc -std=gnu11 -O2 -Wall -Wextra -Werror -D_GNU_SOURCE -I shmbroker/_core tests/native/test_ticks.c -lpthread
 */
#undef NDEBUG
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "park.h"

static int calls, late_at; /* the clock's call after which the thread stands still */

static int64_t hesitating_now_ns(void)
{
    int64_t now = shmb_now_ns();
    if (++calls == late_at) {
        struct timespec pause = {0, 5000000};
        nanosleep(&pause, NULL);
    }
    return now;
}

#define shmb_now_ns hesitating_now_ns
#include "ticks.h"

static double rate(void)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    uint64_t from = shmb_ticks();
    struct timespec pause = {0, 50000000};
    nanosleep(&pause, NULL);
    uint64_t to = shmb_ticks();
    clock_gettime(CLOCK_MONOTONIC, &b);
    double ns = (double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec);
    return (double)(to - from) * 1000 / ns;
}

int main(void)
{
    double right = 0;
    for (int i = 0; i < 5; i++) { /* whoever is put off between the two clocks measures less */
        double found = rate();
        right = found > right ? found : right;
    }
    for (late_at = 1; late_at <= 8; late_at++) {
        calls = 0;
        shmb_ticks_calibrate();
        double share = (double)shmb_ticks_per_us / right;
        if (share < 0.8 || share > 1.25) {
            printf("put off after look %d at the clock: %.3f of the right rate\n", late_at, share);
            return 1;
        }
    }
    puts("ok");
    return 0;
}
