"""Results with the numbers that a test gives, and some value in every other field."""

import json
from pathlib import Path

import pyarrow as pa
import torch

from experiments.recipes import resolve
from experiments.run.checkpoints import Checkpoint
from experiments.run.evaluation import QUERY_SCHEMA
from experiments.run.run_folder import CONFIG_FILE, RunFolder, StoredConfig
from experiments.run.run_result import RunResult
from experiments.studies.ablation.ablation_result import ComparedMetric, RowMetric, TableRow
from experiments.studies.study_folder import StudyFolder
from experiments.studies.sweep.sweep_result import BestTrial, MetricsOnTest, SweepResult, SweepTrial
from experiments.tracking.mlflow_store import MlflowRun
from tests import json_samples


def write_config(folder: RunFolder, *changes: str) -> None:
    """Write the config of a run of the demo recipe, which has no tables."""
    settings = resolve("demo", changes).model_dump(mode="json")
    stored = StoredConfig(fingerprint="0" * 64, config=settings, tables={}, views={})
    folder.write(CONFIG_FILE, stored.to_json())


def metrics(value: float) -> dict:
    """Metrics of a feature, as a journal has them, with one number everywhere."""
    return {**dict.fromkeys(("mAP", "rank1", "rank5", "rank10"), value), "cmc": [value, value]}


def study_folder(workspace: Path) -> StudyFolder:
    """The folder of a study, made."""
    folder = StudyFolder.of(workspace, "s")
    folder.path.mkdir(parents=True)
    return folder


def run_result(**changes) -> RunResult:
    """The stored sample of a run's result, changed."""
    sample = json.loads((json_samples.FOLDER / "train.json").read_text())
    known = {name: sample[name] for name in RunResult.model_fields if name in sample}
    return RunResult.model_validate(known | changes)


def checkpoint() -> Checkpoint:
    """A checkpoint of a model of one weight."""
    queries = QUERY_SCHEMA.append(pa.field("epoch", pa.int64())).empty_table()
    return Checkpoint({"weight": torch.ones(1)}, {"epoch": 1, "step": 3}, [queries], None, [])


def table_row(name: str, **compared) -> TableRow:
    """A row with one finished run."""
    metric = RowMetric(mean=0.5, values={0: 0.5}, paper=None)
    return TableRow(
        table="table3",
        index=None,
        name=name,
        x=None,
        config={},
        feature="U",
        seeds=(0,),
        runs={0: "run0"},
        mean_average_precision=ComparedMetric(
            **dict(metric) | {"against": None, "paper_difference": None} | compared
        ),
        rank1=metric,
        rank5=metric,
        rank10=metric,
    )


def trial(number: int, state: str = "finished", value: float | None = 0.5, **changes) -> SweepTrial:
    """A trial of a sweep."""
    given = {"values": {}, "cost": 1.0, "curve": {}, "epochs": 3, "run": f"run{number}", "reason": None}
    return SweepTrial(number=number, state=state, value=value, **given | changes)


def best_trial(best: SweepTrial, **test) -> BestTrial:
    """A trial as the best one."""
    given = {"epoch": 3, "mean_average_precision": 0.4, "rank1": 0.5}
    return BestTrial(**dict(best), test=MetricsOnTest(**given | test))


def sweep_result(*trials: SweepTrial, best: BestTrial | None = None, **changes) -> SweepResult:
    """The result of a sweep."""
    given = {
        "study": "demo-sweep-1",
        "recipe": "demo",
        "settings": (),
        "feature": "U",
        "seed": 0,
        "space": (),
        "objectives": ("mAP",),
        "unit": {},
        "pareto": () if best is None else (best,),
        "importance": {},
        "missing": 0,
        "resumed": False,
        "storage": "sqlite://",
        "files": {},
        "mlflow": MlflowRun(uri="sqlite://"),
    }
    return SweepResult(trials=trials, best=best, **given | changes)
