"""How soon every script answers: its help, and the refusal of an argument, beside the import of PyTorch."""

import subprocess
import sys
import time
from typing import Literal

from data_catalog.records import Record
from experiments.recipes import ROOT
from stmi.processors import usable_processors

CATALOG = "-m data_catalog"
REFUSED: dict[str, tuple[str, ...]] = {
    "experiments/ablate.py": (),
    "experiments/benchmark.py": ("nosuch",),
    "experiments/chaos.py": ("--set", "nosuch=1"),
    "experiments/compare.py": ("/nosuch", "/nosuch"),
    "experiments/convert_clip.py": ("--archive", "/nosuch", "--out", "/nosuch/out"),
    "experiments/demo.py": ("--set", "nosuch=1"),
    "experiments/evaluate.py": ("--run", "/nosuch"),
    "experiments/export.py": ("--run", "/nosuch", "--out", "/nosuch/model.onnx"),
    "experiments/pretrain_clip.py": ("--people", "1"),
    "experiments/report.py": ("--run", "/nosuch"),
    "experiments/reproduce.py": (
        *("rgbnt201", "--source", "/nosuch", "--clip", "/nosuch", "--masks", "grabcut"),
        *("--captions", "none"),
    ),
    "experiments/search.py": ("--run", "/nosuch", "--query", "/nosuch.jpg", "--gallery", "/nosuch"),
    "experiments/sweep_sfm.py": ("--search", "bad"),
    "experiments/train.py": ("--set", "nosuch=1"),
    "experiments/verify_run.py": ("/nosuch",),
    "cluster/local.py": ("check-upload", "/nosuch"),
    CATALOG: ("ingest", "--source", "/nosuch", "--catalog", "/nosuch/catalog"),
}
"""Every script, and arguments that it refuses."""
REFUSAL_STATUS = 2


class ScriptStartup(Record):
    """How soon a script answers."""

    script: str
    help_seconds: float
    """Seconds of `--help`, the whole process."""
    refusal_seconds: float
    """Seconds of the refusal of `refused`."""
    refused: tuple[str, ...]
    """The arguments."""
    help_ratio: float
    """Ratio of `help_seconds` to `import_torch_seconds`."""
    refusal_ratio: float


class StartupReport(Record):
    """How soon the scripts answer; times are the fastest of the repeats, since other load adds to them."""

    name: Literal["startup"] = "startup"
    settings: dict[str, int]
    import_torch_seconds: float
    """Seconds of `python -c "import torch"`."""
    scripts: tuple[ScriptStartup, ...]


def startup(repeats: int) -> StartupReport:
    """The help and a refusal of every script, and the import of PyTorch, in turns.

    Raises:
        RuntimeError: A script ended with another status than help, or a refusal, has.
    """
    torch: tuple[str, ...] = ("-c", "import torch")
    commands: dict[tuple[str, ...], int] = {}
    for script, refused in REFUSED.items():
        commands |= {(*script.split(), "--help"): 0, (*script.split(), *refused): REFUSAL_STATUS}
    commands[torch] = 0
    fastest = dict.fromkeys(commands, float("inf"))
    for _ in range(repeats + 1):  # the first turn fills the caches of the disk
        for command, status in commands.items():
            fastest[command] = min(fastest[command], _seconds(command, status))
    scripts = []
    for script, refused in REFUSED.items():
        of_help, of_refusal = fastest[*script.split(), "--help"], fastest[*script.split(), *refused]
        scripts.append(
            ScriptStartup(
                script=script,
                help_seconds=of_help,
                refusal_seconds=of_refusal,
                refused=refused,
                help_ratio=of_help / fastest[torch],
                refusal_ratio=of_refusal / fastest[torch],
            )
        )
    settings = {"repeats": repeats, "processors": usable_processors()}
    return StartupReport(settings=settings, import_torch_seconds=fastest[torch], scripts=tuple(scripts))


def _seconds(command: tuple[str, ...], status: int) -> float:
    """Time of a Python process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != status:
        raise RuntimeError(f"python {' '.join(command)} ended with {done.returncode}: {done.stderr[-1000:]}")
    return seconds
