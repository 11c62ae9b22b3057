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
from collections.abc import Mapping
from typing import Any

import zmq

from shmbroker import errors
from shmbroker._core import engine as core
from shmbroker._core import shm
from shmbroker.config import TopicSettings
from shmbroker.control import messages
from shmbroker.control.datadir import lock_shared
from shmbroker.control.plan import WriterSpec
from shmbroker.log.files import sync_directory
from shmbroker.log.iomode import IoMode, detect_io_mode
from shmbroker.workers import logs
from shmbroker.workers.acceptor_link import AcceptorLink
from shmbroker.workers.housekeeping import RETRY_S, Housekeeper, now_ms
from shmbroker.workers.lifecycle import adopt_parent
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop
from shmbroker.workers.opening import Opener
from shmbroker.workers.rings import Rings, require_budget
from shmbroker.workers.served import Assignment, Served
from shmbroker.workers.sources import Sources

_log = get_logger("shmbroker.writer")


class Writer:
    """One writer's control plane; everything in one thread."""

    def __init__(self, spec: WriterSpec, engine: core.Engine, opener: Opener, rings: Rings) -> None:
        self._spec = spec
        self._engine = engine
        self._opener = opener
        self._rings = rings
        self._loop = Loop()
        self._keeper = Housekeeper(
            engine, rings, self._loop, spec.config.broker, self._tell_state, self._let_go
        )
        self._sources = Sources(spec, engine, self._well, self._keeper.retry_soon)
        self._threads: list[threading.Thread] = []
        operations = {
            "open": self._open,
            "assign": self._assign,
            "unassign": self._unassign,
            "settings": self._settings,
            "delete_records": self._delete_records,
            "attach_ingress": self._sources.attach,
            "detach_ingress": self._sources.detach,
            "status": self._status,
            "memory": self._memory,
            "stop": self._stop,
        }
        self._acceptor = AcceptorLink(
            zmq.Context.instance(), spec.workers_address, "a writer", operations
        )

    def run(self) -> None:
        """Serves until told to stop."""
        self._engine.claim()
        self._acceptor.hello(writer=self._spec.writer, pid=os.getpid())
        self._loop.watch(self._acceptor.socket, self._acceptor.receive)
        self._loop.watch(self._engine.events_fd, self._wanted)
        self._keeper.start()
        self._loop.run()
        self._loop.close()
        self._acceptor.close()

    # -- requests --------------------------------------------------------------------------------

    def _well(self, request: messages.Request) -> None:
        self._acceptor.reply(request, {})

    def _let_go(self) -> None:
        self._sources.let_go()

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
                for slot in set(range(self._engine.slots)) - self._keeper.served.keys():
                    self._opener.forget(slot)
            self._start_threads()
        return {"partitions": opened}

    def _serve(self, served: Served) -> None:
        self._keeper.served[served.place.slot] = served
        self._rings.promise(served.place.settings.largest_batch_bytes)
        if served.log is not None:
            writers = max(1, len(self._spec.cpus_allowed) - 1)  # as many as us, at most
            served.log.sharers = len(self._keeper.served) * writers

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
        served = self._keeper.forget(slot)
        if served is None:
            return {}
        if served.part is not None:
            served.part.set_state("closed")
        log = served.log
        served.close(self._engine, self._rings)
        if log is not None and request.optional("delete", bool):
            shutil.rmtree(served.place.directory)
            sync_directory(os.path.dirname(served.place.directory))
        self._engine.free_slot(slot)
        return {}

    def _settings(self, request: messages.Request) -> Mapping[str, Any]:
        """Answered when they are in force."""
        served = self._keeper.served.get(request.arg("slot", int))
        if served is not None:
            settings = TopicSettings.from_kafka(
                request.arg("settings", dict), self._spec.config.log
            )
            self._rings.promise(settings.largest_batch_bytes)
            reach = self._opener.reach(settings)
            self._keeper.asked(served, lambda: served.alter(settings, reach))
            self._keeper.promises_due = True
        return {}

    def _delete_records(self, request: messages.Request) -> Mapping[str, Any]:
        """Answered when the new log start is durable; whole segments below are gone then too."""
        slot = request.arg("slot", int)
        served = self._keeper.served.get(slot)
        if served is None:
            raise errors.InvalidRequest(f"slot {slot} has no partition")
        before = request.arg("before_offset", int)
        start = self._keeper.asked(served, lambda: served.delete_records(before, now_ms()))
        return {"log_start_offset": start}

    def _memory(self, request: messages.Request) -> Mapping[str, Any]:
        """Another writer came or went: this is the new share of the memory budget."""
        self._rings.budget_bytes = request.arg("log_memory_bytes", int)
        return {}

    def _status(self, _request: messages.Request) -> Mapping[str, Any]:
        return {
            "partitions": [served.describe() for served in self._keeper.served.values()],
            "ingress": self._sources.describe(),
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
        pending = self._sources.pending_bytes
        if pending and time.monotonic() < deadline:
            self._loop.after(RETRY_S, lambda: self._drain(request, deadline))
            return
        self._engine.stop_sequencer()
        clean = pending == 0
        for served in self._keeper.served.values():
            if served.part is not None and served.part.state in ("online", "no_space"):
                self._keeper.act(
                    served, served.part.wants
                )  # a roll that waits would keep it from draining
                left = max(0.1, deadline - time.monotonic())
                clean_here = served.part.wait_drained(left)
                clean = clean and clean_here
                self._keeper.act(served, served.part.wants)
        self._engine.stop_flushers()
        for thread in self._threads:
            thread.join()
        self._keeper.stop()
        for served in self._keeper.served.values():
            try:
                served.close(self._engine, self._rings)
            except (OSError, errors.ShmbrokerError) as error:
                _log.error("closing failed", partition=served.place.name, reason=str(error))
        self._acceptor.reply(request, {"drained": clean})
        self._loop.stop()

    def _wanted(self) -> None:
        self._keeper.wanted()
        self._sources.check()

    def _tell_state(self, served: Served) -> None:
        state = "offline" if served.part is None else served.part.state
        self._acceptor.tell(
            "partition_state", slot=served.place.slot, state=state, reason=served.reason
        )


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
    io_mode = IoMode("buffered", reason="[broker] direct_io is false")
    if spec.config.broker.direct_io:
        io_mode = detect_io_mode(str(spec.data_dir))
    opener = Opener(engine, rings, io_mode, spec.io.flush_max_bytes)
    Writer(spec, engine, opener, rings).run()
    lock.release()


__all__ = ["Writer", "main"]
