"""The ingress rings of one writer: taken in, watched, let go.

Owns: the descriptors of the rings that the engine has mapped, and who waits for their end. Runs in
the housekeeper.

Invariants: a ring is let go of when what its client had published is appended, or when it holds
rubbish; each `detach_ingress` is answered once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shmbroker._core import engine as core
from shmbroker._core import shm
from shmbroker.control import messages
from shmbroker.control.plan import WriterSpec
from shmbroker.workers.logs import get_logger

_log = get_logger("shmbroker.writer")


class Sources:
    """All of them. `answer(request)` answers a request well; `again` has `let_go` called soon."""

    def __init__(
        self,
        spec: WriterSpec,
        engine: core.Engine,
        answer: Callable[[messages.Request], None],
        again: Callable[[], None],
    ) -> None:
        self._spec, self._engine = spec, engine
        self._answer, self._again = answer, again
        self._objects: dict[int, tuple[shm.ShmObject, shm.ShmObject]] = {}
        self._leaving: dict[int, list[messages.Request]] = {}

    def attach(self, request: messages.Request) -> Mapping[str, Any]:
        """A client's ring and receipts; twice is fine. Raises OSError."""
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

    def detach(self, request: messages.Request) -> Mapping[str, Any] | None:
        """Answered when what the client had published is appended."""
        ingress = request.arg("ingress", int)
        if self._engine.source(ingress) is None:
            return {}
        self._leaving.setdefault(ingress, []).append(request)
        self.let_go()
        return None

    def check(self) -> None:
        """Lets go of rings in which the sequencer has found rubbish."""
        for source in self._engine.all_sources():
            if source.detached is not None and source.id not in self._leaving:
                _log.warning("client detached", ingress=source.id, reason=source.detached)
                self._leaving[source.id] = []
        self.let_go()

    def let_go(self) -> None:
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
                self._answer(request)
        if self._leaving:
            self._again()

    def describe(self) -> list[dict[str, Any]]:
        """For `status`."""
        return [source.describe() for source in self._engine.all_sources()]

    @property
    def pending_bytes(self) -> int:
        """Published by clients and not consumed, in all rings that are read."""
        sources = self._engine.all_sources()
        return sum(source.pending_bytes for source in sources if source.detached is None)


__all__ = ["Sources"]
