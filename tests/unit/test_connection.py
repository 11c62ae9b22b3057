"""Attaching, asking, and what becomes of both when the broker goes."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from consumer_fakes import FakeBroker

from shmbroker._core import shm
from shmbroker.client import local_connection as connection_module
from shmbroker.client.client import Client, connect
from shmbroker.client.local_connection import LocalConnection
from shmbroker.errors import (
    BrokerGone,
    ClosedError,
    ForkedError,
    NoBroker,
    OutcomeUnknown,
    TimedOut,
    TopicExists,
    UnknownTopic,
)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBroker]:
    with FakeBroker(tmp_path, partitions=2) as broker:
        yield broker


class Calls:
    """A listener whose calls a test awaits."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self.back = threading.Event()
        self.adopted: bool | None = None

    def on_gone(self) -> None:
        self.gone.set()

    def on_reattached(self, adopted: bool) -> None:
        self.adopted = adopted
        self.back.set()


@pytest.fixture
def connection(fake: FakeBroker) -> Iterator[LocalConnection]:
    made = LocalConnection(fake.places, timeout=5.0, reconnect_s=10.0)
    yield made
    made.close()


def test_no_broker_names_the_instance_where_it_looked_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(NoBroker) as caught:
        connect("nobody")
    assert "'nobody'" in str(caught.value)
    assert str(tmp_path / "shmbroker" / "nobody") in str(caught.value)
    assert "shmbroker up --instance nobody" in str(caught.value)
    assert caught.value.retriable


def test_a_socket_that_nobody_listens_on_is_no_broker(fake: FakeBroker) -> None:
    fake.kill()
    left = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.bind(fake.places.socket_path("attach"))
    left.close()
    with pytest.raises(NoBroker, match="refused"):
        LocalConnection(fake.places, timeout=1.0, reconnect_s=1.0)


def test_a_broker_of_another_data_directory_is_refused(
    fake: FakeBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    with pytest.raises(NoBroker, match="serves"):
        connect("fake", data_dir=tmp_path / "other")
    connect("fake", data_dir=fake.places.data_dir).close()


def test_attaching_maps_park_words_and_tables(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    assert connection.attachment.client == 7
    assert fake.hellos[0]["pid"] == os.getpid()
    assert connection.park.bytes == shm.PARK_BYTES
    table = connection.table(0)
    assert table is connection.table(0)
    seen = (ctypes.c_char * shm.PAGE_BYTES).from_address(table.address)
    assert seen.raw == (ctypes.c_char * shm.PAGE_BYTES).from_address(fake.table.address).raw
    maps = Path("/proc/self/maps").read_text().splitlines()
    rights = {line.split()[1] for line in maps if f"{table.address:x}-" in line}
    assert rights == {"r--s"}


def test_a_request_gets_its_answer_and_errors_come_back_as_their_class(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    def exists(_: object) -> dict[str, object]:
        raise TopicExists("t")

    fake.answers["status"] = lambda message: {"you": message["client"], "token": message["token"]}
    fake.answers["create_topic"] = exists
    assert connection.request("status") == {"you": 7, "token": "secret"}
    with pytest.raises(TopicExists) as caught:
        connection.request("create_topic", name="t")
    assert caught.value.topic == "t"


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    go_on = threading.Event()

    def slow(_: object) -> dict[str, object]:
        go_on.wait(40)
        return {"late": True}

    fake.answers["status"] = slow
    with pytest.raises(TimedOut):
        connection.request("status", timeout=0.05)
    go_on.set()
    fake.answers["status"] = lambda _: {"late": False}
    assert connection.request("status") == {"late": False}


def test_listeners_learn_of_a_restart_that_kept_the_rings(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    calls, park, table = Calls(), connection.park, connection.table(0)
    connection.listen(calls)
    epoch = connection.attached()
    fake.kill()
    assert calls.gone.wait(40)
    assert connection.epoch.value == epoch + 1
    fake.restart()
    assert calls.back.wait(40)
    assert calls.adopted
    assert connection.attached() == epoch + 2
    assert connection.park is park
    assert connection.table(0) is table
    assert fake.hellos[-1]["client"] == 7
    assert fake.hellos[-1]["token"] == "secret"


def test_after_a_restart_with_new_rings_everything_is_mapped_anew(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    calls, park, table = Calls(), connection.park, connection.table(0)
    connection.listen(calls)
    fake.kill()
    fake.unlink_all()
    fake.make_objects(2)
    fake.start()
    assert calls.back.wait(40)
    assert calls.adopted is False
    assert connection.park is not park
    assert connection.table(0) is not table


def test_a_request_under_way_when_the_broker_dies_goes_to_the_next_one(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    connection.timeout = 40.0
    asked = threading.Event()

    def die(_: object) -> dict[str, object]:
        asked.set()
        raise NotImplementedError

    fake.answers["status"] = die
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(connection.request("status")))
    thread.start()
    assert asked.wait(40)
    fake.answers["status"] = lambda _: {"from": "the next"}
    fake.kill()
    fake.restart()
    thread.join(40)
    assert answers == [{"from": "the next"}]


def test_what_may_not_be_done_twice_ends_as_outcome_unknown(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    def die(_: object) -> dict[str, object]:
        threading.Thread(target=fake.kill).start()
        raise NotImplementedError

    fake.answers["delete_topic"] = die
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        connection.request("delete_topic", name="t", timeout=30)
    assert time.monotonic() - began < 15


def test_a_broker_that_stays_away_is_gone_after_reconnect_s(fake: FakeBroker) -> None:
    connection = LocalConnection(fake.places, timeout=5.0, reconnect_s=0.2)
    try:
        fake.kill()
        with pytest.raises(BrokerGone, match="shmbroker up"):
            connection.request("status")
        with pytest.raises(BrokerGone):  # each later call tries once more
            connection.attached()
        fake.answers["status"] = lambda _: {"back": True}
        fake.restart()
        assert connection.request("status") == {"back": True}
    finally:
        connection.close()


def test_closing_ends_what_waits_for_the_broker(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    calls, ended = Calls(), threading.Event()
    connection.listen(calls)
    fake.kill()
    assert calls.gone.wait(40)

    def wait() -> None:
        with pytest.raises(ClosedError):
            connection.attached()
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    connection.close()
    assert ended.wait(40)
    thread.join()
    with pytest.raises(ClosedError):
        connection.request("status")


def test_a_restart_is_logged_for_who_wants_to_know(
    fake: FakeBroker, connection: LocalConnection, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()
    connection.listen(calls)
    with caplog.at_level("INFO", "shmbroker"):
        fake.kill()
        fake.restart()
        assert calls.back.wait(40)
    assert [r.name for r in caplog.records] == ["shmbroker"] * 2
    assert "is gone; attaching again for up to 10 s" in caplog.text
    assert "attached again to the broker of instance 'fake'" in caplog.text


def test_a_last_attempt_does_not_hang_on_a_broker_that_listens_and_is_silent(
    fake: FakeBroker,
) -> None:
    connection = LocalConnection(fake.places, timeout=30.0, reconnect_s=0.1)
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        fake.kill()
        silent.bind(fake.places.socket_path("attach"))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(BrokerGone):
            connection.attached()
        assert time.monotonic() - began < 15
    finally:
        connection.close()
        silent.close()
        os.unlink(fake.places.socket_path("attach"))


def test_the_closing_event_is_noted(fake: FakeBroker, connection: LocalConnection) -> None:
    calls = Calls()
    connection.listen(calls)
    fake.say_closing()
    fake.kill()
    assert calls.gone.wait(40)
    assert connection.closing


def test_ctrl_c_interrupts_the_wait_for_a_broker(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    calls = Calls()
    connection.listen(calls)
    fake.kill()
    assert calls.gone.wait(40)
    main = threading.get_ident()
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        connection.attached()


def test_metadata_is_asked_for_once_and_anew_after_a_restart(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    client, calls = Client(connection), Calls()
    connection.listen(calls)
    assert [p.slot for p in client.metadata.get("t").partitions] == [0, 1]
    client.metadata.get("t")
    assert fake.asked.count("metadata") == 1
    assert client.topics() == ["t"]
    with pytest.raises(UnknownTopic):
        client.metadata.get("nothing")
    with pytest.raises(UnknownTopic, match="no partition 5"):
        client.metadata.partition("t", 5)
    fake.kill()
    fake.restart()
    assert calls.back.wait(40)
    before = fake.asked.count("metadata")
    client.metadata.get("t")
    assert fake.asked.count("metadata") == before + 1
    client.close()


def test_in_a_forked_child_every_call_says_so_and_the_parent_goes_on(
    fake: FakeBroker, connection: LocalConnection
) -> None:
    fake.answers["status"] = lambda _: {}
    connection.request("status")
    client = Client(connection)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for call in (client.status, client.topics, client.close, client.consumer):
                with pytest.raises(ForkedError, match="connect"):
                    call()
            connection.close()
            del client
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.status() == {}
    client.close()


def test_a_forked_child_does_not_hide_the_parents_death(fake: FakeBroker) -> None:
    connection = LocalConnection(fake.places, timeout=5.0, reconnect_s=1.0)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    connection.close()
    fake.attached[0].settimeout(40)
    assert fake.attached[0].recv(1) == b""
    os.close(write)
    os.close(read)
    os.waitpid(pid, 0)


def test_a_client_that_nobody_closed_warns(fake: FakeBroker, connection: LocalConnection) -> None:
    clients = [Client(connection)]
    with pytest.warns(ResourceWarning, match="unclosed"):
        clients.clear()
    assert connection.closed


def test_a_request_that_waited_while_the_connection_was_closed_opens_nothing(
    connection: LocalConnection,
) -> None:
    control = connection._control

    class ClosedMeanwhile:
        """The lock, as the request finds it that waited for another one."""

        def acquire(self, timeout: float) -> bool:
            control._lock = free  # type: ignore[assignment]
            connection.close()
            return free.acquire(timeout=timeout)

    free = control._lock
    control._lock = ClosedMeanwhile()  # type: ignore[assignment]
    with pytest.raises(ClosedError):
        connection.request("status")
    assert control._socket is None


def test_a_close_in_the_middle_of_an_attach_ends_the_watcher(
    fake: FakeBroker, connection: LocalConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    closers: list[threading.Thread] = []

    def attach_and_be_closed(*args: Any) -> Any:
        answer = attach(*args)
        closers.append(threading.Thread(target=connection.close))
        closers[0].start()
        while not connection.closed:
            time.sleep(0.001)
        return answer

    attach = connection_module.attach
    monkeypatch.setattr(connection_module, "attach", attach_and_be_closed)
    fake.kill()
    fake.restart()
    connection._watcher.join(40)  # what it raises fails this test
    assert not connection._watcher.is_alive()
    closers[0].join(40)
    assert not closers[0].is_alive()
