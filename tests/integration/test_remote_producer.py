"""Producers over the network against a real broker: what breaks underneath loses nothing, doubles
nothing, and turns nothing round."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tcp_proxy import TcpProxy
from waiting import best_of, eventually

from shmbroker import errors
from shmbroker.addresses import parse_tcp
from shmbroker.client.client import Client, connect
from shmbroker.client.remote import hello
from shmbroker.client.remote.connection import RemoteConnection

if TYPE_CHECKING:
    from conftest import Broker


@pytest.fixture
def reach() -> str:
    return "tcp"


class Wires:
    """The ways to control and ingress, each through a proxy."""

    def __init__(self, address: str) -> None:
        self.control = TcpProxy(parse_tcp(address)[1])
        self.address = self.control.address
        self._ingress: TcpProxy | None = None

    def reached(self, endpoint: str, _address: str) -> str:
        if self._ingress is None and endpoint.startswith("tcp"):
            self._ingress = TcpProxy(parse_tcp(endpoint)[1])
        if self._ingress is not None and endpoint.endswith(f":{self._ingress.target}"):
            return self._ingress.address
        return endpoint

    @property
    def ingress(self) -> TcpProxy:
        assert self._ingress is not None
        return self._ingress

    def close(self) -> None:
        self.control.close()
        if self._ingress is not None:
            self._ingress.close()


@pytest.fixture
def wires(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wires]:
    with closing(Wires(broker.address)) as made:
        token = (broker.places.runtime_dir / "token").read_text().strip()
        monkeypatch.setenv("SHMBROKER_TOKEN", token)
        monkeypatch.setattr(hello, "_reached", made.reached)
        yield made


def through(wires: Wires, **options: Any) -> Client:
    return connect(wires.address, local=False, **options)


def values(client: Client, topic: str) -> list[bytes | None]:
    found: list[bytes | None] = []
    with client.consumer(topic, start="earliest") as consumer:
        ends = sum(consumer.end_offsets().values())
        while len(found) < ends:
            batch = consumer.poll_batch(40)
            assert batch is not None, f"{len(found)} of {ends}"
            found += batch.values()
    return found


class Load:
    """A thread that sends numbers until it is told to stop."""

    def __init__(self, producer: Any, topic: str, size: int = 200) -> None:
        self.sent = 0
        self._producer, self._topic, self._pad = producer, topic, b" " * size
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._producer.send(self._topic, b"%d" % self.sent + self._pad)
                self.sent += 1
                if self.sent % 50 == 0:
                    time.sleep(0.0005)
        except BaseException as error:
            self._failed = error

    def reaches(self, count: int) -> None:
        eventually(lambda: self.sent >= count or self._failed is not None, lambda: self.sent)

    def stop(self) -> int:
        self._stop.set()
        self._thread.join(90)
        assert not self._thread.is_alive()
        if self._failed is not None:
            raise self._failed
        self._producer.flush(40)
        return self.sent


def check(client: Client, topic: str, count: int) -> None:
    """Exactly the numbers below `count`, in order."""
    got = [int(v) for v in values(client, topic) if v is not None]
    assert got == list(range(count))


@pytest.mark.parametrize("seed", [1])
def test_connections_cut_in_the_middle_of_batches_lose_and_double_nothing(
    broker: Broker, wires: Wires, seed: int
) -> None:
    rng = random.Random(seed)
    with through(wires) as client:
        client.create_topic("cut", partitions=1)
        with client.producer() as producer:
            load = Load(producer, "cut", 2000)
            load.reaches(100)
            for _ in range(6):
                before = wires.ingress.cuts
                wires.ingress.cut_after(rng.choice(["up", "down"]), rng.randrange(1, 40_000))
                eventually(
                    lambda before=before: wires.ingress.cuts > before, lambda: "it did not happen"
                )
                if rng.random() < 0.3:
                    wires.control.cut()
            count = load.stop()
        check(client, "cut", count)


def test_control_cut_is_a_pause_under_the_same_client(broker: Broker, wires: Wires) -> None:
    with through(wires) as client:
        client.create_topic("pause", partitions=1)
        number = client.connection.attachment.client
        with client.producer() as producer:
            producer.send_and_wait("pause", b"0", timeout=40)
            for n in range(1, 4):
                epoch = client.connection.epoch.value
                wires.control.cut()
                eventually(
                    lambda epoch=epoch: client.connection.epoch.value > epoch + 1, lambda: ""
                )
                producer.send_and_wait("pause", b"%d" % n, timeout=40)
                assert client.topics() == ["pause"]
        assert client.connection.attachment.client == number
        check(client, "pause", 4)


def test_a_killed_ingress_process_under_load_costs_a_pause(broker: Broker, wires: Wires) -> None:
    with through(wires) as client:
        client.create_topic("load", partitions=1)
        with client.producer() as producer:
            load = Load(producer, "load")
            for n in range(1, 4):
                load.reaches(3000 * n)
                (process,) = broker.workers("ingress")
                process.send_signal(signal.SIGKILL)
                process.wait(40)
                eventually(lambda: len(broker.workers("ingress")) == 1, lambda: "it did not happen")
            count = load.stop()
        check(client, "load", count)


def test_a_killed_writer_and_a_restart_under_load_cost_a_pause(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("load", partitions=1)
        with client.producer() as producer:
            load = Load(producer, "load")
            load.reaches(2000)
            for writer in broker.workers():
                writer.send_signal(signal.SIGKILL)
            load.reaches(load.sent + 2000)
            broker.restart()
            load.reaches(load.sent + 2000)
            broker.kill9(everything=True)
            broker.start()
            load.reaches(load.sent + 2000)
            count = load.stop()
        check(client, "load", count)


def test_without_sequences_nothing_is_sent_twice(broker: Broker, wires: Wires) -> None:
    """What was on its way at a break may be in the log: it is unknown, and goes no second time."""
    with through(wires) as client:
        client.create_topic("once", partitions=1)
        producer = client.producer(idempotent=False)
        producer.send_and_wait("once", b"first", timeout=40)
        wires.ingress.cut_after("down", 1)  # it is appended, and its answer is lost
        receipt = producer.send("once", b"second")
        with pytest.raises(errors.OutcomeUnknown):
            receipt.result(40)
        producer.send_and_wait("once", b"third", timeout=40)
        producer.close()
        assert values(client, "once") == [b"first", b"second", b"third"]


def test_a_stopped_broker_throttles_with_bounded_memory(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("slow", partitions=1)
        with client.producer(max_block_ms=300) as producer:
            producer.send_and_wait("slow", b"", timeout=40)
            (ingress,) = broker.workers("ingress")
            ingress.suspend()
            try:
                before = psutil.Process().memory_info().rss
                value = os.urandom(100_000)
                sent = 0
                with pytest.raises(errors.BufferFull):
                    while sent < 5000:
                        producer.send("slow", value)
                        sent += 1
                assert psutil.Process().memory_info().rss - before < 64 << 20
            finally:
                ingress.resume()
            producer.flush(40)
        assert len(values(client, "slow")) == sent + 1


def test_waits_end_when_another_thread_closes_the_client(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=1)
    (ingress,) = broker.workers("ingress")
    best_of(4, 1.0, lambda: waits_end_after_s(broker.client(), ingress))


def waits_end_after_s(client: Client, ingress: psutil.Process) -> float:
    """How long the last of all waits for a stopped broker goes on when the client is closed."""
    producer = client.producer()
    producer.send_and_wait("t", b"", timeout=40)
    ingress.suspend()
    ended: list[tuple[BaseException, float]] = []

    def wait(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            ended.append((error, time.monotonic()))

    try:
        receipt = producer.send("t", b"x")
        waits = [receipt.result, producer.flush, lambda: [producer.send("t", bytes(99_999))
                 for _ in range(999)]]  # fmt: skip
        threads = [threading.Thread(target=wait, args=(call,)) for call in waits]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        begun = time.monotonic()
        client.connection.close()
        for thread in threads:
            thread.join(40)
        assert len(ended) == 3
        assert all(isinstance(error, errors.ClosedError) for error, _ in ended), ended
    finally:
        ingress.resume()
    producer._closed = True
    client.close()
    return max(at for _, at in ended) - begun


def test_a_published_record_outlives_the_end_of_its_with_block(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=1)
    with pytest.raises(KeyError), broker.client() as client:
        producer = client.producer()
        with producer:
            for n in range(1000):
                producer.send("t", b"%d" % n)
            raise KeyError
    with broker.client() as client:
        eventually(lambda: len(values(client, "t")) == 1000, lambda: "it did not happen")


def test_a_forked_child_finds_forked_error_and_harms_nobody(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=1)
        producer = client.producer()
        producer.send_and_wait("t", b"0", timeout=40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for call in (client.topics, lambda: producer.send("t", b"")):
                    with pytest.raises(errors.ForkedError):
                        call()
                del producer, client
                gc.collect()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        producer.send_and_wait("t", b"1", timeout=40)
        producer.close()
        check(client, "t", 2)


def test_rejections_break_the_chain_and_the_producer_goes_on(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=1)
        with client.producer() as producer:
            producer.send_and_wait("t", b"0", timeout=40)
            client.delete_topic("t")
            with pytest.raises(errors.UnknownTopic):
                for _ in range(3):
                    producer.send_and_wait("t", b"x", timeout=40)
            client.create_topic("t", partitions=1)
            producer.send_and_wait("t", b"0", timeout=40)
            producer.send_and_wait("t", b"1", timeout=40)
        check(client, "t", 2)


def test_a_client_that_the_broker_has_forgotten_says_hello_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=1)
        connection = client.connection
        assert isinstance(connection, RemoteConnection)
        told = connection.attachment
        object.__setattr__(told, "token", "no secret of ours")  # what the broker finds wrong
        assert client.topics() == ["t"]
        assert connection.attachment.client != told.client
        with client.producer() as producer:
            producer.send_and_wait("t", b"0", timeout=40)


@pytest.mark.parametrize("broker_config", ["[listen]\nheartbeat_ms = 300\ndead_ms = 1000\n"])
@pytest.mark.parametrize("which", ["control", "ingress", "both"])
def test_a_wire_that_falls_silent_is_given_up_and_found_again(
    broker: Broker, wires: Wires, which: str
) -> None:
    """Nobody closes anything: only heartbeats tell."""
    with through(wires) as client:
        assert client.connection.attachment.dead_s == 1.0
        client.create_topic("t", partitions=1)
        with client.producer() as producer:
            load = Load(producer, "t")
            load.reaches(1000)
            silent = [w for name, w in (("control", wires.control), ("ingress", wires.ingress))
                      if which in (name, "both")]  # fmt: skip
            before = [wire.connections for wire in silent]
            for wire in silent:
                wire.stall()
            if which == "ingress":
                eventually(lambda: wires.ingress.connections > before[0], lambda: "not given up")
            else:
                eventually(lambda: client.connection.epoch.value & 1 == 1, lambda: "not given up")
            for wire in silent:
                wire.flow()
                wire.cut()  # what stood still in the proxy is not the wire any more
            load.reaches(load.sent + 1000)
            count = load.stop()
        check(client, "t", count)


@pytest.mark.parametrize("broker_config", ["[listen]\nheartbeat_ms = 300\ndead_ms = 2000\n"])
def test_a_client_that_does_nothing_stays_known(broker: Broker, wires: Wires) -> None:
    with through(wires) as client:
        client.create_topic("t", partitions=1)
        with client.producer() as producer:
            producer.send_and_wait("t", b"0", timeout=40)
            told, epoch = client.connection.attachment, client.connection.epoch.value
            used = time.process_time()
            time.sleep(3)  # longer than it takes to be forgotten
            assert time.process_time() - used < 1.0
            assert client.topics() == ["t"]
            assert client.connection.attachment is told
            assert client.connection.epoch.value == epoch
            assert wires.ingress.connections == 1
            told_of = ingress_of(client)
            assert (told_of["connections"], told_of["dead"]) == (1, 0), told_of


def ingress_of(client: Client) -> dict[str, Any]:
    """What `status` says of the ingress process, once that has answered."""
    found: list[dict[str, Any]] = []

    def answered() -> bool:
        found[:] = [w for w in client.status()["listen"]["workers"] if w["role"] == "ingress"]
        return all(w["answered"] for w in found)

    eventually(answered, lambda: found)
    return found[0]


def test_waits_end_with_broker_gone_and_may_be_repeated(broker: Broker) -> None:
    with broker.client(reconnect_s=0.5) as client:
        client.create_topic("t", partitions=1)
        called: list[object] = []
        producer = client.producer()
        producer.send_and_wait("t", b"0", timeout=40)
        broker.kill9(everything=True)
        receipt = producer.send("t", b"1")
        receipt.add_done_callback(called.append)
        for call in (lambda: receipt.result(40), lambda: producer.flush(40), client.topics):
            begun = time.monotonic()
            with pytest.raises(errors.BrokerGone, match=broker.address):
                call()
            assert time.monotonic() - begun < 20  # and not the 30 s of the default
        broker.start()
        assert receipt.result(40).offset == 1
        producer.close()
        check(client, "t", 2)


def test_close_does_not_wait_for_a_broker_that_is_away(broker: Broker) -> None:
    client = broker.client()
    client.create_topic("t", partitions=1)
    producer = client.producer(delivery_timeout_ms=500)
    producer.send_and_wait("t", b"0", timeout=40)
    broker.kill9(everything=True)
    receipt = producer.send("t", b"1")
    begun = time.monotonic()
    with pytest.raises(errors.ShmbrokerError):
        producer.close()
    client.close()
    assert time.monotonic() - begun < 20  # and not the two minutes of the default
    with pytest.raises((errors.ClosedError, errors.OutcomeUnknown)):
        receipt.result(40)


def test_ctrl_c_interrupts_a_wait_and_harms_nothing(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=1)
        with client.producer() as producer:
            producer.send_and_wait("t", b"0", timeout=40)
            (ingress,) = broker.workers("ingress")
            ingress.suspend()
            receipt = producer.send("t", b"1")
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                timer.start()
                receipt.result(40)
            timer.join()
            ingress.resume()
            assert receipt.result(40).offset == 1


def test_pressure_callbacks_and_dropping_are_the_local_ones(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=1)
        called: list[Any] = []
        done = threading.Event()
        with client.producer(on_full="drop") as producer:
            receipt = producer.send("t", b"0")
            receipt.add_done_callback(lambda r: (called.append(r), done.set()))
            assert receipt.result(40).offset == 0
            assert done.wait(40)
            assert called == [receipt]
            eventually(lambda: producer.pressure().state == "ok", producer.pressure)
            (ingress,) = broker.workers("ingress")
            ingress.suspend()
            value = bytes(100_000)
            sent = 1
            while not sum(producer.dropped().values()):
                producer.send("t", value)
                sent += 1
                assert sent < 5000
            eventually(lambda: producer.pressure().state != "ok", producer.pressure)
            ingress.resume()
            eventually(lambda: producer.pressure().state == "ok", producer.pressure)
            producer.flush(40)
            dropped = sum(producer.dropped().values())
        assert len(values(client, "t")) == sent - dropped


def test_many_threads_and_partitions_share_one_session(broker: Broker) -> None:
    with broker.client() as client:
        client.create_topic("t", partitions=4)
        with client.producer() as producer:

            def work(partition: int) -> None:
                for n in range(5000):
                    producer.send("t", b"%d" % n, partition=partition)

            threads = [threading.Thread(target=work, args=(p,)) for p in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            producer.flush(40)
        for partition in range(4):
            with client.consumer("t", partitions=[partition], start="earliest") as consumer:
                got: list[int] = []
                while len(got) < 5000:
                    batch = consumer.poll_batch(40)
                    assert batch is not None
                    got += [int(v) for v in batch.values() if v is not None]
                assert got == list(range(5000))
