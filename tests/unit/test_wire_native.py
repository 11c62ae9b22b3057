"""The native protocol's codecs: what is said arrives in any chunking, and nothing that a stranger
sends does more than end its own connection."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmbroker import errors
from shmbroker._core.batch import encode_values
from shmbroker.wire.native import greeting, ingress_messages, limits, problem, stream_frames
from shmbroker.wire.native.greeting import STREAM_ANSWER, STREAM_MAGIC, Hello, Welcome
from shmbroker.wire.native.inbox import Inbox
from shmbroker.wire.native.ingress_client import IngressClient
from shmbroker.wire.native.limits import RECEIVE_BYTES, SUBSCRIPTIONS
from shmbroker.wire.native.state import State
from shmbroker.wire.native.stream_client import StreamClient
from shmbroker.wire.native.stream_frames import (
    Batches,
    Closing,
    Credit,
    Ended,
    Ends,
    Failed,
    Heartbeat,
    Isolation,
    Start,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from shmbroker.wire.native.stream_server import StreamServer

TOKEN = b"the right token"
TOPIC = bytes(range(16))
DIR_ID = bytes(16)
ENDS = Ends(0, 10, 12)
BATCH = encode_values([b"value"] * 3, 1_700_000_000_000)
WELCOME = Welcome(DIR_ID, limit=SUBSCRIPTIONS)


def admits(token: bytes) -> bool:
    return token == TOKEN


def feed(
    codec: StreamServer | StreamClient, data: bytes, cuts: list[int] | None = None
) -> list[Any]:
    """Every event of `data`, given in pieces that end at `cuts`."""
    found, edges = [], sorted({0, len(data), *(c % (len(data) + 1) for c in cuts or [])})
    for start, end in pairwise(edges):
        for at in range(start, end, RECEIVE_BYTES):
            codec.receive_data(data[at : min(end, at + RECEIVE_BYTES)])
            while (event := codec.next_event()) is not None:
                found.append(event)
    return found


def open_pair() -> tuple[StreamClient, StreamServer]:
    """Two sides that have greeted each other."""
    client, server = StreamClient(), StreamServer(admits)
    assert feed(server, client.send(Hello(TOKEN, "a test"))) == [Hello(TOKEN, "a test")]
    assert feed(client, server.send(WELCOME)) == [WELCOME]
    assert client.state is server.state is State.OPEN
    return client, server


def subscribed(limit_bytes: int = 1 << 20) -> tuple[StreamClient, StreamServer]:
    """The same with subscription 7 begun."""
    client, server = open_pair()
    feed(server, client.send(Subscribe(7, TOPIC, 3, 5, limit_bytes)))
    feed(client, server.send(Subscribed(7, 5, ENDS, 1)))
    return client, server


def plain(frame: Any) -> Any:
    """A frame that can be compared: an error becomes what it says."""
    return (frame.subscription, frame.error.to_wire()) if isinstance(frame, Failed) else frame


# --- what is said arrives -----------------------------------------------------------------------

_i64 = st.integers(-(2**63), 2**63 - 1)
_u64 = st.integers(0, 2**64 - 1)
_ends = st.builds(Ends, _i64, _i64, _i64)
_cuts = st.lists(st.integers(0, 10_000), max_size=30)
_subscribe = st.builds(
    Subscribe,
    st.just(0),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**63 - 1),
    _u64,
    st.integers(-1, 2**31 - 1),
    st.sampled_from(Isolation),
    st.sampled_from([Start.OFFSET, Start.TIME]),
)


@given(_subscribe, _u64, _cuts)
def test_what_a_consumer_says_arrives_in_any_chunking(
    wanted: Subscribe, limit: int, cuts: list[int]
) -> None:
    client, server = StreamClient(), StreamServer(admits)
    hello = Hello(TOKEN, "prögram")
    assert feed(server, client.send(hello), cuts) == [hello]
    assert server.version == limits.MAX_VERSION
    feed(client, server.send(WELCOME), cuts)
    first = Subscribe(1, wanted.topic_id, wanted.partition, wanted.offset, wanted.limit_bytes,
                      wanted.leader_epoch, wanted.isolation, wanted.start)  # fmt: skip
    said = [first, Credit(1, limit), Heartbeat(), Unsubscribe(1)]
    assert feed(server, b"".join(client.send(frame) for frame in said), cuts) == said


@given(_ends, _i64, st.integers(-1, 2**31 - 1), st.integers(1, 20), _cuts)
def test_what_the_broker_says_arrives_in_any_chunking(
    ends: Ends, offset: int, epoch: int, n: int, cuts: list[int]
) -> None:
    client, server = open_pair()
    gap = errors.OffsetOutOfRange("t", 3, 5, log_start_offset=10, log_end_offset=20)
    feed(server, b"".join(client.send(Subscribe(k, TOPIC, k, 5, 1 << 30)) for k in (1, 2)))
    said = [
        Subscribed(1, offset, ends, epoch),
        Batches(1, ends, BATCH * n),
        Heartbeat(),
        Failed(2, gap),
        Batches(1, ends, BATCH),
        Closing(),
        Failed(0, errors.BrokerGone("the broker is stopping")),
    ]
    found = feed(client, b"".join(server.send(frame) for frame in said), cuts)
    assert [*map(plain, found)] == [*map(plain, said)]
    assert found[3].error.log_start_offset == 10
    assert found[3].error.log_end_offset == 20
    assert client.state is server.state is State.CLOSED


def test_batches_may_follow_their_head_by_other_means() -> None:
    client, server = subscribed()
    head = server.batches_head(7, ENDS, 2 * len(BATCH))
    assert len(head) == stream_frames.BATCHES_HEAD_BYTES == 36
    assert feed(client, head + BATCH + BATCH) == [Batches(7, ENDS, BATCH * 2)]


def test_a_log_that_was_truncated_says_where_it_ends() -> None:
    client, server = subscribed()
    lost = errors.LogTruncated("lost", topic="t", partition=3, offset=9, end_offset=4)
    (told,) = feed(client, server.send(Failed(7, lost)))
    assert isinstance(told.error, errors.LogTruncated)
    assert (told.error.offset, told.error.end_offset) == (9, 4)
    assert client.subscriptions == server.subscriptions == ()


def test_an_error_that_is_too_long_keeps_its_number_and_the_beginning_of_its_text() -> None:
    error = errors.PartitionOffline("t", 0, "\N{SNOWMAN}" * 100_000)
    data = problem.encode(error)
    assert len(data) <= problem.MAX_BYTES
    found = problem.decode(data)
    assert isinstance(found, errors.PartitionOffline)
    assert found.message.startswith("t-0 is offline")
    assert isinstance(problem.decode(problem.encode(errors.CorruptBatch("\udcff"))),
                      errors.CorruptBatch)  # fmt: skip


# --- versions, tokens, strangers ----------------------------------------------------------------


@pytest.mark.parametrize(("least", "most"), [(2, 9), (limits.MAX_VERSION + 1, 65535)])
def test_versions_that_share_nothing_are_told_both(least: int, most: int) -> None:
    client, server = StreamClient(), StreamServer(admits)
    hello = client.send(Hello(TOKEN, min_version=least, max_version=most))
    server.receive_data(hello)
    with pytest.raises(errors.UnsupportedVersion):
        server.next_event()
    client.receive_data(server.farewell)
    with pytest.raises(errors.UnsupportedVersion, match=f"{least} to {most}.*broker 1 to 1"):
        client.next_event()
    assert client.state is server.state is State.CLOSED


def test_a_newer_client_that_still_speaks_the_old_version_gets_it() -> None:
    client, server = StreamClient(), StreamServer(admits)
    feed(server, client.send(Hello(TOKEN, max_version=60_000)))
    assert server.version == limits.MAX_VERSION
    assert feed(client, server.send(WELCOME)) == [WELCOME]


def test_a_broker_that_chooses_what_the_client_does_not_speak_is_left() -> None:
    client = StreamClient()
    client.send(Hello(TOKEN))
    later = Welcome(DIR_ID, limit=1, version=9, max_version=9)
    client.receive_data(greeting.encode_welcome(STREAM_MAGIC, later))
    with pytest.raises(errors.UnsupportedVersion, match="chose version 9"):
        client.next_event()


@pytest.mark.parametrize("token", [b"", b"another", TOKEN + b" "])
def test_a_wrong_token_is_let_in_nowhere(token: bytes) -> None:
    client, server = StreamClient(), StreamServer(admits)
    server.receive_data(
        client.send(Hello(token)) + stream_frames.encode(Subscribe(1, TOPIC, 0, 0, 9))
    )
    with pytest.raises(errors.AuthenticationFailed):
        server.next_event()
    assert server.next_event() is None
    client.receive_data(server.farewell)
    with pytest.raises(errors.AuthenticationFailed, match="the token is wrong"):
        client.next_event()


def test_nothing_is_heard_between_the_greeting_and_the_welcome() -> None:
    server = StreamServer(admits)
    early = stream_frames.encode(Subscribe(1, TOPIC, 0, 0, 9))
    assert len(feed(server, greeting.encode_hello(STREAM_MAGIC, Hello(TOKEN)) + early)) == 1
    assert server.next_event() is None
    server.send(WELCOME)
    assert server.next_event() == Subscribe(1, TOPIC, 0, 0, 9)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"\xff", b"SHMI", b"SX"])
def test_a_stranger_is_told_what_is_expected_at_its_first_bytes(first: bytes) -> None:
    server = StreamServer(admits)
    server.receive_data(first)
    with pytest.raises(errors.InvalidRequest, match="port for consumers"):
        server.next_event()
    client = StreamClient()
    client.send(Hello(TOKEN))
    client.receive_data(server.farewell)
    with pytest.raises(errors.InvalidRequest, match="port for consumers"):
        client.next_event()


@pytest.mark.parametrize("name", ["", "a test"])
def test_a_client_that_is_connected_with_itself_notices(name: str) -> None:
    client = StreamClient()
    own = client.send(Hello(bytes(100), name))
    client.receive_data(own)
    with pytest.raises(errors.InvalidRequest, match="no shmbroker answers there"):
        client.next_event()
    producer = IngressClient()
    with pytest.raises(errors.InvalidRequest):
        producer.receive_message(producer.send(Hello(bytes(100), name)))


# --- credit and subscriptions -------------------------------------------------------------------


def test_batches_stop_when_the_credit_does() -> None:
    client, server = subscribed(limit_bytes=len(BATCH) + 1)
    feed(client, server.send(Batches(7, ENDS, BATCH)))
    assert client.credit_bytes(7) == server.credit_bytes(7) == 1
    feed(client, server.send(Batches(7, ENDS, BATCH)))  # one batch may pass it
    assert client.credit_bytes(7) == server.credit_bytes(7) == 0
    with pytest.raises(RuntimeError, match="no credit"):
        server.send(Batches(7, ENDS, BATCH))
    feed(server, client.send(Credit(7, 5 * len(BATCH))))
    feed(server, client.send(Credit(7, 1)))  # a limit never falls
    assert client.credit_bytes(7) == server.credit_bytes(7) == 3 * len(BATCH)
    assert feed(client, server.send(Batches(7, ENDS, BATCH * 3))) == [Batches(7, ENDS, BATCH * 3)]


@pytest.mark.parametrize("frames", [[2], [1, 1]])
def test_a_broker_that_passes_the_credit_is_left(frames: list[int]) -> None:
    client, _ = subscribed(limit_bytes=len(BATCH))
    sent = [stream_frames.encode(Batches(7, ENDS, BATCH * n)) for n in frames]
    with pytest.raises(errors.InvalidRequest, match="credit for"):
        feed(client, b"".join(sent))
    assert client.state is State.CLOSED


def test_what_comes_after_unsubscribe_is_dropped_until_ended() -> None:
    client, server = subscribed()
    late = server.send(Batches(7, ENDS, BATCH)) + server.send(Failed(7, errors.CorruptBatch("bad")))
    asked = client.send(Unsubscribe(7))
    assert feed(client, late) == []
    with pytest.raises(RuntimeError, match="in use"):
        client.send(Subscribe(7, TOPIC, 3, 5, 9))
    assert feed(server, asked) == [Unsubscribe(7)]
    assert feed(client, server.send(Ended(7))) == [Ended(7)]
    assert feed(server, client.send(Subscribe(7, TOPIC, 3, 5, 9))) == [Subscribe(7, TOPIC, 3, 5, 9)]


def test_credit_that_crosses_the_end_of_its_subscription_is_no_error() -> None:
    client, server = subscribed()
    crossing = client.send(Credit(7, 1 << 30))
    server.send(Failed(7, errors.CorruptBatch("bad")))
    assert feed(server, crossing) == [Credit(7, 1 << 30)]
    assert server.credit_bytes(7) == 0
    assert server.state is State.OPEN


def test_subscriptions_are_bounded_on_both_sides() -> None:
    client, server = open_pair()
    for number in range(1, SUBSCRIPTIONS + 1):
        feed(server, client.send(Subscribe(number, TOPIC, 0, 0, 9)))
    one_more = Subscribe(SUBSCRIPTIONS + 1, TOPIC, 0, 0, 9)
    with pytest.raises(RuntimeError, match="subscriptions a connection"):
        client.send(one_more)
    with pytest.raises(errors.InvalidRequest, match="open another"):
        feed(server, stream_frames.encode(one_more))
    (told,) = feed(client, server.farewell)
    assert told.subscription == 0
    assert client.state is State.CLOSED


BAD_FROM_BROKER: list[tuple[str, Callable[[], bytes]]] = [
    ("which there is not", lambda: stream_frames.encode(Batches(8, ENDS, BATCH))),
    ("which there is not", lambda: stream_frames.encode(Subscribed(8, 0, ENDS, 0))),
    ("began twice", lambda: stream_frames.encode(Subscribed(7, 0, ENDS, 0))),
    ("ended unasked", lambda: stream_frames.encode(Ended(7))),
    ("less than one has", lambda: stream_frames.encode(Batches(7, ENDS, BATCH[:60]))),
    ("a batch of", lambda: stream_frames.encode(Batches(7, ENDS, BATCH[:-1]))),
    ("of type 1;", lambda: stream_frames.encode(Subscribe(7, TOPIC, 0, 0, 0))),
    ("must be zero", lambda: b"\x04\0\0\1" + bytes(8)),
    ("names subscription", lambda: b"\x04\0\0\0\0\0\0\1" + bytes(4)),
    ("Batches frame of", lambda: b"\x11\0\0\0\0\0\0\7\xff\xff\xff\xff"),
    ("Batches frame of 24", lambda: b"\x11\0\0\0\0\0\0\7\0\0\0\x18" + bytes(24)),
    ("Failed frame of", lambda: b"\x13\0\0\0\0\0\0\7\0\1\0\0"),
    ("no JSON", lambda: b"\x13\0\0\0\0\0\0\7\0\0\0\x09" + bytes(7) + b"\1{"),
]


@pytest.mark.parametrize(("words", "data"), BAD_FROM_BROKER)
def test_a_broker_that_says_what_it_must_not_is_left(words: str, data: Callable[[], bytes]) -> None:
    client, _ = subscribed()
    client.receive_data(data())
    with pytest.raises(errors.InvalidRequest, match=words):
        client.next_event()
    assert client.state is State.CLOSED
    assert client.next_event() is None


BAD_FROM_CLIENT: list[tuple[str, bytes]] = [
    ("of type 17;", stream_frames.encode(Batches(7, ENDS, BATCH))),
    ("in use", stream_frames.encode(Subscribe(7, TOPIC, 0, 0, 9))),
    ("0 is the connection", stream_frames.encode(Credit(0, 9))),
    ("Credit frame of 2147483648", b"\x02\0\0\0\0\0\0\7\x80\0\0\0"),
    ("Isolation 9", b"\x01\0\0\0\0\0\0\x08\0\0\0\x2c" + TOPIC + bytes(24) + b"\x09\0\0\0"),
    ("Start 9", b"\x01\0\0\0\0\0\0\x08\0\0\0\x2c" + TOPIC + bytes(24) + b"\0\x09\0\0"),
    ("must be zero", b"\x01\0\0\0\0\0\0\x08\0\0\0\x2c" + TOPIC + bytes(24) + b"\0\0\0\1"),
    ("from offset -1", stream_frames.encode(Subscribe(8, TOPIC, 0, -1, 9))),
    ("leader epoch -2", stream_frames.encode(Subscribe(8, TOPIC, 0, 0, 9, -2))),
    ("from offset 4", stream_frames.encode(Subscribe(8, TOPIC, 0, 4, 9, start=Start.LATEST))),
]


@pytest.mark.parametrize(("words", "data"), BAD_FROM_CLIENT)
def test_a_consumer_that_says_what_it_must_not_is_told_and_left(words: str, data: bytes) -> None:
    client, server = subscribed()
    server.receive_data(data)
    with pytest.raises(errors.InvalidRequest, match=words):
        server.next_event()
    assert server.state is State.CLOSED
    assert server.next_event() is None
    (told,) = feed(client, server.farewell)
    assert told.subscription == 0
    assert isinstance(told.error, errors.InvalidRequest)


def test_misuse_by_our_own_code_changes_nothing() -> None:
    client, server = StreamClient(), StreamServer(admits)
    with pytest.raises(RuntimeError):
        client.send(Heartbeat())
    with pytest.raises(RuntimeError):
        server.send(WELCOME)
    with pytest.raises(ValueError, match="a token of"):
        client.send(Hello(bytes(257)))
    client, server = subscribed()
    with pytest.raises(RuntimeError):
        server.send(Batches(8, ENDS, BATCH))
    with pytest.raises(ValueError, match="bytes of batches"):
        server.batches_head(7, ENDS, 0)
    with pytest.raises(ValueError, match="bytes of batches"):
        server.batches_head(7, ENDS, limits.STREAM_BYTES + 1)
    with pytest.raises(ValueError, match="topic id"):
        client.send(Subscribe(8, b"", 0, 0, 9))
    with pytest.raises(ValueError, match="Credit"):
        client.send(Credit(7, -1))
    with pytest.raises(RuntimeError, match="no subscription 9"):
        client.send(Credit(9, 1))
    assert feed(client, server.send(Batches(7, ENDS, BATCH))) == [Batches(7, ENDS, BATCH)]


def test_the_end_of_a_connection_in_the_middle_of_a_batch_gives_nothing_of_it() -> None:
    client, server = subscribed()
    whole = server.send(Batches(7, ENDS, BATCH))
    assert feed(client, whole[:-1]) == []
    client.receive_data(b"")
    assert client.next_event() is None
    assert client.state is State.CLOSED
    client.receive_data(whole)  # what a socket still had
    assert client.next_event() is None
    assert client.buffered_bytes == 0


# --- any bytes ----------------------------------------------------------------------------------


def _frames_of_rubbish() -> st.SearchStrategy[bytes]:
    """Bytes, many of them with a head that looks right."""
    head = st.builds(
        lambda kind, number, length: (
            bytes((kind, 0, 0, 0)) + number.to_bytes(4) + length.to_bytes(4)
        ),
        st.sampled_from([1, 2, 3, 4, 16, 17, 18, 19, 20, 99]),
        st.integers(0, 8),
        st.integers(0, 80) | st.integers(0, 2**32 - 1),
    )
    return st.lists(head | st.binary(max_size=80) | st.just(BATCH), max_size=12).map(b"".join)


def _events(codec: StreamServer | StreamClient, data: bytes, cuts: list[int]) -> Iterator[Any]:
    try:
        yield from feed(codec, data, cuts)
    except (errors.InvalidRequest, errors.UnsupportedVersion, errors.AuthenticationFailed):
        assert codec.state is State.CLOSED


@settings(max_examples=300)
@given(_frames_of_rubbish(), _cuts, st.booleans())
def test_any_bytes_do_no_more_to_a_server_than_end_the_connection(
    data: bytes, cuts: list[int], greeted: bool
) -> None:
    server = StreamServer(admits)
    if greeted:
        feed(server, greeting.encode_hello(STREAM_MAGIC, Hello(TOKEN)))
        server.send(WELCOME)
    for _ in _events(server, data, cuts):
        pass
    assert server.buffered_bytes <= greeting.HELLO_MAX_BYTES
    assert len(server.subscriptions) <= SUBSCRIPTIONS
    assert len(server.farewell) <= 20 + problem.MAX_BYTES


@settings(max_examples=300)
@given(_frames_of_rubbish(), _cuts, st.booleans())
def test_any_bytes_do_no_more_to_a_client_than_end_the_connection(
    data: bytes, cuts: list[int], greeted: bool
) -> None:
    client = StreamClient()
    if greeted:
        client, _ = subscribed(limit_bytes=300)
    else:
        client.send(Hello(TOKEN))
    try:
        for event in _events(client, data, cuts):
            assert not isinstance(event, Batches) or len(event.data) < 300 + len(BATCH)
    except errors.ShmbrokerError:  # a refusal with any number is a refusal
        assert client.state is State.CLOSED
    assert client.buffered_bytes <= stream_frames.BROKER_FRAME_BYTES


@given(st.binary(max_size=60), _cuts)
def test_any_bytes_behind_the_magic_do_no_more(data: bytes, cuts: list[int]) -> None:
    server, client = StreamServer(admits), StreamClient()
    client.send(Hello(TOKEN))
    for codec, magic in ((server, STREAM_MAGIC), (client, STREAM_ANSWER)):
        try:
            assert [*_events(codec, magic + data, cuts)] in ([], [client.welcome])
        except errors.ShmbrokerError:
            assert codec.state is State.CLOSED


@given(st.lists(st.binary(max_size=9000), max_size=8), st.lists(st.integers(0, 20_000)))
def test_the_inbox_gives_what_it_was_given(pieces: list[bytes], sizes: list[int]) -> None:
    inbox, taken = Inbox(1 << 20), b""
    for piece in pieces:
        inbox.put(piece)
    whole = b"".join(pieces)
    for size in sizes:
        assert inbox.first(size) == whole[len(taken) :][:size]
        found = inbox.take(size)
        assert (found is None) == (size > len(whole) - len(taken))
        taken += found or b""
    assert inbox.size_bytes == len(whole) - len(taken)
    assert whole.startswith(taken)


def test_bytes_that_nobody_takes_are_not_kept_without_bound() -> None:
    server = StreamServer(admits)
    with pytest.raises(BufferError, match="at most"):
        server.receive_data(bytes(RECEIVE_BYTES + 1))
    with pytest.raises(BufferError, match="take the events first"):
        for _ in range(100):
            server.receive_data(STREAM_MAGIC * 100)
    assert server.buffered_bytes <= greeting.HELLO_MAX_BYTES + RECEIVE_BYTES


def test_a_frame_that_trickles_in_costs_no_object_a_byte() -> None:
    client, server = subscribed()
    data = server.send(Batches(7, ENDS, BATCH * 100))
    for n in range(len(data) - 1):
        client.receive_data(data[n : n + 1])
        assert client.next_event() is None
    assert len(client._inbox._pieces) <= 1 + len(data) // 4096
    client.receive_data(data[-1:])
    assert client.next_event() == Batches(7, ENDS, BATCH * 100)


def test_the_page_on_the_protocol_has_every_type_and_every_bound() -> None:
    text = (Path(__file__).parents[2] / "docs/protocol.md").read_text()
    row = re.compile(r"^\| (\d+) \| (\w+) \| (\w+) \|", re.MULTILINE)
    ingress, stream = map(row.findall, text.split("## Stream"))
    kinds = {**stream_frames.FROM_CLIENT, **stream_frames.FROM_BROKER}
    assert {(int(n), name) for n, _, name in stream} == {
        (n, cls.__name__) for n, (cls, _, _) in kinds.items()
    }
    messages = get_args(ingress_messages.FromClient | ingress_messages.FromBroker)
    assert {(int(n), name) for n, _, name in ingress} == {(m.kind, m.__name__) for m in messages}
    for bound in (
        f"{stream_frames.CLIENT_FRAME_BYTES} bytes / 8 KiB + {stream_frames.HEAD_BYTES + 8}",
        f"44 bytes (a greeting {greeting.HELLO_MAX_BYTES}) / 64 KiB + 16",
        f"{limits.TOKEN_BYTES} / {limits.NAME_BYTES} bytes",
        f"{limits.BATCH_OVERHEAD_BYTES} bytes to {limits.BATCH_BYTES >> 20} MiB",
        f"`heartbeat_ms` ({limits.HEARTBEAT_MS:,})",
        f"({limits.DEAD_MS:,})",
    ):
        assert bound in text, bound
    assert ingress_messages.MAX_HEADER_BYTES == (64 << 10) + ingress_messages.HEAD_BYTES
    assert stream_frames.FROM_BROKER[Failed.kind][2] == (8 << 10) + 8
