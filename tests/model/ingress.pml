/* From two ingress rings into one log, with receipts and intent (invariants 7 to 9): the order of
 * stores in shmbroker/_core/sequencer.h and what a replaced writer makes of every possible remainder.
 *
 * Memory: stores arrive in order; a process that dies leaves a prefix of its stores (why that holds on
 * aarch64 too: docs/memory-model.md). One writer, so nothing else is racing.
 *
 * Deaths: of the writer after every store, DEATHS times, also while it recovers; of one client in
 * the middle of a frame.
 *
 * A replaced writer:
 *   1  the next offset is found by walking the batches up to log_end_position, since a death
 *      between the two stores of step 6 leaves log_end_offset ahead; log_end_offset is stored anew
 *   2  for each ring: is the frame at the tail below `receipts`? It has its receipt: only move the tail
 *   3  does a complete intent name the frame at the tail, and has the log end reached it? Push its receipt
 *      again, from the intent; then the tail
 *   4  otherwise it was never appended: an ordinary frame
 *
 * Asserted: every published frame is appended once, or rejected by receipt and never appended; in
 * order; with its receipt at its place; offsets without a hole; nothing half-written enters.
 *
 * Broken on purpose: NO_INTENT, INTENT_LATE (after the log end), INTENT_UNGUARDED (end_position is not
 * taken back first), TAIL_FIRST (tail before receipt), TRUST_OFFSET (not rule 1), REDO_RECEIPTED (not rule 2).
 */
#define RINGS 2
#define FRAMES 2
#define ALL 4
#define ROOM 8
#define PER_BATCH 2
#define NOTHING 255
#ifndef DEATHS
#define DEATHS 2
#endif
#define FRAME(r, s) ((r) * FRAMES + (s))

byte head[RINGS], tail[RINGS], receipts[RINGS];
bool whole[ALL];
byte verdict[ALL], receipt_end[ALL], receipt_offset[ALL]; /* the receipt; verdict 0: none, 1: ok, 2: error */
byte log_frame[ROOM] = NOTHING, log_offset[ROOM];
byte log_end, log_end_offset;
byte intent_end = NOTHING, intent_ring, intent_seq, intent_offset;
byte deaths;
bool client_died;

#define STEP if :: deaths < DEATHS -> deaths++; goto replaced :: true fi

proctype client(byte r)
{
    byte s;
    do
    :: s < FRAMES ->
        if
        :: d_step { !client_died -> client_died = true }; goto gone /* half of frame s is written */
        :: whole[FRAME(r, s)] = true
        fi;
        head[r] = s + 1;
        s++
    :: else -> break
    od;
    s = 0;
    do
    :: s < FRAMES ->
        receipts[r] > s;
        d_step {
            assert(verdict[FRAME(r, s)] != 0);
            if
            :: verdict[FRAME(r, s)] == 1 ->
                assert(receipt_end[FRAME(r, s)] <= log_end);
                assert(log_frame[receipt_end[FRAME(r, s)] - 1] == FRAME(r, s));
                assert(log_offset[receipt_end[FRAME(r, s)] - 1] == receipt_offset[FRAME(r, s)])
            :: else
            fi;
            s++
        }
    :: else -> break
    od;
gone:
    skip
}

inline put_intent()
{
    /* sequencer.h, shmb_intent_put: taken back first, given last */
#ifndef INTENT_UNGUARDED
    intent_end = NOTHING; STEP;
    intent_ring = r; STEP;
    intent_seq = seq; STEP;
    intent_offset = next_offset; STEP;
    intent_end = log_end_seen + 1; STEP
#else
    intent_ring = r; STEP;
    intent_seq = seq; STEP;
    intent_offset = next_offset; STEP;
    intent_end = log_end_seen + 1; STEP
#endif
}

active proctype writer()
{
    byte r, seq, next_offset, log_end_seen, f;
replaced:
    skip;
    d_step {
        r = 0; seq = 0; f = 0;
        log_end_seen = log_end;
#ifdef TRUST_OFFSET
        next_offset = log_end_offset
#else
        next_offset = 0;
        if :: log_end > 0 -> next_offset = log_offset[log_end - 1] + PER_BATCH :: else fi
#endif
    };
    log_end_offset = next_offset; STEP;             /* or readers believe an offset that nothing has */
    do
    :: r < RINGS ->
        if
#ifndef REDO_RECEIPTED
        :: tail[r] < receipts[r] -> tail[r] = receipts[r]; STEP
#endif
        :: tail[r] == receipts[r] && tail[r] < head[r] && intent_end != NOTHING && intent_ring == r &&
           intent_seq == tail[r] && intent_end <= log_end ->
            f = FRAME(r, tail[r]);
            receipt_end[f] = intent_end;
            receipt_offset[f] = intent_offset;
            verdict[f] = 1; STEP;
            receipts[r] = tail[r] + 1; STEP;
            tail[r] = receipts[r]; STEP
        :: else
        fi;
        r++
    :: else -> break
    od;
end:
    do
    :: atomic { tail[0] < head[0] -> r = 0 }; goto frame
    :: atomic { tail[1] < head[1] -> r = 1 }; goto frame
    od;
frame:
    seq = tail[r]; f = FRAME(r, seq);
    assert(log_end_seen < ROOM);
    log_frame[log_end_seen] = f; STEP;              /* reserve, copy */
    assert(whole[f]);                               /* validate the copy */
    if
    :: verdict[f] != 2 || r == 1 ->                 /* the verdict may differ after a death (state) */
        log_offset[log_end_seen] = next_offset; STEP;
#if !defined(NO_INTENT) && !defined(INTENT_LATE)
        put_intent();
#endif
        log_end_offset = next_offset + PER_BATCH; STEP;
        log_end = log_end_seen + 1; STEP;
#ifdef INTENT_LATE
        put_intent();
#endif
        log_end_seen++;
#ifdef TAIL_FIRST
        tail[r] = seq + 1; STEP;
#endif
        receipt_end[f] = log_end_seen;
        receipt_offset[f] = next_offset;
        verdict[f] = 1; STEP;
        next_offset = next_offset + PER_BATCH
    :: r == 0 -> verdict[f] = 2; STEP               /* only ring 0 sends what may be rejected */
    fi;
    receipts[r] = seq + 1; STEP;
    tail[r] = seq + 1; STEP;
    goto end
}

proctype judge()
{
    byte i, n, f, last;
    timeout;
    d_step {
        f = 0;
        do
        :: f < ALL ->
            n = 0; i = 0;
            do
            :: i < log_end -> if :: log_frame[i] == f -> n++ :: else fi; i++
            :: else -> break
            od;
            if
            :: (f % FRAMES) < head[f / FRAMES] ->
                assert(verdict[f] != 0);
                assert(n == (verdict[f] == 1 -> 1 : 0))
            :: else -> assert(n == 0)
            fi;
            f++
        :: else -> break
        od;
        i = 0;
        do
        :: i < log_end -> assert(log_offset[i] == i * PER_BATCH); i++
        :: else -> break
        od;
        i = 1;
        do /* order within a ring */
        :: i < log_end ->
            if :: log_frame[i] / FRAMES == log_frame[i - 1] / FRAMES -> assert(log_frame[i] > log_frame[i - 1]) :: else fi;
            i++
        :: else -> break
        od;
        assert(log_end_offset == log_end * PER_BATCH);
        assert(tail[0] == head[0] && receipts[0] == head[0] && tail[1] == head[1] && receipts[1] == head[1])
    }
}

active proctype calm() { deaths = DEATHS }

init { atomic { run client(0); run client(1); run judge() } }
