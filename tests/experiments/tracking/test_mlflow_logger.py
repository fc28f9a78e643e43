import json
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.cli import gc

from data_catalog.errors import NotWritableError
from data_catalog.storage import filesystems
from data_catalog.storage.folders import Folder
from experiments.tracking.journal import Journal
from experiments.tracking.journal_folder import JournalFolder
from experiments.tracking.mlflow_logger import UUID_TAG, Description, MlflowLogger, check_store, find_missing
from experiments.tracking.mlflow_store import local_store
from tests.mlflow_server import free_port, serving

DESCRIPTION = Description(
    "demo", "demo sfm=off", {"sfm.perturbation": 0.01, "str.tokens": 4}, {"stmi.run": "r"}, {"view": "ab"}
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """One store for all tests: making its tables takes seconds."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture
def folder(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    for epoch in (1, 2):
        journal.append(
            "epoch", epoch=epoch, losses={"total": 3.0 - epoch}, seconds={"steps": 1.0}, learning_rate=0.1
        )
    return tmp_path


def stored(workspace, logger: MlflowLogger):
    client = mlflow.MlflowClient(local_store(workspace))
    return client, client.get_run(logger.run_id)


def test_parameters_tags_and_digests_are_flat_and_readable(workspace, folder):
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.sync()
    _, run = stored(workspace, logger)
    assert run.data.params == {"sfm.perturbation": "0.01", "str.tokens": "4", "table.view": "ab"}
    assert run.data.tags["stmi.run"] == "r"
    assert run.info.run_name == "demo sfm=off"


def test_each_event_is_sent_once_also_by_a_later_process(workspace, folder):
    MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION).sync()
    Journal(folder / "journal.jsonl").append(
        "test", epochs=2, metrics={"U": {"mAP": 0.5, "rank1": 0.6, "cmc": [0.6, 0.7]}}
    )
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.sync()
    logger.sync()
    client, run = stored(workspace, logger)
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert run.data.metrics["test/U/mAP"] == 0.5
    assert "test/U/cmc" not in run.data.metrics


def test_event_with_tags_sets_them_and_hyperedges_are_metrics_by_split(workspace, folder):
    journal = Journal(folder / "journal.jsonl")
    journal.append("test", epochs=2, metrics={}, hyperedges={"test": {"size": 1.4, "alone": 1.0}})
    journal.append("finished", tags={"stmi.warnings": "chi-degenerate"})
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.sync()
    _, run = stored(workspace, logger)
    assert run.data.tags["stmi.warnings"] == "chi-degenerate"
    assert run.data.metrics["test/hyperedges/size"] == 1.4


def test_pictures_and_status_are_stored_when_the_run_ends(workspace, folder):
    picture = folder / "cmc.png"
    picture.write_bytes(b"png")
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.finish("FINISHED", ["cmc.png", "journal.jsonl"])
    client, run = stored(workspace, logger)
    assert run.info.status == "FINISHED"
    paths = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert paths == {"pictures", "journal.jsonl"}


def test_dead_server_stops_no_run_and_gets_it_later(workspace, folder, caplog):
    # Nothing listens on the discard port.
    logger = MlflowLogger("http://127.0.0.1:9", folder, workspace, DESCRIPTION)
    logger.sync()
    logger.finish("FINISHED", [])
    assert logger.behind
    assert logger.run_id is None
    assert sum("cannot be reached" in record.message for record in caplog.records) == 1
    back = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    back.finish("FINISHED", [])
    assert not back.behind
    assert stored(workspace, back)[1].data.metrics["loss/total"] == 1.0


def test_what_mlflow_lacks_of_a_finished_run_is_named(tmp_path):
    folder = tmp_path / "train" / "r"
    folder.mkdir(parents=True)
    store, run, journal = local_store(tmp_path), JournalFolder(folder), Journal(folder / "journal.jsonl")
    assert find_missing(store, run) == ["MLflow has no run"]
    for epoch in (1, 2, 3):
        journal.append("epoch", epoch=epoch, losses={"total": 1.0}, seconds={}, learning_rate=0.1)
        if epoch == 1:
            logger = MlflowLogger(store, folder, tmp_path, DESCRIPTION)
            logger.sync()
    assert find_missing(store, run) == [
        "MLflow shows the run as RUNNING",
        "MLflow lacks learning_rate of epochs 2, 3",
        "MLflow lacks loss/total of epochs 2, 3",
    ]
    logger.finish("FINISHED", [])
    assert find_missing(store, run) == []


def log_table(workspace: Path, content: str) -> str | None:
    """Log a run with a table to the store of a workspace; returns its id."""
    folder = workspace / "train" / "r"
    Folder(folder).write("table3.md", content)
    Journal(folder / "journal.jsonl").append("untrained", metrics={"mAP": 0.1})
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.finish("FINISHED", ["table3.md"])
    assert not logger.behind
    return logger.run_id


def test_artifacts_are_found_and_written_in_a_workspace_that_was_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    # In a process of its own: MLflow remembers where a run's artifacts are.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        run = process.submit(log_table, old, "first").result()
    shutil.move(old, new)
    assert log_table(new, "second") == run
    client = mlflow.MlflowClient(local_store(new))
    assert Path(client.download_artifacts(run, "table3.md")).read_text() == "second"
    assert not old.exists()


@pytest.mark.fault
@pytest.mark.slow
def test_server_that_comes_back_gets_what_it_missed(workspace, tmp_path, folder):
    store, port = local_store(workspace), free_port()
    journal = Journal(folder / "journal.jsonl")
    with serving(store, tmp_path / "server", port) as address:
        logger = MlflowLogger(address, folder, tmp_path, DESCRIPTION)
        logger.sync()
        assert not logger.behind
        run_id = logger.run_id
    journal.append("epoch", epoch=3, losses={"total": 0.5}, seconds={"steps": 1.0}, learning_rate=0.1)
    logger.sync()
    assert logger.behind
    journal.append("test", epochs=3, metrics={"U": {"mAP": 0.5}})
    with serving(store, tmp_path / "server", port):
        logger.finish("FINISHED", ["journal.jsonl"])
        assert not logger.behind
        client = mlflow.MlflowClient(address)
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test/U/mAP"] == 0.5
        history = client.get_metric_history(run_id, "loss/total")
        assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0), (3, 0.5)]
        kept = Path(client.download_artifacts(run_id, "journal.jsonl", str(tmp_path)))
        assert kept.read_bytes() == Path(journal.location).read_bytes()
        assert sum(found.info.run_id == run_id for found in client.search_runs([run.info.experiment_id])) == 1


def test_parameters_that_a_failing_server_missed_are_sent_later(workspace, folder, monkeypatch):
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_batch", fail)
        logger.sync()
        assert logger.behind
    logger.sync()
    assert stored(workspace, logger)[1].data.params["str.tokens"] == "4"


def go_on(workspace, folder) -> MlflowLogger:
    """The logger of another start of the run."""
    Journal(folder / "journal.jsonl").append("started")
    return MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)


def status(workspace, folder):
    """Of the only run that the store has of this folder."""
    (run,) = find_runs(workspace, folder)
    return run.info.status


def test_failed_run_is_shown_as_running_when_it_goes_on(workspace, folder):
    MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION).finish("FAILED", [])
    MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION).sync()
    assert status(workspace, folder) == "FAILED"
    again = go_on(workspace, folder)
    again.sync()
    assert status(workspace, folder) == "RUNNING"
    again.finish("FINISHED", [])
    assert status(workspace, folder) == "FINISHED"


def test_run_whose_workspace_went_away_is_closed_and_goes_on_later(workspace, folder, without_storage):
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.sync()
    with without_storage():
        logger.finish("FAILED", ["journal.jsonl"])
    assert status(workspace, folder) == "FAILED"
    assert (logger.answers, logger.failure) == (True, "s3://lab has not answered")
    again = go_on(workspace, folder)
    again.sync()
    assert status(workspace, folder) == "RUNNING"
    again.finish("FINISHED", ["journal.jsonl"])
    assert status(workspace, folder) == "FINISHED"


def test_run_on_a_full_disk_is_closed(workspace, folder, monkeypatch):
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.sync()
    Journal(folder / "journal.jsonl").append("failed", error="no space left")

    def refuse(*given):
        raise NotWritableError("no space left")

    monkeypatch.setattr(filesystems, "write_atomically", refuse)
    logger.finish("FAILED", ["journal.jsonl"])
    assert status(workspace, folder) == "FAILED"


@pytest.mark.parametrize("is_ended", [False, True])
def test_run_that_another_process_has_taken_over_is_left_to_it(workspace, folder, is_ended):
    before = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    before.sync()
    successor = go_on(workspace, folder)
    successor.sync()
    if is_ended:
        successor.finish("FINISHED", [])
    before.close("FAILED")
    before.finish("FAILED", [])
    assert status(workspace, folder) == ("FINISHED" if is_ended else "RUNNING")


def test_file_that_changed_is_sent_again_and_no_other(workspace, folder, monkeypatch):
    table, picture = folder / "table3.md", folder / "table3.png"
    table.write_text("not finished")
    picture.write_bytes(b"png")
    MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION).finish(
        "FAILED", ["table3.md", "table3.png"]
    )
    sent = []
    log_artifact = mlflow.MlflowClient.log_artifact

    def noted(client, run_id, path, folder=None):
        sent.append(path)
        log_artifact(client, run_id, path, folder)

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", noted)
    table.write_text("81.2")
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.finish("FINISHED", ["table3.md", "table3.png"])
    logger.finish("FINISHED", ["table3.md", "table3.png"])
    assert sent == [str(table)]
    client, run = stored(workspace, logger)
    assert run.info.status == "FINISHED"
    assert Path(client.download_artifacts(run.info.run_id, "table3.md")).read_text() == "81.2"


def test_run_that_could_not_be_shown_as_running_again_is_closed_again(workspace, folder, monkeypatch):
    MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION).finish("FAILED", [])
    again = go_on(workspace, folder)
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "update_run", fail)
        again.sync()
    stored(workspace, again)[0].update_run(again.run_id, status="RUNNING")
    again.finish("FAILED", [])
    assert status(workspace, folder) == "FAILED"


def find_runs(workspace, folder):
    uuid = json.loads((folder / "mlflow.json").read_text())["identity"]
    client = mlflow.MlflowClient(local_store(workspace))
    experiment = client.get_experiment_by_name(DESCRIPTION.experiment)
    return client.search_runs([experiment.experiment_id], f"tags.`{UUID_TAG}` = '{uuid}'")


def test_run_is_one_run_under_every_address_of_its_store(workspace, folder):
    # A server that was started anew may listen on another port.
    addresses = [local_store(workspace), f"sqlite:///{workspace}/../{workspace.name}/mlflow.db"]
    for uri in (*addresses, addresses[0]):
        logger = MlflowLogger(uri, folder, workspace, DESCRIPTION)
        logger.finish("FINISHED", ["journal.jsonl"])
        assert not logger.behind
    (run,) = find_runs(workspace, folder)
    client = mlflow.MlflowClient(local_store(workspace))
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]


def test_run_whose_id_was_not_noted_is_found_again(workspace, folder, monkeypatch):
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    create = mlflow.MlflowClient.create_run

    def die_afterwards(*given, **more):
        create(*given, **more)
        raise ConnectionError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "create_run", die_afterwards)
        logger.sync()
    assert logger.behind
    again = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    again.sync()
    assert [run.info.run_id for run in find_runs(workspace, folder)] == [again.run_id]


def test_run_that_was_deleted_is_logged_anew(workspace, folder):
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.sync()
    client = mlflow.MlflowClient(local_store(workspace))
    client.delete_run(logger.run_id)
    deleted = logger.run_id
    Journal(folder / "journal.jsonl").append("untrained", metrics={"mAP": 0.1})
    # The first time it only finds out.
    logger.sync()
    logger.sync()
    assert not logger.behind
    assert logger.run_id != deleted
    assert client.get_run(logger.run_id).data.metrics["untrained/mAP"] == 0.1


def test_experiment_that_was_deleted_is_restored(workspace, folder, caplog):
    description = Description("deleted", "r", {}, {}, {})
    MlflowLogger(local_store(workspace), folder, workspace, description).sync()
    client = mlflow.MlflowClient(local_store(workspace))
    client.delete_experiment(client.get_experiment_by_name("deleted").experiment_id)
    (folder / "mlflow.json").unlink()
    logger = MlflowLogger(local_store(workspace), folder, workspace, description)
    logger.sync()
    assert not logger.behind
    assert client.get_experiment_by_name("deleted").lifecycle_stage == "active"
    assert "experiment deleted was deleted; it is restored" in caplog.text


def test_everything_is_logged_anew_to_a_store_that_was_replaced(workspace, folder):
    files = ["journal.jsonl"]
    MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION).finish("FINISHED", files)
    state = json.loads((folder / "mlflow.json").read_text())
    (folder / "mlflow.json").write_text(json.dumps(state | {"run_id": "0" * 32}))
    logger = MlflowLogger(local_store(workspace), folder, workspace, DESCRIPTION)
    logger.finish("FINISHED", files)
    client, run = stored(workspace, logger)
    assert run.info.status == "FINISHED"
    assert run.data.params["str.tokens"] == "4"
    assert run.data.metrics["loss/total"] == 1.0
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["journal.jsonl"]


def test_run_that_is_purged_while_it_is_logged_is_logged_anew(workspace, folder, monkeypatch):
    store = local_store(workspace)
    # `mlflow gc` sets it, and later tests must not find it.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    logger = MlflowLogger(store, folder, workspace, DESCRIPTION)
    logger.sync()
    client, run = stored(workspace, logger)
    client.delete_run(run.info.run_id)
    purged = CliRunner().invoke(
        gc, ["--backend-store-uri", store, "--tracking-uri", store, "--run-ids", run.info.run_id]
    )
    assert purged.exit_code == 0, purged.output
    Journal(folder / "journal.jsonl").append("untrained", metrics={"mAP": 0.1})
    logger.sync()
    assert not logger.behind
    client, anew = stored(workspace, logger)
    assert anew.info.run_id != run.info.run_id
    assert anew.data.metrics["untrained/mAP"] == 0.1
    assert anew.data.metrics["loss/total"] == 1.0


def test_password_of_a_server_is_neither_stored_nor_shown(workspace, folder, tmp_path, caplog):
    with serving(local_store(workspace), tmp_path / "server", free_port()) as address:
        logger = MlflowLogger(address.replace("//", "//me:secret@"), folder, workspace, DESCRIPTION)
        logger.sync()
        assert not logger.behind
    assert logger.public_uri == address
    assert json.loads((folder / "mlflow.json").read_text())["uri"] == address
    assert "secret" not in (folder / "mlflow.json").read_text()
    Journal(folder / "journal.jsonl").append("untrained", metrics={"mAP": 0.1})
    logger.sync()
    assert f"MLflow at {address} cannot be reached" in caplog.text
    assert "secret" not in caplog.text


def test_a_server_that_does_not_listen_costs_no_time_and_a_proxy_is_named(
    workspace, folder, caplog, monkeypatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("experiments.tracking.mlflow_logger._open_client", fail)
    logger = MlflowLogger("http://mlflow.example:5000", folder, workspace, DESCRIPTION)
    began = time.monotonic()
    logger.sync()
    logger.finish("FINISHED", [])
    assert time.monotonic() - began < 2
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(
        "MLflow at http://mlflow.example:5000 cannot be reached (127.0.0.1: Connection refused"
    )
    assert "through the proxy http://127.0.0.1:9" in line


def fail(*args, **kwargs):
    raise ConnectionError("no server")


def test_database_that_cannot_be_opened_is_not_tried_for_minutes(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(mlflow.store.db.utils.time, "sleep", waited.append)
    with pytest.raises(ConnectionError, match=r"cannot be reached: .*unable to open database file"):
        check_store(f"sqlite:///{tmp_path}", Folder(tmp_path))
    assert sum(waited) < 1
