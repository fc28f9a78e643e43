"""What describes a run: its settings and tables, the code that trains it, and the machine."""

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from experiments.experiment_config import ExperimentConfig, differences
from experiments.recipes import RECIPES, ROOT
from experiments.run.run_folder import RunFolder
from experiments.tracking.journal import Journal
from experiments.tracking.mlflow_logger import Description
from stmi.processors import usable_processors

MACHINE = ("python", "platform", "processors", "accelerators")
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
    """Python, packages, host, CPUs and accelerators; the keys are stored in journals."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    import torch  # noqa: PLC0415 - takes seconds, and only a run that begins asks for its devices

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "processors": usable_processors(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": packages,
    }


def note_start(journal: Journal, **facts: Any) -> None:
    """Write into the journal of a run or a study which code begins or continues it, on which machine."""
    journal.append("started", environment=environment(), **code_version(), **facts)


def describe_run(folder: RunFolder) -> Description:
    """The description of a run that has begun."""
    config = folder.config
    name = " ".join([config.recipe, *_changes(config), f"seed={config.seed}"])
    started, checks = folder.journal.find("started"), folder.journal.last("checks") or {"warnings": []}
    machine = started["environment"]
    tags = {
        "stmi.run": folder.name,
        "stmi.recipe": config.recipe,
        "stmi.warnings": ", ".join(sorted({found["check"] for found in checks["warnings"]})) or "none",
        **{name: value for name, value in started.items() if name.startswith("code.")},
        **{f"environment.{fact}": str(machine[fact]) for fact in MACHINE},
        **{f"environment.{package}": number for package, number in machine["packages"].items()},
    }
    return Description(config.recipe, name, config.flat(), tags, folder.digests)


def other_code_digests(folder: RunFolder) -> list[str]:
    """Digests of other code that started a run; its name depends on settings and data, but not on code."""
    now = code_version()["code.digest"]
    started = [event["code.digest"] for event in folder.journal.read() if event["event"] == "started"]
    return [digest for digest in dict.fromkeys(started) if digest != now]


def _changes(config: ExperimentConfig) -> list[str]:
    """What a config changes in its recipe, as `name=value`, without the seed."""
    if config.recipe not in RECIPES:
        return []
    changed = differences(RECIPES[config.recipe](), config)
    return [f"{name}={value}" for name, (_, value) in changed.items() if name != "seed"]
