"""The requests on the control socket: checked, done, answered. One method an operation.

What each takes and answers is the table in `docs/ARCHITECTURE.md`. A method answers at once by
returning, or later through `answer`; what it raises becomes the error that is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.control.sessions import Client, Ring
from shmbroker.workers import alteration, status
from shmbroker.workers.logs import get_logger
from shmbroker.workers.topics import Answer

if TYPE_CHECKING:
    from shmbroker.workers.acceptor import Acceptor

_log = get_logger("shmbroker.control")


class ControlRequests:
    """Answers clients. Belongs to the acceptor's one thread."""

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        self._started_s = time.time()
        self._ops: Mapping[str, Callable[[Client, messages.Request, Answer], None]] = {
            "metadata": self._metadata,
            "create_topic": self._create_topic,
            "alter_topic": self._alter_topic,
            "delete_topic": self._delete_topic,
            "delete_records": self._delete_records,
            "init_producer": self._init_producer,
            "open_ingress": self._open_ingress,
            "close_ingress": self._close_ingress,
            "partition_state": self._partition_state,
            "status": self._status,
            "shutdown": self._shutdown,
        }

    def handle(self, data: bytes, send: Callable[[bytes], None]) -> None:
        """One request; answers once, now or later."""
        request_id: int | None = None

        def answer(result: Mapping[str, Any] | BaseException) -> None:
            if isinstance(result, BaseException):
                send(messages.encode_error(request_id, result))
                return
            try:
                send(messages.encode_reply(request_id, result))
            except errors.InvalidRequest as error:  # too long
                send(messages.encode_error(request_id, error))

        try:
            request = messages.decode_request(data)
            request_id = request.id
            client = self._acceptor.sessions.get(
                request.optional("client", int), request.optional("token", str)
            )
            do = self._ops.get(request.op)
            if do is None:
                raise errors.InvalidRequest(
                    f"unknown operation {request.op!r}; allowed: {', '.join(self._ops)}"
                )
            if self._acceptor.shutdown.begun and request.op not in ("status", "shutdown"):
                raise errors.BrokerGone("the broker is stopping")
            do(client, request, answer)
        except errors.ShmbrokerError as error:
            if request_id is None:
                request_id = getattr(error, "request_id", None)
            answer(error)

    def _metadata(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        names = request.optional("topics", list)
        answer({"topics": self._acceptor.topics.metadata(names)})

    def _create_topic(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        self._acceptor.topics.create(
            request.arg("name", str),
            request.arg("partitions", int),
            request.optional("config", dict) or {},
            bool(request.optional("if_not_exists", bool)),
            answer,
        )

    def _delete_topic(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        self._acceptor.topics.delete(request.arg("name", str), answer)

    def _alter_topic(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        alteration.alter(
            self._acceptor.topics,
            self._acceptor.state.meta,
            request.arg("name", str),
            request.optional("config", dict) or {},
            request.optional("partitions", int),
            answer,
        )

    def _delete_records(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        alteration.delete_records(
            self._acceptor.topics,
            request.arg("topic", str),
            request.arg("before_offsets", dict),
            answer,
        )

    def _init_producer(self, _client: Client, _request: messages.Request, answer: Answer) -> None:
        answer({"producer_id": self._acceptor.state.meta.allocate_producer_id(), "epoch": 0})

    def _open_ingress(self, client: Client, request: messages.Request, answer: Answer) -> None:
        acceptor = self._acceptor
        writer = request.arg("writer", int)
        if writer not in acceptor.links:
            raise errors.InvalidRequest(
                f"there is no writer {writer}; there are: {sorted(acceptor.links)}"
            )
        asked, slots = request.arg("capacity", int), request.arg("slots", int)
        if asked < 0 or slots < 0:
            raise errors.InvalidRequest(f"capacity {asked} and slots {slots} must be 0 or more")
        ingress = acceptor.sessions.next_ingress()
        capacity, slots = acceptor.state.memory.make_ingress(ingress, client.pid, asked, slots)
        ring = Ring(ingress, client.client, writer, capacity, slots)
        acceptor.sessions.add_ring(client, ring)

        def attached(reply: messages.Reply) -> None:
            if reply.error is not None:
                acceptor.close_ring(ring)
                answer(reply.error)
                return
            ring.attached = True
            answer({"ingress": ingress, "capacity": capacity, "slots": slots})

        args = {"ingress": ingress, "client": client.client, "capacity": capacity, "slots": slots}
        acceptor.ask(writer, "attach_ingress", args, attached)

    def _close_ingress(self, client: Client, request: messages.Request, answer: Answer) -> None:
        ingress = request.arg("ingress", int)
        ring = client.rings.get(ingress)
        if ring is None or ring.closing:
            answer({})  # closed before: that is what was asked for
            return
        self._acceptor.close_ring(ring, lambda reply: answer(reply.error or {}))

    def _partition_state(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        topic, partition = request.arg("topic", str), request.arg("partition", int)
        answer(self._acceptor.topics.state(topic, partition))

    def _shutdown(self, client: Client, request: messages.Request, answer: Answer) -> None:
        drain_s = request.args.get("drain_s")
        if drain_s is not None and (
            isinstance(drain_s, bool) or not isinstance(drain_s, (int, float)) or drain_s < 0
        ):
            raise errors.InvalidRequest(f"drain_s must be a number of seconds, and is {drain_s!r}")
        answer({})
        self._acceptor.shutdown.begin(f"asked by pid {client.pid}", drain_s)

    def _status(self, _client: Client, _request: messages.Request, answer: Answer) -> None:
        links = self._acceptor.links
        asked = [w for w, link in links.items() if link.state == "ready"]
        told: dict[int, Mapping[str, Any]] = {}
        left = len(asked)

        def answered(writer: int, reply: messages.Reply) -> None:
            nonlocal left
            left -= 1
            if reply.error is None:
                told[writer] = reply.ok
            if not left:
                answer(self._gather(told))

        for writer in asked:
            links[writer].request("status", {}, partial(answered, writer), status.ASK_LIMIT_S)
        if not asked:
            answer(self._gather(told))

    def _gather(self, told: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        acceptor = self._acceptor
        state, places = acceptor.state, acceptor.options.places
        links = {writer: link.state for writer, link in acceptor.links.items()}
        partitions = status.partitions_status(state.memory, state.plan, acceptor.topics, told)
        return acceptor.describe() | {
            "state": "stopping" if acceptor.shutdown.begun else
                     "running" if acceptor.ready else "starting",
            "started_s": self._started_s,
            "uptime_s": round(time.time() - self._started_s, 3),
            "endpoints": {name: places.socket_path(name)
                          for name in ("attach", "control", "events", "workers")},
            "processes": acceptor.supervisor.processes(),
            "writers_limit": state.plan.writers_limit,
            "memory": state.memory.usage(),
            "writers": status.writers_status(state.memory, state.plan, links, told),
            "topics": len(acceptor.topics.topics()),
            "partition_states": status.totals(partitions),
            "partitions": partitions,
            "clients": status.clients_status(
                state.memory.prefix, acceptor.sessions, partitions, told
            ),
        }  # fmt: skip


__all__ = ["ControlRequests"]
