/* The triple (segment base offset, its position, durable position) as readers take it
 * (shmbroker/_core/logring.h, shmb_slot_flush_segment) while the token holder switches segments and goes on writing.
 *
 * Segment k begins at position 4 k with base offset 10 k; durable moves from 4 k to 4 k + 2 within it.
 * Memory: partial store order, as in logring.pml. The token holder may die with flush_seq odd: the replacement
 * finishes the switch before anything else, or readers would turn round for ever.
 *
 * Broken on purpose: NO_CHECK, NO_RELEASE_FENCE, LEFT_ODD (the replacement does not finish the switch).
 */
#ifndef SEGMENTS
#define SEGMENTS 3
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

byte seq, base_offset, base_position, durable, deaths;
byte seq_buffer, offset_buffer, position_buffer;
bool seq_buffered, offset_buffered, position_buffered;

#define STEP if :: deaths < DEATHS -> deaths++; goto replaced :: true fi
#define ARRIVED (!seq_buffered && !offset_buffered && !position_buffered)

active proctype holder()
{
    byte k, s;
    goto work;
replaced:
    ARRIVED;
#ifndef LEFT_ODD
    if
    :: seq % 2 == 1 -> k = seq / 2; s = seq; goto finish
    :: else
    fi;
#endif
    k = seq / 2;
work:
    do
    :: durable < 4 * k + 2 -> durable = durable + 1; STEP
    :: durable == 4 * k + 2 && k + 1 < SEGMENTS ->
        s = seq + 1;
        d_step { !seq_buffered -> seq_buffer = s; seq_buffered = true }; STEP;
#ifndef NO_RELEASE_FENCE
        !seq_buffered;
#endif
finish:
        skip;
        d_step { !offset_buffered -> offset_buffer = 10 * (k + 1); offset_buffered = true }; STEP;
        d_step { !position_buffered -> position_buffer = 4 * (k + 1); position_buffered = true }; STEP;
        ARRIVED;                          /* release */
        durable = 4 * (k + 1); STEP;
        seq = s + 1; STEP;                /* release */
        k++
    :: durable == 4 * k + 2 && k + 1 == SEGMENTS -> break
    od
}

active proctype drain()
{
end:
    do
    :: d_step { seq_buffered -> seq = seq_buffer; seq_buffered = false }
    :: d_step { offset_buffered -> base_offset = offset_buffer; offset_buffered = false }
    :: d_step { position_buffered -> base_position = position_buffer; position_buffered = false }
    od
}

active proctype reader()
{
    byte before, o, p, d;
again:
    skip;
    d_step { seq % 2 == 0 -> before = seq }; /* blocks while odd: left so, it is an invalid end state */
    if :: o = base_offset; p = base_position :: p = base_position; o = base_offset fi;
    d = durable;
#ifndef NO_CHECK
    if :: seq != before -> goto again :: else fi;
#endif
    d_step { assert(p == 4 * (p / 4) && o == 10 * (p / 4)); assert(d >= p && d <= p + 2) }
}

active proctype calm() { deaths = DEATHS }
