"""Control messages: they round-trip, and nothing that arrives does more than be refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbroker.control import messages
from shmbroker.control.messages import (
    Event,
    Reply,
    Request,
    decode,
    decode_reply,
    decode_request,
    encode_error,
    encode_event,
    encode_reply,
    encode_request,
)
from shmbroker.errors import InvalidRequest, ShmbrokerError, UnknownTopic, UnsupportedVersion

_json: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=10,
)
_args = st.dictionaries(
    st.text(max_size=6).filter(lambda k: k not in ("v", "id", "op", "event")), _json, max_size=4
)


@given(st.text(min_size=1, max_size=9), st.none() | st.integers(0, 2**53), _args)
def test_messages_round_trip(op: str, request_id: int | None, args: dict[str, Any]) -> None:
    assert decode_request(encode_request(op, request_id, **args)) == Request(
        op, request_id, args=args
    )
    assert decode(encode_event(op, **args)) == Event(op, args=args)
    assert decode_reply(encode_reply(request_id, args)) == Reply(request_id, args)


def test_an_error_comes_back_as_itself() -> None:
    reply = decode_reply(encode_error(7, UnknownTopic("orders")))
    assert reply.id == 7
    with pytest.raises(UnknownTopic, match="create it with") as caught:
        reply.result()
    assert caught.value.topic == "orders"
    foreign = decode_reply(encode_error(8, KeyError("x")))
    with pytest.raises(ShmbrokerError, match="KeyError"):
        foreign.result()
    assert decode_reply(encode_reply(9, {"a": 1})).result() == {"a": 1}


def test_arguments_are_checked_by_type() -> None:
    request = Request("create_topic", 3, args={"name": "t", "partitions": True, "config": None})
    assert request.arg("name", str) == "t"
    assert request.optional("config", dict) is None
    for name, kind, words in (
        ("partitions", int, "must be a whole number"),
        ("name", int, "must be a whole number"),
        ("config", dict, "is missing"),
        ("absent", str, "is missing"),
    ):
        with pytest.raises(InvalidRequest, match=words) as caught:
            request.arg(name, kind)
        assert caught.value.request_id == 3
        assert "create_topic" in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"1", b"null", b'{"v": 1}', b'{"v": 1, "op": 1}', b"\xff", b"[" * 5000]
    + [b'{"v": 1, "op": ""}', b'{"v": 1, "ok": 3}', b'{"v": 1, "op": "x", "id": "1"}']
    + [b'{"v": 1, "op": "x", "id": true}', b'{"v": 1, "error": []}', b'{"v": 1, "event": null}'],
)
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(data)


def test_other_versions_are_refused_with_the_requests_id() -> None:
    versions: list[Any] = [2, 0, None, "1", {}]
    for version in versions:
        with pytest.raises(UnsupportedVersion) as caught:
            decode(orjson.dumps({"v": version, "id": 5, "op": "status"}))
        assert caught.value.request_id == 5


def test_messages_are_bounded_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * messages.MAX_REQUEST_BYTES
    with pytest.raises(InvalidRequest, match="at most"):
        encode_request("op", 1, text=long)
    raw = orjson.dumps({"v": 1, "op": "op", "id": 1, "text": long})
    for decoder in (decode, decode_request):
        with pytest.raises(InvalidRequest, match="at most"):
            decoder(raw)
    decode_reply(encode_reply(1, {"text": long}))
    monkeypatch.setattr(messages, "MAX_REPLY_BYTES", 10)
    with pytest.raises(InvalidRequest, match="at most"):
        decode(b'{"v": 1, "ok": {}}')


def test_what_is_no_json_can_not_be_sent() -> None:
    for value in (object(), {1, 2}, 2**70):
        with pytest.raises(InvalidRequest, match="can't be JSON"):
            encode_request("op", 1, value=value)
    with pytest.raises(InvalidRequest, match="can't be called 'id'"):
        encode_event("e", id=1)


@given(st.binary(max_size=60))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for attempt in (data, b'{"v": 1, "op": "x", ' + data, b'{"v": 1, "error": {' + data):
        try:
            decode(attempt)
        except (InvalidRequest, UnsupportedVersion):
            continue
