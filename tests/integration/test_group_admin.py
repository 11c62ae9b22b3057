"""Consumer groups as operators see and move them: list, describe, reset, delete, over the wire."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest
from group_member import READS, Member, committed, topic_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import eventually

from shmbroker import errors
from shmbroker.control.groups.admin_messages import ForgetOffsets, Reset
from shmbroker.control.groups.messages import Commit, CommitRow
from shmbroker.control.groups.reset import AtOffset, AtTime, FromEnd

BEGAN_MS = 1_700_000_000_000


@pytest.fixture
def client(broker: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    broker.reach = getattr(request, "param", "local")
    with broker.client() as made:
        made.create_topic("t", partitions=3)
        with made.producer() as producer:
            for n in range(100):
                producer.send("t", b"x" * 100, partition=n % 2, timestamp=BEGAN_MS + 1_000 * n)
            producer.flush()
        yield made


@pytest.fixture
def broker_config() -> str:
    return '[listen]\naddress = "tcp://127.0.0.1:0"\n[log]\n"retention.ms" = -1\n'


def commit(client: Any, offsets: dict[int, int], group: str = "g") -> None:
    """By a program that is no member."""
    topic = topic_id(client)
    rows = tuple(CommitRow((topic, n), at, 0, f"at {at}") for n, at in offsets.items())
    client.connection.request("commit_offsets", **Commit(group, rows).to_args())


def describe(client: Any, group: str = "g") -> dict[str, Any]:
    said: dict[str, Any] = client.connection.request("describe_group", group=group)
    return said


def reset(client: Any, to: Any, topics: Any = None, dry_run: bool = False) -> list[dict[str, Any]]:
    said = client.connection.request("reset_group", **Reset("g", to, topics, dry_run).to_args())
    assert said["done"] is not dry_run
    rows: list[dict[str, Any]] = said["partitions"]
    return rows


@pytest.mark.parametrize("client", ["local", "tcp"], indirect=True)
def test_groups_are_listed_and_described_with_lag_in_records_and_in_time(client: Any) -> None:
    assert client.connection.request("list_groups") == {"groups": []}
    with pytest.raises(errors.GroupNotFound):
        describe(client)
    commit(client, {0: 20, 1: 50})
    (listed,) = client.connection.request("list_groups")["groups"]
    assert listed == {"group": "g", "state": "empty", "epoch": 1, "members": 0, "topics": ["t"]}
    said = describe(client)
    assert (said["state"], said["members"], said["assignor"]) == ("empty", [], "sticky")
    behind, done = said["partitions"]
    assert (behind["topic"], behind["partition"], behind["member"]) == ("t", 0, None)
    assert (behind["committed"], behind["metadata"], behind["leader_epoch"]) == (20, "at 20", 0)
    assert (behind["log_start_offset"], behind["high_watermark"], behind["lag"]) == (0, 50, 30)
    age_ms = time.time_ns() // 1_000_000 - (BEGAN_MS + 1_000 * 40)  # the record of offset 20
    assert abs(behind["lag_ms"] - age_ms) < 60_000
    assert abs(behind["committed_ms"] - time.time() * 1_000) < 60_000
    assert (done["committed"], done["lag"], done["lag_ms"]) == (50, 0, 0)

    member = Member(client, "m")
    member.join(name="a test")
    (listed,) = client.connection.request("list_groups")["groups"]
    assert (listed["state"], listed["members"]) == ("stable", 1)
    said = describe(client)
    (one,) = said["members"]
    assert (one["member"], one["name"], one["has"]) == ("m", "a test", {"t": [0, 1, 2]})
    assert [p["member"] for p in said["partitions"]] == ["m"] * 3
    assert [p["committed"] for p in said["partitions"]] == [20, 50, None]
    assert said["partitions"][2]["lag_ms"] == 0  # it is empty
    assert client.status()["consumer_groups"] == {"groups": 1, "members": 1}


def test_what_waits_to_be_given_up_is_told(client: Any) -> None:
    one, two = Member(client, "one"), Member(client, "two")
    one.join()
    two.beat(wants=READS)
    eventually(lambda: (one.beat(), len(one.has["t"]) < 3)[1], lambda: one.has)
    # It heard what it loses, and has not said that it let go.
    first, second = describe(client)["members"]
    assert first["gives_up"]["t"] == second["waits_for"]["t"]
    assert describe(client)["state"] == "reconciling"


def test_a_reset_is_a_plan_first_and_then_done(client: Any) -> None:
    topic = topic_id(client)
    whole, cut = [False] * 3, [False, False, True]
    for to, after, capped in (
        ("earliest", [0, 0, 0], whole),
        ("latest", [50, 50, 0], whole),
        (AtOffset(30), [30, 30, 0], cut),
        (FromEnd(10), [40, 40, 0], cut),
        (AtTime(BEGAN_MS + 41_000), [21, 20, 0], whole),
        (AtTime(BEGAN_MS * 2), [50, 50, 0], whole),
    ):
        commit(client, {0: 5, 1: 5, 2: 0})
        planned = reset(client, to, {"t": None}, dry_run=True)
        assert [p["after"] for p in planned] == after
        assert [p["capped"] for p in planned] == capped
        assert [p["before"] for p in planned] == [5, 5, 0]
        assert [p["lag_before"] for p in planned] == [45, 45, 0]
        assert [p["lag_after"] for p in planned] == [50 - after[0], 50 - after[1], 0]
        assert committed(client) == {(topic, 0): 5, (topic, 1): 5, (topic, 2): 0}
        assert reset(client, to) == planned
        assert committed(client) == {(topic, n): at for n, at in enumerate(after)}


def test_a_reset_begins_where_retention_left_the_log_and_names_its_partitions(client: Any) -> None:
    topic = topic_id(client)
    client.delete_records("t", {0: 30})
    (line,) = reset(client, AtOffset(10), {"t": (0,)})  # a group that is made by it
    assert (line["before"], line["after"], line["capped"]) == (None, 30, True)
    assert committed(client) == {(topic, 0): 30}
    assert describe(client)["partitions"][0]["lag"] == 20
    for topics in ({"absent": None}, {"t": (3,)}):
        with pytest.raises(errors.UnknownTopic):
            reset(client, "latest", topics)
    with pytest.raises(errors.GroupNotFound):
        client.connection.request("reset_group", **Reset("absent", "latest").to_args())


def test_members_keep_their_group_from_being_moved_and_deleted(client: Any) -> None:
    topic = topic_id(client)
    commit(client, {0: 5})
    client.create_topic("other")
    member = Member(client, "m")
    member.join()
    with pytest.raises(errors.GroupNotEmpty):
        reset(client, "latest")
    assert reset(client, "latest", dry_run=True)[0]["after"] == 50
    with pytest.raises(errors.GroupNotEmpty):
        client.connection.request("delete_group", group="g")
    forget = ForgetOffsets("g", {"t": None})
    with pytest.raises(errors.GroupSubscribed):
        client.connection.request("delete_group_offsets", **forget.to_args())
    client.connection.request(
        "delete_group_offsets", **ForgetOffsets("g", {"other": None}).to_args()
    )
    assert committed(client) == {(topic, 0): 5}
    member.leave()
    client.connection.request("delete_group_offsets", **forget.to_args())
    assert committed(client) == {}
    client.connection.request("delete_group", group="g")
    for op in ("describe_group", "delete_group"):
        with pytest.raises(errors.GroupNotFound):
            client.connection.request(op, group="g")


def test_a_deleted_group_stays_deleted_after_a_kill(broker: Any, client: Any) -> None:
    commit(client, {0: 5})
    commit(client, {0: 6, 1: 7}, group="other")
    client.connection.request("delete_group", group="g")
    forget = ForgetOffsets("other", {"t": (0,)})
    client.connection.request("delete_group_offsets", **forget.to_args())
    broker.kill9()
    broker.start()
    assert [g["group"] for g in client.connection.request("list_groups")["groups"]] == ["other"]
    assert committed(client, "other") == {(topic_id(client), 1): 7}


def test_a_full_disk_answers_so_and_nothing_is_told_that_is_not_stored(
    broker: Any, client: Any
) -> None:
    member, topic = Member(client, "m"), topic_id(client)
    member.join()
    before = member.commit(topic, {0: 3}).committed
    while not member.news.empty():
        member.news.get()  # of its own joining
    _, most = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (1, most))  # no file may grow
    with pytest.raises(errors.StoreFailed):
        member.commit(topic, {0: 9})
    late = Member(client, "late")
    for _ in range(2):  # the second time it is the same: no answer of what is in memory alone
        with pytest.raises(errors.StoreFailed):
            late.beat(wants=READS)
    assert member.news.empty()
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (most, most))
    assert committed(client) == before
    assert member.commit(topic, {0: 9}).committed == {(topic, 0): 9}
    late.beat(wants=READS)
    eventually(
        lambda: (member.beat(), late.beat(), len(late.has.get("t", ())) > 0)[-1], lambda: late.has
    )
    assert sorted(member.has["t"] + late.has["t"]) == [0, 1, 2]
    assert late.beat().assignment is None
    assert member.beat().assignment is None
    broker.kill9()
    broker.start()
    assert late.beat().assignment is None
    assert member.beat().assignment is None
    assert committed(client) == {(topic, 0): 9}


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
_names = ("group", "member", "epoch", "version", "topics", "pattern", "offsets", "partitions",
          "to", "dry_run", "comes_back", "session_timeout_ms", "instance", "assignor")  # fmt: skip
_ops = ("group_heartbeat", "group_leave", "commit_offsets", "fetch_offsets", "list_groups",
        "describe_group", "reset_group", "delete_group", "delete_group_offsets")  # fmt: skip


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    op=st.sampled_from(_ops),
    args=st.dictionaries(st.sampled_from(_names), _json, max_size=6),
    group=st.sampled_from(["g", "h", None]),
)
def test_whatever_is_asked_is_answered(client: Any, op: str, args: Any, group: Any) -> None:
    if group is not None:
        args = args | {"group": group}
    unanswered = (errors.TimedOut, errors.OutcomeUnknown, errors.BrokerGone)
    try:
        said = client.connection.request(op, timeout=20.0, **args)
    except errors.ShmbrokerError as error:
        said = {"refused": error}
    assert not isinstance(said.get("refused"), unanswered)
