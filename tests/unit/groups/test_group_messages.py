"""The codec of group messages: round trips, bounds, and rubbish that is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from group_members import request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shmbroker import errors
from shmbroker.control.groups.limits import COMMITS_MAX, METADATA_MAX_BYTES, TOPICS_MAX
from shmbroker.control.groups.messages import (
    Commit,
    CommitAnswer,
    CommitRow,
    Fetch,
    FetchAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Leave,
)
from shmbroker.control.groups.values import Committed, Subscription
from shmbroker.control.messages import Request

DECODERS: list[Any] = [
    Heartbeat.from_request,
    Leave.from_request,
    Commit.from_request,
    Fetch.from_request,
]
FULL = Heartbeat(
    "g", "m", 0, 3, "i", "app", Subscription(("a", "b"), "x.*", "range"), 10_000, 20_000
)


@pytest.mark.parametrize("beat", [FULL, Heartbeat("g", "m", 7, 3), Heartbeat("ü €", "m", 2**60)])
def test_heartbeats_round_trip(beat: Heartbeat) -> None:
    assert Heartbeat.from_request(request("group_heartbeat", beat.to_args())) == beat


def test_the_other_messages_round_trip() -> None:
    for leave in (Leave("g", "m"), Leave("g", "m", comes_back=True)):
        assert Leave.from_request(request("group_leave", leave.to_args())) == leave
    rows = (CommitRow(("t", 0), 5, 2, "seen ü"), CommitRow(("t", 1), 0))
    for commit in (Commit("g", rows), Commit("g", rows, "m", 4, "i"), Commit("g", ())):
        assert Commit.from_request(request("commit_offsets", commit.to_args())) == commit
    for fetch in (Fetch("g"), Fetch("g", ()), Fetch("g", (("t", 0), ("u", 7)))):
        assert Fetch.from_request(request("fetch_offsets", fetch.to_args())) == fetch


def test_answers_round_trip() -> None:
    for answer in (
        HeartbeatAnswer(4, 2, 3_000, 10_000),
        HeartbeatAnswer(4, 2, 3_000, 10_000, {}),
        HeartbeatAnswer(4, 2, 3_000, 10_000, {"id": ("t", (0, 1))}),
    ):
        assert HeartbeatAnswer.from_ok(orjson.loads(orjson.dumps(answer.to_ok()))) == answer
    fetched = FetchAnswer({("t", 0): Committed(5, 2, "m", 99)})
    assert FetchAnswer.from_ok(orjson.loads(orjson.dumps(fetched.to_ok()))) == fetched
    stale = errors.StaleMemberEpoch("no", group="g", member="m", topic="t", partition=1)
    said = CommitAnswer({("t", 0): 5}, {("t", 1): stale})
    back = CommitAnswer.from_ok(orjson.loads(orjson.dumps(said.to_ok())))
    assert back.committed == said.committed
    (error,) = back.refused.values()
    assert isinstance(error, errors.StaleMemberEpoch)
    assert (error.topic, error.partition) == ("t", 1)


@pytest.mark.parametrize("group", ["", "a" * 250, "a\n", "a\0b", "\u200b", "\x7f"])
def test_names_that_no_group_may_have_are_refused(group: str) -> None:
    with pytest.raises(errors.InvalidGroup, match="can't be a group's name"):
        Fetch.from_request(request("fetch_offsets", {"group": group}))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"member": "m" * 65}, "member id"),
        ({"instance": ""}, "instance id"),
        ({"name": "a\tb"}, "client's name"),
        ({"epoch": -1}, "whole number from 0"),
        ({"version": 1.5}, "whole number"),
        ({"topics": ["t"] * (TOPICS_MAX + 1)}, "at most 1000"),
        ({"topics": ["t", 7]}, "must be names"),
        ({"topics": ["t" * 250]}, "must be names"),
        ({"rebalance_timeout_ms": 0}, "whole number from 1"),
        ({"pattern": 7}, "a text"),
    ],
)
def test_heartbeats_out_of_bounds_are_refused(changed: dict[str, Any], problem: str) -> None:
    args = FULL.to_args() | changed
    with pytest.raises((errors.InvalidGroup, errors.InvalidRequest), match=problem):
        Heartbeat.from_request(Request("group_heartbeat", 1, args=args))


@pytest.mark.parametrize(
    "row",
    [
        [],
        ["t", 0, 5, 0],
        ["t", 0, -1, 0, ""],
        ["t", 0, 2**63, 0, ""],
        ["t", -1, 5, 0, ""],
        ["t", 0, 5, -2, ""],
        ["t", 0, True, 0, ""],
        ["t", 0, 5, 0, None],
        [7, 0, 5, 0, ""],
        ["t" * 250, 0, 5, 0, ""],
        "t",
    ],
)
def test_offsets_that_cannot_be_are_refused(row: Any) -> None:
    with pytest.raises(errors.InvalidRequest):
        Commit.from_request(Request("commit_offsets", 1, args={"group": "g", "offsets": [row]}))


def test_metadata_and_numbers_of_offsets_are_bounded() -> None:
    fits = Commit("g", (CommitRow(("t", 0), 5, 0, "x" * METADATA_MAX_BYTES),))
    assert Commit.from_request(request("commit_offsets", fits.to_args())) == fits
    large = Commit("g", (CommitRow(("t", 0), 5, 0, "ü" * (METADATA_MAX_BYTES // 2 + 1)),))
    with pytest.raises(errors.CommitMetadataTooLarge) as caught:
        Commit.from_request(request("commit_offsets", large.to_args()))
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (4098, 4096)
    many = {"group": "g", "offsets": [["t", 0, 5, 0, ""]] * (COMMITS_MAX + 1)}
    with pytest.raises(errors.InvalidRequest, match="at most 10000"):
        Commit.from_request(Request("commit_offsets", 1, args=many))


_json: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda v: st.lists(v, max_size=5) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=12,
)
_names = st.sampled_from(["group", "member", "epoch", "offsets", "partitions", "topics", "version"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_names, _json), st.sampled_from(DECODERS))
def test_nothing_that_arrives_does_more_than_be_refused(args: dict[str, Any], decode: Any) -> None:
    with contextlib.suppress(errors.ShmbrokerError):
        decode(Request("x", 1, args={"group": "g", "member": "m"} | args))
