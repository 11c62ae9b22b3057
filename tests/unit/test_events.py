"""The events channel: who hears what, and that nobody who does not listen costs anything."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from shmbroker.client.pressure import Spot
from shmbroker.client.remote.pressure import HeardPressures
from shmbroker.config import Places, load
from shmbroker.control import pressure_messages as pm
from shmbroker.control.authorized import DataTokens
from shmbroker.control.listening import plan_listening
from shmbroker.control.pressure import PartitionPressure
from shmbroker.errors import ConfigError
from shmbroker.workers.events import QUEUE_MESSAGES, REFUSED_MAX, Events
from shmbroker.workers.loop import Loop

SECRET = b"5ecre7"
LIMIT_MS = 40_000
SPOT = Spot("t", 0, 0, 0, 1)


class Station:
    """An events channel whose loop the test turns."""

    def __init__(self, root: Path) -> None:
        self.context = zmq.Context()
        self.loop = Loop()
        self.joined = 0
        self.levels: list[PartitionPressure] = []
        self.seq = 0
        self.events = Events(self.context, self.loop, self._on_joined)
        self.local = self.events.bind(f"ipc://{root}/events")
        self.tcp = self.events.bind("tcp://127.0.0.1:*", DataTokens(SECRET))
        self.heard: list[Any] = []

    def _on_joined(self) -> None:
        self.joined += 1
        self.snapshot()

    def snapshot(self) -> None:
        self.events.send(pm.encode_snapshot("run", self.seq, self.levels))

    def tell(self, state: Any = "hard", partition: int = 0) -> None:
        self.seq += 1
        level = PartitionPressure("t", partition, state, "filling", "full")
        self.events.send([pm.encode_change("run", self.seq, level)])

    def turn(self, seconds: float = 0.05) -> None:
        """Lets the acceptor's side run."""
        self.loop.after(seconds, self.loop.stop)
        self.loop.run()

    def until(self, condition: Any, what: str) -> None:
        end = time.monotonic() + LIMIT_MS / 1000
        while not condition():
            assert time.monotonic() < end, what
            self.turn(0.02)

    def sub(self, *prefixes: bytes, endpoint: str | None = None, **options: int) -> Any:
        sock = self.context.socket(zmq.SUB)
        sock.linger = 0
        for name, value in options.items():
            sock.setsockopt(getattr(zmq, name.upper()), value)
        sock.connect(endpoint or self.local)
        for prefix in prefixes:
            sock.subscribe(prefix)
        self.heard.append(sock)
        return sock

    def hearing(self, endpoint: str | None = None, **options: Any) -> HeardPressures:
        made = HeardPressures(self.context, endpoint or self.local, **options)
        self.heard.append(made)
        return made

    def close(self) -> None:
        for found in self.heard:
            found.close()
        self.events.close()
        self.loop.close()
        self.context.destroy(linger=0)


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    made = Station(tmp_path)
    yield made
    made.close()


def state(heard: HeardPressures) -> str:
    heard.receive()
    return heard.look([SPOT])[SPOT].state


def test_who_comes_late_hears_how_it_is_at_once(station: Station) -> None:
    station.levels = [PartitionPressure("t", 0, "soft", "filling", "half")]
    station.tell("soft")
    heard = station.hearing()
    assert (state(heard), heard.complete) == ("ok", False)
    assert heard.look([SPOT])[SPOT].cause == "unknown"
    station.until(lambda: state(heard) == "soft", "nothing was heard")
    assert heard.complete
    assert heard.look([Spot("t", 1, 0, 0, 0)]).popitem()[1].cause == "none"
    station.tell("hard")
    station.until(lambda: state(heard) == "hard", "the change was not heard")


def test_many_that_come_together_hear_one_snapshot(station: Station) -> None:
    heard = [station.hearing() for _ in range(20)]
    for one in heard:
        station.until(lambda one=one: one.receive() is not None and one.complete, "not heard")
    assert station.joined < 20


def test_each_hears_what_it_subscribed_to(station: Station) -> None:
    one = station.sub(pm.prefix_of("t", 1))
    station.until(lambda: station.joined, "no subscription came")
    for partition in (0, 1, 10):
        station.tell(partition=partition)
    station.turn()
    assert one.recv_multipart()[0] == b"pressure/t/1/"
    assert not one.poll(50)


def test_over_tcp_only_who_knows_the_secret_hears_anything(station: Station) -> None:
    strangers = [
        station.sub(b"", endpoint=station.tcp),
        station.sub(pm.SNAPSHOT, b"wrong/" + pm.SNAPSHOT, SECRET, endpoint=station.tcp),
        station.sub(pm.SNAPSHOT, b"/" + pm.SNAPSHOT, SECRET[:-1] + b"/", endpoint=station.tcp),
    ]
    wrong = station.hearing(station.tcp, secret=b"wrong")
    right = station.hearing(station.tcp, secret=SECRET)
    station.until(lambda: right.receive() is not None and right.complete, "it knows the secret")
    station.tell()
    station.until(lambda: state(right) == "hard", "the change was not heard")
    assert not any(stranger.poll(50) for stranger in strangers)
    assert wrong.receive() == []


def test_who_does_not_read_holds_nobody_up_and_takes_no_memory(station: Station) -> None:
    stuck = station.sub(b"", rcvhwm=1, rcvbuf=4096)
    heard = station.hearing()
    station.until(lambda: heard.receive() is not None and heard.complete, "not heard")
    before = psutil.Process().memory_info().rss
    level = PartitionPressure("t", 0, "hard", "filling", "x" * pm.REASON_MAX)
    frames = [pm.encode_change("run", n, level) for n in range(1, 2_000)]
    begun = time.monotonic()
    for _ in range(50):  # 100,000 messages, some 60 MB
        station.events.send(frames)
        heard.receive()
    assert time.monotonic() - begun < 20
    assert psutil.Process().memory_info().rss - before < 32 << 20
    station.seq = 10_000
    station.levels = [PartitionPressure("t", 0, "soft", "filling", "half")]
    station.snapshot()
    station.until(lambda: (station.snapshot(), state(heard) == "soft")[1], "it reads and hears")
    old = 0
    while stuck.poll(200):
        stuck.recv_multipart()
        old += 1
    assert 0 < old < 20 * QUEUE_MESSAGES, "what is kept for who does not read is bounded"
    station.snapshot()
    assert stuck.poll(LIMIT_MS), "and it hears again when it reads"


def test_a_door_opens_again_as_soon_as_its_address_is_free(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libzmq lets go of it in its own time: the acceptor used to end when that was late."""
    right = station.hearing(station.tcp, secret=SECRET)
    station.until(lambda: right.receive() is not None and right.complete, "not heard")
    door = next(d for d in station.events._doors if d.tokens)
    taken, opens = [zmq.ZMQError(zmq.EADDRINUSE)] * 3, station.events._open

    def late(*args: Any) -> Any:
        if taken:
            raise taken.pop()
        return opens(*args)

    monkeypatch.setattr(station.events, "_open", late)
    before = door.socket
    station.events._reopen(door)
    station.tell("soft")  # which nobody hears there, and which harms nobody
    station.until(lambda: door.socket is not before, "the door was not opened anew")
    station.until(lambda: (station.tell(), right.receive(), state(right) == "hard")[2], "not heard")


def test_endless_wrong_subscriptions_cost_one_reconnection_and_nothing_else(
    station: Station,
) -> None:
    right = station.hearing(station.tcp, secret=SECRET)
    station.until(lambda: right.receive() is not None and right.complete, "not heard")
    door = next(d for d in station.events._doors if d.tokens)
    before = door.socket
    stranger = station.context.socket(zmq.XSUB)
    stranger.linger = stranger.sndhwm = 0
    station.heard.append(stranger)
    stranger.connect(station.tcp)
    for n in range(REFUSED_MAX + 10):
        stranger.send(b"\1wrong/%d" % n)
    station.until(lambda: door.socket is not before, "the door was not opened anew")
    station.tell()
    station.until(lambda: (station.tell(), state(right) == "hard")[1], "it did not come again")


@pytest.mark.parametrize("rubbish", [b"", b"\2x", b"\1" + b"x" * 5_000, bytes(range(256))])
def test_rubbish_on_the_channel_is_nothing(station: Station, rubbish: bytes) -> None:
    stranger = station.context.socket(zmq.XSUB)
    stranger.linger = 0
    station.heard.append(stranger)
    stranger.connect(station.local)
    stranger.send(rubbish)
    heard = station.hearing()
    station.until(lambda: heard.receive() is not None and heard.complete, "not heard")


def test_strangers_on_the_port_are_nothing(station: Station) -> None:
    host, port = station.tcp.removeprefix("tcp://").split(":")
    rng = random.Random(7)
    for n in range(40):
        with socket.create_connection((host, int(port))) as stranger:
            greeting = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL" if n % 2 else b"GET / HTTP/1.1\r\n\r\n"
            stranger.sendall(greeting + rng.randbytes(rng.randrange(2_000)))
        station.turn(0.005)
    right = station.hearing(station.tcp, secret=SECRET)
    station.until(lambda: right.receive() is not None and right.complete, "not heard")


def test_a_subscription_that_ends_is_served_no_more(station: Station) -> None:
    one = station.sub(pm.prefix_of("t", 1))
    station.until(lambda: station.joined == 1, "no subscription came")
    one.unsubscribe(pm.prefix_of("t", 1))
    one.subscribe(pm.SNAPSHOT)
    station.until(lambda: station.joined == 2, "no subscription came")
    station.tell(partition=1)
    station.turn()
    assert {one.recv_multipart()[0] for _ in range(1)} == {pm.SNAPSHOT}
    assert not one.poll(50)


def test_programs_elsewhere_hear_it_with_the_token_that_control_gave_them(
    station: Station, isolated_env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('[listen]\naddress = "tcp://127.0.0.1:0"\nunix = true\n')
    places = Places.find("t", env=isolated_env)
    places.make_runtime_dir()
    places.data_dir.mkdir(parents=True)
    loaded = load(file, {})
    listening = plan_listening(places, loaded)
    assert listening is not None
    station.events.listen(listening, loaded)
    tcp, unix = listening.endpoints()["events"]
    assert (tcp[:16], unix[:6]) == ("tcp://127.0.0.1:", "ipc://")
    assert Path(unix.removeprefix("ipc://")).stat().st_mode & 0o777 == 0o600
    token = listening.data_token.encode()
    heard = [station.hearing(endpoint, secret=token) for endpoint in (tcp, unix)]
    strangers = [station.hearing(endpoint, secret=b"t") for endpoint in (tcp, unix)]
    for one in heard:
        station.until(lambda one=one: one.receive() is not None and one.complete, "not heard")
    assert not any(stranger.receive() or stranger.complete for stranger in strangers)
    with pytest.raises(ConfigError, match=r"events_port.*can't be bound"):
        station.events.listen(listening, loaded)


def test_silence_is_said_after_a_while(station: Station) -> None:
    heard = station.hearing(dead_s=0.2)
    assert state(heard) == "ok"
    waiting = threading.Event()
    waiting.wait(0.25)
    level = heard.look([SPOT])[SPOT]
    assert (level.state, level.cause) == ("hard", "unknown")
    assert "nothing has been heard" in level.reason
    station.until(lambda: state(heard) == "ok" and heard.complete, "it is heard again")


def test_it_can_be_heard_at_another_endpoint(station: Station, tmp_path: Path) -> None:
    heard = station.hearing()
    station.until(lambda: heard.receive() is not None and heard.complete, "not heard")
    station.events.bind(f"ipc://{tmp_path}/other")
    heard.move(f"ipc://{tmp_path}/other")
    station.tell()
    station.until(lambda: (station.tell(), state(heard) == "hard")[1], "not heard there")
