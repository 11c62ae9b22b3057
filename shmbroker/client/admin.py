"""What is asked of the acceptor: the control channel, and the administrative calls over it.

Owns: the ZeroMQ DEALER of a Connection (made at the first request, made anew after the broker was
gone, so that nothing queued for a dead broker reaches its successor) and the calls that need
nothing else: topics and status. One request is under way at a time; other threads wait their turn.

A request whose broker dies is sent again to the next one if doing it twice does no harm; otherwise
it ends with OutcomeUnknown. An answer that comes after its caller has given up is dropped by its
number.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from shmbroker.client.group_admin import GroupAdmin
from shmbroker.errors import InvalidTopic, OutcomeUnknown, TimedOut, UnknownTopic, from_wire

if TYPE_CHECKING:
    import zmq

    from shmbroker.client.connection import Connection
    from shmbroker.client.metadata import Metadata, TopicInfo

#: Done twice these leave nothing that the broker doesn't clear away with the client.
_REPEATABLE: Final = frozenset(
    {
        "metadata", "status", "partition_state", "init_producer", "open_ingress", "close_ingress",
        "alter_topic", "delete_records", "heartbeat", "offsets", "group_heartbeat", "group_leave",
        "commit_offsets", "fetch_offsets", "list_groups", "describe_group", "reset_group",
    }
)  # fmt: skip
_SLOW_S: Final = 60.0  # for what waits on disks: topics made, altered and deleted
_DURABLE_END: Final = -1


class Control:
    """The DEALER. `request` is thread-safe; a socket of ZeroMQ's is not, hence the lock."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._socket: zmq.Socket[bytes] | None = None
        self._next_id = 0
        self._stale = False

    def request(self, op: str, timeout: float, args: Mapping[str, Any]) -> dict[str, Any]:
        """See Connection.request."""
        deadline = time.monotonic() + timeout
        repeatable = op in _REPEATABLE or bool(args.get("if_not_exists"))
        while True:
            left = max(0.0, deadline - time.monotonic())
            self._connection.attached(left)
            if not self._lock.acquire(timeout=left):
                raise TimedOut(f"{op}: other requests of this client were not answered in time")
            try:
                self._connection.check()  # closed, while another request was under way
                answer = self._once(op, deadline, args)
            finally:
                self._lock.release()
            if answer is not None:
                return answer
            if op == "shutdown":  # it is gone, which was asked for; its answer went with it
                return {}
            if not repeatable:
                raise OutcomeUnknown(
                    f"the broker went away during {op}; look whether it was done, then try again"
                )

    def _once(self, op: str, deadline: float, args: Mapping[str, Any]) -> dict[str, Any] | None:
        """One attempt; None when the broker went away before it answered."""
        import zmq

        connection = self._connection
        sock = self._open()
        self._next_id += 1
        number, who = self._next_id, connection.attachment
        message = {"v": 1, "id": number, "client": who.client, "token": who.token, "op": op}
        poller = zmq.Poller()
        poller.register(sock, zmq.POLLIN)
        poller.register(connection.gone_fd, zmq.POLLIN)
        try:
            sock.send(orjson.dumps(message | dict(args)), zmq.DONTWAIT)
            while True:
                left = deadline - time.monotonic()
                ready = dict(poller.poll(max(0, round(left * 1000))))
                if sock in ready:
                    reply = orjson.loads(sock.recv())
                    if reply.get("id") != number:
                        continue  # to a request whose caller has given up
                    if "error" in reply:
                        raise from_wire(reply["error"])
                    ok: dict[str, Any] = reply["ok"]
                    return ok
                if ready:
                    connection.check()
                    return None
                if left <= 0:
                    raise TimedOut(f"the broker did not answer {op} in time; it may still do it")
        except zmq.Again:
            raise TimedOut(
                "the broker reads no requests; look at it with: shmbroker status"
            ) from None

    def _open(self) -> zmq.Socket[bytes]:
        import zmq

        if self._stale and self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        self._stale = False
        if self._socket is None:
            self._socket = process_context().socket(zmq.DEALER)
            self._socket.linger = 0
            address = self._connection.control_address
            self._connection.prepare(self._socket, address)
            self._socket.connect(address)
        return self._socket

    def reset(self) -> None:
        """The broker is another one: the next request opens a new socket. Never blocks."""
        self._stale = True

    def close(self) -> None:
        """Closes the channel; the Connection has seen to it that no request waits in it."""
        with self._lock:
            if self._socket is not None:
                self._socket.close(linger=0)
                self._socket = None


_contexts: Final[dict[int, zmq.Context[zmq.Socket[bytes]]]] = {}


def process_context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's ZeroMQ context for all its control channels.

    Never ended: one that the garbage collector meets before its sockets, in the cycle of a client
    that was not closed, would wait for them for ever. By pid, since a forked child must neither use
    its parent's nor let go of it.
    """
    import zmq

    found = _contexts.get(os.getpid())
    if found is None:
        made: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        found = _contexts.setdefault(os.getpid(), made)
        if found is not made:  # another thread was first
            made.term()
    return found


class Admin(GroupAdmin):
    """The administrative calls of a Client."""

    _connection: Connection
    _metadata: Metadata

    def create_topic(
        self,
        name: str,
        partitions: int = 1,
        config: Mapping[str, Any] | None = None,
        if_not_exists: bool = False,
    ) -> TopicInfo:
        """Makes a topic; returns when every partition takes records.

        `config` uses Kafka's names ({"retention.ms": 86_400_000}). Raises TopicExists unless
        `if_not_exists`; InvalidTopic, InvalidPartitions, InvalidConfig, MemoryBudget for what can't
        be. Durable when it returns.
        """
        self._connection.check()
        answer = self._connection.request(
            "create_topic",
            timeout=_SLOW_S,
            name=_topic_name(name),
            partitions=partitions,
            config=dict(config or {}),
            if_not_exists=if_not_exists,
        )
        self._metadata.learn(answer)
        return self._metadata.get(name)

    def alter_topic(
        self,
        name: str,
        config: Mapping[str, Any] | None = None,
        partitions: int | None = None,
    ) -> TopicInfo:
        """Changes a topic's settings, or gives it more partitions; returns it as it is then.

        `config`: only what is to change, by Kafka's names ({"retention.ms": "7d"}); None as a value
        takes a setting back to the broker's default. `partitions`: how many there shall be, never
        fewer than there are; records with a key go by the new number from then on. Running
        producers take both over by themselves, within milliseconds. Raises UnknownTopic,
        InvalidConfig, InvalidPartitions, MemoryBudget (a max.message.bytes for which no ring has
        room), and then nothing has changed; TimedOut or another error that says "is altered" when
        the broker has noted it and a writer does not follow yet. Durable when it returns.
        """
        self._connection.check()
        answer = self._connection.request(
            "alter_topic",
            timeout=_SLOW_S,
            name=_topic_name(name),
            config=dict(config or {}),
            partitions=partitions,
        )
        found = self._metadata.learn(answer).get(name)
        if found is None:
            raise UnknownTopic(name)  # deleted meanwhile
        return found

    def delete_records(
        self,
        topic: str,
        before_offsets: Mapping[int, int | Literal["latest"]] | None = None,
        *,
        partition: int | None = None,
        before_offset: int | Literal["latest"] | None = None,
    ) -> dict[int, int]:
        """Deletes the oldest records: those below an offset, which becomes the log start offset.

        `before_offsets`: {partition: offset}, or `partition` and `before_offset` for one;
        "latest" stands for the durable end, beyond which nothing is deleted whatever was asked.
        Returns {partition: log start offset} as it is then. Durable when it returns; whole segments
        below are gone from the disk, the rest of their segment goes with it later. Raises
        UnknownTopic, PartitionReadOnly, PartitionOffline. May be repeated.
        """
        self._connection.check()
        if (before_offsets is None) == (partition is None or before_offset is None):
            raise TypeError("give {partition: offset}, or partition= and before_offset=")
        if before_offsets is None:
            assert partition is not None
            assert before_offset is not None
            before_offsets = {partition: before_offset}
        wanted = {str(int(number)): _before(offset) for number, offset in before_offsets.items()}
        answer = self._connection.request(
            "delete_records", timeout=_SLOW_S, topic=_topic_name(topic), before_offsets=wanted
        )
        return {int(number): start for number, start in answer["log_start_offsets"].items()}

    def delete_topic(self, name: str) -> None:
        """Deletes a topic and its records; returns when its files are gone."""
        self._connection.check()
        self._connection.request("delete_topic", timeout=_SLOW_S, name=_topic_name(name))
        self._metadata.forget(name)

    def topics(self) -> list[str]:
        """The names of all topics, sorted."""
        self._connection.check()
        return sorted(self._metadata.all())

    def describe_topic(self, name: str) -> TopicInfo:
        """Id, settings and partitions of a topic as they are now; UnknownTopic without it."""
        self._connection.check()
        return self._metadata.refresh(_topic_name(name))

    def status(self) -> dict[str, Any]:
        """What `shmbroker status --json` prints."""
        self._connection.check()
        return self._connection.request("status")


def _before(offset: object) -> int:
    if offset == "latest":
        return _DURABLE_END
    if not isinstance(offset, int) or isinstance(offset, bool):
        raise TypeError(f"an offset is an int or 'latest', not {offset!r}")
    if offset < 0:
        raise ValueError(f"offsets begin at 0: {offset}")
    return offset


def _topic_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a topic's name is a str, not {type(name).__name__}")
    if not name:
        raise InvalidTopic(name)
    return name


__all__ = ["Admin", "Control"]
