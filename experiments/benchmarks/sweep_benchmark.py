"""How long a sweep takes beside its training, and how much faster it is with two trials side by side."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.recipes import ROOT
from experiments.tracking.mlflow_logger import local_store

TRIALS = 10
"""As many as Optuna draws at random, so that both sweeps have the same trials."""
EPOCHS = 6


def sweep(repeats: int) -> dict[str, Any]:
    """The same short trials of the demo one at a time, and two at a time, each as a command of its own.

    None is stopped early, so that the work is the same. `seconds_outside_training_per_trial` is all that a
    command takes from its start to its end, imports, Ray and MLflow included, less the time in which its
    trials trained and evaluated. `repeats` does not count here: a run takes minutes.
    """
    with tempfile.TemporaryDirectory() as place:
        workspace = Path(place)
        # The tables are made before: a sweep finds them.
        _run(workspace, "warm-up", 1, trials=1, epochs=1)
        alone = _run(workspace, "one at a time", 1)
        pair = _run(workspace, "two side by side", 2)
    ratio = pair["median_seconds"] / alone["median_seconds"]
    pair |= {"ratio": ratio, "ratio_to": alone["variant"], "times_faster": 1 / ratio}
    settings = {"recipe": "demo", "trials": TRIALS, "epochs": EPOCHS, "processors": os.cpu_count()}
    return {"name": "sweep", "settings": settings, "results": [alone, pair]}


def _run(
    workspace: Path, variant: str, concurrent: int, trials: int = TRIALS, epochs: int = EPOCHS
) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "experiments" / "sweep_sfm.py"), "--recipe", "demo", "--json"]
    command += ["--no-early-stopping", "--trials", str(trials), "--concurrent", str(concurrent)]
    command += ["--set", f"train.epochs={epochs}", "--workspace", str(workspace)]
    command += ["--tracking-uri", local_store(workspace)]
    # Here and nowhere else, whatever cluster the shell may name.
    environment = os.environ | {"RAY_ADDRESS": "local"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    runs = dict.fromkeys(trial["run"] for trial in json.loads(done.stdout)["trials"])
    training = [_seconds_in_training(workspace / "train" / run) for run in runs]
    # The next sweep must not find what this one has done.
    for name in ("train", "studies"):
        shutil.rmtree(workspace / name)
    return {
        "variant": variant,
        "median_seconds": seconds,
        "fastest_seconds": seconds,
        "slowest_seconds": seconds,
        "peak_memory_bytes": None,
        "runs": len(training),
        "median_seconds_in_training": statistics.median(training),
        "seconds_outside_training_per_trial": (seconds - sum(training) / concurrent) / trials,
    }


def _seconds_in_training(run: Path) -> float:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return result["seconds"]["workers"]
