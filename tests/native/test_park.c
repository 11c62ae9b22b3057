/* Parking between processes, without any timeout: a lost wake-up hangs, and the alarm says so.
 *
 * usage: test_park [rounds]; fewer rounds under an emulator.
 */
#undef NDEBUG
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "layout.h"
#include "park.h"

#define FOREVER INT64_MAX
#define CHILDREN 3

struct shared {
    struct { shmb_a32 word; uint8_t fill[60]; } park[8];
    struct { shmb_a64 value; uint8_t fill[56]; } turn[8];
};
static struct shared *m;

static void lost(int signal)
{
    (void)signal;
    static const char what[] = "test_park: still waiting: a wake-up was lost\n";
    ssize_t ignored = write(2, what, sizeof what - 1);
    (void)ignored;
    kill(0, SIGKILL);
}
static void reset(void)
{
    memset(m, 0, sizeof *m);
}
static void wait_until(int word, int turn, uint64_t least)
{
    while (shmb_observe(&m->turn[turn].value) < least) {
        shmb_park_arm(&m->park[word].word);
        if (shmb_observe(&m->turn[turn].value) >= least)
            return;
        int rc = shmb_park_wait(&m->park[word].word, FOREVER);
        assert(rc == 0 || rc == EINTR);
    }
}
static void tell(int word, int turn, uint64_t value)
{
    shmb_publish(&m->turn[turn].value, value);
    shmb_park_wake(&m->park[word].word);
}
static pid_t child(void (*life)(int, uint64_t), int me, uint64_t rounds)
{
    fflush(stdout);
    pid_t pid = fork();
    assert(pid >= 0);
    if (pid == 0) {
        life(me, rounds);
        _exit(0);
    }
    return pid;
}
static void reap(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        assert(errno == EINTR);
    assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void pong(int me, uint64_t rounds)
{
    (void)me;
    for (uint64_t i = 1; i <= rounds; i++) {
        wait_until(0, 0, i);
        tell(1, 1, i);
    }
}
static void two_processes_play_ping_pong(uint64_t rounds)
{
    reset();
    pid_t other = child(pong, 0, rounds);
    for (uint64_t i = 1; i <= rounds; i++) {
        tell(0, 0, i);
        wait_until(1, 1, i);
    }
    reap(other);
}

/* Three players sit on one word, each with a condition of its own, and answer on another shared word. */
static void player(int me, uint64_t rounds)
{
    for (uint64_t i = 1; i <= rounds; i++) {
        wait_until(0, me, i);
        tell(1, 4 + me, i);
    }
}
static void several_waiters_share_one_word(uint64_t rounds)
{
    reset();
    pid_t pids[CHILDREN];
    for (int k = 0; k < CHILDREN; k++)
        pids[k] = child(player, k, rounds);
    for (uint64_t i = 1; i <= rounds; i++)
        for (int k = 0; k < CHILDREN; k++) {
            tell(0, k, i);                  /* the others stay where they are, and arm again */
            wait_until(1, 4 + k, i);
        }
    for (int k = 0; k < CHILDREN; k++)
        reap(pids[k]);
}

/* What a flag alone gets wrong, step by step: B looks, its wake-up comes, A arms, B sleeps. */
static void a_wakeup_between_look_and_sleep_is_not_hidden_by_another_waiter(void)
{
    reset();
    shmb_park_arm(&m->park[0].word);                     /* we are B; our condition is false … */
    assert(shmb_park_wake(&m->park[0].word) == 1);       /* … and now it is true */
    atomic_fetch_or(&m->park[0].word, SHMB_PARK_ARMED);  /* A, in another process */
    assert(shmb_park_wait(&m->park[0].word, FOREVER) == 0);
}

static void a_dead_waiter_costs_one_wakeup(void)
{
    reset();
    assert(shmb_park_wake(&m->park[0].word) == 0);
    shmb_park_arm(&m->park[0].word);
    assert(shmb_park_wake(&m->park[0].word) == 1);
    assert(shmb_park_wake(&m->park[0].word) == 0);
}

static void sleeper(int me, uint64_t rounds)
{
    (void)rounds;
    wait_until(0, me, 1);
}
/* A waker that died after it cleared the word and before FUTEX_WAKE: ringing always reaches the sleeper. */
static void wake_always_reaches_whom_a_dead_waker_left(void)
{
    reset();
    pid_t other = child(sleeper, 0, 0);
    while (!(shmb_peek32(&m->park[0].word) & SHMB_PARK_ARMED))
        shmb_relax();
    shmb_publish(&m->turn[0].value, 1);
    atomic_fetch_add(&m->park[0].word, 1);
    shmb_park_wake_always(&m->park[0].word);
    reap(other);
}

static void a_deadline_ends_a_wait(void)
{
    reset();
    shmb_park_arm(&m->park[0].word);
    int64_t before = shmb_now_ns();
    assert(shmb_park_wait(&m->park[0].word, before + 20000000) == ETIMEDOUT);
    assert(shmb_now_ns() - before >= 20000000);
}

static void any_pong(int me, uint64_t rounds)
{
    (void)me;
    for (uint64_t i = 1; i <= rounds; i++) {
        int k = (int)(i % 3);
        tell(k, k, i);
        wait_until(4, 4, i);
    }
}
/* 1: played; 0: this kernel or emulator has no futex_waitv. */
static int one_process_waits_on_three_words(uint64_t rounds)
{
    reset();
    shmb_a32 *words[3] = {&m->park[0].word, &m->park[1].word, &m->park[2].word};
    for (int k = 0; k < 3; k++)
        shmb_park_arm(words[k]);
    int rc = shmb_park_wait_any(words, 3, shmb_now_ns() + 1000000);
    if (rc == ENOSYS)
        return 0;
    assert(rc == ETIMEDOUT);
    reset();
    pid_t other = child(any_pong, 0, rounds);
    for (uint64_t i = 1; i <= rounds; i++) {
        int k = (int)(i % 3);
        for (;;) {
            for (int j = 0; j < 3; j++)
                shmb_park_arm(words[j]);
            if (shmb_observe(&m->turn[k].value) == i)
                break;
            rc = shmb_park_wait_any(words, 3, FOREVER);
            assert(rc == 0 || rc == EINTR);
        }
        tell(4, 4, i);
    }
    reap(other);
    return 1;
}

int main(int argc, char **argv)
{
    uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000;
    setpgid(0, 0);
    signal(SIGALRM, lost);
    alarm(120);
    m = mmap(NULL, SHMB_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(m != MAP_FAILED);
    a_dead_waiter_costs_one_wakeup();
    a_wakeup_between_look_and_sleep_is_not_hidden_by_another_waiter();
    wake_always_reaches_whom_a_dead_waker_left();
    a_deadline_ends_a_wait();
    two_processes_play_ping_pong(rounds);
    several_waiters_share_one_word(rounds / 2);
    int any = one_process_waits_on_three_words(rounds);
    printf("park: ok%s\n", any ? "" : " (no futex_waitv here)");
    return 0;
}
