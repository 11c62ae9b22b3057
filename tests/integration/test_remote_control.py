"""Control for programs elsewhere: hello, sessions, events, refusals; garbage on its open port."""

from __future__ import annotations

import json
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq
from remote_peer import RemotePeer

sys.path.insert(0, str(Path(__file__).parent))

from acceptor_harness import HERE, REPOSITORY, Broker, broker_at
from waiting import LIMIT_S, eventually

from shmbroker.config import Places

ANYWHERE = "tcp://127.0.0.1:0"
NAMES = ("control", "ingress", "data", "events")


@pytest.fixture
def broker(
    isolated_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Broker]:
    """One of the test's own, to be started."""
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{HERE}")
    with broker_at(Places.find("t", data_dir=tmp_path / "broker")) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One for all tests that neither stop it nor configure it."""
    root = tmp_path_factory.mktemp("control")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HOME"):
            (root / name).mkdir()
            patch.setenv(name, str(root / name))
        patch.setenv("SHMBROKER_BROKER_WRITERS", "1")  # one that comes later would be a leak
        patch.setenv("PYTHONPATH", f"{REPOSITORY}:{HERE}")
        with broker_at(Places.find("shared", data_dir=root / "broker")) as made:
            made.up(address=ANYWHERE)
            yield made


def listen_of(broker: Broker) -> dict[str, Any]:
    peer = broker.peer()
    found: dict[str, Any] = peer.ask("status")["listen"]
    peer.close()
    return found


def token_of(broker: Broker) -> str:
    return broker.places.token_file.read_text().strip()


def test_hello_tells_where_all_is_and_needs_the_token(shared: Broker) -> None:
    address = listen_of(shared)["control"][0]
    refused_before = listen_of(shared)["hellos_refused"]
    with RemotePeer(address) as peer:
        for wrong in ({}, {"token": ""}, {"token": "0" * 32}, {"token": "\U0001f600"}):
            error = peer.refused("hello", **wrong)
            assert (error["code"], error["name"]) == (58, "AuthenticationFailed")
        assert peer.refused("metadata", client=1, secret="")["code"] == 42
        assert peer.refused("status", client=1, token="")["code"] == 42
        assert peer.refused("hello", token=5)["code"] == 42
        told = peer.hello(token_of(shared))
        assert told["ingress"] == listen_of(shared)["ingress"]
        assert len(told["data_token"]) == 32
        assert told["data_token"] != token_of(shared)
        assert "data_certificate" not in told
        assert (told["heartbeat_ms"], told["dead_ms"]) == (3000, 9000)
        identity = json.loads((shared.places.data_dir / "datadir.json").read_text())
        assert told["data_dir_id"] == identity["data_dir_id"]
        assert told["runtime_dir"] == str(shared.places.runtime_dir)
        assert peer.ask("heartbeat") == {}
        peer.ask("create_topic", name="ticks", partitions=2)
        assert "ticks" in peer.ask("metadata", topics=None)["topics"]
        assert listen_of(shared)["hellos_refused"] - refused_before == 4
        (shown,) = [c for c in listen_of(shared)["clients"] if c["client"] == told["client"]]
        assert (shown["name"], shown["over"], shown["key"]) == ("peer", "tcp", None)
        with RemotePeer(address) as other:
            known = other.hello(token_of(shared))["client"]
            assert other.ask("goodbye") == {}
            assert other.refused("heartbeat")["code"] == 42
            assert known not in [c["client"] for c in listen_of(shared)["clients"]]
        with RemotePeer(address) as thief:
            assert thief.refused("heartbeat", client=told["client"], secret="x" * 32)["code"] == 42


def test_what_means_this_host_is_refused_to_programs_elsewhere(shared: Broker) -> None:
    with RemotePeer(listen_of(shared)["control"][0]) as peer:
        peer.hello(token_of(shared))
        for op, args in (
            ("open_ingress", {"writer": 0, "capacity": 1, "slots": 1}),
            ("close_ingress", {"ingress": 1}),
            ("shutdown", {}),
        ):
            assert peer.refused(op, **args)["name"] == "AuthorizationFailed"
        assert peer.ask("heartbeat") == {}


def test_an_old_or_unknown_version_is_a_clear_error(shared: Broker) -> None:
    with RemotePeer(listen_of(shared)["control"][0]) as peer:
        token = token_of(shared)
        error = peer.refused("hello", min=2, max=3, token=token)
        assert error["code"] == 35
        assert "versions 2 to 3 of control and the broker 1" in error["message"]
        assert peer.refused("hello", v=0, token=token)["code"] == 35
        assert peer.hello(token, max=7)["version"] == 1


def test_no_more_clients_than_are_allowed_until_a_silent_one_is_forgotten(broker: Broker) -> None:
    broker.up(address=ANYWHERE, heartbeat_ms=300, dead_ms=3000, max_connections=2)
    address, token = listen_of(broker)["control"][0], token_of(broker)
    with RemotePeer(address) as silent, RemotePeer(address) as speaking, RemotePeer(address) as new:
        speaking.hello(token)
        silent.hello(token)
        error = new.refused("hello", token=token)
        assert (error["name"], error["code"]) == ("QuotaExceeded", 89)
        assert "listen.max_connections" in error["message"]

        def only_one() -> bool:
            speaking.ask("heartbeat")
            return len(listen_of(broker)["clients"]) == 1

        eventually(only_one, "the silent one is still there")
        assert silent.refused("heartbeat")["code"] == 42
        new.hello(token)


def test_a_client_that_comes_back_is_known_and_its_events_follow_it(shared: Broker) -> None:
    address = listen_of(shared)["control"][0]
    with RemotePeer(address) as first:
        told = first.hello(token_of(shared))
        first.ask("create_topic", name="events", partitions=1)
        with RemotePeer(address) as second:
            second.who = first.who
            again = second.hello(token_of(shared))
            assert (again["client"], again["claimed"]) == (told["client"], True)
            first.ask("alter_topic", name="events", config={"retention.ms": 1000})
            assert second.event() == {"v": 1, "event": "topics", "names": ["events"]}
            first.ask("delete_topic", name="events")
            assert second.event()["names"] == ["events"]


def test_a_restart_of_the_broker_is_answered_by_a_new_hello(broker: Broker) -> None:
    broker.up(address=ANYWHERE)
    before = listen_of(broker)
    with RemotePeer(before["control"][0]) as peer:
        peer.hello(token_of(broker))
        broker.kill()
        broker.up(address=ANYWHERE)
        now = listen_of(broker)
        assert [now[n] for n in NAMES] == [before[n] for n in NAMES]
        assert peer.refused("heartbeat")["code"] == 42
        assert peer.hello(token_of(broker))["claimed"] is False
        assert peer.ask("metadata", topics=None)["topics"] == {}


def test_garbage_on_the_control_port_hurts_nobody(shared: Broker) -> None:
    address = listen_of(shared)["control"][0]
    port = int(address.rpartition(":")[2])
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    before = {c["client"] for c in listen_of(shared)["clients"]}
    with RemotePeer(address) as good:
        good.hello(token_of(shared))
        greeting = bytes.fromhex("ff00000000000000017f0300" + b"NULL".hex() + "00" * 48)
        for _ in range(60):  # bytes that are no ZeroMQ, or stop being any
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as raw:
                begin = (
                    greeting[: dice.randrange(len(greeting) + 1)] if dice.random() < 0.6 else b""
                )
                raw.sendall(begin + dice.randbytes(dice.randrange(200)))
        whole = b'{"v":1,"id":7,"op":"hello","min":1,"max":1,"token":"x"}'
        with RemotePeer(address) as bad:
            for _ in range(300):  # whole messages of ZeroMQ that are no request
                kind = dice.randrange(5)
                if kind == 0:
                    bad.send(dice.randbytes(dice.randrange(300)))
                elif kind == 1:
                    bad.send(whole[: dice.randrange(len(whole))])
                elif kind == 2:
                    bad.send(*[dice.randbytes(3) for _ in range(dice.randrange(2, 6))])
                elif kind == 3:
                    at = dice.randrange(len(whole))
                    bad.send(whole[:at] + dice.randbytes(1) + whole[at + 1 :])
                else:
                    bad.send(b'{"v":1,"op":' + b"[" * dice.randrange(20_000))
        with RemotePeer(address) as huge:  # longer than any request: cut off unread
            huge.send(b'{"v":1,"id":1,"op":"' + b"x" * (2 << 20) + b'"}')
            assert huge.receive(0.3) is None
        assert good.ask("heartbeat") == {}
        found = good.ask("status")
        assert found["state"] == "running"
        assert {c["client"] for c in found["listen"]["clients"]} - before == {good.who["client"]}


def test_the_heartbeats_of_many_are_answered_together_and_hold_nobody_up(broker: Broker) -> None:
    broker.up(address=ANYWHERE)
    address, token = listen_of(broker)["control"][0], token_of(broker)
    context = zmq.Context()
    peers: list[tuple[zmq.Socket[bytes], dict[str, Any]]] = []
    try:
        for _ in range(150):
            sock = context.socket(zmq.DEALER)
            sock.linger = 0
            sock.connect(address)
            hello = {"v": 1, "id": 0, "op": "hello", "min": 1, "max": 1, "token": token}
            sock.send(orjson.dumps(hello))
            assert sock.poll(LIMIT_S * 1000)
            ok = orjson.loads(sock.recv())["ok"]
            peers.append((sock, {"v": 1, "client": ok["client"], "secret": ok["secret"]}))
        with RemotePeer(address) as working:
            working.hello(token)
            for n in range(1, 21):  # 150 at a time are more than are looked at together
                for sock, who in peers:
                    sock.send(orjson.dumps(who | {"id": n, "op": "heartbeat"}))
                assert working.ask("metadata", topics=None) == {"topics": {}}
            for sock, _ in peers:
                for n in range(1, 21):
                    assert sock.poll(LIMIT_S * 1000)
                    assert orjson.loads(sock.recv()) == {"v": 1, "id": n, "ok": {}}
            assert len(listen_of(broker)["clients"]) == 151
    finally:
        context.destroy(linger=0)
