"""Beyond loopback: keys, who has one, and what is refused without."""

from __future__ import annotations

import contextlib
import json
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.auth
from remote_peer import RemotePeer

sys.path.insert(0, str(Path(__file__).parent))

from acceptor_harness import HERE, REPOSITORY, Broker, broker_at, run_cli
from waiting import eventually

from shmbroker import errors
from shmbroker.config import Places
from shmbroker.control.keys import CLIENT, KeyDirectory, new_pair, read_pair, write_pair

BEYOND = "tcp://0.0.0.0:0"
REFUSED_S = 0.4  # a handshake on one host takes a millisecond


@pytest.fixture
def broker(
    isolated_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Broker]:
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{HERE}")
    monkeypatch.setenv("SHMBROKER_INSTANCE", "t")
    with broker_at(Places.find("t", data_dir=tmp_path / "broker")) as made:
        yield made


@pytest.fixture
def keys(broker: Broker) -> KeyDirectory:
    made = KeyDirectory(broker.places.keys_dir)
    made.generate()
    made.add_client("laptop")
    return made


def listen_of(broker: Broker) -> dict[str, Any]:
    peer = broker.peer()
    found: dict[str, Any] = peer.ask("status")["listen"]
    peer.close()
    return found


def address_of(broker: Broker) -> str:
    endpoint: str = listen_of(broker)["control"][0]
    return endpoint.replace("0.0.0.0", "127.0.0.1")


def test_a_bind_beyond_loopback_is_refused_without_keys(broker: Broker) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        broker.up(address=BEYOND)
    text = str(caught.value)
    assert caught.value.key == "listen.address"
    assert "can be reached from other hosts, and there are no keys" in text
    assert f"shmbroker keys generate --dir {broker.places.keys_dir}" in text
    assert "--insecure" in text
    with pytest.raises(errors.ConfigError, match="no keys"):
        broker.up(address="tcp://*:0")
    broker.up(address=BEYOND, insecure=True)
    assert "listen.insecure is set" in broker.log()
    token = broker.places.token_file.read_text().strip()
    with RemotePeer(address_of(broker)) as peer:
        assert peer.refused("hello")["code"] == 58
        assert peer.hello(token)["curve"] is False


def test_only_an_authorised_key_gets_through_and_is_named(
    broker: Broker, keys: KeyDirectory
) -> None:
    broker.up(address=BEYOND)
    listen = listen_of(broker)
    assert (listen["curve"], listen["tls"], listen["clients"]) == (True, True, [])
    address, server = address_of(broker), read_pair(keys.public).public
    token = broker.places.token_file.read_text().strip()
    laptop = keys.client("laptop")
    assert read_pair(laptop / "server.key").public == server
    pair = read_pair(laptop / f"{CLIENT}.key_secret")
    hello = json.dumps({"v": 1, "id": 1, "op": "hello", "token": token}).encode()
    strangers: list[dict[str, Any]] = [
        {},  # no key
        {"server_key": server, "pair": new_pair()},  # nobody's
        {"server_key": new_pair().public, "pair": pair},  # for another broker
    ]
    for keys_shown in strangers:
        with RemotePeer(address, **keys_shown) as stranger:
            with contextlib.suppress(zmq.Again):  # thrown out already
                stranger.send(hello, flags=zmq.NOBLOCK)
            assert stranger.receive(REFUSED_S) is None
    with RemotePeer(address, server_key=server, pair=pair) as peer:
        assert peer.refused("hello", token="0" * 32)["code"] == 58
        told = peer.hello()  # the key is enough
        assert told["curve"] is True
        assert told["data_certificate"] == keys.certificate.read_text()
        ssl.create_default_context(cadata=told["data_certificate"])
        (shown,) = listen_of(broker)["clients"]
        assert shown["key"] == "laptop"
        eventually(lambda: listen_of(broker)["keys_refused"] >= 1, "nobody was refused")


def test_a_running_broker_sees_keys_come_and_go(broker: Broker, keys: KeyDirectory) -> None:
    broker.up(address=BEYOND)
    address, server = address_of(broker), read_pair(keys.public).public
    own = new_pair()  # made on the client's host: only its public half travels
    with RemotePeer(address, server_key=server, pair=own) as early:
        early.send(b'{"v":1,"id":1,"op":"hello"}')
        assert early.receive(REFUSED_S) is None
        public = broker.places.data_dir / "desk.key"
        write_pair(public, type(own)(own.public))
        done = run_cli("keys", "authorize", "desk", str(public))
        assert done.returncode == 0, done.stderr
        with RemotePeer(address, server_key=server, pair=own) as late:
            late.hello()
            done = run_cli("keys", "revoke", "desk")
            assert done.returncode == 0, done.stderr
            with RemotePeer(address, server_key=server, pair=own) as after:
                after.send(b'{"v":1,"id":1,"op":"hello"}')
                assert after.receive(REFUSED_S) is None
            assert late.refused("heartbeat")["code"] == 58
            stolen = dict(late.who)
    laptop = read_pair(keys.client("laptop") / f"{CLIENT}.key_secret")
    with RemotePeer(address, server_key=server, pair=laptop) as peer:
        peer.hello()
        assert peer.refused("heartbeat", **stolen)["code"] == 42  # another key's session


def test_keys_are_generated_once_and_listed(broker: Broker, tmp_path: Path) -> None:
    where = tmp_path / "keys"
    made = run_cli("keys", "generate", "--dir", str(where), "--client", "a", "--client", "b")
    assert made.returncode == 0, made.stderr
    assert f"carry {where}/clients/a to its host" in made.stdout
    for path in (
        where / "server.key_secret",
        where / "tls.key",
        where / "clients/a/client.key_secret",
    ):
        assert path.stat().st_mode & 0o777 == 0o600
    assert where.stat().st_mode & 0o777 == 0o700
    before = {path: path.read_bytes() for path in where.rglob("*") if path.is_file()}
    again = run_cli("keys", "generate", "--dir", str(where))
    assert (again.returncode, again.stdout) == (0, "")
    assert {path: path.read_bytes() for path in where.rglob("*") if path.is_file()} == before
    public, secret = zmq.auth.load_certificate(where / "clients/a/client.key_secret")
    assert secret is not None
    listed = run_cli("keys", "list", "--dir", str(where), "--json").stdout.splitlines()
    assert [json.loads(line)["name"] for line in listed] == ["a", "b"]
    assert json.loads(listed[0])["public_key"] == public.decode()
    twice = run_cli("keys", "generate", "--dir", str(where), "--client", "a")
    assert twice.returncode == 1
    assert "shmbroker keys revoke a" in twice.stderr
    unknown = run_cli("keys", "revoke", "c", "--dir", str(where))
    assert unknown.returncode == 1
    assert "allowed: a, b" in unknown.stderr
    broker.up(address=BEYOND, keys=str(where))
    assert listen_of(broker)["keys"] == str(where)


def test_a_secret_that_others_can_read_is_refused(broker: Broker, keys: KeyDirectory) -> None:
    keys.secret.chmod(0o644)
    with pytest.raises(errors.ConfigError, match=r"can be read by others.*chmod 600"):
        broker.up(address=BEYOND)


def test_a_certificate_that_no_reader_could_use_is_refused(
    broker: Broker, keys: KeyDirectory
) -> None:
    other = KeyDirectory(keys.path / "other")
    other.generate()
    keys.certificate_key.write_bytes(other.certificate_key.read_bytes())
    for _ in range(2):
        with pytest.raises(errors.ConfigError, match=r"tls.crt: can't be used with tls.key"):
            broker.up(address=BEYOND)
        keys.certificate.write_text("no certificate")


def test_garbage_in_the_directory_lets_nobody_in_and_stops_nothing(
    broker: Broker, keys: KeyDirectory
) -> None:
    (keys.authorized / "broken.key").write_bytes(b"\xff\x00 public-key = short")
    (keys.authorized / "dir.key").mkdir()
    assert set(keys.clients()) == {"laptop"}
    broker.up(address=BEYOND)
    pair = read_pair(keys.client("laptop") / f"{CLIENT}.key_secret")
    server = read_pair(keys.public).public
    with RemotePeer(address_of(broker), server_key=server, pair=pair) as peer:
        peer.hello()
