"""Calls commands as a user does: in processes of their own, in the folder of the user's module."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXAMPLES = Path(__file__).parent


def call(*arguments: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A finished `python ARGUMENTS`, called in a folder without a running Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def read_json(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command that succeeded printed with --json."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that refused its arguments."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr
    [line] = done.stderr.splitlines()
    return line
