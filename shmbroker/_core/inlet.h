/* An inlet: what a stream's socket gives, put where it belongs, without the GIL.
 *
 * One a connection, of one thread. Batches go by readv straight into the ring of their subscription's feed;
 * frames of any other kind are gathered and handed out, for the codec of wire/native, which says what is to be
 * done with them. The frames are drawn in docs/protocol.md; what is looked at here is their head, and what is
 * refused is what wire/native/stream_frames.py and stream_client.py refuse.
 *
 * Invariants: nothing waits for a reader: there is room for what credit lets come, and more of it is a fault;
 * a frame of batches counts when it is whole; at most SHMB_INLET_STAGE bytes are kept here.
 */
#ifndef SHMB_INLET_H
#define SHMB_INLET_H

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>

#include "feed.h"

#define SHMB_INLET_STAGE (64u << 10)
#define SHMB_INLET_BEHIND 4096u         /* read beyond a frame of batches: the next one's head, small frames */
#define SHMB_INLET_NUMBERS 1025u        /* subscriptions are 1 to 1,024 (limits.py, SUBSCRIPTIONS) */
#define SHMB_INLET_PASS (8u << 20)      /* bytes of one connection before others have their turn */
#define SHMB_FRAME_HEAD 12u
#define SHMB_FRAME_ENDS 24u             /* log start, high watermark, log end: in front of the batches */
#define SHMB_FRAME_BATCHES 17u
#define SHMB_FRAME_BATCHES_MOST (32u << 20)
#define SHMB_FRAME_OTHER_MOST ((8u << 10) + 8u)

enum shmb_inlet_event {
    SHMB_INLET_MORE = 0, /* nothing to see to: more must come */
    SHMB_INLET_FRAME,    /* a frame of another kind is whole: `from` to `from + frame_bytes` */
    SHMB_INLET_FAULT,    /* the feed of subscription `number` got what `fault` says; it is fed no more */
    SHMB_INLET_RUBBISH,  /* what came is no frame, or not one that may come */
    SHMB_INLET_END,      /* the connection ended: `fault` is its errno, 0 for an orderly end */
};

enum shmb_inlet_known { SHMB_INLET_NONE = 0, SHMB_INLET_LIVE, SHMB_INLET_ENDING };

struct shmb_inlet {
    struct shmb_feed *feeds[SHMB_INLET_NUMBERS];
    uint8_t known[SHMB_INLET_NUMBERS]; /* enum shmb_inlet_known */
    uint64_t heard;                    /* bytes that have come */
    uint32_t number;                   /* whose batches are coming, or whose feed failed */
    struct shmb_feed *feed;            /* where they go; NULL: nowhere, the subscription is ending */
    uint64_t size, left;               /* bytes of the frame's batches, and of them to come */
    uint32_t frame_bytes;
    int fault;
    size_t from, to;                   /* what is staged and not yet looked at */
    uint8_t stage[SHMB_INLET_STAGE];
};

static inline uint32_t shmb_inlet_be32(const uint8_t *p) { return (uint32_t)shmb_get_be32(p); }

/* Where what comes next belongs: returns how many places, in the order in which they fill. */
static inline int shmb_inlet_places(struct shmb_inlet *in, struct iovec v[2])
{
    int n = 0;
    if (in->from) {
        memmove(in->stage, in->stage + in->from, in->to - in->from);
        in->to -= in->from;
        in->from = 0;
    }
    if (in->left && in->feed)
        v[n++] = (struct iovec){shmb_feed_at(in->feed, in->feed->end + (in->size - in->left)), in->left};
    size_t room = SHMB_INLET_STAGE - in->to;
    v[n] = (struct iovec){in->stage + in->to, n && room > SHMB_INLET_BEHIND ? SHMB_INLET_BEHIND : room};
    return n + 1;
}

/* `n` bytes have come into those places. */
static inline void shmb_inlet_came(struct shmb_inlet *in, size_t n)
{
    in->heard += n;
    if (in->left && in->feed) {
        size_t mine = n < in->left ? n : (size_t)in->left;
        in->left -= mine;
        n -= mine;
    }
    in->to += n;
}

/* The staged part of the batches that are coming goes where they go. */
static inline void shmb_inlet_unstage(struct shmb_inlet *in)
{
    size_t n = in->to - in->from < in->left ? in->to - in->from : (size_t)in->left;
    if (in->feed && n)
        memcpy(shmb_feed_at(in->feed, in->feed->end + (in->size - in->left)), in->stage + in->from, n);
    in->from += n;
    in->left -= n;
}

static inline enum shmb_inlet_event shmb_inlet_fails(struct shmb_inlet *in, uint32_t number, int fault)
{
    in->feeds[number] = NULL;
    in->known[number] = SHMB_INLET_ENDING;
    in->number = number;
    in->fault = fault;
    return SHMB_INLET_FAULT;
}

/* The head of a frame of batches is there: makes room for them. */
static inline enum shmb_inlet_event shmb_inlet_begin(struct shmb_inlet *in, uint32_t number, uint32_t length)
{
    if (number >= SHMB_INLET_NUMBERS || in->known[number] == SHMB_INLET_NONE || length <= SHMB_FRAME_ENDS ||
        length > SHMB_FRAME_ENDS + SHMB_FRAME_BATCHES_MOST)
        return SHMB_INLET_RUBBISH;
    in->from += SHMB_FRAME_HEAD + SHMB_FRAME_ENDS;
    in->size = in->left = length - SHMB_FRAME_ENDS;
    in->number = number;
    in->feed = in->feeds[number];
    int fault = in->feed ? shmb_feed_room(in->feed, in->size) : 0;
    if (!fault)
        return SHMB_INLET_MORE;
    in->feed = NULL; /* the frame is skipped */
    return shmb_inlet_fails(in, number, fault);
}

/* Looks at what has come, up to the first that Python must see to. */
static enum shmb_inlet_event shmb_inlet_look(struct shmb_inlet *in)
{
    for (;;) {
        if (in->size) {
            shmb_inlet_unstage(in);
            if (in->left)
                return SHMB_INLET_MORE;
            struct shmb_feed *feed = in->feed;
            uint64_t size = in->size;
            in->size = 0;
            in->feed = NULL;
            int fault = feed ? shmb_feed_take(feed, size) : 0;
            if (fault)
                return shmb_inlet_fails(in, in->number, fault);
        }
        size_t ready = in->to - in->from;
        const uint8_t *p = in->stage + in->from;
        if (ready < SHMB_FRAME_HEAD)
            return SHMB_INLET_MORE;
        uint32_t length = shmb_inlet_be32(p + 8), number = shmb_inlet_be32(p + 4);
        if (p[1] | p[2] | p[3])
            return SHMB_INLET_RUBBISH;
        if (p[0] == SHMB_FRAME_BATCHES) {
            if (ready < SHMB_FRAME_HEAD + SHMB_FRAME_ENDS)
                return SHMB_INLET_MORE;
            enum shmb_inlet_event event = shmb_inlet_begin(in, number, length);
            if (event != SHMB_INLET_MORE)
                return event;
            continue;
        }
        if (length > SHMB_FRAME_OTHER_MOST)
            return SHMB_INLET_RUBBISH;
        if (ready < SHMB_FRAME_HEAD + length)
            return SHMB_INLET_MORE;
        in->frame_bytes = SHMB_FRAME_HEAD + length;
        return SHMB_INLET_FRAME;
    }
}

/* Reads from `fd`, which does not block, until there is nothing more, or something to see to. */
static enum shmb_inlet_event shmb_inlet_read(struct shmb_inlet *in, int fd)
{
    enum shmb_inlet_event event = shmb_inlet_look(in);
    for (size_t had = 0; event == SHMB_INLET_MORE && had < SHMB_INLET_PASS;) {
        struct iovec v[2];
        ssize_t n = readv(fd, v, shmb_inlet_places(in, v));
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (n <= 0) {
            in->fault = n < 0 ? errno : 0;
            return SHMB_INLET_END;
        }
        had += (size_t)n;
        shmb_inlet_came(in, (size_t)n);
        event = shmb_inlet_look(in);
    }
    return event;
}

/* The subscription's batches go nowhere any more, those of the frame that is coming too. */
static inline void shmb_inlet_drop(struct shmb_inlet *in, uint32_t number, enum shmb_inlet_known known)
{
    if (in->size && in->number == number)
        in->feed = NULL;
    in->feeds[number] = NULL;
    in->known[number] = (uint8_t)known;
}

/* Polls `p[0]`, which is not for reading here, and the sockets behind it; reads those that have an inlet.
 * Returns, with the `revents` of the last look, when one of them has something to see to (`events`), when `p[0]`
 * or a socket without an inlet has something, or one can be written; or at the deadline. */
static void shmb_inlets_wait(struct pollfd *p, struct shmb_inlet **inlets, int *events, int n, int64_t deadline_ns)
{
    for (int due = 0; !due;) {
        int64_t left = deadline_ns - shmb_now_ns();
        int ms = left <= 0 ? 0 : left > 1000000000 ? 1000 : (int)((left + 999999) / 1000000);
        for (int i = 0; i < n; i++)
            p[i].revents = 0;
        int ready = poll(p, (nfds_t)n, ms);
        due = left <= 0 || p[0].revents != 0;
        for (int i = 1; ready > 0 && i < n; i++) {
            if (p[i].revents && !inlets[i])
                due = 1;
            else if (p[i].revents & (POLLIN | POLLHUP | POLLERR)) {
                events[i] = shmb_inlet_read(inlets[i], p[i].fd);
                due |= events[i] != SHMB_INLET_MORE;
            }
            due |= (p[i].revents & POLLOUT) != 0;
        }
    }
}

#endif
