"""The payments example under its killer: every payment gets its letter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UNDER_FIRE = Path(__file__).parents[2] / "examples" / "payments" / "under_fire.py"


def under_fire(seconds: int, seed: int) -> str:
    command = [sys.executable, UNDER_FIRE, str(seconds), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_letter_is_missing_while_services_are_killed(isolated_env: dict[str, str]) -> None:
    said = under_fire(6, 3)
    assert " 0 missing" in said
    assert int(said.split()[0]) > 50


@pytest.mark.crash_long
def test_no_letter_is_missing_after_a_minute_of_killing(isolated_env: dict[str, str]) -> None:
    assert " 0 missing" in under_fire(60, 60)
