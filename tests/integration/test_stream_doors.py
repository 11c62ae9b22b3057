"""Who is let in to a reader's sockets, who is not, and who is put out: with the reason, and at the
cost of nobody else."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from stream_rig import LIMIT_S, TOKEN, ReaderRig, StreamConsumer, check_gapless
from waiting import eventually

from shmbroker import errors
from shmbroker.config import ListenSection
from shmbroker.control.certificate import write_certificate
from shmbroker.control.listening import TlsFiles
from shmbroker.wire.native import greeting, stream_frames
from shmbroker.wire.native.greeting import STREAM_MAGIC, Hello
from shmbroker.wire.native.stream_client import StreamClient
from shmbroker.wire.native.stream_frames import Batches, Failed, Heartbeat, Start, Subscribed
from shmbroker.workers.streams import server

from .conftest import Broker
from .streaming import reader_of, shared_broker

RESET = bytes([1, 0, 0, 0, 0, 0, 0, 0])  # struct linger: at once
QUICK = ListenSection(heartbeat_ms=100, dead_ms=800)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with shared_broker(tmp_path_factory) as made:
        yield made


@pytest.fixture
def rig(broker: Broker, tmp_path: Path) -> Iterator[ReaderRig]:
    with reader_of(broker, tmp_path) as made:
        yield made


def last_words(connection: socket.socket, said: bytes) -> bytes:
    """What the reader answers until it closes."""
    with suppress(OSError):
        connection.sendall(said)
    answer = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def refusal(answer: bytes) -> errors.ShmbrokerError:
    found = greeting.decode_answer(STREAM_MAGIC, answer)
    assert isinstance(found, errors.ShmbrokerError)
    return found


def test_who_shows_no_token_or_a_wrong_one_gets_nothing(rig: ReaderRig) -> None:
    for token in (b"", b"a tokem", TOKEN + b"x", TOKEN[:-1], os.urandom(256)):
        with rig.socket() as connection:
            hello = greeting.encode_hello(STREAM_MAGIC, Hello(token))
            subscribe = bytes.fromhex("01000000 00000001 0000002c") + bytes(44)
            answer = last_words(connection, hello + subscribe)
            assert isinstance(refusal(answer), errors.AuthenticationFailed)
    assert rig.status()["refused"] == 5


def test_versions_that_the_broker_does_not_speak_are_told_which_it_does(rig: ReaderRig) -> None:
    with rig.socket() as connection:
        hello = greeting.encode_hello(STREAM_MAGIC, Hello(TOKEN, "old", 7, 9))
        error = refusal(last_words(connection, hello))
        assert isinstance(error, errors.UnsupportedVersion)
        assert "versions 7 to 9" in str(error)


STRANGERS = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "zeros": b"\x00" * 5000,
    "ones": b"\xff" * 200_000,
    "a producer": b"SHMI" + bytes(8),
    "a token of 64 KiB": b"SHMS\x00\x01\x00\x01\xff\xff\xff\xff",
}


def test_strangers_are_told_and_put_out(rig: ReaderRig) -> None:
    for who, said in STRANGERS.items():
        with rig.socket() as connection:
            assert isinstance(refusal(last_words(connection, said)), errors.InvalidRequest), who
    eventually(lambda: rig.status()["connections"] == 0, rig.status)


FORBIDDEN = {
    "no such type": "ff000000 00000000 00000000",
    "a Subscribe of 4 GiB": "01000000 00000001 ffffffff",
    "a Credit of 9 bytes": "02000000 00000001 00000009",
    "what only a broker says": "10000000 00000001 00000024",
    "reserved bytes": "04000001 00000000 00000000",
    "the connection as a subscription": "03000000 00000000 00000000",
}


def test_frames_that_may_not_be_end_the_connection_with_the_reason(rig: ReaderRig) -> None:
    for what, frame in FORBIDDEN.items():
        with rig.connect() as consumer:
            consumer.connection.sendall(bytes.fromhex(frame))
            *_, last = consumer.events()
            assert isinstance(last, Failed), what
            assert last.subscription == 0
            assert isinstance(last.error, errors.InvalidRequest)


def test_rubbish_of_every_kind_hurts_nobody_else(rig: ReaderRig) -> None:
    topic = rig.client.create_topic("t")
    rng = random.Random(12)
    good = greeting.encode_hello(STREAM_MAGIC, Hello(TOKEN, "x")) + stream_frames.encode(
        stream_frames.Subscribe(1, bytes.fromhex(topic.id), 0, 0, 1 << 30)
    )
    with rig.connect() as consumer, rig.client.producer() as producer:
        consumer.subscribe(topic.id)
        for n in range(300):
            data = bytearray(good * rng.randint(1, 3))
            for _ in range(rng.choice([0, 1, 3, 20])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            with rig.socket(rng.choice(["tcp", "unix"])) as connection, suppress(OSError):
                connection.sendall(data[: rng.randrange(len(data) + 1)])
                if rng.random() < 0.3:
                    connection.shutdown(socket.SHUT_WR)
                elif rng.random() < 0.3:  # a reset in place of an end
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            if n % 30 == 0:
                producer.send("t", b"%d" % n).result(LIMIT_S)
        assert check_gapless(consumer.read(10), 0) == 10
    eventually(lambda: rig.status()["connections"] == 0, rig.status)
    eventually(lambda: rig.status()["partitions"] == 0, rig.status)


def test_a_consumer_that_asks_and_never_reads_the_answers_is_not_listened_to(
    rig: ReaderRig,
) -> None:
    """Answers are all that is kept in memory, so nobody may ask for more and more of them."""
    with rig.connect("unix") as consumer:
        consumer.connection.setblocking(False)
        asks, sent = stream_frames.encode(stream_frames.Unsubscribe(7)) * 1000, 0
        with suppress(BlockingIOError):
            while sent < 50_000_000:
                sent += consumer.connection.send(asks)
        assert sent < 10_000_000  # what socket buffers hold, both ways
        kept = rig.do(lambda: [len(p._answers) for p in rig.streams._peers.values()])
        assert max(kept) < 200_000


class TestMany:
    @pytest.fixture
    def rig(self, broker: Broker, tmp_path: Path) -> Iterator[ReaderRig]:
        few = ListenSection(max_connections=20)
        with reader_of(broker, tmp_path, few) as made:
            yield made

    def test_more_connections_than_allowed_are_refused_in_words(self, rig: ReaderRig) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(rig.connect())
            for _ in range(50):
                with rig.socket() as connection:
                    error = refusal(last_words(connection, b""))
                    assert isinstance(error, errors.QuotaExceeded)
                    assert error.retriable
            assert rig.status()["connections"] == 20
        eventually(lambda: rig.status()["connections"] == 0, rig.status)
        rig.connect().close()


class TestSilence:
    @pytest.fixture
    def rig(self, broker: Broker, tmp_path: Path) -> Iterator[ReaderRig]:
        with reader_of(broker, tmp_path, QUICK) as made:
            yield made

    def test_who_says_nothing_is_given_up_and_hears_heartbeats_until_then(
        self, rig: ReaderRig
    ) -> None:
        with rig.connect() as consumer:
            began, seen = time.monotonic(), [*consumer.events()]
            assert 0.5 < time.monotonic() - began < 40
            assert len(seen) >= 2
            assert all(isinstance(event, Heartbeat) for event in seen)

    def test_who_never_greets_or_only_trickles_is_given_up(self, rig: ReaderRig) -> None:
        with rig.socket() as silent, rig.socket() as slow:
            for byte in STREAM_MAGIC + bytes(40):
                try:
                    slow.send(bytes([byte]))
                except OSError:
                    break
                time.sleep(0.05)  # the slowness is what is tested
            assert silent.recv(1) == b""
        eventually(lambda: rig.status()["connections"] == 0, rig.status)

    def test_who_sends_heartbeats_and_does_not_read_is_only_slow(self, rig: ReaderRig) -> None:
        topic = rig.client.create_topic("t")
        with rig.client.producer() as producer:
            for _ in range(40):
                producer.send_many("t", [os.urandom(1000)] * 300)
            producer.flush(LIMIT_S)
        with rig.connect() as consumer:
            consumer.subscribe(topic.id, start=Start.EARLIEST)
            end = time.monotonic() + 2.0
            while time.monotonic() < end:
                consumer.say(Heartbeat())
                time.sleep(0.05)  # twice what a silent one would be given up after
            assert check_gapless(consumer.read(12_000), 0) == 12_000


class TestQuiet:
    """Idle peers, where there are many, are looked at now and then; see quiet.py."""

    @pytest.fixture
    def rig(
        self, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[ReaderRig]:
        monkeypatch.setattr(server, "QUIET_AFTER_S", 0.05)
        listen = ListenSection(heartbeat_ms=150, dead_ms=20_000)
        with reader_of(broker, tmp_path, listen) as made:
            yield made

    def test_they_are_heard_sent_to_and_missed_as_others_are(self, rig: ReaderRig) -> None:
        topic = rig.client.create_topic("t")
        quiet = rig.streams._quiet
        with contextlib.ExitStack() as stack, rig.client.producer() as producer:
            peers = [stack.enter_context(rig.connect()) for _ in range(80)]
            peers[0].subscribe(topic.id)
            eventually(lambda: len(quiet._there) == 80, rig.status)
            producer.send("t", b"x").result(LIMIT_S)
            assert check_gapless(peers[0].read(1), 0) == 1
            peers[1].subscribe(topic.id)
            assert check_gapless(peers[1].read(1), 0) == 1
            peers[2].close()
            eventually(lambda: rig.status()["connections"] == 79, rig.status)
            peers[3].say(Heartbeat())
            eventually(lambda: len(quiet._there) == 79, rig.status)
        eventually(lambda: rig.status()["connections"] == 0, rig.status)
        assert not quiet


class TestTls:
    @pytest.fixture
    def files(self, tmp_path: Path) -> TlsFiles:
        made = TlsFiles(tmp_path / "data.crt", tmp_path / "data.key")
        write_certificate(made.certificate, made.key)
        return made

    @pytest.fixture
    def rig(self, broker: Broker, tmp_path: Path, files: TlsFiles) -> Iterator[ReaderRig]:
        listen = ListenSection(heartbeat_ms=500, dead_ms=3000)  # handshakes are given so long too
        with reader_of(broker, tmp_path, listen, files) as made:
            yield made

    def wrapped(self, rig: ReaderRig, files: TlsFiles) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(files.certificate))
        context.check_hostname = False
        return context.wrap_socket(rig.socket())

    def test_streams_go_inside_it_from_segments_and_ring(
        self, rig: ReaderRig, files: TlsFiles
    ) -> None:
        topic = rig.client.create_topic("t", config={"segment.bytes": 1 << 20})
        with rig.client.producer() as producer:
            for _ in range(30):
                producer.send_many("t", [os.urandom(1000)] * 300)
            producer.flush(LIMIT_S)
            with StreamConsumer(self.wrapped(rig, files)) as consumer:
                begun = consumer.subscribe(topic.id, start=Start.EARLIEST)
                assert isinstance(begun, Subscribed)
                data = consumer.read(9000)
                for n in range(20):
                    producer.send("t", b"tail").result(LIMIT_S)
                    data += consumer.read(9001 + n)
            assert check_gapless(data, 0) == 9020

    def test_one_that_does_not_read_is_only_slow(self, rig: ReaderRig, files: TlsFiles) -> None:
        topic = rig.client.create_topic("t")
        with rig.client.producer() as producer:
            for _ in range(30):
                producer.send_many("t", [os.urandom(1000)] * 300)
            producer.flush(LIMIT_S)
        with StreamConsumer(self.wrapped(rig, files)) as consumer:
            consumer.subscribe(topic.id, start=Start.EARLIEST)
            eventually(lambda: "read" in rig.status()["peers"][0]["waits_for"], rig.status)
            assert check_gapless(consumer.read(9000), 0) == 9000

    def test_without_it_nobody_is_let_in(self, rig: ReaderRig) -> None:
        with rig.socket() as connection:
            hello = greeting.encode_hello(STREAM_MAGIC, Hello(TOKEN))
            answer = last_words(connection, hello)
            assert b"shms" not in answer
        eventually(lambda: rig.status()["connections"] == 0, rig.status)

    def test_half_a_handshake_is_given_up(self, rig: ReaderRig) -> None:
        with rig.socket() as connection:
            connection.sendall(b"\x16\x03\x01\x02")
            assert connection.recv(1) == b""


def test_the_unix_socket_is_the_users_alone_and_goes_with_the_reader(rig: ReaderRig) -> None:
    mode = stat.S_IMODE(rig.unix.stat().st_mode)
    assert mode == 0o600
    rig.do(rig.streams.stop_accepting)
    assert not rig.unix.exists()


def test_a_reader_that_ends_says_so_and_finishes_the_frame(rig: ReaderRig) -> None:
    topic = rig.client.create_topic("t")
    with rig.client.producer() as producer:
        for _ in range(60):
            producer.send_many("t", [os.urandom(1000)] * 300)
        producer.flush(LIMIT_S)
    with rig.connect() as consumer:
        consumer.subscribe(topic.id, start=Start.EARLIEST)
        rig.do(rig.streams.stop_accepting)
        *some, last = consumer.events()
        assert isinstance(last, stream_frames.Closing)
        data = b"".join(event.data for event in some if isinstance(event, Batches))
        assert not data or check_gapless(data, 0) > 0


def test_a_client_that_is_connected_with_itself_would_notice() -> None:
    """The magic of the answer is another one; see the protocol."""
    codec = StreamClient()
    said = codec.send(Hello(TOKEN))
    codec.receive_data(said)
    with pytest.raises(errors.InvalidRequest):
        codec.next_event()
