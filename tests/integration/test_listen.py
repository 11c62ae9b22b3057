"""A broker that listens: what is bound and told, who is let in, and how its front ends live."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_peer import RemotePeer

sys.path.insert(0, str(Path(__file__).parent))

from acceptor_harness import HERE, REPOSITORY, Broker, broker_at
from waiting import best_of, eventually

from shmbroker import errors
from shmbroker.config import Places
from shmbroker.control.ports import NAMES
from shmbroker.control.tokens import find_token

ANYWHERE = "tcp://127.0.0.1:0"


@pytest.fixture
def broker(
    isolated_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Broker]:
    support = REPOSITORY / "tests" / "support"
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{HERE}:{support}")
    with broker_at(Places.find("t", data_dir=tmp_path / "broker")) as made:
        yield made


def listen_of(broker: Broker) -> dict[str, Any]:
    peer = broker.peer()
    found: dict[str, Any] = peer.ask("status")["listen"]
    peer.close()
    return found


def token_of(broker: Broker) -> str:
    return broker.places.token_file.read_text().strip()


def front_log(broker: Broker) -> list[dict[str, Any]]:
    path = broker.places.data_dir / "front.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def listening_ports(pids: set[int]) -> set[int]:
    """TCP ports on which these processes listen."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def pids_of(broker: Broker) -> set[int]:
    peer = broker.peer()
    pids = {p["pid"] for p in peer.ask("status")["processes"] if p["pid"]}
    peer.close()
    return pids


# What is bound


def test_nothing_listens_and_no_front_end_runs_unless_it_is_asked_for(broker: Broker) -> None:
    broker.up()
    assert listening_ports(pids_of(broker)) == set()
    assert listen_of(broker) is None
    assert not broker.places.token_file.exists()
    peer = broker.peer()
    assert {p["role"] for p in peer.ask("status")["processes"]} <= {
        "acceptor", "writer", "resource-tracker"
    }  # fmt: skip
    peer.close()


def test_port_zero_picks_ports_below_the_ephemeral_range_and_keeps_them(broker: Broker) -> None:
    broker.up(address=ANYWHERE, readers=2)
    first = listen_of(broker)
    ports = {int(first[name][0].rpartition(":")[2]) for name in NAMES}
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(ports) == 4
    assert max(ports) < below
    assert listening_ports(pids_of(broker)) == ports
    token = token_of(broker)
    assert stat.S_IMODE(broker.places.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE((broker.places.data_dir / "listen.json").stat().st_mode) == 0o600
    data_token = front_log(broker)[-1]["token"]
    assert broker.down() == 0
    assert not broker.places.token_file.exists()
    broker.up(address=ANYWHERE, readers=2)
    assert listen_of(broker)["control"] == first["control"]
    assert token_of(broker) == token
    assert front_log(broker)[-1]["token"] not in (data_token, token)


def test_a_kept_port_that_another_program_took_is_replaced(broker: Broker) -> None:
    broker.up(address=ANYWHERE)
    port = int(listen_of(broker)["ingress"][0].rpartition(":")[2])
    assert broker.down() == 0
    with socket.create_server(("127.0.0.1", port)):
        broker.up(address=ANYWHERE)
        assert f"tcp://127.0.0.1:{port}" not in listen_of(broker)["ingress"]


def test_two_instances_listen_beside_each_other(
    broker: Broker, tmp_path: Path, isolated_env: dict[str, str]
) -> None:
    broker.up(address=ANYWHERE)
    with broker_at(Places.find("u", data_dir=tmp_path / "other")) as other:
        other.up(address=ANYWHERE)
        mine, others = listen_of(broker), listen_of(other)
        assert not {e for n in NAMES for e in mine[n]} & {e for n in NAMES for e in others[n]}
        assert find_token(mine["control"][0]) == token_of(broker)
        assert find_token(others["control"][0]) == token_of(other)
        with RemotePeer(mine["control"][0]) as peer:
            assert peer.refused("hello", token=token_of(other))["code"] == 58


@pytest.mark.parametrize(
    ("taken", "key"),
    [
        (0, "listen.address"),
        (1, "listen.ingress_port"),
        (2, "listen.data_port"),
        (3, "listen.events_port"),
    ],
)
def test_a_port_in_use_is_an_error_that_names_it_its_key_and_the_way_out(
    broker: Broker, taken: int, key: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(errors.ConfigError) as caught:
            broker.up(address=f"tcp://127.0.0.1:{port - taken}")
    assert caught.value.key == key
    assert f"tcp://127.0.0.1:{port} is in use" in str(caught.value)
    assert "port 0, which picks a free one" in str(caught.value)
    assert not broker.places.token_file.exists()


def test_ports_may_be_chosen_one_by_one(broker: Broker) -> None:
    free = []
    for _ in range(4):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            free.append(probe.getsockname()[1])
    control, ingress, data, events = free
    address = f"tcp://127.0.0.1:{control}"
    broker.up(address=address, ingress_port=ingress, data_port=data, events_port=events)
    assert listening_ports(pids_of(broker)) == set(free)
    assert broker.down() == 0
    with pytest.raises(errors.ConfigError, match="asked for twice"):
        broker.up(address=f"tcp://127.0.0.1:{control}", ingress_port=control)
    with pytest.raises(errors.ConfigError, match="leaves none behind it"):
        broker.up(address="tcp://127.0.0.1:65535")
    with pytest.raises(errors.ConfigError, match="no name that leads to one"):
        broker.up(address="tcp://no.such.host.invalid:9300", insecure=True)


def test_unix_sockets_serve_control_and_only_their_user(broker: Broker) -> None:
    broker.up(unix=True, readers=2)
    listen = listen_of(broker)
    directory = broker.places.runtime_dir
    assert listen["control"] == [f"ipc://{directory}/remote-control"]
    assert listen["data"] == [
        f"unix://{directory}/remote-data",
        f"unix://{directory}/remote-data-1",
    ]
    for name in ("remote-control", "remote-ingress", "remote-data", "remote-data-1"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    assert listening_ports(pids_of(broker)) == set()
    token = find_token(listen["control"][0])
    with RemotePeer(listen["control"][0]) as peer:
        told = peer.hello(token)
        assert told["ingress"] == [f"ipc://{directory}/remote-ingress"]
        assert told["data"] == listen["data"]
        assert told["curve"] is False
    assert broker.down() == 0
    left = [path.name for path in directory.iterdir()] if directory.exists() else []
    assert all(name.startswith("broker.log") for name in left)


# Front ends


def test_up_waits_until_all_that_listens_is_bound(broker: Broker) -> None:
    broker.places.data_dir.mkdir(parents=True)
    broker.up()
    assert broker.down() == 0
    (broker.places.data_dir / "fake.reader-0").write_text("late-hello")
    began = time.monotonic()
    broker.up(address=ANYWHERE)
    assert time.monotonic() - began > 0.7
    found = {w["name"]: w for w in listen_of(broker)["workers"]}
    assert set(found) == {"reader-0", "ingress-0"}
    assert all(w["state"] == "ready" and w["connections"] == 3 for w in found.values())


@pytest.mark.parametrize("name", ["reader-0", "ingress-0"])
def test_a_killed_front_end_is_back_within_a_second_on_its_port(broker: Broker, name: str) -> None:
    broker.up(address=ANYWHERE)
    before = pids_of(broker)
    ports = listening_ports(before)
    peer = broker.peer()

    def away_s() -> float:
        pid = peer.pid_of(name)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda: _is_ready(peer, name), f"{name} did not come back")
        took = time.monotonic() - began
        assert peer.pid_of(name) != pid
        assert listening_ports(pids_of(broker)) == ports
        return took

    away_s()
    best_of(6, 1.0, away_s)
    peer.close()


def _is_ready(peer: Any, name: str) -> bool:
    found = [w for w in peer.ask("status")["listen"]["workers"] if w["name"] == name]
    return bool(found[0]["state"] == "ready" and found[0]["answered"])


def test_a_front_end_that_dies_at_its_start_is_started_again(broker: Broker) -> None:
    broker.up()
    assert broker.down() == 0
    (broker.places.data_dir / "fake.ingress-0").write_text("die-once")
    broker.up(address=ANYWHERE)
    (found,) = [w for w in listen_of(broker)["workers"] if w["name"] == "ingress-0"]
    assert found["restarts"] == 1


def test_front_ends_stop_before_the_writers_do(broker: Broker) -> None:
    broker.up(address=ANYWHERE, readers=2)
    assert broker.down() == 0
    stops = [n["name"] for n in front_log(broker) if n["op"] == "stop"]
    assert sorted(stops) == ["ingress-0", "reader-0", "reader-1"]
    front_at = (broker.places.data_dir / "front.log").stat().st_mtime_ns
    assert broker.noted()[-1]["op"] == "stop"
    assert (broker.places.data_dir / "fake.log").stat().st_mtime_ns > front_at
    assert broker.objects() == set()


def test_a_front_end_that_hangs_keeps_no_writer_from_draining(broker: Broker) -> None:
    broker.up()
    assert broker.down() == 0
    (broker.places.data_dir / "fake.reader-0").write_text("hang-stop")
    broker.up(address=ANYWHERE)
    peer = broker.peer()
    peer.ask("shutdown", drain_s=0.2)
    assert broker.wait() == 0
    peer.close()
    assert "front end did not drain" in broker.log()
    assert broker.noted()[-1]["op"] == "stop"
    assert broker.objects() == set()


def test_a_front_end_that_is_away_is_neither_waited_for_nor_started_again(broker: Broker) -> None:
    broker.up(address=ANYWHERE)
    (broker.places.data_dir / "fake.reader-0").write_text("late-hello")
    peer = broker.peer()
    os.kill(peer.pid_of("reader-0"), signal.SIGKILL)
    began = time.monotonic()
    peer.ask("shutdown", drain_s=30)
    assert broker.wait() == 0
    assert time.monotonic() - began < 25
    peer.close()
    assert broker.objects() == set()


def test_a_second_ctrl_c_ends_front_ends_at_once(broker: Broker) -> None:
    broker.up()
    assert broker.down() == 0
    (broker.places.data_dir / "fake.reader-0").write_text("hang-stop")
    broker.up(address=ANYWHERE)
    os.kill(broker.pid, signal.SIGINT)
    eventually(lambda: "stop" in [n["op"] for n in front_log(broker)], "no stop came")
    began = time.monotonic()
    assert broker.down(signal.SIGINT) == 130
    assert time.monotonic() - began < 20
