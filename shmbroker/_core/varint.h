/* Big-endian accessors, zigzag varints and murmur2: the scalars of Kafka's record format.
 *
 * A varint is Protocol Buffers' "sint": zigzag (0, -1, 1, -2 -> 0, 1, 2, 3), then seven bits a
 * byte, least significant group first, the high bit set on all but the last byte:
 *
 *      bit  7 6 5 4 3 2 1 0   7 6 5 4 3 2 1 0        int32: 1 to 5 bytes
 *          |1|  bits 0-6   | |0|  bits 7-13  | ...   int64: 1 to 10 bytes
 *
 * Decoders never read at or past `end`, and refuse what doesn't fit the type instead of cutting
 * it. Nothing here allocates, blocks, or needs alignment. Everything is inline: callers hold no
 * GIL. Source: Kafka's ByteUtils.java and Utils.java.
 */
#ifndef SHMB_VARINT_H
#define SHMB_VARINT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SHMB_INLINE static inline __attribute__((always_inline, unused))
#define SHMB_LIKELY(x) __builtin_expect(!!(x), 1)
#define SHMB_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* ---- Big-endian accessors; memcpy because no field of a batch is aligned. ---- */

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define SHMB_BE16(x) __builtin_bswap16(x)
#define SHMB_BE32(x) __builtin_bswap32(x)
#define SHMB_BE64(x) __builtin_bswap64(x)
#define SHMB_LE16(x) (x)
#define SHMB_LE32(x) (x)
#define SHMB_LE64(x) (x)
#else
#define SHMB_BE16(x) (x)
#define SHMB_BE32(x) (x)
#define SHMB_BE64(x) (x)
#define SHMB_LE16(x) __builtin_bswap16(x)
#define SHMB_LE32(x) __builtin_bswap32(x)
#define SHMB_LE64(x) __builtin_bswap64(x)
#endif

SHMB_INLINE int16_t shmb_get_be16(const void *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return (int16_t)SHMB_BE16(v);
}

SHMB_INLINE int32_t shmb_get_be32(const void *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return (int32_t)SHMB_BE32(v);
}

SHMB_INLINE int64_t shmb_get_be64(const void *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return (int64_t)SHMB_BE64(v);
}

SHMB_INLINE void shmb_put_be16(void *p, int16_t value) {
    uint16_t v = SHMB_BE16((uint16_t)value);
    memcpy(p, &v, sizeof v);
}

SHMB_INLINE void shmb_put_be32(void *p, int32_t value) {
    uint32_t v = SHMB_BE32((uint32_t)value);
    memcpy(p, &v, sizeof v);
}

SHMB_INLINE void shmb_put_be64(void *p, int64_t value) {
    uint64_t v = SHMB_BE64((uint64_t)value);
    memcpy(p, &v, sizeof v);
}

/* ---- Zigzag varints ---- */

enum { SHMB_VARINT32_MAX_BYTES = 5, SHMB_VARINT64_MAX_BYTES = 10 };

SHMB_INLINE uint64_t shmb_zigzag(int64_t v) { return ((uint64_t)v << 1) ^ (uint64_t)(v >> 63); }

SHMB_INLINE int64_t shmb_unzigzag(uint64_t z) { return (int64_t)((z >> 1) ^ (0 - (z & 1))); }

/* Bytes that `v` takes: ceil(bits / 7), by a multiplication that is exact for 1 to 64 bits. */
SHMB_INLINE size_t shmb_varint_size(int64_t v) {
    unsigned bits = 64u - (unsigned)__builtin_clzll(shmb_zigzag(v) | 1);
    return (bits * 9 + 64) / 64;
}

/* Writes `v` at `p`, where shmb_varint_size(v) bytes must be free; returns the byte after it. */
SHMB_INLINE uint8_t *shmb_varint_put(uint8_t *p, int64_t v) {
    uint64_t z = shmb_zigzag(v);
    if (SHMB_LIKELY(z < 0x80)) { /* lengths below 64 and small deltas: nearly always */
        *p++ = (uint8_t)z;
        return p;
    }
    if (SHMB_LIKELY(z < 0x4000)) { /* lengths and offset deltas below 8192, without a loop */
        uint16_t two = SHMB_LE16((uint16_t)((z & 0x7f) | 0x80 | (z << 1 & 0x7f00)));
        memcpy(p, &two, sizeof two);
        return p + 2;
    }
    while (z >= 0x80) {
        *p++ = (uint8_t)(z | 0x80);
        z >>= 7;
    }
    *p++ = (uint8_t)z;
    return p;
}

/* The general case of the two decoders below, out of line to keep their loops small. */
static __attribute__((noinline, unused)) const uint8_t *shmb_varint_get_slow(
    const uint8_t *p, const uint8_t *end, uint64_t *z, unsigned max_bytes) {
    uint64_t acc = 0;
    for (unsigned i = 0; i < max_bytes && p < end; i++) {
        uint64_t b = *p++;
        acc |= (b & 0x7f) << (7 * i);
        if (!(b & 0x80)) {
            /* The last possible byte holds 4 (int32) or 1 (int64) bits; more would be cut off. */
            if (i + 1 == max_bytes && b > (max_bytes == SHMB_VARINT32_MAX_BYTES ? 0x0f : 0x01))
                return NULL;
            *z = acc;
            return p;
        }
    }
    return NULL;
}

/* Reads an int32 from [p, end); returns its end, or NULL if it is cut off or too large. */
SHMB_INLINE const uint8_t *shmb_varint_get32(const uint8_t *p, const uint8_t *end, int32_t *v) {
    uint64_t z;
    if (SHMB_LIKELY(end - p >= 1)) { /* one or two bytes, the common sizes, without a loop */
        z = p[0];
        if (z < 0x80) { /* a record's last varint, the count of its headers, has no byte behind it */
            *v = (int32_t)shmb_unzigzag(z);
            return p + 1;
        }
        if (SHMB_LIKELY(end - p >= 2) && p[1] < 0x80) {
            *v = (int32_t)shmb_unzigzag((z & 0x7f) | (uint64_t)p[1] << 7);
            return p + 2;
        }
    }
    p = shmb_varint_get_slow(p, end, &z, SHMB_VARINT32_MAX_BYTES);
    if (p) *v = (int32_t)shmb_unzigzag(z);
    return p;
}

/* Reads an int64 from [p, end); returns its end, or NULL if it is cut off or too large. */
SHMB_INLINE const uint8_t *shmb_varint_get64(const uint8_t *p, const uint8_t *end, int64_t *v) {
    uint64_t z;
    if (SHMB_LIKELY(end - p >= 1 && p[0] < 0x80)) {
        *v = shmb_unzigzag(p[0]);
        return p + 1;
    }
    p = shmb_varint_get_slow(p, end, &z, SHMB_VARINT64_MAX_BYTES);
    if (p) *v = shmb_unzigzag(z);
    return p;
}

/* ---- Partitioning ---- */

/* murmur2 with the seed of Kafka's Java client (Utils.murmur2); bytes are read little-endian. */
SHMB_INLINE uint32_t shmb_murmur2(const void *key, size_t n) {
    const uint32_t m = 0x5bd1e995;
    const uint8_t *p = (const uint8_t *)key;
    uint32_t h = 0x9747b28c ^ (uint32_t)n;
    for (; n >= 4; n -= 4, p += 4) {
        uint32_t k;
        memcpy(&k, p, sizeof k);
        k = SHMB_LE32(k) * m;
        k ^= k >> 24;
        h = (h * m) ^ (k * m);
    }
    if (n == 3) h ^= (uint32_t)p[2] << 16;
    if (n >= 2) h ^= (uint32_t)p[1] << 8;
    if (n >= 1) h = (h ^ p[0]) * m;
    h ^= h >> 13;
    h *= m;
    return h ^ (h >> 15);
}

/* The partition of a key among `partitions` (> 0), as Kafka's default partitioner has it. */
SHMB_INLINE int32_t shmb_partition_for_key(const void *key, size_t n, int32_t partitions) {
    return (int32_t)(shmb_murmur2(key, n) & 0x7fffffff) % partitions;
}

#endif
