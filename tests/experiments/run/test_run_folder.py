import json

import pytest

from experiments.recipes import resolve
from experiments.run.run_folder import RunFolder, RunFolderError, fingerprint
from experiments.run.run_tables import RunTables
from tests.experiments import small_run


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
