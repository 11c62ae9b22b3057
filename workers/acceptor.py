"""The acceptor: one process, one thread, that starts the others and answers everything but records.

    up      lock the data directory, load `meta.db`, take over or sweep shared memory, plan, start
            the writers, bind the sockets; ready when every writer has opened its partitions
    down    "closing" to clients, `stop` to writers, unlink shared memory, close the store, unlock

Owns: the data directory's lock while it runs, the instance's runtime directory, and every object
of shared memory but the log rings. The messages are in `docs/ARCHITECTURE.md`.

Invariants: nothing here waits but the loop; shared memory is unlinked only if every writer said
that all is drained and on disk, otherwise it stays for the next `up` to adopt; after SIGKILL of
this process its children die (lifecycle.py) and the kernel gives the locks back.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import zmq

from shmbroker import errors
from shmbroker.config import LoadedConfig, Places
from shmbroker.control import messages
from shmbroker.control.attach import AttachServer, Connection
from shmbroker.control.keys import write_private
from shmbroker.control.listening import plan_listening
from shmbroker.control.plan import cores_for_writers
from shmbroker.control.remote_clients import RemoteClient
from shmbroker.control.sessions import Client, Ring, Sessions
from shmbroker.workers import logs
from shmbroker.workers.broker_state import BrokerState
from shmbroker.workers.events import Events
from shmbroker.workers.front_ends import FrontEnds
from shmbroker.workers.group_admin import GroupAdmin
from shmbroker.workers.groups import Groups
from shmbroker.workers.logfile import LogFile
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop
from shmbroker.workers.notify import Notify
from shmbroker.workers.offsets import Offsets
from shmbroker.workers.pressure import Pressures
from shmbroker.workers.program import Owner
from shmbroker.workers.remote_control import RemoteControl
from shmbroker.workers.requests import ControlRequests
from shmbroker.workers.routing import bind_unix, received, send
from shmbroker.workers.shutdown import Shutdown
from shmbroker.workers.supervisor import Supervisor, Worker
from shmbroker.workers.topics import Topics
from shmbroker.workers.worker_channel import WorkerChannel
from shmbroker.workers.worker_link import OnDone
from shmbroker.workers.writer_link import WriterLink

CLAIM_GRACE_S: Final = 30.0  # for clients of a killed broker to attach again
WRITER_MODULE: Final = "shmbroker.workers.writer"
_DETACH_LIMIT_S: Final = 365 * 86_400.0  # a dead client's rest is appended, however long it takes
_log = get_logger("shmbroker.acceptor")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `up` was asked for."""

    places: Places
    loaded: LoadedConfig
    ready_fd: int | None = None  # told {"pid": …} or {"error": …} once; the detached parent waits
    writer_module: str = WRITER_MODULE  # tests put a writer without an engine here
    owner: Owner | None = None  # of an embedded broker
    log_file: str | None = None  # what standard error leads to, for a detached broker
    front_module: str | None = None  # tests put readers and ingress without sockets here


class Acceptor:
    """One broker, from `start` to the end of `run`."""

    def __init__(self, options: UpOptions) -> None:
        self.options = options
        self.config = options.loaded.config
        self.loop = Loop()
        self.exit_code = 0
        self.ready = False
        self.links: dict[int, WriterLink] = {}
        self.workers: dict[int, Worker] = {}
        self.on_ready: list[Any] = []
        self.notify = Notify()
        self.shutdown = Shutdown(self)
        self.loop.signals({signal.SIGTERM, signal.SIGINT}, self.shutdown.on_signal)
        self.supervisor = Supervisor(self.loop, self.config.supervision, self._worker_gone)
        self.state = BrokerState.open(options.places, self.config)
        try:
            self._start()
        except BaseException:
            self.state.close(unlink=not self.state.adopted)
            raise

    def _start(self) -> None:
        state, places = self.state, self.options.places
        self.topics = Topics(
            state.meta, state.plan, state.memory, places.data_dir, self.config.log, self,
            self._tell_changed,
        )  # fmt: skip
        self.sessions = Sessions(places.runtime_dir, state.boot_id.hex(), state.dir.data_dir_id)
        self.sessions.restore(state.memory.ingress_rings())
        state.memory.sweep_ingress(set(self.sessions.rings))
        limit = state.writers_limit
        self.cores = cores_for_writers(state.cpus, limit, self.config.broker.pin)

        self.zmq = zmq.Context(io_threads=1)
        self.control = self._bind("control")
        self.loop.watch(self.control, self._control_readable)
        self.workers_socket = self._bind("workers")
        self.channel = WorkerChannel(self.workers_socket)
        self.loop.watch(self.workers_socket, self.channel.readable)
        self.offsets = Offsets(self.topics, state.plan, state.memory, self.loop)
        self.groups = Groups(
            self.config.groups, state.meta, self.topics, state.plan, state.memory, self.loop,
            self._tell_client,
        )  # fmt: skip
        self.group_admin = GroupAdmin(
            self.groups, self.topics, state.plan, state.memory, self.offsets
        )
        self.topics.on_made = self.groups.topics_changed
        self.requests = ControlRequests(self)
        self._open_events()
        self._listen()
        self.topics.resume()
        at_start = min(state.writers_at_start, state.plan.writers_limit)
        self.need_writers(sorted(state.plan.writers | set(range(at_start))))
        self.attach = AttachServer(
            places.socket_path("attach"), self.loop, self._on_attach, self._on_hangup
        )
        if self.options.owner is not None:
            self.loop.watch(self.options.owner.pidfd, self.shutdown.owner_gone)
        if self.options.log_file is not None:
            says = self.config.logging
            LogFile(self.options.log_file, says.max_bytes, says.keep, self.loop, self._new_log_file)
        logs.configure()  # only now: the writers are starting meanwhile
        if self.sessions.clients:
            self.loop.after(CLAIM_GRACE_S, self._end_grace)
        self.front_ends.start()

    def _open_events(self) -> None:
        """The channel that everybody may hear, and who follows what is told there."""
        state = self.state
        self.events = Events(self.zmq, self.loop, lambda: self.pressure.tell_all())
        self.pressure = Pressures(
            self.config.pressure, state.memory, state.plan, self.links,
            lambda place: self.topics.place_state(place)["reason"], self.events, self.loop,
        )  # fmt: skip
        self.events.bind(self.options.places.zmq_address("events"))
        self.pressure.start()

    def _listen(self) -> None:
        """Decides on what listens, and binds control; the front ends bind the rest."""
        places, loaded = self.options.places, self.options.loaded
        self.listening = plan_listening(places, loaded)
        self.front_ends: FrontEnds = FrontEnds(
            self.listening, places, self.loop, self.supervisor, self.channel, self._look_ready,
            self.options.front_module,
        )  # fmt: skip
        self.remote = RemoteControl(
            self.listening, loaded, self.zmq, self.loop, self.requests, self.describe,
            self.sessions.next_client,
        )  # fmt: skip
        if self.listening is None:
            self.options.places.token_file.unlink(missing_ok=True)
            return
        self.remote.open()
        self.events.listen(self.listening, loaded)
        write_private(places.token_file, self.listening.token.encode() + b"\n")
        if self.listening.is_insecure:
            _log.warning(
                "everybody who reaches this address may read what goes by, and with the token "
                "everything: listen.insecure is set and there are no keys",
                address=self.listening.tcp_endpoint("control"),
            )

    def run(self) -> int:
        """Runs until the end; returns the exit code."""
        try:
            self.loop.run()
        except BaseException:
            # They would wait for our end, and multiprocessing's helper, and so we, for theirs.
            self.supervisor.kill_all()
            raise
        finally:
            self._close()
        return self.exit_code

    # Writers: what WriterLink and Topics ask for

    def need_writers(self, writers: Iterable[int]) -> None:
        """Starts those that are not there yet, and shares the memory out anew."""
        fresh = [w for w in writers if w not in self.links]
        for writer in fresh:
            adopt = writer in self.state.memory.tables
            if not adopt:
                self.state.memory.make_table(writer, self.state.plan.table_slots)
                self.state.plan.add_writer(writer)
            self.links[writer] = WriterLink(writer, adopt, self, self.loop, self.channel.send)
        for writer in fresh:
            self.workers[writer] = self.supervisor.add(
                f"writer-{writer}",
                "writer",
                self.options.writer_module,
                partial(self._writer_spec, writer),
            )
            self.channel.add(
                self.links[writer], self.workers[writer], partial(self._partition_state, writer)
            )
        if fresh:
            share = {"log_memory_bytes": self._log_memory_bytes()}
            for writer in self.links.keys() - set(fresh):
                self.links[writer].request("memory", share, _ignore)

    def ask(self, writer: int, op: str, args: Mapping[str, Any], on_done: OnDone) -> None:
        """A request to a writer; waits while it is away."""
        self.links[writer].request(op, args, on_done)

    def slots_to_open(self, writer: int) -> list[dict[str, Any]]:
        """See `writer_link.Owner`."""
        return [self.topics.assign_args(place) for place in self.state.plan.of_writer(writer)
                if place.topic in self.topics.topics()]  # fmt: skip

    def rings_to_attach(self, writer: int) -> list[dict[str, Any]]:
        """See `writer_link.Owner`."""
        rings = self.sessions.rings.values()
        return [_ring_args(ring) for ring in rings if ring.writer == writer and ring.attached]

    def writer_opened(self, writer: int, partitions: Iterable[Mapping[str, Any]]) -> None:
        """See `writer_link.Owner`."""
        self.workers[writer].ready = True
        for found in partitions:
            self.topics.told(writer, found)
        self.pressure.look_soon()
        _log.info("writer ready", writer=writer, pid=self.workers[writer].pid)
        self._look_ready()

    def _look_ready(self) -> None:
        """Ready is when all partitions are open, and all that listens is bound."""
        links = self.links.values()
        if self.ready or not self.front_ends.ready or any(link.state != "ready" for link in links):
            return
        self.ready = True
        self.state.write_broker_file(self.describe())
        self.notify.ready(f"up, data in {self.options.places.data_dir}")
        for told in self.on_ready:
            told()

    def writer_failed(self, writer: int, error: errors.ShmbrokerError) -> None:
        """See `writer_link.Owner`."""
        _log.error("writer can't open its partitions", writer=writer, cause=str(error))
        self.supervisor.kill(self.workers[writer])

    def _writer_spec(self, writer: int) -> Any:
        return self.state.writer_spec(
            writer,
            workers_address=self.options.places.zmq_address("workers"),
            log_memory_bytes=self._log_memory_bytes(),
            cpus=self.cores.get(writer),
            adopt=self.links[writer].adopt,
        )

    def _log_memory_bytes(self) -> int:
        return self.state.memory.log_memory_bytes(max(1, len(self.state.plan.writers)))

    def _new_log_file(self) -> None:
        for link in (*self.links.values(), *self.front_ends.links.values()):
            link.request("log", {"path": self.options.log_file}, _ignore)

    def _worker_gone(self, worker: Worker) -> None:
        self.channel.gone(worker)
        self.pressure.look_soon()
        self.front_ends.worker_gone()
        self.shutdown.worker_gone()

    def _partition_state(self, writer: int, event: messages.Event) -> None:
        if event.name == "partition_state":
            self.topics.told(writer, event.args)
            self.pressure.look_soon()

    # Sockets

    def _bind(self, name: str) -> zmq.Socket[bytes]:
        sock = self.zmq.socket(zmq.ROUTER)
        sock.linger = 0
        sock.setsockopt(zmq.MAXMSGSIZE, messages.MAX_REPLY_BYTES)
        bind_unix(sock, self.options.places.zmq_address(name))
        return sock

    def _control_readable(self) -> None:
        for identity, data in received(self.control):
            self.requests.handle(data, partial(send, self.control, identity))

    # Clients

    def _tell_changed(self, topics: list[str]) -> None:
        """Clients ask anew for these topics, those that missed an event for all they know."""
        self.attach.tell_all(
            messages.encode_event("topics", names=topics),
            instead=messages.encode_event("topics", names=None),
        )
        self.remote.tell_changed(topics)
        self.groups.topics_changed()

    def _tell_client(self, client: Client, event: bytes) -> None:
        """Somebody attached here or elsewhere hears of it, if it is there and has room."""
        if isinstance(client, RemoteClient):
            self.remote.tell(client, event)
        elif client.connection is not None:
            client.connection.send(event)

    def _on_attach(self, connection: Connection, request: messages.Request) -> Mapping[str, Any]:
        if self.shutdown.begun:
            raise errors.BrokerGone("the broker is stopping")
        pid = connection.pid or request.optional("pid", int) or 0
        claim, token = request.optional("client", int), request.optional("token", str)
        before = self.sessions.clients.get(claim) if claim is not None else None
        old = before.connection if before is not None else None
        client = self.sessions.attach(
            connection, pid, (request.optional("name", str) or "")[:200], claim, token
        )
        if client is before and old is not None:  # its old connection is dead, we just don't know
            self.attach.drop(old)
        return self.describe() | {
            "client": client.client,
            "token": client.token,
            "claimed": client is before,
            "ingress": sorted(client.rings),
        }

    def _on_hangup(self, connection: Connection) -> None:
        client = self.sessions.clients.get(connection.client or 0)
        if client is None or client.connection is not connection:
            return
        client.connection = None
        self.groups.client_gone(client)
        for ring in list(client.rings.values()):
            self.close_ring(ring)
        self.sessions.forget_if_gone(client)

    def _end_grace(self) -> None:
        for client in list(self.sessions.clients.values()):
            if client.connection is None:
                self.groups.client_gone(client)
                for ring in list(client.rings.values()):
                    self.close_ring(ring)
                self.sessions.forget_if_gone(client)

    def close_ring(self, ring: Ring, on_done: OnDone | None = None) -> None:
        """Has the writer append what is published and let go; then the ring is unlinked."""
        if ring.closing and on_done is None:
            return
        ring.closing = True

        def detached(reply: messages.Reply) -> None:
            if reply.error is not None and self.shutdown.begun:
                pass  # the writer drains all its rings as it stops, and all are unlinked then
            elif reply.error is not None:
                _log.error("ring not detached", ingress=ring.ingress, cause=str(reply.error))
            else:
                self.state.memory.drop_ingress(ring.ingress)
                self.sessions.remove_ring(ring)
            if on_done is not None:
                on_done(reply)

        link = self.links[ring.writer]
        link.request("detach_ingress", {"ingress": ring.ingress}, detached, _DETACH_LIMIT_S)

    def describe(self) -> dict[str, Any]:
        """What every client is told, and `broker.json` says."""
        places, state = self.options.places, self.state
        return {
            "instance": places.instance,
            "data_dir": str(places.data_dir),
            "runtime_dir": str(places.runtime_dir),
            "data_dir_id": state.dir.data_dir_id,
            "boot_id": state.boot_id.hex(),
            "prefix": state.memory.prefix,
            "control": places.socket_path("control"),
            "broker_pid": os.getpid(),
            "writers": len(self.links),
            "format": state.dir.format_version,
            "adopted": state.adopted,
            "events": places.socket_path("events"),
            "pressure": asdict(self.pressure.limits),
            "listen": self.describe_listening(),
        }

    def describe_listening(self) -> dict[str, Any] | None:
        """What is bound for programs elsewhere; None: nothing."""
        listening = self.listening
        if listening is None:
            return None
        return listening.endpoints() | {
            "token_file": str(self.options.places.token_file),
            "curve": listening.curve is not None,
            "tls": listening.tls is not None,
            "keys": str(listening.keys.path) if listening.keys else None,
        }

    def _close(self) -> None:
        self.attach.close()
        self.events.close()
        self.remote.close()
        self.offsets.close()
        self.groups.close()
        for sock in (self.control, self.workers_socket):
            self.loop.unwatch(sock)
            sock.close(linger=0)
        self.zmq.destroy(linger=0)
        self.state.close(unlink=self.shutdown.clean)
        self.loop.close()


def _ring_args(ring: Ring) -> dict[str, Any]:
    return {"ingress": ring.ingress, "client": ring.client, "capacity": ring.capacity,
            "slots": ring.slots}  # fmt: skip


def _ignore(_reply: messages.Reply) -> None:
    """An answer that changes nothing."""


__all__ = ["CLAIM_GRACE_S", "WRITER_MODULE", "Acceptor", "UpOptions"]
