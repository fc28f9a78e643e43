"""Every stored file of a workspace, damaged in four ways: one line names it, or what is left is used.

The workspace is the kept one (see `tests.kept_workspace`), so nothing is trained.
"""

import contextlib
import dataclasses
import json
import shutil
import sqlite3
import subprocess

import pyarrow as pa
import pytest

import stmi
from data_catalog.errors import CatalogError, DamagedFileError
from data_catalog.storage.folders import Folder
from data_catalog.tables.table import TableKind, list_tables
from experiments import report
from experiments.reports.recorded_study import read_result
from experiments.run.checkpoint_faults import find_fault
from experiments.run.conclusion import find_choices
from experiments.run.run_description import describe_run
from experiments.run.run_figures import draw_all, training_curves
from experiments.run.run_folder import RunFolder
from experiments.studies.study_folder import StoredDescription, StoredRun, StudyFolder
from experiments.studies.sweep.optuna_study import OptunaStudy
from experiments.studies.sweep.search_space import make_space
from experiments.studies.sweep.stored_trials import StoredTrial, StoredTrials
from experiments.studies.sweep.sweep import sweep_file
from experiments.tracking.journal import Journal
from experiments.tracking.mlflow_store import open_local_store
from stmi.checksums import SUMS_FILE, write_sums
from stmi.errors import ClipFileError
from tests import json_samples, kept_workspace
from tests.experiments import made_up, small_run
from tests.experiments.studies.sweep.test_optuna_study import run_to

WAY_OF_TEXT = "a byte that is no text"
WAYS = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "another value": lambda content: b"123",
    WAY_OF_TEXT: lambda content: content[:40] + b"\xff" + content[41:],
}


def printed(name):
    return json.loads((json_samples.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


RUN, ABLATION, SWEEP = printed("train")["run"], printed("ablate")["study"], printed("sweep")["study"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def damaged(kept):
    """A function that damages a file of the workspace; afterwards the file is as it was."""
    stored = {}

    def damage(pattern, way):
        [path] = kept.glob(pattern)
        stored.setdefault(path, path.read_bytes())
        path.write_bytes(WAYS[way](stored[path]))
        return path

    yield damage
    for path, content in stored.items():
        path.write_bytes(content)


def run_of(kept):
    return RunFolder(kept / "train" / RUN)


def load(kept):
    return stmi.load(kept / "train" / RUN, device="cpu")


def read_tables(kept, kind):
    return list_tables(kept / "catalog", "synthetic_person", kind)


def open_views(kept):
    for table in read_tables(kept, TableKind.VIEW):
        table.check_shards()


def draw(kept):
    return draw_all(run_of(kept), run_of(kept).finished_result)


def trial(number):
    return StoredTrial(
        number=number,
        state="RUNNING",
        values=None,
        params={},
        distributions={},
        user_attrs={},
        intermediate_values={},
    )


READERS = [
    (f"train/{RUN}/config.json", lambda kept: RunFolder.open(kept / "train" / RUN)),
    (f"train/{RUN}/config.json", load),
    (f"train/{RUN}/result.json", lambda kept: run_of(kept).finished_result),
    (f"train/{RUN}/result.json", load),
    (f"train/{RUN}/checkpoint_*/model.safetensors", load),
    (f"train/{RUN}/checkpoint_*/test_embeddings.safetensors", draw),
    (f"studies/{ABLATION}/study.json", lambda kept: StudyFolder.of(kept, ABLATION).belong_to("ablation", "")),
    (f"studies/{ABLATION}/result.json", lambda kept: read_result(StudyFolder.of(kept, ABLATION))),
    ("catalog/*/samples/*/manifest.json", lambda kept: read_tables(kept, TableKind.SAMPLES)),
    ("catalog/*/view/0644dcb6f43ebceb/manifest.json", open_views),
]


@pytest.mark.parametrize(("file", "read"), READERS)
@pytest.mark.parametrize("way", WAYS)
def test_reader_names_a_damaged_file_in_one_line(kept, damaged, file, read, way):
    path = damaged(file, way)
    with pytest.raises((CatalogError, stmi.TrainedRunError, ClipFileError)) as raised:
        read(kept)
    assert path.name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("way", WAYS)
def test_damaged_table_of_queries_is_named(tmp_path, way):
    queries = pa.table({"average_precision": [0.25] * 20})
    dataclasses.replace(made_up.checkpoint(), queries=[queries]).write(tmp_path)
    content = (tmp_path / "queries.parquet").read_bytes()
    run = RunFolder(tmp_path)
    assert len(run.read_queries()) == 20
    run.write("queries.parquet", WAYS[way](content))
    with pytest.raises(DamagedFileError, match=r"queries\.parquet is damaged"):
        run.read_queries()


@pytest.mark.parametrize("way", WAYS)
def test_command_ends_with_one_line_and_status_2(kept, damaged, way, capsys):
    damaged(f"train/{RUN}/config.json", way)
    assert report.main(["--run", str(kept / "train" / RUN)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert "config.json is damaged" in line
    assert "move the folder" in line


@pytest.mark.parametrize("way", WAYS)
def test_files_of_a_study_that_later_versions_added_are_named_too(tmp_path, way):
    study = StudyFolder.of(tmp_path, "s")
    study.write_runs({"r": StoredRun(name="the run")})
    study.describe_once(StoredDescription(recipe="demo", parameters={}, tags={}))
    assert len(study.uuid) == 32
    StoredTrials(study).write(trial(0))
    for name, read in {
        "runs.json": study.read_runs,
        "description.json": study.read_description,
        "folder.id": lambda: study.uuid,
        "trials/000000.json": StoredTrials(study).read,
    }.items():
        content = study.read(name)
        study.write(name, WAYS[way](content) if name != "folder.id" or way != WAY_OF_TEXT else b"\xff" * 32)
        with pytest.raises(DamagedFileError, match=f"{name} is damaged"):
            read()
        study.write(name, content)
        read()


@pytest.mark.parametrize("way", WAYS)
def test_what_mlflow_has_of_a_run_stops_nothing(kept, damaged, way, caplog):
    path = damaged(f"train/{RUN}/mlflow.json", way)
    assert run_of(kept).mlflow is None
    (record,) = caplog.records
    assert f"{path} is damaged" in record.getMessage()


@pytest.mark.parametrize("way", ["cut off", "another value", WAY_OF_TEXT])
def test_store_of_mlflow_that_is_damaged_is_named(tmp_path, way):
    file = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE experiments (artifact_location TEXT)")
    content = file.read_bytes()
    file.write_bytes(WAYS[way](content) if way != WAY_OF_TEXT else b"\xff" + content[1:])
    with pytest.raises(ConnectionError, match=r"mlflow\.db is damaged"):
        open_local_store(Folder(tmp_path))


@pytest.mark.parametrize("way", ["cut off", "another value"])
def test_sqlite_file_of_a_sweep_is_made_again_from_its_trials(tmp_path, way, caplog):
    study, file = made_up.study_folder(tmp_path), tmp_path / "studies" / "s" / "optuna.db"

    def opened():
        url = f"sqlite:///{sweep_file(study)}"
        return OptunaStudy(url, "s", "a", make_space([]), 0, stored=StoredTrials(study))

    first = opened()
    run_to(first, 2)
    before = first.trials()
    first._storage.remove_session()
    file.write_bytes(WAYS[way](file.read_bytes()))
    assert opened().trials() == before
    assert "optuna.db is damaged" in caplog.text
    assert file.with_suffix(".damaged").exists()


def test_damaged_file_of_a_trial_is_written_again_from_optunas_file(tmp_path):
    study = StudyFolder.of(tmp_path, "s")
    url = f"sqlite:///{tmp_path / 'kept.db'}"
    run_to(OptunaStudy(url, "s", "a", make_space([]), 0, stored=StoredTrials(study)), 2)
    before = StoredTrials(study).read()
    study.write("trials/000000.json", "123")
    OptunaStudy(url, "s", "a", make_space([]), 0, stored=StoredTrials(study))
    assert StoredTrials(study).read() == before


@pytest.mark.parametrize("line", [b"123", b'{"event": 7}', b'{"event": "epoch", "ep', b"\xff\xfe", b"[]"])
def test_line_of_a_journal_that_holds_no_event_is_named_and_left_out(tmp_path, line, caplog):
    path = tmp_path / f"{hash(line)}.jsonl"
    journal = Journal(path)
    journal.append("started")
    path.write_bytes(path.read_bytes() + line + b"\n")
    journal.append("epoch", epoch=1)
    for _ in range(2):
        assert [event["event"] for event in Journal(path).read()] == ["started", "epoch"]
    (record,) = caplog.records
    assert f"{path}: line 2 is cut off or damaged" in record.getMessage()


def test_journal_that_lost_what_its_reader_needs_is_named(kept, damaged):
    path = damaged(f"train/{RUN}/journal.jsonl", "empty")
    for read in (describe_run, lambda run: find_choices(run, "U"), lambda run: training_curves(run.journal)):
        with pytest.raises(DamagedFileError, match=f"{path} is damaged"):
            read(run_of(kept))


def checkpoint_files(kept):
    [folder] = (kept / "train" / RUN).glob("checkpoint_*")
    return folder, sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("way", WAYS)
def test_every_damaged_file_of_a_checkpoint_is_found_by_its_digest(kept, tmp_path, way):
    checkpoint, names = checkpoint_files(kept)
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, copy)
    write_sums(copy)
    assert find_fault(Folder(copy)) is None
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS_FILE], check=True, cwd=copy)
    assert {"model.safetensors", "training.pt", "history.json", "queries.parquet"} <= {*names}
    for name in [*names, SUMS_FILE]:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(WAYS[way](content))
        assert name in find_fault(Folder(copy))
        (copy / name).unlink()
        # Without its digests a checkpoint is one of an older version.
        assert find_fault(Folder(copy)) == (None if name == SUMS_FILE else f"{name} is missing")
        (copy / name).write_bytes(content)


@pytest.mark.parametrize("kept_file", ["history.json", "SHA256SUMS", None])
def test_checkpoint_of_which_files_are_gone_is_found(kept, tmp_path, kept_file):
    checkpoint, names = checkpoint_files(kept)
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, copy)
    write_sums(copy)
    for name in {*names, SUMS_FILE} - {kept_file}:
        (copy / name).unlink()
    assert find_fault(Folder(copy)) == "model.safetensors is missing"


@pytest.mark.parametrize("way", ["empty", "cut off", "another value"])
def test_cut_file_of_a_checkpoint_without_digests_is_found_too(kept, damaged, way):
    checkpoint, names = checkpoint_files(kept)
    assert SUMS_FILE not in names
    assert find_fault(Folder(checkpoint)) is None
    for name in names:
        if (name, way) == ("history.json", "another value"):
            continue
        content = (checkpoint / name).read_bytes()
        damaged(f"train/{RUN}/checkpoint_*/{name}", way)
        assert find_fault(Folder(checkpoint)).startswith(f"{name} is cut off")
        (checkpoint / name).write_bytes(content)


def test_weights_that_changed_since_they_were_stored_are_not_loaded(kept, tmp_path):
    run = tmp_path / RUN
    shutil.copytree(kept / "train" / RUN, run)
    [checkpoint] = run.glob("checkpoint_*")
    write_sums(checkpoint)
    assert stmi.load(run, device="cpu").name == RUN
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # in the last number, which any format takes
    (checkpoint / "model.safetensors").write_bytes(weights)
    with pytest.raises(stmi.TrainedRunError, match=r"model\.safetensors is damaged \(its SHA-256"):
        stmi.load(run, device="cpu")


def test_damaged_newest_checkpoint_is_named_and_the_one_before_it_is_used(
    ray_session, clip, workspace, tmp_path, caplog
):
    undisturbed = small_run.alone(clip, workspace, runs=tmp_path / "undisturbed")
    with pytest.raises(ValueError, match="stop"):
        small_run.alone(clip, workspace, runs=tmp_path, on_report=stop_after(2))
    [folder] = (tmp_path / "train").iterdir()
    newest = max(folder.glob("checkpoint_step_*"))
    (newest / "training.pt").write_bytes(b"")
    resumed = small_run.alone(clip, workspace, runs=tmp_path)
    assert [event["epoch"] for event in resumed.journal.read() if event["event"] == "resumed"] == [1]
    assert resumed.result.losses == undisturbed.result.losses
    assert resumed.result.metrics == undisturbed.result.metrics
    assert f"{newest} is damaged (training.pt is cut off or changed" in caplog.text


def test_checkpoint_from_which_a_run_goes_on_is_not_deleted_as_an_old_one(
    ray_session, clip, workspace, tmp_path
):
    """The newest one is gone, and the one before it damaged: the third is all that there is."""
    with pytest.raises(ValueError, match="stop"):
        small_run.alone(clip, workspace, runs=tmp_path, on_report=stop_after(2))
    [folder] = (tmp_path / "train").iterdir()
    oldest, newest = sorted(folder.glob("checkpoint_step_*"))
    journal = Journal(folder / "journal.jsonl")
    journal.append("checkpoint", epoch=2, step=5, checkpoint="checkpoint_step_00000099")
    (newest / "training.pt").write_bytes(b"")
    assert RunFolder(folder).last_checkpoint == str(oldest)
    resumed = small_run.alone(clip, workspace, runs=tmp_path)
    assert [event["epoch"] for event in resumed.journal.read() if event["event"] == "resumed"] == [1]


def stop_after(epoch):
    def on_report(facts):
        if facts["event"] == "checkpoint" and facts["epoch"] == epoch:
            raise ValueError("stop")

    return on_report
