"""A disk that fills up: one line with the path, and what is complete is kept and used when there is room."""

import contextlib
import os
import sqlite3

import pyarrow as pa
import pytest

from data_catalog.errors import NotWritableError
from data_catalog.storage.folders import Folder
from experiments.evaluating.parquet_files import write_parquet
from experiments.run import checkpoints
from experiments.studies.sweep import optuna_study
from experiments.studies.sweep.optuna_study import OptunaStudy
from experiments.studies.sweep.search_space import make_space
from experiments.tracking import mlflow_store
from experiments.tracking.journal import Journal
from experiments.tracking.mlflow_logger import Description, MlflowLogger
from experiments.tracking.mlflow_store import local_store, open_local_store
from tests import mounts
from tests.experiments import small_run

KIB = 1024


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounts.small(folder, 64 * KIB):
        yield folder


def fill(disk):
    with contextlib.suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
        while file.write(os.urandom(KIB)):
            pass


def test_journal_on_a_full_disk_is_named_and_goes_on_when_there_is_room(disk):
    journal = Journal(disk / "journal.jsonl")
    journal.append("started")
    fill(disk)
    with pytest.raises(NotWritableError, match=r"/journal\.jsonl could not be written: .*No space.* Make"):
        journal.append("epoch", text="x" * 9 * KIB)
    (disk / "filling").unlink()
    journal.append("finished")
    assert [journal.read()[0]["event"], journal.read()[-1]["event"]] == ["started", "finished"]


@pytest.mark.parametrize(
    "write",
    [
        lambda disk: write_parquet(str(disk / "queries.parquet"), [pa.table({"x": [0.5] * 9000})]),
        lambda disk: Folder(disk).write("result.json", "1" * KIB),
    ],
)
def test_file_that_does_not_fit_is_named_and_not_left_in_part(disk, write):
    fill(disk)
    with pytest.raises(NotWritableError, match=f"{disk}/.* could not be written: .*No space left on device"):
        write(disk)
    assert [path.name for path in disk.iterdir()] == ["filling"]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:659]")],
)
def test_every_writer_of_a_checkpoint_says_so(error):
    with (
        pytest.raises(NotWritableError, match=r"runs/c could not be written: .*No space left on device"),
        checkpoints.writing("runs/c"),
    ):
        raise error
    with pytest.raises(RuntimeError, match="CUDA"), checkpoints.writing("runs/c"):
        raise RuntimeError("CUDA error")


@pytest.mark.slow
@pytest.mark.fault
def test_run_ends_in_one_line_and_goes_on_from_what_was_kept(ray_session, clip, workspace, tmp_path):
    undisturbed = small_run.alone(clip, workspace, runs=tmp_path / "undisturbed")
    disk = tmp_path / "runs"
    disk.mkdir()
    with mounts.small(disk, 400 * KIB):
        with pytest.raises(NotWritableError) as raised:
            small_run.alone(clip, workspace, runs=disk)
        [run] = (disk / "train").iterdir()
        assert str(raised.value).startswith(f"{run}/checkpoint_step_")
        assert "\n" not in str(raised.value)
        assert len(list(run.glob("checkpoint_*"))) == 1
        mounts.enlarge(disk, 4000 * KIB)
        resumed = small_run.alone(clip, workspace, runs=disk)
        assert resumed.result.resumed
        assert resumed.result.losses == undisturbed.result.losses
        assert resumed.result.metrics == undisturbed.result.metrics


def test_mlflow_says_in_one_line_that_its_disk_is_full(disk, tmp_path, caplog, capfd):
    folder = Folder(tmp_path / "run")
    Journal(folder.file("journal.jsonl")) if folder.path.mkdir() else None
    fill(disk)
    logger = MlflowLogger(local_store(disk), folder, disk, Description("e", "r", {}, {}, {}))
    logger.sync()
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"MLflow at sqlite:///{disk}/mlflow.db cannot be reached (")
    assert "\n" not in message
    assert len(message) < 250
    assert capfd.readouterr().err == ""


@contextlib.contextmanager
def locked(file):
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE experiments (artifact_location TEXT)")
        database.commit()
        database.execute("BEGIN EXCLUSIVE")
        yield


def test_locked_database_is_called_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(optuna_study, "_engine_options", lambda url: {"connect_args": {"timeout": 0}})
    connect = sqlite3.connect
    monkeypatch.setattr(
        mlflow_store.sqlite3, "connect", lambda file, timeout=0, **more: connect(file, timeout=0, **more)
    )
    with locked(tmp_path / "mlflow.db"):
        with pytest.raises(
            ConnectionError, match=r"mlflow\.db cannot be used \(database is locked\); wait for"
        ):
            open_local_store(Folder(tmp_path))
        with pytest.raises(ValueError, match=r"cannot be opened: database is locked;"):
            OptunaStudy(f"sqlite:///{tmp_path / 'mlflow.db'}", "s", "a", make_space([]), 0)
