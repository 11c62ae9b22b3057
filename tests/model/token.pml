/* The write token of one partition (invariant 5), as in shmbroker/_core/appender.h and engine.h: the
 * sequencer appends and rolls, a flusher and the sequencer itself write, the housekeeper names the
 * next segment's file.
 *
 * Memory: the sequencer's store of the private log end and a holder's store of token = IDLE each go
 * through a store buffer; a fence waits for it; a compare-and-swap that fails publishes nothing (so
 * it is no fence, as on aarch64), one that succeeds does.
 *
 * Positions are batches of 1; a roll leaves a gap of 1 (the next disk unit).
 *
 * Death: of the whole writer process at any step. Shared words outlive it; token, queue, flags and
 * the private log end do not. A write in flight has ended before the replacement starts (invariant 11).
 *
 * Asserted: at most one write in flight; durable <= log end, also as other processes see it; nothing is
 * written across a roll or into the wrong file; in the end durable == log end (an assertion at rest, and
 * `ltl flushed` in every execution, which also excludes that the token is passed round for ever).
 *
 * Broken on purpose: NO_SECOND_LOOK, NO_RELEASE_FENCE, NO_REQUEST_FENCE, PAIR_FIRST (the private log end
 * before the slot's), SILENT_HOUSEKEEPER (names the file and tells nobody), NO_REPLAY (the replacement
 * does not queue what the ring holds), TOKEN_IGNORED (the sequencer writes without taking the token).
 */
#ifndef APPENDS
#define APPENDS 3
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#define LAST (append_base > 0 -> APPENDS + 1 : APPENDS)
#define SEQUENCER 2

mtype = { IDLE, QUEUED, RUNNING };

/* shared memory: outlives the process */
byte log_end, durable, flush_base, append_base, roll_from, appended;
/* the process's own */
mtype token = IDLE;
byte pair_end, pair_buffer;
bool pair_buffered, idle_buffered, queued, roll_pending, roll_ready, want_roll, second_file;
byte writing;
/* of the model */
byte live, deaths;
bool dead;

/* holds: the caller has a buffered token = IDLE of its own, which its compare-and-swap sees */
inline swap_token(mine, state, won)
{
    d_step {
        if :: mine && idle_buffered -> token = IDLE; idle_buffered = false :: else fi;
        won = (token == IDLE);
        if
        :: won ->
            token = state;
            if :: (_pid == sequencer_pid) && pair_buffered -> pair_end = pair_buffer; pair_buffered = false
               :: else fi
        :: else
        fi
    }
}
pid sequencer_pid;

inline request(mine)
{
#ifndef NO_REQUEST_FENCE
    (_pid != sequencer_pid || !pair_buffered);
#endif
    swap_token(mine, QUEUED, won);
    if :: won -> d_step { assert(!queued); queued = true } :: else fi
}

inline flush_step()
{
    d_step { until = pair_end; go = 1; from = durable };
    if
    :: roll_pending && until > roll_from && from >= roll_from ->
        go = 0;
        if
        :: roll_ready ->
            second_file = true;
            flush_base = append_base;
            durable = append_base;
            roll_ready = false;
            roll_pending = false
        :: else
        fi
    :: roll_pending && until > roll_from && from < roll_from -> until = roll_from
    :: else
    fi;
    if
    :: go && until > from ->
        writing++;
        assert(writing == 1);
        assert(second_file == (flush_base > 0));
        assert(second_file -> from >= append_base : (append_base == 0 || until <= roll_from));
        writing--;
        assert(until <= log_end && until >= durable);
        durable = until
    :: else
    fi
}

inline release()
{
    d_step { assert(token == RUNNING && !idle_buffered); idle_buffered = true };
#ifndef NO_RELEASE_FENCE
    !idle_buffered;
#endif
#ifndef NO_SECOND_LOOK
    if
    :: pair_end > durable ->
        if
        :: roll_pending && durable >= roll_from && !roll_ready  /* the housekeeper queues it */
        :: else -> request(true)
        fi
    :: else
    fi
#endif
}

proctype sequencer()
{
    byte until, from, position;
    bool won, go;
    {
        sequencer_pid = _pid;
        d_step { position = log_end; if :: append_base > position -> position = append_base :: else fi };
#ifndef NO_REPLAY
        if :: log_end > durable -> request(false) :: else fi;
#endif
        do
        :: appended < APPENDS ->
            if
            :: append_base == 0 && log_end > 0 ->              /* a roll; append_base is stored last */
                roll_from = log_end;
                append_base = log_end + 1;
                position = append_base;
                roll_pending = true;
                want_roll = true
            :: true
            fi;
            position++;
#ifdef PAIR_FIRST
            d_step { pair_end = position };
            d_step { log_end = position; appended++ };
#else
            d_step { log_end = position; appended++ };
            d_step { !pair_buffered -> pair_buffer = position; pair_buffered = true };
#endif
            if
            :: true -> request(false)
            :: true ->                                          /* nothing else waits: by itself */
#ifdef TOKEN_IGNORED
                flush_step()
#else
                swap_token(false, RUNNING, won);
                if
                :: won -> flush_step(); release()
                :: else -> request(false)
                fi
#endif
            fi;
            d_step { until = 0; from = 0; go = 0; won = 0 }
        :: else -> break
        od;
end:
        dead
    } unless { dead };
    live--
}

proctype flusher()
{
    byte until, from;
    bool won, go;
    {
end:
        do
        :: d_step { queued -> queued = false };
            token = RUNNING;
            flush_step();
            release();
            d_step { until = 0; from = 0; go = 0; won = 0 }
        od
    } unless { dead };
    live--
}

proctype housekeeper()
{
    bool won;
    {
end:
        do
        :: d_step { want_roll -> want_roll = false };
            roll_ready = true;
#ifndef SILENT_HOUSEKEEPER
            request(false)
#endif
        od
    } unless { dead };
    live--
}

proctype drain()
{
    {
end:
        do
        :: d_step { pair_buffered -> pair_end = pair_buffer; pair_buffered = false }
        :: d_step { idle_buffered -> token = IDLE; idle_buffered = false }
        od
    } unless { dead };
    live--
}

init
{
    bool rest;
start:
    atomic { live = 4; run flusher(); run housekeeper(); run drain(); run sequencer() };
    do
    :: atomic { deaths < DEATHS -> deaths++; dead = true };
        live == 0;
        assert(durable <= log_end || (durable == append_base && flush_base == append_base));
        d_step {
            token = IDLE; queued = false; writing = 0; roll_ready = false; want_roll = false;
            pair_buffered = false; idle_buffered = false; pair_buffer = 0;
            if :: flush_base > durable -> durable = flush_base :: else fi; /* died between the two stores */
            pair_end = log_end;
            second_file = (flush_base > 0);
            roll_pending = (append_base > flush_base);
            want_roll = roll_pending;
            dead = false
        };
        goto start
    :: deaths < DEATHS -> deaths = DEATHS
    :: timeout ->
        assert(appended == APPENDS && durable == log_end && log_end == LAST && token == IDLE && !queued);
        break
    od
}

ltl flushed { <>[] (appended == APPENDS && durable == log_end) }
