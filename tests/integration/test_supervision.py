"""Workers that die, hang, refuse: noticed, replaced, waited for, stopped in order or at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from acceptor_harness import HERE, REPOSITORY, Broker, broker_at
from waiting import best_of, eventually

from shmbroker import errors
from shmbroker.config import Places


@pytest.fixture
def broker(
    isolated_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Broker]:
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{HERE}")
    with broker_at(Places.find("t", data_dir=tmp_path / "broker")) as made:
        yield made


def trick(broker: Broker, writer: int, words: str) -> None:
    broker.places.data_dir.mkdir(exist_ok=True)
    if not (broker.places.data_dir / "datadir.json").exists():
        broker.up()
        assert broker.down() == 0
    (broker.places.data_dir / f"fake.{writer}").write_text(words)


def test_a_killed_writer_is_back_within_a_second_and_knows_its_rings(broker: Broker) -> None:
    broker.up()
    peer = broker.peer()
    peer.ask("create_topic", name="ticks", partitions=1)
    ring = peer.ask("open_ingress", writer=0, capacity=1, slots=1)["ingress"]

    def away_s() -> float:
        before = peer.pid_of("writer-0")
        os.kill(before, signal.SIGKILL)
        began = time.monotonic()
        peer.ask("create_topic", name=f"t{before}", partitions=1)  # waits for the new one
        peer.ask("open_ingress", writer=0, capacity=1, slots=1)
        took = time.monotonic() - began
        assert peer.pid_of("writer-0") != before
        return took

    away_s()
    away_s()
    best_of(6, 1.0, away_s)
    assert peer.socket.fileno() >= 0  # the attachment stayed
    after = [n for n in broker.noted() if n["pid"] == peer.pid_of("writer-0")]
    assert after[0]["op"] == "open"
    assert after[0]["adopt"] is True
    assert ring in [n["ingress"] for n in after if n["op"] == "attach_ingress"]
    peer.close()


def test_a_stopped_process_is_not_taken_for_a_dead_one(broker: Broker) -> None:
    broker.up()
    peer = broker.peer()
    pid = peer.pid_of("writer-0")
    os.kill(pid, signal.SIGSTOP)
    number = peer.send("create_topic", name="later", partitions=1)
    assert peer.pid_of("writer-0") == pid
    os.kill(pid, signal.SIGCONT)
    assert "ok" in peer.receive(number)
    peer.close()


def test_a_worker_that_dies_at_its_start_is_started_again(broker: Broker) -> None:
    trick(broker, 0, "die-once")
    broker.up()
    peer = broker.peer()
    (writer,) = [p for p in peer.ask("status")["processes"] if p["name"] == "writer-0"]
    assert writer["restarts"] == 1
    peer.close()


def test_requests_wait_while_the_writer_opens(broker: Broker) -> None:
    broker.up()
    trick(broker, 0, "slow-open")
    peer = broker.peer()
    os.kill(peer.pid_of("writer-0"), signal.SIGKILL)
    began = time.monotonic()
    peer.ask("open_ingress", writer=0, capacity=1, slots=1)
    assert time.monotonic() - began >= 0.7
    peer.close()


def test_a_hang_up_while_the_writer_is_away_frees_the_ring_later(broker: Broker) -> None:
    broker.up()
    trick(broker, 0, "slow-open")
    other, peer = broker.peer(), broker.peer()
    other.ask("open_ingress", writer=0, capacity=1, slots=1)
    os.kill(peer.pid_of("writer-0"), signal.SIGKILL)
    other.close()
    eventually(lambda: broker.objects() == {"p", "w0"}, "the ring is still there")
    ops = [n["op"] for n in broker.noted() if n["pid"] == peer.pid_of("writer-0")]
    assert ops[:3] == ["open", "attach_ingress", "detach_ingress"]
    peer.close()


def test_a_writer_that_refuses_to_open_is_tried_again(broker: Broker) -> None:
    trick(broker, 0, "refuse-open")
    with pytest.raises(errors.TimedOut, match="not ready"):
        from shmbroker.config import load
        from shmbroker.workers import detached

        detached.start(broker.places, load(None), limit_s=1.5, writer_module="fake_writer")
    peer = broker.peer()
    broker.pid = peer.ok["broker_pid"]
    assert "the fake refuses" in broker.log()
    (broker.places.data_dir / "fake.0").unlink()
    peer.ask("create_topic", name="now", partitions=1)
    peer.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_order(broker: Broker, signum: int) -> None:
    broker.up()
    assert broker.down(signum) == 0
    assert broker.noted()[-1]["op"] == "stop"
    assert broker.objects() == set()


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_rings(broker: Broker) -> None:
    trick(broker, 0, "hang-stop")
    broker.up()
    os.kill(broker.pid, signal.SIGINT)
    eventually(lambda: broker.noted()[-1]["op"] == "stop", "no stop came")
    began = time.monotonic()
    assert broker.down(signal.SIGINT) == 130
    assert time.monotonic() - began < 20
    assert {"p", "w0"} <= broker.objects()
    (broker.places.data_dir / "fake.0").unlink()
    broker.up()
    peer = broker.peer()
    assert peer.ok["adopted"] is True
    peer.close()


def test_a_writer_killed_while_it_stops_comes_back_to_drain(broker: Broker) -> None:
    trick(broker, 0, "hang-stop")
    broker.up()
    peer = broker.peer()
    pid = peer.pid_of("writer-0")
    os.kill(broker.pid, signal.SIGTERM)
    eventually(lambda: broker.noted()[-1]["op"] == "stop", "no stop came")
    (broker.places.data_dir / "fake.0").unlink()
    os.kill(pid, signal.SIGKILL)
    assert broker.wait() == 0
    assert [n["op"] for n in broker.noted()][-3:] == ["stop", "open", "stop"]
    assert broker.objects() == set()
    peer.close()
