"""The limit of a round trip: two bare processes that wake each other, in C, over park.h.

Compiled when it is needed with the compiler that built the core. The sides are pinned as
client and writer are, or keep the affinity of the bench. Each lap is timed by itself; the median
counts.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

CORE: Final = Path(__file__).resolve().parents[1] / "shmbroker" / "_core"

_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "park.h"

struct side { shmb_a64 count; char fill[56]; shmb_a32 word; char fill2[60]; };

static void wait_for(struct side *s, uint64_t count, int spin)
{
    while (shmb_observe(&s->count) < count) {
        if (spin) { shmb_relax(); continue; }
        shmb_park_arm(&s->word);
        if (shmb_observe(&s->count) >= count) return;
        shmb_park_wait(&s->word, INT64_MAX);
    }
}
static void ring(struct side *s, uint64_t count)
{
    shmb_publish(&s->count, count);
    shmb_park_wake(&s->word);
}
static void pin(int cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}
static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}
int main(int argc, char **argv)
{
    int spin = argc > 1 && !strcmp(argv[1], "spin");
    uint64_t laps = argc > 2 ? strtoull(argv[2], NULL, 10) : 20000;
    struct side *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int64_t *took = malloc(laps * sizeof *took);
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (argc > 4) pin(atoi(argv[4]));
        if (getppid() != parent) return 1;
        for (uint64_t n = 1; n <= laps; n++) { wait_for(&at[0], n, spin); ring(&at[1], n); }
        return 0;
    }
    if (argc > 4) pin(atoi(argv[3]));
    for (uint64_t n = 1; n <= laps; n++) {
        int64_t began = shmb_now_ns();
        ring(&at[0], n);
        wait_for(&at[1], n, spin);
        took[n - 1] = shmb_now_ns() - began;
    }
    waitpid(child, NULL, 0);
    qsort(took, laps, sizeof *took, by_size);
    printf("{\"p50_ns\": %lld, \"p99_ns\": %lld}\n",
           (long long)took[laps / 2], (long long)took[laps * 99 / 100]);
    return 0;
}
"""


@functools.cache
def _program(directory: str) -> str:
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise FileNotFoundError("the ping-pong limit needs gcc, as the core's build does")
    handle, source = tempfile.mkstemp(suffix=".c", dir=directory)
    with os.fdopen(handle, "w") as file:
        file.write(_SOURCE)
    program = source.removesuffix(".c")
    subprocess.run([compiler, "-O2", "-std=gnu11", f"-I{CORE}", "-o", program, source], check=True)
    return program


def round_trip_us(
    directory: Path, *, spin: bool, laps: int, cpus: tuple[int, int] | None = None
) -> float:
    """The p50 in us of one round trip between two processes; the program is put in `directory`.

    `cpus`: where the two are pinned; None: nowhere, and then the kernel may put them on one core,
    where they wake each other several times faster.
    """
    done = subprocess.run(
        [_program(str(directory)), "spin" if spin else "park", str(laps), *map(str, cpus or ())],
        capture_output=True,
        check=True,
        timeout=120,
    )
    return float(json.loads(done.stdout)["p50_ns"]) / 1e3


__all__ = ["round_trip_us"]
