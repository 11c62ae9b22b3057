"""A worker's answers to its acceptor: each request once, and no request ends the worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zmq

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.workers import acceptor_link
from shmbroker.workers.acceptor_link import AcceptorLink

LIMIT_MS = 40_000


class Station:
    """An acceptor's socket, and the link of a worker to it."""

    def __init__(self) -> None:
        self.later: list[messages.Request] = []
        self.context = zmq.Context()
        self.acceptor = self.context.socket(zmq.ROUTER)
        self.acceptor.bind("inproc://workers")
        operations = {"add": self.add, "later": self.later.append, "disk": self.disk}
        self.link = AcceptorLink(self.context, "inproc://workers", "a tester", operations)
        self.link.hello(worker="tester-0", pid=7)
        self.identity, data = self.acceptor.recv_multipart()
        hello = messages.decode_request(data)
        assert (hello.op, hello.args) == ("hello", {"worker": "tester-0", "pid": 7})

    def add(self, request: messages.Request) -> Mapping[str, Any]:
        return {"sum": request.arg("a", int) + request.arg("b", int)}

    def disk(self, _request: messages.Request) -> Mapping[str, Any]:
        raise OSError(28, "No space left on device")

    def ask(self, op: str, number: int = 1, **args: Any) -> None:
        self.acceptor.send_multipart([self.identity, messages.encode_request(op, number, **args)])
        assert self.link.socket.poll(LIMIT_MS)
        self.link.receive()

    def heard(self) -> Any:
        assert self.acceptor.poll(LIMIT_MS)
        return messages.decode(self.acceptor.recv_multipart()[1])

    def asked(self, op: str, **args: Any) -> Mapping[str, Any]:
        self.ask(op, **args)
        return dict(self.heard().result())


@pytest.fixture
def station() -> Iterator[Station]:
    made = Station()
    yield made
    made.link.close()
    made.acceptor.close(linger=0)
    made.context.term()


def test_requests_are_answered_at_once_or_later_under_their_own_number(station: Station) -> None:
    station.ask("later", 1)
    station.ask("add", 2, a=1, b=2)
    station.link.tell("partition_state", slot=3)
    station.link.reply(station.later[0], {"at": "last"})
    assert station.heard() == messages.Reply(2, {"sum": 3})
    assert station.heard() == messages.Event("partition_state", args={"slot": 3})
    assert station.heard() == messages.Reply(1, {"at": "last"})


def test_what_can_t_be_done_is_answered_with_the_error_and_the_worker_goes_on(
    station: Station,
) -> None:
    with pytest.raises(errors.InvalidRequest, match="a tester knows no operation 'explode'"):
        station.asked("explode")
    with pytest.raises(errors.InvalidRequest, match="'b' is missing"):
        station.asked("add", a=1)
    with pytest.raises(errors.ShmbrokerError, match="No space left"):
        station.asked("disk")
    assert station.asked("add", a=1, b=1) == {"sum": 2}


def test_an_answer_that_is_too_long_is_answered_with_that(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_REPLY_BYTES", 200)
    station.ask("later")
    station.link.reply(station.later[0], {"long": "x" * 300})
    with pytest.raises(errors.InvalidRequest, match="200"):
        station.heard().result()


def test_all_that_has_come_is_answered_by_one_look(station: Station) -> None:
    for number in (1, 2):
        request = messages.encode_request("add", number, a=number, b=0)
        station.acceptor.send_multipart([station.identity, request])
    station.ask("add", 3, a=3, b=0)
    assert [station.heard().id for _ in range(3)] == [1, 2, 3]


def test_every_worker_goes_on_in_a_new_log_file(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reopened: list[str] = []
    monkeypatch.setattr(acceptor_link.logfile, "reopen", reopened.append)
    assert station.asked("log", path=str(tmp_path / "broker.log")) == {}
    assert reopened == [str(tmp_path / "broker.log")]
