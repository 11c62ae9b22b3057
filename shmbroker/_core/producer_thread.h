/* The client thread: seals open batches and takes receipts while the program does something else.
 *
 * One a process, a plain pthread without the GIL, started with the first outlet, joined at exit, and not
 * there after a fork. It looks at every outlet once an interval (at most 1 ms) while batches are open, and
 * sleeps on a word of this process after 100 ms without any; whoever opens a batch then rings it:
 *
 *     send                                     client thread
 *     open_count = 1; poke = 1 (lock)          word = ARMED; seq_cst fence
 *     seq_cst fence; word == ARMED? ring it    any open_count != 0? go on; else FUTEX_WAIT
 *
 * (park.h argues why one of the two sees the other.) So send makes no system call while it polls.
 *
 * Batches that must be compressed need cramjam and so the GIL: the thread calls back into Python for
 * them, holding no lock. The list of outlets is guarded by a lock that is never held with a wait for the
 * GIL, so a thread that holds the GIL may take it.
 */
#ifndef SHMB_PRODUCER_THREAD_H
#define SHMB_PRODUCER_THREAD_H

#include <pthread.h>
#include <signal.h>

#include "producer_lanes.h"

struct shmb_tender {
    shmb_a32 lock;               /* guards `outlets` */
    shmb_a32 word;               /* park word of this process */
    shmb_a32 stop;
    uint32_t started;            /* the GIL's */
    struct shmb_outlet *outlets;
    shmb_a32 interval_us;        /* between two looks; the least linger of all producers, halved */
    void (*python)(void);        /* seals what needs the GIL; takes it by itself */
    pthread_t thread;
};
static struct shmb_tender shmb_tender = {.interval_us = 1000};

/* Raised in each forked child: objects remember the number they were made under. */
static uint32_t shmb_fork_generation;

#define SHMB_TENDER_IDLE_NS 100000000

static void shmb_tender_forked(void)
{
    shmb_fork_generation++;
    shmb_tender.started = 0;
    shmb_tender.outlets = NULL;
    shmb_poke32(&shmb_tender.lock, 0);
    shmb_poke32(&shmb_tender.word, 0);
}

/* After a record was put, outside of the lock: the thread must learn of a batch that stayed open. */
static inline void shmb_tender_poke(struct shmb_outlet *o)
{
    if (__builtin_expect(o->poke, 0)) {
        o->poke = 0;
        if (o->open_count)
            shmb_park_wake(&shmb_tender.word); /* begins with the fence */
    }
}

/* Seals what is due in one outlet. Returns 1 while it has open batches; *python: some need the GIL. */
static int shmb_tend(struct shmb_outlet *o, int *python)
{
    if (!o->open_count || !shmb_trylock(&o->lock))
        return o->open_count != 0;
    shmb_outlet_drain(o);
    uint64_t now = shmb_ticks(), soon = 1000 * shmb_ticks_per_us;
    for (struct shmb_lane *l = o->open, *next; l; l = next) {
        next = l->next_open;
        if (l->open->count == 0)
            continue;
        if (!shmb_ingress_dry(&o->ring) && now - l->opened_ticks + soon < l->linger_ticks)
            continue;
        if (shmb_lane_seal(l) == SHMB_PUT_COMPRESS)
            *python = 1;
    }
    int open = o->open_count != 0;
    shmb_unlock(&o->lock);
    return open;
}

static int shmb_tend_all(int *python)
{
    int open = 0;
    shmb_lock(&shmb_tender.lock);
    for (struct shmb_outlet *o = shmb_tender.outlets; o; o = o->next)
        open |= shmb_tend(o, python);
    shmb_unlock(&shmb_tender.lock);
    return open;
}
static int shmb_tend_needed(void)
{
    int open = 0;
    shmb_lock(&shmb_tender.lock);
    for (struct shmb_outlet *o = shmb_tender.outlets; o; o = o->next)
        open |= *(volatile uint32_t *)&o->open_count != 0;
    shmb_unlock(&shmb_tender.lock);
    return open;
}

static void *shmb_tender_life(void *unused)
{
    (void)unused;
    int64_t busy_ns = shmb_now_ns();
    while (!shmb_observe32(&shmb_tender.stop)) {
        int python = 0, open = shmb_tend_all(&python);
        if (python && shmb_tender.python)
            shmb_tender.python();
        int64_t now_ns = shmb_now_ns();
        if (open)
            busy_ns = now_ns;
        if (now_ns - busy_ns < SHMB_TENDER_IDLE_NS) {
            struct timespec pause = {0, (long)shmb_peek32(&shmb_tender.interval_us) * 1000};
            nanosleep(&pause, NULL);
            continue;
        }
        shmb_park_arm(&shmb_tender.word);
        if (shmb_observe32(&shmb_tender.stop) || shmb_tend_needed())
            continue;
        shmb_park_wait(&shmb_tender.word, INT64_MAX);
        busy_ns = shmb_now_ns();
    }
    return NULL;
}

/* Under the GIL. 0, or an errno. */
static int shmb_tender_start(void (*python)(void))
{
    static int at_fork;
    if (shmb_tender.started)
        return 0;
    if (!at_fork) {
        pthread_atfork(NULL, NULL, shmb_tender_forked);
        at_fork = 1;
    }
    shmb_tender.python = python;
    shmb_poke32(&shmb_tender.stop, 0);
    sigset_t all, before; /* signals are for the program's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&shmb_tender.thread, NULL, shmb_tender_life, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    shmb_tender.started = error == 0;
    return error;
}
/* Without the GIL: the thread may be waiting for it. */
static void shmb_tender_stop(void)
{
    if (!shmb_tender.started)
        return;
    shmb_publish32(&shmb_tender.stop, 1);
    shmb_park_wake_always(&shmb_tender.word);
    pthread_join(shmb_tender.thread, NULL);
    shmb_tender.started = 0;
}

static void shmb_tender_add(struct shmb_outlet *o)
{
    shmb_lock(&shmb_tender.lock);
    o->next = shmb_tender.outlets;
    shmb_tender.outlets = o;
    shmb_unlock(&shmb_tender.lock);
}
static void shmb_tender_remove(struct shmb_outlet *o)
{
    shmb_lock(&shmb_tender.lock);
    for (struct shmb_outlet **at = &shmb_tender.outlets; *at; at = &(*at)->next)
        if (*at == o) {
            *at = o->next;
            break;
        }
    shmb_unlock(&shmb_tender.lock);
}

#endif
