/* The layout: offsets, sizes, and that no two things share a park word or a byte that may not. */
#undef NDEBUG
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "layout.h"

static void offsets_are_where_the_format_says(void)
{
    assert(offsetof(struct shmb_preamble, ready) == 56 && sizeof(struct shmb_preamble) == 64);
    assert(offsetof(struct shmb_slot, generation) == 32 && offsetof(struct shmb_slot, ring_bytes) == 40);
    assert(offsetof(struct shmb_slot, reserved_position) == 64);
    assert(offsetof(struct shmb_slot, log_end_position) == 128 && offsetof(struct shmb_slot, log_end_offset) == 136);
    assert(offsetof(struct shmb_slot, durable_position) == 192 && offsetof(struct shmb_slot, flush_seq) == 208);
    assert(offsetof(struct shmb_slot, append_base_offset) == 256 && sizeof(struct shmb_slot) == 512);
    assert(offsetof(struct shmb_writer_head, intent) == 128 && offsetof(struct shmb_writer_head, intent) % SHMB_LINE == 0);
    assert(sizeof(struct shmb_index_entry) == 16 && sizeof(struct shmb_frame) == 32 && sizeof(struct shmb_receipt) == 64);
    assert(offsetof(struct shmb_frame, frame_seq) == 16 && offsetof(struct shmb_receipt, end_position) == 24);
    assert(offsetof(struct shmb_ingress_head, head) == 64 && offsetof(struct shmb_receipts_head, tail) == 64);
    assert(offsetof(struct shmb_receipts_head, receipts) / SHMB_LINE == 1);
    assert(SHMB_PAGE % 65536 == 0);
}

/* Kinds of park word: instance, each writer, each partition group (appended, durable), each ingress group. */
static void park_words_of_different_kinds_never_meet(void)
{
    static unsigned char kind[SHMB_PARK_WORDS];
    assert(SHMB_PARK_INSTANCE < SHMB_PARK_WORDS);
    kind[SHMB_PARK_INSTANCE] = 1;
    for (uint32_t w = 0; w < SHMB_WRITERS_MAX; w++) {
        assert(SHMB_PARK_WRITER + w < SHMB_PARK_PARTITION && kind[SHMB_PARK_WRITER + w] == 0);
        kind[SHMB_PARK_WRITER + w] = 2;
    }
    for (uint32_t w = 0; w < SHMB_WRITERS_MAX; w++)
        for (uint32_t s = 0; s < SHMB_SLOTS_MAX; s++) {
            uint32_t a = shmb_park_appended(w, s), d = shmb_park_durable(w, s);
            assert(a >= SHMB_PARK_PARTITION && d < SHMB_PARK_INGRESS && d == a + 1);
            assert(kind[a] == 0 || kind[a] == 3);
            assert(kind[d] == 0 || kind[d] == 4);
            kind[a] = 3;
            kind[d] = 4;
        }
    for (uint64_t i = 0; i < 4096; i++) {
        uint32_t word = shmb_park_ingress(i);
        assert(word < SHMB_PARK_WORDS && (kind[word] == 0 || kind[word] == 5));
        kind[word] = 5;
    }
    assert(shmb_park_ingress(UINT64_MAX) < SHMB_PARK_WORDS && kind[shmb_park_ingress(UINT64_MAX)] == 5);
    for (uint32_t i = 1; i < SHMB_PARK_WORDS; i++)
        assert(kind[i] != 0 && "an unused word");
}

static void sizes_are_whole_pages(void)
{
    for (uint32_t slots = 1; slots <= SHMB_SLOTS_MAX; slots++) {
        assert(shmb_table_bytes(slots) % SHMB_PAGE == 0);
        assert(shmb_table_bytes(slots) >= SHMB_PAGE + slots * sizeof(struct shmb_slot));
    }
    for (uint64_t capacity = SHMB_PAGE; capacity <= (64u << 20); capacity += SHMB_PAGE) {
        uint64_t at = shmb_log_data_offset(capacity), index = shmb_log_index_entries(capacity);
        assert(at % SHMB_PAGE == 0 && shmb_log_bytes(capacity) % SHMB_PAGE == 0);
        assert(at >= SHMB_PAGE + index * sizeof(struct shmb_index_entry));
        assert(index >= 2 * (capacity / SHMB_INDEX_STEP));
    }
    for (uint64_t slots = 1; slots <= (1u << 20); slots *= 2) {
        assert(shmb_receipts_bytes(slots) % SHMB_PAGE == 0);
        assert(shmb_receipts_bytes(slots) >= SHMB_PAGE + slots * sizeof(struct shmb_receipt));
    }
    for (uint64_t n = 0; n < 5000; n++) {
        assert(shmb_frame_bytes(n) % 8 == 0 && shmb_frame_bytes(n) >= n + 32 && shmb_frame_bytes(n) < n + 40);
    }
    assert(shmb_frame_bytes(UINT32_MAX) > UINT32_MAX); /* 64 bits: a client's length can't wrap it */
}

static void slots_and_receipts_lie_in_lines_of_their_own(void)
{
    uint64_t bytes = shmb_table_bytes(3);
    uint8_t *table = aligned_alloc(SHMB_PAGE, bytes);
    assert(table);
    assert((uint8_t *)shmb_table_slot(table, 0) == table + SHMB_PAGE);
    assert((uint8_t *)(shmb_table_slot(table, 2) + 1) <= table + bytes);
    for (uint64_t n = 0; n < 64; n++) {
        uint8_t *r = (uint8_t *)shmb_receipt_at(table, 16, n);
        assert(r == table + SHMB_PAGE + (n % 16) * 64 && (uintptr_t)r % SHMB_LINE == 0);
    }
    free(table);
}

static void alignment_helpers_agree(void)
{
    for (uint64_t n = 0; n < 20000; n += 7) {
        assert(shmb_align_up(n, 4096) % 4096 == 0 && shmb_align_up(n, 4096) - n < 4096);
        assert(n - shmb_align_down(n, 4096) < 4096 && shmb_align_down(n, 4096) % 4096 == 0);
    }
    assert(shmb_align_up(4096, 4096) == 4096 && shmb_align_down(4096, 4096) == 4096);
}

int main(void)
{
    offsets_are_where_the_format_says();
    park_words_of_different_kinds_never_meet();
    sizes_are_whole_pages();
    slots_and_receipts_lie_in_lines_of_their_own();
    alignment_helpers_agree();
    puts("layout: ok");
    return 0;
}
