"""The acceptor with a writer that has no engine: attach, control, topics, rings, adoption, stop."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from acceptor_harness import HERE, REPOSITORY, Broker, Peer, broker_at
from waiting import eventually

from shmbroker import errors
from shmbroker._core import shm
from shmbroker.config import Places
from shmbroker.workers import detached, program


@pytest.fixture
def places(isolated_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{HERE}")
    return Places.find("t", data_dir=tmp_path / "broker")


@pytest.fixture
def broker(places: Places) -> Iterator[Broker]:
    with broker_at(places) as made:
        made.up()
        yield made


@pytest.fixture
def peer(broker: Broker) -> Iterator[Peer]:
    made = broker.peer()
    yield made
    made.close()


def test_attach_answers_with_everything_that_a_client_needs(peer: Peer, broker: Broker) -> None:
    wanted = {
        "client", "token", "instance", "data_dir", "data_dir_id", "boot_id", "prefix", "control",
        "broker_pid", "writers", "format", "adopted",
    }  # fmt: skip
    assert wanted <= peer.ok.keys()
    assert peer.ok["broker_pid"] == broker.pid
    assert peer.ok["adopted"] is False
    assert {"p", "w0"} <= broker.objects()


def test_sockets_are_closed_to_other_users(broker: Broker) -> None:
    for name in ("attach", "control", "events", "workers"):
        mode = os.stat(broker.places.socket_path(name)).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(broker.places.runtime_dir.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "message", [b"rubbish", b"{}", b'{"v": 1, "op": "status"}', b'{"v": 9, "op": "attach"}']
)
def test_rubbish_on_the_attach_socket_is_answered_and_hung_up(
    broker: Broker, message: bytes
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(40)
        sock.connect(broker.places.socket_path("attach"))
        sock.send(message)
        assert "error" in json.loads(sock.recv(65536))
        assert sock.recv(65536) == b""


def test_control_requests_need_the_token(peer: Peer) -> None:
    request = {"v": 1, "id": 5, "op": "status", "client": peer.ok["client"], "token": "wrong"}
    answer = peer.raw(json.dumps(request).encode())
    assert answer["id"] == 5
    assert "attach" in answer["error"]["message"]
    assert "error" in peer.raw(b"\xff\x00")


def test_unknown_operations_and_bad_arguments_are_named(peer: Peer) -> None:
    assert "allowed: metadata" in peer.refused("explode")["message"]
    assert "'name'" in peer.refused("create_topic", partitions=1)["message"]
    assert "'partitions'" in peer.refused("create_topic", name="t", partitions="2")["message"]
    assert "drain_s" in peer.refused("shutdown", drain_s=-1)["message"]
    assert "writer 77" in peer.refused("open_ingress", writer=77, capacity=1, slots=1)["message"]


def test_a_topic_is_made_described_and_deleted(peer: Peer, broker: Broker) -> None:
    made = peer.ask("create_topic", name="ticks", partitions=3, config={"retention.ms": "1d"})
    topic = made["topics"]["ticks"]
    assert [p["partition"] for p in topic["partitions"]] == [0, 1, 2]
    assert topic["config"]["retention.ms"] == 86_400_000
    places = {(p["writer"], p["slot"]) for p in topic["partitions"]}
    assert len(places) == 3
    assert peer.ask("metadata", topics=["ticks", "none"])["topics"] == made["topics"]
    assert peer.refused("create_topic", name="ticks", partitions=1)["name"] == "TopicExists"
    again = peer.ask("create_topic", name="ticks", partitions=1, if_not_exists=True)
    assert again == made
    assert peer.ask("delete_topic", name="ticks") == {}
    assert peer.ask("metadata")["topics"] == {}
    assert peer.refused("delete_topic", name="ticks")["name"] == "UnknownTopic"
    unassigned = [note for note in broker.noted() if note["op"] == "unassign"]
    assert len(unassigned) == 3
    assert all(note["delete"] for note in unassigned)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "a/b", "partitions": 1}, "InvalidTopic"),
        ({"name": "..", "partitions": 1}, "InvalidTopic"),
        ({"name": "x" * 250, "partitions": 1}, "InvalidTopic"),
        ({"name": "t", "partitions": 0}, "InvalidPartitions"),
        ({"name": "t", "partitions": 10**6}, "InvalidPartitions"),
        ({"name": "t", "partitions": 1, "config": {"flush.ms": 1}}, "InvalidConfig"),
        ({"name": "t", "partitions": 1, "config": {"cleanup.policy": "compact"}}, "InvalidConfig"),
    ],
)
def test_what_can_t_be_a_topic_is_refused_by_name(
    peer: Peer, arguments: dict[str, object], error: str
) -> None:
    assert peer.refused("create_topic", **arguments)["name"] == error
    assert peer.ask("metadata")["topics"] == {}


def test_a_topic_whose_partition_can_t_be_opened_is_undone(peer: Peer) -> None:
    error = peer.refused("create_topic", name="broken", partitions=2)
    assert error["name"] == "PartitionOffline"
    assert "the fake is broken" in error["message"]
    assert peer.ask("metadata")["topics"] == {}


def test_topics_and_producer_ids_survive_a_restart(broker: Broker) -> None:
    peer = broker.peer()
    made = peer.ask("create_topic", name="ticks", partitions=2)
    first = peer.ask("init_producer")["producer_id"]
    peer.close()
    assert broker.down() == 0
    assert broker.objects() == set()
    broker.up()
    peer = broker.peer()
    again = peer.ask("metadata")["topics"]["ticks"]
    assert again["id"] == made["topics"]["ticks"]["id"]
    assert peer.ask("init_producer")["producer_id"] > first
    peer.close()


def test_slots_are_spread_evenly_and_reused_with_a_higher_epoch(peer: Peer) -> None:
    peer.ask("create_topic", name="a", partitions=8)
    status = peer.ask("status")
    loads = [w["partitions"] for w in status["writers"]]
    assert max(loads) - min(loads) <= 1
    assert len(loads) <= status["writers_limit"]


def test_an_ingress_ring_is_made_within_bounds_and_freed(peer: Peer, broker: Broker) -> None:
    ring = peer.ask("open_ingress", writer=0, capacity=300_000, slots=100)
    assert ring["capacity"] == 512 << 10
    assert ring["slots"] == 128
    huge = peer.ask("open_ingress", writer=0, capacity=1 << 40, slots=1 << 40)
    assert huge["capacity"] == 4 << 20
    at = shm.read_ingress(peer.ok["prefix"], ring["ingress"])
    assert at["capacity"] == ring["capacity"]
    assert at["slots"] == ring["slots"]
    assert {f"i{ring['ingress']}", f"r{ring['ingress']}"} <= broker.objects()
    peer.ask("close_ingress", ingress=ring["ingress"])
    peer.ask("close_ingress", ingress=ring["ingress"])  # it is closed: that is what was asked
    assert f"i{ring['ingress']}" not in broker.objects()
    assert f"i{huge['ingress']}" in broker.objects()


def test_a_client_that_hangs_up_leaves_nothing_behind(broker: Broker, peer: Peer) -> None:
    other = broker.peer()
    ring = other.ask("open_ingress", writer=0, capacity=1, slots=1)
    other.close()
    eventually(lambda: f"r{ring['ingress']}" not in broker.objects(), "the ring is still there")
    assert [c["client"] for c in peer.ask("status")["clients"]] == [peer.ok["client"]]
    assert broker.noted()[-2]["op"] == "detach_ingress"  # the last one is our status


def test_one_broker_a_data_directory_and_one_an_instance(broker: Broker, tmp_path: Path) -> None:
    second = Broker(Places.find("other", data_dir=broker.places.data_dir))
    with pytest.raises(errors.DataDirLocked, match=str(broker.pid)):
        second.up()
    third = Broker(Places.find("t", data_dir=tmp_path / "elsewhere"))
    with pytest.raises(errors.ShmbrokerError, match=f"up already .pid {broker.pid}"):
        third.up()
    _unharmed(broker)


def test_a_copy_of_the_data_directory_can_t_take_the_rings(broker: Broker, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "datadir.json").write_bytes((broker.places.data_dir / "datadir.json").read_bytes())
    before = broker.objects()
    with pytest.raises(errors.ShmbrokerError, match="copy"):
        Broker(Places.find("copy", data_dir=copy)).up()
    assert broker.objects() == before


def test_a_killed_acceptor_takes_its_children_with_it_and_is_adopted(broker: Broker) -> None:
    peer = broker.peer()
    made = peer.ask("create_topic", name="ticks", partitions=2)
    ring = peer.ask("open_ingress", writer=0, capacity=1 << 18, slots=64)
    broker.kill()  # asserts that the children are gone
    assert peer.socket.recv(65536) == b""
    assert {"p", "w0", f"i{ring['ingress']}"} <= broker.objects()
    broker.up()
    again = broker.peer(client=peer.ok["client"], token=peer.ok["token"])
    assert again.ok["adopted"] is True
    assert again.ok["claimed"] is True
    assert again.ok["client"] == peer.ok["client"]
    assert again.ok["ingress"] == [ring["ingress"]]
    assert again.ask("metadata")["topics"]["ticks"]["id"] == made["topics"]["ticks"]["id"]
    notes = broker.noted()
    opened = [note for note in notes if note["op"] == "open" and note["writer"] == 0]
    assert [note["adopt"] for note in opened] == [False, True]
    attached = [note["ingress"] for note in notes if note["op"] == "attach_ingress"]
    assert attached == [ring["ingress"]] * 2
    # New ids are above those of before.
    assert again.ask("open_ingress", writer=0, capacity=1, slots=1)["ingress"] > ring["ingress"]
    stranger = broker.peer(client=peer.ok["client"], token="wrong")
    assert stranger.ok["claimed"] is False
    for one in (peer, again, stranger):
        one.close()


SHORT_GRACE = """
import sys
from shmbroker.workers import acceptor, acceptor_main
acceptor.CLAIM_GRACE_S = 4.0
sys.exit(acceptor_main.main(sys.argv))
"""


def test_who_does_not_claim_its_rings_in_time_loses_them_and_nobody_else(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, goes = broker.peer(), broker.peer()
    kept = stays.ask("open_ingress", writer=0, capacity=1, slots=1)["ingress"]
    lost = goes.ask("open_ingress", writer=0, capacity=1, slots=1)["ingress"]
    broker.kill()

    def command(*args: Any) -> list[str]:
        python, *_, given = program.command(*args)
        return [python, "-c", SHORT_GRACE, given]

    monkeypatch.setattr(detached, "command", command)
    broker.up()
    began = time.monotonic()
    again = broker.peer(client=stays.ok["client"], token=stays.ok["token"])
    assert again.ok["claimed"] is True
    assert {f"i{kept}", f"i{lost}"} <= broker.objects(), "there is time to claim them"
    assert [c["connected"] for c in again.ask("status")["clients"]] == [True, False]
    eventually(lambda: f"i{lost}" not in broker.objects(), "the unclaimed ring is still there")
    assert time.monotonic() - began >= 2.0
    detached_rings = [n["ingress"] for n in broker.noted() if n["op"] == "detach_ingress"]
    assert detached_rings == [lost], "its writer had what was published first"
    (client,) = again.ask("status")["clients"]
    assert [ring["ingress"] for ring in client["ingress"]] == [kept]
    late = broker.peer(client=goes.ok["client"], token=goes.ok["token"])
    assert late.ok["claimed"] is False
    for one in (stays, goes, again, late):
        one.close()


def test_closing_is_told_before_the_hang_up(broker: Broker, peer: Peer) -> None:
    peer.ask("shutdown", drain_s=5)
    event = json.loads(peer.socket.recv(65536))
    assert event == {"v": 1, "event": "closing"}
    assert peer.socket.recv(65536) == b""
    assert broker.wait() == 0
    assert broker.objects() == set()
    left = {path.name for path in broker.places.runtime_dir.iterdir()}
    assert left == {"broker.log"}


def test_rings_of_another_boot_are_swept(places: Places) -> None:
    with broker_at(places) as broker:
        broker.up()
        peer = broker.peer()
        prefix, dir_id = peer.ok["prefix"], bytes.fromhex(peer.ok["data_dir_id"])
        peer.close()
        broker.down()
        other = b"another boot 000"
        shm.create(f"{prefix}-w0", shm.KIND_WRITER, 0, shm.table_bytes(8), other, dir_id)
        shm.create(f"{prefix}-l0.1.1", shm.KIND_LOG, 0, shm.log_bytes(65536), other, dir_id)
        broker.up()
        peer = broker.peer()
        assert peer.ok["adopted"] is False
        peer.close()
        assert broker.objects() == {"p", "w0"}


def test_status_names_everything(broker: Broker, peer: Peer) -> None:
    peer.ask("create_topic", name="ticks", partitions=1)
    peer.ask("open_ingress", writer=0, capacity=1, slots=1)
    status = peer.ask("status")
    assert {p["role"] for p in status["processes"]} == {"acceptor", "writer", "resource-tracker"}
    assert all(p["cpus"] for p in status["processes"])
    assert status["endpoints"].keys() == {"attach", "control", "events", "workers"}
    assert status["partitions"][0]["segments"] == 1
    (client,) = status["clients"]
    assert client["pid"] == os.getpid()
    assert client["ingress"][0]["fill_bytes"] == 0
    assert status["memory"]["used_bytes"] <= status["memory"]["budget_bytes"]


def test_a_broken_configuration_says_where(places: Places, tmp_path: Path) -> None:
    config = tmp_path / "broker.toml"
    config.write_text("[broker]\n\nwriterz = 3\n")
    with pytest.raises(errors.ConfigError, match=r"broker.toml:3.*writerz"):
        Broker(Places.find("t", data_dir=places.data_dir, config=config)).up()


def _unharmed(broker: Broker) -> None:
    peer = broker.peer()
    peer.ask("metadata")
    peer.close()
