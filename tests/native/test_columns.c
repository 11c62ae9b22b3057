/* Columns in and out in plain C: no claim of a column leads outside of its memory (build with
 * -fsanitize=address to see it), and what Arrow's consumers take apart is freed once. */
#undef NDEBUG
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "arrow_out.h"
#include "columns.h"

static uint32_t seed = 88172645u;

static uint32_t rnd(void) { /* xorshift32 */
    seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
    return seed;
}

static uint8_t *copy_of(const void *p, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    assert(copy);
    memcpy(copy, p, n);
    return copy;
}

enum { COUNT = 300 };

/* A chunk of COUNT values of 0 to 9 bytes, each of its buffers exactly as long as it says. */
static struct shmb_chunk of_offsets(int wide) {
    struct shmb_chunk c = {.count = COUNT};
    int32_t narrow[COUNT + 1] = {0};
    int64_t broad[COUNT + 1] = {0};
    for (int i = 0; i < COUNT; i++) broad[i + 1] = narrow[i + 1] = narrow[i] + i % 10;
    c.offsets = wide ? copy_of(broad, sizeof broad) : copy_of(narrow, sizeof narrow);
    c.end = narrow[COUNT];
    uint8_t *data = malloc((size_t)c.end);
    assert(data);
    for (int i = 0; i < c.end; i++) data[i] = (uint8_t)i;
    c.data = data;
    return c;
}

static enum shmb_column_kind kind_of(int wide) {
    return wide ? SHMB_COL_OFFSETS64 : SHMB_COL_OFFSETS32;
}

static void encode_all(const struct shmb_run *run, size_t room, int64_t expected) {
    uint8_t *to = malloc(room);
    assert(to);
    struct shmb_rows_batch b = {.at = to, .limit = to + room, .first_timestamp = 5, .now = 5};
    int64_t n = shmb_run_encode(run, 0, &b);
    assert(b.at <= b.limit && n == b.count && (expected < 0 || n == expected));
    free(to);
}

static void a_batch_takes_what_surely_fits_and_no_more(void) {
    for (int wide = 0; wide < 2; wide++) {
        struct shmb_chunk c = of_offsets(wide);
        struct shmb_run run = {.count = COUNT, .values = &c, .value_kind = kind_of(wide)};
        encode_all(&run, 1 << 16, COUNT);
        for (size_t room = 0; room < 400; room++)
            encode_all(&run, room, room < SHMB_RECORD_OVERHEAD_MAX ? 0 : -1);
        run.keys = &c, run.key_kind = run.value_kind;
        encode_all(&run, 1 << 16, COUNT);
        free((void *)c.data);
        free((void *)c.offsets);
    }
}

static void random_offsets_never_lead_outside(void) {
    for (int round = 0; round < 20000; round++) {
        int wide = round & 1, size = wide ? 8 : 4;
        struct shmb_chunk c = of_offsets(wide);
        for (unsigned changes = 1 + rnd() % 8; changes; changes--)
            ((uint8_t *)c.offsets)[rnd() % (size_t)((COUNT + 1) * size)] = (uint8_t)rnd();
        struct shmb_run run = {.count = COUNT, .values = &c, .value_kind = kind_of(wide)};
        if (round % 3 == 0) run.keys = &c, run.key_kind = run.value_kind;
        encode_all(&run, 1 << 16, -1);
        free((void *)c.data);
        free((void *)c.offsets);
    }
}

static void random_views_never_lead_outside(void) {
    uint8_t views[COUNT * SHMB_VIEW_BYTES];
    const void *buffers[2] = {copy_of(views, 100), NULL};
    int64_t sizes[2] = {100, 50};
    for (int round = 0; round < 20000; round++) {
        for (int i = 0; i < COUNT; i++) {
            int32_t view[4] = {(int32_t)(rnd() % 120), 0, (int32_t)(rnd() % 4) - 1,
                               (int32_t)(rnd() % 120) - 5};
            if (rnd() % 16 == 0) view[rnd() % 4] = (int32_t)rnd();
            memcpy(views + i * SHMB_VIEW_BYTES, view, sizeof view);
        }
        struct shmb_chunk c = {.count = COUNT, .data = views, .buffers = buffers,
                               .buffer_sizes = (const uint8_t *)sizes, .buffer_count = 2};
        struct shmb_run run = {.count = COUNT, .values = &c, .value_kind = SHMB_COL_VIEWS};
        for (int64_t i = 0; i < COUNT; i++) {
            run.value_first = i, run.count = COUNT - i;
            encode_all(&run, 256, -1);
            if (i == 20) break;
        }
    }
    free((void *)buffers[0]);
}

static struct shmb_out_block *filled(int large, int keys) {
    static uint8_t raw[1 << 14];
    uint8_t value[32] = {0};
    uint8_t *p = shmb_batch_begin(raw);
    for (int i = 0; i < COUNT; i++)
        p = shmb_record_put(p, 0, i, "key", keys && i % 3 ? 3 : -1, value, i % 7 ? i % 32 : -1,
                            NULL, 0, 0);
    size_t size = shmb_batch_seal(raw, p, 0, -1, -1, -1, 0, 0, COUNT);
    struct shmb_out_block *b = shmb_block_new(COUNT, size, large);
    struct shmb_record_cursor cursor;
    shmb_batch_cursor_init(&cursor, raw);
    assert(b && shmb_block_add(b, raw, &cursor, 10, size) == SHMB_RECORD_END);
    shmb_block_end(b);
    assert(b->count == COUNT - 10 && b->offsets[0] == 10);
    return b;
}

static void what_is_handed_out_is_freed_once_in_any_order(void) {
    for (int way = 0; way < 16; way++) {
        struct ArrowArray a, child;
        struct ArrowSchema s;
        struct shmb_out_block *b = filled(way & 1, way & 2);
        assert(shmb_out_array(&a, b) && shmb_out_schema(&s, way & 1));
        assert(a.n_children == s.n_children && a.length == COUNT - 10);
        if (way & 4) shmb_block_release(b); /* the Python object goes first */
        child = *a.children[way % 4];       /* moved out, and released after its parent */
        a.children[way % 4]->release = NULL;
        a.release(&a);
        assert(!a.release && child.release && child.length == COUNT - 10);
        volatile uint8_t first = *(const uint8_t *)child.buffers[1];
        (void)first;
        child.release(&child);
        s.children[0]->release(s.children[0]);
        s.release(&s);
        assert(!s.release);
        if (!(way & 4)) shmb_block_release(b);
    }
}

static void more_records_than_were_promised_are_an_error(void) {
    uint8_t raw[4096];
    uint8_t *p = shmb_batch_begin(raw);
    for (int i = 0; i < 10; i++) p = shmb_record_put(p, 0, i, NULL, -1, "v", 1, NULL, 0, 0);
    shmb_batch_seal(raw, p, 0, -1, -1, -1, 0, 0, 10);
    struct shmb_out_block *b = shmb_block_new(9, 100, 0);
    struct shmb_record_cursor cursor;
    shmb_batch_cursor_init(&cursor, raw);
    assert(b && shmb_block_add(b, raw, &cursor, 0, 100) == SHMB_RECORD_TRAILING);
    shmb_block_release(b);
}

int main(void) {
    a_batch_takes_what_surely_fits_and_no_more();
    random_offsets_never_lead_outside();
    random_views_never_lead_outside();
    what_is_handed_out_is_freed_once_in_any_order();
    more_records_than_were_promised_are_an_error();
    printf("columns: pass\n");
    return 0;
}
