/* The log ring: double mapping, and a reader process behind a writer process that laps it.
 *
 * Every 8-byte word of the log at position p holds mix(p), so a torn or foreign copy shows at once.
 * usage: test_logring [laps]
 */
#undef NDEBUG
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "logring.h"
#include "shm.h"

#define CAPACITY (uint64_t)SHMB_PAGE
#define BATCH_MAX 6000u

static struct shmb_slot *slot;
static shmb_a64 *stop;

static void hung(int signal)
{
    (void)signal;
    static const char what[] = "test_logring: no end\n";
    ssize_t ignored = write(2, what, sizeof what - 1);
    (void)ignored;
    kill(0, SIGKILL);
}
static uint64_t mix(uint64_t position) { return (position + 1) * 0x9e3779b97f4a7c15ull; }
/* Batches are numbered; offset n's length depends on n alone, so that both sides know the boundaries. */
static uint32_t length_of(uint64_t n) { return 64 + (uint32_t)(mix(n) >> 40) % ((BATCH_MAX - 64) / 8) * 8; }

static int object_of(uint64_t bytes)
{
    FILE *f = tmpfile();
    assert(f);
    int fd = dup(fileno(f));
    fclose(f);
    assert(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    return fd;
}

static void the_data_is_there_twice(void)
{
    uint64_t at = shmb_log_data_offset(CAPACITY);
    int fd = object_of(shmb_log_bytes(CAPACITY));
    /* volatile: the compiler takes w[x] and w[x + CAPACITY] for two objects */
    volatile uint8_t *w = shmb_map_double(fd, at, CAPACITY, 1), *r = shmb_map_double(fd, at, CAPACITY, 0);
    assert(w && r);
    for (uint64_t i = 0; i < CAPACITY; i += 4093) {
        w[at + i] = (uint8_t)(i * 7 + 1);
        assert(w[at + CAPACITY + i] == (uint8_t)(i * 7 + 1) && r[at + i] == w[at + i]);
        w[at + CAPACITY + i] = (uint8_t)(i * 5 + 3);
        assert(w[at + i] == (uint8_t)(i * 5 + 3) && r[at + CAPACITY + i] == w[at + i]);
    }
    for (int i = 0; i < 200; i++)
        w[at + CAPACITY - 100 + (uint64_t)i] = 0x5a; /* across the end: one piece */
    assert(w[at] == 0x5a && w[at + 99] == 0x5a && w[at + CAPACITY - 1] == 0x5a && w[at + 100] != 0x5a);
    assert(w[at - 1] == 0); /* the index below is untouched */
    shmb_unmap_double((void *)w, at, CAPACITY);
    shmb_unmap_double((void *)r, at, CAPACITY);
    close(fd);
}

static void a_stranger_is_named(void)
{
    uint8_t boot[16] = {1}, dir[16] = {2}, other[16] = {3}, object[64] = {0};
    _Alignas(64) uint8_t page[64];
    memcpy(page, object, 64);
    assert(shmb_preamble_check(page, SHMB_KIND_LOG, 64, boot, dir) == SHMB_NOT_READY);
    shmb_preamble_write(page, SHMB_KIND_LOG, 0, 64, boot, dir);
    assert(shmb_preamble_check(page, SHMB_KIND_LOG, 64, boot, dir) == SHMB_OURS);
    assert(shmb_preamble_check(page, SHMB_KIND_INGRESS, 64, boot, dir) == SHMB_OTHER_KIND);
    assert(shmb_preamble_check(page, SHMB_KIND_LOG, 64, other, dir) == SHMB_OTHER_BOOT);
    assert(shmb_preamble_check(page, SHMB_KIND_LOG, 64, boot, other) == SHMB_OTHER_DIR);
    assert(shmb_preamble_check(page, SHMB_KIND_LOG, 128, boot, dir) == SHMB_OTHER_SIZE);
    page[0] ^= 1;
    assert(shmb_preamble_check(page, SHMB_KIND_LOG, 64, boot, dir) == SHMB_OTHER_FORMAT);
}

/* The sequencer's stores, in sequencer.h's order. */
static void writer(uint8_t *object, uint64_t laps)
{
    uint8_t *data = object + shmb_log_data_offset(CAPACITY);
    struct shmb_index_entry *index = (struct shmb_index_entry *)(object + SHMB_PAGE);
    uint64_t entries = shmb_log_index_entries(CAPACITY), at = 0, head = 0, last = 0;
    for (uint64_t n = 0; at < laps * CAPACITY; n++) {
        uint32_t length = length_of(n);
        shmb_poke(&slot->reserved_position, at + length);
        shmb_fence_release();
        uint64_t *to = (uint64_t *)(data + at % CAPACITY);
        for (uint32_t i = 0; i < length / 8; i++)
            to[i] = mix(at + 8 * i);
        if (n == 0 || at - last >= SHMB_INDEX_STEP) {
            struct shmb_index_entry *e = &index[head % entries];
            shmb_poke(&e->base_offset, n);
            shmb_publish(&e->position, at);
            last = at;
            shmb_publish(&slot->index_head, ++head);
        }
        at += length;
        shmb_publish(&slot->log_end_offset, n + 1);
        shmb_publish(&slot->log_end_position, at);
    }
    shmb_publish(stop, 1);
}

struct found {
    uint64_t copies, lapped, finds;
};

static void check_copy(const struct shmb_log_view *v, uint64_t position, uint64_t n, struct found *f)
{
    static uint64_t copy[SHMB_PAGE / 8];
    if (!shmb_log_copy(v, position, copy, n)) {
        f->lapped++;
        return;
    }
    f->copies++;
    for (uint64_t i = 0; i < n / 8; i++)
        if (copy[i] != mix(position + 8 * i)) {
            fprintf(stderr, "torn copy accepted: position %llu word %llu\n", (unsigned long long)position,
                    (unsigned long long)i);
            abort();
        }
}

/* The entry that shmb_log_find gives must be a true pair: the batch of that number begins there. */
static void check_find(const struct shmb_log_view *v, const uint64_t *begins, uint64_t wanted, struct found *f)
{
    int64_t base;
    uint64_t position;
    if (!shmb_log_find(v, (int64_t)wanted, &base, &position))
        return;
    f->finds++;
    if ((uint64_t)base > wanted || begins[base] != position) {
        fprintf(stderr, "shmb_log_find: offset %llu at position %llu\n", (unsigned long long)base,
                (unsigned long long)position);
        abort();
    }
}

static void a_lapped_reader_never_accepts_a_torn_copy(uint64_t laps)
{
    int fd = object_of(shmb_log_bytes(CAPACITY));
    uint64_t at = shmb_log_data_offset(CAPACITY);
    uint8_t *object = shmb_map_double(fd, at, CAPACITY, 1);
    slot = mmap(NULL, SHMB_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(object && slot != MAP_FAILED);
    stop = (shmb_a64 *)(slot + 2);
    shmb_publish(&slot->generation, 7);
    uint64_t batches = laps * CAPACITY / 64 + 1, *begins = malloc(batches * sizeof *begins), position = 0;
    assert(begins);
    for (uint64_t n = 0; n < batches; n++) {
        begins[n] = position;
        position += length_of(n);
    }
    pid_t pid = fork();
    assert(pid >= 0);
    if (pid == 0) {
        writer(object, laps);
        _exit(0);
    }
    struct shmb_log_view v;
    uint8_t *mine = shmb_map_double(fd, at, CAPACITY, 0);
    assert(mine);
    shmb_log_view_set(&v, slot, mine, CAPACITY, 7);
    struct found f = {0, 0, 0};
    uint64_t random = 88172645463325252ull;
    do {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        uint64_t end = shmb_observe(&slot->log_end_position), last = shmb_peek(&slot->log_end_offset);
        uint64_t back = random % CAPACITY / 8 * 8, n = 8 + (random >> 32) % BATCH_MAX / 8 * 8;
        /* near the edge where the writer is at work */
        uint64_t from = end > back ? end - back : 0;
        if (random & 1)
            from = end > CAPACITY ? end - CAPACITY + (random >> 20) % 8192 / 8 * 8 : 0;
        if (from + n <= end)
            check_copy(&v, from, n, &f);
        if (last)
            check_find(&v, begins, last - 1 - (random >> 9) % (last < 40 ? last : 40), &f);
    } while (!shmb_observe(stop));
    int status;
    assert(waitpid(pid, &status, 0) == pid && status == 0);
    /* at rest: the last lap is all there, what lies before it is refused, another generation too */
    uint64_t end = shmb_peek(&slot->log_end_position);
    uint64_t copies = f.copies;
    check_copy(&v, end - CAPACITY, CAPACITY, &f);
    assert(f.copies == copies + 1);
    uint64_t word;
    assert(!shmb_log_copy(&v, end - CAPACITY - 8, &word, 8));
    assert(!shmb_log_copy(&v, end - 8, &word, CAPACITY + 8));
    shmb_publish(&slot->generation, 8);
    assert(!shmb_log_copy(&v, end - 8, &word, 8));
    printf("logring: %llu copies good, %llu lapped, %llu index entries found\n", (unsigned long long)f.copies,
           (unsigned long long)f.lapped, (unsigned long long)f.finds);
    assert(f.copies > 1 && f.finds > 0);
    free(begins);
    shmb_unmap_double(object, at, CAPACITY);
    shmb_unmap_double(mine, at, CAPACITY);
    close(fd);
}

/* Segment k begins at position 4096 k, base offset 10 k; durable moves within it. */
static void the_flush_segment_is_one_triple(uint64_t rounds)
{
    memset(slot, 0, SHMB_PAGE);
    pid_t pid = fork();
    assert(pid >= 0);
    if (pid == 0) {
        for (uint64_t k = 1; k <= rounds; k++) {
            for (uint64_t d = 1; d <= 3; d++)
                shmb_publish(&slot->durable_position, 4096 * (k - 1) + d * 1000);
            uint64_t seq = shmb_peek(&slot->flush_seq);
            shmb_poke(&slot->flush_seq, seq + 1);
            shmb_fence_release();
            shmb_poke(&slot->flush_base_offset, 10 * k);
            shmb_poke(&slot->flush_base_position, 4096 * k);
            shmb_publish(&slot->durable_position, 4096 * k);
            shmb_publish(&slot->flush_seq, seq + 2);
        }
        shmb_publish(stop, 1);
        _exit(0);
    }
    do {
        int64_t offset;
        uint64_t base, durable;
        shmb_slot_flush_segment(slot, &offset, &base, &durable);
        assert(base % 4096 == 0 && (uint64_t)offset == base / 4096 * 10 && durable - base <= 3000);
    } while (!shmb_observe(stop));
    int status;
    assert(waitpid(pid, &status, 0) == pid && status == 0);
}

int main(int argc, char **argv)
{
    uint64_t laps = argc > 1 ? strtoull(argv[1], NULL, 10) : 5000;
    setpgid(0, 0);
    signal(SIGALRM, hung);
    alarm(120);
    the_data_is_there_twice();
    a_stranger_is_named();
    a_lapped_reader_never_accepts_a_torn_copy(laps);
    the_flush_segment_is_one_triple(laps * 100);
    puts("logring: ok");
    return 0;
}
