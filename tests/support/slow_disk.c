/* Makes a broker's disk slow: preloaded into its processes, it holds up each durable write of a log.
 *
 * SHMB_TEST_SLOW_DISK names a file; while it is there, the milliseconds in it are how long each write
 * takes longer, as it is read anew before each and every 10 ms of the pause. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static long (*real)(long, ...);

static long delay_ms(void)
{
    char text[32] = {0};
    const char *path = getenv("SHMB_TEST_SLOW_DISK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    return n > 0 ? atol(text) : 0;
}

long syscall(long number, ...)
{
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_pwritev2)
        for (long slept = 0; slept < delay_ms(); slept += 10)
            usleep(10000);
    return real(number, a, b, c, d, e, f);
}
