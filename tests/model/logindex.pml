/* An entry of the ring's index (shmbroker/_core/logring.h, shmb_log_find): base offset and position are two
 * words that a reader must take as a pair while the writer laps it. Entry m stands for the batch at
 * position m with base offset 3 m; the ring holds 1 batch, the index 2 entries (twice a lap).
 *
 * Memory: partial store order, as in logring.pml.
 *
 * The order that holds: the writer stores the base offset, then the position by release, both behind
 * reserved and its fence; the reader loads the position by acquire, then the base offset, then checks
 * the position against reserved. A position newer than its base offset can't be seen; a base offset newer
 * than its position comes with a `reserved` that refuses the position.
 *
 * Broken on purpose: RELAXED_ENTRY (base offset is loaded first; both stores relaxed: the pair may be an
 * old offset with a position two laps on), NO_CHECK.
 */
#define CAPACITY 1
#define ENTRIES 2
#ifndef LENGTH
#define LENGTH 5
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

byte reserved, head, deaths, log_end;
byte offset[ENTRIES], position[ENTRIES];
byte offset_buffer[ENTRIES], position_buffer[ENTRIES];
bool offset_buffered[ENTRIES], position_buffered[ENTRIES];

#define STEP if :: deaths < DEATHS -> deaths++; goto replaced :: true fi
#define ARRIVED (!offset_buffered[0] && !offset_buffered[1] && !position_buffered[0] && !position_buffered[1])

active proctype writer()
{
    byte m, e;
replaced:
    ARRIVED;
    m = log_end;     /* a batch whose entry was put but whose log end was not: its entry is put again */
    do
    :: m < LENGTH ->
        if :: m + 1 > reserved -> reserved = m + 1; STEP :: else fi;   /* and the release fence */
        e = m % ENTRIES;
        d_step { !offset_buffered[e] -> offset_buffer[e] = 3 * m; offset_buffered[e] = true }; STEP;
#ifndef RELAXED_ENTRY
        !offset_buffered[e];                                           /* release */
#endif
        d_step { !position_buffered[e] -> position_buffer[e] = m; position_buffered[e] = true }; STEP;
        ARRIVED;                                                       /* release */
        head = m + 1; STEP;
        log_end = m + 1; STEP;
        m++
    :: else -> break
    od
}

active proctype drain()
{
end:
    do
    :: d_step { offset_buffered[0] -> offset[0] = offset_buffer[0]; offset_buffered[0] = false }
    :: d_step { offset_buffered[1] -> offset[1] = offset_buffer[1]; offset_buffered[1] = false }
    :: d_step { position_buffered[0] -> position[0] = position_buffer[0]; position_buffered[0] = false }
    :: d_step { position_buffered[1] -> position[1] = position_buffer[1]; position_buffered[1] = false }
    od
}

active proctype reader()
{
    byte m, o, p;
    head > 0;
    m = head - 1;
    if :: m > 0 -> m-- :: true fi;  /* any entry that the index held then */
#ifdef RELAXED_ENTRY
    o = offset[m % ENTRIES];
    p = position[m % ENTRIES];
#else
    p = position[m % ENTRIES];
    o = offset[m % ENTRIES];
#endif
    if
#ifndef NO_CHECK
    :: reserved > p + CAPACITY
    :: reserved <= p + CAPACITY ->
#else
    :: true ->
#endif
        assert(o == 3 * p)
    fi
}
