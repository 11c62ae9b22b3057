/* One record of a Kafka record batch v2: size, encode, decode.
 *
 * A record is a chain of varints (varint.h) and bytes; N = null is length -1, and no bytes follow:
 *
 *      +--------+------------+----------------+-------------+------------------------------
 *      | length | attributes | timestampDelta | offsetDelta | keyLength    key
 *      | varint | int8 = 0   | varlong, ms    | varint      | varint, -1=N bytes
 *      +--------+------------+----------------+-------------+------------------------------
 *       ------------------------+--------------+----------------------------------------+
 *        valueLength    value   | headersCount | headersCount times: keyLength, key,    |
 *        varint, -1=N   bytes   | varint       | valueLength (-1=N), value              |
 *       ------------------------+--------------+----------------------------------------+
 *
 * `length` counts the bytes behind itself. Deltas are against the batch's baseTimestamp and
 * baseOffset. Encoders write at most what shmb_record_size() says. The decoder trusts nothing:
 * each length is checked against the record's end before it is followed, and a record must end
 * exactly where its length says. Nothing here allocates or needs the GIL.
 * Source: https://kafka.apache.org/documentation/#record and DefaultRecord.java.
 */
#ifndef SHMB_RECORD_H
#define SHMB_RECORD_H

#include "varint.h"

enum {
    SHMB_RECORD_AHEAD = 1024, /* bytes that the decoder asks memory for before it needs them */
    /* Bytes of a record besides key, value and headers: at least, and at most (an upper bound for
     * callers that only want to know whether it fits). */
    SHMB_RECORD_OVERHEAD_MIN = 7,
    SHMB_RECORD_OVERHEAD_MAX = 5 + 1 + 10 + 5 + 5 + 5 + 5,
};

/* Results of shmb_record_next(); errors are negative. shmb_record_error_name() names them. */
enum shmb_record_status {
    SHMB_RECORD_END = 0,         /* all records read, and the section ends there */
    SHMB_RECORD_OK = 1,          /* `record` is filled */
    SHMB_RECORD_TRUNCATED = -1,  /* a varint or a length reaches past its end */
    SHMB_RECORD_LENGTH = -2,     /* a length is negative, or the parts don't add up to it */
    SHMB_RECORD_OFFSET = -3,     /* offset deltas don't rise, or leave the batch */
    SHMB_RECORD_HEADERS = -4,    /* header count or a header's lengths are nonsense */
    SHMB_RECORD_TRAILING = -5,   /* bytes stand behind the last record */
};

/* A decoded record; pointers lead into the buffer that the cursor reads. */
struct shmb_record {
    int64_t timestamp_delta;  /* ms since baseTimestamp, may be negative */
    const uint8_t *key;       /* key_len bytes; undefined where key_len <= 0 */
    const uint8_t *value;     /* val_len bytes; undefined where val_len <= 0 */
    const uint8_t *headers;   /* headers_size bytes, header_count encoded headers, verified */
    size_t headers_size;      /* bytes */
    int32_t offset_delta;     /* since baseOffset */
    int32_t key_len;          /* bytes, -1 = null */
    int32_t val_len;          /* bytes, -1 = null */
    int32_t header_count;     /* >= 0 */
};

/* Where a decoder stands in an uncompressed records section. */
struct shmb_record_cursor {
    const uint8_t *p;          /* next byte to read */
    const uint8_t *end;        /* first byte behind the section */
    int32_t left;              /* records that the batch header promises from here on */
    int32_t offset_delta;      /* of the record before, -1 at the start */
    int32_t last_offset_delta; /* largest that the batch header allows */
};

static __attribute__((unused)) const char *shmb_record_error_name(int status) {
    switch (status) {
    case SHMB_RECORD_END: return "end";
    case SHMB_RECORD_OK: return "ok";
    case SHMB_RECORD_TRUNCATED: return "record is cut off";
    case SHMB_RECORD_LENGTH: return "record's lengths contradict each other";
    case SHMB_RECORD_OFFSET: return "record's offset is out of order or outside its batch";
    case SHMB_RECORD_HEADERS: return "record's headers are malformed";
    case SHMB_RECORD_TRAILING: return "bytes stand behind the last record";
    default: return "unknown record error";
    }
}

/* memcpy for the sizes that records have: up to 128 bytes by overlapping moves inline, which saves
 * the call and its dispatch, a third of what a record may cost. Writes [d, d + n) only. */
typedef struct { uint8_t b[16]; } shmb_v16; /* one vector register */

SHMB_INLINE void shmb_copy_small(uint8_t *d, const uint8_t *s, size_t n) {
    shmb_v16 v[8];
    if (n > 128) {
        memcpy(d, s, n);
    } else if (n > 64) {
        for (int i = 0; i < 4; i++) memcpy(&v[i], s + 16 * i, 16);
        for (int i = 0; i < 4; i++) memcpy(&v[4 + i], s + n - 64 + 16 * i, 16);
        for (int i = 0; i < 4; i++) memcpy(d + 16 * i, &v[i], 16);
        for (int i = 0; i < 4; i++) memcpy(d + n - 64 + 16 * i, &v[4 + i], 16);
    } else if (n > 32) {
        for (int i = 0; i < 2; i++) memcpy(&v[i], s + 16 * i, 16);
        for (int i = 0; i < 2; i++) memcpy(&v[2 + i], s + n - 32 + 16 * i, 16);
        for (int i = 0; i < 2; i++) memcpy(d + 16 * i, &v[i], 16);
        for (int i = 0; i < 2; i++) memcpy(d + n - 32 + 16 * i, &v[2 + i], 16);
    } else if (n >= 16) {
        memcpy(&v[0], s, 16);
        memcpy(&v[1], s + n - 16, 16);
        memcpy(d, &v[0], 16);
        memcpy(d + n - 16, &v[1], 16);
    } else if (n >= 8) {
        uint64_t first, last;
        memcpy(&first, s, 8);
        memcpy(&last, s + n - 8, 8);
        memcpy(d, &first, 8);
        memcpy(d + n - 8, &last, 8);
    } else if (n >= 4) {
        uint32_t first, last;
        memcpy(&first, s, 4);
        memcpy(&last, s + n - 4, 4);
        memcpy(d, &first, 4);
        memcpy(d + n - 4, &last, 4);
    } else if (n) {
        d[0] = s[0];
        d[n >> 1] = s[n >> 1];
        d[n - 1] = s[n - 1];
    }
}

/* Bytes behind the length field. Lengths -1 mean null; headers are already encoded. */
SHMB_INLINE size_t shmb_record_body_size(int64_t ts_delta, int32_t off_delta, int32_t key_len,
                                         int32_t val_len, size_t headers_size,
                                         int32_t header_count) {
    return 1 + shmb_varint_size(ts_delta) + shmb_varint_size(off_delta) +
           shmb_varint_size(key_len) + (key_len > 0 ? (size_t)key_len : 0) +
           shmb_varint_size(val_len) + (val_len > 0 ? (size_t)val_len : 0) +
           shmb_varint_size(header_count) + headers_size;
}

/* Bytes that shmb_record_put() writes with the same arguments. The caller sees to it that the body
 * stays below 2 GiB (a batch's size is bounded far below that). */
SHMB_INLINE size_t shmb_record_size(int64_t ts_delta, int32_t off_delta, int32_t key_len,
                                    int32_t val_len, size_t headers_size, int32_t header_count) {
    size_t body = shmb_record_body_size(ts_delta, off_delta, key_len, val_len, headers_size,
                                        header_count);
    return shmb_varint_size((int64_t)body) + body;
}

/* Encodes a record at `p`, where shmb_record_size() bytes must be free; returns the byte after it.
 * `headers` is header_count headers already encoded (shmb_header_put), headers_size bytes.
 * Constant arguments (key_len -1, no headers) fold away: 100 B values cost about 5 ns. */
SHMB_INLINE uint8_t *shmb_record_put(uint8_t *p, int64_t ts_delta, int32_t off_delta,
                                     const void *key, int32_t key_len, const void *value,
                                     int32_t val_len, const void *headers, size_t headers_size,
                                     int32_t header_count) {
    size_t body = shmb_record_body_size(ts_delta, off_delta, key_len, val_len, headers_size,
                                        header_count);
    p = shmb_varint_put(p, (int64_t)body);
    *p++ = 0; /* attributes: none is defined */
    p = shmb_varint_put(p, ts_delta);
    p = shmb_varint_put(p, off_delta);
    p = shmb_varint_put(p, key_len);
    if (key_len > 0) {
        shmb_copy_small(p, (const uint8_t *)key, (size_t)key_len);
        p += key_len;
    }
    p = shmb_varint_put(p, val_len);
    if (val_len > 0) {
        shmb_copy_small(p, (const uint8_t *)value, (size_t)val_len);
        p += val_len;
    }
    p = shmb_varint_put(p, header_count);
    if (headers_size) {
        memcpy(p, headers, headers_size);
        p += headers_size;
    }
    return p;
}

/* Bytes that shmb_header_put() writes. A header's key is never null; val_len -1 means null. */
SHMB_INLINE size_t shmb_header_size(int32_t key_len, int32_t val_len) {
    return shmb_varint_size(key_len) + (size_t)key_len + shmb_varint_size(val_len) +
           (val_len > 0 ? (size_t)val_len : 0);
}

/* Encodes one header at `p`, where shmb_header_size() bytes must be free; returns its end. */
SHMB_INLINE uint8_t *shmb_header_put(uint8_t *p, const void *key, int32_t key_len,
                                     const void *value, int32_t val_len) {
    p = shmb_varint_put(p, key_len);
    memcpy(p, key, (size_t)key_len);
    p = shmb_varint_put(p + key_len, val_len);
    if (val_len > 0) {
        memcpy(p, value, (size_t)val_len);
        p += val_len;
    }
    return p;
}

/* Decodes the header at `p`; returns the byte after it, or NULL if it is malformed or cut off. */
SHMB_INLINE const uint8_t *shmb_header_get(const uint8_t *p, const uint8_t *end,
                                           const uint8_t **key, int32_t *key_len,
                                           const uint8_t **value, int32_t *val_len) {
    p = shmb_varint_get32(p, end, key_len);
    if (!p || *key_len < 0 || *key_len > end - p) return NULL;
    *key = p;
    p = shmb_varint_get32(p + *key_len, end, val_len);
    if (!p || *val_len < -1 || *val_len > end - p) return NULL;
    *value = p;
    return *val_len > 0 ? p + *val_len : p;
}

/* Whether exactly `count` headers fill [p, end). Records with headers are the minority. */
static __attribute__((noinline, unused)) int shmb_headers_valid(
    const uint8_t *p, const uint8_t *end, int32_t count) {
    const uint8_t *key, *value;
    int32_t key_len, val_len;
    for (; count > 0; count--) {
        p = shmb_header_get(p, end, &key, &key_len, &value, &val_len);
        if (!p) return 0;
    }
    return p == end;
}

/* Sets a cursor on an uncompressed records section of `n` bytes whose batch header promises
 * `count` records with offset deltas up to `last_offset_delta`. */
SHMB_INLINE void shmb_record_cursor_init(struct shmb_record_cursor *c, const uint8_t *records,
                                         size_t n, int32_t count, int32_t last_offset_delta) {
    c->p = records;
    c->end = records + n;
    c->left = count;
    c->offset_delta = -1;
    c->last_offset_delta = last_offset_delta;
}

/* The general case of shmb_record_next(), out of line to keep its loops small. */
static __attribute__((noinline, unused)) int shmb_record_next_any(struct shmb_record_cursor *c,
                                                                  struct shmb_record *r) {
    int32_t length;
    const uint8_t *p = shmb_varint_get32(c->p, c->end, &length);
    if (SHMB_UNLIKELY(!p)) return SHMB_RECORD_TRUNCATED;
    if (SHMB_UNLIKELY(length < SHMB_RECORD_OVERHEAD_MIN - 1)) return SHMB_RECORD_LENGTH;
    if (SHMB_UNLIKELY(length > c->end - p)) return SHMB_RECORD_TRUNCATED;
    const uint8_t *end = p + length;
    p++; /* attributes: reserved, ignored as Kafka does */
    if (SHMB_UNLIKELY(!(p = shmb_varint_get64(p, end, &r->timestamp_delta))) ||
        SHMB_UNLIKELY(!(p = shmb_varint_get32(p, end, &r->offset_delta))) ||
        SHMB_UNLIKELY(!(p = shmb_varint_get32(p, end, &r->key_len))))
        return SHMB_RECORD_TRUNCATED;
    if (SHMB_UNLIKELY(r->offset_delta <= c->offset_delta) ||
        SHMB_UNLIKELY(r->offset_delta > c->last_offset_delta))
        return SHMB_RECORD_OFFSET;
    if (SHMB_UNLIKELY(r->key_len < -1)) return SHMB_RECORD_LENGTH;
    if (SHMB_UNLIKELY(r->key_len > end - p)) return SHMB_RECORD_TRUNCATED;
    r->key = p;
    if (r->key_len > 0) p += r->key_len;
    if (SHMB_UNLIKELY(!(p = shmb_varint_get32(p, end, &r->val_len)))) return SHMB_RECORD_TRUNCATED;
    if (SHMB_UNLIKELY(r->val_len < -1)) return SHMB_RECORD_LENGTH;
    if (SHMB_UNLIKELY(r->val_len > end - p)) return SHMB_RECORD_TRUNCATED;
    r->value = p;
    if (r->val_len > 0) p += r->val_len;
    if (SHMB_UNLIKELY(!(p = shmb_varint_get32(p, end, &r->header_count))))
        return SHMB_RECORD_TRUNCATED;
    r->headers = p;
    r->headers_size = (size_t)(end - p);
    if (r->header_count == 0) {
        if (SHMB_UNLIKELY(p != end)) return SHMB_RECORD_LENGTH;
    } else if (r->header_count < 0 || !shmb_headers_valid(p, end, r->header_count)) {
        return SHMB_RECORD_HEADERS;
    }
    c->p = end;
    c->left--;
    c->offset_delta = r->offset_delta;
    return SHMB_RECORD_OK;
}

/* A varint of one or two bytes, both readable; `more` gets its high bit when it goes on. */
SHMB_INLINE const uint8_t *shmb_varint_two(const uint8_t *p, int32_t *v, uint32_t *more) {
    uint32_t z = p[0];
    if (z < 0x80) {
        *v = (int32_t)(z >> 1 ^ (0 - (z & 1)));
        return p + 1;
    }
    *more |= p[1];
    z = (z & 0x7f) | (uint32_t)p[1] << 7;
    *v = (int32_t)(z >> 1 ^ (0 - (z & 1)));
    return p + 2;
}

/* Decodes the next record. Returns SHMB_RECORD_OK, SHMB_RECORD_END, or an error, after which the
 * cursor must not be used. Never reads outside of the section, whatever its bytes are.
 *
 * The usual record is recognised here: every varint in two bytes, no headers. Its varints are read
 * before anything is compared, which the 16 bytes in front of the section's end allow, and it is
 * usual if its parts end where its length says. Whatever isn't goes the general way. */
SHMB_INLINE int shmb_record_next(struct shmb_record_cursor *c, struct shmb_record *r) {
    int32_t length, delta;
    uint32_t more = 0;
    if (SHMB_UNLIKELY(c->left <= 0))
        return c->p == c->end ? SHMB_RECORD_END : SHMB_RECORD_TRAILING;
    /* Where the next length stands is known only when this one was read, so the processor does not
     * look far ahead by itself. Reads nothing. */
    __builtin_prefetch(c->p + SHMB_RECORD_AHEAD);
    __builtin_prefetch(c->p + SHMB_RECORD_AHEAD + 64);
    if (SHMB_UNLIKELY(c->end - c->p < 16)) return shmb_record_next_any(c, r);
    const uint8_t *p = shmb_varint_two(c->p, &length, &more);
    if (SHMB_UNLIKELY(length < SHMB_RECORD_OVERHEAD_MIN - 1) || SHMB_UNLIKELY(length > c->end - p))
        return shmb_record_next_any(c, r);
    const uint8_t *end = p + length;
    p++; /* attributes: reserved, ignored as Kafka does */
    p = shmb_varint_two(p, &delta, &more);
    p = shmb_varint_two(p, &r->offset_delta, &more);
    p = shmb_varint_two(p, &r->key_len, &more);
    r->key = p;
    int32_t key_bytes = r->key_len > 0 ? r->key_len : 0;
    if (SHMB_UNLIKELY(end - p < key_bytes + 2)) return shmb_record_next_any(c, r);
    p = shmb_varint_two(p + key_bytes, &r->val_len, &more);
    r->value = p;
    p += r->val_len > 0 ? r->val_len : 0;
    if (SHMB_UNLIKELY(p + 1 != end) || SHMB_UNLIKELY(*p) || SHMB_UNLIKELY(more & 0x80) ||
        SHMB_UNLIKELY(r->key_len < -1) || SHMB_UNLIKELY(r->val_len < -1) ||
        SHMB_UNLIKELY(r->offset_delta <= c->offset_delta) ||
        SHMB_UNLIKELY(r->offset_delta > c->last_offset_delta))
        return shmb_record_next_any(c, r);
    r->timestamp_delta = delta;
    r->header_count = 0;
    r->headers = p + 1;
    r->headers_size = 0;
    c->p = end;
    c->left--;
    c->offset_delta = r->offset_delta;
    return SHMB_RECORD_OK;
}

#endif
