/* The engine in one process: a client thread, the sequencer, two flushers and a housekeeper, over plain
 * memory and files of a temporary directory. Segments are so small that the log rolls all the time and the
 * ring so small that it is full most of the time. At the end the files hold every batch once, in order.
 * No wait has a timeout: a lost wake-up hangs, and the alarm ends the test. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#undef NDEBUG
#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>

#include <sys/uio.h>

/* qemu-user 7 knows no pwritev2; durability is not what this test is about. */
#define SHMB_WRITE_DURABLE(fd, iov, n, at) pwritev(fd, iov, n, (off_t)(at))
#include "housekeep.h"

enum { FRAMES = 3000, RING = 128 << 10, INGRESS = 64 << 10, SEGMENT = 256 << 10, SLOTS = 256, FILES = 64 };

static struct shmb_engine engine;
static struct shmb_part *part;
static struct shmb_source source;
static shmb_a32 quit;
static int files[FILES], file_count, prepared = -1;
static uint64_t file_bytes[FILES];
static int64_t file_base[FILES];

static void *aligned(size_t n)
{
    void *p = NULL;
    assert(posix_memalign(&p, SHMB_PAGE, n) == 0);
    return memset(p, 0, n);
}

static int segment_file(void)
{
    char name[] = "/tmp/shmb-engine-XXXXXX";
    int fd = mkstemp(name);
    assert(fd >= 0 && unlink(name) == 0 && posix_fallocate(fd, 0, SEGMENT) == 0);
    return fd;
}

static void *sequence(void *unused)
{
    shmb_sequence(&engine, aligned(SHMB_PAGE));
    return unused;
}
static void *flush(void *unused)
{
    shmb_flusher_run(&engine, aligned(SHMB_PAGE));
    return unused;
}

/* What workers/writer.py does, at its shortest: names, seals, next segments. */
static void *housekeep(void *unused)
{
    uint64_t slot, count;
    while (!shmb_observe32(&quit)) {
        if (read(engine.wants_fd, &count, sizeof count) != (ssize_t)sizeof count) {
            struct timespec nap = {0, 100000};
            nanosleep(&nap, NULL);
            continue;
        }
        while (shmb_queue_pop(&engine.wants, &slot)) {
            shmb_publish32(&part->wants_queued, 0);
            uint32_t wants = shmb_observe32(&part->wants);
            shmb_wants_clear(part, wants);
            for (int i = 0; i < file_count; i++) /* before the next name allows the next switch */
                if (part->sealed_bytes && file_base[i] == part->sealed_base_offset)
                    file_bytes[i] = part->sealed_bytes;
            if (wants & SHMB_WANT_ROLL) {
                assert(file_count < FILES);
                file_base[file_count] = (int64_t)shmb_peek(&part->slot->append_base_offset);
                files[file_count++] = prepared >= 0 ? prepared : segment_file();
                prepared = -1;
                shmb_part_rolled(&engine, part, files[file_count - 1]);
            }
            if (wants & SHMB_WANT_NEXT) {
                prepared = prepared >= 0 ? prepared : segment_file();
                shmb_command_run(&engine, SHMB_OP_NEXT, part, NULL, 0, SEGMENT, 1);
            }
            if (wants & SHMB_WANT_INDEX)
                shmb_publish(&part->disk_index_tail, shmb_observe(&part->disk_index_head));
            assert(!(wants & SHMB_WANT_FAILED));
        }
    }
    return unused;
}

static void set_up(void)
{
    uint8_t *table = aligned(shmb_table_bytes(128));
    ((struct shmb_writer_head *)table)->slots_max = 128;
    void *park = mmap(NULL, SHMB_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(park != MAP_FAILED && shmb_engine_init(&engine, table, park, 4) == 0);
    engine.flush_max_bytes = 64 << 10;
    engine.inline_limit_ns = 300000;
    engine.spin_ns = engine.spin_now_ns = 1000;
    part = shmb_part_new(&engine, 7);
    assert(part);
    static struct shmb_producers producers;
    assert(shmb_producers_init(&producers, 0, 0) == 0);
    part->producers = &producers;
    part->unit = 4096;
    part->leader_epoch = 1;
    part->segment_bytes = part->alloc_bytes = SEGMENT;
    part->max_message_bytes = 1 << 20;
    part->index_interval_bytes = 4096;
    part->disk_index = calloc(SHMB_DISK_INDEX_ENTRIES, sizeof *part->disk_index);
    part->fd = files[file_count++] = segment_file();
    shmb_part_fresh(part, 0, 0, 0, 0);
    engine.parts[7] = part;
    int fd = memfd_create("log", 0);
    assert(fd >= 0 && ftruncate(fd, (off_t)shmb_log_bytes(RING)) == 0);
    uint8_t *ring = shmb_map_double(fd, shmb_log_data_offset(RING), RING, 1);
    assert(ring);
    shmb_part_install(part, ring, RING, 1, NULL, 0);
    shmb_publish32(&part->slot->state, SHMB_STATE_ONLINE);
    fd = memfd_create("ingress", 0);
    assert(fd >= 0 && ftruncate(fd, SHMB_PAGE + INGRESS) == 0);
    source.object = shmb_map_double(fd, SHMB_PAGE, INGRESS, 1);
    assert(source.object);
    source.data = source.object + SHMB_PAGE;
    source.capacity = INGRESS;
    source.slots = SLOTS;
    source.id = 1;
    source.receipts = aligned(shmb_receipts_bytes(SLOTS));
    source.word = engine.park + shmb_park_ingress(1) * (SHMB_LINE / 4);
    engine.sources[engine.sources_count++] = &source;
}

/* Publishes FRAMES batches of one record each, of growing and shrinking size; parks when there is no room. */
static void produce(void)
{
    static uint8_t value[9000];
    struct shmb_ingress_head *in = (struct shmb_ingress_head *)source.object;
    struct shmb_receipts_head *out = (struct shmb_receipts_head *)source.receipts;
    uint64_t head = 0;
    for (uint64_t n = 0; n < FRAMES; n++) {
        size_t size = 8 + n * 37 % (sizeof value - 8);
        memcpy(value, &n, 8);
        uint64_t need = shmb_frame_bytes(SHMB_BATCH_HEADER_BYTES + SHMB_RECORD_OVERHEAD_MAX + size);
        for (;;) {
            shmb_park_arm(source.word);
            if (head + need - shmb_observe(&out->tail) <= INGRESS && n - shmb_observe(&out->receipts) < SLOTS)
                break;
            shmb_park_wait(source.word, INT64_MAX);
        }
        struct shmb_frame *f = (struct shmb_frame *)(source.data + head % INGRESS);
        uint8_t *batch = (uint8_t *)(f + 1), *end = shmb_batch_begin(batch);
        end = shmb_record_put(end, 0, 0, NULL, -1, value, (int32_t)size, NULL, 0, 0);
        f->length = (uint32_t)shmb_batch_seal(batch, end, 0, -1, -1, -1, (int64_t)n, (int64_t)n, 1);
        f->acks = n % 3;
        f->flags = 0;
        f->slot = 7;
        f->slot_epoch = 0;
        f->frame_seq = n;
        head += shmb_frame_bytes(f->length);
        shmb_publish(&in->head, head);
        shmb_park_wake(engine.doorbell);
    }
    for (;;) {
        shmb_park_arm(source.word);
        if (shmb_observe(&out->receipts) == FRAMES)
            break;
        shmb_park_wait(source.word, INT64_MAX);
    }
    for (uint64_t n = FRAMES - SLOTS; n < FRAMES; n++) {
        const struct shmb_receipt *r = shmb_receipt_at(source.receipts, SLOTS, n);
        assert(r->frame_seq == n && r->error == 0 && r->base_offset == (int64_t)n);
    }
}

static void check_files(void)
{
    static uint8_t data[SEGMENT];
    uint64_t n = 0;
    for (int i = 0; i < file_count; i++)
        if (part->sealed_bytes && file_base[i] == part->sealed_base_offset)
            file_bytes[i] = part->sealed_bytes;
    file_bytes[file_count - 1] = shmb_observe(&part->slot->durable_position) - part->flush_base_position;
    for (int i = 0; i < file_count; i++) {
        assert(pread(files[i], data, SEGMENT, 0) == SEGMENT);
        uint64_t at = 0;
        while (at < file_bytes[i]) {
            size_t size;
            assert(shmb_batch_check(data + at, SEGMENT - at, SHMB_BATCH_FROM_LOG, &size) == 0);
            assert(shmb_batch_base_offset(data + at) == (int64_t)n);
            assert(shmb_batch_max_timestamp(data + at) == (int64_t)n);
            at += size;
            n++;
        }
        assert(at == file_bytes[i]);
        for (; at < SEGMENT; at++)
            assert(data[at] == 0);
    }
    assert(n == FRAMES);
}

/* With nothing to do a writer looks for half as long each time, and now and then for long; work restores it. */
static void check_spinning(void)
{
    uint64_t full = engine.spin_ns, progress = shmb_observe(&engine.progress);
    engine.idles = 0;
    assert(!shmb_spin(&engine, progress) && engine.spin_now_ns == full / 2);
    assert(!shmb_spin(&engine, progress) && engine.spin_now_ns == full / 2); /* too short to look at all */
    atomic_fetch_add(&engine.progress, 1);
    assert(!shmb_stirred(&engine, progress)); /* nobody's frame waits for it */
    shmb_publish32(&engine.command_full, 1);
    engine.idles = SHMB_SPIN_PROBE - 1;
    assert(shmb_spin(&engine, progress) && engine.spin_now_ns == full);
    shmb_publish32(&engine.command_full, 0);
}

int main(void)
{
    alarm(110);
    set_up();
    check_spinning();
    pthread_t keeper, sequencer, flushers[2];
    assert(pthread_create(&keeper, NULL, housekeep, NULL) == 0);
    assert(pthread_create(&sequencer, NULL, sequence, NULL) == 0);
    for (int i = 0; i < 2; i++)
        assert(pthread_create(&flushers[i], NULL, flush, NULL) == 0);
    produce();
    assert(shmb_wait_drained(&engine, part, INT64_MAX));
    shmb_publish32(&quit, 1);
    pthread_join(keeper, NULL);
    shmb_command_run(&engine, SHMB_OP_STOP, NULL, NULL, 0, 0, 1);
    pthread_join(sequencer, NULL);
    shmb_publish32(&engine.flushers_stop, 1);
    shmb_flusher_wake(&engine, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(flushers[i], NULL);
    check_files();
    printf("engine: %d batches through %d segments, %lu writes\n", FRAMES, file_count,
           (unsigned long)shmb_peek(&part->slot->writes));
    return 0;
}
