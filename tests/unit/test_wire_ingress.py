"""Ingress's codec: every batch is answered once, whatever becomes of sessions and connections."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbroker import errors
from shmbroker._core.batch import encode_values, next_batch
from shmbroker.wire.native import greeting, ingress_messages, limits
from shmbroker.wire.native.greeting import INGRESS_ANSWER, INGRESS_MAGIC, Hello, Welcome
from shmbroker.wire.native.ingress_client import IngressClient
from shmbroker.wire.native.ingress_messages import (
    Acknowledged,
    Acks,
    Closing,
    Failed,
    Goodbye,
    Heartbeat,
    HelloAgain,
    Parts,
    Produce,
    Refused,
    WriterCredit,
)
from shmbroker.wire.native.ingress_server import IngressServer, Stale
from shmbroker.wire.native.state import State

TOKEN = b"the right token"
TOPIC = bytes(range(16))
DIR_ID = bytes(16)
BATCH = encode_values([b"value"] * 3, 1_700_000_000_000, producer_id=9, producer_epoch=0,
                      base_sequence=0)  # fmt: skip


def admits(token: bytes) -> bool:
    return token == TOKEN


def produce(correlation: int, writer: int = 0, acks: Acks = Acks.DURABLE) -> Produce:
    batch = encode_values([b"value"] * 3, 1_700_000_000_000, producer_id=9, producer_epoch=0,
                          base_sequence=3 * correlation)  # fmt: skip
    return Produce(correlation, TOPIC, 3, writer, batch, acks)


def writer_of(waiting: Produce) -> int:
    return waiting.writer


def greet(client: IngressClient, server: IngressServer, session: int, limit: int = 8) -> None:
    """A session, with credit for writers 0 and 1."""
    assert isinstance(server.receive_message(client.send(Hello(TOKEN, "a test"))), Hello)
    welcome = Welcome(DIR_ID, session, limit)
    assert client.receive_message(server.send(welcome)) == welcome
    for writer in (0, 1):
        client.receive_message(server.send(WriterCredit(writer, 1 << 20)))


def open_pair(limit: int = 8) -> tuple[IngressClient, IngressServer]:
    client, server = IngressClient(), IngressServer(admits)
    greet(client, server, 77, limit)
    return client, server


def plain(message: Any) -> Any:
    """A message that can be compared: an error becomes what it says."""
    if isinstance(message, (Refused, Failed)):
        return (getattr(message, "correlation", None), message.error.to_wire())
    return message


# --- what is said arrives -----------------------------------------------------------------------

_u32, _u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
_id = st.binary(min_size=16, max_size=16)
_entries = st.lists(st.tuples(_u64, st.integers(-1, 2**63 - 1)), min_size=1, max_size=99).map(tuple)
_error = st.sampled_from([errors.PartitionOffline("t", 0, "EIO"), errors.CorruptBatch("bad")])


@given(
    st.one_of(
        st.builds(Produce, _u64, _id, _u32, _u32, st.just(BATCH), st.sampled_from(Acks)),
        st.sampled_from([Goodbye(), Heartbeat()]),
    ),
    _u64,
)
def test_what_a_producer_says_arrives(message: Any, session: int) -> None:
    parts = ingress_messages.encode(message, session)
    assert len(parts) == (2 if isinstance(message, Produce) else 1)
    assert ingress_messages.decode_from_client(parts) == (message, session)


@given(
    st.one_of(
        st.builds(Acknowledged, _entries),
        st.builds(Refused, _u64, _error),
        st.builds(WriterCredit, _u32, _u64),
        st.builds(Failed, _error),
        st.sampled_from([Heartbeat(), HelloAgain(), Closing()]),
    ),
    _u64,
)
def test_what_the_broker_says_arrives(message: Any, session: int) -> None:
    found, heard = ingress_messages.decode_from_broker(ingress_messages.encode(message, session))
    assert (plain(found), heard) == (plain(message), session)


def test_batches_go_out_many_at_a_time_and_are_answered_in_any_order() -> None:
    client, server = open_pair()
    for n in range(5):
        assert server.receive_message(client.send(produce(n))) == produce(n)
    assert server.in_flight == 5
    first = Acknowledged(((3, 40), (0, 10)))
    assert client.receive_message(server.send(first)) == first
    refused = client.receive_message(server.send(Refused(1, errors.RecordTooLarge("too large"))))
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, errors.RecordTooLarge)
    assert [p.correlation for p in client.unacknowledged] == [2, 4]
    assert server.in_flight == 2


def test_an_answer_is_given_once() -> None:
    client, server = open_pair()
    server.receive_message(client.send(produce(0)))
    answer = server.send(Acknowledged(((0, 0),)))
    with pytest.raises(RuntimeError, match="not all in flight"):
        server.send(Acknowledged(((0, 0),)))
    client.receive_message(answer)
    with pytest.raises(errors.InvalidRequest, match="not in flight"):
        client.receive_message(answer)


# --- credit -------------------------------------------------------------------------------------


def test_credit_is_each_writers_own() -> None:
    client, server = open_pair(limit=64)
    while client.may_send(0):
        n = len(client.unacknowledged)
        server.receive_message(
            client.send(Produce(n, TOPIC, 0, 0, encode_values([bytes(99_999)], 0)))
        )
    assert client.credit_bytes(0) == 0
    assert server.received_bytes(0) < (1 << 20) + 100_100  # one batch may pass it
    with pytest.raises(RuntimeError, match="no credit"):
        client.send(produce(90))
    assert client.may_send(1)
    assert server.receive_message(client.send(produce(90, writer=1))) == produce(90, writer=1)
    client.receive_message(server.send(WriterCredit(0, 2 << 20)))
    client.receive_message(server.send(WriterCredit(0, 1)))  # a limit never falls
    assert client.may_send(0)


def test_what_is_in_flight_is_bounded_on_both_sides() -> None:
    client, server = open_pair(limit=2)
    for n in range(2):
        server.receive_message(client.send(produce(n)))
    assert not client.may_send(0)
    with pytest.raises(RuntimeError):
        client.send(produce(2))
    with pytest.raises(errors.InvalidRequest, match="more than 2 batches in flight"):
        server.receive_message(ingress_messages.encode(produce(2), 77))
    assert isinstance(client.receive_message(server.farewell), Failed)
    assert client.state is server.state is State.CLOSED


def test_a_producer_without_credit_is_put_out() -> None:
    _, server = open_pair()
    with pytest.raises(errors.InvalidRequest, match="writer 5 without credit"):
        server.receive_message(ingress_messages.encode(produce(1, writer=5), 77))


# --- sessions -----------------------------------------------------------------------------------


def test_a_broker_that_lost_the_session_gets_everything_again_in_order() -> None:
    client, server = open_pair()
    sent = [produce(n) for n in range(6)]
    for batch in sent[:4]:
        server.receive_message(client.send(batch))
    client.receive_message(server.send(Acknowledged(((0, 0),))))

    server = IngressServer(admits)  # another process: it knows nothing
    stale = server.receive_message(client.send(sent[4]))
    assert stale == Stale(77)
    assert client.receive_message(server.send(HelloAgain())) == HelloAgain()
    assert client.receive_message(server.send(HelloAgain())) is None  # for what else was on its way
    greet(client, server, 78)
    assert not client.may_send(0)  # nothing new before what is old
    again = [server.receive_message(parts) for parts in client.resend(writer_of)]
    assert again == sent[1:5]
    assert client.resend(writer_of) == []
    assert server.receive_message(client.send(sent[5])) == sent[5]
    assert next_batch(sent[5].batch).base_sequence == 15  # type: ignore[union-attr]


def test_what_is_sent_again_keeps_to_the_new_credit_and_finds_a_partition_that_moved() -> None:
    client, server = open_pair()
    for n in range(4):
        server.receive_message(client.send(produce(n)))
    server = IngressServer(admits)
    server.receive_message(client.send(Hello(TOKEN)))
    client.receive_message(server.send(Welcome(DIR_ID, 78, limit=8)))
    assert client.resend(lambda _: 6) == []
    client.receive_message(server.send(WriterCredit(6, 1)))
    first = client.resend(lambda _: 6)
    assert len(first) == 1
    found = server.receive_message(first[0])
    assert isinstance(found, Produce)
    assert (found.correlation, found.writer) == (0, 6)
    client.receive_message(server.send(WriterCredit(6, 1 << 20)))
    assert len(client.resend(lambda _: 6)) == 3
    assert [p.correlation for p in client.unacknowledged] == [0, 1, 2, 3]


def test_another_session_is_not_heard_on_either_side() -> None:
    client, server = open_pair()
    server.receive_message(client.send(produce(0)))
    late = server.send(Acknowledged(((0, 5),)))
    forged = ingress_messages.encode(produce(1), 78)
    assert server.receive_message(forged) == Stale(78)
    assert server.in_flight == 0
    greet(client, server, 79)  # the same identity says Hello again: everything begins anew
    assert client.receive_message(late) is None
    assert client.receive_message(ingress_messages.encode(HelloAgain(), 78)) is None
    assert [server.receive_message(parts) for parts in client.resend(writer_of)] == [produce(0)]


def test_an_abandoned_batch_is_not_sent_again_and_its_late_answer_is_no_error() -> None:
    client, server = open_pair()
    for n in range(3):
        server.receive_message(client.send(produce(n)))
    assert client.abandon(0)
    assert client.abandon(1)
    assert client.unacknowledged == (produce(2),)
    late = Acknowledged(((0, 5),))
    assert client.receive_message(server.send(late)) == late

    greet(client, server, 79)
    assert not server.waits_for(1)
    assert client.unacknowledged == (produce(2),)
    assert [server.receive_message(parts) for parts in client.resend(writer_of)] == [produce(2)]
    assert server.waits_for(2)
    server.receive_message(client.send(produce(3)))
    greet(client, server, 80)
    assert not client.abandon(2)  # it waits to be sent again: nobody will answer it
    assert [server.receive_message(parts) for parts in client.resend(writer_of)] == [produce(3)]


def test_a_session_needs_a_number_of_its_own() -> None:
    client, server = open_pair()
    server.receive_message(client.send(Hello(TOKEN)))
    for number in (0, 77):
        with pytest.raises(ValueError, match="number of its own"):
            server.send(Welcome(DIR_ID, number, limit=8))
    for limit in (0, limits.IN_FLIGHT + 1):
        with pytest.raises(ValueError, match="no client would take"):
            server.send(Welcome(DIR_ID, 78, limit))
    with pytest.raises(errors.InvalidRequest, match="without a session"):
        client.receive_message([greeting.encode_welcome(INGRESS_MAGIC, Welcome(DIR_ID, 0, 8))])


@pytest.mark.parametrize("seed", range(40))
def test_over_any_breaks_each_batch_is_taken_once_and_in_order(seed: int) -> None:
    """Connections break at random, both ways; a server that drops repeats by sequence is left with
    every batch once and in order."""
    rng = random.Random(seed)
    client, server, session = IngressClient(), IngressServer(admits), 100
    greet(client, server, session, limit=5)
    log: list[int] = []  # the base sequences appended
    to_server: list[Parts] = []
    to_client: list[Parts] = []
    n = 0
    while n < 40 or client.unacknowledged:
        act = rng.random()
        if act < 0.08:  # what is on its way is lost, and maybe the server with it
            to_server.clear()
            to_client.clear()
            session += 1
            if rng.random() < 0.5:
                server = IngressServer(admits)
            greet(client, server, session, limit=5)
            to_server += client.resend(writer_of)
        elif act < 0.5 and n < 40 and client.may_send(0):
            to_server.append(client.send(produce(n)))
            n += 1
        elif act < 0.75 and to_server:
            found = server.receive_message(to_server.pop(0))
            assert isinstance(found, Produce)
            sequence = next_batch(found.batch).base_sequence  # type: ignore[union-attr]
            if sequence not in log:
                assert sequence == 3 * len(log), "a gap"
                log.append(sequence)
            to_client.append(server.send(Acknowledged(((found.correlation, sequence),))))
        elif to_client:
            client.receive_message(to_client.pop(0))
            to_server += client.resend(writer_of)
    assert log == [3 * k for k in range(40)]


def test_a_goodbye_ends_the_session() -> None:
    client, server = open_pair()
    server.receive_message(client.send(produce(0)))
    assert server.receive_message(client.send(Goodbye())) == Goodbye()
    assert client.state is server.state is State.CLOSED
    with pytest.raises(RuntimeError):
        client.send(produce(1))
    with pytest.raises(RuntimeError, match="for good"):
        client.send(Hello(TOKEN))


# --- strangers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [b"", b"another", TOKEN + b" "])
def test_a_wrong_token_is_let_in_nowhere(token: bytes) -> None:
    client, server = IngressClient(), IngressServer(admits)
    with pytest.raises(errors.AuthenticationFailed):
        server.receive_message(client.send(Hello(token)))
    with pytest.raises(errors.InvalidRequest, match="has ended"):
        server.receive_message(ingress_messages.encode(produce(0), 0))
    with pytest.raises(errors.AuthenticationFailed):
        client.receive_message(server.farewell)
    assert client.state is State.GREETING


def test_who_was_refused_may_come_again_with_another_token_and_sends_again() -> None:
    client, server = open_pair()
    server.receive_message(client.send(produce(0)))
    server = IngressServer(admits)  # of a broker that was restarted: it has another token
    with pytest.raises(errors.AuthenticationFailed):
        server.receive_message(client.send(Hello(b"the old one")))
    with pytest.raises(errors.AuthenticationFailed):
        client.receive_message(server.farewell)
    server = IngressServer(admits)
    greet(client, server, 78)
    (again,) = client.resend(writer_of)
    assert server.receive_message(again) == produce(0)


def test_versions_that_share_nothing_are_told_both() -> None:
    client, server = IngressClient(), IngressServer(admits)
    with pytest.raises(errors.UnsupportedVersion):
        server.receive_message(client.send(Hello(TOKEN, min_version=2, max_version=3)))
    with pytest.raises(errors.UnsupportedVersion, match=r"2 to 3.*broker 1 to 1"):
        client.receive_message(server.farewell)


def _head(kind: int, acks: int = 0, zero: bytes = bytes(2), word: int = 0) -> bytes:
    return bytes((kind, acks)) + zero + word.to_bytes(4) + (77).to_bytes(8)


PRODUCE = ingress_messages.encode(produce(0), 77)
BAD_FROM_CLIENT: list[tuple[str, Parts]] = [
    ("header of 0 bytes", []),
    ("header of 3 bytes", [b"abc"]),
    ("header of", [bytes(limits.BATCH_BYTES)]),
    ("in 1 frames", PRODUCE[:1]),
    ("in 3 frames", [*PRODUCE, b""]),
    ("produce header of", [PRODUCE[0] + b"x", BATCH]),
    ("acks 3", [_head(1, acks=3) + bytes(28), BATCH]),
    ("must be zero", [_head(3, zero=b"\0\1")]),
    ("more in it", [_head(3, word=1)]),
    ("more in it", [_head(2) + b"x"]),
    ("of type 16", [_head(16)]),
    ("a batch of 60 bytes", [PRODUCE[0], BATCH[:60]]),
    ("not one record batch", [PRODUCE[0], BATCH[:-1]]),
    ("not one record batch", [PRODUCE[0], BATCH + BATCH]),
    ("not one record batch", [PRODUCE[0], BATCH[:16] + b"\1" + BATCH[17:]]),
    ("a batch of 33554433", [PRODUCE[0], bytes(limits.BATCH_BYTES + 1)]),
    ("greeting of 4 bytes", [INGRESS_MAGIC]),
    ("greeting in 2 frames", [greeting.encode_hello(INGRESS_MAGIC, Hello(TOKEN)), b""]),
]


@pytest.mark.parametrize(("words", "parts"), BAD_FROM_CLIENT, ids=[w for w, _ in BAD_FROM_CLIENT])
def test_a_producer_that_says_what_it_must_not_is_told_and_left(words: str, parts: Parts) -> None:
    client, server = open_pair()
    with pytest.raises(errors.InvalidRequest, match=words):
        server.receive_message(parts)
    assert server.state is State.CLOSED
    if words.startswith("greeting"):
        with pytest.raises(errors.InvalidRequest, match=words):
            client.receive_message(server.farewell)
        assert client.state is State.GREETING
    else:
        told = client.receive_message(server.farewell)
        assert isinstance(told, Failed)
        assert isinstance(told.error, errors.InvalidRequest)
        assert client.state is State.CLOSED


def test_correlations_rise() -> None:
    client, server = open_pair()
    server.receive_message(client.send(produce(5)))
    with pytest.raises(ValueError, match="correlation 5 after 5"):
        client.send(produce(5))
    with pytest.raises(errors.InvalidRequest, match="correlation 4 after 5"):
        server.receive_message(ingress_messages.encode(produce(4), 77))


BAD_FROM_BROKER: list[tuple[str, Parts]] = [
    ("acknowledgements in", [_head(16, word=2) + bytes(16)]),
    ("acknowledgements in", [_head(16)]),
    ("credit of", [_head(18) + b"x"]),
    ("names nothing", [_head(17)]),
    ("an error of", [_head(17) + bytes(9)]),
    ("names acks", [_head(3, acks=1)]),
    ("of type 99", [_head(99)]),
    ("not in flight", [_head(16, word=1) + bytes(16)]),
    ("frames", [_head(3), b""]),
]


@pytest.mark.parametrize(("words", "parts"), BAD_FROM_BROKER)
def test_a_broker_that_says_what_it_must_not_is_left(words: str, parts: Parts) -> None:
    client, _ = open_pair()
    with pytest.raises(errors.InvalidRequest, match=words):
        client.receive_message(parts)
    assert client.state is State.CLOSED
    assert client.receive_message(parts) is None


_kinds = st.sampled_from([1, 2, 3, 16, 17, 18, 19, 20, 21, 83])
_rubbish = st.lists(
    st.builds(lambda k, w, rest: _head(k, word=w) + rest, _kinds, st.integers(0, 3),
              st.binary(max_size=64))
    | st.binary(max_size=80) | st.just(BATCH) | st.binary(max_size=40).map(INGRESS_MAGIC.__add__)
    | st.binary(max_size=60).map(INGRESS_ANSWER.__add__),
    max_size=3,
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(_rubbish, max_size=6), st.booleans())
def test_any_frames_do_no_more_than_end_the_session(heard: list[Parts], greeted: bool) -> None:
    client, server = open_pair() if greeted else (IngressClient(), IngressServer(admits))
    for parts in heard:
        try:
            server.receive_message(parts)
        except (errors.InvalidRequest, errors.UnsupportedVersion, errors.AuthenticationFailed):
            assert server.state is State.CLOSED
            assert sum(map(len, server.farewell)) < 10_000
        try:
            client.receive_message(parts)
        except errors.ShmbrokerError:
            assert client.state is State.CLOSED
    assert server.in_flight <= 8
