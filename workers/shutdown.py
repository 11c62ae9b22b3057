"""How a broker stops: in order, or at once.

In order (SIGTERM, the first SIGINT, `shutdown`): programs elsewhere are told, and the front ends
give on what they have; then local clients are told, and every writer drains, syncs, marks its logs
clean, answers and exits, all within `drain_s`. At once (a second SIGINT): SIGKILL.
Shared memory is unlinked only after the former; otherwise it stays, and the next `up` adopts it,
but for an embedded broker without data to keep, of which nothing stays.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any, Final

from shmbroker.control import messages
from shmbroker.workers.logs import get_logger

if TYPE_CHECKING:
    from shmbroker.workers.acceptor import Acceptor

_MARGIN_S: Final = 5.0  # beyond drain_s, for the last sync and the exit
_SHOW_EVERY_S: Final = 1.0
_FRONT_SHARE: Final = 0.5  # of the time to drain, for the front ends; the rest is the writers'
_log = get_logger("shmbroker.shutdown")


class Shutdown:
    """The state of stopping. Belongs to the acceptor."""

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        self.begun = False
        self.clean = False  # every writer is done and gone: nothing is left to adopt
        self._undone: dict[int, str] = {}  # writer -> why
        self._left_s = 0.0
        self._over = False

    def on_signal(self, signum: int) -> None:
        """SIGTERM and SIGINT stop; SIGINT while stopping stops at once."""
        name = signal.Signals(signum).name
        owner = self._acceptor.options.owner
        if owner is not None and not owner.keeps_data:
            self.discard(name)
        elif not self.begun:
            self.begin(name, None)
        elif signum == signal.SIGINT:
            self._at_once("a second Ctrl+C", 130)

    def owner_gone(self) -> None:
        """The program that this embedded broker belongs to has ended, however: so does the broker,
        in order if its data outlives it, otherwise at once."""
        owner = self._acceptor.options.owner
        assert owner is not None
        self._acceptor.loop.unwatch(owner.pidfd)
        if owner.keeps_data:
            self.begin("its program is gone", None)
        else:
            self.discard("its program is gone")

    def discard(self, why: str) -> None:
        """Ends a broker of which nothing is to stay: nothing is drained, nothing is adopted."""
        self.begun = True
        self._undone.clear()
        self._at_once(why, 0)

    def begin(self, why: str, drain_s: float | None) -> None:
        """Starts to stop; once."""
        if self.begun:
            return
        self.begun = True
        acceptor = self._acceptor
        drain_s = acceptor.config.broker.drain_s if drain_s is None else drain_s
        began_s = time.monotonic()
        _log.info("stopping", why=why, drain_s=drain_s)
        acceptor.notify.stopping(f"{why}: draining for at most {drain_s:g} s")
        self._undone = dict.fromkeys(acceptor.links, "was not asked")
        acceptor.remote.tell_closing()
        self._left_s = drain_s + _MARGIN_S
        acceptor.loop.after(_SHOW_EVERY_S, self._show)
        acceptor.front_ends.stop(
            drain_s * _FRONT_SHARE, lambda: self._stop_writers(time.monotonic() - began_s, drain_s)
        )

    def _stop_writers(self, took_s: float, drain_s: float) -> None:
        """Nobody elsewhere sends any more: now the programs of this host, and what they sent."""
        acceptor = self._acceptor
        self._undone.clear()
        acceptor.attach.tell_all(messages.encode_event("closing"))
        left_s = max(drain_s - took_s, drain_s * (1 - _FRONT_SHARE))
        self._left_s = left_s + _MARGIN_S
        for writer, link in acceptor.links.items():
            self._undone[writer] = "did not answer"
            link.request("stop", {"drain_s": left_s}, self._on_stopped(writer), left_s + _MARGIN_S)
        self.worker_gone()

    def worker_gone(self) -> None:
        """A worker's process is gone: the last one ends the broker."""
        if not self.begun or self._over:
            return
        alive = self._acceptor.supervisor.alive()
        # A writer that died without having drained comes back to do it, while there is time.
        if alive:
            return
        self._over = True
        self.clean = not self._undone
        for writer, why in self._undone.items():
            _log.error("writer not drained; the next up adopts its rings", writer=writer, why=why)
            self._acceptor.exit_code = self._acceptor.exit_code or 1
        _log.info("stopped", clean=self.clean)
        self._acceptor.loop.stop()

    def _on_stopped(self, writer: int) -> Any:
        def stopped(reply: messages.Reply) -> None:
            if reply.error is not None:
                self._undone[writer] = str(reply.error)
                self._acceptor.supervisor.kill(self._acceptor.workers[writer])
            else:
                self._undone.pop(writer, None)
            self._acceptor.supervisor.retire(self._acceptor.workers[writer])
            self._acceptor.links[writer].stopped()
            self.worker_gone()

        return stopped

    def _show(self) -> None:
        self._left_s -= _SHOW_EVERY_S
        waiting = [worker.name for worker in self._acceptor.supervisor.alive()]
        if self._left_s <= -_MARGIN_S:  # answered, and still there: its exit hangs
            self._at_once(f"{', '.join(waiting)} did not exit", 1)
            return
        _log.info("stopping", waiting_for=waiting, at_most_s=max(0.0, self._left_s))
        self._acceptor.notify.status(
            f"waiting for {', '.join(waiting)}", extend_s=_SHOW_EVERY_S + _MARGIN_S
        )
        self._acceptor.loop.after(_SHOW_EVERY_S, self._show)

    def _at_once(self, why: str, exit_code: int) -> None:
        _log.warning("stopping at once", why=why)
        self._acceptor.notify.stopping(f"{why}: at once")
        self._acceptor.exit_code = exit_code
        supervisor = self._acceptor.supervisor
        supervisor.stop_restarting()
        for worker in supervisor.workers:
            supervisor.kill(worker)
        self.worker_gone()


__all__ = ["Shutdown"]
