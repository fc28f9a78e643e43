import json
import shutil

import pytest

from data_catalog.errors import DamagedFileError
from experiments.recipes import resolve
from experiments.run.run_folder import RunFolder, RunFolderError, fingerprint
from experiments.run.run_tables import RunTables
from tests.experiments import made_up, small_run


@pytest.fixture
def tables(ray_session, clip, workspace) -> RunTables:
    return small_run.configured(clip, workspace)[1]


def test_run_asked_for_twice_is_found(tmp_path, tables):
    first = RunFolder.of(tmp_path, resolve("demo", ["train.epochs=2"]), tables)
    again = RunFolder.of(tmp_path, resolve("demo", ["train.epochs=2"]), tables)
    assert again.path == first.path
    assert RunFolder.open(first.path).config == first.config
    assert len(list((tmp_path / "train").iterdir())) == 1


@pytest.mark.parametrize("change", ["seed=1", "train.epochs=3", "data"])
def test_other_settings_or_data_are_another_run(change, tmp_path, tables):
    first = RunFolder.of(tmp_path, resolve("demo", ["train.epochs=2"]), tables)
    if change == "data":
        tables = RunTables(tables.views, tables.captions, tables.digests | {"train view": "another"})
        change = "seed=0"
    other = RunFolder.of(tmp_path, resolve("demo", ["train.epochs=2", change]), tables)
    assert other.path != first.path


def test_folder_that_holds_another_run_is_refused_and_left_as_it_is(tmp_path, tables):
    config = resolve("demo", [])
    folder = RunFolder.of(tmp_path, config, tables)
    stored = folder.path / "config.json"
    # Names hold eight digits of a fingerprint, which two runs may share.
    own = fingerprint(config, tables)
    content = json.loads(stored.read_text())
    stored.write_text(json.dumps(content | {"fingerprint": own[:8] + "0" * 56}))
    before = stored.read_bytes()
    with pytest.raises(RunFolderError, match=rf"{folder.name} holds another run .*expected {own[:16]}"):
        RunFolder.of(tmp_path, config, tables)
    assert stored.read_bytes() == before


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(RunFolderError, match=r"is no run's folder: it has no config\.json"):
        RunFolder.open(tmp_path)


def test_run_finished_last_is_found_by_no_clock_and_no_time_of_a_file(tmp_path):
    runs = {name: RunFolder(tmp_path / "train" / name) for name in ("a", "b", "c")}
    for (name, run), clock in zip(runs.items(), (3000.0, 1000.0, 2000.0), strict=True):
        run.path.mkdir(parents=True)
        run.journal.append("finished", time=clock)
        run.write_result(made_up.run_result())
        assert RunFolder.finished_last(tmp_path).name == name
    for name in ("a", "b"):
        (tmp_path / "train" / name / "result.json").touch()
    assert RunFolder.finished_last(tmp_path).name == "c"
    # As an older version left it, or where the run was removed.
    (tmp_path / "train" / "last.json").unlink()
    assert RunFolder.finished_last(tmp_path).name == "a"
    runs["b"].write_result(made_up.run_result())
    shutil.rmtree(runs["b"].path)
    assert RunFolder.finished_last(tmp_path).name == "a"


def test_damaged_note_of_the_run_finished_last_is_named(tmp_path):
    runs = tmp_path / "train"
    runs.mkdir()
    (runs / "last.json").write_bytes(b"")
    with pytest.raises(DamagedFileError, match=f"^{runs}/last.json is damaged .*; delete it$"):
        RunFolder.finished_last(tmp_path)


def test_workspace_without_a_finished_run_is_named(tmp_path):
    with pytest.raises(RunFolderError, match=f"^{tmp_path}/train has no finished run"):
        RunFolder.finished_last(tmp_path)
