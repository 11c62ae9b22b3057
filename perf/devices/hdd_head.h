/* The clock of one disk head: what a request costs, and when its time is over.
 *
 * Each read and write costs its bytes at the rate; a seek more when it does not go on where the last
 * one ended (the same file, the next byte); fsync of a file with writes since its last one, a
 * rotation more; fsync of a directory in which names changed, a seek and a rotation. Requests are
 * served one after the other, in the order in which they take the lock.
 *
 * A request that goes on within BRIDGE_NS of the last one's end is charged from that end: the disk
 * did not stand still while the answer was on its way, as with the buffer of a real one.
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

enum { INODES = 1 << 16 }; /* inodes whose dirtiness is remembered, by hash */
static const int64_t BRIDGE_NS = 1000000;
static double ns_a_byte;
static int64_t seek_ns, rotation_ns;

static struct {
    pthread_mutex_t lock;
    int64_t busy_until;        /* ns, CLOCK_MONOTONIC: the end of the last request */
    ino_t inode;               /* where the head stands … */
    off_t at;                  /* … and before which byte of it */
    uint8_t dirty[INODES];     /* written, or names changed, since the last fsync */
} head = {.lock = PTHREAD_MUTEX_INITIALIZER, .at = -1};

/* ---- time ---- */

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sleep_until(int64_t when) {
    struct timespec t = {when / 1000000000LL, when % 1000000000LL};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {}
}

static uint8_t *dirty_of(ino_t inode) { return &head.dirty[inode % INODES]; }

/* Takes the head for `cost` ns from now, or from the last end when it `goes_on`; returns the end. */
static int64_t occupy(int64_t cost, int goes_on) {
    int64_t now = now_ns(), from = head.busy_until;
    if (now > from && !(goes_on && now - from < BRIDGE_NS)) from = now;
    return head.busy_until = from + cost;
}

/* A read or a write of `size` bytes at `at`. Returns when its time is over. */
static void charge(ino_t inode, off_t at, size_t size, int writes) {
    pthread_mutex_lock(&head.lock);
    int goes_on = head.inode == inode && head.at == at;
    int64_t end = occupy((int64_t)(size * ns_a_byte) + (goes_on ? 0 : seek_ns), goes_on);
    head.inode = inode;
    head.at = at + (off_t)size;
    if (writes) *dirty_of(inode) = 1;
    pthread_mutex_unlock(&head.lock);
    sleep_until(end);
}

/* fsync: nothing when nothing changed; the names of a directory are elsewhere on the disk. */
static void charge_sync(ino_t inode, int is_directory) {
    int64_t end = 0;
    pthread_mutex_lock(&head.lock);
    if (*dirty_of(inode)) {
        *dirty_of(inode) = 0;
        end = occupy(rotation_ns + (is_directory ? seek_ns : 0), 0);
        if (is_directory) head.at = -1;
    }
    pthread_mutex_unlock(&head.lock);
    if (end) sleep_until(end);
}

/* The directory has other names now. */
static void names_changed(ino_t directory) {
    pthread_mutex_lock(&head.lock);
    *dirty_of(directory) = 1;
    pthread_mutex_unlock(&head.lock);
}
