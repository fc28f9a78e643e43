"""A study as it was recorded, and how MLflow has it: a parent run, and a child for each run of the study."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import Field, TypeAdapter

from data_catalog.errors import describe_cause
from data_catalog.storage.folders import Folder
from experiments.experiment_config import ConfigError, full_name
from experiments.run.run_folder import RunFolder
from experiments.run.run_result import RunError
from experiments.studies.ablation.ablation_result import AblationResult
from experiments.studies.study_folder import RESULT_FILE
from experiments.studies.sweep.sweep_result import SweepResult
from experiments.tracking.mlflow_logger import PATIENCE
from experiments.tracking.mlflow_store import MlflowRun, ask_server, quiet_mlflow
from stmi.uris import without_credentials

PICTURES = "pictures"
RESULT: TypeAdapter[AblationResult | SweepResult] = TypeAdapter(
    Annotated[AblationResult | SweepResult, Field(discriminator="kind")]
)


@dataclass(frozen=True)
class RecordedRun:
    """A run of a study, as it was recorded.

    Attributes:
        mlflow: Where MLflow has the run.
        name: As MLflow's UI shows it.
        run: Name of its folder, with recipe, seed and fingerprint.
        seed: Seed of its training.
        folder: Its folder: in the report's workspace, or where it was trained, possibly on another machine.
        status: FINISHED, FAILED, KILLED or RUNNING.
        parameters: Settings by full name.
        digests: Table name to digest.
        tags: Versions, machine and code.
        curves: `loss`, and mAP of the reported feature on the `validation` and `test` identities (fractions);
            each by epoch, as far as the run has them.
    """

    mlflow: MlflowRun
    name: str
    run: str
    seed: int
    folder: RunFolder
    status: str
    parameters: Mapping[str, str]
    digests: Mapping[str, str]
    tags: Mapping[str, str]
    curves: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class RecordedStudy:
    """A finished study, as it was recorded.

    Attributes:
        name: Name of the study.
        mlflow: Where MLflow has the parent run.
        result: Result of the study (`result.json`).
        pictures: File name to PNG, of the parent run.
        runs: The study's runs, sorted by name.
    """

    name: str
    mlflow: MlflowRun
    result: AblationResult | SweepResult
    pictures: Mapping[str, bytes]
    runs: tuple[RecordedRun, ...]

    @property
    def ablation(self) -> AblationResult:
        """The result of an ablation."""
        assert isinstance(self.result, AblationResult)
        return self.result

    @property
    def sweep(self) -> SweepResult:
        """The result of a sweep."""
        assert isinstance(self.result, SweepResult)
        return self.result

    def find_run(self, name: str) -> RecordedRun | None:
        """The run with this folder name; None where it was not logged to MLflow."""
        return next((run for run in self.runs if run.run == name), None)


def read_result(folder: Folder) -> AblationResult | SweepResult:
    """The result of a study in a folder.

    Raises:
        FileNotFoundError: There is none.
        DamagedFileError: It is damaged.
    """
    return folder.read_record(
        RESULT_FILE, RESULT, "run the command that started the study again: it trains nothing anew"
    )


def read_study(uri: str, name: str) -> RecordedStudy:
    """Read a finished study from MLflow.

    Args:
        uri: Tracking URI.
        name: Name of the study.

    Raises:
        ConfigError: There is no such store or study.
        RunError: The study is not finished.
        ConnectionError: MLflow does not answer.
    """
    for setting, value in (*PATIENCE.items(), ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")):
        os.environ.setdefault(setting, value)
    quiet_mlflow()
    # SQLite would create a missing file, with an empty store.
    if uri.startswith("sqlite:///") and not Path(store := uri.removeprefix("sqlite:///")).exists():
        raise ConfigError(f"there is no MLflow store {store}; name it with --tracking-uri or --workspace")
    try:
        ask_server(uri)
        return _read_study(MlflowClient(tracking_uri=uri), without_credentials(uri), name)
    except (MlflowException, ConnectionError) as error:
        reason = describe_cause(error).replace(uri, without_credentials(uri))
        raise ConnectionError(f"MLflow at {without_credentials(uri)} cannot be read: {reason}") from None


def _read_study(client: MlflowClient, uri: str, name: str) -> RecordedStudy:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    parents = list(_search(client, experiments, "tags.`stmi.kind` != ''"))
    named = [run for run in parents if run.data.tags["stmi.study"] == name]
    if not named:
        known = ", ".join(dict.fromkeys(run.data.tags["stmi.study"] for run in parents)) or "no study"
        raise ConfigError(f"study {name!r} is not in MLflow at {uri}; it has {known}")
    finished = [run for run in named if RESULT_FILE in _artifacts(client, run)]
    if not finished:
        raise RunError(f"study {name} is not finished; run the command that started it again")
    # The newest one: a study is logged a second time if its folder was moved.
    parent = finished[0]
    with tempfile.TemporaryDirectory() as folder:
        client.download_artifacts(parent.info.run_id, RESULT_FILE, folder)
        result = read_result(Folder(folder))
        pictures = {
            Path(artifact).name: Path(
                client.download_artifacts(parent.info.run_id, artifact, folder)
            ).read_bytes()
            for artifact in _artifacts(client, parent, PICTURES)
        }
    children = _search(client, experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    # A run of a study that is going on may have been created, but not tagged yet.
    tagged = [child for child in children if {"stmi.run", "stmi.folder"} <= child.data.tags.keys()]
    runs = sorted((_read_run(client, uri, child) for child in tagged), key=lambda run: run.name)
    return RecordedStudy(
        name=name,
        mlflow=_where(uri, parent),
        result=result,
        pictures=pictures,
        runs=tuple(runs),
    )


def _search(client: MlflowClient, experiments: list[str], condition: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(experiments, condition, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _artifacts(client: MlflowClient, run: Run, folder: str | None = None) -> list[str]:
    return [item.path for item in client.list_artifacts(run.info.run_id, folder) if not item.is_dir]


def _where(uri: str, run: Run) -> MlflowRun:
    return MlflowRun(uri=uri, run_id=run.info.run_id, experiment_id=run.info.experiment_id)


def _read_run(client: MlflowClient, uri: str, child: Run) -> RecordedRun:
    tags, settings = child.data.tags, child.data.params
    prefix, curves = "table.", curve_metrics(settings["report.feature"])
    return RecordedRun(
        mlflow=_where(uri, child),
        name=child.info.run_name,
        run=tags["stmi.run"],
        seed=int(settings["seed"]),
        folder=RunFolder(tags["stmi.folder"]),
        status=child.info.status,
        parameters={full_name(key): value for key, value in settings.items() if not key.startswith(prefix)},
        digests={
            key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)
        },
        tags={key: value for key, value in tags.items() if not key.startswith("mlflow.")},
        curves={
            name: _curve(client, child, metric)
            for name, metric in curves.items()
            if metric in child.data.metrics
        },
    )


def curve_metrics(feature: str) -> dict[str, str]:
    """Curve to MLflow's name of it."""
    return {
        "loss": "loss/total",
        "validation": f"validation/{feature}/mAP",
        "test": f"test/{feature}/mAP",
    }


def _curve(client: MlflowClient, run: Run, metric: str) -> dict[int, float]:
    """Values by epoch; of an epoch that was logged twice, the later one."""
    points = client.get_metric_history(run.info.run_id, metric)
    return {
        point.step: point.value for point in sorted(points, key=lambda point: (point.step, point.timestamp))
    }
