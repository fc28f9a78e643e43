"""Event files, read by TensorBoard itself."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from data_catalog.errors import NotWritableError
from data_catalog.storage import filesystems
from experiments import ablate, sweep_sfm, train
from experiments.run import lifecycle
from experiments.run.run_options import RunOptions
from experiments.tracking import event_files
from experiments.tracking.event_files import EventFile, event_files_written
from experiments.tracking.journal_folder import JournalFolder
from experiments.tracking.mlflow_logger import metrics_of
from tests.experiments import small_run

SETTINGS = {"model.sfm.perturbation": 0.01, "model.chi": "off", "batch.size": 8, "split": [1, 2], "f": None}


def add_epoch(folder, epoch, total):
    folder.journal.append(
        "epoch", epoch=epoch, losses={"total": total}, seconds={"steps": 1.0}, learning_rate=0.1
    )


@pytest.fixture
def folder(tmp_path):
    folder = JournalFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.journal.append("started", epoch=0)
    add_epoch(folder, 1, 2.0)
    return folder


def write(folder):
    EventFile(folder, SETTINGS).write()


def file_of(folder) -> Path:
    (file,) = (folder.path / "tensorboard").iterdir()
    return file


def points(folder, tag):
    """Step and value of each point that TensorBoard shows of a metric."""
    shown = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    return [(point.step, point.value) for point in shown.Scalars(tag)]


def test_tensorboard_reads_each_metric_of_the_journal_with_its_step_and_time(folder):
    folder.journal.append("test", epochs=1, metrics={"U": {"mAP": 0.5, "cmc": [0.6, 0.7]}})
    folder.journal.append("finished", metrics={"mAP": 0.5})
    write(folder)
    shown = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    expected = [entry for event in folder.journal.read() for entry in metrics_of(event)]
    assert sorted(shown.Tags()["scalars"]) == sorted(tag for tag, *_ in expected)
    assert len(expected) == 5
    for tag, value, milliseconds, step in expected:
        (point,) = shown.Scalars(tag)
        assert (point.step, point.value) == (step, pytest.approx(value))
        assert point.wall_time == pytest.approx(milliseconds / 1000, abs=1e-3)


def test_settings_are_hyperparameters_in_tensorboard(folder):
    write(folder)
    entries = [
        entry for event in EventFileLoader(str(file_of(folder))).Load() for entry in event.summary.value
    ]
    (content,) = [
        entry.metadata.plugin_data.content
        for entry in entries
        if entry.metadata.plugin_data.plugin_name == "hparams"
    ]
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown.keys() == SETTINGS.keys()
    assert (shown["batch.size"].number_value, shown["model.chi"].string_value) == (8, "off")
    assert (shown["split"].string_value, shown["f"].string_value) == ("[1, 2]", "None")


def test_a_later_process_adds_what_is_new_and_no_event_twice(folder):
    write(folder)
    before, number = file_of(folder).read_bytes(), file_of(folder).stat().st_ino
    add_epoch(folder, 2, 1.0)
    # Its hashes, and so the order of sets and maps, are others.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(EventFile(folder, SETTINGS).write).result()
    assert file_of(folder).read_bytes().startswith(before)
    # A TensorBoard that shows the run has the file open.
    assert file_of(folder).stat().st_ino == number
    write(folder)
    assert points(folder, "loss/total") == [(1, 2.0), (2, 1.0)]


def test_a_file_that_was_cut_off_or_damaged_is_whole_again(folder):
    add_epoch(folder, 2, 1.0)
    write(folder)
    whole = file_of(folder).read_bytes()
    for broken in (whole[:-7], b"x" + whole[1:], whole + b"more", b""):
        file_of(folder).write_bytes(broken)
        write(folder)
        assert file_of(folder).read_bytes() == whole


def test_epochs_that_training_went_back_behind_are_shown_once(folder):
    for epoch in (2, 3):
        add_epoch(folder, epoch, 9.0)
    write(folder)
    folder.journal.append("resumed", epoch=1)
    for epoch in (2, 3):
        add_epoch(folder, epoch, 1.0)
    write(folder)
    assert points(folder, "loss/total") == [(1, 2.0), (2, 1.0), (3, 1.0)]


def test_nothing_is_written_before_a_run_has_begun(tmp_path):
    folder = JournalFolder(tmp_path / "run")
    write(folder)
    assert not folder.path.exists()


def test_a_file_in_object_storage_is_replaced_as_a_whole(object_storage, tmp_path):
    folder = JournalFolder(object_storage("event-files"))
    for epoch in (1, 2):
        add_epoch(folder, epoch, float(epoch))
        write(folder)
    ((name, _),) = (folder / "tensorboard").list_files().items()
    local = JournalFolder(tmp_path)
    local.write(f"tensorboard/{name}", folder.read(f"tensorboard/{name}"))
    assert points(local, "loss/total") == [(1, 1.0), (2, 2.0)]


def test_a_full_disk_ends_no_run_and_is_named_once(folder, monkeypatch, caplog):
    def refuse(filesystem, path, data):
        raise filesystems.not_written(path, OSError("no space left on device"))

    with monkeypatch.context() as patched:
        patched.setattr(filesystems, "write_atomically", refuse)
        with pytest.raises(NotWritableError):
            write(folder)
        with event_files_written(lambda: {folder: SETTINGS}):
            pass
    assert caplog.text.count("no space left on device") == 1
    with event_files_written(lambda: {folder: SETTINGS}):
        pass
    assert points(folder, "loss/total") == [(1, 2.0)]


@pytest.mark.parametrize("script", [train, ablate, sweep_sfm])
def test_a_missing_package_is_named_with_its_pip_line_before_any_work(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(event_files, "find_spec", lambda name: None)
    asked = ["--table", "3"] if script is ablate else []
    assert script.main([*asked, "--log-to", "tensorboard", "--workspace", str(tmp_path / "runs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'tensorboard" in line
    assert not (tmp_path / "runs").exists()


def test_unknown_kinds_of_logs_are_refused(capsys):
    with pytest.raises(SystemExit):
        train.main(["--log-to", "wandb"])
    assert "tensorboard" in capsys.readouterr().err


def test_an_interrupted_run_that_goes_on_has_each_epoch_once(ray_session, clip, workspace, tmp_path):
    config, tables = small_run.configured(clip, workspace, "train.checkpoint_every=2")
    options = replace(RunOptions.resolve(tmp_path).without_tracking(), writes_event_files=True)

    def interrupt(facts):
        if facts["event"] == "epoch" and facts["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lifecycle.run(config, tables, options, threads=1, on_report=interrupt)
    result = lifecycle.run(config, tables, options, threads=1)
    folder = JournalFolder(result.folder)
    assert result.resumed
    # The journal has the third epoch of each start.
    assert [event["epoch"] for event in folder.journal.read() if event["event"] == "epoch"] == [1, 2, 3, 3]
    assert [step for step, _ in points(folder, "loss/total")] == [1, 2, 3]
    (map_of_u,) = points(folder, "mAP")
    assert map_of_u[1] == pytest.approx(result.reported.metrics.mean_average_precision)
