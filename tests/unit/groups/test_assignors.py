"""Range and round-robin, as Kafka's; and each partition goes to one who wants it, with all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbroker.control.groups.assignors import ASSIGNORS, Assignor, check_assignor
from shmbroker.errors import UnsupportedAssignor


def shape(given_: dict[str, set[tuple[str, int]]]) -> dict[str, list[str]]:
    return {m: [f"{t}{n}" for t, n in sorted(held)] for m, held in given_.items()}


def test_range_gives_each_topic_in_consecutive_pieces() -> None:
    wants = {"a": frozenset("tu"), "b": frozenset("tu")}
    given_ = ASSIGNORS["range"](wants, {"t": 3, "u": 3}, {})
    assert shape(given_) == {"a": ["t0", "t1", "u0", "u1"], "b": ["t2", "u2"]}


def test_round_robin_takes_turns_over_all_topics() -> None:
    wants = {"a": frozenset("tu"), "b": frozenset("tu"), "c": frozenset("u")}
    given_ = ASSIGNORS["roundrobin"](wants, {"t": 3, "u": 3}, {})
    assert shape(given_) == {"a": ["t0", "t2", "u2"], "b": ["t1", "u0"], "c": ["u1"]}


@pytest.mark.parametrize("assign", ASSIGNORS.values(), ids=ASSIGNORS)
@given(data=st.data())
def test_each_partition_goes_to_exactly_one_who_wants_it(
    assign: Assignor, data: st.DataObject
) -> None:
    topics = {t: data.draw(st.integers(0, 5)) for t in "tuv"}
    members = [f"m{n}" for n in range(data.draw(st.integers(0, 5)))]
    wants = {m: frozenset(data.draw(st.sets(st.sampled_from("tuv")))) for m in members}
    given_ = assign(wants, topics, {})
    assert list(given_) == members
    assert all(t in wants[m] for m, held in given_.items() for t, _ in held)
    read: frozenset[str] = frozenset().union(*wants.values())
    everything = sorted((t, n) for t in read for n in range(topics[t]))
    assert sorted(p for held in given_.values() for p in held) == everything
    assert given_ == assign(wants, topics, {})


def test_an_assignor_that_is_not_known_is_refused() -> None:
    check_assignor(None)
    with pytest.raises(UnsupportedAssignor):
        check_assignor("cooperative")
