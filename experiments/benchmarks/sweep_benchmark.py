"""How much time a sweep takes besides training, and how much faster it is with two trials side by side."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.benchmarks.measuring import BenchmarkReport, Measurement
from experiments.recipes import ROOT
from experiments.run.run_folder import RunFolder
from experiments.studies.sweep.sweep_result import SweepResult
from experiments.tracking.mlflow_store import local_store
from stmi.processors import usable_processors

TRIALS = 10
"""Optuna samples as many at random at the start, so both sweeps have the same trials."""
EPOCHS = 6


def sweep(repeats: int) -> BenchmarkReport:
    """The same short trials of the demo one at a time, and two at a time, each as a command of its own.

    No trial is stopped early, so both train the same. `seconds_outside_training_per_trial` is the time of the
    command, imports, Ray and MLflow included, minus the time in which its trials trained and evaluated.
    `repeats` is not used: a run takes minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        # Makes the tables, which the sweeps then find.
        _run(workspace, "warm-up", 1, trials=1, epochs=1)
        alone = _run(workspace, "one at a time", 1)
        pair = _run(workspace, "two side by side", 2).compared_with(alone)
    pair = pair.model_copy(update={"times_faster": alone.median_seconds / pair.median_seconds})
    settings = {"recipe": "demo", "trials": TRIALS, "epochs": EPOCHS, "processors": usable_processors()}
    return BenchmarkReport(name="sweep", settings=settings, results=(alone, pair))


def _run(
    workspace: Path, variant: str, concurrent: int, trials: int = TRIALS, epochs: int = EPOCHS
) -> Measurement:
    command = [sys.executable, str(ROOT / "experiments" / "sweep_sfm.py"), "--recipe", "demo", "--json"]
    command += ["--no-early-stopping", "--trials", str(trials), "--concurrent", str(concurrent)]
    command += ["--set", f"train.epochs={epochs}", "--workspace", str(workspace)]
    command += ["--tracking-uri", local_store(workspace)]
    # On this machine, whatever cluster the shell names.
    environment = os.environ | {"RAY_ADDRESS": "local"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    runs = dict.fromkeys(trial.run for trial in SweepResult.model_validate_json(done.stdout).trials)
    results = [RunFolder(workspace / "train" / run).finished_result for run in runs]
    training = [result.seconds["workers"] for result in results]
    # The next sweep must not find these runs.
    for name in ("train", "studies"):
        shutil.rmtree(workspace / name)
    return Measurement(
        variant=variant,
        median_seconds=seconds,
        fastest_seconds=seconds,
        slowest_seconds=seconds,
        peak_memory_bytes=None,
        runs=len(training),
        median_seconds_in_training=statistics.median(training),
        seconds_outside_training_per_trial=(seconds - sum(training) / concurrent) / trials,
    )
