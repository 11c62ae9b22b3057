/* Mapping shared-memory objects: plain, and with their data twice in a row.
 *
 * Twice in a row (invariant 3) means that the byte at capacity + i is the byte at i, so that what
 * crosses the end of the ring is one piece for memcpy, for the CRC and for pwritev2.
 */
#ifndef SHMB_SHM_H
#define SHMB_SHM_H

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>


#include "layout.h"

/* Maps `bytes` of `fd` from its start. Returns NULL with errno. */
static inline void *shmb_map(int fd, size_t bytes, int writable)
{
    void *at = mmap(NULL, bytes, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

/* Maps [0, data_offset + capacity) and then the data once more behind it. Both are multiples of
 * SHMB_PAGE. Returns NULL with errno. Unmap with shmb_unmap_double. */
static inline void *shmb_map_double(int fd, size_t data_offset, size_t capacity, int writable)
{
    size_t whole = data_offset + 2 * capacity;
    int prot = PROT_READ | (writable ? PROT_WRITE : 0);
    uint8_t *at = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    if (mmap(at, data_offset + capacity, prot, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
        mmap(at + data_offset + capacity, capacity, prot, MAP_SHARED | MAP_FIXED, fd,
             (off_t)data_offset) == MAP_FAILED) {
        int why = errno;
        munmap(at, whole);
        errno = why;
        return NULL;
    }
    return at;
}
static inline void shmb_unmap_double(void *at, size_t data_offset, size_t capacity)
{
    munmap(at, data_offset + 2 * capacity);
}

static inline void shmb_preamble_write(void *object, uint32_t kind, uint32_t owner, uint64_t bytes,
                                       const uint8_t boot_id[16], const uint8_t dir_id[16])
{
    struct shmb_preamble *p = object;
    p->magic = SHMB_MAGIC;
    p->layout_version = SHMB_LAYOUT_VERSION;
    p->kind = kind;
    p->owner = owner;
    p->object_bytes = bytes;
    memcpy(p->boot_id, boot_id, 16);
    memcpy(p->dir_id, dir_id, 16);
    shmb_publish32(&p->ready, 1);
}

/* Why an object is not ours to use; 0 when it is. */
enum shmb_stranger { SHMB_OURS = 0, SHMB_NOT_READY, SHMB_OTHER_FORMAT, SHMB_OTHER_KIND, SHMB_OTHER_BOOT, SHMB_OTHER_DIR, SHMB_OTHER_SIZE };

static inline enum shmb_stranger shmb_preamble_check(const void *object, uint32_t kind, uint64_t bytes,
                                                     const uint8_t boot_id[16], const uint8_t dir_id[16])
{
    const struct shmb_preamble *p = object;
    if (!shmb_observe32(&p->ready))
        return SHMB_NOT_READY;
    if (p->magic != SHMB_MAGIC || p->layout_version != SHMB_LAYOUT_VERSION)
        return SHMB_OTHER_FORMAT;
    if (p->kind != kind)
        return SHMB_OTHER_KIND;
    if (memcmp(p->boot_id, boot_id, 16))
        return SHMB_OTHER_BOOT;
    if (memcmp(p->dir_id, dir_id, 16))
        return SHMB_OTHER_DIR;
    return p->object_bytes == bytes ? SHMB_OURS : SHMB_OTHER_SIZE;
}

#endif
