"""Consumer groups over the wire: what a bare program asks, is answered, and is told unasked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from group_member import READS, Member, committed, topic_id
from waiting import eventually

from shmbroker import errors
from shmbroker.control.groups.messages import Commit, CommitRow
from shmbroker.control.groups.values import Subscription


@pytest.fixture(params=["local", "tcp"])
def reach(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def broker_config() -> str:
    return '[listen]\naddress = "tcp://127.0.0.1:0"\n'


@pytest.fixture
def client(broker: Any, reach: str) -> Iterator[Any]:
    broker.reach = reach
    with broker.client() as made:
        made.create_topic("t", partitions=4)
        yield made


def test_two_members_share_a_topic_and_hear_of_each_other(client: Any) -> None:
    one, two = Member(client, "one"), Member(client, "two")
    one.join()
    assert one.has == {"t": [0, 1, 2, 3]}
    two.beat(wants=READS)
    assert one.news.get(timeout=20)["group"] == "g"
    eventually(
        lambda: (one.beat(), two.beat(), len(two.has.get("t", ())) == 2)[-1], lambda: two.has
    )
    assert sorted(one.has["t"] + two.has["t"]) == [0, 1, 2, 3]
    two.leave()
    with pytest.raises(errors.UnknownMember):
        two.beat()
    eventually(lambda: (one.beat(), len(one.has["t"]) == 4)[1], lambda: one.has)


def test_commits_are_capped_at_the_durable_end_and_outlive_the_broker(
    broker: Any, client: Any
) -> None:
    with client.producer() as producer:
        producer.send_many("t", [b"x"] * 10, partition=1)
        producer.flush()
    member, topic = Member(client, "m"), topic_id(client)
    member.join()
    said = member.commit(topic, {0: 7, 1: 7})
    assert said.committed == {(topic, 0): 0, (topic, 1): 7}  # there is nothing in partition 0
    assert committed(client) == {(topic, 0): 0, (topic, 1): 7}
    epoch, version = member.answer.epoch, member.answer.version
    broker.kill9()
    broker.start()
    assert committed(client) == {(topic, 0): 0, (topic, 1): 7}
    now = member.beat()
    assert (now.epoch, now.version) == (epoch, version)  # a restart is no rebalance
    broker.restart()
    now = member.beat()
    assert (now.epoch, now.version) == (epoch, version)
    assert member.commit(topic, {1: 9}).committed == {(topic, 1): 9}


def test_who_is_out_commits_nothing(client: Any) -> None:
    topic = topic_id(client)
    one, two = Member(client, "one"), Member(client, "two")
    one.join(session_timeout_ms=1_000)
    two.beat(wants=READS)  # keeps speaking; the first one does not
    eventually(lambda: (two.beat(), len(two.has.get("t", ())) == 4)[1], lambda: two.has)
    with pytest.raises(errors.UnknownMember):
        one.commit(topic, {0: 0})
    with pytest.raises(errors.GroupNotEmpty):
        client.connection.request(
            "commit_offsets", **Commit("g", (CommitRow((topic, 0), 0),)).to_args()
        )
    with pytest.raises(errors.FencedMemberEpoch):
        two.client.connection.request(
            "commit_offsets",
            **Commit("g", (CommitRow((topic, 0), 0),), "two", two.answer.epoch + 5).to_args(),
        )
    assert committed(client) == {}


def test_topics_that_come_grow_and_go_are_followed(client: Any) -> None:
    member = Member(client, "m")
    member.join(Subscription(("later",), pattern="t|u.*"))
    assert member.has == {"t": [0, 1, 2, 3]}
    client.create_topic("other")
    client.create_topic("later")
    client.create_topic("u-1", partitions=2)
    wanted = {"t": [0, 1, 2, 3], "u-1": [0, 1], "later": [0]}
    assert member.news.get(timeout=20)
    eventually(lambda: (member.beat(), member.has == wanted)[1], lambda: member.has)
    client.alter_topic("later", partitions=3)
    client.delete_topic("u-1")
    wanted = {"t": [0, 1, 2, 3], "later": [0, 1, 2]}
    eventually(lambda: (member.beat(), member.has == wanted)[1], lambda: member.has)


def test_what_a_deleted_topic_had_committed_is_gone(client: Any) -> None:
    member, topic = Member(client, "m"), topic_id(client)
    member.join()
    member.commit(topic, {0: 0})
    client.delete_topic("t")
    client.create_topic("t", partitions=1)
    assert committed(client) == {}
    said = member.commit(topic, {0: 0})
    assert not said.committed
    assert isinstance(said.refused[topic, 0], errors.ShmbrokerError)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("group_heartbeat", {}),
        ("group_heartbeat", {"group": "", "member": "m", "epoch": 0, "topics": ["t"]}),
        ("group_heartbeat", {"group": "g", "member": "m", "epoch": -1}),
        ("group_heartbeat", {"group": "g", "member": "m", "epoch": 0, "topics": "t"}),
        (
            "group_heartbeat",
            {"group": "g", "member": "m", "epoch": 0, "topics": [], "pattern": "("},
        ),
        ("group_leave", {"group": "g"}),
        ("commit_offsets", {"group": "g", "offsets": [1]}),
        ("commit_offsets", {"group": "g", "offsets": [["x", 0, -1, 0, ""]]}),
        ("fetch_offsets", {"group": 3}),
        ("fetch_offsets", {"group": "g", "partitions": [["x"]]}),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(client: Any, op: str, args: Any) -> None:
    with pytest.raises(errors.ShmbrokerError) as caught:
        client.connection.request(op, **args)
    assert type(caught.value) in (
        errors.InvalidRequest, errors.InvalidGroup, errors.InvalidPattern
    )  # fmt: skip
    assert committed(client) == {}
