"""`configs/shmbroker.service`: a unit that systemd takes, with what the broker needs left open."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "configs" / "shmbroker.service"
#: What a service of a user can have; capabilities and devices are the user's own there.
HARDENING = {
    "NoNewPrivileges", "LockPersonality", "MemoryDenyWriteExecute", "ProtectClock",
    "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules",
    "ProtectKernelTunables", "ProtectSystem", "RestrictAddressFamilies", "RestrictNamespaces",
    "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter", "UMask",
}  # fmt: skip


def _settings() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and line[0] not in "#;"]
    return dict(line.split("=", 1) for line in lines)


def test_it_notifies_and_stops_in_order_and_is_hardened() -> None:
    settings = _settings()
    assert (settings["Type"], settings["KillMode"]) == ("notify", "mixed")
    assert int(settings["TimeoutStopSec"]) > 30, "more than broker.drain_s"
    assert set(settings) >= HARDENING
    assert "/dev/shm" in settings["ReadWritePaths"].split()
    assert "AF_UNIX" in settings["RestrictAddressFamilies"].split()
    assert "futex_waitv" in settings["SystemCallFilter"].split()


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.fail("systemd-analyze is missing; on Debian: apt-get install systemd", False)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("%h/.local/bin/shmbroker", sys.executable))
    env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(
        [analyze, "verify", "--user", "--man=no", str(unit)],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert UNIT.name not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
