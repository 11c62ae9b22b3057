"""Patterns of topic names: as Python's re for what both know, and never slow."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbroker.control.groups.pattern import LENGTH_MAX, Pattern
from shmbroker.errors import InvalidPattern

_atoms = st.sampled_from(["a", "b", ".", "-", r"\.", "[ab]", "[^a]", "[a-c]", r"\d", r"\W", "1"])
_patterns = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(_patterns, st.lists(st.text("abc.-1", max_size=7), min_size=1, max_size=8))
def test_a_pattern_matches_the_names_that_re_matches(text: str, names: list[str]) -> None:
    pattern = Pattern(text)
    for name in names:
        assert pattern.matches(name) == bool(re.fullmatch(text, name)), (text, name)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("orders", "orders", "orders2"),
        ("^orders$", "orders", "my-orders"),
        ("orders-(eu|us)", "orders-us", "orders-uk"),
        (r"logs\.v\d+", "logs.v12", "logsxv12"),
        ("(a|)b", "b", "a"),
        ("[]a]", "a", "b"),
        ("[a-]", "-", "b"),
        ("x(){9}", "x", ""),
        (".*", "anything", "ä"),
    ],
)
def test_patterns_mean_what_they_say(text: str, yes: str, no: str) -> None:
    pattern = Pattern(text)
    assert pattern.matches(yes)
    assert not pattern.matches(no)


@pytest.mark.parametrize(
    "text",
    ["", "(", ")", "a)", "(a", "[", "[a", "[b-a]", "*", "a**", "a{", "a{x}", "a{2,1}", "a\\"]
    + ["a^b", "a$b", r"(a)\1", "(?=a)", "(?P<n>a)", r"\b", "a" * (LENGTH_MAX + 1)]
    + ["a{999}", "((a{20}){20}){20}", "(" * 99 + "a" + ")" * 99],
)
def test_what_cannot_be_read_or_is_too_large_is_refused(text: str) -> None:
    with pytest.raises(InvalidPattern):
        Pattern(text)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["(a*)*b", "(a|a)*b", "(.*)(.*)(.*)(.*)(.*)b", "((){500}){500}"])
def test_no_pattern_takes_long(text: str) -> None:
    assert not Pattern(text).matches("a" * 249)
