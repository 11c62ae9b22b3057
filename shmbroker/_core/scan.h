/* Reading segment files batch by batch: recovery's scan, the search for a batch behind a failure,
 * look-ups by offset and time, the consumer's fetch, and the measure of what sendfile sends.
 *
 * Who calls: the writer process's housekeeper (scan, find), any process that reads segments (locate,
 * fetch), `shmbroker log`. Nothing here writes a file. All functions run without the GIL; they read with
 * pread, so the file's position is never moved, and allocate one buffer a call at most.
 *
 *   position                      valid_end                               limit
 *      |  batch | batch | batch |    | zeros, a torn or damaged batch …    |
 *      +---------- scanned ----------+
 *
 * A batch is valid when shmb_batch_check() says so (length, magic, CRC, attributes, count), its base
 * offset is the one expected, and its leader epoch is neither below its predecessor's nor outside of
 * [min_epoch, max_epoch]. Base offset and epoch lie outside of the CRC; these two rules are their
 * check. The epoch rule is also what keeps out ghosts: batches that a recovery cut off.
 */
#ifndef SHMB_SCAN_H
#define SHMB_SCAN_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "batch.h"
#include "producers.h"

enum {
    SHMB_SCAN_CHUNK_BYTES = 1 << 20, /* one read; grows for a larger batch */
    SHMB_SCAN_FIRST_BYTES = 64 << 10, /* the first one: with many partitions little is behind it */
    SHMB_SCAN_HOLE_BYTES = 4096,      /* one in space that was never written */
    SHMB_SCAN_WALK_BYTES = 16 << 10, /* one read of a header walk, where batches are small */
    SHMB_SCAN_MEASURE_BYTES = 4 << 10, /* the same, of a walk over batches that are sent by sendfile */
};

/* Why a scan ended. From SHMB_SCAN_BATCH on: SHMB_SCAN_BATCH + enum shmb_batch_error. */
enum shmb_scan_stop {
    SHMB_SCAN_END = 0,    /* the limit, or the end of the file, behind a whole batch */
    SHMB_SCAN_ZEROS = 1,  /* zeros where a batch would begin: preallocated space */
    SHMB_SCAN_SHORT = 2,  /* the limit or the end of the file cuts a batch off */
    SHMB_SCAN_OFFSET = 3, /* a valid batch with another base offset: stale, or header damage */
    SHMB_SCAN_EPOCH = 4,  /* ... with a leader epoch that can't stand here */
    SHMB_SCAN_IO = 5,     /* pread failed: `error` */
    SHMB_SCAN_MEMORY = 6, /* malloc failed */
    SHMB_SCAN_BATCH = 16,
};

/* One offset index entry, as the sequencer hands them over too. */
struct shmb_scan_entry {
    int64_t offset;        /* of the last record of the batch (as in Kafka's .index) */
    int64_t position;      /* of the batch's first byte in the segment file */
    int64_t max_timestamp; /* ms; largest of the segment up to this batch, inclusive */
};
_Static_assert(sizeof(struct shmb_scan_entry) == 24, "packed: add_index_entries() takes these bytes");

struct shmb_scan_epoch {
    int64_t start_offset; /* of the first batch of that epoch, inclusive */
    int32_t epoch;
    int32_t pad;
};

struct shmb_scan {
    /* in */
    int fd;
    int32_t min_epoch;            /* also out: of the last valid batch */
    int32_t max_epoch;
    int64_t position;             /* where a batch begins */
    int64_t limit;                /* nothing at or behind it is looked at; the file's size at most */
    int64_t next_offset;          /* expected; also out: last offset + 1 */
    int64_t index_interval_bytes; /* 0: no entries */
    int64_t bytes_since_index;    /* also out */
    int64_t max_timestamp;        /* also out; -1: none */
    struct shmb_producers *producers; /* or NULL */
    /* out */
    int stop;                     /* enum shmb_scan_stop */
    int error;                    /* errno of SHMB_SCAN_IO */
    int64_t valid_end;            /* file position behind the last valid batch */
    int64_t batches, records;
    int64_t stop_offset;          /* of the batch at valid_end, where a header is there; else -1 */
    int32_t stop_epoch;
    int64_t stop_bytes;           /* size of the batch at valid_end as its header says; else 0 */
    struct shmb_scan_entry *entries; /* free() them */
    size_t entry_count, entry_room;
    struct shmb_scan_epoch *epochs;  /* each change of the epoch; free() them */
    size_t epoch_count, epoch_room;
};

/* pread that goes on after signals and short reads. Returns bytes read (less only at the end of the
 * file) or -1. */
static int64_t shmb_pread_full(int fd, uint8_t *p, size_t n, int64_t position) {
    size_t got = 0;
    while (got < n) {
        ssize_t r = pread(fd, p + got, n - got, position + (int64_t)got);
        if (r < 0 && errno == EINTR) continue;
        if (r < 0) return -1;
        if (r == 0) break;
        got += (size_t)r;
    }
    return (int64_t)got;
}

static int shmb_all_zero(const uint8_t *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        if (v) return 0;
    }
    for (; n; n--)
        if (*p++) return 0;
    return 1;
}

/* Room for one more element of `each` bytes. Returns the array, perhaps moved, or NULL. */
static void *shmb_scan_room(void *array, size_t count, size_t *room, size_t each) {
    if (count < *room) return array;
    size_t more = *room ? 2 * *room : 64;
    void *moved = realloc(array, more * each);
    if (moved) *room = more;
    return moved;
}

static int shmb_scan_note_epoch(struct shmb_scan *s, int32_t epoch, int64_t offset) {
    if (s->epoch_count && s->epochs[s->epoch_count - 1].epoch == epoch) return 0;
    void *array = shmb_scan_room(s->epochs, s->epoch_count, &s->epoch_room, sizeof *s->epochs);
    if (!array) return SHMB_SCAN_MEMORY;
    s->epochs = (struct shmb_scan_epoch *)array;
    s->epochs[s->epoch_count++] = (struct shmb_scan_epoch){.start_offset = offset, .epoch = epoch};
    return 0;
}

/* Takes a batch that passed all checks; returns 0 or a stop reason. */
static int shmb_scan_take(struct shmb_scan *s, const uint8_t *p, size_t size) {
    int64_t timestamp = shmb_batch_max_timestamp(p), last_offset = shmb_batch_last_offset(p);
    if (timestamp > s->max_timestamp) s->max_timestamp = timestamp;
    if (s->index_interval_bytes && s->bytes_since_index > s->index_interval_bytes) {
        void *array = shmb_scan_room(s->entries, s->entry_count, &s->entry_room, sizeof *s->entries);
        if (!array) return SHMB_SCAN_MEMORY;
        s->entries = (struct shmb_scan_entry *)array;
        s->entries[s->entry_count++] = (struct shmb_scan_entry){last_offset, s->valid_end,
                                                                s->max_timestamp};
        s->bytes_since_index = 0;
    }
    s->bytes_since_index += (int64_t)size;
    int32_t epoch = shmb_batch_leader_epoch(p), sequence = shmb_batch_base_sequence(p);
    if (shmb_scan_note_epoch(s, epoch, shmb_batch_base_offset(p))) return SHMB_SCAN_MEMORY;
    int64_t producer_id = shmb_batch_producer_id(p);
    if (s->producers && producer_id >= 0 && sequence >= 0 &&
        shmb_producers_record(s->producers, producer_id, shmb_batch_producer_epoch(p), sequence,
                              shmb_batch_record_count(p), shmb_batch_base_offset(p), timestamp))
        return SHMB_SCAN_MEMORY;
    s->min_epoch = epoch;
    s->next_offset = last_offset + 1;
    s->valid_end += (int64_t)size;
    s->batches++;
    s->records += shmb_batch_record_count(p);
    return 0;
}

/* Judges the batch at `p`, of which `n` bytes are there; `more` says that the file goes on behind
 * them. Returns 0 (valid, *size set), -1 (more bytes are needed: *size, or a header), or a reason. */
static int shmb_scan_judge(struct shmb_scan *s, const uint8_t *p, size_t n, int more, size_t *size) {
    *size = 0;
    if (n < SHMB_BATCH_HEADER_BYTES) {
        if (more) return -1;
        return shmb_all_zero(p, n) ? SHMB_SCAN_ZEROS : SHMB_SCAN_SHORT;
    }
    int error = shmb_batch_check(p, n, SHMB_BATCH_FROM_LOG, size);
    if (error == SHMB_BATCH_LENGTH && shmb_all_zero(p, SHMB_BATCH_HEADER_BYTES))
        return SHMB_SCAN_ZEROS;
    s->stop_offset = shmb_batch_base_offset(p);
    s->stop_epoch = shmb_batch_leader_epoch(p);
    s->stop_bytes = (int64_t)*size;
    if (error == SHMB_BATCH_SHORT) {
        if ((int64_t)*size > s->limit - s->valid_end) return SHMB_SCAN_SHORT;
        return more ? -1 : SHMB_SCAN_SHORT;
    }
    if (error) return SHMB_SCAN_BATCH + error;
    if (s->stop_offset != s->next_offset) return SHMB_SCAN_OFFSET;
    if (s->stop_epoch < s->min_epoch || s->stop_epoch > s->max_epoch) return SHMB_SCAN_EPOCH;
    return 0;
}

/* Where the next data (SEEK_DATA) or hole (SEEK_HOLE) at or behind `position` begins, at most `end`;
 * `otherwise` where the question can't be asked. Preallocated space that was never written is a hole:
 * a search through it costs nothing. */
static int64_t shmb_next_place(int fd, int64_t position, int64_t end, int what, int64_t otherwise) {
    off_t place = lseek(fd, position, what);
    if (place < 0) return errno == ENXIO ? end : otherwise;
    return place < end ? place : end;
}

/* Scans from s->position on; fills the fields marked out. Sets s->stop, which it returns. */
static int shmb_scan_run(struct shmb_scan *s) {
    size_t room = SHMB_SCAN_CHUNK_BYTES, have = 0, at = 0, size = 0;
    int64_t read_at = s->position, data_end = s->position;
    if (s->limit - s->position < (int64_t)room) /* small tails are common with many partitions */
        room = s->limit > s->position ? (size_t)(s->limit - s->position) : 1;
    uint8_t *buffer = (uint8_t *)malloc(room);
    s->valid_end = s->position;
    s->stop_offset = -1;
    s->stop = buffer ? -1 : SHMB_SCAN_MEMORY;
    while (s->stop < 0) {
        /* keep what is left of the last chunk, make room for a large batch, read on */
        memmove(buffer, buffer + at, have - at);
        have -= at;
        at = 0;
        if (size > room) {
            uint8_t *larger = (uint8_t *)realloc(buffer, size);
            if (!larger) {
                s->stop = SHMB_SCAN_MEMORY;
                break;
            }
            buffer = larger;
            room = size;
        }
        size_t want = room - have;
        if (read_at == s->position && want > SHMB_SCAN_FIRST_BYTES) want = SHMB_SCAN_FIRST_BYTES;
        /* No further than written data goes: unwritten space that was read once is no hole any more
         * for the search that follows. At a hole one block is read, and its zeros end the scan. */
        if (read_at >= data_end)
            data_end = shmb_next_place(s->fd, read_at, s->limit, SEEK_HOLE, s->limit);
        int64_t run = data_end > read_at ? data_end - read_at : SHMB_SCAN_HOLE_BYTES;
        if ((int64_t)want > run) want = (size_t)run;
        if ((int64_t)want > s->limit - read_at) want = (size_t)(s->limit - read_at);
        int64_t got = shmb_pread_full(s->fd, buffer + have, want, read_at);
        if (got < 0) {
            s->error = errno;
            s->stop = SHMB_SCAN_IO;
            break;
        }
        have += (size_t)got;
        read_at += got;
        int more = got > 0 && read_at < s->limit;
        while (s->stop < 0) {
            if (at == have && !more) {
                s->stop = SHMB_SCAN_END;
                break;
            }
            int verdict = shmb_scan_judge(s, buffer + at, have - at, more, &size);
            if (verdict < 0) break; /* read on */
            if (verdict == 0) {
                verdict = shmb_scan_take(s, buffer + at, size);
                at += size;
                size = 0;
            }
            if (verdict) s->stop = verdict;
        }
    }
    free(buffer);
    return s->stop;
}

/* ---- Searching behind a failure ---- */

struct shmb_found {
    int64_t position;    /* of the batch, or -1: none */
    int64_t bytes;       /* of the batch */
    int64_t base_offset;
    int32_t epoch;
    int error;           /* errno, or 0 */
    int64_t last_nonzero; /* position of the last byte searched that is not 0, or -1 */
    int64_t read_bytes;
};

static void shmb_find_note_nonzero(struct shmb_found *found, const uint8_t *p, size_t n,
                                   int64_t position) {
    while (n && !p[n - 1]) n--;
    if (n) found->last_nonzero = position + (int64_t)n - 1;
}

/* What the search looks for: whole, valid, and of this log. */
struct shmb_wanted {
    int64_t min_end;    /* it ends behind this file position */
    int64_t min_offset; /* its base offset is at least this */
    int32_t min_epoch, max_epoch;
    int64_t max_bytes;
    int64_t end;        /* it ends at or before this file position */
};

/* Verifies the CRC of the batch at `position`, of which `n` bytes at `p` are here and the rest is in the
 * file; `scratch` has SHMB_SCAN_CHUNK_BYTES. Returns 1, 0, or -1 with errno. */
static int shmb_find_crc(int fd, const uint8_t *p, size_t n, int64_t position, size_t size,
                         uint8_t *scratch) {
    uint32_t expected = shmb_batch_crc(p);
    if (n > size) n = size;
    uint32_t crc = shmb_crc32c(0, p + SHMB_BATCH_ATTRIBUTES, n - SHMB_BATCH_ATTRIBUTES);
    while (n < size) {
        size_t want = size - n < SHMB_SCAN_CHUNK_BYTES ? size - n : (size_t)SHMB_SCAN_CHUNK_BYTES;
        int64_t got = shmb_pread_full(fd, scratch, want, position + (int64_t)n);
        if (got < (int64_t)want) return got < 0 ? -1 : 0;
        crc = shmb_crc32c(crc, scratch, want);
        n += want;
    }
    return crc == expected;
}

/* Searches the batches that begin in the `n` bytes at `p`, which lie at file position `base`, whole
 * headers only. Returns 1 when one was found, 0, or -1 with errno. */
static int shmb_find_in(int fd, const uint8_t *p, size_t n, int64_t base,
                        const struct shmb_wanted *w, uint8_t *scratch, struct shmb_found *found) {
    size_t at = 0;
    while (n - at >= SHMB_BATCH_HEADER_BYTES && at < n) {
        const uint8_t *magic =
            (const uint8_t *)memchr(p + at + SHMB_BATCH_MAGIC_AT, SHMB_BATCH_MAGIC_V2,
                                    n - at - (SHMB_BATCH_HEADER_BYTES - 1));
        if (!magic) return 0;
        const uint8_t *q = magic - SHMB_BATCH_MAGIC_AT;
        at = (size_t)(q - p) + 1;
        int64_t position = base + (q - p), size = (int64_t)shmb_batch_size(q);
        int32_t epoch = shmb_batch_leader_epoch(q);
        if (size < SHMB_BATCH_HEADER_BYTES || size > w->max_bytes || size > w->end - position ||
            position + size <= w->min_end || shmb_batch_base_offset(q) < w->min_offset ||
            epoch < w->min_epoch || epoch > w->max_epoch ||
            shmb_batch_check_fields(q, (size_t)size, SHMB_BATCH_FROM_LOG | SHMB_BATCH_COMPACTED))
            continue;
        int right = shmb_find_crc(fd, q, n - (size_t)(q - p), position, (size_t)size, scratch);
        if (right < 0) return -1;
        if (!right) continue;
        found->position = position;
        found->bytes = size;
        found->base_offset = shmb_batch_base_offset(q);
        found->epoch = epoch;
        return 1;
    }
    return 0;
}

/* The first valid batch that begins in [start, w->end) and is as wanted: what tells a torn tail from
 * damage. Chunks overlap by a header less a byte; a batch that goes on behind its chunk is verified
 * from the file, so memory does not depend on the size of batches. */
static void shmb_find_batch_after(int fd, int64_t start, const struct shmb_wanted *w,
                                  struct shmb_found *found) {
    memset(found, 0, sizeof *found);
    found->position = found->last_nonzero = -1;
    if (start >= w->end) return;
    size_t room = SHMB_SCAN_CHUNK_BYTES, have = 0;
    uint8_t *buffer = (uint8_t *)malloc(room + SHMB_SCAN_CHUNK_BYTES);
    if (!buffer) {
        found->error = ENOMEM;
        return;
    }
    int64_t base = start, run_end = start; /* file position of buffer[0]; end of the data it is in */
    while (base < w->end) {
        if (have == 0) { /* a header ends in a count, so none reaches from data into a hole */
            base = shmb_next_place(fd, base, w->end, SEEK_DATA, base);
            run_end = shmb_next_place(fd, base, w->end, SEEK_HOLE, w->end);
        }
        size_t want = room - have;
        if ((int64_t)want > run_end - base - (int64_t)have)
            want = (size_t)(run_end - base) - have;
        int64_t got = shmb_pread_full(fd, buffer + have, want, base + (int64_t)have);
        if (got > 0)
            shmb_find_note_nonzero(found, buffer + have, (size_t)got, base + (int64_t)have);
        have += got > 0 ? (size_t)got : 0;
        found->read_bytes += got > 0 ? got : 0;
        int hit = got < 0 ? -1 : shmb_find_in(fd, buffer, have, base, w, buffer + room, found);
        if (hit < 0) found->error = errno;
        if (hit || got < (int64_t)want) break;
        size_t keep = have < SHMB_BATCH_HEADER_BYTES ? have : SHMB_BATCH_HEADER_BYTES - 1;
        if (base + (int64_t)have >= run_end || shmb_all_zero(buffer + have - keep, keep)) keep = 0;
        memmove(buffer, buffer + have - keep, keep);
        base += (int64_t)(have - keep);
        have = keep;
    }
    free(buffer);
}

/* ---- Looking up: header walks that trust the log's CRCs ---- */

struct shmb_batch_at {
    int64_t position;      /* of the batch, or -1: none */
    int64_t bytes;
    int64_t base_offset;
    int64_t last_offset;   /* inclusive */
    int64_t max_timestamp; /* ms */
    int32_t epoch;
    int error;             /* errno, or 0 */
};

/* Whether a header at `p` makes sense without its CRC, for a batch that ends at or before `room`. */
SHMB_INLINE int shmb_header_plausible(const uint8_t *p, int64_t room) {
    size_t size;
    int error = shmb_batch_check(p, SHMB_BATCH_HEADER_BYTES,
                                 SHMB_BATCH_FROM_LOG | SHMB_BATCH_SKIP_CRC, &size);
    if (error && error != SHMB_BATCH_SHORT) return 0;
    if ((int64_t)size > room) return 0;
    return error == 0 ||
           shmb_batch_check_fields(p, size, SHMB_BATCH_FROM_LOG | SHMB_BATCH_COMPACTED) == 0;
}

/* Walks headers from `position` (where a batch begins) to the first batch whose last offset is at
 * least target_offset, or, with by_time, whose largest timestamp is at least target_timestamp and
 * whose last offset is at least target_offset. Stops without a find at `limit` (exclusive; a batch
 * that crosses it does not count), at anything that is no batch, and where offsets jump back. */
static void shmb_locate(int fd, int64_t position, int64_t limit, int64_t target_offset, int by_time,
                        int64_t target_timestamp, struct shmb_batch_at *out) {
    uint8_t buffer[SHMB_SCAN_WALK_BYTES];
    int64_t base = position, have = 0, before = -1;
    size_t chunk = 4096; /* the place is mostly near: the index has an entry every 4 KiB or so */
    memset(out, 0, sizeof *out);
    out->position = -1;
    while (position + SHMB_BATCH_HEADER_BYTES <= limit) {
        if (position + SHMB_BATCH_HEADER_BYTES > base + have) {
            base = position;
            int64_t want = limit - base < (int64_t)chunk ? limit - base : (int64_t)chunk;
            have = shmb_pread_full(fd, buffer, (size_t)want, base);
            chunk = sizeof buffer;
            if (have < 0) {
                out->error = errno;
                return;
            }
            if (have < SHMB_BATCH_HEADER_BYTES) return;
        }
        const uint8_t *p = buffer + (position - base);
        if (!shmb_header_plausible(p, limit - position)) return;
        if (shmb_batch_base_offset(p) <= before) return;
        before = shmb_batch_last_offset(p);
        if (before >= target_offset &&
            (!by_time || shmb_batch_max_timestamp(p) >= target_timestamp)) {
            out->position = position;
            out->bytes = (int64_t)shmb_batch_size(p);
            out->base_offset = shmb_batch_base_offset(p);
            out->last_offset = before;
            out->max_timestamp = shmb_batch_max_timestamp(p);
            out->epoch = shmb_batch_leader_epoch(p);
            return;
        }
        position += (int64_t)shmb_batch_size(p);
    }
}

/* The batch that begins at `position` and ends before `limit`, by its header alone, which is all that is
 * read. out->position is -1 when there is none. */
static void shmb_header_at(int fd, int64_t position, int64_t limit, struct shmb_batch_at *out) {
    uint8_t p[SHMB_BATCH_HEADER_BYTES];
    memset(out, 0, sizeof *out);
    out->position = -1;
    if (position + SHMB_BATCH_HEADER_BYTES > limit) return;
    int64_t have = shmb_pread_full(fd, p, sizeof p, position);
    if (have < 0) out->error = errno;
    if (have < SHMB_BATCH_HEADER_BYTES || !shmb_header_plausible(p, limit - position)) return;
    out->position = position;
    out->bytes = (int64_t)shmb_batch_size(p);
    out->base_offset = shmb_batch_base_offset(p);
    out->last_offset = shmb_batch_last_offset(p);
    out->max_timestamp = shmb_batch_max_timestamp(p);
    out->epoch = shmb_batch_leader_epoch(p);
}

/* Counts the whole batches at the start of `n` bytes, the first of which has base offset *next_offset
 * (-1: any). Returns their bytes and moves *next_offset on. *needed is the size of the batch that the
 * end cuts off (0: not known, or nothing is cut off); *foreign is set where something that is no next
 * batch stands: zeros, the end of the log's data. */
static int64_t shmb_whole_batches(const uint8_t *p, int64_t n, int64_t *next_offset, int64_t *needed,
                                  int *foreign) {
    int64_t at = 0;
    *needed = 0;
    *foreign = 0;
    while (n - at >= SHMB_BATCH_HEADER_BYTES) {
        const uint8_t *q = p + at;
        if (!shmb_header_plausible(q, INT64_MAX) ||
            (*next_offset >= 0 && shmb_batch_base_offset(q) != *next_offset)) {
            *foreign = 1;
            return at;
        }
        int64_t size = (int64_t)shmb_batch_size(q);
        if (size > n - at) {
            *needed = size;
            return at;
        }
        *next_offset = shmb_batch_last_offset(q) + 1;
        at += size;
    }
    return at;
}

/* Measures whole batches of the file from `position` (where one begins) on, by their headers alone: for
 * those who send them from the file without reading them. The same batches as a read of max_bytes and
 * shmb_whole_batches give: at most max_bytes, but always one if there is one; none that reaches past
 * `limit` or the end of the file. Returns their bytes, or -1 with errno; moves *next_offset on (-1
 * before: any). *more is set where max_bytes alone was the end. */
static int64_t shmb_measure_batches(int fd, int64_t position, int64_t limit, int64_t max_bytes,
                                    int64_t *next_offset, int *more) {
    uint8_t buffer[SHMB_SCAN_MEASURE_BYTES];
    struct stat file;
    *more = 0;
    if (fstat(fd, &file)) return -1;
    if (limit > (int64_t)file.st_size) limit = (int64_t)file.st_size;
    int64_t at = position, base = position, have = 0, size = 0;
    while (at + SHMB_BATCH_HEADER_BYTES <= limit) {
        if (at + SHMB_BATCH_HEADER_BYTES > base + have) {
            /* Behind a large batch the next is large, too: then its header is all that is wanted. */
            int64_t want = size > (int64_t)sizeof buffer / 2 ? SHMB_BATCH_HEADER_BYTES
                                                             : (int64_t)sizeof buffer;
            if (want > limit - at) want = limit - at;
            base = at;
            have = shmb_pread_full(fd, buffer, (size_t)want, at);
            if (have < 0) return -1;
            if (have < SHMB_BATCH_HEADER_BYTES) break; /* cut meanwhile */
        }
        const uint8_t *p = buffer + (at - base);
        if (!shmb_header_plausible(p, limit - at) ||
            (*next_offset >= 0 && shmb_batch_base_offset(p) != *next_offset))
            break;
        size = (int64_t)shmb_batch_size(p);
        if (at > position && at + size - position > max_bytes) {
            *more = 1;
            break;
        }
        *next_offset = shmb_batch_last_offset(p) + 1;
        at += size;
    }
    return at - position;
}

#endif
