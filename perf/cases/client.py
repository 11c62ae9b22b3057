"""The client's own costs: asyncio against sync, eight threads against one, imports, `embedded()`.

The two sides of a ratio take turns in one process with the same values, so that a slow minute of
the machine falls on both.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Final

import shmbroker
from shmbroker.perf.case import Bench, Case, Sizes, written
from shmbroker.perf.clients import Receiver, Sender
from shmbroker.perf.remote import Remote
from shmbroker.perf.report import Limit, Row, against
from shmbroker.perf.rounds import repeat
from shmbroker.perf.values import ValueSpec

_TOPIC: Final = "client"
_THREADS: Final = 8
_LEAST_AIO: Final = 0.50  # of the sync rate
_LEAST_THREADS: Final = 1.00  # of the one-thread rate
_MOST_IMPORT_S: Final = 0.100
_MOST_EMBEDDED_S: Final = 0.5


def _run_sending(bench: Bench) -> list[Row]:
    spec = ValueSpec(bench.sizes.values)
    rates: dict[str, list[float]] = {"loop": [], "loop_aio": [], "loop_threads": []}
    bare: list[float] = []
    plan = bench.sizes.plan
    with (
        bench.broker() as broker,
        broker.connect() as client,
        Remote(Receiver, broker.address) as receiver,
        Remote(Sender, broker.address, _TOPIC, spec) as sender,
    ):
        client.create_topic(_TOPIC)
        expected, sent = sender.call("checksum"), 0
        for n in range(plan.warmups + plan.rounds):
            for how, found in rates.items():
                took = float(sender.call(how, *([_THREADS] if how == "loop_threads" else [])))
                if how == "loop_threads":  # of threads only each one's own order is known
                    good = receiver.call("is_permutation", _TOPIC, {0: sent}, spec)
                else:
                    good = receiver.call("checksum", _TOPIC, {0: sent}, spec.count) == expected
                if not good:
                    raise AssertionError(f"{how}: what came out is not what went in")
                sent += spec.count
                if n >= plan.warmups:
                    found.append(spec.count / took)
            if n >= plan.warmups:
                one, several = sender.call("bare_loop"), sender.call("bare_threads", _THREADS)
                bare.append(float(one) / float(several))
    sync, note = rates["loop"], "100 B, every receipt kept, durable at the end; values equal"
    language = {f"of a call that does nothing, {_THREADS} threads to one": statistics.median(bare)}
    return [
        against(
            "asyncio-send", "asyncio send one by one", rates["loop_aio"], sync,
            "sync send one by one", _LEAST_AIO, note,
        ),
        against(
            "threads-send", f"send from {_THREADS} threads, in total", rates["loop_threads"], sync,
            "from one thread", _LEAST_THREADS, note, language,
        ),
    ]  # fmt: skip


def _run_starting(bench: Bench) -> list[Row]:
    plan = bench.sizes.plan
    bare = repeat(lambda: _interpreter("pass"), plan)
    whole = repeat(lambda: _interpreter("import shmbroker"), plan)
    connect = repeat(lambda: _interpreter("from shmbroker import connect"), plan)
    imports = [took - statistics.median(bare) for took in whole]
    embedded = repeat(_embedded, plan)
    return [
        Row(
            case="import",
            figure="import shmbroker",
            unit="s",
            values=tuple(imports),
            limit=Limit("an interpreter that imports nothing", statistics.median(bare), "s"),
            target="<= 0.100 s",
            met=statistics.median(imports) <= _MOST_IMPORT_S,
            more={"with connect s": statistics.median(connect) - statistics.median(bare)},
        ),
        Row(
            case="embedded",
            figure="embedded(): connected",
            unit="s",
            values=tuple(embedded),
            target="<= 0.5 s",
            met=statistics.median(embedded) <= _MOST_EMBEDDED_S,
        ),
    ]


def _interpreter(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def _embedded() -> float:
    began = time.perf_counter()
    with shmbroker.embedded():
        return time.perf_counter() - began


def _space(sizes: Sizes) -> int:
    return 3 * (sizes.plan.rounds + sizes.plan.warmups) * written(sizes.values, 100)


CASES: Final = (
    Case("client-send", "asyncio and threads against a plain loop", _run_sending, _space),
    Case("client-start", "what a program waits for at its start", _run_starting, lambda _: 0),
)

__all__ = ["CASES"]
