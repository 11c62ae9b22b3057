/* The client's half of an ingress ring against a writer in a thread: frames arrive whole and in order
 * across the ring's end, no more are in flight than there are places for receipts, a lone batch is
 * published at once, alternating partitions leave the ring to staging, waits end for every reason.
 *
 *   gcc -std=gnu11 -O2 -Wall -Wextra -Werror -D_GNU_SOURCE -I shmbroker/_core tests/native/test_ingress.c -lpthread
 */
#undef NDEBUG
#include <assert.h>
#include <stdio.h>

#include "producer_thread.h"

#define CAPACITY 65536u
#define PLACES 16u

static shmb_a32 park[SHMB_PARK_WORDS * SHMB_LINE / 4];
static uint8_t *ring, *receipts, *table;
static shmb_a32 epoch, stop, paused;
static shmb_a64 frames, records;

static void writer_step(int64_t *next_value)
{
    struct shmb_receipts_head *back = (struct shmb_receipts_head *)receipts;
    struct shmb_ingress_head *head = (struct shmb_ingress_head *)ring;
    uint64_t tail = shmb_peek(&back->tail);
    while (!shmb_observe32(&paused) && tail != shmb_observe(&head->head)) {
        const struct shmb_frame *f = (const struct shmb_frame *)(ring + SHMB_PAGE + (tail & (CAPACITY - 1)));
        const uint8_t *b = (const uint8_t *)(f + 1);
        assert(f->frame_seq == shmb_peek(&frames));
        assert(shmb_batch_validate(b, f->length, SHMB_BATCH_FROM_CLIENT) == 0);
        struct shmb_record_cursor c;
        struct shmb_record r;
        shmb_batch_cursor_init(&c, b);
        while (shmb_record_next(&c, &r) == SHMB_RECORD_OK) {
            int64_t value;
            memcpy(&value, r.value, 8);
            assert(value == next_value[f->slot]++);
            shmb_poke(&records, shmb_peek(&records) + 1);
        }
        struct shmb_slot *s = shmb_table_slot(table, f->slot);
        struct shmb_receipt *to = shmb_receipt_at(receipts, PLACES, f->frame_seq);
        memset(to, 0, sizeof *to);
        to->frame_seq = f->frame_seq;
        to->slot = f->slot;
        to->end_position = shmb_peek(&s->durable_position) + f->length;
        shmb_publish(&frames, f->frame_seq + 1);
        uint64_t end = to->end_position;
        shmb_publish(&back->receipts, f->frame_seq + 1);
        tail += shmb_frame_bytes(f->length);
        shmb_publish(&back->tail, tail);
        shmb_park_wake(park + shmb_park_ingress(1) * (SHMB_LINE / 4));
        shmb_publish(&s->durable_position, end);
        shmb_park_wake(park + shmb_park_durable(0, s->partition) * (SHMB_LINE / 4));
    }
}

static void *writer_life(void *unused)
{
    static int64_t next_value[4];
    shmb_a32 *bell = park + SHMB_PARK_WRITER * (SHMB_LINE / 4);
    (void)unused;
    while (!shmb_observe32(&stop)) {
        writer_step(next_value);
        shmb_park_arm(bell);
        if (shmb_observe32(&stop) ||
            (!shmb_observe32(&paused) && shmb_observe(&((struct shmb_ingress_head *)ring)->head) !=
                                             shmb_peek(&((struct shmb_receipts_head *)receipts)->tail)))
            continue;
        shmb_park_wait(bell, INT64_MAX); /* no timeout: a lost wake-up hangs the test */
    }
    return NULL;
}

static struct shmb_outlet *outlet_make(void)
{
    struct shmb_outlet *o = calloc(1, sizeof *o);
    char path[] = "/tmp/shmb-ingress-XXXXXX";
    int fd = mkstemp(path);
    assert(fd >= 0 && unlink(path) == 0 && ftruncate(fd, SHMB_PAGE + CAPACITY) == 0);
    ring = shmb_map_double(fd, SHMB_PAGE, CAPACITY, 1);
    assert(ring);
    close(fd);
    receipts = aligned_alloc(64, shmb_receipts_bytes(PLACES));
    table = aligned_alloc(64, shmb_table_bytes(4));
    memset(receipts, 0, shmb_receipts_bytes(PLACES));
    memset(table, 0, shmb_table_bytes(4));
    ((struct shmb_ingress_head *)ring)->capacity = CAPACITY;
    ((struct shmb_receipts_head *)receipts)->slots = PLACES;
    for (uint32_t i = 0; i < 4; i++) {
        shmb_table_slot(table, i)->partition = i;
        shmb_publish32(&shmb_table_slot(table, i)->state, SHMB_STATE_ONLINE);
    }
    shmb_poke32(&o->refs, 1);
    shmb_ingress_init(&o->ring, ring, receipts, park, 0, 1);
    o->inflight = calloc(PLACES, sizeof *o->inflight);
    return o;
}

static struct shmb_lane *lane_make(struct shmb_outlet *o, uint32_t slot)
{
    struct shmb_lane *l = calloc(1, sizeof *l);
    shmb_poke32(&l->refs, 1);
    l->out = o;
    shmb_outlet_hold(o);
    l->table = table;
    l->slot = shmb_table_slot(table, slot);
    l->slot_index = slot;
    l->durable_word = park + shmb_park_durable(0, slot) * (SHMB_LINE / 4);
    l->acks = SHMB_ACKS_DURABLE;
    l->batch_limit = CAPACITY / 2 - sizeof(struct shmb_frame);
    l->batch_want = 4096;
    l->linger_ticks = 3600ull * 1000000 * shmb_ticks_per_us;
    l->producer_id = 9;
    l->chain = shmb_chain_begin();
    return l;
}

static struct shmb_waiter forever(void)
{
    return (struct shmb_waiter){&epoch, shmb_peek32(&epoch), NULL, INT64_MAX, 0};
}

/* One record, blocking as the producer does. Returns its batch, with a Python reference. */
static struct shmb_pbatch *put(struct shmb_lane *l, int64_t value)
{
    struct shmb_item r = {.value = &value, .value_bytes = 8, .key_bytes = -1, .timestamp = 1};
    struct shmb_receipts_head *back = l->out->ring.back;
    struct shmb_waiter w = forever();
    for (;;) {
        struct shmb_pbatch *b = NULL;
        int32_t index;
        enum shmb_put after;
        uint64_t tail = shmb_observe(&back->tail), seen = shmb_observe(&back->receipts);
        enum shmb_put rc = shmb_lane_send(l, &r, &b, &index, &after);
        assert(l->out->ring.next_seq - l->out->ring.received < PLACES);
        if (rc == SHMB_PUT_OK)
            return b;
        assert(rc == SHMB_PUT_NO_ROOM);
        assert(shmb_wait_progress(back, l->out->ring.word, tail, seen, &w) == SHMB_WAIT_OK);
    }
}

static void settle(struct shmb_pbatch *b)
{
    struct shmb_look look;
    struct shmb_waiter w = forever();
    for (;;) {
        shmb_pbatch_look(b, 1, &look);
        if (shmb_pbatch_settled(b))
            return;
        if (look.state == SHMB_PB_OPEN)
            shmb_wait_progress(look.back, look.word, look.tail, look.receipts, &w);
        else if (look.state == SHMB_PB_PUBLISHED)
            shmb_wait_receipt(look.back, look.word, look.frame_seq, &w);
        else
            shmb_wait_durable(b->lane->slot, b->lane->durable_word, look.end_position, look.generation, &w);
    }
}

static void everything_arrives_in_order(struct shmb_lane **lanes, int64_t *sent, int count)
{
    struct shmb_pbatch *last[4] = {NULL};
    for (int i = 0; i < count; i++) {
        int p = i < count / 2 ? 0 : (i * 7 + i / 13) & 3; /* one partition, then alternating ones */
        struct shmb_pbatch *b = put(lanes[p], sent[p]++);
        if (last[p])
            shmb_pbatch_py_release(last[p]);
        last[p] = b;
    }
    for (int p = 0; p < 4; p++)
        if (last[p]) {
            settle(last[p]);
            assert(shmb_pbatch_state(last[p]) == SHMB_PB_DONE);
            shmb_pbatch_py_release(last[p]);
        }
    assert((int)shmb_peek(&records) == count);
}

static void a_lone_record_is_published_by_send_itself(struct shmb_lane *l, int64_t *sent)
{
    for (int i = 0; i < 50; i++) {
        struct timespec pause = {0, 20000};
        nanosleep(&pause, NULL);
        struct shmb_pbatch *b = put(l, (*sent)++);
        assert(shmb_pbatch_state(b) != SHMB_PB_OPEN);
        settle(b);
        shmb_pbatch_py_release(b);
    }
}

static void a_second_partition_moves_the_first_out_of_the_ring(struct shmb_lane **lanes, int64_t *sent)
{
    shmb_publish32(&paused, 1);
    lanes[0]->out->mixed = 0;
    struct shmb_pbatch *bell = put(lanes[0], sent[0]++); /* leaves at once */
    struct shmb_pbatch *a = put(lanes[0], sent[0]++);
    assert(lanes[0]->in_ring);
    struct shmb_pbatch *b = put(lanes[1], sent[1]++);
    assert(!lanes[0]->in_ring && !lanes[1]->in_ring && lanes[0]->out->open_count == 2);
    shmb_publish32(&paused, 0);
    shmb_park_wake_always(lanes[0]->out->ring.doorbell);
    settle(b);
    settle(a);
    settle(bell);
    assert(bell->base_sequence + 1 == a->base_sequence);
    shmb_pbatch_py_release(a);
    shmb_pbatch_py_release(b);
    shmb_pbatch_py_release(bell);
}

static void waits_end_for_each_reason(struct shmb_lane *l)
{
    struct shmb_receipts_head *back = l->out->ring.back;
    while (shmb_observe(&back->tail) != shmb_observe(&((struct shmb_ingress_head *)ring)->head))
        sched_yield(); /* the writer has come to the end: nothing moves but what is moved here */
    uint64_t tail = shmb_observe(&back->tail), seen = shmb_observe(&back->receipts);
    struct shmb_waiter w = forever();
    w.deadline_ns = shmb_now_ns() + 2000000;
    assert(shmb_wait_progress(back, l->out->ring.word, tail, seen, &w) == SHMB_WAIT_TIMEOUT);
    shmb_a32 closed = 0;
    w = forever();
    w.closed = &closed;
    shmb_publish32(&closed, 1);
    assert(shmb_wait_progress(back, l->out->ring.word, tail, seen, &w) == SHMB_WAIT_CLOSED);
    w = forever();
    shmb_publish32(&epoch, 1);
    assert(shmb_wait_receipt(back, l->out->ring.word, UINT64_MAX - 1, &w) == SHMB_WAIT_GONE);
    shmb_publish32(&epoch, 0);
    struct shmb_slot *s = l->slot;
    uint64_t end = shmb_peek(&s->durable_position) + 1;
    shmb_publish32(&s->state, SHMB_STATE_OFFLINE);
    w = forever();
    assert(shmb_wait_durable(s, l->durable_word, end, 0, &w) == SHMB_WAIT_OK);
    assert(shmb_durable_verdict(s, 0, end, 0) == -1 && shmb_durable_verdict(s, 0, end - 1, 0) == 1);
    assert(shmb_durable_verdict(s, 0, end - 1, 1ull << 32) == -1);
    shmb_publish32(&s->state, SHMB_STATE_ONLINE);
    assert(shmb_durable_verdict(s, 0, end, 0) == 0);
}

static void the_client_thread_seals_what_stays_open(struct shmb_outlet *o, struct shmb_lane *l, int64_t *sent)
{
    assert(shmb_tender_start(NULL) == 0);
    shmb_tender_add(o);
    for (int i = 0; i < 20; i++) {
        struct shmb_pbatch *b = NULL;
        for (int k = 0; k < 5; k++) {
            if (b)
                shmb_pbatch_py_release(b);
            b = put(l, (*sent)++);
        }
        shmb_tender_poke(o);
        while (shmb_pbatch_state(b) == SHMB_PB_OPEN)
            sched_yield();
        shmb_pbatch_py_release(b);
    }
    shmb_tender_remove(o);
    shmb_tender_stop();
}

int main(void)
{
    shmb_ticks_calibrate();
    struct shmb_outlet *o = outlet_make();
    pthread_t writer;
    pthread_create(&writer, NULL, writer_life, NULL);
    struct shmb_lane *lanes[4];
    int64_t sent[4] = {0};
    for (uint32_t i = 0; i < 4; i++)
        lanes[i] = lane_make(o, i);
    everything_arrives_in_order(lanes, sent, 200000);
    a_lone_record_is_published_by_send_itself(lanes[2], &sent[2]);
    a_second_partition_moves_the_first_out_of_the_ring(lanes, sent);
    the_client_thread_seals_what_stays_open(o, lanes[3], &sent[3]);
    waits_end_for_each_reason(lanes[1]);
    while (o->ring.received != o->ring.next_seq)
        shmb_outlet_drain(o); /* what is in flight keeps its lane */
    for (int i = 0; i < 4; i++) {
        shmb_lane_forget(lanes[i]);
        shmb_lane_release(lanes[i]);
    }
    shmb_publish32(&stop, 1);
    shmb_park_wake_always(o->ring.doorbell);
    pthread_join(writer, NULL);
    assert(shmb_peek32(&o->refs) == 1); /* nothing kept it */
    puts("ok");
    return 0;
}
