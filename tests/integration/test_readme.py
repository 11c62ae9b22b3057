"""The README's own words, run: its ten lines of Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"


def test_the_ten_lines_work_when_pasted(broker: Any) -> None:
    # the first block; test_docs_examples.py runs them all
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in code[0].splitlines() if line.strip()]) <= 11
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code[0]],
        env=os.environ | broker.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    metadata, count = done.stdout.splitlines()
    assert "offset=0" in metadata
    assert int(count) == 1_000_001
