"""Logs the journal of each run to MLflow, so that runs can be compared in its UI.

The journal is complete without MLflow. A server that does not answer stops no run: what it missed is logged
later, since the state file says how much of the journal was logged. Only this file and
`reports.recorded_study` import mlflow.
"""

import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_catalog.errors import CatalogError, describe_cause, name_first
from data_catalog.storage.folders import Folder
from experiments.tracking.journal import Event
from experiments.tracking.journal_folder import JournalFolder
from experiments.tracking.mlflow_store import (
    MLFLOW_FILE,
    LoggedRun,
    MlflowRun,
    MlflowState,
    artifacts_folder,
    ask_server,
    local_store,
    open_local_store,
    quiet_mlflow,
    read_state,
)
from stmi.checksums import file_digest
from stmi.uris import without_credentials

logger = logging.getLogger(__name__)

# A dead server would otherwise block every call for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
DATABASE_TRIES = 3
UUID_TAG = "stmi.identity"
"""Tag with the uuid of a run, or of a study's child, which is found by it in any store."""
WRITER_TAG = "stmi.writer"
"""Tag with the uuid of the logger that showed the run as running last."""
RUNNING = "RUNNING"
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}
"""MLflow takes at most this many in one call."""


@dataclass(frozen=True)
class Description:
    """What MLflow is given of a run or a study at its start.

    Attributes:
        experiment: Name of the MLflow experiment.
        name: Name of the run in the UI.
        parameters: Flat settings.
        tags: Versions and names.
        tables: Table name to digest.
    """

    experiment: str
    name: str
    parameters: dict[str, Any]
    tags: dict[str, str]
    tables: dict[str, str]


class MlflowLogger:
    """Logs what the journal of a run or a study says.

    Args:
        uri: Tracking URI.
        folder: The run's or the study's folder.
        workspace: An embedded store keeps artifacts in it, or on this machine if it is at a URI.
        description: What is logged at the start.
        state: Name of the file in the folder that says what was logged so far.

    Attributes:
        failure: Why the last try to send something failed; None where it did not.
        answers: Whether MLflow answered at the last try; what failed then is the workspace.
    """

    def __init__(
        self,
        uri: str,
        folder: Folder | Path,
        workspace: Folder | Path,
        description: Description,
        state: str = MLFLOW_FILE,
    ) -> None:
        _be_brief()
        self.uri = uri
        self.public_uri = without_credentials(uri)
        self.folder = JournalFolder(folder)
        self.workspace = Folder(workspace)
        self.description = description
        self.journal = self.folder.journal
        self.failure: str | None = None
        self.answers = True
        self._found = False
        self._writer = uuid.uuid4().hex
        self._is_open = False
        self._status: str | None = None
        self._last_event: int | None = None
        self._state_file = state
        self._state = MlflowState(uri=self.public_uri, uuid=uuid.uuid4().hex)
        if (stored := read_state(self.folder, state)) is not None:
            own = stored.uuid or self._state.uuid
            # The same store may have another address now.
            known = stored if stored.uri == self.public_uri else self._state
            self._state = known.model_copy(update={"uuid": own})

    @property
    def run_id(self) -> str | None:
        """Id of the run in MLflow, once it is known there."""
        return self._state.run_id

    @property
    def mlflow_run(self) -> MlflowRun:
        """Where MLflow has the run."""
        state = self._state
        return MlflowRun(uri=state.uri, run_id=state.run_id, experiment_id=state.experiment_id)

    @property
    def behind(self) -> bool:
        """Whether MLflow lacks something that could not be sent."""
        return self.failure is not None

    @property
    def logged_run(self) -> LoggedRun:
        """Where MLflow has the run, and whether it lacks something."""
        return LoggedRun(**dict(self.mlflow_run), behind=self.behind)

    def sync(self) -> None:
        """Send what the journal has and MLflow has not; on failure warn once and leave it for later.

        A run that had ended, and whose journal has grown since, is shown as running again.
        """
        self._attempt(self._sync)

    def finish(self, status: str, artifacts: Sequence[str]) -> None:
        """Send the rest and the files that have changed, and close the run.

        Where the workspace is out of reach or full, the run is closed with what was sent before.

        Args:
            status: FINISHED, FAILED or KILLED.
            artifacts: Names of files in the folder.
        """

        def send() -> None:
            try:
                self._sync()
                for name in artifacts:
                    self._send_file(name)
            except CatalogError:
                self._close(status)
                raise
            self._close(status)

        self._attempt(send)

    def close(self, status: str) -> None:
        """Close the run with what was sent before: its workspace is out of reach.

        Args:
            status: FAILED or KILLED.
        """
        self._attempt(lambda: self._close(status))

    def _attempt(self, send: Callable[[], None]) -> None:
        try:
            ask_server(self.uri)
            try:
                self._find()
                send()
            except Exception as error:
                if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                    raise
                # Another store has replaced the one that had the run; everything is logged to it.
                self._forget()
                send()
            self.failure, self.answers = None, True
        except Exception as error:
            # Whatever goes wrong between here and a server must not end a training run.
            self.answers = isinstance(error, CatalogError)
            reason = describe_cause(error).replace(self.uri, self.public_uri)
            if not self.behind:
                what = "lacks something" if self.answers else "cannot be reached"
                logger.warning("MLflow at %s %s (%s); the journal keeps it", self.public_uri, what, reason)
            self.failure = reason
            # Somebody may delete the run there meanwhile.
            self._found = False

    def _find(self) -> None:
        """Look once for a run that an earlier process logged, even where nothing is left to send."""
        if self.run_id is not None and not self._found:
            run = self._client().get_run(self.run_id)
            self._status = run.info.status
            if run.info.lifecycle_stage == "deleted":
                self._forget()
        self._found = True

    def _client(self) -> Any:
        return _open_client(self.uri, self.workspace)

    def _sync(self) -> None:
        if self.run_id is None:
            self._start()
        if not self._state.described:
            self._describe()
        events = self.journal.read()
        unsent = events[self._state.sent :]
        if events:
            self._last_event = int(events[-1]["time"] * 1000)
        if unsent and not self._is_open:
            self._open()
        metrics = [entry for event in unsent for entry in metrics_of(event)]
        tags = {name: value for event in unsent for name, value in event.get("tags", {}).items()}
        if metrics or tags:
            from mlflow.entities import Metric, RunTag  # noqa: PLC0415

            self._log_batches(
                metrics=[Metric(*entry) for entry in metrics], tags=[RunTag(*tag) for tag in tags.items()]
            )
        if unsent:
            self._remember(sent=len(events))

    def _open(self) -> None:
        """Show the run as running, and that this process logs it now."""
        client = self._client()
        client.set_tag(self.run_id, WRITER_TAG, self._writer)
        if self._status != RUNNING:
            client.update_run(self.run_id, status=RUNNING)
        self._status, self._is_open = RUNNING, True

    def _close(self, status: str) -> None:
        if self.run_id is None or self._status == status:
            return
        client = self._client()
        # A process that could not reach its workspace for a while may have a successor, which logs the run.
        if self._is_open and client.get_run(self.run_id).data.tags.get(WRITER_TAG) != self._writer:
            return
        client.set_terminated(self.run_id, status, self._last_event)
        self._status, self._is_open = status, False

    def _log_batches(self, **entries: list[Any]) -> None:
        """Log metrics, params and tags, as many in one call as MLflow takes."""
        client = self._client()
        for kind, values in entries.items():
            for start in range(0, len(values), _BATCH[kind]):
                client.log_batch(self.run_id, **{kind: values[start : start + _BATCH[kind]]})

    def _send_file(self, name: str) -> None:
        with self.folder.local_file(name) as path:
            digest = file_digest(path)
            if self._state.files.get(path.name) == digest:
                return
            folder = "pictures" if path.suffix == ".png" else None
            self._client().log_artifact(self.run_id, str(path), folder)
        self._remember(files=self._state.files | {path.name: digest})

    def _start(self) -> None:
        client = self._client()
        experiment = client.get_experiment_by_name(self.description.experiment)
        if experiment is None:
            # A server decides itself where artifacts go; the embedded store keeps them beside its file.
            embedded = artifacts_folder(self.workspace).as_uri()
            location = embedded if self.uri.startswith("sqlite") else None
            experiment_id = client.create_experiment(self.description.experiment, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                logger.warning(
                    "MLflow: experiment %s was deleted; it is restored", self.description.experiment
                )
                client.restore_experiment(experiment_id)
        # It may be there: under another address, or from a process that was killed before it noted the id.
        mine = f"tags.`{UUID_TAG}` = '{self._state.uuid}'"
        known = client.search_runs([experiment_id], mine, max_results=1)
        if known:
            self._status = known[0].info.status
            self._remember(run_id=known[0].info.run_id, experiment_id=experiment_id)
            return
        self._remember()
        began = [int(event["time"] * 1000) for event in self.journal.read()[:1]]
        tags = {UUID_TAG: self._state.uuid, WRITER_TAG: self._writer}
        run = client.create_run(experiment_id, *began, tags=tags, run_name=self.description.name)
        self._status, self._is_open = RUNNING, True
        self._remember(run_id=run.info.run_id, experiment_id=experiment_id)

    def _describe(self) -> None:
        from mlflow.entities import Param, RunTag  # noqa: PLC0415

        described = self.description
        settings = described.parameters | {f"table.{name}": key for name, key in described.tables.items()}
        self._log_batches(
            params=[Param(name, str(value)) for name, value in settings.items()],
            tags=[RunTag(name, value) for name, value in described.tags.items()],
        )
        self._remember(described=True)

    def _forget(self) -> None:
        """Begin anew with a run that the store does not have, or does not have any more."""
        self._state = MlflowState(uri=self.public_uri, uuid=self._state.uuid)
        self._status, self._is_open = None, False
        self._remember()

    def _remember(self, **changes: Any) -> None:
        self._state = self._state.model_copy(update=changes)
        self.folder.write(self._state_file, self._state.portable(self.folder).to_json() + "\n")


def check_store(uri: str, workspace: Folder) -> None:
    """Make sure that MLflow answers.

    Raises:
        ConnectionError: It does not; the message is one line, without user name and password.
    """
    _be_brief()
    try:
        ask_server(uri)
        _open_client(uri, workspace).search_experiments(max_results=1)
    except Exception as error:
        # Each kind of store raises errors of its own.
        reason = describe_cause(error).replace(uri, without_credentials(uri))
        raise ConnectionError(f"MLflow at {without_credentials(uri)} cannot be reached: {reason}") from None


def find_missing(uri: str, folder: JournalFolder) -> list[str]:
    """What MLflow lacks of a finished run, one line each.

    Args:
        uri: Tracking URI.
        folder: Folder of the run.
    """
    state = read_state(folder)
    if state is None or state.run_id is None:
        return ["MLflow has no run"]
    client = _open_client(uri, folder.parent.parent)
    run = client.get_run(state.run_id)
    found = [] if run.info.status == "FINISHED" else [f"MLflow shows the run as {run.info.status}"]
    expected = {entry for event in folder.journal.read() for entry in metrics_of(event)}
    for name in sorted({name for name, *_ in expected}):
        history = client.get_metric_history(state.run_id, name)
        logged = {(metric.key, metric.value, metric.timestamp, metric.step) for metric in history}
        steps = sorted({entry[3] for entry in expected - logged if entry[0] == name})
        if steps:
            found.append(f"MLflow lacks {name} of epochs {name_first(steps)}")
    return found


def _be_brief() -> None:
    for setting, value in {**PATIENCE, "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}.items():
        os.environ.setdefault(setting, value)


def _open_client(uri: str, workspace: Folder) -> Any:
    import mlflow  # noqa: PLC0415 - takes seconds, which overlap with the start of the workers

    quiet_mlflow()
    if not uri.startswith(("http://", "https://")):
        from mlflow.store.db import utils  # noqa: PLC0415 - for a database alone

        # A database that cannot be opened would otherwise be tried for 100 seconds at each call.
        utils.MAX_RETRY_COUNT = DATABASE_TRIES
    if uri == local_store(workspace):
        open_local_store(workspace)
    return mlflow.MlflowClient(tracking_uri=uri)


def metrics_of(event: Event) -> list[tuple[str, float, int, int]]:
    """Key, value, time in milliseconds and step of each number that an event has for the charts."""
    values: dict[str, float] = {}
    step = event.get("epoch", 0)
    if event["event"] == "untrained":
        values = {f"untrained/{name}": value for name, value in event["metrics"].items() if name != "cmc"}
        values |= _hyperedges(event)
        for name, splits in event.get("datasets", {}).items():
            values |= _feature_metrics(f"untrained/{name}", {"U": splits["test"]["U"]})
    elif event["event"] == "epoch":
        # Older versions have the density of the incidence among the losses.
        values = {
            name if name == "incidence_density" else f"loss/{name}": value
            for name, value in event["losses"].items()
        }
        idle = event.get("losses_without_gradient", {})
        values |= {f"loss_without_gradient/{name}": value for name, value in idle.items()}
        values |= _hyperedges(event)
        values |= {f"seconds/{name}": value for name, value in event["seconds"].items()}
        values["learning_rate"] = event["learning_rate"]
        values |= _feature_metrics("validation", event.get("validation", {}))
        values |= _feature_metrics("test", event.get("test", {})) | _other_metrics(event)
    elif event["event"] == "trial":
        step = event["number"]
        values = {f"trial/{name}": event[name] for name in ("value", "best") if name in event}
    elif event["event"] == "test":
        step = event["epochs"]
        values = _feature_metrics("test", event["metrics"]) | _hyperedges(event) | _other_metrics(event)
    elif event["event"] == "finished":
        # What the run reports, under names that stand first where runs are compared.
        values = {name: value for name, value in event.get("metrics", {}).items() if name != "cmc"}
        for dataset, own in event.get("datasets", {}).items():
            values |= {f"{dataset}/{name}": value for name, value in own.items() if name != "cmc"}
    return [(name, float(value), int(event["time"] * 1000), step) for name, value in values.items()]


def _hyperedges(event: Event) -> dict[str, float]:
    return {
        f"{split}/hyperedges/{name}": value
        for split, facts in event.get("hyperedges", {}).items()
        for name, value in facts.items()
    }


def _other_metrics(event: Event) -> dict[str, float]:
    """Metrics of the data sets beside the first one: `test/msvr310/U/mAP`."""
    values: dict[str, float] = {}
    for name, splits in event.get("datasets", {}).items():
        for split, features in splits.items():
            values |= _feature_metrics(f"{split}/{name}", features)
    return values


def _feature_metrics(prefix: str, features: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {
        f"{prefix}/{feature}/{name}": value
        for feature, metrics in features.items()
        for name, value in metrics.items()
        if name != "cmc"
    }
