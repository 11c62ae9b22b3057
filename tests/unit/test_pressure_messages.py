"""The events of pressure: what is sent is heard, and who missed something is right again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbroker.control import pressure_messages as pm
from shmbroker.control.pressure import CAUSES, STATES, WAITS, PartitionPressure
from shmbroker.errors import InvalidRequest, UnsupportedVersion

levels = st.builds(
    PartitionPressure,
    st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True),
    st.integers(0, 2**31 - 1),
    st.sampled_from(STATES),
    st.sampled_from(CAUSES),
    st.text(max_size=pm.REASON_MAX).filter(lambda t: t.isprintable()),
    st.integers(0, 10**9).map(lambda ms: ms / 1000),
    st.none() | st.integers(0, 10_000).map(lambda n: n / 10_000),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(0, 10**9).map(lambda us: us / 1000),
    st.sampled_from(["", *WAITS]),
)


def hard(topic: str, partition: int = 0, **more: Any) -> PartitionPressure:
    return PartitionPressure(topic, partition, "hard", "filling", "full", **more)


def state(board: pm.Board, topic: str, partition: int = 0) -> str:
    return board.level(topic, partition, 0.0).state


@settings(max_examples=40)
@given(st.lists(levels, max_size=8, unique_by=lambda level: (level.topic, level.partition)))
def test_what_is_sent_is_what_is_heard(sent: list[PartitionPressure]) -> None:
    board = pm.Board()
    for frames in pm.encode_snapshot("run", 0, sent):
        assert len(frames[1]) <= pm.MAX_EVENT_BYTES
        board.hear(frames, 7.0)
    assert board.complete
    for n, level in enumerate(sent, 1):
        assert board.level(level.topic, level.partition, 7.0) == level
        frames = pm.encode_change("run", n, level)
        assert frames[0].startswith(pm.prefix_of(level.topic, level.partition))
        assert board.hear(frames, 7.0) == [level]
        assert board.level(level.topic, level.partition, 9.0).since_s == pytest.approx(
            level.since_s + 2
        )


def test_prefixes_name_one_topic_and_one_partition_and_no_other() -> None:
    assert pm.prefix_of() == b"pressure/"
    assert not pm.prefix_of("ticks2", 0).startswith(pm.prefix_of("ticks"))
    assert not pm.prefix_of("ticks", 10).startswith(pm.prefix_of("ticks", 1))
    assert pm.prefix_of("ticks", 10).startswith(pm.prefix_of("ticks"))


def test_what_is_not_in_a_snapshot_is_ok_and_an_older_change_counts_for_nothing() -> None:
    board = pm.Board()
    assert (state(board, "a"), board.complete, board.heard_s) == ("ok", False, None)
    board.hear(pm.encode_change("run", 5, hard("a")), 1.0)
    assert (state(board, "a"), board.complete) == ("hard", False)
    (snapshot,) = pm.encode_snapshot("run", 6, [hard("b")])
    news = board.hear(snapshot, 2.0)
    assert [(level.topic, level.state) for level in news] == [("b", "hard"), ("a", "ok")]
    assert board.hear(pm.encode_change("run", 6, hard("a")), 2.0) == []
    assert (state(board, "a"), state(board, "b"), board.complete) == ("ok", "hard", True)
    assert board.heard_s == 2.0


def test_another_life_of_the_broker_makes_what_was_known_void() -> None:
    board = pm.Board()
    board.hear(pm.encode_snapshot("one", 9, [hard("a"), hard("b")])[0], 1.0)
    board.hear(pm.encode_change("two", 1, hard("b")), 2.0)
    assert (state(board, "a"), state(board, "b"), board.complete) == ("ok", "hard", False)


def test_a_long_snapshot_comes_in_parts_and_counts_only_whole() -> None:
    many = [hard("t", n, ring_fill=1.0) for n in range(pm.LEVELS_A_PART * 2 + 1)]
    parts = pm.encode_snapshot("run", 1, many)
    assert len(parts) == 3
    board = pm.Board()
    for missing in (0, 1, 2):
        for n, frames in enumerate(parts):
            if n != missing:
                board.hear(frames, 1.0)
        assert not board.complete, missing
    for frames in parts:
        board.hear(frames, 1.0)
    assert board.complete
    assert all(state(board, "t", n) == "hard" for n in range(len(many)))
    assert state(board, "t", len(many)) == "ok"


def test_words_that_are_too_long_are_cut_and_events_of_later_versions_passed_over() -> None:
    board = pm.Board()
    level = PartitionPressure("t", 0, "offline", "offline", "x" * 5_000)
    board.hear(pm.encode_change("run", 1, level), 0.0)
    assert board.level("t", 0, 0.0).reason == "x" * pm.REASON_MAX
    assert board.hear((b"lag/", b'{"v":1,"event":"lag","group":"g"}'), 0.0) == []


def test_a_snapshot_keeps_the_worst_when_there_are_more_than_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pm, "PARTS_MAX", 1)
    soft = [PartitionPressure("t", n, "soft", "filling", "half") for n in range(80)]
    (frames,) = pm.encode_snapshot("run", 1, [*soft, hard("worst")])
    board = pm.Board()
    board.hear(frames, 0.0)
    assert state(board, "worst") == "hard"
    board.hear(pm.encode_change("run", 2, hard("one more")), 0.0)
    assert state(board, "one more") == "ok", "a board is bounded"


def change(**other: Any) -> list[bytes]:
    name, body = pm.encode_change("run", 3, hard("t"))
    return [name, json.dumps(json.loads(body) | other).encode()]


BAD = {
    "one frame": [b"pressure/t/0/"],
    "no JSON": [b"pressure/", b"{"],
    "too long": [b"pressure/", b" " * (pm.MAX_EVENT_BYTES + 1)],
    "a request": [b"pressure/", b'{"v":1,"op":"pressure"}'],
    "no run": [b"pressure/", b'{"v":1,"event":"pressure","seq":1}'],
    "a state": change(state="worse"),
    "a state of another kind": change(state=3),
    "a topic": change(topic="t" * 250),
    "a partition": change(partition=-1),
    "a fill": change(ring_fill=2),
    "a truth": change(ring_bytes=True),
    "a number": change(write_ms="1"),
    "a text": change(reason=None),
    "part": [b"snapshot/", b'{"v":1,"event":"pressure_snapshot","run":"r","seq":1,"part":1,'
             b'"parts":1,"partitions":[]}'],
    "parts": [b"snapshot/", b'{"v":1,"event":"pressure_snapshot","run":"r","seq":1,"part":0,'
              b'"parts":99999,"partitions":[]}'],
    "many": [b"snapshot/", b'{"v":1,"event":"pressure_snapshot","run":"r","seq":1,"part":0,'
             b'"parts":1,"partitions":[' + b",".join([b"1"] * 65) + b"]}"],
    "no table": [b"snapshot/", b'{"v":1,"event":"pressure_snapshot","run":"r","seq":1,"part":0,'
                 b'"parts":1,"partitions":[1]}'],
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_rubbish_is_refused_and_changes_nothing(what: str) -> None:
    board = pm.Board()
    board.hear(pm.encode_snapshot("run", 1, [hard("a")])[0], 1.0)
    with pytest.raises(InvalidRequest):
        board.hear(BAD[what], 2.0)
    assert (state(board, "a"), board.heard_s) == ("hard", 1.0)


@given(st.lists(st.binary(max_size=80), max_size=3))
def test_random_frames_are_refused_by_name(frames: list[bytes]) -> None:
    with pytest.raises((InvalidRequest, UnsupportedVersion)):
        pm.Board().hear(frames, 0.0)
    with pytest.raises((InvalidRequest, UnsupportedVersion)):
        pm.Board().hear([b"snapshot/", *frames[1:]], 0.0)
