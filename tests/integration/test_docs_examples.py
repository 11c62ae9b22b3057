"""What README.md and docs/*.md show, run: found by itself, a broker of its own for each document.

    ```python        a whole program; runs in a fresh interpreter, warnings are errors
    ```python no-run an excerpt that can't run by itself
    ```console       `$ command` lines run in bash, one after the other in one directory; the lines
                     below one are its output: `…` stands for anything in a line, a line of `…`
                     alone for any lines; a last line `(exit code 3)` says so, otherwise it is 0

The blocks of a document run in its order against one broker, whose instance is the environment's,
so that topics made in one are there in the next. A document whose console shows `shmbroker up`
starts its brokers itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_EXIT = re.compile(r"\(exit code (\d+)\)")
_LIMIT_S = 60


@dataclass(frozen=True)
class Block:
    """One example."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """What is to be run of a document, in its order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text.count("\n", 0, match.start()) + 1, match[1], match[3])
        for match in _FENCE.finditer(text)
        if match[1] in ("python", "console") and "no-run" not in match[2]
    ]


EXAMPLES = {document.name: blocks(document) for document in DOCUMENTS}


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each `$ command` of a console block, with the lines below it; `> ` goes on with a command."""
    command, shown = "", list[str]()
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line[2:], []
        elif line.startswith("> ") and not shown:
            command += "\n" + line[2:]
        else:
            shown.append(line)
    if command:
        yield command, shown


def pattern(shown: list[str]) -> str:
    """Shown output as a regular expression for the real one."""
    made = ""
    for line in shown:
        if line.strip() == "…":
            made += r"(?:.*\n)*?"
        else:
            made += ".*".join(re.escape(part.rstrip()) for part in line.split("…")) + r"[ ]*\n"
    return made


@pytest.mark.parametrize("name", [name for name, found in EXAMPLES.items() if found])
@pytest.mark.timeout(240)
@pytest.mark.leaves_processes
def test_the_examples_of_a_document_run(
    name: str, isolated_env: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = EXAMPLES[name]
    env = dict(isolated_env)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    starts_itself = any(
        "shmbroker up" in block.text for block in found if block.language == "console"
    )
    if not starts_itself:
        broker: Any = request.getfixturevalue("broker")
        env |= {key: broker.env[key] for key in ("SHMBROKER_INSTANCE",)}
    work = tmp_path / "work"
    work.mkdir()
    try:
        for block in found:
            run = _python if block.language == "python" else _console
            run(block, env, work)
    finally:
        if starts_itself:
            _stop_all(env)


def _python(block: Block, env: dict[str, str], work: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=work, env=env, capture_output=True, text=True, timeout=_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block.where}:\n{block.text}\n{done.stdout}{done.stderr}"


def _console(block: Block, env: dict[str, str], work: Path) -> None:
    for command, shown in commands(block.text):
        expected = 0
        if shown and (ends := _EXIT.fullmatch(shown[-1].strip())):
            expected = int(ends[1])
            shown = shown[:-1]
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=work, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, text=True, timeout=_LIMIT_S, check=False,
        )  # fmt: skip
        told = f"{block.where}: $ {command}\n{done.stdout}"
        assert done.returncode == expected, told
        if any(line.strip() for line in shown):
            said = "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())
            assert re.fullmatch(pattern(shown), said), f"{told}\nshown:\n" + "\n".join(shown)


def _stop_all(env: dict[str, str]) -> None:
    """Every instance that the document has left running."""
    for place in sorted(Path(env["XDG_RUNTIME_DIR"]).glob("shmbroker/*")):
        words = [sys.executable, "-m", "shmbroker.cli.main", "down", "--instance", place.name]
        quiet = {k: v for k, v in env.items() if not k.startswith("SHMBROKER_DATA")}
        done = subprocess.run(
            words, env=quiet, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
        assert done.returncode in (0, 3), done.stderr


def test_the_convention_itself() -> None:
    text = "$ echo one\none\n$ cat <<E\n> two\n> E\n…\n$ false\n(exit code 1)\n"
    assert list(commands(text)) == [
        ("echo one", ["one"]), ("cat <<E\ntwo\nE", ["…"]), ("false", ["(exit code 1)"]),
    ]  # fmt: skip
    assert re.fullmatch(pattern(["a … c", "…", "end"]), "a b c\nx\ny\nend\n")
    assert not re.fullmatch(pattern(["a … c"]), "a b d\n")
    assert sum(len(found) for found in EXAMPLES.values()) > 5
    assert os.path.exists(ROOT / "docs" / "cli.md")
