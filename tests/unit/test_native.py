"""Compiles and runs each C test in tests/native: for this machine, and for aarch64 under qemu.

Nothing is skipped. The emulator does not show a missing fence; it shows that the headers are right
in size, alignment and instruction on the other architecture.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "tests" / "native").glob("*.c"))
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
CORE = ROOT / "shmbroker" / "_core"
RUN_LIMIT_S = 100


def tool(name: str, package: str) -> str:
    """The tool's path; a missing one is a failure that says what to install."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is missing; on Debian: apt-get install {package}", pytrace=False)
    return path


def compile_and_run(compiler: list[str], runner: list[str], source: Path, work: Path) -> None:
    program = work / source.stem
    build = [*compiler, *FLAGS, f"-I{CORE}", "-o", str(program), str(source), "-lpthread", "-lrt"]
    subprocess.run(build, check=True, timeout=RUN_LIMIT_S)
    done = subprocess.run(
        [*runner, str(program)],
        cwd=work,
        env={**os.environ, "TMPDIR": str(work)},
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{source.name}: {done.returncode}\n{done.stdout}{done.stderr}"


def test_there_are_native_tests() -> None:
    assert SOURCES


@pytest.mark.timeout(240)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_native(source: Path, tmp_path: Path) -> None:
    compile_and_run([tool("gcc", "gcc libc6-dev")], [], source, tmp_path)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_native_on_aarch64(source: Path, tmp_path: Path) -> None:
    if platform.machine() == "aarch64":
        compile_and_run([tool("gcc", "gcc libc6-dev"), "-static"], [], source, tmp_path)
        return
    compiler = tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    emulator = tool("qemu-aarch64", "qemu-user")
    compile_and_run([compiler, "-static"], [emulator], source, tmp_path)
