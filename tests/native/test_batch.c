/* The record batch in plain C: what is encoded is decoded again, and no byte that is cut off or
 * changed makes a decoder crash, read outside of its buffer (build with -fsanitize=address to see
 * it), or pass. Exit status 0 on success.
 *
 *   gcc -std=gnu11 -O2 -Wall -Wextra -Werror -I shmbroker/_core tests/native/test_batch.c -o t &&
 * ./t
 *   aarch64-linux-gnu-gcc -static (the same) && qemu-aarch64 ./t
 */
#undef NDEBUG
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "batch.h"

static uint32_t seed = 2463534242u;

static uint32_t rnd(void) { /* xorshift32 */
    seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
    return seed;
}

static void varints_round_trip_and_keep_to_their_bounds(void) {
    uint8_t buffer[16];
    int64_t wide;
    int32_t narrow;
    for (int bit = 0; bit < 64; bit++)
        for (int64_t around = -2; around <= 2; around++)
            for (int sign = -1; sign <= 1; sign += 2) {
                int64_t v = (int64_t)(((uint64_t)1 << bit) + (uint64_t)around);
                v = sign < 0 ? (int64_t)(0 - (uint64_t)v) : v;
                uint8_t *end = shmb_varint_put(buffer, v);
                assert((size_t)(end - buffer) == shmb_varint_size(v));
                assert(shmb_varint_get64(buffer, end, &wide) == end && wide == v);
                for (uint8_t *cut = buffer; cut < end; cut++)
                    assert(!shmb_varint_get64(buffer, cut, &wide));
                if (v >= INT32_MIN && v <= INT32_MAX)
                    assert(shmb_varint_get32(buffer, end, &narrow) == end && narrow == v);
                else
                    assert(!shmb_varint_get32(buffer, end, &narrow));
            }
    memset(buffer, 0xff, sizeof buffer); /* never ends */
    assert(!shmb_varint_get32(buffer, buffer + 16, &narrow));
    assert(!shmb_varint_get64(buffer, buffer + 16, &wide));
}

static void copies_of_any_size_keep_to_their_destination(void) {
    uint8_t from[400], to[420];
    for (size_t i = 0; i < sizeof from; i++) from[i] = (uint8_t)rnd();
    for (size_t n = 0; n <= sizeof from; n++) {
        memset(to, 0xa5, sizeof to);
        shmb_copy_small(to + 10, from, n);
        assert(memcmp(to + 10, from, n) == 0);
        for (size_t i = 0; i < 10; i++) assert(to[i] == 0xa5 && to[10 + n + i] == 0xa5);
    }
}

static void murmur2_equals_kafkas_vectors(void) { /* UtilsTest.java, testMurmur2 */
    assert((int32_t)shmb_murmur2("21", 2) == -973932308);
    assert((int32_t)shmb_murmur2("foobar", 6) == -790332482);
    assert((int32_t)shmb_murmur2("a-little-bit-long-string", 24) == -985981536);
    assert((int32_t)shmb_murmur2("a-little-bit-longer-string", 26) == -1486304829);
    assert((int32_t)shmb_murmur2("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", 48) ==
           -58897971);
    assert((int32_t)shmb_murmur2("abc", 3) == 479470107);
}

enum { COUNT = 40 };

/* Encodes COUNT records of all kinds at `p`; record i has a value of i * 7 bytes, or null. */
static size_t make_batch(uint8_t *p, int64_t base_offset, int32_t epoch) {
    uint8_t value[COUNT * 7], headers[64];
    uint8_t *end = shmb_batch_begin(p);
    memset(value, 'v', sizeof value);
    for (int32_t i = 0; i < COUNT; i++) {
        int32_t key_len = i % 3 ? 3 : -1, val_len = i % 5 ? i * 7 : -1;
        int32_t header_count = i % 4 ? 0 : 2;
        size_t headers_size = 0;
        if (header_count) {
            uint8_t *h = shmb_header_put(headers, "trace", 5, "0123456789", 10);
            headers_size = (size_t)(shmb_header_put(h, "none", 4, NULL, -1) - headers);
        }
        uint8_t *start = end;
        end = shmb_record_put(end, i - 10, i, "key", key_len, value, val_len, headers, headers_size,
                              header_count);
        assert((size_t)(end - start) ==
               shmb_record_size(i - 10, i, key_len, val_len, headers_size, header_count));
    }
    size_t size = shmb_batch_seal(p, end, 0, 5, 77, 3, 1000, 1029, COUNT);
    shmb_batch_stamp(p, base_offset, epoch);
    return size;
}

static void a_sealed_batch_validates_and_decodes(const uint8_t *p, size_t size) {
    struct shmb_record_cursor cursor;
    struct shmb_record r;
    int32_t i = 0;
    size_t found;
    assert(shmb_batch_validate(p, size, SHMB_BATCH_FROM_CLIENT) == SHMB_BATCH_OK);
    assert(shmb_batch_check(p, size + 100, SHMB_BATCH_FROM_LOG, &found) == 0 && found == size);
    assert(shmb_batch_base_offset(p) == 1000000);
    assert(shmb_batch_last_offset(p) == 1000000 + COUNT - 1);
    assert(shmb_batch_leader_epoch(p) == 9 && shmb_batch_producer_id(p) == 77);
    assert(shmb_batch_producer_epoch(p) == 3 && shmb_batch_base_sequence(p) == 5);
    shmb_batch_cursor_init(&cursor, p);
    for (; shmb_record_next(&cursor, &r) == SHMB_RECORD_OK; i++) {
        assert(r.offset_delta == i && r.timestamp_delta == i - 10);
        assert(r.key_len == (i % 3 ? 3 : -1) && (r.key_len < 0 || memcmp(r.key, "key", 3) == 0));
        assert(r.val_len == (i % 5 ? i * 7 : -1) && r.header_count == (i % 4 ? 0 : 2));
    }
    assert(i == COUNT && shmb_record_next(&cursor, &r) == SHMB_RECORD_END);
}

/* A copy that ends at the end of its allocation, so that a sanitizer sees each byte read too far.
 * */
static uint8_t *exact_copy(const uint8_t *p, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    assert(copy);
    memcpy(copy, p, n);
    return copy;
}

/* The usual record's way and the general one say the same of any bytes. */
static int next_either_way(struct shmb_record_cursor *c, struct shmb_record *r) {
    struct shmb_record_cursor general = *c;
    struct shmb_record s;
    int more = c->left > 0, status = shmb_record_next(c, r);
    if (!more) return status;
    assert(shmb_record_next_any(&general, &s) == status);
    if (status != SHMB_RECORD_OK) return status;
    assert(r->timestamp_delta == s.timestamp_delta && r->offset_delta == s.offset_delta);
    assert(r->key == s.key && r->key_len == s.key_len && r->value == s.value);
    assert(r->val_len == s.val_len && r->headers == s.headers);
    assert(r->headers_size == s.headers_size && r->header_count == s.header_count);
    assert(c->p == general.p && c->left == general.left && c->offset_delta == general.offset_delta);
    return status;
}

static void decode_all(const uint8_t *p, size_t n, int32_t count) {
    struct shmb_record_cursor cursor;
    struct shmb_record r;
    volatile uint8_t sum = 0;
    shmb_record_cursor_init(&cursor, p, n, count, INT32_MAX);
    while (next_either_way(&cursor, &r) == SHMB_RECORD_OK) {
        if (r.key_len > 0) sum += r.key[r.key_len - 1];
        if (r.val_len > 0) sum += r.value[r.val_len - 1];
        assert(r.key_len >= -1 && r.val_len >= -1 && r.header_count >= 0);
    }
}

static void a_batch_cut_off_anywhere_is_refused(const uint8_t *p, size_t size) {
    for (size_t n = 0; n < size; n++) {
        uint8_t *copy = exact_copy(p, n);
        assert(shmb_batch_validate(copy, n, 0) == SHMB_BATCH_SHORT);
        if (n > SHMB_BATCH_HEADER_BYTES)
            decode_all(copy + SHMB_BATCH_HEADER_BYTES, n - SHMB_BATCH_HEADER_BYTES, COUNT);
        free(copy);
    }
}

static void a_changed_bit_anywhere_is_refused_where_the_crc_covers(const uint8_t *p, size_t size) {
    for (size_t at = 0; at < size; at++)
        for (int bit = 0; bit < 8; bit++) {
            uint8_t *copy = exact_copy(p, size);
            copy[at] ^= (uint8_t)(1 << bit);
            int error = shmb_batch_validate(copy, size, SHMB_BATCH_FROM_LOG);
            /* Base offset and epoch are outside of the CRC: whoever reads them checks their
             * order. */
            if ((at >= 1 && at < 8) || (at >= 12 && at < 16))
                assert(error == SHMB_BATCH_OK);
            else
                assert(error != SHMB_BATCH_OK || (at == 0 && bit < 7));
            decode_all(copy + SHMB_BATCH_HEADER_BYTES, size - SHMB_BATCH_HEADER_BYTES, COUNT);
            free(copy);
        }
}

static void random_records_never_lead_outside(const uint8_t *p, size_t size) {
    for (int round = 0; round < 20000; round++) {
        size_t n = 1 + rnd() % (size - SHMB_BATCH_HEADER_BYTES);
        uint8_t *copy = exact_copy(p + SHMB_BATCH_HEADER_BYTES, n);
        for (unsigned changes = 1 + rnd() % 8; changes; changes--) copy[rnd() % n] = (uint8_t)rnd();
        decode_all(copy, n, COUNT);
        free(copy);
    }
}

static void put_crc(uint8_t *p, size_t size) { shmb_batch_put_crc(p, size); }

static void wrong_headers_are_refused_by_name(const uint8_t *p, size_t size) {
    uint8_t *copy = exact_copy(p, size);
#define REFUSED(change, flags, expected)                          \
    do {                                                          \
        memcpy(copy, p, size);                                    \
        change;                                                   \
        put_crc(copy, size);                                      \
        assert(shmb_batch_validate(copy, size, flags) == expected); \
    } while (0)
    REFUSED(copy[SHMB_BATCH_MAGIC_AT] = 1, 0, SHMB_BATCH_MAGIC);
    REFUSED(shmb_put_be32(copy + SHMB_BATCH_BATCH_LENGTH, -1), 0, SHMB_BATCH_LENGTH);
    REFUSED(shmb_put_be32(copy + SHMB_BATCH_BATCH_LENGTH, 48), 0, SHMB_BATCH_LENGTH);
    REFUSED(shmb_put_be32(copy + SHMB_BATCH_RECORD_COUNT, COUNT - 1), 0, SHMB_BATCH_COUNT);
    REFUSED(shmb_put_be32(copy + SHMB_BATCH_RECORD_COUNT, COUNT - 1), SHMB_BATCH_COMPACTED, 0);
    REFUSED(shmb_put_be32(copy + SHMB_BATCH_RECORD_COUNT, COUNT + 1), SHMB_BATCH_COMPACTED,
            SHMB_BATCH_COUNT);
    REFUSED((shmb_put_be32(copy + SHMB_BATCH_RECORD_COUNT, 0),
             shmb_put_be32(copy + SHMB_BATCH_LAST_OFFSET_DELTA, -1)), 0, SHMB_BATCH_COUNT);
    REFUSED((shmb_put_be32(copy + SHMB_BATCH_RECORD_COUNT, 1000000),
             shmb_put_be32(copy + SHMB_BATCH_LAST_OFFSET_DELTA, 999999)), 0, SHMB_BATCH_COUNT);
    REFUSED((shmb_put_be32(copy + SHMB_BATCH_RECORD_COUNT, INT32_MIN),
             shmb_put_be32(copy + SHMB_BATCH_LAST_OFFSET_DELTA, INT32_MAX)), 0, SHMB_BATCH_COUNT);
    REFUSED(shmb_put_be16(copy + SHMB_BATCH_ATTRIBUTES, 0x80), 1, SHMB_BATCH_ATTR);
    REFUSED(shmb_put_be16(copy + SHMB_BATCH_ATTRIBUTES, (int16_t)0x8000), 1, SHMB_BATCH_ATTR);
    REFUSED(shmb_put_be16(copy + SHMB_BATCH_ATTRIBUTES, 5), 0, SHMB_BATCH_ATTR);
    REFUSED(shmb_put_be16(copy + SHMB_BATCH_ATTRIBUTES, SHMB_ATTR_LOG_APPEND_TIME), 0,
            SHMB_BATCH_ATTR);
    REFUSED(shmb_put_be16(copy + SHMB_BATCH_ATTRIBUTES, SHMB_ATTR_CONTROL), 0, SHMB_BATCH_CONTROL);
    REFUSED(shmb_put_be16(copy + SHMB_BATCH_ATTRIBUTES, SHMB_ATTR_CONTROL), 1, 0);
    REFUSED(shmb_put_be16(copy + SHMB_BATCH_PRODUCER_EPOCH, -1), 0, SHMB_BATCH_PRODUCER);
    REFUSED(shmb_put_be32(copy + SHMB_BATCH_BASE_SEQUENCE, -1), 0, SHMB_BATCH_PRODUCER);
    REFUSED(shmb_put_be64(copy + SHMB_BATCH_PRODUCER_ID, -2), 0, SHMB_BATCH_PRODUCER);
    REFUSED(shmb_put_be64(copy, -1), SHMB_BATCH_FROM_LOG, SHMB_BATCH_OFFSET);
    REFUSED(shmb_put_be64(copy, INT64_MAX), SHMB_BATCH_FROM_LOG, SHMB_BATCH_OFFSET);
#undef REFUSED
    memcpy(copy, p, size);
    copy[SHMB_BATCH_CRC_AT] ^= 1;
    assert(shmb_batch_validate(copy, size, 0) == SHMB_BATCH_CRC);
    assert(shmb_batch_validate(copy, size, SHMB_BATCH_SKIP_CRC) == 0);
    free(copy);
}

static void a_batch_is_found_behind_zeros_and_rubbish(const uint8_t *p, size_t size) {
    enum { BYTES = 1 << 20, MAX = 1 << 20 };
    uint8_t *buffer = calloc(1, BYTES);
    size_t found;
    assert(buffer);
    assert(shmb_batch_find(buffer, BYTES, 0, 0, 100, MAX, &found) == -1 && found == 0);
    for (size_t at = 0; at < BYTES - size; at += 77773) {
        for (int kind = 0; kind < 3; kind++) {
            memset(buffer, kind == 1 ? SHMB_BATCH_MAGIC_V2 : 0, BYTES);
            for (size_t i = 0; kind == 2 && i < BYTES; i++) buffer[i] = (uint8_t)rnd();
            memcpy(buffer + at, p, size);
            ptrdiff_t place = shmb_batch_find(buffer, BYTES, 1000000, 9, 9, MAX, &found);
            assert(place == (ptrdiff_t)at && found == size);
            assert(shmb_batch_find(buffer, at + size - 1, 1000000, 9, 9, MAX, &found) == -1);
            assert(shmb_batch_find(buffer, BYTES, 1000001, 9, 9, MAX, &found) == -1);
            assert(shmb_batch_find(buffer, BYTES, 1000000, 10, 99, MAX, &found) == -1);
            assert(shmb_batch_find(buffer, BYTES, 1000000, 0, 8, MAX, &found) == -1);
            assert(shmb_batch_find(buffer, BYTES, 1000000, 9, 9, size - 1, &found) == -1);
            buffer[at + size - 1] ^= 1;
            assert(shmb_batch_find(buffer, BYTES, 1000000, 9, 9, MAX, &found) == -1);
        }
    }
    for (size_t n = 0; n <= SHMB_BATCH_HEADER_BYTES; n++)
        assert(shmb_batch_find(buffer, n, 0, 0, 100, MAX, &found) == -1);
    free(buffer);
}

int main(void) {
    static uint8_t buffer[1 << 16];
    varints_round_trip_and_keep_to_their_bounds();
    copies_of_any_size_keep_to_their_destination();
    murmur2_equals_kafkas_vectors();
    size_t size = make_batch(buffer, 1000000, 9);
    a_sealed_batch_validates_and_decodes(buffer, size);
    a_batch_cut_off_anywhere_is_refused(buffer, size);
    a_changed_bit_anywhere_is_refused_where_the_crc_covers(buffer, size);
    random_records_never_lead_outside(buffer, size);
    wrong_headers_are_refused_by_name(buffer, size);
    a_batch_is_found_behind_zeros_and_rubbish(buffer, size);
    printf("batch: %zu bytes of %d records pass\n", size, COUNT);
    return 0;
}
