/* A bounded queue of small numbers for many producers and consumers inside one process, without locks.
 *
 * Source: Dmitry Vyukov's bounded MPMC queue. Each cell carries a sequence number that says whose turn
 * it is: `ticket` = free for the push of that ticket, `ticket + 1` = filled for the pop of that ticket.
 * Capacity is a power of two and at least the number of things that can be queued at once, each of them at most
 * once, so a push never finds it full.
 */
#ifndef SHMB_MPMC_H
#define SHMB_MPMC_H

#include <stdlib.h>

#include "atomics.h"

struct shmb_cell {
    shmb_a64 sequence;
    uint64_t value;
};
struct shmb_queue {
    struct shmb_cell *cells;
    uint64_t mask;
    uint8_t fill0[48];
    shmb_a64 push_ticket;
    uint8_t fill1[56];
    shmb_a64 pop_ticket;
    uint8_t fill2[56];
};

static inline int shmb_queue_init(struct shmb_queue *q, uint64_t capacity)
{
    q->cells = calloc(capacity, sizeof *q->cells);
    if (!q->cells)
        return -1;
    q->mask = capacity - 1;
    for (uint64_t i = 0; i < capacity; i++)
        shmb_poke(&q->cells[i].sequence, i);
    shmb_poke(&q->push_ticket, 0);
    shmb_poke(&q->pop_ticket, 0);
    return 0;
}

/* 1: queued; 0: full. */
static inline int shmb_queue_push(struct shmb_queue *q, uint64_t value)
{
    uint64_t ticket = shmb_peek(&q->push_ticket);
    for (;;) {
        struct shmb_cell *cell = &q->cells[ticket & q->mask];
        int64_t turn = (int64_t)(shmb_observe(&cell->sequence) - ticket);
        if (turn == 0) {
            if (atomic_compare_exchange_weak_explicit(&q->push_ticket, &ticket, ticket + 1,
                                                      memory_order_relaxed, memory_order_relaxed)) {
                cell->value = value;
                shmb_publish(&cell->sequence, ticket + 1);
                return 1;
            }
        } else if (turn < 0) {
            return 0;
        } else {
            ticket = shmb_peek(&q->push_ticket);
        }
    }
}

/* 1 and the value, or 0: empty. */
static inline int shmb_queue_pop(struct shmb_queue *q, uint64_t *value)
{
    uint64_t ticket = shmb_peek(&q->pop_ticket);
    for (;;) {
        struct shmb_cell *cell = &q->cells[ticket & q->mask];
        int64_t turn = (int64_t)(shmb_observe(&cell->sequence) - (ticket + 1));
        if (turn == 0) {
            if (atomic_compare_exchange_weak_explicit(&q->pop_ticket, &ticket, ticket + 1,
                                                      memory_order_relaxed, memory_order_relaxed)) {
                *value = cell->value;
                shmb_publish(&cell->sequence, ticket + q->mask + 1);
                return 1;
            }
        } else if (turn < 0) {
            return 0;
        } else {
            ticket = shmb_peek(&q->pop_ticket);
        }
    }
}

#endif
