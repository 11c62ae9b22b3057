/* The watcher of an event loop: it fires who need not wait, and no wake-up is lost in any of its modes.
 *
 * There is no timeout anywhere: a lost wake-up hangs, and the alarm says so. On a kernel (or an emulator)
 * without futex_waitv the first mode is the second.
 */
#undef NDEBUG
#include <assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "watch.h"

#define ROUNDS 2000
#define MANY 300 /* more than futex_waitv takes */

static struct { shmb_a32 word; uint8_t fill[60]; } *park; /* line 0 is never used */
static struct shmb_slot *slots;
static shmb_a32 epoch, stop;
static struct shmb_watcher watcher;

static void lost(int signal)
{
    (void)signal;
    static const char what[] = "test_watch: still waiting: a wake-up was lost\n";
    ssize_t ignored = write(2, what, sizeof what - 1);
    (void)ignored;
    _exit(1);
}
static void begin(int no_waitv)
{
    memset(park, 0, 1024 * sizeof *park);
    memset(slots, 0, MANY * sizeof *slots);
    memset(&watcher, 0, sizeof watcher);
    shmb_poke32(&epoch, 2);
    shmb_poke32(&stop, 0);
    assert(shmb_watcher_init(&watcher, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) == 0);
    watcher.no_waitv = no_waitv;
}
static void end(void)
{
    shmb_watcher_stop(&watcher);
    close(watcher.eventfd);
}

/* A consumer of `n` partitions from `first` on that has read all there is. */
static struct shmb_waiter *waiter(int first, int n)
{
    struct shmb_waiter *w = calloc(1, sizeof *w);
    w->n = (size_t)n;
    w->watches = calloc((size_t)n, sizeof *w->watches);
    w->words = calloc((size_t)n, sizeof *w->words);
    for (int i = 0; i < n; i++) {
        struct shmb_slot *s = &slots[first + i];
        w->watches[i] = (struct shmb_watch){.slot = s, .end = &s->durable_offset,
            .position = (int64_t)shmb_observe(&s->durable_offset)};
        w->words[i] = &park[2 + first + i].word;
    }
    w->instance = &park[SHMB_PARK_INSTANCE].word;
    w->epoch = &epoch;
    w->seen = shmb_observe32(&epoch);
    w->stop = &stop;
    return w;
}
static void drop(struct shmb_waiter *w)
{
    shmb_watcher_remove(&watcher, w);
    free(w->watches);
    free(w->words);
    free(w);
}
static void flush_one(int slot)
{
    shmb_publish(&slots[slot].durable_offset, shmb_observe(&slots[slot].durable_offset) + 1);
    shmb_park_wake(&park[2 + slot].word);
    shmb_park_wake(&park[SHMB_PARK_INSTANCE].word);
}
/* What the loop does: sleeps on the eventfd until this waiter has fired. */
static void await(struct shmb_waiter *w)
{
    while (!shmb_observe32(&w->fired)) {
        struct pollfd p = {.fd = watcher.eventfd, .events = POLLIN};
        assert(poll(&p, 1, -1) == 1);
        uint64_t n;
        assert(read(watcher.eventfd, &n, sizeof n) == sizeof n);
    }
}

static void *writer(void *slot)
{
    flush_one((int)(intptr_t)slot);
    return NULL;
}
static void wakes(int partitions)
{
    for (int round = 0; round < ROUNDS; round++) {
        int slot = round % partitions;
        struct shmb_waiter *w = waiter(0, partitions);
        assert(shmb_watcher_add(&watcher, w) == 0);
        if (round % 8 == 0) { /* from another thread, at any moment */
            pthread_t thread;
            assert(pthread_create(&thread, NULL, writer, (void *)(intptr_t)slot) == 0);
            await(w);
            pthread_join(thread, NULL);
        } else {
            flush_one(slot);
            await(w);
        }
        drop(w);
    }
}
static void what_ends_a_wait(void)
{
    struct shmb_waiter *w = waiter(0, 1), *quiet = waiter(1, 1);
    assert(shmb_watcher_add(&watcher, quiet) == 0);
    assert(shmb_watcher_add(&watcher, w) == 0);
    shmb_publish32(&slots[0].state, SHMB_STATE_OFFLINE);
    shmb_park_wake_always(&park[2].word);
    shmb_park_wake_always(&park[SHMB_PARK_INSTANCE].word);
    await(w);
    assert(!shmb_observe32(&quiet->fired));
    drop(w);
    w = waiter(0, 1); /* it is offline from the beginning, and was seen online */
    assert(shmb_watcher_add(&watcher, w) == 0);
    await(w);
    drop(w);
    drop(quiet);
    quiet = waiter(1, 1);
    assert(shmb_watcher_add(&watcher, quiet) == 0);
    shmb_publish32(&epoch, 3); /* the attachment changed: whoever does it rings all words */
    for (int i = SHMB_PARK_INSTANCE; i < 1024; i++)
        shmb_park_wake_always(&park[i].word);
    await(quiet);
    drop(quiet);
}
/* One who was taken off is looked at no more, whatever becomes of its memory. */
static void taken_off(void)
{
    for (int round = 0; round < 200; round++) {
        struct shmb_waiter *gone = waiter(0, 1), *w = waiter(1, 1);
        assert(shmb_watcher_add(&watcher, gone) == 0);
        assert(shmb_watcher_add(&watcher, w) == 0);
        shmb_watcher_remove(&watcher, gone);
        gone->watches[0].slot = NULL;
        gone->watches[0].end = NULL;
        gone->words[0] = NULL;
        flush_one(1);
        await(w);
        assert(!shmb_observe32(&gone->fired));
        drop(w);
        drop(gone);
    }
}

int main(void)
{
    signal(SIGALRM, lost);
    alarm(60);
    park = mmap(NULL, 1024 * sizeof *park, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    slots = mmap(NULL, MANY * sizeof *slots, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(park != MAP_FAILED && slots != MAP_FAILED);
    for (int no_waitv = 0; no_waitv < 2; no_waitv++) {
        begin(no_waitv);
        wakes(1);
        wakes(5);
        wakes(MANY);
        what_ends_a_wait();
        end();
        begin(no_waitv);
        taken_off();
        end();
    }
    begin(0); /* one that never had anything to do */
    end();
    return 0;
}
