/* The atomic operations the rings use, by the name of what they are for.
 *
 * C11 atomics only: correct on x86-64 and aarch64 alike. Two patterns are used, each argued where it
 * is used: publish/observe (release store, acquire load) and store-then-look (a seq_cst fence between
 * publishing a word and reading another, on both sides; see park.h). A third, reading behind a writer,
 * is argued at shmb_slot_still_there() in logring.h.
 *
 * Every shared word is a naturally aligned 4 or 8 byte integer, lock-free on both architectures.
 */
#ifndef SHMB_ATOMICS_H
#define SHMB_ATOMICS_H

#include <stdatomic.h>
#include <stdint.h>

typedef _Atomic uint64_t shmb_a64;
typedef _Atomic uint32_t shmb_a32;

_Static_assert(sizeof(shmb_a64) == 8 && sizeof(shmb_a32) == 4, "atomics carry no lock");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "atomics are lock-free");

static inline uint64_t shmb_observe(const shmb_a64 *word)
{
    return atomic_load_explicit((shmb_a64 *)word, memory_order_acquire);
}
static inline void shmb_publish(shmb_a64 *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}
static inline uint64_t shmb_peek(const shmb_a64 *word)
{
    return atomic_load_explicit((shmb_a64 *)word, memory_order_relaxed);
}
static inline void shmb_poke(shmb_a64 *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}
static inline uint32_t shmb_observe32(const shmb_a32 *word)
{
    return atomic_load_explicit((shmb_a32 *)word, memory_order_acquire);
}
static inline int shmb_replace32(shmb_a32 *word, uint32_t value, uint32_t by)
{
    return atomic_compare_exchange_strong_explicit(word, &value, by, memory_order_acq_rel, memory_order_acquire);
}
static inline void shmb_publish32(shmb_a32 *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}
static inline uint32_t shmb_peek32(const shmb_a32 *word)
{
    return atomic_load_explicit((shmb_a32 *)word, memory_order_relaxed);
}
static inline void shmb_poke32(shmb_a32 *word, uint32_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}
static inline void shmb_fence_acquire(void) { atomic_thread_fence(memory_order_acquire); }
static inline void shmb_fence_release(void) { atomic_thread_fence(memory_order_release); }
static inline void shmb_fence_full(void) { atomic_thread_fence(memory_order_seq_cst); }

/* Tells the core that this is a spin loop (frees the sibling's execution units, saves power). */
static inline void shmb_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

static inline uint64_t shmb_align_up(uint64_t n, uint64_t unit) { return (n + unit - 1) & ~(unit - 1); }
static inline uint64_t shmb_align_down(uint64_t n, uint64_t unit) { return n & ~(unit - 1); }

#endif
