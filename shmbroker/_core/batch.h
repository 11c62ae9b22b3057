/* Kafka record batch v2: the one format in rings, on disk and on the wire.
 *
 *  byte 0               4               8               12              16
 *      +-------------------------------+---------------+---------------+
 *    0 |          baseOffset           |  batchLength  |partitionLeader|
 *      |            int64 *            | int32, from 12|  Epoch int32 *|
 *      +---+---------------+-------+---+-----------+---+---------------+
 *   16 | 2 |   crc uint32  | attri-|lastOffsetDelta|  baseTimestamp
 *      |   | CRC-32C of 21-| butes |     int32     |   int64, ms
 *      +---+-----------+---+-------+---------------+---------------+---+
 *   32   baseTimestamp |         maxTimestamp          | producerId
 *        (from 27 to 34)        int64, ms              | int64, from 43
 *      +---------------+-------+---------------+-------+-------+-------+
 *   48   producerId    |producer| baseSequence |  recordCount  |records
 *        (to 50)       | Epoch  | int32, at 53 |  int32, at 57 |from 61
 *      +---------------+-------+---------------+---------------+-------+
 *
 *   attributes  15 ... 7 | 6             | 5       | 4             | 3             | 2 1 0
 *               zero     | deleteHorizon | control | transactional | timestampType | compression
 *
 * All integers are big-endian. What bears * is stamped by the sequencer and lies outside of the
 * CRC, so a batch is checksummed once, by the producer. `crc` covers byte 21 (attributes) to the
 * end. recordCount = lastOffsetDelta + 1 until compaction. Records (record.h) are compressed as a
 * whole.
 *
 * Who writes: the producer fills everything (shmb_batch_seal), the sequencer stamps its own copy
 * (shmb_batch_stamp). Who validates: the sequencer (the copy, never the client's memory) and
 * recovery. No function allocates, blocks or needs the GIL. None reads outside of [p, p + n).
 * Source: https://kafka.apache.org/documentation/#recordbatch and DefaultRecordBatch.java.
 */
#ifndef SHMB_BATCH_H
#define SHMB_BATCH_H

#include "crc32c.h"
#include "record.h"

/* The header, byte by byte: no field is aligned and all are big-endian. Gives offsets only. */
struct shmb_batch_header {
    uint8_t base_offset[8];            /* of the first record, inclusive */
    uint8_t batch_length[4];           /* bytes behind this field */
    uint8_t partition_leader_epoch[4]; /* of the writer that appended the batch */
    uint8_t magic[1];                  /* 2 */
    uint8_t crc[4];                    /* CRC-32C of everything below, to the batch's end */
    uint8_t attributes[2];             /* SHMB_ATTR_* */
    uint8_t last_offset_delta[4];      /* last offset (inclusive) - base offset */
    uint8_t base_timestamp[8];         /* ms; delete horizon in compacted batches */
    uint8_t max_timestamp[8];          /* ms, largest of the records */
    uint8_t producer_id[8];            /* -1: neither idempotent nor transactional */
    uint8_t producer_epoch[2];         /* -1 without producer id */
    uint8_t base_sequence[4];          /* of the first record; -1 without producer id */
    uint8_t record_count[4];           /* records in the batch */
};
_Static_assert(sizeof(struct shmb_batch_header) == 61, "Kafka's RECORD_BATCH_OVERHEAD");
_Static_assert(_Alignof(struct shmb_batch_header) == 1, "laid over unaligned bytes");

enum {
    SHMB_BATCH_BASE_OFFSET = offsetof(struct shmb_batch_header, base_offset),
    SHMB_BATCH_BATCH_LENGTH = offsetof(struct shmb_batch_header, batch_length),
    SHMB_BATCH_LEADER_EPOCH = offsetof(struct shmb_batch_header, partition_leader_epoch),
    SHMB_BATCH_MAGIC_AT = offsetof(struct shmb_batch_header, magic),
    SHMB_BATCH_CRC_AT = offsetof(struct shmb_batch_header, crc),
    SHMB_BATCH_ATTRIBUTES = offsetof(struct shmb_batch_header, attributes),
    SHMB_BATCH_LAST_OFFSET_DELTA = offsetof(struct shmb_batch_header, last_offset_delta),
    SHMB_BATCH_BASE_TIMESTAMP = offsetof(struct shmb_batch_header, base_timestamp),
    SHMB_BATCH_MAX_TIMESTAMP = offsetof(struct shmb_batch_header, max_timestamp),
    SHMB_BATCH_PRODUCER_ID = offsetof(struct shmb_batch_header, producer_id),
    SHMB_BATCH_PRODUCER_EPOCH = offsetof(struct shmb_batch_header, producer_epoch),
    SHMB_BATCH_BASE_SEQUENCE = offsetof(struct shmb_batch_header, base_sequence),
    SHMB_BATCH_RECORD_COUNT = offsetof(struct shmb_batch_header, record_count),
    SHMB_BATCH_HEADER_BYTES = sizeof(struct shmb_batch_header),
    SHMB_BATCH_LOG_OVERHEAD = 12, /* baseOffset and batchLength, which batchLength leaves out */
    SHMB_BATCH_MAGIC_V2 = 2,
};
_Static_assert(SHMB_BATCH_MAGIC_AT == 16 && SHMB_BATCH_CRC_AT == 17, "Kafka's offsets");
_Static_assert(SHMB_BATCH_ATTRIBUTES == 21, "Kafka's offset");
_Static_assert(SHMB_BATCH_LAST_OFFSET_DELTA == 23, "Kafka's offset");
_Static_assert(SHMB_BATCH_BASE_TIMESTAMP == 27, "Kafka's offset");
_Static_assert(SHMB_BATCH_MAX_TIMESTAMP == 35, "Kafka's offset");
_Static_assert(SHMB_BATCH_PRODUCER_ID == 43 && SHMB_BATCH_PRODUCER_EPOCH == 51, "Kafka's offsets");
_Static_assert(SHMB_BATCH_BASE_SEQUENCE == 53 && SHMB_BATCH_RECORD_COUNT == 57, "Kafka's offsets");

/* Bits of `attributes`. */
enum {
    SHMB_ATTR_COMPRESSION = 0x07,    /* SHMB_COMPRESSION_* */
    SHMB_ATTR_LOG_APPEND_TIME = 0x08, /* timestampType; the broker's to set */
    SHMB_ATTR_TRANSACTIONAL = 0x10,
    SHMB_ATTR_CONTROL = 0x20,        /* a transaction's end; the broker's to set */
    SHMB_ATTR_DELETE_HORIZON = 0x40, /* baseTimestamp is one; the log cleaner's to set */
    SHMB_ATTR_KNOWN = 0x7f,
};
enum {
    SHMB_COMPRESSION_NONE = 0,
    SHMB_COMPRESSION_GZIP = 1,
    SHMB_COMPRESSION_SNAPPY = 2,
    SHMB_COMPRESSION_LZ4 = 3,
    SHMB_COMPRESSION_ZSTD = 4,
};

/* What is wrong with a batch; 0 is nothing. shmb_batch_error_name() words them for users. */
enum shmb_batch_error {
    SHMB_BATCH_OK = 0,
    SHMB_BATCH_SHORT = 1,     /* fewer bytes than a header, or than the header's length says */
    SHMB_BATCH_LENGTH = 2,    /* batchLength is impossible, or differs from the bytes given */
    SHMB_BATCH_MAGIC = 3,     /* not version 2 */
    SHMB_BATCH_CRC = 4,       /* checksum differs */
    SHMB_BATCH_COUNT = 5,     /* recordCount is not lastOffsetDelta + 1 > 0, or too large */
    SHMB_BATCH_ATTR = 6,      /* unknown attribute or compression, or one that is the broker's */
    SHMB_BATCH_CONTROL = 7,   /* control bit from a client */
    SHMB_BATCH_PRODUCER = 8,  /* producer id, epoch and sequence don't go together */
    SHMB_BATCH_OFFSET = 9,    /* base offset negative, or last offset past int64 */
    SHMB_BATCH_TRANSACTIONAL = 10, /* of a transaction, which are not supported yet */
};

/* Flags of shmb_batch_check() and shmb_batch_validate(): what to allow besides a client's
 * batches. */
enum {
    SHMB_BATCH_FROM_CLIENT = 0,
    SHMB_BATCH_FROM_LOG = 1,    /* control, LogAppendTime, deleteHorizon; checks base offset */
    SHMB_BATCH_COMPACTED = 2,   /* recordCount may be below lastOffsetDelta + 1, also 0 */
    SHMB_BATCH_SKIP_CRC = 4,    /* the header alone, where the CRC was verified before */
};

static __attribute__((unused)) const char *shmb_batch_error_name(int error) {
    switch (error) {
    case SHMB_BATCH_OK: return "ok";
    case SHMB_BATCH_SHORT: return "batch is cut off";
    case SHMB_BATCH_LENGTH: return "batch length is wrong";
    case SHMB_BATCH_MAGIC: return "batch is not of version 2";
    case SHMB_BATCH_CRC: return "batch checksum is wrong";
    case SHMB_BATCH_COUNT: return "batch record count is wrong";
    case SHMB_BATCH_ATTR: return "batch attributes are not allowed";
    case SHMB_BATCH_CONTROL: return "control batch from a client";
    case SHMB_BATCH_PRODUCER: return "batch producer id, epoch and sequence don't go together";
    case SHMB_BATCH_OFFSET: return "batch base offset is wrong";
    case SHMB_BATCH_TRANSACTIONAL: return "transactions are not supported yet";
    default: return "unknown batch error";
    }
}

/* ---- Fields. `p` must have SHMB_BATCH_HEADER_BYTES bytes. ---- */

SHMB_INLINE int64_t shmb_batch_base_offset(const uint8_t *p) {
    return shmb_get_be64(p + SHMB_BATCH_BASE_OFFSET);
}
/* Bytes of the whole batch; meaningful after shmb_batch_check(). */
SHMB_INLINE size_t shmb_batch_size(const uint8_t *p) {
    return (size_t)(uint32_t)shmb_get_be32(p + SHMB_BATCH_BATCH_LENGTH) + SHMB_BATCH_LOG_OVERHEAD;
}
SHMB_INLINE int32_t shmb_batch_leader_epoch(const uint8_t *p) {
    return shmb_get_be32(p + SHMB_BATCH_LEADER_EPOCH);
}
SHMB_INLINE uint32_t shmb_batch_crc(const uint8_t *p) {
    return (uint32_t)shmb_get_be32(p + SHMB_BATCH_CRC_AT);
}
SHMB_INLINE int shmb_batch_attributes(const uint8_t *p) {
    return (uint16_t)shmb_get_be16(p + SHMB_BATCH_ATTRIBUTES);
}
SHMB_INLINE int shmb_batch_compression(const uint8_t *p) {
    return shmb_batch_attributes(p) & SHMB_ATTR_COMPRESSION;
}
SHMB_INLINE int32_t shmb_batch_last_offset_delta(const uint8_t *p) {
    return shmb_get_be32(p + SHMB_BATCH_LAST_OFFSET_DELTA);
}
/* Offset of the last record, inclusive. */
SHMB_INLINE int64_t shmb_batch_last_offset(const uint8_t *p) {
    return shmb_batch_base_offset(p) + shmb_batch_last_offset_delta(p);
}
SHMB_INLINE int64_t shmb_batch_base_timestamp(const uint8_t *p) {
    return shmb_get_be64(p + SHMB_BATCH_BASE_TIMESTAMP);
}
SHMB_INLINE int64_t shmb_batch_max_timestamp(const uint8_t *p) {
    return shmb_get_be64(p + SHMB_BATCH_MAX_TIMESTAMP);
}
SHMB_INLINE int64_t shmb_batch_producer_id(const uint8_t *p) {
    return shmb_get_be64(p + SHMB_BATCH_PRODUCER_ID);
}
SHMB_INLINE int16_t shmb_batch_producer_epoch(const uint8_t *p) {
    return shmb_get_be16(p + SHMB_BATCH_PRODUCER_EPOCH);
}
SHMB_INLINE int32_t shmb_batch_base_sequence(const uint8_t *p) {
    return shmb_get_be32(p + SHMB_BATCH_BASE_SEQUENCE);
}
SHMB_INLINE int32_t shmb_batch_record_count(const uint8_t *p) {
    return shmb_get_be32(p + SHMB_BATCH_RECORD_COUNT);
}

/* ---- Writing ---- */

/* Where the records of a batch at `p` go. The header is filled when the batch is sealed, so that
 * an abandoned one never looks valid: its magic byte is cleared here. */
SHMB_INLINE uint8_t *shmb_batch_begin(uint8_t *p) {
    p[SHMB_BATCH_MAGIC_AT] = 0;
    return p + SHMB_BATCH_HEADER_BYTES;
}

/* Computes the CRC over everything behind it and stores it. */
SHMB_INLINE void shmb_batch_put_crc(uint8_t *p, size_t size) {
    uint32_t crc = shmb_crc32c(0, p + SHMB_BATCH_ATTRIBUTES, size - SHMB_BATCH_ATTRIBUTES);
    shmb_put_be32(p + SHMB_BATCH_CRC_AT, (int32_t)crc);
}

/* Fills the header of the batch at `p` whose records end before `end`, and its CRC; returns the
 * batch's size in bytes. Base offset and leader epoch are 0 until shmb_batch_stamp(). `count` > 0
 * records with offset deltas 0 to count - 1; first_ts (the base of the records' deltas) and
 * max_ts in ms. Without idempotence producer_id, producer_epoch and base_sequence are -1. */
SHMB_INLINE size_t shmb_batch_seal(uint8_t *p, const uint8_t *end, int attributes,
                                   int32_t base_sequence, int64_t producer_id,
                                   int16_t producer_epoch, int64_t first_ts, int64_t max_ts,
                                   int32_t count) {
    size_t size = (size_t)(end - p);
    shmb_put_be64(p + SHMB_BATCH_BASE_OFFSET, 0);
    shmb_put_be32(p + SHMB_BATCH_BATCH_LENGTH, (int32_t)(size - SHMB_BATCH_LOG_OVERHEAD));
    shmb_put_be32(p + SHMB_BATCH_LEADER_EPOCH, 0);
    p[SHMB_BATCH_MAGIC_AT] = SHMB_BATCH_MAGIC_V2;
    shmb_put_be16(p + SHMB_BATCH_ATTRIBUTES, (int16_t)attributes);
    shmb_put_be32(p + SHMB_BATCH_LAST_OFFSET_DELTA, count - 1);
    shmb_put_be64(p + SHMB_BATCH_BASE_TIMESTAMP, first_ts);
    shmb_put_be64(p + SHMB_BATCH_MAX_TIMESTAMP, max_ts);
    shmb_put_be64(p + SHMB_BATCH_PRODUCER_ID, producer_id);
    shmb_put_be16(p + SHMB_BATCH_PRODUCER_EPOCH, producer_epoch);
    shmb_put_be32(p + SHMB_BATCH_BASE_SEQUENCE, base_sequence);
    shmb_put_be32(p + SHMB_BATCH_RECORD_COUNT, count);
    shmb_batch_put_crc(p, size);
    return size;
}

/* What the sequencer adds to its copy of a batch; the CRC stays right. */
SHMB_INLINE void shmb_batch_stamp(uint8_t *p, int64_t base_offset, int32_t leader_epoch) {
    shmb_put_be64(p + SHMB_BATCH_BASE_OFFSET, base_offset);
    shmb_put_be32(p + SHMB_BATCH_LEADER_EPOCH, leader_epoch);
}

/* ---- Validating ---- */

/* Count, attributes, producer and offsets of a header whose batch has `size` bytes. */
static __attribute__((unused)) int shmb_batch_check_fields(const uint8_t *p, size_t size,
                                                           unsigned flags) {
    int attributes = shmb_batch_attributes(p);
    if (attributes & ~SHMB_ATTR_KNOWN) return SHMB_BATCH_ATTR;
    int compression = attributes & SHMB_ATTR_COMPRESSION;
    if (compression > SHMB_COMPRESSION_ZSTD) return SHMB_BATCH_ATTR;
    if (!(flags & SHMB_BATCH_FROM_LOG)) {
        if (attributes & SHMB_ATTR_CONTROL) return SHMB_BATCH_CONTROL;
        /* No coordinator would ever end it, and later versions would take it for an open transaction. */
        if (attributes & SHMB_ATTR_TRANSACTIONAL) return SHMB_BATCH_TRANSACTIONAL;
        if (attributes & (SHMB_ATTR_LOG_APPEND_TIME | SHMB_ATTR_DELETE_HORIZON))
            return SHMB_BATCH_ATTR;
    }
    int32_t count = shmb_batch_record_count(p), last = shmb_batch_last_offset_delta(p);
    if (flags & SHMB_BATCH_COMPACTED) {
        if (last < 0 || count < 0 || count > (int64_t)last + 1) return SHMB_BATCH_COUNT;
    } else if (last < 0 || count != (int64_t)last + 1) {
        return SHMB_BATCH_COUNT;
    }
    if (compression == SHMB_COMPRESSION_NONE &&
        (size_t)count > (size - SHMB_BATCH_HEADER_BYTES) / SHMB_RECORD_OVERHEAD_MIN)
        return SHMB_BATCH_COUNT;
    int64_t producer_id = shmb_batch_producer_id(p);
    if (producer_id < -1) return SHMB_BATCH_PRODUCER;
    if (producer_id >= 0 && shmb_batch_producer_epoch(p) < 0) return SHMB_BATCH_PRODUCER;
    if (producer_id >= 0 && shmb_batch_base_sequence(p) < 0 && !(attributes & SHMB_ATTR_CONTROL))
        return SHMB_BATCH_PRODUCER;
    if (producer_id < 0 && (attributes & SHMB_ATTR_TRANSACTIONAL)) return SHMB_BATCH_PRODUCER;
    if (flags & SHMB_BATCH_FROM_LOG) {
        int64_t base = shmb_batch_base_offset(p);
        if (base < 0 || base > INT64_MAX - last) return SHMB_BATCH_OFFSET;
    }
    return SHMB_BATCH_OK;
}

/* Checks the batch at the start of `n` bytes, behind which other bytes may stand. Sets *size to
 * the batch's size in bytes as soon as its length field is plausible (else 0): with
 * SHMB_BATCH_SHORT that is how many bytes are needed. Recovery and readers of segments walk a
 * file with this. */
static __attribute__((unused)) int shmb_batch_check(const uint8_t *p, size_t n, unsigned flags,
                                                    size_t *size) {
    *size = 0;
    if (n < SHMB_BATCH_HEADER_BYTES) return SHMB_BATCH_SHORT;
    if (shmb_get_be32(p + SHMB_BATCH_BATCH_LENGTH) <
        SHMB_BATCH_HEADER_BYTES - SHMB_BATCH_LOG_OVERHEAD)
        return SHMB_BATCH_LENGTH;
    if (p[SHMB_BATCH_MAGIC_AT] != SHMB_BATCH_MAGIC_V2) return SHMB_BATCH_MAGIC;
    size_t whole = shmb_batch_size(p);
    *size = whole;
    if (whole > n) return SHMB_BATCH_SHORT;
    int error = shmb_batch_check_fields(p, whole, flags);
    if (error) return error;
    if (!(flags & SHMB_BATCH_SKIP_CRC) &&
        shmb_crc32c(0, p + SHMB_BATCH_ATTRIBUTES, whole - SHMB_BATCH_ATTRIBUTES) !=
            shmb_batch_crc(p))
        return SHMB_BATCH_CRC;
    return SHMB_BATCH_OK;
}

/* Checks that `n` bytes are exactly one batch. Returns 0 or an enum shmb_batch_error. */
static __attribute__((unused)) int shmb_batch_validate(const uint8_t *p, size_t n,
                                                       unsigned flags) {
    size_t size;
    int error = shmb_batch_check(p, n, flags, &size);
    return error ? error : size == n ? SHMB_BATCH_OK : SHMB_BATCH_LENGTH;
}

/* Finds the first whole valid batch in `n` bytes that may begin anywhere: what tells a torn tail
 * from damage. It must be of this log: base offset at least min_base_offset, leader epoch from
 * min_epoch to max_epoch (inclusive), at most max_batch_bytes long; its CRC is verified. Returns
 * its place and sets *size (bytes), or returns -1. A batch that the end of the buffer cuts off is
 * not found, so a caller that reads in chunks lets them overlap by max_batch_bytes.
 * The magic byte is searched with memchr, so zeros pass at memory speed; a CRC is computed only
 * where the whole header makes sense. */
static __attribute__((unused)) ptrdiff_t shmb_batch_find(
    const uint8_t *p, size_t n, int64_t min_base_offset, int32_t min_epoch, int32_t max_epoch,
    size_t max_batch_bytes, size_t *size) {
    size_t at = 0;
    *size = 0;
    while (n - at >= SHMB_BATCH_HEADER_BYTES) { /* at <= n */
        const uint8_t *magic = (const uint8_t *)memchr(
            p + at + SHMB_BATCH_MAGIC_AT, SHMB_BATCH_MAGIC_V2,
            n - at - (SHMB_BATCH_HEADER_BYTES - 1));
        if (!magic) return -1;
        const uint8_t *q = magic - SHMB_BATCH_MAGIC_AT;
        at = (size_t)(q - p);
        size_t whole = shmb_batch_size(q);
        int32_t epoch = shmb_batch_leader_epoch(q);
        if (whole >= SHMB_BATCH_HEADER_BYTES && whole <= n - at && whole <= max_batch_bytes &&
            shmb_batch_base_offset(q) >= min_base_offset && epoch >= min_epoch &&
            epoch <= max_epoch &&
            shmb_batch_check(q, n - at, SHMB_BATCH_FROM_LOG | SHMB_BATCH_COMPACTED, size) == 0)
            return (ptrdiff_t)at;
        at++;
    }
    *size = 0;
    return -1;
}

/* Sets a record cursor on the records of a batch that shmb_batch_check() found valid and that is
 * not compressed. */
SHMB_INLINE void shmb_batch_cursor_init(struct shmb_record_cursor *c, const uint8_t *p) {
    shmb_record_cursor_init(c, p + SHMB_BATCH_HEADER_BYTES,
                            shmb_batch_size(p) - SHMB_BATCH_HEADER_BYTES,
                            shmb_batch_record_count(p), shmb_batch_last_offset_delta(p));
}

#endif
