"""After a fork: the child's inherited objects refuse with the way out, and the parent goes on."""

from __future__ import annotations

import asyncio
import gc
import http.client
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import pytest

import shmbroker
from shmbroker import aio

FORK = multiprocessing.get_context("fork")
OWN = b"from a child of its own"


@contextmanager
def forking() -> Iterator[None]:
    """Python 3.12 warns of forks in a process with threads: those are what this is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def run_in_child(target: Any, *args: Any) -> list[Any]:
    """What `target(*args)` returns in a forked child, which must end as processes do."""
    ours, theirs = FORK.Pipe(duplex=False)

    def life() -> None:
        theirs.send(target(*args))

    with forking():
        process = FORK.Process(target=life)
        process.start()
    theirs.close()
    assert ours.poll(30), "the child says nothing"
    answer: list[Any] = ours.recv()
    ours.close()
    process.join(40)
    assert process.exitcode == 0
    process.close()
    return answer


def use_an_own_client(instance: str) -> list[Any]:
    """A child's client, consumer and producer, made after the fork."""
    with (
        shmbroker.connect(instance) as client,
        client.producer() as producer,
        client.consumer("t", start="earliest") as consumer,
    ):
        producer.send("t", OWN).result(40)
        return [record.value for batch in consumer.batches(timeout=0) for record in batch]


def test_in_a_forked_child_every_call_is_refused_and_an_own_client_works(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("t")
        with (
            client.producer() as producer,
            client.consumer("t", start="earliest") as consumer,
            client.consumer("t", start="earliest") as reading,
        ):
            producer.send_many("t", [b"a", b"b", b"c"], partition=0).result(40)
            assert reading.poll(40).value == b"a"  # and two that are fetched already
            assert {"topics", "consumer", "close", "__exit__"} <= set(forked.calls(client))
            assert {"poll", "__next__", "seek", "lag", "close"} <= set(forked.calls(consumer))

            def child() -> list[Any]:
                wrong = forked.not_refused(client, consumer, reading)
                gc.collect()
                return [wrong, use_an_own_client(broker.instance)]

            wrong, seen = run_in_child(child)
            assert wrong == []
            assert seen == [b"a", b"b", b"c", OWN]
            # The parent's objects never noticed.
            assert [r.value for r in (reading.poll(40), reading.poll(40))] == [b"b", b"c"]
            assert [v for b in consumer.batches(timeout=0) for v in b.values()] == seen
            producer.send("t", b"on").result(40)
            assert reading.poll(40).value == OWN
            assert client.topics() == ["t"]


def test_in_a_forked_child_a_groups_member_is_refused_and_the_parents_stays_in(broker: Any) -> None:
    async def main(other: Any) -> None:
        async with (
            aio.connect(broker.instance) as client,
            client.consumer("t", group="a") as member,
        ):
            assert (await member.poll(40)).value == b"a"

            def child() -> list[Any]:
                wrong = forked.not_refused(member, other)
                gc.collect()
                return [wrong]

            assert run_in_child(child) == [[]]
            assert await member.commit() == {("t", 0): 1}

    with broker.client() as client:
        client.create_topic("t")
        with client.producer() as producer:
            producer.send("t", b"a", partition=0).result(40)
        with client.consumer("t", group="s") as other:
            assert other.poll(40).value == b"a"
            asyncio.run(main(other))
            assert other.commit() == {("t", 0): 1}
            assert client.describe_group("s").members[0].member_id == other.member_id


def test_in_a_forked_child_asyncio_calls_are_refused_and_the_parents_loop_goes_on(
    broker: Any,
) -> None:
    async def main() -> None:
        async with (
            aio.connect(broker.instance) as client,
            client.consumer("t") as consumer,
            client.consumer("t") as waiting,
        ):
            task = asyncio.create_task(waiting.poll())
            while waiting._wake is None:
                await asyncio.sleep(0.001)

            def child() -> list[Any]:
                wrong = forked.not_refused(client, consumer)
                client._watcher.close()
                gc.collect()
                return [wrong]

            assert run_in_child(child) == [[]]
            with broker.client() as other, other.producer() as producer:
                producer.send("t", b"woken").result(40)
            record = await task
            assert record is not None
            assert record.value == b"woken"
            assert await client.topics() == ["t"]

    with broker.client() as client:
        client.create_topic("t")
    asyncio.run(main())


def test_a_childs_destructors_touch_nothing(broker: Any) -> None:
    with broker.client() as client:
        client.create_topic("t")
        things = [client.consumer("t"), client.consumer("t", start=0)]

        def child() -> list[Any]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                things.clear()
                gc.collect()
            return [str(w.message) for w in caught]

        assert run_in_child(child) == []
        with client.producer() as producer:
            producer.send("t", b"x").result(40)
        for thing in things:
            assert thing.poll(40).value == b"x"
            thing.close()


APP = """
import os
import shmbroker

client = shmbroker.connect()  # preloaded: made in the master, before the fork
client.create_topic("t", if_not_exists=True)
producer = client.producer()
consumer = client.consumer("t", start="earliest")
own = None


def inherited():
    said = []
    for call in (client.topics, lambda: producer.send("t", b"x"), consumer.poll, client.close):
        try:
            call()
            said.append("worked")
        except shmbroker.ForkedError as error:
            said.append(str(error))
    return "; ".join(said)


def made_here():
    global own
    own = own or shmbroker.connect()
    with own.producer() as mine:
        return f"{os.getpid()} {mine.send('t', b'x').result(40).offset}"


def app(environ, start_response):
    body = inherited() if environ["PATH_INFO"] == "/inherited" else made_here()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]
"""


def get(path: Path, url: str) -> str:
    """GET over a Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(40)
        connection.sock.connect(str(path))
        connection.request("GET", url)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()
    finally:
        connection.close()


@pytest.mark.leaves_processes
def test_under_gunicorn_preload_a_worker_is_told_and_makes_its_own_client(
    broker: Any, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    at = tmp_path / "http"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2"]
    command += ["--bind", f"unix:{at}", "--chdir", str(tmp_path), "app:app"]
    log = tmp_path / "gunicorn.log"
    with log.open("wb") as out, subprocess.Popen(command, env=broker.env, stderr=out) as process:
        try:
            while log.read_text().count("Booting worker") < 2:
                assert process.poll() is None, log.read_text()
                os.sched_yield()
            said = get(at, "/inherited")
            assert said.count("made before a fork") == 4, said
            assert said.count("call shmbroker.connect() again after the fork") == 4
            offsets = [int(get(at, "/own").split()[1]) for _ in range(6)]
            assert offsets == list(range(6))  # nothing was sent by those that were refused
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
    assert "Traceback" not in log.read_text(), log.read_text()
