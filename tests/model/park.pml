/* The park protocol of shmbroker/_core/park.h: two waiters share one word, two wakers ring it.
 *
 * The word is 2 k + armed: k counts wake-ups. The waiter sets the low bit and keeps the value it made; the
 * waker that finds it set adds 1, which clears it and raises k; the kernel lets the waiter sleep
 * only while the word is still that value.
 *
 * Memory: a waker's store goes into its buffer and reaches memory later (process `drain`); its fence
 * waits for that, a compare-and-swap that fails or is not reached does not. Without the waiter's fence its
 * look at the condition may come before its read-modify-write of the word, as on aarch64.
 *
 * Deaths: at every step, of a waiter (its sleep ends, the word stays armed, another attaches) or of a
 * waker (its replacement rings with shmb_park_wake_always, then goes on). `calm` ends the dying at any
 * moment, so that no death hides a sleeper who would otherwise sleep for ever.
 *
 * Asserted: no invalid end state (nobody sleeps for ever); no more FUTEX_WAKEs than arms: a dead
 * waiter costs one.
 *
 * Broken on purpose: NO_WAITER_FENCE, NO_WAKER_FENCE, NO_RECHECK (the waiter sleeps without W3),
 * PLAIN_FLAG (the word is only 0 or 1: a waiter between W3 and W4 whose wake-up has come falls asleep
 * on the flag that the other waiter has set since), PLAIN_WAKE_AFTER_DEATH (whoever notices a waker's
 * death rings with shmb_park_wake: a waker that dies between S4 and FUTEX_WAKE leaves a
 * cleared word and a sleeper).
 */
#define N 2
#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

byte word;
byte condition[N];
byte condition_buffer[N];
bool condition_buffered[N];
bool asleep[N];
byte owed; /* FUTEX_WAKEs that arms have not yet been paid with */
byte deaths;

/* who dies is the first of its kind: the two are alike */
#define MAY_DIE(where) if :: me == 0 && deaths < DEATHS -> deaths++; goto where :: true fi
#define ARMED(w) ((w) % 2 == 1)
#ifdef PLAIN_FLAG
#define CLEARED(w) 0
#else
#define CLEARED(w) ((w) + 1)
#endif
#define WAKE_ALL asleep[0] = false; asleep[1] = false

proctype waiter(byte me)
{
    byte want = 1, mine, seen;
attach:
    do
    :: want > ROUNDS -> break
    :: else ->
#ifdef NO_WAITER_FENCE
        if :: seen = condition[me] :: seen = 255 fi;
#endif
        d_step { if :: !ARMED(word) -> word = word + 1; owed++ :: else fi; mine = word }   /* W1 */
        MAY_DIE(attach);
#ifdef NO_WAITER_FENCE
        if :: seen == 255 -> seen = condition[me] :: else fi;
#elif defined(NO_RECHECK)
        seen = 0;
#else
        seen = condition[me];                                                              /* W2, W3 */
#endif
        if
        :: seen >= want -> want++
        :: seen < want ->
            MAY_DIE(attach);
            asleep[me] = (word == mine);                                                   /* W4 */
            if
            :: !asleep[me]
            :: me == 0 && deaths < DEATHS -> deaths++; asleep[me] = false; goto attach
            fi;
#ifdef NO_RECHECK
            if :: condition[me] >= want -> want++ :: else fi
#endif
        fi;
        d_step { mine = 0; seen = 0 }
    od
}

proctype waker(byte me)
{
    byte round = 1, seen;
    bool won;
    goto work;
replaced:
    !condition_buffered[me];     /* the dead one's stores have all arrived */
    round = condition[me] + 1;
#ifdef PLAIN_WAKE_AFTER_DEATH
    if :: !ARMED(word) -> goto work :: else fi;
#endif
    word = (ARMED(word) -> CLEARED(word) : word + 2);
    d_step { WAKE_ALL };
work:
    do
    :: round > ROUNDS -> break
    :: else ->
        d_step { !condition_buffered[me] -> condition_buffer[me] = round;                  /* S1 */
                 condition_buffered[me] = true };
        MAY_DIE(replaced);
#ifndef NO_WAKER_FENCE
        !condition_buffered[me];                                                           /* S2 */
#endif
        seen = word;                                                                       /* S3 */
        if
        :: !ARMED(seen)
        :: ARMED(seen) ->
            MAY_DIE(replaced);
            d_step {                                                                       /* S4 */
                won = (word == seen);
                if
                :: won ->
                    word = CLEARED(word);
                    if
                    :: condition_buffered[me] -> condition[me] = condition_buffer[me];
                                                 condition_buffered[me] = false
                    :: else
                    fi
                :: else
                fi
            };
            MAY_DIE(replaced);
            if
            :: won -> d_step { WAKE_ALL; assert(owed > 0); owed-- }
            :: else
            fi
        fi;
        MAY_DIE(replaced);
        d_step { round++; seen = 0; won = false }
    od
}

active proctype drain()
{
end:
    do
    :: d_step { condition_buffered[0] -> condition[0] = condition_buffer[0]; condition_buffered[0] = false }
    :: d_step { condition_buffered[1] -> condition[1] = condition_buffer[1]; condition_buffered[1] = false }
    od
}

active proctype calm() { deaths = DEATHS }

init { atomic { run waiter(0); run waiter(1); run waker(0); run waker(1) } }
