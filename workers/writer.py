"""A writer process: one sequencer thread, flusher threads, and this housekeeper.

The main thread runs the event loop: requests of the acceptor over ZeroMQ, wants of the engine
over an eventfd, and a tick. It alone touches files, rings and checkpoints. The sequencer and the
flushers run in C without the GIL (sequencer.h, appender.h) and never wait for this thread unless
a partition needs a file or a ring that was not made ahead in time.

Ends when told to (`stop`: drain, sync, clean marker), or with its acceptor (lifecycle.py).
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import zmq

from shmbroker import errors
from shmbroker._core import engine as core
from shmbroker._core import shm
from shmbroker.config import TopicSettings
from shmbroker.control import messages
from shmbroker.control.datadir import lock_shared
from shmbroker.control.plan import WriterSpec
from shmbroker.log.files import FULL, disk_full, sync_directory
from shmbroker.log.iomode import detect_io_mode
from shmbroker.workers import logfile, logs
from shmbroker.workers.lifecycle import adopt_parent
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop
from shmbroker.workers.opening import Opener
from shmbroker.workers.rings import Rings, require_budget
from shmbroker.workers.served import Assignment, Served

_log = get_logger("shmbroker.writer")
TICK_S: Final = 0.1
RETRY_S: Final = 0.002  # what waits for memory or disk space is tried again after so long
RETENTION_S: Final = 1.0
SAVING_MAX: Final = 16  # checkpoints on their way to the disk


class Writer:
    """One writer's control plane; everything in one thread."""

    def __init__(self, spec: WriterSpec, engine: core.Engine, opener: Opener, rings: Rings) -> None:
        self._spec = spec
        self._engine = engine
        self._opener = opener
        self._rings = rings
        rings.settle = self._settle
        self._loop = Loop()
        self._served: dict[int, Served] = {}
        self._objects: dict[int, tuple[shm.ShmObject, shm.ShmObject]] = {}
        self._leaving: dict[int, list[messages.Request]] = {}
        self._waiting: dict[int, int] = {}
        self._retry_set = False
        self._retained_at = 0.0
        self._saver = ThreadPoolExecutor(1, "checkpoints")
        self._saving: list[Served] = []  # their checkpoints are on the way
        self._promises_due = False  # a topic went or was altered: less may be promised now
        self._threads: list[threading.Thread] = []
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._ops: dict[str, Callable[[messages.Request], Mapping[str, Any] | None]] = {
            "open": self._open,
            "assign": self._assign,
            "unassign": self._unassign,
            "settings": self._settings,
            "delete_records": self._delete_records,
            "attach_ingress": self._attach,
            "detach_ingress": self._detach,
            "status": self._status,
            "memory": self._memory,
            "log": self._log_file,
            "stop": self._stop,
        }

    def run(self) -> None:
        """Serves until told to stop."""
        self._engine.claim()
        self._socket.connect(self._spec.workers_address)
        self._send(messages.encode_request("hello", 0, writer=self._spec.writer, pid=os.getpid()))
        self._loop.watch(self._socket, self._receive)
        self._loop.watch(self._engine.events_fd, self._wanted)
        self._loop.after(TICK_S, self._tick)
        self._loop.run()
        self._loop.close()
        self._socket.close(linger=1000)

    # -- requests --------------------------------------------------------------------------------

    def _send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def _receive(self) -> None:
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = messages.decode(frame)
            if isinstance(message, messages.Request):
                self._answer(message)

    def _answer(self, request: messages.Request) -> None:
        try:
            operation = self._ops.get(request.op)
            if operation is None:
                raise errors.InvalidRequest(f"a writer knows no operation {request.op!r}")
            answer = operation(request)
        except (errors.ShmbrokerError, OSError) as error:
            self._send(messages.encode_error(request.id, error))
            return
        if answer is not None:
            self._send(messages.encode_reply(request.id, answer))

    def _open(self, request: messages.Request) -> Mapping[str, Any]:
        """Opens partitions of the plan; the last such request (no `more`) starts the threads."""
        adopt = bool(request.optional("adopt", bool))
        places = [self._place(entry) for entry in request.arg("slots", list)]
        opened = []
        for place in places:
            started = time.monotonic()
            served = self._opener.open(place, adopt=adopt)
            self._serve(served)
            opened.append(self._opened(served) | {"seconds": time.monotonic() - started})
        if not request.optional("more", bool):
            if adopt:
                for slot in set(range(self._engine.slots)) - self._served.keys():
                    self._opener.forget(slot)
            self._start_threads()
        return {"partitions": opened}

    def _serve(self, served: Served) -> None:
        self._served[served.place.slot] = served
        self._rings.promise(served.place.settings.largest_batch_bytes)
        if served.log is not None:
            writers = max(1, len(self._spec.cpus_allowed) - 1)  # as many as us, at most
            served.log.sharers = len(self._served) * writers

    def _opened(self, served: Served) -> dict[str, Any]:
        recovery = None if served.log is None else served.log.recovery
        return {
            "slot": served.place.slot,
            "state": "offline" if served.part is None else served.part.state,
            "reason": served.reason,
            "scanned_bytes": 0 if recovery is None else recovery.scanned_bytes,
            "cut_bytes": 0 if recovery is None else recovery.cut_bytes,
        }

    def _start_threads(self) -> None:
        names = [("sequencer", self._sequence)]
        names += [
            (f"flusher-{n}", self._engine.run_flusher) for n in range(self._spec.io.flush_depth)
        ]
        for name, target in names:
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _sequence(self) -> None:
        self._engine.run_sequencer()

    def _place(self, entry: Mapping[str, Any]) -> Assignment:
        directory = str(self._spec.data_dir / str(entry["directory"]))
        settings = TopicSettings.from_kafka(entry["settings"], self._spec.config.log)
        return Assignment(
            int(entry["slot"]),
            int(entry["slot_epoch"]),
            str(entry["topic"]),
            str(entry["topic_id"]),
            int(entry["partition"]),
            directory,
            settings,
        )

    def _assign(self, request: messages.Request) -> Mapping[str, Any]:
        place = self._place(request.args)
        served = self._opener.open(place, adopt=False)
        self._serve(served)
        return self._opened(served)

    def _unassign(self, request: messages.Request) -> Mapping[str, Any]:
        """Drains, closes, and with `delete` removes the files."""
        slot = request.arg("slot", int)
        served = self._served.pop(slot, None)
        if served is None:
            return {}
        self._waiting.pop(slot, None)
        if served in self._saving:
            self._saving.remove(served)
        if served.part is not None:
            served.part.set_state("closed")
        log = served.log
        served.close(self._engine, self._rings)
        if log is not None and request.optional("delete", bool):
            shutil.rmtree(served.place.directory)
            sync_directory(os.path.dirname(served.place.directory))
        self._engine.free_slot(slot)
        self._promises_due = True
        return {}

    def _settings(self, request: messages.Request) -> Mapping[str, Any]:
        """Answered when they are in force."""
        served = self._served.get(request.arg("slot", int))
        if served is not None:
            settings = TopicSettings.from_kafka(
                request.arg("settings", dict), self._spec.config.log
            )
            self._rings.promise(settings.largest_batch_bytes)
            served.alter(settings, self._opener.reach(settings))
            self._promises_due = True
        return {}

    def _delete_records(self, request: messages.Request) -> Mapping[str, Any]:
        """Answered when the new log start is durable; whole segments below are gone then too."""
        slot = request.arg("slot", int)
        served = self._served.get(slot)
        if served is None:
            raise errors.InvalidRequest(f"slot {slot} has no partition")
        start = served.delete_records(request.arg("before_offset", int), _now_ms())
        return {"log_start_offset": start}

    def _memory(self, request: messages.Request) -> Mapping[str, Any]:
        """Another writer came or went: this is the new share of the memory budget."""
        self._rings.budget_bytes = request.arg("log_memory_bytes", int)
        return {}

    def _log_file(self, request: messages.Request) -> Mapping[str, Any]:
        """The broker's log goes on in a new file of that name."""
        logfile.reopen(request.arg("path", str))
        return {}

    def _attach(self, request: messages.Request) -> Mapping[str, Any]:
        ingress = request.arg("ingress", int)
        if self._engine.source(ingress) is not None:
            return {}
        ids = (bytes.fromhex(self._spec.boot_id), bytes.fromhex(self._spec.data_dir_id))
        prefix = self._spec.shm_prefix
        ring = shm.open_existing(f"{prefix}-i{ingress}", shm.KIND_INGRESS, *ids)
        receipts = shm.open_existing(f"{prefix}-r{ingress}", shm.KIND_RECEIPTS, *ids, writable=True)
        self._engine.add_source(
            ingress,
            ring.fileno(),
            receipts.fileno(),
            request.arg("capacity", int),
            request.arg("slots", int),
        )
        self._objects[ingress] = (ring, receipts)
        return {}

    def _detach(self, request: messages.Request) -> Mapping[str, Any] | None:
        """Answered when what the client had published is appended."""
        ingress = request.arg("ingress", int)
        if self._engine.source(ingress) is None:
            return {}
        self._leaving.setdefault(ingress, []).append(request)
        self._let_go()
        return None

    def _let_go(self) -> None:
        """Frees the rings of clients that left, once they are empty or hold rubbish."""
        for ingress, requests in list(self._leaving.items()):
            source = self._engine.source(ingress)
            if source is not None:
                if source.pending_bytes and source.detached is None:
                    continue
                self._engine.remove_source(ingress)
                for found in self._objects.pop(ingress):
                    found.close()
            del self._leaving[ingress]
            for request in requests:
                self._send(messages.encode_reply(request.id, {}))
        if self._leaving:
            self._retry_soon()

    def _status(self, _request: messages.Request) -> Mapping[str, Any]:
        return {
            "partitions": [served.describe() for served in self._served.values()],
            "ingress": [source.describe() for source in self._engine.all_sources()],
            "writer": {
                "pid": os.getpid(),
                "flushers": self._engine.flushers,
                "cpus": sorted(os.sched_getaffinity(0)),
                "ring_memory_bytes": self._rings.used_bytes,
                "ring_budget_bytes": self._rings.budget_bytes,
            },
        }

    def _stop(self, request: messages.Request) -> None:
        """Drains for at most `drain_s`, makes everything durable, and ends the process."""
        drain_s = request.args.get("drain_s")
        deadline = time.monotonic() + (30.0 if drain_s is None else float(drain_s))
        self._drain(request, deadline)

    def _drain(self, request: messages.Request, deadline: float) -> None:
        pending = sum(
            source.pending_bytes for source in self._engine.all_sources() if source.detached is None
        )
        if pending and time.monotonic() < deadline:
            self._loop.after(RETRY_S, lambda: self._drain(request, deadline))
            return
        self._engine.stop_sequencer()
        clean = pending == 0
        for served in self._served.values():
            if served.part is not None and served.part.state in ("online", "no_space"):
                self._act(
                    served, served.part.wants
                )  # a roll that waits would keep it from draining
                left = max(0.1, deadline - time.monotonic())
                clean_here = served.part.wait_drained(left)
                clean = clean and clean_here
                self._act(served, served.part.wants)
        self._engine.stop_flushers()
        for thread in self._threads:
            thread.join()
        self._saver.shutdown()
        for served in self._served.values():
            try:
                served.close(self._engine, self._rings)
            except (OSError, errors.ShmbrokerError) as error:
                _log.error("closing failed", partition=served.place.name, reason=str(error))
        self._send(messages.encode_reply(request.id, {"drained": clean}))
        self._loop.stop()

    # -- the engine's wants ----------------------------------------------------------------------

    def _wanted(self) -> None:
        for part, bits in self._engine.take_wants():
            served = self._served.get(part.slot)
            if served is not None:
                self._act(served, bits)
        self._check_sources()

    def _check_sources(self) -> None:
        for source in self._engine.all_sources():
            if source.detached is not None and source.id not in self._leaving:
                _log.warning("client detached", ingress=source.id, reason=source.detached)
                self._leaving[source.id] = []
        self._let_go()

    def _act(self, served: Served, bits: int) -> None:
        """Does what a partition wants, the roll first: the flushers wait for it."""
        part = served.part
        if part is None:
            return
        steps: tuple[tuple[int, Callable[[], object]], ...] = (
            (core.WANT_ROLL, served.roll),
            (core.WANT_RING, lambda: self._provide(served)),
            (core.WANT_ALLOC, served.extend),
            (core.WANT_NEXT, served.prepare_next),
            (core.WANT_SEAL, served.seal),
            (core.WANT_INDEX, served.collect_index),
            (core.WANT_FAILED, lambda: self._failed(served)),
        )
        for bit, step in steps:
            if bits & bit:
                part.done(bit)
                try:
                    step()
                except (OSError, errors.ShmbrokerError) as error:
                    full = _as_full(served, error)
                    if full is None:
                        self._offline(served, error)
                        return
                    self._no_space(served, bit, full)

    def _provide(self, served: Served) -> None:
        part = served.part
        assert part is not None
        try:
            done = rings_done = served.first_append(self._rings) if not part.ring_bytes else True
            if rings_done and part.ring_bytes and part.ring_need > part.ring_bytes:
                done = self._rings.provide(part, None)
        except errors.MemoryBudget as error:
            _log.warning("no memory for a ring", partition=served.place.name, reason=str(error))
            done = False
        if not done:
            self._wait_for(served, core.WANT_RING)
        elif self._waiting.get(part.slot):
            self._recovered(served)

    def _settle(self, slot: int) -> None:
        served = self._served.get(slot)
        if served is not None and served.part is not None and served.part.roll_waits is not None:
            served.part.done(core.WANT_ROLL)
            served.roll()

    def _no_space(self, served: Served, bit: int, error: errors.DiskFull) -> None:
        part = served.part
        assert part is not None
        if part.state == "online":
            served.reason = str(error)
            part.set_state("no_space", errors.DiskFull.kafka_code)
            _log.warning(
                "partition waits for disk space", partition=served.place.name, reason=str(error)
            )
            self._tell_state(served)
        self._wait_for(served, bit, TICK_S)

    def _recovered(self, served: Served) -> None:
        part = served.part
        if part is not None and part.state == "no_space":
            served.reason = ""
            part.set_state("online")
            _log.info("partition has disk space again", partition=served.place.name)
            self._tell_state(served)

    def _offline(self, served: Served, error: Exception) -> None:
        served.reason = f"{served.place.name}: {error}"
        if served.part is not None:
            served.part.set_state("offline", errors.PartitionOffline.kafka_code)
        _log.error("partition offline", partition=served.place.name, reason=str(error))
        self._tell_state(served)

    def _failed(self, served: Served) -> None:
        served.fail()
        self._tell_state(served)

    def _tell_state(self, served: Served) -> None:
        state = "offline" if served.part is None else served.part.state
        self._send(
            messages.encode_event(
                "partition_state", slot=served.place.slot, state=state, reason=served.reason
            )
        )

    def _wait_for(self, served: Served, bit: int, seconds: float = RETRY_S) -> None:
        slot = served.place.slot
        self._waiting[slot] = self._waiting.get(slot, 0) | bit
        self._retry_soon(seconds)

    def _retry_soon(self, seconds: float = RETRY_S) -> None:
        if not self._retry_set:
            self._retry_set = True
            self._loop.after(seconds, self._retry)

    def _retry(self) -> None:
        self._retry_set = False
        waiting, self._waiting = self._waiting, {}
        for slot, bits in waiting.items():
            served = self._served.get(slot)
            if served is not None:
                self._act(served, bits)
                if slot not in self._waiting:
                    self._recovered(served)
        self._let_go()

    # -- the tick --------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        self._loop.after(TICK_S, self._tick)
        self._engine.heartbeat()
        self._rings.look(now)
        self._checkpoint(now)
        if now - self._retained_at >= RETENTION_S:
            self._retained_at = now
            self._rings.allow_growth()
            if self._promises_due:
                self._promises_due = False
                found = (s.place.settings.largest_batch_bytes for s in self._served.values())
                self._rings.promise(max(found, default=0), at_least=False)
            for served in self._served.values():
                if served.part is not None and served.part.state in ("online", "no_space"):
                    self._guard(served, partial(served.retain, _now_ms()))

    def _checkpoint(self, now: float) -> None:
        """Keeps what a recovery would have to scan within checkpoint_bytes over all partitions, and
        within checkpoint_interval_ms. A thread of its own waits for the disk, for a few at a time:
        a slow sync of one partition holds up no other's roll."""
        for served in [s for s in self._saving if s.settled]:
            self._saving.remove(served)
            self._guard(served, served.settle)
        broker = self._spec.config.broker
        live = [s for s in self._served.values() if s.part is not None and s.unsaved_bytes > 0]
        unsaved = sum(s.unsaved_bytes for s in live)
        limit = broker.checkpoint_bytes // 2
        for served in sorted(live, key=lambda s: -s.unsaved_bytes):
            old = now - served.checkpointed_at >= broker.checkpoint_interval_ms / 1000
            if not old and unsaved <= limit:
                continue
            if len(self._saving) >= SAVING_MAX or time.monotonic() - now > TICK_S / 2:
                return
            if served in self._saving:
                continue
            unsaved -= served.unsaved_bytes
            served.checkpointed_at = now
            self._guard(served, partial(self._begin_checkpoint, served))

    def _begin_checkpoint(self, served: Served) -> None:
        if served.begin_checkpoint(self._saver.submit):
            self._saving.append(served)

    def _guard(self, served: Served, step: Callable[[], object]) -> None:
        try:
            step()
        except (OSError, errors.ShmbrokerError) as error:
            if _as_full(served, error) is None:
                self._offline(served, error)
            else:
                _log.warning("no disk space", partition=served.place.name, reason=str(error))


def _now_ms() -> int:
    return int(time.time() * 1000)


def _as_full(served: Served, error: Exception) -> errors.DiskFull | None:
    """DiskFull for a full disk, however it was met; None for any other error."""
    if isinstance(error, errors.DiskFull):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return disk_full(served.place.directory, "the files", error)
    return None


def main(spec: WriterSpec) -> None:
    """A writer process, from its start to its end."""
    adopt_parent(spec)
    logs.set_process(f"writer-{spec.writer}")
    ids = (bytes.fromhex(spec.boot_id), bytes.fromhex(spec.data_dir_id))
    lock = lock_shared(spec.data_dir)
    memory = spec.config.memory
    require_budget(spec.log_memory_bytes, memory)
    table = shm.open_existing(spec.table_name, shm.KIND_WRITER, *ids, writable=True)
    park = shm.open_existing(f"{spec.shm_prefix}-p", shm.KIND_PARK, *ids, writable=True)
    trace = os.environ.get("SHMBROKER_TRACE_WRITES")
    trace_fd = -1
    if trace:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        trace_fd = os.open(f"{trace}.{spec.writer}.{os.getpid()}", flags, 0o600)
    engine = core.Engine(
        table.fileno(),
        park.fileno(),
        flush_max_bytes=spec.io.flush_max_bytes,
        idle=spec.io.idle,
        trace_fd=trace_fd,
    )
    rings = Rings(engine, spec.shm_prefix, spec.writer, *ids, spec.log_memory_bytes, memory)
    io_mode = detect_io_mode(str(spec.data_dir))
    opener = Opener(engine, rings, io_mode, spec.io.flush_max_bytes)
    Writer(spec, engine, opener, rings).run()
    lock.release()


__all__ = ["Writer", "main"]
