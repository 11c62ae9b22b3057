/* The producer table in plain C: Kafka's rules against a slow model, and an export that another thread
 * takes while the owner records. Exit status 0 on success.
 *
 *   gcc -std=gnu11 -O2 -Wall -Wextra -Werror -I shmbroker/_core tests/native/test_producers.c -o t \
 *       -lpthread && ./t
 */
#undef NDEBUG
#include <assert.h>
#include <pthread.h>
#include <stdio.h>

#include "producers.h"

static uint32_t seed = 2463534242u;

static uint32_t rnd(void) { /* xorshift32 */
    seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
    return seed;
}

static void an_unknown_producer_may_begin_with_any_sequence(void) {
    struct shmb_producers t;
    int64_t dup;
    assert(shmb_producers_init(&t, 0, 0) == 0);
    assert(shmb_producers_check(&t, 5, 0, 0, 1, &dup) == SHMB_PRODUCER_OK && dup == -1);
    assert(shmb_producers_check(&t, 5, 3, 77, 1, &dup) == SHMB_PRODUCER_OK);
    assert(t.count == 0);
    shmb_producers_destroy(&t);
}

static void sequences_follow_wrap_and_repeat(void) {
    struct shmb_producers t;
    int64_t dup;
    assert(shmb_producers_init(&t, 0, 0) == 0);
    int32_t sequence = INT32_MAX - 100;
    for (int64_t n = 0; n < 200; n++) {
        int32_t count = 1 + (int32_t)(rnd() % 9);
        assert(shmb_producers_check(&t, 9, 2, sequence, count, &dup) == SHMB_PRODUCER_OK);
        assert(shmb_producers_record(&t, 9, 2, sequence, count, 1000 + n, n) == 0);
        assert(shmb_producers_check(&t, 9, 2, sequence, count, &dup) == SHMB_PRODUCER_DUPLICATE);
        assert(dup == 1000 + n);
        sequence = shmb_producer_sequence_after(sequence, count);
        assert(sequence >= 0);
        int32_t gap = shmb_producer_sequence_after(sequence, 1);
        assert(shmb_producers_check(&t, 9, 2, gap, 1, &dup) == SHMB_PRODUCER_OUT_OF_ORDER);
    }
    assert(shmb_producers_check(&t, 9, 1, sequence, 1, &dup) == SHMB_PRODUCER_INVALID_EPOCH);
    assert(shmb_producers_check(&t, 9, 3, sequence, 1, &dup) == SHMB_PRODUCER_OUT_OF_ORDER);
    assert(shmb_producers_check(&t, 9, 3, 0, 1, &dup) == SHMB_PRODUCER_OK);
    shmb_producers_destroy(&t);
}

static void every_remembered_batch_is_found_and_older_ones_are_stale(void) {
    struct shmb_producers t;
    int64_t dup;
    assert(shmb_producers_init(&t, 0, 0) == 0);
    enum { N = 3 * SHMB_PRODUCER_BATCHES };
    for (int n = 0; n < N; n++) assert(shmb_producers_record(&t, 1, 0, 10 * n, 10, n, n) == 0);
    for (int n = 0; n < N; n++) {
        int verdict = shmb_producers_check(&t, 1, 0, 10 * n, 10, &dup);
        if (n >= N - SHMB_PRODUCER_BATCHES)
            assert(verdict == SHMB_PRODUCER_DUPLICATE && dup == n);
        else
            assert(verdict == SHMB_PRODUCER_STALE && dup == -1);
    }
    shmb_producers_destroy(&t);
}

static void many_producers_are_found_and_survive_export_and_import(void) {
    struct shmb_producers t, u;
    int64_t dup;
    assert(shmb_producers_init(&t, 0, 0) == 0 && shmb_producers_init(&u, 0, 0) == 0);
    enum { N = 3000 };
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int64_t id = 0; id < N; id++)
        for (int n = 0; n < 3; n++)
            assert(shmb_producers_record(&t, id * 977, 1, n, 1, 3 * id + n,
                                         (int64_t)now.tv_sec * 1000) == 0);
    assert(t.count == N);
    int64_t size = -shmb_producers_export(&t, INT64_MAX, NULL, 0);
    assert(size > 0);
    uint8_t *bytes = (uint8_t *)malloc((size_t)size);
    int64_t written = shmb_producers_export(&t, 3 * 1000, bytes, (size_t)size);
    assert(written > 0 && written <= size);
    assert(shmb_producers_import(&u, bytes, (size_t)written) == 0);
    for (int64_t id = 0; id < N; id++) {
        int verdict = shmb_producers_check(&u, id * 977, 1, 2, 1, &dup);
        assert(verdict == (id < 1000 ? SHMB_PRODUCER_DUPLICATE : SHMB_PRODUCER_OK));
        if (id < 1000) assert(dup == 3 * id + 2);
    }
    for (int64_t cut = 0; cut < written; cut += 101) { /* no cut crashes or passes */
        shmb_producers_destroy(&u);
        assert(shmb_producers_init(&u, 0, 0) == 0);
        assert(shmb_producers_import(&u, bytes, (size_t)cut) == 1);
    }
    free(bytes);
    shmb_producers_destroy(&t);
    shmb_producers_destroy(&u);
}

static void memory_is_bounded(void) {
    struct shmb_producers t;
    assert(shmb_producers_init(&t, 64, INT64_MAX / 2) == 0);
    for (int64_t id = 0; id < 10000; id++)
        assert(shmb_producers_record(&t, id, 0, 0, 1, id, id) == 0 && t.count <= 64);
    assert(t.capacity <= 128);
    shmb_producers_destroy(&t);
}

/* ---- export while the owner records ---- */

static struct shmb_producers shared;
static shmb_a32 done;

static void *record_on(void *unused) {
    (void)unused;
    for (int32_t n = 0; n < 200000; n++)
        for (int64_t id = 0; id < 3; id++) /* base offset and sequence are the same number */
            assert(shmb_producers_record(&shared, id + (n / 5000) * 3, 0, n, 1, n, n) == 0);
    shmb_publish32(&done, 1);
    return NULL;
}

static void an_export_sees_each_producer_at_one_moment(void) {
    assert(shmb_producers_init(&shared, 0, INT64_MAX / 2) == 0);
    pthread_t owner;
    assert(pthread_create(&owner, NULL, record_on, NULL) == 0);
    size_t room = 1 << 20;
    uint8_t *bytes = (uint8_t *)malloc(room);
    while (!shmb_observe32(&done)) {
        int64_t size = shmb_producers_export(&shared, INT64_MAX, bytes, room);
        assert(size > 0);
        const uint8_t *p = bytes + SHMB_PRODUCERS_EXPORT_HEAD;
        for (int32_t k = shmb_get_be32(bytes + 4); k; k--) {
            uint16_t batches = (uint16_t)shmb_get_be16(p + 10);
            int64_t newest = shmb_get_be64(p + 12);
            p += SHMB_PRODUCER_EXPORT_HEAD;
            for (uint16_t b = 0; b < batches; b++, p += SHMB_PRODUCER_EXPORT_BATCH) {
                assert(shmb_get_be64(p + 8) == shmb_get_be32(p));
                assert(shmb_get_be32(p) == newest - batches + 1 + b);
            }
        }
        assert(p == bytes + size);
    }
    pthread_join(owner, NULL);
    free(bytes);
    shmb_producers_destroy(&shared);
}

int main(void) {
    an_unknown_producer_may_begin_with_any_sequence();
    sequences_follow_wrap_and_repeat();
    every_remembered_batch_is_found_and_older_ones_are_stale();
    many_producers_are_found_and_survive_export_and_import();
    memory_is_bounded();
    an_export_sees_each_producer_at_one_moment();
    puts("ok");
    return 0;
}
