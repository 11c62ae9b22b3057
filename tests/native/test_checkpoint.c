/* Checkpoints: a pair is never torn or joined with another, and a kill leaves the last one whole.
 *
 * Each offset says in its high bits to which turn it belongs, and every other field of its pair follows
 * from that turn; so a reader can tell any pair that was never stored.
 */
#undef NDEBUG
#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoint.h"

#define TURNS 40000u
#define STORES 5u /* of one turn */
#define KILLS 40

static struct shmb_checkpoints_head *head;
static struct shmb_checkpoint *slot;
static shmb_a64 *done_offset; /* the last that a store returned from */

static void fields(uint64_t turn, uint8_t topic[16], uint32_t *partition, uint64_t *epoch, int32_t *leader)
{
    for (int i = 0; i < 16; i++)
        topic[i] = (uint8_t)(turn * 31 + (uint64_t)i);
    *partition = (uint32_t)(turn * 7);
    *epoch = turn * 1000003;
    *leader = (int32_t)(turn & 0x7fffffff);
}
static uint64_t offset_of(uint64_t turn, uint64_t n) { return turn << 16 | n; }

static void begin(void)
{
    memset(head, 0, shmb_checkpoints_bytes(1));
    shmb_poke(done_offset, 0);
}
static void write_turn(uint64_t turn)
{
    uint8_t topic[16];
    uint32_t partition;
    uint64_t epoch;
    int32_t leader;
    fields(turn, topic, &partition, &epoch, &leader);
    shmb_checkpoint_turn(head, slot, topic, partition, epoch, leader, offset_of(turn, 0));
    shmb_publish(done_offset, offset_of(turn, 0));
    for (uint64_t n = 1; n < STORES; n++) {
        shmb_checkpoint_store(head, slot, offset_of(turn, n));
        shmb_publish(done_offset, offset_of(turn, n));
    }
}
static void check_pair(const struct shmb_checkpoint_pair *pair)
{
    uint64_t offset = shmb_peek(&pair->offset), turn = offset >> 16;
    uint8_t topic[16];
    uint32_t partition;
    uint64_t epoch;
    int32_t leader;
    fields(turn, topic, &partition, &epoch, &leader);
    assert(turn >= 1 && (offset & 0xffff) < STORES);
    assert(memcmp(pair->topic_id, topic, 16) == 0);
    assert(pair->partition == partition && pair->member_epoch == epoch && pair->leader_epoch == leader);
}
static void *writer(void *unused)
{
    (void)unused;
    for (uint64_t turn = 1; turn <= TURNS; turn++)
        write_turn(turn);
    return NULL;
}

static void a_reader_never_joins_two_pairs(void)
{
    begin();
    pthread_t thread;
    assert(pthread_create(&thread, NULL, writer, NULL) == 0);
    struct shmb_checkpoint_seen seen = {0, 0};
    struct shmb_checkpoint_pair copy;
    uint64_t before = 0, found = 0, last = offset_of(TURNS, STORES - 1);
    while (before != last) {
        if (shmb_checkpoint_look(slot, &seen, &copy) != SHMB_CHECKPOINT_NEW)
            continue;
        check_pair(&copy);
        assert(shmb_peek(&copy.offset) > before); /* what was seen never goes back */
        before = shmb_peek(&copy.offset);
        found++;
    }
    assert(pthread_join(thread, NULL) == 0);
    assert(found >= 1 && shmb_checkpoint_look(slot, &seen, &copy) == SHMB_CHECKPOINT_SAME);
}

/* Who saw `changes` need not look; who sees another number finds at least what was stored before it. */
static void the_word_of_changes_comes_after_what_it_tells_of(void)
{
    begin();
    pthread_t thread;
    assert(pthread_create(&thread, NULL, writer, NULL) == 0);
    struct shmb_checkpoint_seen seen = {0, 0};
    struct shmb_checkpoint_pair copy;
    uint64_t changes = 0;
    while (changes != TURNS * STORES) {
        changes = shmb_observe(&head->changes);
        if (changes == 0)
            continue;
        shmb_checkpoint_look(slot, &seen, &copy);
        uint64_t n = (seen.offset >> 16) * STORES - STORES + (seen.offset & 0xffff) + 1; /* its number */
        assert(n >= changes);
    }
    assert(pthread_join(thread, NULL) == 0);
}

static void a_kill_between_any_two_stores_leaves_a_whole_pair(void)
{
    for (int round = 0; round < KILLS; round++) {
        begin();
        pid_t pid = fork();
        assert(pid >= 0);
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (uint64_t turn = 1;; turn++)
                write_turn(turn);
        }
        while (shmb_observe(done_offset) < offset_of(20 + (uint64_t)round * 3, 0))
            shmb_relax();
        assert(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
        struct shmb_checkpoint_seen seen = {0, 0};
        struct shmb_checkpoint_pair copy;
        assert(shmb_checkpoint_look(slot, &seen, &copy) == SHMB_CHECKPOINT_NEW);
        check_pair(&copy);
        assert(shmb_peek(&copy.offset) >= shmb_peek(done_offset));
    }
}

static void what_was_seen_is_not_new_and_anything_else_is(void)
{
    begin();
    struct shmb_checkpoint_seen seen = {0, 0};
    struct shmb_checkpoint_pair copy;
    assert(shmb_checkpoint_look(slot, &seen, &copy) == SHMB_CHECKPOINT_SAME); /* never used */
    write_turn(1);
    assert(shmb_checkpoint_look(slot, &seen, &copy) == SHMB_CHECKPOINT_NEW);
    assert(seen.turn == 1 && seen.offset == offset_of(1, STORES - 1));
    shmb_checkpoint_store(head, slot, offset_of(1, 1)); /* back is a change as well */
    assert(shmb_checkpoint_look(slot, &seen, &copy) == SHMB_CHECKPOINT_NEW && seen.offset == offset_of(1, 1));
    write_turn(2);
    assert(shmb_checkpoint_look(slot, &seen, &copy) == SHMB_CHECKPOINT_NEW && seen.turn == 2);
}

static void sizes_are_whole_pages_and_hold_their_slots(void)
{
    assert(shmb_checkpoints_bytes(1) == SHMB_PAGE && shmb_checkpoints_room(SHMB_PAGE) == 496);
    for (uint32_t slots = 1; slots <= 20000; slots++) {
        uint64_t bytes = shmb_checkpoints_bytes(slots);
        assert(bytes % SHMB_PAGE == 0 && shmb_checkpoints_room(bytes) >= slots);
        assert((uint8_t *)(shmb_checkpoint_at(head, slots - 1) + 1) <= (uint8_t *)head + bytes);
        assert((uintptr_t)shmb_checkpoint_at(head, slots - 1) % SHMB_LINE == 0);
    }
}

int main(void)
{
    alarm(90);
    head = mmap(NULL, SHMB_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    done_offset = mmap(NULL, SHMB_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(head != MAP_FAILED && done_offset != MAP_FAILED);
    slot = shmb_checkpoint_at(head, 0);
    a_reader_never_joins_two_pairs();
    the_word_of_changes_comes_after_what_it_tells_of();
    a_kill_between_any_two_stores_leaves_a_whole_pair();
    what_was_seen_is_not_new_and_anything_else_is();
    sizes_are_whole_pages_and_hold_their_slots();
    puts("test_checkpoint: ok");
    return 0;
}
