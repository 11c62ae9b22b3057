"""Pressure as programs elsewhere see it: told over TCP, and shown by whom it makes wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from ingress_rig import PATIENCE_S, Remote, Topic
from remote_peer import RemotePeer
from streamed import LISTENING, connect_remote
from waiting import eventually

from shmbroker.client.client import Client
from shmbroker.client.metadata import TopicPartition
from shmbroker.client.pressure import Spot
from shmbroker.client.remote.connection import RemoteConnection
from shmbroker.client.remote.hello import Credentials
from shmbroker.client.remote.pressure import HeardPressures
from shmbroker.control.keys import CLIENT, KeyDirectory, KeyPair, new_pair, read_pair
from shmbroker.control.pressure import Thresholds


@pytest.fixture
def beyond() -> bool:
    """Whether other hosts reach the broker."""
    return False


@pytest.fixture
def broker_config(beyond: bool, tmp_path: Path) -> str:
    if beyond:
        keys = KeyDirectory(tmp_path / "keys")
        keys.generate()
        keys.add_client("laptop")
        return f'[listen]\naddress = "tcp://0.0.0.0:0"\nkeys = "{keys.path}"\n'
    config = '[broker]\nwriters = 1\n[memory]\nbudget_bytes = "16MiB"\nring_max_bytes = "1MiB"\n'
    return config + '[listen]\naddress = "tcp://127.0.0.1:0"\n[log]\nmax.message.bytes = "256KiB"\n'


@pytest.fixture
def context() -> Iterator[Any]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


def curve(keys: KeyDirectory, pair: KeyPair) -> Callable[[Any], None]:
    """Sets a client's keys on a socket."""
    server = read_pair(keys.public).public

    def configure(sock: Any) -> None:
        sock.setsockopt(zmq.CURVE_SERVERKEY, server)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
        sock.setsockopt(zmq.CURVE_SECRETKEY, pair.secret or b"")

    return configure


@pytest.mark.parametrize("beyond", [True])
def test_beyond_loopback_only_an_authorised_key_with_the_token_hears_anything(
    broker: Any, context: Any, tmp_path: Path
) -> None:
    keys = KeyDirectory(tmp_path / "keys")
    mine = read_pair(keys.client("laptop") / f"{CLIENT}.key_secret")
    with broker.client() as client:
        listen = client.status()["listen"]
    address, events = (listen[n][0].replace("0.0.0.0", "127.0.0.1") for n in ("control", "events"))
    server = read_pair(keys.public).public
    with RemotePeer(address, server_key=server, pair=mine) as peer:
        token = peer.hello()["data_token"].encode()
    heard = HeardPressures(context, events, secret=token, configure=curve(keys, mine))
    strangers = [
        HeardPressures(context, events, secret=token),
        HeardPressures(context, events, secret=token, configure=curve(keys, new_pair())),
        HeardPressures(context, events, secret=b"wrong", configure=curve(keys, mine)),
    ]
    eventually(lambda: heard.receive() is not None and heard.complete, lambda: "not heard")
    time.sleep(0.3)  # a handshake on one host takes a millisecond
    assert not any(one.receive() or one.complete for one in strangers)
    for one in (heard, *strangers):
        one.close()


class Elsewhere(Remote):
    """A remote producer with the token that control gave it."""

    data_token = b""

    def greet(self, token: bytes = b"") -> None:
        """See Remote."""
        super().greet(token or self.data_token)


def test_a_slow_disk_is_told_elsewhere_and_who_waits_there_is_shown(
    slow_broker: Any, disk: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_broker.client() as client:
        client.create_topic("t")
        listen = client.status()["listen"]
        with open(listen["token_file"]) as file, RemotePeer(listen["control"][0]) as peer:
            told = peer.hello(token=file.read().strip())
        assert told["events"] == listen["events"]
        assert Thresholds.of(told["pressure"]) is not None
        monkeypatch.setattr(Elsewhere, "data_token", told["data_token"].encode())
        heard = HeardPressures(context, told["events"][0], secret=Elsewhere.data_token)

        def level() -> Any:
            heard.receive()
            spot = Spot("t", 0, 0, 0, 0)
            return heard.look([spot])[spot]

        producer = Elsewhere(context, told["ingress"][0], 7, padding=40_000).open()
        topic = Topic.of(client, "t")
        producer.produce(topic)
        producer.settled()
        eventually(lambda: heard.receive() is not None and heard.complete, level)
        eventually(lambda: level().state == "ok", level)
        disk.slow(60_000)
        end = time.monotonic() + PATIENCE_S
        while producer.codec.may_send(topic.writers[0]):  # until its credit is used up
            producer.send(producer.make(topic))
            producer.step(0)
            assert time.monotonic() < end
        eventually(lambda: level().state == "hard", level)
        waits: list[Any] = []

        def waiting() -> bool:
            producer.step(0)
            waits[:] = client.status()["waits"]
            return any(w.get("via") == "ingress-0" and w["name"] == "a test" for w in waits)

        eventually(waiting, lambda: waits)
        (wait,) = [w for w in waits if w.get("via")]
        assert (wait["topic"], wait["pid"]) == ("t", None)
        assert wait["waiting_bytes"] > 0
        assert wait["why"]
        told = "a test (elsewhere, by ingress-0) waits for t-0"
        eventually(lambda: told in slow_broker.run("status").stdout, client.status)
        disk.fast()
        producer.settled()
        eventually(lambda: level().state == "ok", level)
        eventually(lambda: client.status()["waits"] == [], client.status)
        heard.close()
        producer.close()


def test_a_remote_producer_asks_as_a_local_one_does(slow_broker: Any, disk: Any) -> None:
    with slow_broker.client() as local:
        local.create_topic("t")
        listen = local.status()["listen"]
    token = Path(listen["token_file"]).read_text().strip()
    connection = RemoteConnection(
        listen["control"][0], Credentials(token), timeout=20.0, reconnect_s=PATIENCE_S
    )
    with Client(connection) as client, client.producer(on_full="drop") as producer:
        assert producer.pressure().worst is None
        producer.send("t", b"first").result(40)

        def level() -> Any:
            return producer.pressure().partitions[TopicPartition("t", 0)]

        eventually(lambda: (level().state, level().cause) == ("ok", "none"), level)
        disk.slow(60_000)
        end = time.monotonic() + PATIENCE_S
        offered = 1
        while not producer.dropped() or level().ingress_fill < 0.9:
            producer.send("t", b"x" * 40_000)  # until its credit is used up, and its own ring full
            offered += 1
            assert time.monotonic() < end, level()
        eventually(lambda: level().cause in ("stalled", "writer"), level)
        assert "stands still" in producer.pressure().reason
        disk.fast()
        producer.flush(PATIENCE_S)
        eventually(lambda: level().state == "ok", level)
        lost = sum(producer.dropped().values())
    with slow_broker.client() as local:
        (partition,) = local.status()["partitions"]
        assert partition["log_end_offset"] + lost == offered


@pytest.mark.parametrize(
    "broker_config",
    [f"{LISTENING}[pressure]\nsoft_fill_percent = 5\nhard_fill_percent = 95\nmargin_percent = 1\n"],
)
def test_a_remote_producers_own_ring_is_judged_by_the_brokers_thresholds(broker: Any) -> None:
    with connect_remote(broker) as client, client.producer() as producer:
        client.create_topic("t")
        producer.send_and_wait("t", b"first", timeout=PATIENCE_S)

        def level() -> Any:
            return producer.pressure().partitions[TopicPartition("t", 0)]

        eventually(lambda: (level().state, level().cause) == ("ok", "none"), level)
        (ingress,) = broker.workers("ingress")
        ingress.suspend()
        try:
            while level().ingress_fill < 0.1:
                producer.send("t", bytes(10_000))
            assert level().ingress_fill < 0.4, "the usual limit is 50 %"
            assert (level().state, level().cause) == ("soft", "ingress")
        finally:
            ingress.resume()
        producer.flush(PATIENCE_S)
        eventually(lambda: level().state == "ok", level)
