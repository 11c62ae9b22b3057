"""Remote producers of a whole broker that listens: restarted, killed and mended under them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import psutil
import pytest
import zmq
from ingress_rig import Remote, Topic
from remote_peer import RemotePeer

from shmbroker import errors

Context = zmq.Context[zmq.Socket[bytes]]
PRODUCERS = 3
PATIENCE_S = 40.0


@pytest.fixture(params=["tcp", "ipc"])
def broker_config(request: pytest.FixtureRequest) -> str:
    listen = 'address = "tcp://127.0.0.1:0"' if request.param == "tcp" else "unix = true"
    return f"[broker]\nwriters = 2\n[listen]\n{listen}\nheartbeat_ms = 200\ndead_ms = 1000\n"


@pytest.fixture
def context() -> Iterator[Context]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


class Elsewhere(Remote):
    """A producer that asks control for the token, again when a new broker doesn't know the old."""

    def __init__(self, load: Load, context: Context, address: str, producer_id: int) -> None:
        self.load, self.shown = load, b""
        super().__init__(context, address, producer_id, padding=2000, find_token=self.find)

    def find(self) -> bytes:
        """The token of the present broker."""
        self.shown = self.shown or self.load.hello()["data_token"].encode()
        return self.shown

    def step(self, wait_ms: int = 20) -> None:
        """As Remote's."""
        try:
            super().step(wait_ms)
        except errors.AuthenticationFailed:
            self.shown = b""
            self.greet()


class Load:
    """Producers elsewhere that go on whatever happens, and what must have come of it."""

    def __init__(self, broker: Any, context: Context) -> None:
        self.broker = broker
        with broker.client() as client:
            client.create_topic("load", partitions=2)
            self.topic = Topic.of(client, "load")
            ids = [client.connection.request("init_producer")["producer_id"]
                   for _ in range(PRODUCERS)]  # fmt: skip
            control = client.status()["listen"]["control"]
        self.control = control[0]
        address = self.hello()["ingress"][0]
        self.remotes = [Elsewhere(self, context, address, n) for n in ids]

    def hello(self) -> dict[str, Any]:
        """What control answers; waits for a broker that is just stopping, or being started."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            # A request that a dying broker took with it is answered by none: ask again.
            with RemotePeer(self.control, limit_s=2) as peer:
                try:
                    return peer.hello(self.broker.places.token_file.read_text().strip())
                except (FileNotFoundError, AssertionError, TimeoutError):
                    assert time.monotonic() < deadline
                    time.sleep(0.01)

    def run(self, batches: int, disturb: Callable[[], None], times: int) -> None:
        """Sends so many of each; `disturb` is called in the midst, on another thread."""
        moments = set(random.Random(9).sample(range(batches // 5, batches), times))
        with ThreadPoolExecutor(1) as beside:
            disturbances = []
            for n in range(batches):
                if n in moments:
                    wait(disturbances)
                    disturbances.append(beside.submit(disturb))
                for remote in self.remotes:
                    remote.produce(self.topic, n % 2)
        for done in disturbances:
            done.result()
        for remote in self.remotes:
            remote.settled()
        self.check(batches)

    def check(self, batches: int) -> None:
        """Every record once, in the order of its producer and partition."""
        assert not any(remote.refused for remote in self.remotes)
        found: dict[int, list[bytes]] = {0: [], 1: []}
        count = 3 * batches * PRODUCERS
        with self.broker.client() as client, client.consumer("load", start="earliest") as consumer:
            while sum(map(len, found.values())) < count:
                batch = consumer.poll_batch(timeout=40)
                assert batch is not None
                found[batch.partition] += [record.value.rstrip() for record in batch.records()]
        for remote in self.remotes:
            own = b"%d." % remote.producer_id
            wanted = [own + b"%d" % n for n in range(3 * batches // 2)]
            for values in found.values():
                assert [value for value in values if value.startswith(own)] == wanted
            remote.close()


def test_ingress_that_dies_is_mended_under_load(broker: Any, context: Context) -> None:
    def kill() -> None:
        (ingress,) = broker.workers("ingress-0")
        ingress.kill()
        psutil.wait_procs([ingress], PATIENCE_S)
        while not broker.workers("ingress-0"):
            time.sleep(0.01)

    Load(broker, context).run(150, kill, 3)


def test_a_broker_that_is_killed_whole_is_a_pause_to_remote_producers(
    broker: Any, context: Context
) -> None:
    def kill() -> None:
        broker.kill9(everything=True)
        broker.start()

    load = Load(broker, context)
    load.run(150, kill, 2)


def test_a_broker_that_is_restarted_in_order_is_a_pause_to_remote_producers(
    broker: Any, context: Context
) -> None:
    Load(broker, context).run(150, broker.restart, 2)
