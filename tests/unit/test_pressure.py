"""A partition's pressure: what a sample means; the state rises at once and falls calmly."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbroker.config import PressureSection
from shmbroker.control.pressure import CAUSES, STATES, WAITS, Gauge, Sample, Thresholds, judge

LIMITS = Thresholds(**asdict(PressureSection()))
MIB = 1 << 20
REST = Sample("online", 5 * MIB, 5 * MIB, 64 * MIB, 1_000_000, "none", 0)


def filled(percent: float, **other: Any) -> Sample:
    """A ring of 64 MiB that is so full."""
    return REST._replace(log_end_position=5 * MIB + int(64 * MIB * percent / 100), **other)


@pytest.mark.parametrize(
    ("sample", "more", "state", "cause", "words"),
    [
        (REST, {}, "ok", "none", ""),
        (REST._replace(ring_bytes=0), {}, "ok", "none", ""),
        (filled(49), {}, "ok", "none", ""),
        (filled(51), {}, "soft", "filling", "51 % full"),
        (filled(91), {}, "hard", "filling", "disk is slower than its producers"),
        (filled(1, write_ns=250_000_000), {}, "soft", "slow_writes", "takes 250 ms"),
        (REST._replace(write_ns=250_000_000), {}, "ok", "none", ""),
        (filled(2), {"stalled_s": 3.2}, "hard", "stalled", "nothing has become durable for 3.2 s"),
        (filled(2, blocked_why="segment", blocked_ns=10**9), {}, "hard", "waiting", "next segment"),
        (filled(2, blocked_why="no_ring", blocked_ns=99_800_000_000), {}, "soft", "waiting",
         "for a log ring"),
        (filled(2, blocked_why="no_ring", blocked_ns=99_990_000_000), {}, "ok", "none", ""),
        (REST._replace(state="no_space"), {}, "hard", "no_space", "disk is full"),
        (REST._replace(state="no_space"), {"why": "no room for 3 B"}, "hard", "no_space", "3 B"),
        (REST._replace(state="opening"), {}, "hard", "opening", "recovered"),
        (REST._replace(state="readonly"), {}, "offline", "readonly", "log repair"),
        (REST._replace(state="offline"), {"why": "EIO"}, "offline", "offline", "EIO"),
        (REST._replace(state="closed"), {}, "offline", "closed", "closed"),
        (REST._replace(state="free"), {}, "offline", "closed", "closed"),
        (REST, {"writer": "its writer is being replaced"}, "hard", "writer", "replaced"),
        (REST._replace(state="offline"), {"writer": "gone"}, "offline", "offline", "failed"),
    ],
)  # fmt: skip
def test_each_sample_has_its_state_its_cause_and_its_words(
    sample: Sample, more: dict[str, Any], state: str, cause: str, words: str
) -> None:
    found = judge(sample, LIMITS, now_s=100.0, **more)
    assert (found.state, found.cause) == (state, cause)
    assert words in found.reason
    assert bool(found.reason) == (state != "ok")
    assert cause in CAUSES


def test_a_state_rises_at_once_and_falls_when_it_was_calm_for_long_enough() -> None:
    gauge = Gauge(0.0)
    assert gauge.take(filled(95), LIMITS, 0.1)
    assert gauge.verdict.state == "hard"
    gauge.take(filled(85, durable_position=5 * MIB + 1), LIMITS, 0.2)
    assert gauge.verdict.state == "hard", "within the margin"
    gauge.take(REST, LIMITS, 0.3)
    gauge.take(filled(95), LIMITS, 0.6)
    gauge.take(REST, LIMITS, 0.7)
    assert not gauge.take(REST, LIMITS, 1.1), "calm for 0.4 s, and not for 0.5"
    assert gauge.level("t", 0).since_s == pytest.approx(1.0)
    assert gauge.take(REST, LIMITS, 1.2)
    assert gauge.verdict.state == "ok"
    assert gauge.at_rest


def test_it_falls_no_further_than_to_where_it_is() -> None:
    gauge = Gauge(0.0)
    gauge.take(filled(95), LIMITS, 0.0)
    for n in range(1, 8):
        gauge.take(filled(60, durable_position=5 * MIB + n), LIMITS, n / 10)
    assert gauge.verdict.state == "soft"


def test_nothing_durable_for_long_is_a_stall_and_a_pause_between_two_looks_is_none() -> None:
    gauge = Gauge(0.0)
    gauge.take(REST, LIMITS, 0.0)
    gauge.take(filled(1), LIMITS, 60.0)
    assert gauge.verdict.state == "ok", "nothing had waited before"
    gauge.take(filled(1), LIMITS, 60.4)
    assert gauge.verdict.state == "ok"
    assert gauge.take(filled(1), LIMITS, 60.6)
    assert (gauge.verdict.state, gauge.verdict.cause) == ("hard", "stalled")


def test_the_writers_words_count_as_news_when_they_come_after_its_state() -> None:
    gauge, offline = Gauge(0.0), REST._replace(state="offline")
    assert gauge.take(offline, LIMITS, 0.1)
    assert not gauge.take(offline, LIMITS, 0.2)
    assert gauge.take(offline, LIMITS, 0.3, why="EIO")
    assert gauge.verdict.reason == "EIO"
    assert not gauge.take(offline, LIMITS, 0.4, why="EIO")


def test_what_nobody_looked_at_for_long_is_judged_afresh() -> None:
    gauge = Gauge(0.0)
    gauge.take(filled(95), LIMITS, 0.0)
    gauge.take(REST, LIMITS, 10.0)
    assert gauge.verdict.state == "ok"


def test_a_level_says_how_full_and_why() -> None:
    gauge = Gauge(0.0)
    gauge.take(filled(75, blocked_why="ring_full", blocked_ns=1), LIMITS, 1.0)
    level = gauge.level("ticks", 3)
    assert (level.topic, level.partition, level.state) == ("ticks", 3, "hard")
    assert level.ring_fill == pytest.approx(0.75)
    assert (level.ring_bytes, level.unsynced_bytes) == (64 * MIB, 48 * MIB)
    assert (level.write_ms, level.waits_for) == (1.0, "ring_full")
    assert str(level).startswith("ticks-3: hard, a batch waits for room")
    assert level.rank == 2


samples = st.builds(
    Sample,
    st.sampled_from(["online"] * 12 + ["no_space", "opening", "offline", "readonly", "closed"]),
    st.integers(0, 64 * MIB),
    st.just(0),
    st.sampled_from([0, MIB, 64 * MIB]),
    st.integers(0, 10**9),
    st.sampled_from(["none", *WAITS]),
    st.integers(0, 10**10),
)


@given(st.lists(st.tuples(samples, st.floats(0.001, 0.9)), max_size=40))
def test_a_state_is_never_better_than_now_and_falls_only_after_the_calm(
    steps: list[tuple[Sample, float]],
) -> None:
    gauge, now_s = Gauge(0.0), 0.0
    better_since: float | None = None
    for sample, pause in steps:
        now_s += pause
        before = gauge.verdict.state
        gauge.take(sample, LIMITS, now_s)
        bare = judge(sample, LIMITS, now_s=now_s, stalled_s=0.0)
        after = gauge.verdict.state
        assert STATES.index(after) >= STATES.index(bare.state)
        if STATES.index(bare.state) >= STATES.index(before):
            better_since = None
        elif better_since is None:
            better_since = now_s
        if STATES.index(after) < STATES.index(before):
            assert better_since is not None
            assert now_s - better_since >= LIMITS.calm_ms / 1000
            better_since = None
        assert bool(gauge.verdict.reason) == (after != "ok")


@given(st.lists(st.floats(80.5, 99), min_size=2, max_size=60))
def test_a_fill_that_swings_about_the_limit_changes_the_state_once(percents: list[float]) -> None:
    gauge = Gauge(0.0)
    gauge.take(filled(95), LIMITS, 0.0)
    changes = [
        gauge.take(filled(p, durable_position=5 * MIB - n), LIMITS, n / 5)
        for n, p in enumerate(percents, 1)
    ]
    assert not any(changes)
