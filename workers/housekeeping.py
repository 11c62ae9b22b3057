"""What the housekeeper does by itself: the engine's wants, and the tick.

Owns: the partitions that this writer serves, which of their wants wait for memory or disk space,
and which of their checkpoints are on the way. Runs in the writer's main thread, which alone touches
files, rings and checkpoints; only the waiting for a checkpoint's syncs is done in another.

Invariants: the roll comes first, since the flushers wait for it; a full disk makes a partition wait
and any other failure takes it offline, the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from shmbroker import errors
from shmbroker._core import engine as core
from shmbroker.config import BrokerSection
from shmbroker.log.files import FULL, disk_full
from shmbroker.workers.logs import get_logger
from shmbroker.workers.loop import Loop
from shmbroker.workers.rings import Rings
from shmbroker.workers.served import Served

_log = get_logger("shmbroker.writer")
T = TypeVar("T")
TICK_S: Final = 0.1
RETRY_S: Final = 0.002  # what waits for memory or disk space is tried again after so long
RETENTION_S: Final = 1.0
SAVING_MAX: Final = 16  # checkpoints on their way to the disk


class Housekeeper:
    """See the module. `tell_state` is told of partitions whose state has changed; `on_retry` is
    called whenever something is tried again."""

    def __init__(
        self,
        engine: core.Engine,
        rings: Rings,
        loop: Loop,
        config: BrokerSection,
        tell_state: Callable[[Served], None],
        on_retry: Callable[[], None],
    ) -> None:
        self._engine, self._rings, self._loop, self._config = engine, rings, loop, config
        self._tell_state, self._on_retry = tell_state, on_retry
        rings.settle = self._settle
        self.served: dict[int, Served] = {}
        self.promises_due = False  # a topic went or was altered: less may be promised now
        self._waiting: dict[int, int] = {}
        self._retry_set = False
        self._retained_at = 0.0
        self._saver = ThreadPoolExecutor(1, "checkpoints")
        self._saving: list[Served] = []  # their checkpoints are on the way

    def start(self) -> None:
        """From now on the loop calls."""
        self._loop.after(TICK_S, self._tick)

    def stop(self) -> None:
        """Returns when nothing is on the way any more."""
        self._saver.shutdown()

    def forget(self, slot: int) -> Served | None:
        """The partition in `slot` is no longer looked after; None if there was none."""
        served = self.served.pop(slot, None)
        self._waiting.pop(slot, None)
        if served in self._saving:
            self._saving.remove(served)
        self.promises_due = True
        return served

    def wanted(self) -> None:
        """The engine has raised its event: does what its partitions want."""
        for part, bits in self._engine.take_wants():
            served = self.served.get(part.slot)
            if served is not None:
                self.act(served, bits)

    def act(self, served: Served, bits: int) -> None:
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
        served = self.served.get(slot)
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

    def _wait_for(self, served: Served, bit: int, seconds: float = RETRY_S) -> None:
        slot = served.place.slot
        self._waiting[slot] = self._waiting.get(slot, 0) | bit
        self.retry_soon(seconds)

    def retry_soon(self, seconds: float = RETRY_S) -> None:
        """Tries what waits again, after so long."""
        if not self._retry_set:
            self._retry_set = True
            self._loop.after(seconds, self._retry)

    def _retry(self) -> None:
        self._retry_set = False
        waiting, self._waiting = self._waiting, {}
        for slot, bits in waiting.items():
            served = self.served.get(slot)
            if served is not None:
                self.act(served, bits)
                if slot not in self._waiting:
                    self._recovered(served)
        self._on_retry()

    def _tick(self) -> None:
        now = time.monotonic()
        self._loop.after(TICK_S, self._tick)
        self._engine.heartbeat()
        self._rings.look(now)
        self._checkpoint(now)
        if now - self._retained_at >= RETENTION_S:
            self._retained_at = now
            self._rings.allow_growth()
            if self.promises_due:
                self.promises_due = False
                found = (s.place.settings.largest_batch_bytes for s in self.served.values())
                self._rings.promise(max(found, default=0), at_least=False)
            for served in self.served.values():
                if served.part is not None and served.part.state in ("online", "no_space"):
                    self._guard(served, partial(served.retain, now_ms()))

    def _checkpoint(self, now: float) -> None:
        """Keeps what a recovery would have to scan within checkpoint_bytes over all partitions, and
        within checkpoint_interval_ms. A thread of its own waits for the disk, for a few at a time:
        a slow sync of one partition holds up no other's roll."""
        for served in [s for s in self._saving if s.settled]:
            self._saving.remove(served)
            self._guard(served, served.settle)
        live = [s for s in self.served.values() if s.part is not None and s.unsaved_bytes > 0]
        unsaved = sum(s.unsaved_bytes for s in live)
        limit = self._config.checkpoint_bytes // 2
        for served in sorted(live, key=lambda s: -s.unsaved_bytes):
            old = now - served.checkpointed_at >= self._config.checkpoint_interval_ms / 1000
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

    def asked(self, served: Served, step: Callable[[], T]) -> T:
        """Something that a request is about; raises what goes wrong, after a failed write or sync
        with the partition offline."""
        try:
            return step()
        except OSError as error:
            if _as_full(served, error) is None:
                self._offline(served, error)
            raise

    def _guard(self, served: Served, step: Callable[[], object]) -> None:
        try:
            step()
        except (OSError, errors.ShmbrokerError) as error:
            if _as_full(served, error) is None:
                self._offline(served, error)
            else:
                _log.warning("no disk space", partition=served.place.name, reason=str(error))


def now_ms() -> int:
    """Milliseconds since 1970, as records' timestamps are."""
    return int(time.time() * 1000)


def _as_full(served: Served, error: Exception) -> errors.DiskFull | None:
    """DiskFull for a full disk, however it was met; None for any other error."""
    if isinstance(error, errors.DiskFull):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return disk_full(served.place.directory, "the files", error)
    return None


__all__ = ["RETRY_S", "Housekeeper", "now_ms"]
