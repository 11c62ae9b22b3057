/* Reading behind a writer (shmbroker/_core/logring.h, shmb_log_copy): a ring of 2 blocks of 2 words, a writer that laps
 * a reader. Block at position p holds the word p + 1 twice.
 *
 * Memory: partial store order: each word has a buffer of its own and arrives whenever it likes, so stores
 * pass each other as on aarch64; the release fence waits until what was stored before has arrived.
 * The reader's load of `reserved` may go ahead of its copy unless the acquire fence keeps it behind.
 *
 * Deaths: of the writer at every step; the replacement goes on at the log end and never takes
 * `reserved` back.
 *
 * Broken on purpose: NO_CHECK, NO_RELEASE_FENCE, NO_ACQUIRE_FENCE, RESERVED_BACK.
 */
#define CAPACITY 2
#ifndef LENGTH
#define LENGTH 5
#endif
#ifndef DEATHS
#define DEATHS 2
#endif
#define WORD(p, i) (((p) % CAPACITY) * 2 + (i))

byte reserved, reserved_buffer, log_end, deaths, accepted;
bool reserved_buffered;
byte word[4], word_buffer[4];
bool word_buffered[4];

#define STEP if :: deaths < DEATHS -> deaths++; goto replaced :: true fi
#define ALL_WORDS (!word_buffered[0] && !word_buffered[1] && !word_buffered[2] && !word_buffered[3])

active proctype writer()
{
    byte p;
replaced:
    (!reserved_buffered && ALL_WORDS);
    p = log_end;
#ifdef RESERVED_BACK
    reserved = log_end;
#endif
    do
    :: p < LENGTH ->
        if
        :: p + 1 > reserved -> d_step { !reserved_buffered -> reserved_buffer = p + 1; reserved_buffered = true }; STEP
        :: else
        fi;
#ifndef NO_RELEASE_FENCE
        !reserved_buffered;
#endif
        d_step { !word_buffered[WORD(p, 0)] -> word_buffer[WORD(p, 0)] = p + 1; word_buffered[WORD(p, 0)] = true }; STEP;
        d_step { !word_buffered[WORD(p, 1)] -> word_buffer[WORD(p, 1)] = p + 1; word_buffered[WORD(p, 1)] = true }; STEP;
        (!reserved_buffered && ALL_WORDS);  /* release */
        log_end = p + 1; STEP;
        p++
    :: else -> break
    od
}

active proctype drain()
{
    byte i;
end:
    do
    :: d_step { reserved_buffered -> reserved = reserved_buffer; reserved_buffered = false }
    :: d_step { word_buffered[0] -> word[0] = word_buffer[0]; word_buffered[0] = false }
    :: d_step { word_buffered[1] -> word[1] = word_buffer[1]; word_buffered[1] = false }
    :: d_step { word_buffered[2] -> word[2] = word_buffer[2]; word_buffered[2] = false }
    :: d_step { word_buffered[3] -> word[3] = word_buffer[3]; word_buffered[3] = false }
    od
}

active proctype reader()
{
    byte p, a, b, seen;
    log_end > 0;
    do :: p + 1 < log_end -> p++ :: break od; /* any position below the log end */
#ifdef NO_ACQUIRE_FENCE
    if :: seen = reserved :: true fi;
    if :: a = word[WORD(p, 0)]; b = word[WORD(p, 1)] :: b = word[WORD(p, 1)]; a = word[WORD(p, 0)] fi;
    if :: seen == 0 -> seen = reserved :: else fi;
#else
    if :: a = word[WORD(p, 0)]; b = word[WORD(p, 1)] :: b = word[WORD(p, 1)]; a = word[WORD(p, 0)] fi;
    seen = reserved;
#endif
    if
#ifndef NO_CHECK
    :: seen > p + CAPACITY /* lapped: go on from the file */
    :: seen <= p + CAPACITY ->
#else
    :: true ->
#endif
        assert(a == p + 1 && b == p + 1); accepted = 1
    fi
}
