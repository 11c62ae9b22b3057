"""The ring, receipt, token and park protocols as Promela models, explored exhaustively by spin.

`tests/model/*.pml` say what each models. Every model must hold; every variant that is broken on
purpose must be found faulty, which shows that the model would notice.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parent.parent / "model"
STACK_DEPTH = 2_000_000
LIMIT_S = 120


@dataclass(frozen=True)
class Outcome:
    errors: int
    states: int
    text: str


def _run(command: list[str], where: Path) -> str:
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def explore(
    where: Path,
    model: str,
    defines: tuple[str, ...],
    *,
    ltl: str | None = None,
    quick: bool = False,
) -> Outcome:
    """Builds and runs the verifier.

    `ltl`: that property alone (`-A`), in every execution, however unfair; otherwise assertions and
    end states. `quick`: a fault is near, so building would cost more than running.
    """
    if shutil.which("spin") is None:
        pytest.fail("spin is missing: install Debian's package `spin` (apt-get install spin)")
    flags = [f"-D{define}" for define in defines]
    _run(["spin", "-a", *flags, str(MODELS / f"{model}.pml")], where)
    kind = [] if ltl else ["-DSAFETY", "-DNOCLAIM"]
    _run(["gcc", "-O0" if quick else "-O2", "-w", *kind, "-o", "pan", "pan.c"], where)
    options = ["-a", "-A", "-N", ltl] if ltl else []
    text = _run(["./pan", f"-m{STACK_DEPTH}", *options], where)
    found = re.search(r"errors: (\d+)", text)
    states = re.search(r"([\d.e+]+) states, stored", text)
    assert found, text
    assert states, text
    assert "max search depth too small" not in text, text
    assert "out of memory" not in text, text
    return Outcome(int(found.group(1)), int(float(states.group(1))), text)


HOLDS = [
    ("park", ("ROUNDS=1", "DEATHS=1")),
    ("park", ("ROUNDS=2", "DEATHS=0")),
    ("ingress", ("DEATHS=2",)),
    ("token", ("APPENDS=3", "DEATHS=1")),
    ("logring", ("DEATHS=2",)),
    ("logindex", ("DEATHS=1",)),
    ("flushsegment", ("DEATHS=2",)),
]

BROKEN = [
    ("park", ("ROUNDS=1", "DEATHS=0", "NO_WAITER_FENCE"), "invalid end state"),
    ("park", ("ROUNDS=1", "DEATHS=0", "NO_WAKER_FENCE"), "invalid end state"),
    ("park", ("ROUNDS=1", "DEATHS=0", "NO_RECHECK"), "invalid end state"),
    ("park", ("ROUNDS=1", "DEATHS=0", "PLAIN_FLAG"), "invalid end state"),
    ("park", ("ROUNDS=1", "DEATHS=1", "PLAIN_WAKE_AFTER_DEATH"), "invalid end state"),
    ("ingress", ("DEATHS=1", "NO_INTENT"), "assertion violated"),
    ("ingress", ("DEATHS=1", "INTENT_LATE"), "assertion violated"),
    ("ingress", ("DEATHS=2", "INTENT_UNGUARDED"), "assertion violated"),
    ("ingress", ("DEATHS=1", "TAIL_FIRST"), "assertion violated"),
    ("ingress", ("DEATHS=1", "TRUST_OFFSET"), "assertion violated"),
    ("ingress", ("DEATHS=1", "REDO_RECEIPTED"), "assertion violated"),
    ("token", ("DEATHS=0", "NO_SECOND_LOOK"), "assertion violated"),
    ("token", ("DEATHS=0", "NO_RELEASE_FENCE"), "assertion violated"),
    ("token", ("DEATHS=0", "NO_REQUEST_FENCE"), "assertion violated"),
    ("token", ("DEATHS=0", "PAIR_FIRST"), "assertion violated"),
    ("token", ("DEATHS=0", "SILENT_HOUSEKEEPER"), "assertion violated"),
    ("token", ("DEATHS=1", "NO_REPLAY"), "assertion violated"),
    ("token", ("DEATHS=0", "TOKEN_IGNORED"), "assertion violated"),
    ("logring", ("NO_CHECK",), "assertion violated"),
    ("logring", ("NO_RELEASE_FENCE",), "assertion violated"),
    ("logring", ("NO_ACQUIRE_FENCE",), "assertion violated"),
    ("logring", ("RESERVED_BACK",), "assertion violated"),
    ("logindex", ("NO_CHECK",), "assertion violated"),
    ("logindex", ("RELAXED_ENTRY",), "assertion violated"),
    ("flushsegment", ("NO_CHECK",), "assertion violated"),
    ("flushsegment", ("NO_RELEASE_FENCE",), "assertion violated"),
    ("flushsegment", ("LEFT_ODD",), "invalid end state"),
]


def _name(case: object) -> str:
    return "-".join(case) if isinstance(case, tuple) else str(case).replace(" ", "_")


@pytest.mark.parametrize(("model", "defines"), HOLDS, ids=_name)
def test_the_protocol_holds_in_every_state(
    model: str, defines: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = explore(tmp_path, model, defines)
    print(f"{model} {' '.join(defines)}: {outcome.states} states")
    assert outcome.errors == 0, outcome.text
    assert outcome.states > 1000, outcome.text


@pytest.mark.parametrize(("model", "defines", "fault"), BROKEN, ids=_name)
def test_the_broken_variant_is_found(
    model: str, defines: tuple[str, ...], fault: str, tmp_path: Path
) -> None:
    outcome = explore(tmp_path, model, defines, quick=True)
    assert outcome.errors == 1, outcome.text
    assert fault in outcome.text


def test_everything_appended_becomes_durable_in_the_end(tmp_path: Path) -> None:
    outcome = explore(tmp_path, "token", ("APPENDS=2", "DEATHS=1"), ltl="flushed")
    print(f"token, flushed: {outcome.states} states")
    assert outcome.errors == 0, outcome.text


def test_without_a_second_look_something_stays_unwritten_for_ever(tmp_path: Path) -> None:
    outcome = explore(
        tmp_path, "token", ("APPENDS=2", "DEATHS=0", "NO_SECOND_LOOK"), ltl="flushed", quick=True
    )
    assert outcome.errors == 1, outcome.text
    assert "acceptance cycle" in outcome.text
