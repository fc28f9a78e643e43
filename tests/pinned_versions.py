"""The versions that the project's own files name: every other file must agree with them."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

PINNED = dict(
    line.lower().replace("_", "-").split("==")
    for line in (ROOT / "cluster" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
)
"""Version by the name of a package, as PyPI normalises it."""
