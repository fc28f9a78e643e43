"""A script: stop a trial of two workers at its first report, and write what it leaves into RUNS/left.json.

It starts a Ray session of its own, for the one that the tests share has no dashboard.

    python -m tests.experiments.studies.pruned_trial CLIP WORKSPACE RUNS
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.workers.ray_train import start_ray
from experiments.studies.study_folder import StudyFolder
from experiments.studies.tuning import tune_trials
from tests.experiments import small_run

EPOCHS = 2000
PATIENCE_SECONDS = 60


class OneTrial(Searcher):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.left = [{"config": config, "number": 0}]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        return self.left.pop() if self.left else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass


class StopAtFirstLook(FIFOScheduler):
    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return TrialScheduler.STOP


def main(clip: Path, workspace: Path, runs: Path) -> None:
    config, tables = small_run.configured(clip, workspace, "train.workers=2", f"train.epochs={EPOCHS}")
    start_ray(2)
    started = time.monotonic()
    study = StudyFolder.of(runs, "pruned")
    searched = {"search_alg": OneTrial(config.model_dump(mode="json")), "scheduler": StopAtFirstLook()}
    tune_trials(tables, RunOptions.resolve(runs), study, 2, **searched)
    stopped = time.monotonic()
    total = ray.cluster_resources()["CPU"]
    while (
        free := ray.available_resources().get("CPU", 0)
    ) < total and time.monotonic() < stopped + PATIENCE_SECONDS:
        time.sleep(0.2)
    run = RunFolder.of(runs, config, tables)
    epochs = len(run.journal.epochs())
    time.sleep(1)
    left = {
        "cpus": total,
        "free": free,
        "seconds_to_stop": stopped - started,
        "seconds_to_free": time.monotonic() - stopped - 1,
        "asked": EPOCHS,
        "epochs": epochs,
        "epochs_later": len(run.journal.epochs()),
    }
    (runs / "left.json").write_text(json.dumps(left))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
