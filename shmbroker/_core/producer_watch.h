/* Watches: who wants to be told what became of a batch, or of room in a ring, without waiting for it.
 *
 *   outlet ── watched lanes ── watched batches (by age) ── watches ──► mailbox ── eventfd ──► its owner
 *      └───── room watches ───────────────────────────────────────────────┘   (a loop, or the callback thread)
 *
 * The client thread (producer_thread.h) sleeps on what the watched lanes wait for. A watch is mailed once: when
 * its batch is settled, by whichever thread finds that, or when waiting has become vain (enum shmb_why). The
 * owner of a mailbox is told by 8 bytes in its eventfd when something has come into an empty one, takes all
 * that is there, and frees it; `object` is its own reference, counted under the GIL.
 *
 * Locking: lists of watches belong to the outlet's lock, a mailbox to its own, taken inside of the outlet's.
 */
#ifndef SHMB_PRODUCER_WATCH_H
#define SHMB_PRODUCER_WATCH_H

#include "producer_state.h"

/* ---- Mailboxes -------------------------------------------------------------------------------- */

static inline struct shmb_mailbox *shmb_mailbox_new(int fd)
{
    struct shmb_mailbox *m = (struct shmb_mailbox *)calloc(1, sizeof *m);
    if (m) {
        m->fd = fd;
        shmb_poke32(&m->refs, 1);
    }
    return m;
}
static inline void shmb_mailbox_release(struct shmb_mailbox *m)
{
    if (atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) == 1) {
        close(m->fd);
        free(m);
    }
}
static inline struct shmb_watch *shmb_watch_new(struct shmb_mailbox *to, void *object)
{
    struct shmb_watch *w = (struct shmb_watch *)calloc(1, sizeof *w);
    if (w) {
        w->to = to;
        w->object = object;
        atomic_fetch_add_explicit(&to->refs, 1, memory_order_relaxed);
    }
    return w;
}
static inline void shmb_watch_free(struct shmb_watch *w)
{
    shmb_mailbox_release(w->to);
    free(w);
}
static inline void shmb_watch_mail(struct shmb_watch *w, enum shmb_why why)
{
    struct shmb_mailbox *m = w->to;
    w->why = why;
    w->next = NULL;
    shmb_lock(&m->lock);
    int first = m->first == NULL;
    if (first)
        m->first = w;
    else
        m->last->next = w;
    m->last = w;
    shmb_unlock(&m->lock);
    if (first) {
        uint64_t one = 1;
        ssize_t ignored = write(m->fd, &one, sizeof one); /* never blocks: the counter can't get near its end */
        (void)ignored;
    }
}
/* All that has come, oldest first; the caller frees each. */
static inline struct shmb_watch *shmb_mailbox_take(struct shmb_mailbox *m)
{
    shmb_lock(&m->lock);
    struct shmb_watch *w = m->first;
    m->first = m->last = NULL;
    shmb_unlock(&m->lock);
    return w;
}

/* ---- Batches; under the outlet's lock --------------------------------------------------------- */

static inline void shmb_lane_watch_begin(struct shmb_outlet *o, struct shmb_lane *l)
{
    l->prev_watched = NULL;
    l->next_watched = o->watched;
    if (o->watched)
        o->watched->prev_watched = l;
    o->watched = l;
}
static inline void shmb_lane_watch_end(struct shmb_outlet *o, struct shmb_lane *l)
{
    if (l->prev_watched)
        l->prev_watched->next_watched = l->next_watched;
    else
        o->watched = l->next_watched;
    if (l->next_watched)
        l->next_watched->prev_watched = l->prev_watched;
}
/* Hangs `w` on an unsettled batch. Returns 1 when the client thread must learn that the lane is watched. */
static inline int shmb_pbatch_watch(struct shmb_pbatch *b, struct shmb_watch *w)
{
    struct shmb_lane *l = b->lane;
    int first = l->watched == NULL;
    w->next = b->watches;
    b->watches = w;
    if (w->next)
        return 0;
    struct shmb_pbatch *before = l->watched_last; /* by age, so that the first one's deadline comes first */
    while (before && before->born_ns > b->born_ns)
        before = before->watched_prev;
    b->watched_prev = before;
    b->watched_next = before ? before->watched_next : l->watched;
    if (b->watched_next)
        b->watched_next->watched_prev = b;
    else
        l->watched_last = b;
    if (before)
        before->watched_next = b;
    else
        l->watched = b;
    if (first)
        shmb_lane_watch_begin(l->out, l);
    return l->watched == b; /* the first one, or with an earlier deadline */
}
static inline void shmb_pbatch_unlist(struct shmb_pbatch *b)
{
    struct shmb_lane *l = b->lane;
    if (b->watched_prev)
        b->watched_prev->watched_next = b->watched_next;
    else
        l->watched = b->watched_next;
    if (b->watched_next)
        b->watched_next->watched_prev = b->watched_prev;
    else
        l->watched_last = b->watched_prev;
    b->watched_prev = b->watched_next = NULL;
    if (!l->watched)
        shmb_lane_watch_end(l->out, l);
}
/* Mails all watches of a batch, in the order in which they came. */
static __attribute__((noinline, unused)) void shmb_pbatch_tell(struct shmb_pbatch *b, enum shmb_why why)
{
    struct shmb_watch *w = b->watches, *next, *in_order = NULL;
    b->watches = NULL;
    shmb_pbatch_unlist(b);
    for (; w; w = next) {
        next = w->next;
        w->next = in_order;
        in_order = w;
    }
    for (w = in_order; w; w = next) {
        next = w->next;
        shmb_watch_mail(w, why);
    }
}
/* Takes back the watch of `object`, or NULL when it has been mailed. */
static inline struct shmb_watch *shmb_pbatch_unwatch(struct shmb_pbatch *b, const void *object)
{
    for (struct shmb_watch **at = &b->watches; *at; at = &(*at)->next)
        if ((*at)->object == object) {
            struct shmb_watch *w = *at;
            *at = w->next;
            if (!b->watches)
                shmb_pbatch_unlist(b);
            return w;
        }
    return NULL;
}
/* At every place where a batch becomes settled; before its reference is given up. */
static inline void shmb_pbatch_settle_watches(struct shmb_pbatch *b)
{
    if (__builtin_expect(b->watches != NULL, 0))
        shmb_pbatch_tell(b, SHMB_WHY_SETTLED);
}
/* Ends all watches of a lane that is not going to settle by itself. */
static inline void shmb_lane_tell(struct shmb_lane *l, enum shmb_why why)
{
    while (l->watched)
        shmb_pbatch_tell(l->watched, why);
}

/* ---- Room; under the outlet's lock ------------------------------------------------------------ */

static inline int shmb_outlet_progressed(const struct shmb_outlet *o)
{
    return shmb_observe(&o->ring.back->tail) != o->room_tail ||
           shmb_observe(&o->ring.back->receipts) != o->room_receipts || shmb_peek32(&o->ring.back->detached);
}
/* `tail` and `receipts`: seen before the attempt that found no room. */
static inline void shmb_outlet_watch_room(struct shmb_outlet *o, struct shmb_watch *w, uint64_t tail,
                                          uint64_t receipts)
{
    if (!o->room) {
        o->room_tail = tail;
        o->room_receipts = receipts;
    } else if (tail != o->room_tail || receipts != o->room_receipts) {
        o->room_tail = UINT64_MAX; /* one of the two has progress to see already: all look again */
    }
    w->next = o->room;
    o->room = w;
}
static inline void shmb_outlet_tell_room(struct shmb_outlet *o, enum shmb_why why)
{
    struct shmb_watch *in_order = NULL;
    for (struct shmb_watch *w = o->room, *next; w; w = next) {
        next = w->next;
        w->next = in_order;
        in_order = w;
    }
    o->room = NULL;
    for (struct shmb_watch *w = in_order, *next; w; w = next) {
        next = w->next;
        shmb_watch_mail(w, why);
    }
}
/* Takes back the room watch of `object`, or NULL when it has been mailed. */
static inline struct shmb_watch *shmb_outlet_unwatch_room(struct shmb_outlet *o, const void *object)
{
    for (struct shmb_watch **at = &o->room; *at; at = &(*at)->next)
        if ((*at)->object == object) {
            struct shmb_watch *w = *at;
            *at = w->next;
            return w;
        }
    return NULL;
}

#endif
