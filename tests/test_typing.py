"""Programs that use the package are typed as the stubs promise, and their mistakes are seen."""

from __future__ import annotations

import subprocess
from pathlib import Path

from conftest import ROOT


def test_examples(tmp_path: Path, python: str) -> None:
    command = [python, "-m", "mypy", "--cache-dir", str(tmp_path), "--follow-imports=silent", "--warn-unused-ignores",
               "tests/typing/examples.py"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
