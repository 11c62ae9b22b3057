"""The sticky assignor against every assignment that there is, where they can be counted."""

from __future__ import annotations

import pytest
from group_optimum import best, cost
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbroker.control.groups import sticky
from shmbroker.control.groups.values import Partition


@st.composite
def groups(
    draw: st.DrawFn,
) -> tuple[dict[str, frozenset[str]], dict[str, int], dict[Partition, str]]:
    names = ["a", "b", "c"][: draw(st.integers(1, 3))]
    topics = {name: draw(st.integers(1, 3)) for name in names}
    while sum(topics.values()) > 6:
        topics.popitem()
    members = [f"m{n}" for n in range(draw(st.integers(1, 4)))]
    wants = {m: frozenset(draw(st.sets(st.sampled_from(sorted(topics))))) for m in members}
    owners = st.sampled_from([*members, "gone", None])
    current = {}
    for topic, count in topics.items():
        for number in range(count):
            owner = draw(owners)
            if owner is not None:
                current[topic, number] = owner
    return wants, topics, current


@settings(max_examples=300, deadline=None)
@given(groups())
def test_no_assignment_is_better_balanced_and_none_as_balanced_moves_less(
    group: tuple[dict[str, frozenset[str]], dict[str, int], dict[Partition, str]],
) -> None:
    wants, topics, current = group
    given_ = sticky.assign(wants, topics, current)
    read = frozenset().union(*wants.values())
    everything = sorted((t, n) for t in read for n in range(topics[t]))
    assert sorted(p for held in given_.values() for p in held) == everything
    assert all(t in wants[m] for m, held in given_.items() for t, _ in held)
    assert cost(given_, current) == best(wants, topics, current)


def test_a_partition_goes_by_way_of_others_where_it_cannot_go_directly() -> None:
    """b can't give its own to c, but to a, who gives c one."""
    wants = {"a": frozenset("xy"), "b": frozenset("x"), "c": frozenset("y")}
    current = {("x", 0): "b", ("x", 1): "b", ("x", 2): "b", ("y", 0): "a"}
    given_ = sticky.assign(wants, {"x": 3, "y": 1}, current)
    assert sorted(len(held) for held in given_.values()) == [1, 1, 2]
    assert given_["c"] == {("y", 0)}
    assert len(given_["b"]) == 2


@pytest.mark.parametrize("members", [1, 7, 100])
def test_one_more_member_takes_its_share_and_nothing_else_moves(members: int) -> None:
    wants = {f"m{n:03}": frozenset("t") for n in range(members)}
    before = sticky.assign(wants, {"t": 1000}, {})
    current = {p: m for m, held in before.items() for p in held}
    after = sticky.assign(wants | {"new": frozenset("t")}, {"t": 1000}, current)
    assert all(after[m] <= before[m] for m in before)
    assert len(after["new"]) == 1000 // (members + 1)


def test_the_work_is_bounded_and_the_answer_still_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sticky, "STEPS_MAX", 0)
    wants = {"a": frozenset("xy"), "b": frozenset("x"), "c": frozenset("y")}
    current = {("x", n): "b" for n in range(9)}
    given_ = sticky.assign(wants, {"x": 9, "y": 3}, current)
    assert sorted(p for held in given_.values() for p in held) == [
        *(("x", n) for n in range(9)),
        *(("y", n) for n in range(3)),
    ]
