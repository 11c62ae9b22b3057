"""Pressure as programs elsewhere see it: told over TCP, and shown by whom it makes wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from ingress_rig import PATIENCE_S, Remote, Topic
from remote_peer import RemotePeer

from shmbroker.client.pressure import Spot
from shmbroker.client.remote.pressure import HeardPressures
from shmbroker.control.pressure import Thresholds


@pytest.fixture
def broker_config() -> str:
    config = '[broker]\nwriters = 1\n[memory]\nbudget_bytes = "16MiB"\nring_max_bytes = "1MiB"\n'
    return config + '[listen]\naddress = "tcp://127.0.0.1:0"\n[log]\nmax.message.bytes = "256KiB"\n'


@pytest.fixture
def context() -> Iterator[Any]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


def eventually(condition: Callable[[], Any], what: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.02)


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
        assert level().state == "ok"
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
        said = slow_broker.run("status").stdout
        assert "a test (elsewhere, by ingress-0) waits for t-0" in said
        disk.fast()
        producer.settled()
        eventually(lambda: level().state == "ok", level)
        assert client.status()["waits"] == []
        heard.close()
        producer.close()
