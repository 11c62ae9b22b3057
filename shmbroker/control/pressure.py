"""How hard a partition is pressed, and why: four states out of what its slot shows.

    ok       producers are taken in as fast as they come
    soft     it fills: a producer that can send less should; nobody waits for long yet
    hard     producers wait for it, now or in a moment
    offline  nothing is taken until somebody mends it

Owns: the rules and the words. `judge` looks at one sample; `Gauge` follows one partition, so that
its state does not flicker: it rises at once, and falls when the partition has been better than the
state's limit, by a margin, for `calm_ms`. The acceptor has a gauge for each partition that is not
at rest (workers/pressure.py), and a local client for each that it was asked about; both feed them
from the writer tables. `PartitionPressure` is what comes out, here and over the wire
(pressure_messages.py).

Invariants: no I/O, no clock: `now_s` is the caller's, and all times are of that clock. The reason
of a state that is not ok is never empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, NamedTuple

from shmbroker.units import about_bytes, about_s

State = Literal["ok", "soft", "hard", "offline"]
STATES: Final[tuple[State, ...]] = ("ok", "soft", "hard", "offline")  # from best to worst

#: What makes the state: a word that programs may go by.
CAUSES: Final = (
    "none",
    "filling",  # the log ring fills: the disk is slower than the producers
    "slow_writes",  # each write takes long
    "waiting",  # a batch waits: for room, a ring, a segment
    "stalled",  # nothing becomes durable
    "no_space",  # the disk is full
    "opening",  # the partition is being recovered
    "writer",  # its writer process is being replaced, or does not answer
    "readonly",  # damage: shmbroker log repair
    "offline",  # a write failed
    "closed",  # the broker stops, or the topic is deleted
    "ingress",  # the producer's own ring to the writer is full
    "unknown",  # nothing is heard from the broker
)

#: Why a batch waits (layout.h, enum shmb_block), in words that follow "a batch waits".
WAITS: Final = {
    "ring_full": "for room in the log ring, which empties as the disk takes it",
    "no_ring": "for a log ring: it is being made or replaced, or the memory budget is used up",
    "segment": "for the next segment file, or its space",
    "opening": "for the partition to be recovered",
}
_SOON: Final = 5  # a batch that has waited for this part of stalled_ms: soft; less is a new ring
_FORGET_S: Final = 1.0  # a state that nobody has looked at for longer says nothing any more
_OF_STATE: Final[dict[str, tuple[State, str]]] = {
    "no_space": ("hard", "the disk is full; it goes on by itself when there is room"),
    "opening": ("hard", "it is being recovered"),
    "readonly": ("offline", "it is damaged and can only be read: see shmbroker log repair"),
    "offline": ("offline", "a write failed; mend the disk, then restart the broker"),
    "closed": ("offline", "it is closed: the broker stops, or the topic is being deleted"),
    "free": ("offline", "it is closed: the broker stops, or the topic is being deleted"),
}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`[pressure]` of the configuration, which has the defaults."""

    soft_fill_percent: int  # of the log ring, or of a producer's own ring: soft from here on
    hard_fill_percent: int  # hard from here on
    margin_percent: int  # so far below a limit the fill must fall before the state does
    slow_write_ms: int  # soft while the mean write takes so long
    stalled_ms: int  # hard when a batch has waited, or nothing become durable, so long; see _SOON
    calm_ms: int  # so long a better state must last before it counts

    @classmethod
    def of(cls, wire: Mapping[str, Any] | None) -> Thresholds | None:
        """From a broker's answer; None if it does not say all."""
        names = [f.name for f in fields(cls)]
        if wire is None or not all(isinstance(wire.get(name), int) for name in names):
            return None
        return cls(**{name: wire[name] for name in names})


class Sample(NamedTuple):
    """What a partition's slot in its writer's table shows at one moment."""

    state: str  # of layout.h
    log_end_position: int
    durable_position: int
    ring_bytes: int  # 0: no ring yet
    write_ns: int  # mean time of a write
    blocked_why: str  # of layout.h; "none": no batch waits
    blocked_ns: int  # CLOCK_MONOTONIC since when one waits; 0: none does


@dataclass(frozen=True, slots=True)
class PartitionPressure:
    """One partition's pressure, and why."""

    topic: str
    partition: int
    state: State = "ok"
    cause: str = "none"  # one of CAUSES
    reason: str = ""  # in words; "" when ok
    since_s: float = 0.0  # seconds that the state has lasted
    ring_fill: float | None = None  # 0 to 1 of the log ring; None: not known, and not much
    ring_bytes: int = 0  # of the log ring now; it grows under load
    unsynced_bytes: int = 0  # appended and not yet durable
    write_ms: float = 0.0  # mean time of a write to the disk
    waits_for: str = ""  # what the batch in front waits for: a key of WAITS; "" when none waits
    ingress_fill: float | None = None  # of the producer's own ring to the writer; None: it has none

    @property
    def rank(self) -> int:
        """For comparisons: the larger, the worse."""
        return STATES.index(self.state)

    def __str__(self) -> str:
        name = f"{self.topic}-{self.partition}"
        return f"{name}: {self.state}" + (f", {self.reason}" if self.reason else "")


class Verdict(NamedTuple):
    """A state, what makes it, and that in words."""

    state: State
    cause: str
    reason: str


CALM: Final = Verdict("ok", "none", "")


def judge(
    sample: Sample,
    limits: Thresholds,
    *,
    now_s: float,
    stalled_s: float = 0.0,
    why: str = "",
    writer: str = "",
    margin_percent: int = 0,
) -> Verdict:
    """What one sample says.

    `stalled_s`: how long the durable position has stood still with something unsynced; `why`: the
    writer's own words for the partition's state; `writer`: what is the matter with its writer, if
    anything. `margin_percent` lowers the limits of fill.
    """
    found = _OF_STATE.get(sample.state)
    if found is not None:
        state, words = found
        cause = "closed" if sample.state == "free" else sample.state
        if state == "offline" or not writer:
            return Verdict(state, cause, why or words)
    if writer:
        return Verdict("hard", "writer", writer)
    blocked_s = now_s - sample.blocked_ns / 1e9 if sample.blocked_ns else 0.0
    waits = WAITS.get(sample.blocked_why, "")
    unsynced = sample.log_end_position - sample.durable_position
    limit_s = limits.stalled_ms / 1000
    if unsynced > 0 and stalled_s >= limit_s:
        return Verdict("hard", "stalled", (
            f"nothing has become durable for {about_s(stalled_s)} and {about_bytes(unsynced)} "
            "wait for it: the disk, or the writer, stands still"))  # fmt: skip
    percent = 100 * unsynced / sample.ring_bytes if sample.ring_bytes else 0.0
    if percent >= limits.hard_fill_percent - margin_percent:
        return Verdict("hard", "filling", _filling(sample, unsynced, percent))
    if waits and blocked_s >= limit_s:
        return Verdict("hard", "waiting", f"a batch waits {waits}, for {about_s(blocked_s)} now")
    if percent >= limits.soft_fill_percent - margin_percent:
        return Verdict("soft", "filling", _filling(sample, unsynced, percent))
    if waits and blocked_s >= limit_s / _SOON:
        return Verdict("soft", "waiting", f"a batch waits {waits}")
    if unsynced > 0 and sample.write_ns >= limits.slow_write_ms * 1_000_000:
        return Verdict("soft", "slow_writes", (
            f"a write to the disk takes {about_s(sample.write_ns / 1e9)}"))  # fmt: skip
    return CALM


def _filling(sample: Sample, unsynced: int, percent: float) -> str:
    return (
        f"its log ring is {percent:.0f} % full ({about_bytes(unsynced)} of "
        f"{about_bytes(sample.ring_bytes)} wait for the disk): the disk is slower than its "
        f"producers, a write takes {about_s(sample.write_ns / 1e9)}"
    )


def silent(seconds: float) -> str:
    """What is the matter with a writer that has not said for so long that it is there."""
    return (
        f"its writer process has said nothing for {seconds:.0f} s: it, or the disk that it writes "
        "to, stands still"
    )


class Gauge:
    """One partition's pressure over time. Not thread-safe."""

    __slots__ = ("_better_since", "_durable", "_now", "_still_since", "sample", "since", "verdict")

    def __init__(self, now_s: float) -> None:
        self.verdict = CALM
        self.since = now_s  # when the state began
        self.sample: Sample | None = None
        self._now = now_s
        self._durable = -1
        self._still_since: float | None = (
            None  # something waits since then, and durable stood still
        )
        self._better_since: float | None = None

    @property
    def at_rest(self) -> bool:
        """Whether there is nothing to follow: it is ok, and nothing waits for the disk."""
        sample = self.sample
        return self.verdict.state == "ok" and (
            sample is None or sample.log_end_position <= sample.durable_position
        )

    def take(
        self, sample: Sample, limits: Thresholds, now_s: float, *, why: str = "", writer: str = ""
    ) -> bool:
        """Takes a sample in; whether the state, its cause, or the writer's words changed."""
        if now_s - self._now > max(_FORGET_S, limits.calm_ms / 1000):
            self.verdict, self._better_since = CALM, None
        self.sample, self._now = sample, now_s
        if sample.log_end_position <= sample.durable_position:
            self._still_since = None
        elif self._still_since is None or sample.durable_position != self._durable:
            self._still_since = now_s
        self._durable = sample.durable_position
        stalled_s = 0.0 if self._still_since is None else now_s - self._still_since
        before = self.verdict
        up = judge(sample, limits, now_s=now_s, stalled_s=stalled_s, why=why, writer=writer)
        rank = STATES.index(before.state)
        if STATES.index(up.state) >= rank:
            self._better_since = None
            return self._become(up)
        margin = limits.margin_percent
        held = judge(sample, limits, now_s=now_s, stalled_s=stalled_s, why=why, writer=writer,
                     margin_percent=margin)  # fmt: skip
        if STATES.index(held.state) >= rank:
            self._better_since = None
            return self._become(held)
        if self._better_since is None:
            self._better_since = now_s
        if now_s - self._better_since >= limits.calm_ms / 1000:
            self._better_since = None
            return self._become(held)
        return False

    def _become(self, verdict: Verdict) -> bool:
        before, self.verdict = self.verdict, verdict
        if verdict.state != before.state:
            self.since = self._now
        # The writer's own words may come a moment after its state.
        return verdict[:2] != before[:2] or (
            verdict.cause in _OF_STATE and verdict.reason != before.reason
        )

    def level(self, topic: str, partition: int) -> PartitionPressure:
        """What it shows, as of the newest sample."""
        sample, (state, cause, reason) = self.sample, self.verdict
        since_s = max(0.0, self._now - self.since)
        if sample is None:
            return PartitionPressure(topic, partition, state, cause, reason, since_s)
        unsynced = max(0, sample.log_end_position - sample.durable_position)
        return PartitionPressure(
            topic,
            partition,
            state,
            cause,
            reason,
            since_s,
            min(1.0, unsynced / sample.ring_bytes) if sample.ring_bytes else 0.0,
            sample.ring_bytes,
            unsynced,
            sample.write_ns / 1e6,
            sample.blocked_why if sample.blocked_why in WAITS else "",
        )


__all__ = [
    "CALM",
    "CAUSES",
    "STATES",
    "WAITS",
    "Gauge",
    "PartitionPressure",
    "Sample",
    "State",
    "Thresholds",
    "Verdict",
    "judge",
    "silent",
]
