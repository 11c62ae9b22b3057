"""`up --listen`, whole: control, ingress and streams of real processes, by hand from elsewhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from ingress_rig import Remote, Topic
from remote_peer import RemotePeer
from stream_rig import LIMIT_S, StreamConsumer, check_gapless, next_of
from waiting import eventually

from shmbroker import errors
from shmbroker._core.batch import decode_values
from shmbroker.addresses import parse_tcp
from shmbroker.control.keys import CLIENT, KeyDirectory, read_pair
from shmbroker.control.tokens import find_token
from shmbroker.wire.native.ingress_messages import Closing as IngressClosing
from shmbroker.wire.native.stream_frames import Closing, Subscribed

pytestmark = pytest.mark.leaves_processes
Broker = Any
REFUSED_MS = 400  # a handshake on one host takes a millisecond


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def broker_config() -> str:
    return '[listen]\naddress = "tcp://127.0.0.1:0"\n'


class Producer(Remote):
    """With the token that control handed out, also when it greets again."""

    def __init__(self, context: Any, told: dict[str, Any], producer_id: int, **more: Any) -> None:
        self.told = told
        address = told["ingress"][0]
        super().__init__(
            context,
            address,
            producer_id,
            find_token=lambda: self.told["data_token"].encode(),
            **more,
        )


def listen_of(broker: Broker) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(broker.run("status", "--json").stdout)["listen"]
    return found


def topic_of(peer: RemotePeer, name: str) -> Topic:
    (found,) = peer.ask("metadata", topics=[name])["topics"].values()
    return Topic(bytes.fromhex(found["id"]), [p["writer"] for p in found["partitions"]])


def plain_of(told: dict[str, Any]) -> socket.socket:
    endpoint = str(told["data"][0])
    if endpoint.startswith("unix://"):
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(LIMIT_S)
        made.connect(endpoint.removeprefix("unix://"))
        return made
    return socket.create_connection(parse_tcp(endpoint), LIMIT_S)


def consumer_of(told: dict[str, Any]) -> StreamConsumer:
    return StreamConsumer(plain_of(told), str(told["data_token"]).encode())


def read_all(told: dict[str, Any], topic: Topic, until: int) -> list[bytes]:
    """From the beginning; again when it meets a reader that is about to die."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            with consumer_of(told) as consumer:
                assert isinstance(consumer.subscribe(topic.id.hex()), Subscribed)
                raw = consumer.read(until)
            break
        except (OSError, RuntimeError):  # the rig's word for a connection that has ended
            assert time.monotonic() < deadline
    assert check_gapless(raw, 0) == until
    return [value or b"" for value in decode_values(raw)]


def go_round(broker: Broker, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Records in by ingress, out of a stream, and what is said of both."""
    listen = listen_of(broker)
    address = listen["control"][0]
    with RemotePeer(address) as peer:
        told = peer.hello(find_token(address, broker.env))
        peer.ask("create_topic", name="ticks", partitions=1)
        topic = topic_of(peer, "ticks")
        producer = Producer(context, told, peer.ask("init_producer")["producer_id"]).open()
        for _ in range(20):
            producer.produce(topic)
        producer.settled()
        assert sorted(producer.offsets.values()) == [3 * n for n in range(20)]
        (ends,) = peer.ask("offsets", topic="ticks")["partitions"]
        assert (ends["log_start_offset"], ends["high_watermark"]) == (0, 60)
        assert peer.ask("offsets", topic="ticks", at_ms=1)["partitions"][0]["offset"] == 0
        assert [v.decode() for v in read_all(told, topic, 60)] == [
            f"{producer.producer_id}.{n}" for n in range(60)
        ]
        with consumer_of(told) as consumer:
            consumer.subscribe(topic.id.hex(), offset=60)

            def connections() -> dict[str, Any]:
                producer.step(0)
                return {w["name"]: w.get("connections") for w in listen_of(broker)["workers"]}

            eventually(
                lambda: (found := connections())["reader-0"] == found["ingress-0"] == 1, connections
            )
            shown = broker.run("status").stdout
            assert (
                f"listening, with a token: control {address}; ingress {told['ingress'][0]}" in shown
            )
            assert "1 clients; ingress-0 ready with 1 connections, reader-0 ready with 1" in shown
        producer.close()


def test_records_go_in_by_ingress_and_come_out_of_a_stream(
    broker: Broker, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    go_round(broker, context)


class TestUnixSockets:
    """For containers that share the runtime directory."""

    @pytest.fixture
    def broker_config(self) -> str:
        return "[listen]\nunix = true\nreaders = 2\n"

    def test_the_same_over_unix_sockets(
        self, broker: Broker, context: zmq.Context[zmq.Socket[bytes]]
    ) -> None:
        go_round(broker, context)
        assert len(listen_of(broker)["data"]) == 2


@pytest.mark.parametrize("role", ["ingress", "reader", "writer"])
def test_a_killed_worker_loses_doubles_and_reorders_nothing(
    broker: Broker, context: zmq.Context[zmq.Socket[bytes]], role: str
) -> None:
    address = listen_of(broker)["control"][0]
    with RemotePeer(address) as peer:
        told = peer.hello(find_token(address, broker.env))
        peer.ask("create_topic", name="ticks", partitions=1)
        topic = topic_of(peer, "ticks")
        producer = Producer(context, told, peer.ask("init_producer")["producer_id"]).open()
        consumer = consumer_of(told)
        consumer.subscribe(topic.id.hex())
        for n in range(60):
            if n % 20 == 10:
                kill(broker, f"{role}-0")
            producer.produce(topic)
        producer.settled()
        if role == "reader":  # its consumers come again behind what they were given
            with pytest.raises((AssertionError, OSError)):
                consumer.read(180)
            consumer.close()
            eventually(lambda: bool(listening(told)), lambda: "the reader is not back")
        else:
            assert next_of(consumer.read(180)) == 180
            consumer.close()
        assert [v.decode() for v in read_all(told, topic, 180)] == [
            f"{producer.producer_id}.{n}" for n in range(180)
        ]
        producer.close()


def kill(broker: Broker, name: str) -> None:
    """kill -9 of a worker that is ready."""
    with broker.client() as client:
        found: dict[str, Any] = {}

        def is_ready() -> bool:
            found.update({p["name"]: p for p in client.status()["processes"]})
            return bool(found[name]["state"] == "ready")

        eventually(is_ready, lambda: found)
        os.kill(found[name]["pid"], signal.SIGKILL)


def listening(told: dict[str, Any]) -> bool:
    try:
        plain_of(told).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_broker_that_stops_says_so_on_every_channel(
    broker: Broker, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    address = listen_of(broker)["control"][0]
    with RemotePeer(address) as peer:
        told = peer.hello(find_token(address, broker.env))
        peer.ask("create_topic", name="ticks", partitions=1)
        topic = topic_of(peer, "ticks")
        producer = Producer(context, told, peer.ask("init_producer")["producer_id"]).open()
        for _ in range(10):
            producer.produce(topic)
        with consumer_of(told) as consumer:
            consumer.subscribe(topic.id.hex(), offset=0)
            broker.stop()
            assert peer.event() == {"v": 1, "event": "closing"}
            producer.until(lambda: any(isinstance(e, IngressClosing) for e in producer.events))
            assert any(isinstance(event, Closing) for event in consumer.events())
        broker.start()  # at the same addresses, with the same token: the clients' pause
        again = peer.hello(find_token(address, broker.env), **peer.who)
        assert (again["ingress"], again["data"]) == (told["ingress"], told["data"])
        producer.told = again
        producer.greet()
        producer.settled()
        assert len(read_all(again, topic, 30)) == 30
        producer.close()


def test_no_token_and_a_wrong_one_are_let_in_nowhere(
    broker: Broker, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    address = listen_of(broker)["control"][0]
    token = find_token(address, broker.env)
    with RemotePeer(address) as peer:
        told = peer.hello(token)
        for wrong in ("", "wrong", str(token)):  # control's token is none for data
            fake = told | {"data_token": wrong}
            producer = Producer(context, fake, 1)
            with pytest.raises(errors.AuthenticationFailed):
                producer.until(lambda: False)
            producer.close()
            with plain_of(fake) as made, pytest.raises(errors.AuthenticationFailed):
                StreamConsumer(made, wrong.encode())


class TestBeyondLoopback:
    """CURVE for control and ingress, TLS for streams."""

    @pytest.fixture
    def keys(self, isolated_env: dict[str, str], tmp_path: Any) -> KeyDirectory:
        made = KeyDirectory(tmp_path / "keys")
        made.generate()
        made.add_client("laptop")
        return made

    @pytest.fixture
    def broker_config(self, keys: KeyDirectory) -> str:
        return f'[listen]\naddress = "tcp://*:0"\nkeys = "{keys.path}"\n'

    def test_all_three_ports_serve_who_has_a_key_and_nobody_else(
        self, broker: Broker, keys: KeyDirectory, context: zmq.Context[zmq.Socket[bytes]]
    ) -> None:
        listen = listen_of(broker)
        assert (listen["curve"], listen["tls"]) == (True, True)
        address = listen["control"][0].replace("*", "127.0.0.1")
        server = read_pair(keys.public).public
        pair = read_pair(keys.client("laptop") / f"{CLIENT}.key_secret")
        with RemotePeer(address, server_key=server, pair=pair) as peer:
            told = peer.hello()
            assert told["ingress"][0].startswith("tcp://*:")
            told = {
                name: [e.replace("*", "127.0.0.1") for e in value] if isinstance(value, list)
                else value for name, value in told.items()
            }  # fmt: skip
            peer.ask("create_topic", name="ticks", partitions=1)
            topic = topic_of(peer, "ticks")

            def with_key(sock: zmq.Socket[bytes]) -> None:
                sock.setsockopt(zmq.CURVE_SERVERKEY, server)
                sock.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
                sock.setsockopt(zmq.CURVE_SECRETKEY, pair.secret or b"")

            producer_id = peer.ask("init_producer")["producer_id"]
            producer = Producer(context, told, producer_id, before_connect=with_key).open()
            for _ in range(5):
                producer.produce(topic)
            producer.settled()
            producer.close()
            stranger = Producer(context, told, producer_id)  # no key
            assert not stranger.socket.poll(REFUSED_MS)
            stranger.close()
            trust = ssl.create_default_context(cadata=told["data_certificate"])
            trust.check_hostname = False
            inside = trust.wrap_socket(plain_of(told))
            with StreamConsumer(inside, told["data_token"].encode()) as consumer:
                assert isinstance(consumer.subscribe(topic.id.hex()), Subscribed)
                assert check_gapless(consumer.read(15), 0) == 15
            with plain_of(told) as outside:  # of TLS
                assert StreamConsumer(outside, told["data_token"].encode()).welcome is None
            distrust = ssl.create_default_context()
            distrust.check_hostname = False
            with plain_of(told) as other, pytest.raises(ssl.SSLCertVerificationError):
                distrust.wrap_socket(other)
