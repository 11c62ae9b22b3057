"""The coordinator, one behaviour at a time; all of them together are in the property tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from group_members import SETTINGS, FakeMember, GroupBroker, settle

from shmbroker import errors
from shmbroker.control.groups.messages import Commit, CommitRow
from shmbroker.control.groups.values import Partition


def tp(broker: GroupBroker, number: int, name: str = "t") -> Partition:
    return broker.meta.topic(name).topic_id, number


def numbers(member: FakeMember) -> list[int]:
    return sorted(number for _, number in member.holds)


def test_the_first_member_gets_everything_at_its_first_heartbeat(broker: GroupBroker) -> None:
    a = FakeMember(broker, "a")
    answer = a.beat()
    assert numbers(a) == [0, 1, 2, 3]
    assert answer.assignment == {broker.meta.topic("t").topic_id: ("t", (0, 1, 2, 3))}
    assert (answer.heartbeat_in_ms, answer.session_timeout_ms) == (3_000, 10_000)
    assert a.beat().assignment is None  # it is told once


def test_a_partition_is_given_on_only_when_its_owner_has_let_go(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b")
    a.beat()
    b.beat()
    assert not b.holds
    a.beat()
    assert (len(a.holds), len(a.revoke)) == (2, 2)
    b.beat()
    a.beat()  # it still works on what it has to let go
    b.beat()
    assert not b.holds
    lost = set(a.revoke)
    a.let_go()
    a.beat()
    b.beat()
    assert b.holds == lost


def test_who_keeps_a_partition_is_never_stopped(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b")
    a.beat()
    b.beat()
    a.beat()
    kept = set(a.holds)
    for offset, partition in enumerate(kept):
        assert partition in a.commit(partition, offset).committed  # in the middle of it
    settle([a, b])
    assert a.holds == kept


def test_changes_within_the_gathering_time_are_one_rebalance(tmp_path: Path) -> None:
    broker = GroupBroker(tmp_path / "meta.db", replace(SETTINGS, gather_ms=20))
    broker.create("t", 4)
    members = [FakeMember(broker, name) for name in "abcd"]
    for member in members:
        assert member.beat().heartbeat_in_ms == 20
    assert not any(member.holds for member in members)
    broker.sleep(20)
    news = broker.coordinator.take_news()
    assert sorted(member for _, member in news) == ["a", "b", "c", "d"]
    for member in members:
        member.beat()
    assert sorted(n for m in members for n in numbers(m)) == [0, 1, 2, 3]  # nobody had to let go
    assert broker.coordinator.describe("g").state == "stable"
    broker.close()


def test_only_those_with_something_to_hear_are_told(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b")
    a.beat()
    broker.coordinator.take_news()
    b.beat()
    assert broker.coordinator.take_news() == [("g", "a")]
    a.beat()
    assert broker.coordinator.take_news() == []  # b still waits for a
    a.let_go()
    a.beat()
    assert broker.coordinator.take_news() == [("g", "b")]


def test_a_silent_member_is_out_and_its_commits_are_refused(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b")
    settle([a, b])
    for _ in range(5):
        broker.sleep(2_500)
        b.turn()
    assert numbers(b) == [0, 1, 2, 3]
    partition = next(iter(a.holds))
    with pytest.raises(errors.UnknownMember, match="silent past its session timeout"):
        a.commit(partition, 7)
    with pytest.raises(errors.UnknownMember):
        a.beat()
    assert broker.committed("g") == {}


def test_a_member_that_does_not_let_go_in_time_is_out(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a", rebalance_timeout_ms=3_000), FakeMember(broker, "b")
    a.beat()
    b.beat()
    a.beat()
    broker.sleep(2_900)
    a.beat()  # heartbeats alone don't help
    broker.sleep(200)
    with pytest.raises(errors.UnknownMember):
        a.beat()
    b.beat()
    assert numbers(b) == [0, 1, 2, 3]


def test_a_member_that_left_is_replaced_at_once(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b")
    settle([a, b])
    a.leave()
    b.beat()
    assert numbers(b) == [0, 1, 2, 3]
    with pytest.raises(errors.UnknownMember):
        a.leave()


def test_a_commit_inside_on_revoke_counts_and_one_after_it_does_not(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b")
    a.beat()
    b.beat()
    a.beat()
    lost = min(a.revoke)
    assert a.commit(lost, 5).committed == {lost: 5}
    a.let_go()
    a.beat()
    late = a.commit(lost, 6)
    assert late.committed == {}
    assert isinstance(late.refused[lost], errors.StaleMemberEpoch)
    assert late.refused[lost].kafka_code == 113
    assert broker.committed("g")[lost].offset == 5


def test_a_commit_of_an_earlier_time_with_the_partition_is_refused(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b")
    a.beat()
    old = a.epoch
    settle([a, b])
    moved = min(b.holds)
    b.leave()
    a.turn()
    assert moved in a.holds
    assert a.commit(moved, 9, epoch=old).committed == {}
    assert a.commit(moved, 9).committed == {moved: 9}


def test_an_epoch_that_was_never_given_is_fenced(broker: GroupBroker) -> None:
    a = FakeMember(broker, "a")
    a.beat()
    a.epoch += 1
    with pytest.raises(errors.FencedMemberEpoch) as caught:
        a.beat()
    assert caught.value.kafka_code == 110
    with pytest.raises(errors.FencedMemberEpoch):
        a.commit(min(a.holds), 1)


def test_a_lost_answer_is_given_again(broker: GroupBroker) -> None:
    a = FakeMember(broker, "a")
    lost = broker.heartbeat(a.request())
    assert a.beat() == lost
    b = FakeMember(broker, "b")
    b.beat()
    broker.heartbeat(a.request())  # tells what to give up, and is lost
    b.beat()
    assert not b.holds
    a.beat()
    assert len(a.revoke) == 2


def test_a_member_that_joins_again_under_its_id_begins_anew(broker: GroupBroker) -> None:
    a = FakeMember(broker, "a")
    a.beat()
    a.beat()
    old, partition = a.epoch, min(a.holds)
    again = FakeMember(broker, "a")
    again.beat()
    assert numbers(again) == [0, 1, 2, 3]
    with pytest.raises(errors.FencedMemberEpoch):
        a.beat()
    with pytest.raises(errors.FencedMemberEpoch):
        a.commit(partition, 3, epoch=old)


# Static membership


def test_a_static_member_comes_back_without_a_rebalance(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a", instance_id="one"), FakeMember(broker, "b")
    settle([a, b])
    before, epoch = set(a.holds), broker.coordinator.describe("g").epoch
    a.leave(comes_back=True)
    broker.sleep(2_000)
    b.turn()
    assert len(b.holds) == 2
    again = FakeMember(broker, "a2", instance_id="one")
    again.beat()
    assert again.holds == before
    assert broker.coordinator.describe("g").epoch == epoch


def test_a_static_member_that_stays_away_is_out_when_its_session_ends(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a", instance_id="one"), FakeMember(broker, "b")
    settle([a, b])
    a.leave(comes_back=True)
    for _ in range(5):
        broker.sleep(2_100)
        b.turn()
    assert numbers(b) == [0, 1, 2, 3]


def test_the_older_of_two_with_one_instance_id_is_fenced(broker: GroupBroker) -> None:
    a = FakeMember(broker, "a", instance_id="one")
    a.beat()
    again = FakeMember(broker, "a2", instance_id="one")
    again.beat()  # after a crash: nobody said that the first one left
    with pytest.raises(errors.FencedInstance, match="instance id of its own") as caught:
        a.beat()
    assert caught.value.kafka_code == 82
    with pytest.raises(errors.FencedInstance):
        a.commit(min(again.holds), 4)
    assert again.commit(min(again.holds), 4).committed == {min(again.holds): 4}


# Topics


def test_new_partitions_and_topics_are_taken_up(broker: GroupBroker) -> None:
    a = FakeMember(broker, "a", ("t", "later"), pattern="logs-.*")
    a.beat()
    broker.meta.add_partitions("t", 6)
    broker.topics_changed()
    a.beat()
    assert numbers(a) == [0, 1, 2, 3, 4, 5]
    broker.create("later", 1)
    broker.create("logs-eu", 1)
    broker.create("other", 1)
    a.beat()
    names = {view.topic_id: view.name for view in broker.views()}
    assert {names[topic] for topic, _ in a.holds} == {"t", "later", "logs-eu"}


def test_a_deleted_topic_is_given_up_and_its_offsets_are_gone(broker: GroupBroker) -> None:
    a = FakeMember(broker, "a")
    a.beat()
    old = tp(broker, 0)
    a.commit(old, 3)
    broker.delete("t")
    assert broker.committed("g") == {}
    refused = a.commit(old, 4).refused
    assert isinstance(refused[old], errors.UnknownTopic)
    broker.create("t", 1)
    a.turn()
    assert a.holds == {tp(broker, 0)}  # another topic of the same name


def test_what_a_member_wants_may_change(broker: GroupBroker) -> None:
    broker.create("u", 1)
    a = FakeMember(broker, "a")
    a.beat()
    beat = replace(a.request(), wants=replace(a.wants, topics=("u",)))
    a.take(broker.heartbeat(beat))
    a.let_go()
    a.beat()
    assert a.holds == {tp(broker, 0, "u")}


# Restarts


def test_a_restart_is_no_rebalance(broker: GroupBroker) -> None:
    members = [FakeMember(broker, name) for name in "abc"]
    settle(members)
    before = [(m.epoch, set(m.holds)) for m in members]
    described = broker.coordinator.describe("g")
    broker.restart()
    assert broker.coordinator.describe("g") == described
    broker.sleep(9_000)  # each has a whole session to come back
    for member in members:
        assert member.beat().assignment is None
    assert [(m.epoch, set(m.holds)) for m in members] == before


def test_who_does_not_come_back_after_a_restart_is_out(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b")
    settle([a, b])
    broker.restart()
    broker.sleep(9_000)
    a.beat()
    broker.sleep(1_100)
    a.beat()
    assert numbers(a) == [0, 1, 2, 3]


def test_a_restart_in_the_middle_of_a_revocation_gives_nothing_away(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b")
    a.beat()
    b.beat()
    a.beat()
    broker.restart()
    b.beat()
    assert not b.holds
    a.let_go()
    a.beat()
    b.beat()
    assert len(b.holds) == 2


def test_topics_that_changed_while_the_broker_was_down_are_noticed(broker: GroupBroker) -> None:
    a = FakeMember(broker, "a")
    a.beat()
    broker.meta.add_partitions("t", 5)
    broker.restart()
    a.beat()
    assert numbers(a) == [0, 1, 2, 3, 4]


# Bounds and errors


def test_who_asks_for_what_cannot_be_is_told(broker: GroupBroker) -> None:
    with pytest.raises(errors.UnsupportedAssignor, match="range, roundrobin, sticky"):
        FakeMember(broker, "a", assignor="best").beat()
    with pytest.raises(errors.InvalidPattern, match="character 3"):
        FakeMember(broker, "a", pattern="a(").beat()
    with pytest.raises(errors.InvalidSessionTimeout, match="1000 to 1800000"):
        FakeMember(broker, "a", session_timeout_ms=10).beat()
    with pytest.raises(errors.InvalidRequest, match="which topics to read"):
        FakeMember(broker, "a", ()).beat()
    with pytest.raises(errors.GroupNotFound, match="shmbroker group list"):
        broker.coordinator.describe("g")  # none of them made a group


def test_groups_and_members_are_bounded(tmp_path: Path) -> None:
    broker = GroupBroker(tmp_path / "meta.db", replace(SETTINGS, members_max=2, groups_max=1))
    broker.create("t", 1)
    for name in "ab":
        FakeMember(broker, name).beat()
    with pytest.raises(errors.GroupFull, match="2 members"):
        FakeMember(broker, "c").beat()
    with pytest.raises(errors.GroupFull, match="can't be made"):
        FakeMember(broker, "c", group="h").beat()
    with pytest.raises(errors.GroupFull):
        broker.commit(Commit("h", (CommitRow(tp(broker, 0), 1),)))
    broker.close()


def test_the_assignor_is_what_most_members_ask_for(broker: GroupBroker) -> None:
    for name, assignor in (("a", "range"), ("b", "roundrobin"), ("c", "range"), ("d", None)):
        FakeMember(broker, name, assignor=assignor).beat()
    assert broker.coordinator.describe("g").assignor == "range"


def test_a_group_is_deleted_only_without_members(broker: GroupBroker) -> None:
    a = FakeMember(broker, "a")
    a.beat()
    a.commit(tp(broker, 0), 3)
    with pytest.raises(errors.GroupNotEmpty, match="there is a member"):
        broker.coordinator.delete("g")
    a.leave()
    broker.coordinator.delete("g")
    broker.gathering.flush(0)
    broker.restart()
    assert broker.coordinator.names() == []
    assert broker.committed("g") == {}


def test_a_description_says_who_has_what_and_who_waits_for_whom(broker: GroupBroker) -> None:
    a, b = FakeMember(broker, "a"), FakeMember(broker, "b", instance_id="one")
    a.beat()
    b.beat()
    a.beat()
    described = broker.coordinator.describe("g")
    first, second = described.members  # those with an instance id come first
    assert (described.state, first.instance_id, second.member_id) == ("reconciling", "one", "a")
    assert first.waits_for == second.gives_up
    assert first.has == {}
    a.let_go()
    settle([a, b])
    assert broker.coordinator.describe("g").state == "stable"
    a.leave()
    b.leave()
    assert broker.coordinator.describe("g").state == "empty"
