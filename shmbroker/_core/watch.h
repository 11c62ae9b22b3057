/* Waiting for partitions: what a consumer waits for, and one thread that waits for many consumers.
 *
 * A `shmb_watch` is one partition as its reader last saw it; a `shmb_waiter` is one consumer that waits.
 * A synchronous consumer sleeps by itself (reader_stream.pxi). Consumers of an event loop give their
 * waiters to a `shmb_watcher`, a plain pthread of this process that holds no GIL:
 *
 *     loop                                        watcher
 *     ----                                        -------
 *     lock; list the waiter; unlock               lock; arm all words of all waiters; fence;
 *     raise `control`, wake the watcher           unlist and fire those whose condition is true; unlock
 *                                                 some fired? write the eventfd, begin again
 *     eventfd readable: look who fired            futex_waitv on `control` and all armed words
 *
 * Why no wake-up is lost: words are armed before the conditions are looked at (park.h), and `control` is
 * read under the lock, so a waiter that is listed after the watcher has looked finds it changed, and
 * futex_waitv returns at once. A fired waiter is not looked at again: waiting once more lists it anew.
 *
 * Everything a waiter points to is looked at under the lock alone, and until it is unlisted; so after
 * shmb_watcher_remove its memory may go. Between unlocking and sleeping only addresses of words are used:
 * one that is unmapped meanwhile makes the system call fail, and the watcher begins again.
 */
#ifndef SHMB_WATCH_H
#define SHMB_WATCH_H

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

#include "layout.h"
#include "park.h"

struct shmb_watch {
    const struct shmb_slot *slot;
    const shmb_a64 *end; /* what must pass `position`: the durable or the log end */
    int64_t position;
    uint64_t generation; /* this and the next two: as the reader saw them last */
    uint32_t slot_epoch;
    uint32_t state;
};

static inline int shmb_watch_ready(const struct shmb_watch *w, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((int64_t)shmb_observe(w[i].end) > w[i].position ||
            shmb_observe32(&w[i].slot->state) != w[i].state ||
            shmb_observe(&w[i].slot->generation) != w[i].generation ||
            shmb_observe32(&w[i].slot->slot_epoch) != w[i].slot_epoch)
            return 1;
    return 0;
}

struct shmb_waiter {
    struct shmb_waiter *next;
    shmb_a32 fired;
    int listed; /* guarded by the watcher's lock */
    size_t n;   /* of watches and of words */
    struct shmb_watch *watches;
    shmb_a32 **words;
    shmb_a32 *instance; /* the word that every append and flush rings */
    shmb_a32 *epoch;    /* of the attachment: a wait ends when it is no longer `seen` */
    uint32_t seen;
    shmb_a32 *stop; /* a wait ends when it is not 0 */
};

static inline int shmb_waiter_ready(const struct shmb_waiter *w)
{
    return shmb_observe32(w->epoch) != w->seen || shmb_observe32(w->stop) != 0 ||
           shmb_watch_ready(w->watches, w->n);
}

struct shmb_watcher {
    pthread_mutex_t lock; /* never held with a wait for the GIL */
    pthread_t thread;
    int started;
    int stopping;
    int eventfd;
    int no_waitv;      /* this kernel is older than 5.16: one word at a time */
    shmb_a32 control;  /* raised at each change of what follows; a futex of this process */
    shmb_a32 *only;    /* without futex_waitv: the word it sleeps on; NULL: `control` */
    struct shmb_waiter *waiters;
};

/* Adds `word` unless it is there; returns the new n, or 0 when there is no room. */
static inline unsigned shmb_waitv_add(struct shmb_waitv *v, unsigned n, shmb_a32 *word)
{
    for (unsigned i = 1; i < n; i++)
        if (v[i].uaddr == (uint64_t)(uintptr_t)word)
            return n;
    if (n == SHMB_WAITV_MAX)
        return 0;
    v[n] = shmb_waitv_on(word, shmb_park_arm_unfenced(word));
    return n + 1;
}

/* Under the lock: arms what the listed waiters wait on, without the fence, behind `control`, which is
 * v[0]. Past SHMB_WAITV_MAX words the instance word stands for all. */
static unsigned shmb_watcher_arm(struct shmb_watcher *s, struct shmb_waitv *v)
{
    unsigned n = 1;
    v[0] = shmb_waitv_on(&s->control, shmb_observe32(&s->control));
    for (struct shmb_waiter *w = s->waiters; w && n && !s->no_waitv; w = w->next) {
        for (size_t i = 0; i < w->n && n; i++)
            n = shmb_waitv_add(v, n, w->words[i]);
        if (!w->n) /* no partition (yet): `stop` is all there is to hear of */
            n = shmb_waitv_add(v, n, w->instance);
    }
    if (n && !s->no_waitv)
        return n;
    n = 1;
    for (struct shmb_waiter *w = s->waiters; w && n; w = w->next)
        n = shmb_waitv_add(v, n, w->instance); /* one a park object: two or three at the very most */
    return n ? n : SHMB_WAITV_MAX;
}

/* Under the lock, after the fence: fires and unlists whoever need not wait. */
static int shmb_watcher_fire(struct shmb_watcher *s)
{
    int fired = 0;
    for (struct shmb_waiter **at = &s->waiters, *w; (w = *at);)
        if (shmb_waiter_ready(w)) {
            *at = w->next;
            w->listed = 0;
            shmb_publish32(&w->fired, 1);
            fired = 1;
        } else
            at = &w->next;
    return fired;
}

static void *shmb_watcher_life(void *self)
{
    struct shmb_watcher *s = (struct shmb_watcher *)self;
    struct shmb_waitv v[SHMB_WAITV_MAX];
    for (;;) {
        pthread_mutex_lock(&s->lock);
        if (s->stopping) {
            pthread_mutex_unlock(&s->lock);
            return NULL;
        }
        unsigned n = shmb_watcher_arm(s, v);
        shmb_fence_full();
        int fired = shmb_watcher_fire(s);
        s->only = s->no_waitv && n > 1 ? (shmb_a32 *)(uintptr_t)v[1].uaddr : NULL;
        int one = s->no_waitv ? (n > 1 ? 1 : 0) : -1;
        pthread_mutex_unlock(&s->lock);
        if (fired) {
            uint64_t more = 1;
            if (write(s->eventfd, &more, sizeof more) < 0) {
                /* EAGAIN: it is readable as it is */
            }
            continue;
        }
        if (one >= 0)
            shmb_park_wait_value((shmb_a32 *)(uintptr_t)v[one].uaddr, (uint32_t)v[one].val, INT64_MAX);
        else if (shmb_park_wait_values(v, n, INT64_MAX) == ENOSYS)
            s->no_waitv = 1; /* read by this thread only */
    }
}

/* Under the lock, after a change: whatever the watcher sleeps on, it looks again. */
static void shmb_watcher_ring(struct shmb_watcher *s)
{
    atomic_fetch_add_explicit(&s->control, 1, memory_order_release);
    syscall(SYS_futex, &s->control, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    if (s->only)
        shmb_park_wake_always(s->only);
}

static int shmb_watcher_init(struct shmb_watcher *s, int eventfd)
{
    s->eventfd = eventfd;
    return pthread_mutex_init(&s->lock, NULL);
}

/* Lists a waiter whose fields are set; starts the thread at the first. 0, or an errno. */
static int shmb_watcher_add(struct shmb_watcher *s, struct shmb_waiter *w)
{
    int error = 0;
    pthread_mutex_lock(&s->lock);
    if (!s->started) {
        sigset_t all, before; /* signals are for the program's threads */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&s->thread, NULL, shmb_watcher_life, s);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        s->started = error == 0;
    }
    if (!error) {
        shmb_poke32(&w->fired, 0);
        w->listed = 1;
        w->next = s->waiters;
        s->waiters = w;
        shmb_watcher_ring(s);
    }
    pthread_mutex_unlock(&s->lock);
    return error;
}

/* After this nothing that `w` points to is looked at any more. */
static void shmb_watcher_remove(struct shmb_watcher *s, struct shmb_waiter *w)
{
    pthread_mutex_lock(&s->lock);
    for (struct shmb_waiter **at = &s->waiters; w->listed && *at; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            w->listed = 0;
            break;
        }
    pthread_mutex_unlock(&s->lock);
}

/* Ends the thread and waits for it; no waiter fires any more. */
static void shmb_watcher_stop(struct shmb_watcher *s)
{
    pthread_mutex_lock(&s->lock);
    s->stopping = 1;
    shmb_watcher_ring(s);
    pthread_mutex_unlock(&s->lock);
    if (s->started)
        pthread_join(s->thread, NULL);
    s->started = 0;
    pthread_mutex_destroy(&s->lock);
}

#endif
