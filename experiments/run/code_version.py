"""The code and the machine that a number comes from."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from experiments.recipes import ROOT

PACKAGES = (
    "torch",
    "ray",
    "open_clip_torch",
    "mlflow",
    "numpy",
    "pyarrow",
    "pillow",
    "opencv-python-headless",
)


@cache
def code_version() -> dict[str, str]:
    """Digest of the project's own source files, and the git commit where there is one.

    The digest also identifies code that was changed after the commit, or uploaded without its history.
    """
    digest = hashlib.sha256()
    for package in ("stmi", "data_catalog", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    described = {"code.digest": digest.hexdigest()[:16]}
    try:
        commit = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        described["code.commit"] = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        described["code.commit"] = "unknown"
    return described


def environment() -> dict[str, Any]:
    """Python, packages, CPUs and accelerators; the keys are stored in journals."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": packages,
    }
