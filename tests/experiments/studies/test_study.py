import contextlib
import json
import time
from dataclasses import replace
from typing import ClassVar

import mlflow
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_catalog.errors import NotWritableError, StorageAwayError
from experiments.experiment_config import ConfigError
from experiments.run.run_description import note_start
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_tables import RunTables
from experiments.studies import study
from experiments.studies.study import Study, describe_other_code
from experiments.studies.study_folder import StoredRun, StudyFolder
from experiments.studies.study_logger import StudyLogger, StudyRun
from experiments.studies.study_result import StudyResult
from experiments.tracking.event_files import EVENT_FILES
from experiments.tracking.mlflow_logger import Description
from experiments.tracking.mlflow_store import local_store
from tests.experiments import made_up


class OneRunResult(StudyResult):
    is_complete: ClassVar[bool] = True


class OneRun(Study[OneRunResult]):
    """A study whose only run is trained by whatever a test says."""

    kind = "one run"
    unit = "run"
    result_form = OneRunResult
    total = 1

    def __init__(self, run, options, train):
        super().__init__("demo", "s", RunTables({}, {}, {}), options)
        self.run_of_study = run
        self.train = train

    def parameters(self):
        return {}

    def runs(self):
        return [self.run_of_study]

    def train(self):
        raise NotImplementedError

    def has_all(self, result):
        raise NotImplementedError

    def progress(self):
        return 0, ""

    def summarise(self, mlflow):
        return OneRunResult(
            study="s", kind=self.kind, recipe="demo", settings=(), feature="U", files={}, mlflow=mlflow
        )


@pytest.fixture
def run(tmp_path):
    """A run that has begun, as far as MLflow needs it."""
    folder = RunFolder(tmp_path / "train" / "r")
    folder.path.mkdir(parents=True)
    made_up.write_config(folder)
    note_start(folder.journal)
    return StudyRun(folder, "the run")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all tests: making its tables takes seconds."""
    return local_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def options(tmp_path, store):
    return RunOptions.resolve(tmp_path, tracking_uri=store)


def make_logger(options):
    folder = StudyFolder.of(options.workspace, "s")
    return StudyLogger(folder, options, Description("demo", "s", {}, {"stmi.kind": "ablation"}, {}))


def children(options, parent):
    client = mlflow.MlflowClient(options.tracking_uri)
    condition = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
    return client.search_runs([parent.mlflow_run.experiment_id], condition)


def test_children_follow_their_parent_into_a_store_that_was_replaced(run, options):
    first = make_logger(options)
    first.sync([run])
    for state in (first.folder.path / "mlflow.json", run.folder.path / "mlflow-s.json"):
        # The store that is there now knows neither the run nor its uuid.
        lost = {"run_id": "0" * 32, "identity": f"lost {state.name}"}
        state.write_text(json.dumps(json.loads(state.read_text()) | lost))
    again = make_logger(options)
    again.sync([run])
    assert again.parent.run_id not in (first.parent.run_id, "0" * 32)
    (child,) = children(options, again.parent)
    assert child.info.run_name == "the run"


def test_child_is_closed_when_its_run_is_finished_and_the_study_goes_on(run, options):
    logger = make_logger(options)
    logger.sync([run])
    assert [child.info.status for child in children(options, logger.parent)] == ["RUNNING"]
    (run.folder.path / "result.json").write_text("{}")
    logger.sync([run])
    assert [child.info.status for child in children(options, logger.parent)] == ["FINISHED"]
    parent = mlflow.MlflowClient(options.tracking_uri).get_run(logger.parent.run_id)
    assert parent.info.status == "RUNNING"


def shown(options):
    """MLflow's status of the study and of its only run, as far as they are logged."""
    parent = make_logger(options).parent
    if parent.run_id is None:
        return ()
    study = mlflow.MlflowClient(options.tracking_uri).get_run(parent.run_id)
    return study.info.status, *(child.info.status for child in children(options, parent))


def wait_until_shown(options, *statuses):
    deadline = time.monotonic() + 60
    while shown(options) != statuses:
        assert time.monotonic() < deadline, shown(options)
        time.sleep(0.05)


@pytest.fixture
def finish(run, options):
    """Trains the run of a study that goes on, once MLflow shows both as running again."""

    def train():
        note_start(run.folder.journal)
        wait_until_shown(options, "RUNNING", "RUNNING")
        (run.folder.path / "result.json").write_text("{}")

    return train


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr(study, "LOG_SECONDS", 0.05)


def test_interrupted_study_is_closed_in_mlflow_and_opened_again(run, options, finish, short_pauses):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OneRun(run, options, interrupt).run()
    assert shown(options) == ("KILLED", "KILLED")
    parent = make_logger(options).parent
    folder = StudyFolder.of(options.workspace, "s")
    assert folder.read_runs() == {"r": StoredRun(name="the run", status="KILLED")}
    assert folder.read_description().recipe == "demo"
    result = OneRun(run, options, finish).run()
    assert result.mlflow.run_id == parent.run_id
    assert shown(options) == ("FINISHED", "FINISHED")
    assert folder.read_runs()["r"].status == "FINISHED"
    assert [event["event"] for event in folder.journal.read()] == ["started", "started"]


def test_study_whose_storage_goes_away_is_closed_in_mlflow_and_opened_again(
    run, options, finish, short_pauses, without_storage
):
    with contextlib.ExitStack() as stack:

        def lose_storage():
            wait_until_shown(options, "RUNNING", "RUNNING")
            stack.enter_context(without_storage())
            raise StorageAwayError("s3://lab has not answered")

        with pytest.raises(StorageAwayError):
            OneRun(run, options, lose_storage).run()
    assert shown(options) == ("FAILED", "FAILED")
    OneRun(run, options, finish).run()
    assert shown(options) == ("FINISHED", "FINISHED")


def test_study_that_cannot_write_its_result_is_closed_in_mlflow(run, options, monkeypatch):
    def refuse(folder, result):
        raise NotWritableError("no space left")

    (run.folder.path / "result.json").write_text("{}")
    monkeypatch.setattr(StudyFolder, "write_result", refuse)
    with pytest.raises(NotWritableError):
        OneRun(run, options, lambda: None).run()
    assert shown(options) == ("FAILED", "FINISHED")


def test_finished_study_trains_nothing(run, options):
    (run.folder.path / "result.json").write_text("{}")
    result = OneRun(run, options, lambda: pytest.fail("it was trained")).run()
    stored = StudyFolder.of(options.workspace, "s").path / "result.json"
    assert OneRunResult.model_validate_json(stored.read_bytes()) == result


def test_study_writes_event_files_of_its_journal_and_of_its_runs_where_asked(run, options):
    def train():
        for folder in (run.folder, StudyFolder.of(options.workspace, "s")):
            folder.journal.append("finished", metrics={"mAP": 0.5})
        (run.folder.path / "result.json").write_text("{}")

    OneRun(run, replace(options, writes_event_files=True), train).run()
    for folder in (run.folder, StudyFolder.of(options.workspace, "s")):
        shown = EventAccumulator(str(folder.path / EVENT_FILES)).Reload()
        assert [point.value for point in shown.Scalars("mAP")] == [0.5]


def test_server_that_does_not_answer_is_waited_for_once_a_round(run, options, monkeypatch):
    make_logger(options).sync([run])
    asked = []

    def hang(tracking_uri):
        asked.append(tracking_uri)
        raise TimeoutError

    monkeypatch.setattr(mlflow, "MlflowClient", hang)
    run.folder.journal.append("epoch", epoch=1, losses={}, seconds={}, learning_rate=0.1)
    again = make_logger(options)
    again.folder.journal.append("row", name="A")
    again.sync([run] * 3)
    assert len(asked) == 1
    again.finish([run] * 3, {"r": "FINISHED"}, [], "FINISHED")
    assert len(asked) == 3


def test_folder_of_another_study_is_refused(tmp_path):
    folder = StudyFolder.of(tmp_path, "s")
    folder.belong_to("sweep", "a")
    folder.belong_to("sweep", "b")
    folder.journal.append("trial", number=0)
    folder.belong_to("sweep", "b")
    for kind, fingerprint in (("sweep", "a"), ("ablation", "b")):
        with pytest.raises(ConfigError, match=r"study 's' in .* is another sweep .* another --name"):
            folder.belong_to(kind, fingerprint)


def test_of_many_runs_that_other_code_trained_the_first_are_named(tmp_path):
    runs = [StudyRun(RunFolder(tmp_path / f"r{number:02d}"), "", {}) for number in range(33)]
    for run in runs:
        run.folder.path.mkdir()
        run.folder.journal.append("started", **{"code.digest": "0123abcd"})
    (sentence,) = describe_other_code(runs)
    assert sentence.startswith(
        "33 of the 33 runs were trained, at least in part, by other code (digest 0123abcd"
    )
    assert "r00, r01, r02, r03, r04 and 28 more. Move their folders away" in sentence
