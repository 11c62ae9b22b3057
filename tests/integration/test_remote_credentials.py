"""Who is let in over the network, by what, and which way a program takes to the broker."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import zmq
from waiting import eventually

from shmbroker import aio, errors
from shmbroker.client.client import Client, connect
from shmbroker.client.local_connection import LocalConnection
from shmbroker.client.remote.connection import RemoteConnection
from shmbroker.client.remote.hello import Credentials, Desk, RemoteAttachment

if TYPE_CHECKING:
    from conftest import Broker


@pytest.fixture
def reach() -> str:
    return "tcp"


@pytest.fixture
def unfound(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The broker's token, which programs don't find by themselves: as another user."""
    token = (broker.places.runtime_dir / "token").read_text().strip()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "elsewhere"))
    return token


def same_place(one: str, other: str) -> bool:
    """Whether two addresses lead to one socket: the rig's may go through a short link."""
    return os.path.realpath(one.removeprefix("ipc://")) == os.path.realpath(
        other.removeprefix("ipc://")
    )


def test_a_token_is_asked_for_and_may_be_given_in_each_way(
    broker: Broker, unfound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in (None, "", "0" * 32, unfound + "0", unfound[:-1]):
        begun = time.monotonic()
        with pytest.raises(errors.AuthenticationFailed, match="token"):
            connect(broker.address, local=False, token=wrong, timeout=60)
        assert time.monotonic() - begun < 30
    file = tmp_path / "given"
    file.write_text(f"{unfound}\n")
    for given in ({"token": unfound}, {"token_file": file}):
        with connect(broker.address, local=False, **given) as client:  # type: ignore[arg-type]
            assert client.topics() == []
            assert same_place(client.address, broker.address)
            assert client.instance == broker.instance
    with pytest.raises(errors.ConfigError, match="given-not"):
        connect(broker.address, token_file=tmp_path / "given-not")
    monkeypatch.setenv("SHMBROKER_TOKEN", unfound)
    with connect(broker.address, local=False) as client:
        assert client.topics() == []


def test_programs_of_the_same_user_find_the_token_and_the_way_through_shared_memory(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(broker.address, local=False) as client:
        assert isinstance(client.connection, RemoteConnection)
        assert broker.address in repr(client.connection.broker)
    monkeypatch.setenv("SHMBROKER_INSTANCE", broker.address)
    with connect() as client:
        assert isinstance(client.connection, LocalConnection)
        assert client.instance == broker.instance

    async def main() -> None:
        async with aio.connect(local=False) as client:
            assert isinstance(client.connection, RemoteConnection)
            assert await client.topics() == []
        async with aio.connect(broker.address) as client:
            assert isinstance(client.connection, LocalConnection)

    asyncio.run(main())


@pytest.mark.parametrize("reach", ["ipc"])
def test_unix_sockets_are_found_beside_control_wherever_that_is(
    broker: Broker, tmp_path: Path
) -> None:
    """As in a container, where the runtime directory has another path."""
    here = tmp_path / "h"
    here.symlink_to(broker.places.runtime_dir)
    with connect(f"ipc://{here}/remote-control", local=False) as client:
        assert client.connection.attachment.ingress.startswith(f"ipc://{here}/")
        client.create_topic("t", partitions=1)
        with client.producer() as producer:
            assert producer.send_and_wait("t", b"v", timeout=40).offset == 0
        with client.consumer("t", start="earliest") as consumer:
            record = consumer.poll(40)
            assert record is not None
            assert record.value == b"v"


@pytest.mark.parametrize("reach", ["ipc"])
def test_where_shared_memory_is_not_here_a_name_leads_to_the_unix_sockets(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(broker.instance) as client:
        assert isinstance(client.connection, LocalConnection)
    with connect(broker.instance, local=False) as client:
        assert isinstance(client.connection, RemoteConnection)

    def not_here(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("/shmb-0-00000000-p")

    monkeypatch.setattr(LocalConnection, "open_object", not_here)
    for name in (broker.instance, str(broker.places.runtime_dir)):
        with connect(name) as client:
            assert isinstance(client.connection, RemoteConnection)
            assert same_place(client.address, broker.address)


def test_a_token_of_this_host_is_shown_to_no_other_address(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Credentials.given(None, None, None)
    assert mine.token_for(broker.address)
    port = int(broker.address.rpartition(":")[2])
    for other in (
        f"tcp://192.0.2.1:{port}",
        f"tcp://127.0.0.1:{port - 1}",
        "ipc:///nowhere/at/all",
    ):
        assert mine.token_for(other) is None


def test_names_that_are_no_address_and_brokers_that_are_not_there_are_told_apart() -> None:
    for wrong in ("http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://*:9300"):
        with pytest.raises((errors.ConfigError, errors.NoBroker)) as caught:
            connect(wrong, timeout=0.5)
        assert wrong in str(caught.value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        begun = time.monotonic()
        with pytest.raises(errors.NoBroker, match=f"127.0.0.1:{port}.*no answer within 0.5 s"):
            connect(f"tcp://127.0.0.1:{port}", timeout=0.5)
        assert time.monotonic() - begun < 20


class Stranger:
    """A ROUTER that answers hello as it likes."""

    def __init__(self, *answers: bytes) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"tcp://127.0.0.1:{port}"
        self.heard: list[dict[str, Any]] = []
        self._answers = answers
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        if self._socket.poll(40_000):
            identity, data = self._socket.recv_multipart()
            self.heard.append(orjson.loads(data))
            for answer in self._answers:
                self._socket.send_multipart([identity, answer])

    def close(self) -> None:
        self._thread.join()
        self._context.destroy(linger=0)


def test_a_broker_of_another_version_is_named_as_such() -> None:
    refusal = errors.UnsupportedVersion("the broker speaks versions 7 to 9", request_id=1)
    answer = orjson.dumps({"v": 1, "id": 1, "error": refusal.to_wire()})
    with closing(Stranger(answer)) as broker:
        with pytest.raises(errors.UnsupportedVersion, match="7 to 9"):
            connect(broker.address, timeout=40)
        (hello,) = broker.heard
        assert (hello["v"], hello["min"], hello["max"], hello["op"]) == (1, 1, 1, "hello")
        assert hello["name"]


@pytest.mark.parametrize(
    "answers",
    [
        (b"", b"\xff\xff", b"[1]", b"7", b'"x"', b"{}", b'{"v":1,"id":99,"ok":{}}'),
        (b'{"v":1,"id":1,"ok":{}}',),
        (b'{"v":1,"id":1,"ok":[]}',),
        (b'{"v":1,"id":1}',),
        (b'{"v":1,"id":1,"error":{"code":"x"}}',),
        (b'{"v":1,"id":1,"ok":{"client":1,"secret":"s","ingress":"x","data":7}}',),
    ],
)
def test_what_a_stranger_answers_is_no_broker(answers: tuple[bytes, ...]) -> None:
    with closing(Stranger(*answers)) as stranger, pytest.raises(errors.ShmbrokerError):
        connect(stranger.address, timeout=0.5)


#: The command line of a program that can't find that it is on the broker's host.
FAR = (
    "import shmbroker.client.remote.reach as reach; reach._near = lambda *_: None; "
    "from shmbroker.cli.main import app; app()"
)


def test_the_command_line_reaches_a_broker_over_the_network(
    broker: Broker, unfound: str, tmp_path: Path
) -> None:
    env = broker.env | {"XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"]}

    def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", FAR, *words]
        return subprocess.run(
            command, env=env, input=given, capture_output=True, text=True, timeout=60, check=False
        )

    there = ["--instance", broker.address]
    done = run("topic", "create", "t", *there)
    assert done.returncode == 1
    assert "token" in done.stderr
    assert "Traceback" not in done.stderr
    env |= {"SHMBROKER_TOKEN": unfound}
    done = run("topic", "create", "t", *there)
    assert done.returncode == 0, done.stderr
    done = run("produce", "t", *there, given="a\nb\n")
    assert done.returncode == 0, done.stderr
    env |= {"SHMBROKER_INSTANCE": broker.address}
    done = run("consume", "t", "--from", "earliest", "--max", "2")
    assert (done.returncode, done.stdout) == (0, "a\nb\n"), done.stderr
    done = run("topic", "list")
    assert (done.returncode, done.stdout.split()[0]) == (0, "t"), done.stderr
    done = run("status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["instance"] == broker.instance
    done = run("backup", str(tmp_path / "backup"))
    assert done.returncode == 1
    assert "run it on the broker's host" in done.stderr


def test_an_answer_names_ends_as_they_are_reached_from_here() -> None:
    told = {
        "client": 1, "secret": "s", "claimed": False, "instance": "i", "data_dir_id": "00" * 16,
        "boot_id": "00" * 16, "runtime_dir": "/run/x", "broker_pid": 1, "heartbeat_ms": 3000,
        "dead_ms": 9000, "ingress": ["tcp://*:9301"], "data": ["tcp://[::]:9302"],
        "events": ["tcp://10.0.0.7:9303"], "data_token": "t",
    }  # fmt: skip
    found = RemoteAttachment.of(told, "tcp://broker.example.org:9300")
    assert found.ingress == "tcp://broker.example.org:9301"
    assert found.data == ("tcp://broker.example.org:9302",)
    assert found.events == "tcp://10.0.0.7:9303"


@pytest.fixture
def keyed(
    broker_of: type[Broker], isolated_env: dict[str, str], tmp_path: Path
) -> Iterator[tuple[Broker, Path]]:
    """A broker that asks for keys, and the directory of a client's."""
    made = broker_of(isolated_env, tmp_path, '[listen]\naddress = "tcp://0.0.0.0:0"\n', "tcp")
    done = made.run("keys", "generate", "--client", "laptop")
    assert done.returncode == 0, done.stderr
    made.start()
    try:
        yield made, made.places.keys_dir / "clients" / "laptop"
    finally:
        made.finish()


def test_with_keys_a_program_produces_and_consumes_and_without_nobody_gets_in(
    keyed: tuple[Broker, Path], tmp_path: Path
) -> None:
    broker, keys = keyed
    address = broker.address.replace("0.0.0.0", "127.0.0.1")
    with connect(address, keys=keys, local=False) as client:
        client.create_topic("t", partitions=1)
        with client.producer() as producer:
            producer.send_many("t", [b"%d" % n for n in range(50_000)])
            producer.flush()
            eventually(lambda: producer.pressure().state == "ok", producer.pressure)
        with client.consumer("t", start="earliest") as consumer:
            count = 0
            while count < 50_000:
                batch = consumer.poll_batch(40)
                assert batch is not None
                count += len(batch)
    with pytest.raises(errors.NoBroker, match="keys="):
        connect(address, local=False, timeout=1.5)
    own = tmp_path / "own"
    done = broker.run("keys", "generate", "--dir", str(own), "--client", "laptop")
    assert done.returncode == 0, done.stderr
    with pytest.raises(errors.NoBroker):  # that of another broker
        connect(address, keys=own / "clients" / "laptop", local=False, timeout=1.5)
    assert broker.run("keys", "revoke", "laptop").returncode == 0
    with pytest.raises((errors.NoBroker, errors.ConfigError)):
        connect(address, keys=keys, local=False, timeout=1.5)


def test_a_broker_that_has_hung_up_before_hello_is_said_is_no_broker() -> None:
    """ZeroMQ then has no place for the message, as after a disconnect, and says so with an error
    of its own."""
    address = "tcp://127.0.0.1:9"
    with zmq.Context() as context:
        desk = Desk(context, address, Credentials())
        try:
            desk.socket.disconnect(address)
            with pytest.raises(errors.NoBroker, match="keys="):
                desk.hello(None, None, 10.0, lambda: False)
        finally:
            desk.close()


@pytest.mark.parametrize("broker_config", ["[listen]\ndead_ms = 300000\n"])
def test_who_leaves_says_goodbye_and_so_does_who_found_the_way_past_the_network(
    broker: Broker,
) -> None:
    """They would count as clients until they are missed, here after five minutes."""
    with connect(broker.address, local=False) as watching:
        mine = watching.connection.attachment.client

        def others() -> list[int]:
            clients = watching.status()["listen"]["clients"]
            return [c["client"] for c in clients if c["client"] != mine]

        with connect(broker.address) as near:
            assert isinstance(near.connection, LocalConnection)
            eventually(lambda: others() == [], others)
        with connect(broker.address, local=False) as far, far.producer():
            assert others() == [far.connection.attachment.client]
        eventually(lambda: others() == [], others)


def test_a_revoked_key_ends_what_is_open_within_seconds_and_nothing_of_another_key(
    keyed: tuple[Broker, Path],
) -> None:
    broker, keys = keyed
    address = broker.address.replace("0.0.0.0", "127.0.0.1")
    assert broker.run("keys", "generate", "--client", "desk").returncode == 0
    stays = keys.with_name("desk")

    def others(client: Client) -> dict[str, Any]:
        """What `status` says of the connections, of all but control."""
        listen = client.status()["listen"]
        return {w["name"]: w.get("connections") for w in listen["workers"]}

    with broker_client(broker) as local:
        local.create_topic("t", partitions=1)
        with (
            connect(address, keys=stays, local=False) as desk,
            desk.producer() as mine,
            desk.consumer("t", start="earliest") as reading,
            connect(address, keys=keys, local=False, reconnect_s=1.0) as laptop,
        ):
            producer, consumer = laptop.producer(), laptop.consumer("t", start="earliest")
            for each in (producer, mine):
                each.send_and_wait("t", b"before", timeout=40)
            for one in (consumer, reading):
                assert [one.poll(40).value for _ in range(2)] == [b"before"] * 2
            eventually(
                lambda: others(local) == {"ingress-0": 2, "reader-0": 2}, lambda: others(local)
            )
            epoch = desk.connection.epoch.value
            assert broker.run("keys", "revoke", "laptop").returncode == 0
            eventually(
                lambda: others(local) == {"ingress-0": 1, "reader-0": 1}, lambda: others(local)
            )
            mine.send_and_wait("t", b"after", timeout=40)
            assert reading.poll(40).value == b"after"
            assert desk.connection.epoch.value == epoch, "it saw nothing of it"
            with pytest.raises(errors.ShmbrokerError):  # nor does anything come that is new
                while True:
                    assert consumer.poll(40) is None
            with pytest.raises(errors.ShmbrokerError):
                producer.send_and_wait("t", b"refused", timeout=40)
            with pytest.raises(errors.ShmbrokerError):
                producer.close(timeout=5)
            consumer.close()
        with local.consumer("t", start="earliest") as consumer:
            found = [consumer.poll(40).value for _ in range(3)]
            assert found == [b"before", b"before", b"after"]
            assert consumer.poll(0) is None


def broker_client(broker: Broker) -> Client:
    """One of this host's, for whom no key counts."""
    return connect(broker.instance)
