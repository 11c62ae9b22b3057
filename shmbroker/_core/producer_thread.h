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
 * While something is watched (producer_watch.h) it sleeps on the words that the writer rings for it besides: of
 * each ring with watches, and of durability for each watched lane, so a batch's way from published to durable
 * needs no other words than those armed before it was last looked at. While it polls `watch_word` stands in for
 * `word`: rung when a lane begins to be watched, or moves, but not by send.
 *
 * Batches that must be compressed need cramjam and so the GIL: the thread calls back into Python for
 * them, holding no lock; and for a ring that its writer has dropped while it is watched. The list of outlets is
 * guarded by a lock that is never held with a wait for the GIL, so a thread that holds the GIL may take it.
 */
#ifndef SHMB_PRODUCER_THREAD_H
#define SHMB_PRODUCER_THREAD_H

#include <pthread.h>
#include <signal.h>

#include "producer_relay.h"

struct shmb_tender {
    shmb_a32 lock;               /* guards `outlets` */
    shmb_a32 word;               /* park word of this process */
    shmb_a32 stop;
    shmb_a32 watch_word;         /* the same while it polls */
    uint32_t started;            /* the GIL's */
    struct shmb_outlet *outlets;
    shmb_a32 interval_us;        /* between two looks; the least linger of all producers, halved */
    shmb_a32 again_us;           /* until another look where somebody was busy; no more than that */
    void (*python)(int work);    /* does what needs the GIL, SHMB_TENDER_*; takes it by itself */
    pthread_t thread;
};
static struct shmb_tender shmb_tender = {.interval_us = 1000, .again_us = 1000};

/* Raised in each forked child: objects remember the number they were made under. */
static uint32_t shmb_fork_generation;

#define SHMB_TENDER_IDLE_NS 100000000
enum { SHMB_TENDER_COMPRESS = 1, SHMB_TENDER_DROPPED = 2 };

static void shmb_tender_forked(void)
{
    shmb_fork_generation++;
    shmb_tender.started = 0;
    shmb_tender.outlets = NULL;
    shmb_poke32(&shmb_tender.lock, 0);
    shmb_poke32(&shmb_tender.word, 0);
    shmb_poke32(&shmb_tender.watch_word, 0);
}

/* Once, before anything that remembers the number is made. */
static __attribute__((unused)) void shmb_forks_count(void) { pthread_atfork(NULL, NULL, shmb_tender_forked); }

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
            *python |= SHMB_TENDER_COMPRESS;
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

/* ---- What is watched -------------------------------------------------------------------------- */

/* A lane has begun to be watched, or has moved; outside of the outlet's lock. */
static inline void shmb_tender_stir(void)
{
    shmb_park_wake(&shmb_tender.watch_word);
    shmb_park_wake(&shmb_tender.word);
}

#define SHMB_TENDER_WORDS SHMB_WAITV_MAX
#define SHMB_TENDER_LANES 96 /* more: the word of the instance instead of one a lane */
struct shmb_sleep {
    unsigned n;
    struct shmb_waitv words[SHMB_TENDER_WORDS];
};
static inline void shmb_sleep_on(struct shmb_sleep *s, shmb_a32 *word)
{
    if (s->n == SHMB_TENDER_WORDS) /* 62 writers have no more rings; lanes are bounded below */
        return;
    s->words[s->n++] = shmb_waitv_on(word, shmb_park_arm_unfenced(word));
}
static inline int shmb_outlet_is_watched(const struct shmb_outlet *o)
{
    return *(struct shmb_lane *const volatile *)&o->watched || *(struct shmb_watch *const volatile *)&o->room;
}
/* Returns 0 when somebody is busy in it. Nobody waits for the lock here: send_many() holds it most of the
 * time and would wake us at each batch; it takes receipts and mails watches itself. */
static int shmb_sleep_on_outlet(struct shmb_sleep *s, struct shmb_outlet *o)
{
    if (!shmb_outlet_is_watched(o))
        return 1;
    if (!shmb_trylock(&o->lock))
        return 0;
    shmb_sleep_on(s, o->ring.word);
    if (s->n < SHMB_TENDER_LANES)
        for (struct shmb_lane *l = o->watched; l && s->n < SHMB_TENDER_LANES; l = l->next_watched)
            if (l->acks == SHMB_ACKS_DURABLE)
                shmb_sleep_on(s, l->durable_word);
    if (s->n >= SHMB_TENDER_LANES) {
        shmb_a32 *park = o->ring.word - shmb_park_ingress(o->ring.id) * (SHMB_LINE / sizeof *park);
        shmb_sleep_on(s, park + SHMB_PARK_INSTANCE * (SHMB_LINE / sizeof *park));
    }
    shmb_unlock(&o->lock);
    return 1;
}

/* Looks at what is watched in one outlet. Returns 1 when the words to sleep on have to be asked again.
 * *busy: somebody else is in it. */
static int shmb_watch_look(struct shmb_outlet *o, int64_t *deadline_ns, int *python, int *busy)
{
    if (!shmb_outlet_is_watched(o))
        return 0;
    if (!shmb_trylock(&o->lock)) {
        *busy = 1;
        return 0;
    }
    int moved = shmb_outlet_drain(o) != 0;
    int64_t now_ns = shmb_coarse_ns();
    for (struct shmb_lane *l = o->watched, *next; l; l = next) {
        next = l->next_watched;
        shmb_lane_settle(l); /* may take the lane from the list */
        while (l->watched && now_ns - l->watched->born_ns >= l->delivery_ns)
            shmb_pbatch_tell(l->watched, SHMB_WHY_LATE);
        if (l->watched && l->watched->born_ns + l->delivery_ns < *deadline_ns)
            *deadline_ns = l->watched->born_ns + l->delivery_ns + 5000000; /* the coarse clock's step */
    }
    if (o->room && shmb_outlet_progressed(o)) {
        shmb_outlet_tell_room(o, SHMB_WHY_SETTLED);
        moved = 1;
    }
    if (o->watched && shmb_peek32(&o->ring.back->detached) && !o->dropped) {
        o->dropped = 1;
        *python |= SHMB_TENDER_DROPPED;
    }
    shmb_unlock(&o->lock);
    return moved;
}

/* Sleeps until there may be something to do. `poll`: batches were open lately, so at most an interval.
 * Returns 1 when somebody opened a batch in a longer sleep. */
static int shmb_tender_sleep(int poll)
{
    struct shmb_sleep s;
    int64_t deadline_ns = INT64_MAX, until_ns = INT64_MAX;
    int python = 0, moved = 0, busy = 0;
    s.n = 0;
    shmb_a32 *own = poll ? &shmb_tender.watch_word : &shmb_tender.word;
    shmb_sleep_on(&s, own);
    shmb_fence_full(); /* before looking at what is watched at all */
    shmb_lock(&shmb_tender.lock);
    for (struct shmb_outlet *o = shmb_tender.outlets; o; o = o->next)
        busy |= !shmb_sleep_on_outlet(&s, o);
    shmb_fence_full(); /* W2 of all: what is looked at now has been armed */
    for (struct shmb_outlet *o = shmb_tender.outlets; o; o = o->next)
        moved |= shmb_watch_look(o, &deadline_ns, &python, &busy);
    shmb_unlock(&shmb_tender.lock);
    if (python && shmb_tender.python)
        shmb_tender.python(python);
    if (moved || python || shmb_observe32(&shmb_tender.stop) || (!poll && shmb_tend_needed()))
        return 0;
    if (poll || busy)
        until_ns = shmb_now_ns() +
                   (int64_t)shmb_peek32(busy ? &shmb_tender.again_us : &shmb_tender.interval_us) * 1000;
    if (deadline_ns < until_ns)
        until_ns = deadline_ns;
    if (s.n == 1) {
        shmb_park_wait_value(own, (uint32_t)s.words[0].val, until_ns);
    } else if (shmb_park_wait_values(s.words, s.n, until_ns) == ENOSYS) {
        struct timespec pause = {0, 1000000}; /* before Linux 5.16 there is no sleeping on several words */
        nanosleep(&pause, NULL);
    }
    return !poll && shmb_peek32(own) != (uint32_t)s.words[0].val;
}

static void *shmb_tender_life(void *unused)
{
    (void)unused;
    int64_t busy_ns = shmb_now_ns();
    while (!shmb_observe32(&shmb_tender.stop)) {
        int python = 0, open = shmb_tend_all(&python);
        if (python && shmb_tender.python)
            shmb_tender.python(python);
        int64_t now_ns = shmb_now_ns();
        if (open)
            busy_ns = now_ns;
        if (shmb_tender_sleep(now_ns - busy_ns < SHMB_TENDER_IDLE_NS))
            busy_ns = shmb_now_ns();
    }
    return NULL;
}

/* Under the GIL. 0, or an errno. */
static int shmb_tender_start(void (*python)(int work))
{
    if (shmb_tender.started)
        return 0;
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
    shmb_park_wake_always(&shmb_tender.watch_word);
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
