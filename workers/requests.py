"""The requests on the control sockets: checked, done, answered. One method an operation.

What each takes and answers is the table in `docs/ARCHITECTURE.md`. A method answers at once by
returning, or later through `answer`; what it raises becomes the error that is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from shmbroker import errors
from shmbroker.control import messages
from shmbroker.control.remote_clients import RemoteClient
from shmbroker.control.sessions import Client, Ring
from shmbroker.workers import alteration, status
from shmbroker.workers.gathering import gather
from shmbroker.workers.topics import Answer
from shmbroker.workers.worker_link import WorkerLink

if TYPE_CHECKING:
    from shmbroker.workers.acceptor import Acceptor

_LOCAL_ONLY: Final = frozenset({"open_ingress", "close_ingress", "open_checkpoints", "shutdown"})


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
            "offsets": self._offsets,
            "group_heartbeat": acceptor.groups.heartbeat,
            "group_leave": acceptor.groups.leave,
            "commit_offsets": acceptor.groups.commit,
            "fetch_offsets": acceptor.groups.fetch,
            "list_groups": acceptor.group_admin.list_groups,
            "describe_group": acceptor.group_admin.describe,
            "reset_group": acceptor.group_admin.reset,
            "delete_group": acceptor.group_admin.delete,
            "delete_group_offsets": acceptor.group_admin.delete_offsets,
            "open_checkpoints": acceptor.groups.open_checkpoints,
            "status": self._status,
            "shutdown": self._shutdown,
        }

    def handle(self, data: bytes, send: Callable[[bytes], object]) -> None:
        """One request of a local client; answers once, now or later."""
        respond(data, send, self._local)

    def run(self, client: Client, request: messages.Request, answer: Answer) -> None:
        """What `client`, who is known, asks. Raises what is refused at once."""
        do = self._ops.get(request.op)
        if do is None:
            raise errors.InvalidRequest(
                f"unknown operation {request.op!r:.60}; allowed: {', '.join(self._ops)}"
            )
        if isinstance(client, RemoteClient) and request.op in _LOCAL_ONLY:
            raise errors.AuthorizationFailed(
                f"{request.op} is for programs of the broker's user on its host; do it there"
            )
        if request.op not in ("status", "shutdown"):
            self.check_running(client.pid)
        do(client, request, answer)

    def check_running(self, pid: int = 0) -> None:
        """Raises BrokerGone while the broker stops; its own front ends have work to finish then."""
        acceptor = self._acceptor
        if acceptor.shutdown.begun and pid not in acceptor.front_ends.pids:
            raise errors.BrokerGone("the broker is stopping")

    def _local(self, request: messages.Request, answer: Answer) -> None:
        client = self._acceptor.sessions.get(
            request.optional("client", int), request.optional("token", str)
        )
        self.run(client, request, answer)

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

    def _offsets(self, _client: Client, request: messages.Request, answer: Answer) -> None:
        self._acceptor.offsets.find(
            request.arg("topic", str),
            request.optional("partitions", list),
            request.optional("at_ms", int),
            answer,
        )

    def _status(self, _client: Client, _request: messages.Request, answer: Answer) -> None:
        acceptor = self._acceptor
        links: dict[int | str, WorkerLink] = dict(acceptor.links.items())
        links |= acceptor.front_ends.links.items()
        asked = [key for key, link in links.items() if link.state == "ready"]
        told: dict[int | str, Mapping[str, Any]] = {}
        left = len(asked)

        def answered(key: int | str, reply: messages.Reply) -> None:
            nonlocal left
            left -= 1
            if reply.error is None:
                told[key] = reply.ok
            if not left:
                answer(gather(acceptor, self._started_s, told))

        for key in asked:
            links[key].request("status", {}, partial(answered, key), status.ASK_LIMIT_S)
        if not asked:
            answer(gather(acceptor, self._started_s, told))


def respond(
    data: bytes,
    send: Callable[[bytes], object],
    do: Callable[[messages.Request, Answer], None],
) -> None:
    """Has `do` answer the request that `data` is, once, now or later; whatever else it is, and
    what `do` raises, is answered with the error."""
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
        do(request, answer)
    except errors.ShmbrokerError as error:
        if request_id is None:
            request_id = getattr(error, "request_id", None)
        answer(error)


__all__ = ["ControlRequests", "respond"]
