/* A rotating disk's model: a FUSE file system over a directory that charges time for each request.
 *
 * Owns: names, nodes and files, and which request costs what; the clock is hdd_head.h's. Names,
 * attributes and allocation are free, as in a journal before its commit.
 *
 * O_DIRECT reaches this program with every request; other writes go through the page cache at once
 * (no write-back), other reads may be answered by it. RWF_DSYNC, O_DSYNC and O_SYNC writes end with
 * one FSYNC from the kernel (generic_write_sync), however many pieces it made of the call: that is
 * the only place where durability is charged. Pieces come in order, since asynchronous ones are off.
 *
 * The bytes are in files of the directory below, in the page cache of its file system; nothing is
 * synced there. Locks (flock, fcntl) are the kernel's own. Runs in the foreground; SIGTERM, SIGINT
 * and the death of its parent unmount it, and a guard process does when this one is killed.
 * There are no symbolic links in it.
 *
 * Built by model.py: cc -O2 hddfs.c -lfuse3. After libfuse's example passthrough_ll.c.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hdd_head.h"

static const unsigned MAX_WRITE = 1 << 20; /* the most that libfuse takes */

/* ---- nodes: what the kernel knows of, each with an O_PATH descriptor below ---- */

enum { BUCKETS = 1 << 12 };
static const double REMEMBER_S = 3600; /* nobody else changes what is below */

struct node {
    struct node *next;
    int fd;
    ino_t inode;
    uint64_t known; /* look-ups that the kernel has not forgotten; the root's is never 0 */
};
static struct node root = {.fd = -1, .known = 1};
static struct {
    pthread_mutex_t lock;
    struct node *bucket[BUCKETS];
} nodes = {.lock = PTHREAD_MUTEX_INITIALIZER};

typedef struct fuse_file_info info;
static struct node *node_of(fuse_ino_t id) { return id == FUSE_ROOT_ID ? &root : (struct node *)id; }
static int fd_of(fuse_ino_t id) { return node_of(id)->fd; }
static void answer(fuse_req_t req, int result) { fuse_reply_err(req, result < 0 ? errno : 0); }

/* A path by which an O_PATH descriptor can be opened, or changed, again. */
static const char *again(char path[32], int fd) {
    snprintf(path, 32, "/proc/self/fd/%d", fd);
    return path;
}

/* The node of a name, known once more, in `entry`; errno or 0. */
static int look_up(fuse_ino_t parent, const char *name, struct fuse_entry_param *entry) {
    *entry = (struct fuse_entry_param){.attr_timeout = REMEMBER_S, .entry_timeout = REMEMBER_S};
    int fd = openat(fd_of(parent), name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return errno;
    if (fstat(fd, &entry->attr)) {
        int why = errno;
        close(fd);
        return why;
    }
    ino_t inode = entry->attr.st_ino;
    pthread_mutex_lock(&nodes.lock);
    struct node **bucket = &nodes.bucket[inode % BUCKETS], *found = *bucket;
    while (found && found->inode != inode) found = found->next;
    if (found) {
        close(fd);
    } else if ((found = calloc(1, sizeof *found))) {
        *found = (struct node){.next = *bucket, .fd = fd, .inode = inode};
        *bucket = found;
    } else {
        abort();
    }
    found->known++;
    entry->ino = (uintptr_t)found;
    pthread_mutex_unlock(&nodes.lock);
    return 0;
}

static void forget(fuse_ino_t id, uint64_t times) {
    struct node *node = node_of(id);
    if (node == &root) return;
    pthread_mutex_lock(&nodes.lock);
    node->known -= times;
    if (!node->known) {
        struct node **link = &nodes.bucket[node->inode % BUCKETS];
        while (*link != node) link = &(*link)->next;
        *link = node->next;
    } else {
        node = NULL;
    }
    pthread_mutex_unlock(&nodes.lock);
    if (node) {
        close(node->fd);
        free(node);
    }
}
static void fs_forget(fuse_req_t req, fuse_ino_t id, uint64_t times) {
    forget(id, times);
    fuse_reply_none(req);
}

/* ---- names ---- */

static void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
    struct fuse_entry_param entry;
    int why = look_up(parent, name, &entry);
    if (why) fuse_reply_err(req, why);
    else fuse_reply_entry(req, &entry);
}

/* Answers with the node of a name that was made with `result`. */
static void made(fuse_req_t req, fuse_ino_t parent, const char *name, int result) {
    if (result < 0) {
        fuse_reply_err(req, errno);
        return;
    }
    names_changed(node_of(parent)->inode);
    fs_lookup(req, parent, name);
}
static void fs_mknod(fuse_req_t req, fuse_ino_t in, const char *name, mode_t mode, dev_t device) {
    made(req, in, name, mknodat(fd_of(in), name, mode, device));
}
static void fs_mkdir(fuse_req_t req, fuse_ino_t in, const char *name, mode_t mode) {
    made(req, in, name, mkdirat(fd_of(in), name, mode));
}
static void fs_link(fuse_req_t req, fuse_ino_t id, fuse_ino_t in, const char *name) {
    char path[32];
    made(req, in, name,
         linkat(AT_FDCWD, again(path, fd_of(id)), fd_of(in), name, AT_SYMLINK_FOLLOW));
}
static void removed(fuse_req_t req, fuse_ino_t in, const char *name, int flags) {
    int result = unlinkat(fd_of(in), name, flags);
    if (!result) names_changed(node_of(in)->inode);
    answer(req, result);
}
static void fs_unlink(fuse_req_t req, fuse_ino_t in, const char *name) {
    removed(req, in, name, 0);
}
static void fs_rmdir(fuse_req_t req, fuse_ino_t in, const char *name) {
    removed(req, in, name, AT_REMOVEDIR);
}
static void fs_rename(fuse_req_t req, fuse_ino_t in, const char *name, fuse_ino_t to_in,
                      const char *to, unsigned flags) {
    int result = renameat2(fd_of(in), name, fd_of(to_in), to, flags);
    if (!result) {
        names_changed(node_of(in)->inode);
        names_changed(node_of(to_in)->inode);
    }
    answer(req, result);
}
static void fs_getattr(fuse_req_t req, fuse_ino_t id, info *fi) {
    struct stat st;
    (void)fi;
    if (fstat(fd_of(id), &st)) fuse_reply_err(req, errno);
    else fuse_reply_attr(req, &st, REMEMBER_S);
}

static int set_times(const char *path, const struct stat *st, int what) {
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};
    if (what & FUSE_SET_ATTR_ATIME) times[0] = st->st_atim;
    if (what & FUSE_SET_ATTR_MTIME) times[1] = st->st_mtim;
    if (what & FUSE_SET_ATTR_ATIME_NOW) times[0].tv_nsec = UTIME_NOW;
    if (what & FUSE_SET_ATTR_MTIME_NOW) times[1].tv_nsec = UTIME_NOW;
    return utimensat(AT_FDCWD, path, times, 0);
}
static void fs_setattr(fuse_req_t req, fuse_ino_t id, struct stat *st, int what, info *fi) {
    char buffer[32];
    const char *path = again(buffer, fd_of(id));
    const int times = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
                      FUSE_SET_ATTR_MTIME_NOW;
    uid_t user = what & FUSE_SET_ATTR_UID ? st->st_uid : (uid_t)-1;
    gid_t group = what & FUSE_SET_ATTR_GID ? st->st_gid : (gid_t)-1;
    int owner = what & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID);
    if ((what & FUSE_SET_ATTR_MODE && chmod(path, st->st_mode)) ||
        (owner && fchownat(fd_of(id), "", user, group, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)) ||
        (what & FUSE_SET_ATTR_SIZE && truncate(path, st->st_size)) ||
        (what & times && set_times(path, st, what)))
        fuse_reply_err(req, errno);
    else
        fs_getattr(req, id, fi);
}
static void fs_statfs(fuse_req_t req, fuse_ino_t id) {
    struct statvfs found;
    (void)id;
    if (fstatvfs(root.fd, &found)) fuse_reply_err(req, errno);
    else fuse_reply_statfs(req, &found);
}

/* ---- directories ---- */

static DIR *stream_of(info *fi) { return (DIR *)(uintptr_t)fi->fh; }

static void fs_opendir(fuse_req_t req, fuse_ino_t id, info *fi) {
    int fd = openat(fd_of(id), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);
    if (!stream) {
        fuse_reply_err(req, errno);
        return;
    }
    fi->fh = (uintptr_t)stream;
    fuse_reply_open(req, fi);
}
static void fs_readdir(fuse_req_t req, fuse_ino_t id, size_t size, off_t from, info *fi) {
    char *buffer = malloc(size);
    size_t used = 0;
    struct dirent *entry;
    (void)id;
    if (from) seekdir(stream_of(fi), from);
    else rewinddir(stream_of(fi));
    while (buffer && (entry = readdir(stream_of(fi)))) {
        struct stat st = {.st_ino = entry->d_ino, .st_mode = (mode_t)entry->d_type << 12};
        size_t more = fuse_add_direntry(req, buffer + used, size - used, entry->d_name, &st,
                                        entry->d_off);
        if (more > size - used) break;
        used += more;
    }
    fuse_reply_buf(req, buffer, used);
    free(buffer);
}
static void fs_releasedir(fuse_req_t req, fuse_ino_t id, info *fi) {
    (void)id;
    answer(req, closedir(stream_of(fi)));
}
static void fs_fsyncdir(fuse_req_t req, fuse_ino_t id, int data_only, info *fi) {
    (void)data_only, (void)fi;
    charge_sync(node_of(id)->inode, 1);
    fuse_reply_err(req, 0);
}

/* ---- files ---- */

/* Flags for the file below: its bytes may stay in the page cache, it is never synced, and the
 * kernel has already said where an append goes. */
static int flags_below(int flags) {
    const int ours = O_DIRECT | O_SYNC | O_DSYNC | O_APPEND | O_NOFOLLOW | O_EXCL | O_CREAT;
    if ((flags & O_ACCMODE) == O_WRONLY) flags = (flags & ~O_ACCMODE) | O_RDWR; /* parts of pages */
    return (flags & ~ours) | O_CLOEXEC;
}
static int opened(int fd, info *fi) {
    fi->fh = fd;
    fi->keep_cache = 1;
    return fd;
}
static void fs_create(fuse_req_t req, fuse_ino_t in, const char *name, mode_t mode, info *fi) {
    struct fuse_entry_param entry;
    int flags = flags_below(fi->flags) | O_CREAT | (fi->flags & O_EXCL);
    if (opened(openat(fd_of(in), name, flags, mode), fi) < 0) {
        fuse_reply_err(req, errno);
        return;
    }
    names_changed(node_of(in)->inode);
    int why = look_up(in, name, &entry);
    if (why) {
        close(fi->fh);
        fuse_reply_err(req, why);
    } else {
        fuse_reply_create(req, &entry, fi);
    }
}
static void fs_open(fuse_req_t req, fuse_ino_t id, info *fi) {
    char path[32];
    if (opened(open(again(path, fd_of(id)), flags_below(fi->flags)), fi) < 0)
        fuse_reply_err(req, errno);
    else
        fuse_reply_open(req, fi);
}
static void fs_release(fuse_req_t req, fuse_ino_t id, info *fi) {
    (void)id;
    answer(req, close(fi->fh));
}
static void fs_read(fuse_req_t req, fuse_ino_t id, size_t size, off_t at, info *fi) {
    char *buffer = malloc(size);
    ssize_t got = buffer ? pread(fi->fh, buffer, size, at) : -1;
    if (got > 0) charge(node_of(id)->inode, at, got, 0);
    if (got < 0) fuse_reply_err(req, errno);
    else fuse_reply_buf(req, buffer, got);
    free(buffer);
}
static void fs_write(fuse_req_t req, fuse_ino_t id, const char *bytes, size_t size, off_t at,
                     info *fi) {
    ssize_t put = pwrite(fi->fh, bytes, size, at);
    if (put < 0) {
        fuse_reply_err(req, errno);
        return;
    }
    charge(node_of(id)->inode, at, put, 1);
    fuse_reply_write(req, put);
}
static void fs_fsync(fuse_req_t req, fuse_ino_t id, int data_only, info *fi) {
    (void)data_only, (void)fi;
    charge_sync(node_of(id)->inode, 0);
    fuse_reply_err(req, 0);
}
static void fs_fallocate(fuse_req_t req, fuse_ino_t id, int mode, off_t at, off_t size, info *fi) {
    (void)id;
    answer(req, fallocate(fi->fh, mode, at, size));
}
static void fs_init(void *nothing, struct fuse_conn_info *connection) {
    (void)nothing;
    connection->max_write = MAX_WRITE;
    connection->max_readahead = MAX_WRITE;
    connection->want &= ~(FUSE_CAP_ASYNC_DIO | FUSE_CAP_ASYNC_READ); /* pieces one by one, in order */
}

static const struct fuse_lowlevel_ops operations = {
    .init = fs_init, .lookup = fs_lookup, .forget = fs_forget, .getattr = fs_getattr,
    .setattr = fs_setattr, .mknod = fs_mknod, .mkdir = fs_mkdir,
    .unlink = fs_unlink, .rmdir = fs_rmdir, .rename = fs_rename,
    .link = fs_link, .statfs = fs_statfs, .opendir = fs_opendir, .readdir = fs_readdir,
    .releasedir = fs_releasedir, .fsyncdir = fs_fsyncdir, .create = fs_create, .open = fs_open,
    .release = fs_release, .read = fs_read, .write = fs_write, .fsync = fs_fsync,
    .fallocate = fs_fallocate,
};

/* ---- the process ---- */

/* A child that unmounts when this process is gone without having said a word. */
static int start_guard(const char *mountpoint) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) return -1;
    pid_t child = fork();
    if (child < 0) return -1;
    if (child) {
        close(ends[0]);
        return ends[1];
    }
    char word;
    setsid();
    signal(SIGTERM, SIG_IGN);
    close(ends[1]);
    if (read(ends[0], &word, 1) == 1) _exit(0);
    if (umount2(mountpoint, MNT_DETACH))
        execlp("fusermount3", "fusermount3", "-u", "-q", "-z", mountpoint, (char *)NULL);
    _exit(0);
}

int main(int count, char **given) {
    if (count != 6) {
        fprintf(stderr, "usage: hddfs BELOW MOUNTPOINT BYTES_A_SECOND SEEK_US ROTATION_US\n");
        return 2;
    }
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    prctl(PR_SET_TIMERSLACK, 1L, 0L, 0L, 0L);
    root.fd = open(given[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    ns_a_byte = 1e9 / atof(given[3]);
    seek_ns = (int64_t)(atof(given[4]) * 1e3);
    rotation_ns = (int64_t)(atof(given[5]) * 1e3);
    struct stat st;
    if (root.fd < 0 || fstat(root.fd, &st)) {
        perror(given[1]);
        return 1;
    }
    root.inode = st.st_ino;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max; /* a descriptor for each name that the kernel knows */
    setrlimit(RLIMIT_NOFILE, &files);
    umask(0);
    int guard = start_guard(given[2]);
    char *words[] = {"hddfs", "-o", "fsname=modelled-hdd,subtype=hddfs,default_permissions", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, words);
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    int result = 1;
    if (guard >= 0 && session && !fuse_session_mount(session, given[2])) {
        fuse_set_signal_handlers(session);
        puts("mounted"); /* model.py waits for this line */
        fflush(stdout);
        struct fuse_loop_config *loop = fuse_loop_cfg_create();
        fuse_loop_cfg_set_max_threads(loop, 64);
        if (getppid() == parent) /* else it died meanwhile, and its signal came too early */
            result = fuse_session_loop_mt(session, loop) < 0;
        fuse_loop_cfg_destroy(loop);
        fuse_remove_signal_handlers(session);
        fuse_session_unmount(session);
    }
    if (session) fuse_session_destroy(session);
    if (guard >= 0 && write(guard, "", 1) == 1) wait(NULL);
    return result;
}
