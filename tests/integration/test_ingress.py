"""An ingress process beside a real broker: what remote producers send arrives once and in order,
whoever dies; one that is slow, wrong or hostile costs nobody else anything."""

from __future__ import annotations

import random
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from cutting_proxy import CuttingProxy
from hosts import other_host
from ingress_rig import IngressProcess, Remote, Topic, again, context_at
from waiting import eventually

from shmbroker import errors
from shmbroker.client.client import Client
from shmbroker.config import ListenSection
from shmbroker.control.keys import KeyDirectory, new_pair, read_pair, write_pair
from shmbroker.control.listening import CurveFiles
from shmbroker.wire.native import ingress_messages
from shmbroker.wire.native.ingress_messages import (
    Acks,
    Closing,
    Goodbye,
    Heartbeat,
    HelloAgain,
    WriterCredit,
)
from shmbroker.wire.native.state import State
from shmbroker.workers import ingress_sessions

Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def broker_config() -> str:
    return "[broker]\nwriters = 2\n"


@pytest.fixture
def client(broker: Any) -> Iterator[Client]:
    with broker.client() as made:
        yield made


@pytest.fixture
def context() -> Iterator[Context]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


Made = Callable[..., IngressProcess]


@pytest.fixture
def make(client: Client, tmp_path: Path) -> Iterator[Made]:
    """Makes the test's ingress process."""
    made: list[IngressProcess] = []

    def one(**options: Any) -> IngressProcess:
        made.append(IngressProcess(client, tmp_path, **options))
        return made[-1]

    yield one
    for process in made:
        process.close()


def new_id(client: Client) -> int:
    """A producer id."""
    return int(client.connection.request("init_producer")["producer_id"])


def read(client: Client, topic: str, count: int) -> list[tuple[int, bytes]]:
    """(partition, value) of the first `count` records, trailing spaces off."""
    found: list[tuple[int, bytes]] = []
    with client.consumer(topic, start="earliest") as consumer:
        while len(found) < count:
            batch = consumer.poll_batch(timeout=40)
            assert batch is not None, f"{len(found)} of {count}"
            found += [(batch.partition, record.value.rstrip()) for record in batch.records()]
    return found


def expected(producer_id: int, count: int) -> list[bytes]:
    return [b"%d.%d" % (producer_id, n) for n in range(count)]


@pytest.mark.parametrize("tcp", [False, True], ids=["ipc", "tcp"])
def test_batches_arrive_in_order_and_are_acknowledged_as_they_ask(
    client: Client, context: Context, make: Made, tcp: bool
) -> None:
    client.create_topic("t", partitions=2)
    ingress, topic = make(tcp=tcp), Topic.of(client, "t")
    remote = Remote(context, ingress.address, new_id(client)).open()
    asked = [(remote.produce(topic, n % 2, Acks(n % 3)), n) for n in range(60)]
    remote.settled()
    assert not remote.refused
    for correlation, n in asked:
        assert remote.offsets[correlation] == (-1 if n % 3 == Acks.NONE else n // 2 * 3)
    records = read(client, "t", 180)
    for partition in (0, 1):
        values = [value for at, value in records if at == partition]
        assert values == expected(remote.producer_id, 90)
    if not tcp:
        assert ingress.spec.unix_path is not None
        assert stat.S_IMODE(ingress.spec.unix_path.stat().st_mode) == 0o600
    status = ingress.ask("status")
    assert (status["received_batches"], status["acknowledged"], status["held_bytes"]) == (60, 60, 0)
    remote.close()


def test_what_a_new_session_sends_again_is_appended_once(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t")
    ingress, topic = make(), Topic.of(client, "t")
    remote = Remote(context, ingress.address, new_id(client)).open()
    sent = [remote.make(topic) for _ in range(20)]
    for n, produce in enumerate(sent):
        remote.until(lambda: remote.codec.may_send(0))
        remote.send(produce)
        if n % 5 == 4:
            remote.greet()  # before the answers are heard
    remote.settled()
    assert [remote.offsets[p.correlation] for p in sent] == list(range(0, 60, 3))
    assert [v for _, v in read(client, "t", 60)] == expected(remote.producer_id, 60)
    remote.close()


class Load:
    """Some producers that go on whatever happens, and what must have come of it."""

    def __init__(self, client: Client, context: Context, address: str, producers: int = 3) -> None:
        client.create_topic("load", partitions=2)
        self.client, self.topic = client, Topic.of(client, "load")
        self.remotes = [
            Remote(context, address, new_id(client), padding=2000) for _ in range(producers)
        ]
        self.rng = random.Random(5)

    def run(self, batches: int, disturb: Callable[[], None], times: int) -> None:
        """Sends so many of each, and calls `disturb` in the midst."""
        moments = sorted(self.rng.sample(range(batches // 5, batches), times))
        for n in range(batches):
            while moments and moments[0] == n:
                moments.pop(0)
                disturb()
            for remote in self.remotes:
                made = remote.make(self.topic, n % 2)
                remote.until(lambda: remote.codec.may_send(made.writer), "credit")  # noqa: B023
                remote.send(made)
        for remote in self.remotes:
            remote.settled()
        self.check(batches)

    def check(self, batches: int) -> None:
        """Every record once, in the order of its producer and partition."""
        assert not any(remote.refused for remote in self.remotes)
        records = read(self.client, "load", 3 * batches * len(self.remotes))
        for remote in self.remotes:
            for partition in (0, 1):
                mine = [
                    value for at, value in records
                    if at == partition and value.startswith(b"%d." % remote.producer_id)
                ]  # fmt: skip
                assert mine == expected(remote.producer_id, 3 * batches // 2)

    def close(self) -> None:
        for remote in self.remotes:
            remote.close()


@pytest.mark.parametrize("tcp", [False, True], ids=["ipc", "tcp"])
def test_a_killed_ingress_loses_doubles_and_reorders_nothing(
    client: Client, context: Context, make: Made, tcp: bool
) -> None:
    ingress = make(tcp=tcp)
    load = Load(client, context, ingress.address)
    load.run(120, ingress.restart, 3)
    load.close()


def test_a_killed_writer_loses_doubles_and_reorders_nothing(
    broker: Any, client: Client, context: Context, make: Made
) -> None:
    ingress = make()
    load = Load(client, context, ingress.address)
    rng = random.Random(6)
    load.run(300, lambda: rng.choice(broker.workers()).kill(), 3)
    load.close()
    assert ingress.ask("status")["dead"] == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_connections_cut_in_the_middle_of_a_batch_lose_double_and_reorder_nothing(
    client: Client, context: Context, make: Made, seed: int
) -> None:
    ingress = make(tcp=True)
    assert ingress.spec.tcp is not None
    proxy = CuttingProxy(ingress.spec.tcp, up=(5_000, 200_000), down=(100, 2_000), seed=seed)
    load = Load(client, context, proxy.address)

    def calm() -> None:
        proxy.calm = proxy.cuts >= 20

    load.run(200, calm, 100)
    load.close()
    proxy.close()
    assert proxy.cuts >= 20


@pytest.mark.root
def test_a_cable_that_is_cut_is_noticed_and_mended_it_loses_nothing(
    client: Client, make: Made
) -> None:
    with other_host() as there, context_at(there) as context:
        listen = ListenSection(heartbeat_ms=100, dead_ms=600)
        ingress = make(tcp=True, host=there.here, listen=listen)
        load = Load(client, context, ingress.address)

        def cut() -> None:
            there.cut()
            eventually(lambda: ingress.ask("status")["connections"] == 0, lambda: None)
            there.mend()

        load.run(100, cut, 2)
        load.close()
        assert ingress.ask("status")["dead"] >= len(load.remotes)


def test_a_full_ring_throttles_who_sends_there_and_nobody_else(
    broker: Any, client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t", partitions=2)
    credit = 1 << 20
    ingress, topic = make(listen=ListenSection(credit_bytes=credit)), Topic.of(client, "t")
    assert sorted(topic.writers) == [0, 1]
    slow = Remote(context, ingress.address, new_id(client), padding=40_000).open()
    quick = Remote(context, ingress.address, new_id(client), padding=40_000).open()
    for partition in (0, 1):
        slow.produce(topic, partition)
    slow.settled()
    stopped = topic.writers[0]
    (writer,) = [p for p in broker.workers() if f"writer-{stopped}" in p.cmdline()[0]]
    writer.send_signal(signal.SIGSTOP)
    try:
        while slow.codec.credit_bytes(stopped):
            if slow.codec.may_send(stopped):
                slow.send(slow.make(topic, 0))
            slow.step(50)
        eventually(lambda: bool(ingress.ask("status")["waiting"]), lambda: ingress.ask("status"))
        status = ingress.ask("status")
        (line,) = status["waiting"]
        assert (line["writer"], line["topic"], line["partition"]) == (stopped, "t", 0)
        assert 0 < status["held_bytes"] <= credit + 125_000
        (waiting,) = status["producers"]
        assert waiting["waits_for_writers"] == [stopped]
        for _ in range(50):  # the same producer to the other writer, and another producer
            slow.produce(topic, 1)
            quick.produce(topic, 1)
        quick.settled()
        assert len(quick.offsets) == 50
    finally:
        writer.send_signal(signal.SIGCONT)
    slow.settled()
    assert not slow.refused
    count = slow.sequences[topic.id, 0]
    values = [v for p, v in read(client, "t", count + slow.sequences[topic.id, 1] + 150) if p == 0]
    assert values == expected(slow.producer_id, count)
    slow.close()
    quick.close()


def test_a_rejected_batch_takes_the_later_ones_of_its_producer_and_nobody_elses(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t")
    ingress, topic = make(), Topic.of(client, "t")
    bad = Remote(context, ingress.address, new_id(client)).open()
    good = Remote(context, ingress.address, new_id(client)).open()
    spoilt = bad.make(topic)
    spoilt = again(spoilt, spoilt.correlation, spoilt.batch[:-1] + b"\1")
    after = [bad.make(topic) for _ in range(5)]
    for produce in (spoilt, *after):
        bad.send(produce)
        good.produce(topic)
    bad.settled()
    good.settled()
    assert type(bad.refused.pop(spoilt.correlation)) is errors.CorruptBatch
    assert {type(error) for error in bad.refused.values()} == {errors.EarlierRejected}
    assert list(bad.refused) == [p.correlation for p in after]
    assert not good.refused
    bad.raise_epoch()
    bad.produce(topic)
    bad.settled()
    assert len(bad.offsets) == 1
    assert [v for _, v in read(client, "t", 21) if v.startswith(b"%d." % bad.producer_id)] == (
        expected(bad.producer_id, 3)
    )
    bad.close()
    good.close()


def test_batches_for_what_is_not_there_are_refused_by_name(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t")
    ingress, topic = make(), Topic.of(client, "t")
    remote = Remote(context, ingress.address, new_id(client)).open()
    remote.produce(topic)
    remote.settled()
    for strange in (Topic(bytes(16), [0]), Topic(topic.id, [0, 0, 0])):
        correlation = remote.produce(strange, len(strange.writers) - 1)
        remote.settled()
        assert type(remote.refused[correlation]) is errors.UnknownTopic
    client.delete_topic("t")
    client.create_topic("t")
    gone = remote.produce(topic)
    remote.settled()
    assert type(remote.refused[gone]) is errors.UnknownTopic
    new = Topic.of(client, "t")
    new.writers = [0]
    there = remote.produce(new)
    remote.settled()
    assert remote.offsets[there] == 0
    remote.close()


def test_a_batch_larger_than_a_ring_arrives_between_small_ones(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t", config={"max.message.bytes": 8 << 20})
    ingress, topic = make(), Topic.of(client, "t")
    remote = Remote(context, ingress.address, new_id(client), records=1).open()
    for size in (10, 6 << 20, 10, 7 << 20, 10):
        remote.padding = size
        remote.produce(topic)
    remote.settled()
    assert not remote.refused
    assert sorted(remote.offsets.values()) == [0, 1, 2, 3, 4]
    assert [v for _, v in read(client, "t", 5)] == expected(remote.producer_id, 5)
    remote.close()


def test_strangers_and_garbage_are_refused_and_cost_nobody_anything(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t")
    ingress, topic = make(tcp=True), Topic.of(client, "t")
    good = Remote(context, ingress.address, new_id(client)).open()
    wrong = Remote(context, ingress.address)
    with pytest.raises(errors.AuthenticationFailed):
        wrong.greet(b"another token")
        wrong.until(lambda: False)
    rng = random.Random(8)
    strangers = [context.socket(zmq.DEALER) for _ in range(3)]
    for stranger in strangers:
        stranger.linger = 0
        stranger.connect(ingress.address)
    for n in range(300):
        sizes = [rng.choice([0, 3, 16, 44, 300, 9000]) for _ in range(rng.randint(1, 4))]
        frames = [rng.randbytes(size) for size in sizes]
        if n % 3 == 0:
            frames[0] = b"SHMI" + frames[0][4:]
        rng.choice(strangers).send_multipart(frames)
        if n % 10 == 0:
            good.produce(topic)
    old = context.socket(zmq.DEALER)
    old.linger = 0
    old.connect(ingress.address)
    old.send(b"SHMI\0\x09\0\x0a\0\0\0\0")
    assert old.poll(40_000)
    assert old.recv()[:6] == b"shmi\0\0"
    huge = context.socket(zmq.DEALER)
    huge.linger = 0
    huge.connect(ingress.address)
    huge.send_multipart([b"SHMI", bytes(33 << 20)])
    good.settled()
    assert not good.refused
    assert len(good.offsets) == 30
    eventually(lambda: ingress.ask("status")["strangers"] > 100, lambda: ingress.ask("status"))
    eventually(lambda: ingress.ask("status")["connections"] == 1, lambda: ingress.ask("status"))
    for sock in (*strangers, old, huge):
        sock.close(0)
    wrong.close()
    good.close()


def test_sending_without_credit_ends_the_session_and_no_other(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t")
    ingress, topic = make(), Topic.of(client, "t")
    greedy = Remote(context, ingress.address, new_id(client)).open()
    greedy.codec._limits[999] = 1 << 40  # a writer there is none of: nothing was granted
    topic.writers = [999]
    greedy.send(greedy.make(topic))
    with pytest.raises(AssertionError, match="without credit"):
        greedy.until(lambda: greedy.codec.state is State.CLOSED)
        raise AssertionError(str(greedy.events[-1].error))
    greedy.close()


def test_who_does_not_read_its_answers_blocks_nobody(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t")
    ingress, topic = make(), Topic.of(client, "t")
    good = Remote(context, ingress.address, new_id(client)).open()
    deaf = context.socket(zmq.DEALER)
    deaf.linger, deaf.rcvhwm, deaf.sndhwm = 0, 1, 0
    deaf.connect(ingress.address)
    (stale,) = ingress_messages.encode(Heartbeat(), 12345)
    for _ in range(60_000):  # each is answered by HelloAgain, until nothing takes that any more
        deaf.send(stale)
    for _ in range(50):
        good.produce(topic)
    good.settled()
    assert len(good.offsets) == 50
    eventually(lambda: ingress.ask("status")["unread"] > 0, lambda: ingress.ask("status"))
    deaf.close(0)
    good.close()


def test_a_silent_peer_is_forgotten_and_a_living_one_is_not(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t")
    listen = ListenSection(heartbeat_ms=100, dead_ms=1500)
    ingress, topic = make(listen=listen), Topic.of(client, "t")
    living = Remote(context, ingress.address, new_id(client)).open()
    silent = Remote(context, ingress.address, new_id(client)).open()
    silent.produce(topic)
    silent.settled()
    living.until(lambda: ingress.ask("status")["dead"] == 1)
    assert sum(isinstance(event, Heartbeat) for event in living.events) >= 2
    assert ingress.ask("status")["connections"] == 1
    silent.produce(topic)  # it finds out, and goes on
    silent.until(lambda: any(isinstance(event, HelloAgain) for event in silent.events))
    silent.settled()
    assert not silent.refused
    assert len(silent.offsets) == 2
    living.close()
    silent.close()


def test_what_a_producer_sent_before_it_vanished_is_appended(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t")
    listen = ListenSection(heartbeat_ms=300, dead_ms=3000)
    ingress, topic = make(listen=listen), Topic.of(client, "t")
    for farewell in (False, True):
        remote = Remote(context, ingress.address, new_id(client)).open()
        for _ in range(10):
            remote.send(remote.make(topic))
        if farewell:
            remote.socket.send_multipart(remote.codec.send(Goodbye()))
        remote.socket.close(linger=5000)
    assert len(read(client, "t", 60)) == 60
    eventually(lambda: ingress.ask("status")["connections"] == 0, lambda: ingress.ask("status"))


def test_stopping_says_closing_and_answers_what_has_come(
    client: Client, context: Context, make: Made
) -> None:
    client.create_topic("t")
    ingress, topic = make(), Topic.of(client, "t")
    remote = Remote(context, ingress.address, new_id(client), padding=1000).open()
    for _ in range(30):
        remote.produce(topic)
    received = 30
    eventually(lambda: ingress.ask("status")["received_batches"] == received, lambda: remote.events)
    ingress.stop()
    remote.until(lambda: any(isinstance(event, Closing) for event in remote.events))
    remote.until(lambda: len(remote.offsets) == received)
    assert ingress.spec.unix_path is not None
    assert not ingress.spec.unix_path.exists()
    remote.close()


def test_no_more_sessions_than_are_allowed(client: Client, context: Context, make: Made) -> None:
    client.create_topic("t")
    ingress = make(listen=ListenSection(max_connections=2))
    remotes = [Remote(context, ingress.address).open() for _ in range(2)]
    third = Remote(context, ingress.address)
    with pytest.raises(errors.QuotaExceeded, match="max_connections"):
        third.until(lambda: False)
    remotes[0].socket.send_multipart(remotes[0].codec.send(Goodbye()))
    eventually(lambda: ingress.ask("status")["connections"] == 1, lambda: None)
    fourth = Remote(context, ingress.address).open()
    for remote in (*remotes, third, fourth):
        remote.close()


def test_a_writer_that_starts_later_gets_credit_too(
    client: Client, context: Context, make: Made
) -> None:
    ingress = make(listen=ListenSection(heartbeat_ms=100, dead_ms=1000))
    remote = Remote(context, ingress.address).open()
    granted = {e.writer for e in remote.events if isinstance(e, WriterCredit)}
    assert granted <= {0, 1}
    remote.until(lambda: remote.codec.credit_bytes(1) > 0)
    limits = [e.limit_bytes for e in remote.events if isinstance(e, WriterCredit)]
    assert set(limits) == {ingress_sessions.FIRST_BYTES}
    remote.close()


@pytest.fixture
def keys(tmp_path: Path) -> KeyDirectory:
    made = KeyDirectory(tmp_path / "keys")
    made.path.mkdir(mode=0o700)
    write_pair(made.secret, new_pair())
    return made


def test_only_an_authorised_key_is_let_in(
    client: Client, context: Context, make: Made, keys: KeyDirectory
) -> None:
    client.create_topic("t")
    pair = new_pair()
    keys.authorize("app", pair.public)
    ingress = make(tcp=True, curve=CurveFiles(keys.secret, keys.authorized))
    topic = Topic.of(client, "t")
    server_key = read_pair(keys.secret).public

    def curve(public: bytes, secret: bytes) -> Callable[[zmq.Socket[bytes]], None]:
        def set_up(sock: zmq.Socket[bytes]) -> None:
            sock.curve_serverkey = server_key
            sock.curve_publickey, sock.curve_secretkey = public, secret

        return set_up

    assert pair.secret is not None
    let_in = Remote(
        context, ingress.address, new_id(client), before_connect=curve(pair.public, pair.secret)
    ).open()
    correlation = let_in.produce(topic)
    let_in.settled()
    assert let_in.offsets == {correlation: 0}
    wrong = Remote(context, ingress.address, before_connect=curve(*zmq.curve_keypair()))
    none = Remote(context, ingress.address)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        wrong.step()
        none.step()
    assert not wrong.events
    assert not none.events
    eventually(lambda: ingress.ask("status")["keys_refused"] > 0, lambda: None)
    for remote in (let_in, wrong, none):
        remote.close()
