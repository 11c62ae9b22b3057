"""How a broker ends when not all is well with it: nobody reads its log, or it fails itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
from processes import living
from waiting import LIMIT_S, eventually

UP = [sys.executable, "-m", "shmbroker.cli.main", "up"]
FAILING = """
import sys
from shmbroker.cli.main import app
from shmbroker.workers.shutdown import Shutdown

def begin(self, why, drain_s):
    raise RuntimeError("made to fail")

Shutdown.begin = begin
sys.argv = ["shmbroker", "up"]
app()
"""


def ended(command: list[str], env: dict[str, str], *, deaf: bool) -> tuple[int, str]:
    """Starts a broker, sends SIGTERM when it is up; its exit code, and what it said after that.

    `deaf`: nobody reads its standard error by then. Fails when a process of it is left."""
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stderr is not None
    below: list[psutil.Process] = []
    try:
        with process.stderr as said:
            assert any(" is up" in line for line in said)
            below = psutil.Process(process.pid).children(recursive=True)
            assert len(below) >= 2  # a writer, and multiprocessing's helper
            if deaf:
                said.close()
            process.send_signal(signal.SIGTERM)
            rest = "" if deaf else said.read()
        code = process.wait(LIMIT_S)
        eventually(lambda: not living(below), lambda: living(below))
        return code, rest
    finally:
        for each in living([process.pid, *below]):
            each.kill()
        process.wait()


def test_a_broker_whose_log_nobody_reads_any_more_stops_in_order(
    isolated_env: dict[str, str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    assert ended([*UP, "--data-dir", str(data)], isolated_env, deaf=True) == (0, "")


def test_a_broker_that_fails_takes_its_workers_along_and_the_next_one_goes_on(
    isolated_env: dict[str, str],
) -> None:
    code, said = ended([sys.executable, "-c", FAILING], isolated_env, deaf=False)
    assert code == 1
    assert "RuntimeError: made to fail" in said
    code, said = ended(UP, isolated_env, deaf=False)
    assert (code, "clean" in said) == (0, True)
