"""Keys that come and go under a running broker, and the tokens that each of them is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmbroker.control.authorized import Authorized, DataTokens
from shmbroker.control.keys import KeyDirectory, new_pair

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def keys(tmp_path: Path) -> KeyDirectory:
    made = KeyDirectory(tmp_path / "keys")
    for name in ("desk", "laptop"):
        made.authorize(name, new_pair().public)
    return made


def test_the_directory_says_who_may_come_at_each_look(keys: KeyDirectory) -> None:
    found = Authorized(keys.authorized)
    assert sorted(found.names().values()) == ["desk", "laptop"]
    assert found.knows("desk")
    keys.revoke("desk")
    assert not found.knows("desk")
    assert list(found.names().values()) == ["laptop"]
    pair = new_pair()
    keys.authorize("desk", pair.public)
    assert found.names()[pair.public] == "desk"
    assert found.knows("desk")


def test_without_keys_the_secret_is_the_only_token() -> None:
    tokens = DataTokens(SECRET)
    assert tokens.admits(SECRET)
    for wrong in (b"", SECRET[:-1], SECRET + b"x", b"0" * 32 + b".desk", b"." * 40):
        assert not tokens.admits(wrong)
    assert tokens.of("anybody") == SECRET
    assert not tokens.has_changed()


def test_each_key_has_a_token_that_lets_in_as_long_as_it_stands(keys: KeyDirectory) -> None:
    tokens, elsewhere = (DataTokens(SECRET, keys.authorized) for _ in range(2))
    desk, laptop = tokens.of("desk"), tokens.of("laptop")
    assert len({desk, laptop, SECRET}) == 3
    assert SECRET not in desk
    assert all(elsewhere.admits(token) for token in (desk, laptop, SECRET))
    assert not DataTokens(b"another life's", keys.authorized).admits(desk)
    for wrong in (b"", b".desk", desk[:-1], desk + b"x", desk.partition(b".")[0] + b".laptop"):
        assert not elsewhere.admits(wrong)
    keys.revoke("desk")
    assert not elsewhere.admits(desk)
    assert elsewhere.admits(laptop)
    assert tokens.of("desk") == b""
    assert not elsewhere.admits(b"")


def test_a_new_key_under_an_old_name_has_another_token(keys: KeyDirectory) -> None:
    tokens = DataTokens(SECRET, keys.authorized)
    before = tokens.of("desk")
    keys.revoke("desk")
    keys.authorize("desk", new_pair().public)
    assert not tokens.admits(before)
    assert tokens.admits(tokens.of("desk"))


def test_changes_are_told_once(keys: KeyDirectory) -> None:
    tokens = DataTokens(SECRET, keys.authorized)
    tokens.has_changed()  # the first look
    assert not tokens.has_changed()
    keys.revoke("desk")
    assert tokens.has_changed()
    assert not tokens.has_changed()
    keys.authorize("desk", new_pair().public)
    assert tokens.has_changed()
