import pytest

from data_catalog.errors import CatalogError
from data_catalog.storage import local_copies
from experiments.experiment_config import ConfigError
from experiments.run.run_options import RunOptions, resolve_workspace
from experiments.tracking.mlflow_store import local_store


def test_relative_locations_are_those_below_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = RunOptions.resolve("here", catalog="data", storage="kept")
    assert options.workspace.path == tmp_path / "here"
    assert (options.catalog, options.storage) == (str(tmp_path / "data"), str(tmp_path / "kept"))


def test_catalog_and_mlflow_store_are_the_workspaces_own_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    options = RunOptions.resolve(tmp_path)
    assert (options.catalog, options.storage) == (str(tmp_path / "catalog"), None)
    assert options.tracking_uri == local_store(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_workspace_at_a_uri_has_its_own_catalog_and_says_where_mlflows_file_is(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(local_copies.FOLDER_VARIABLE, str(tmp_path))
    options = RunOptions.resolve("s3://lab/runs?region=us-east-1")
    assert options.catalog == "s3://lab/runs/catalog?region=us-east-1"
    assert options.tracking_uri.startswith(f"sqlite:///{tmp_path}/")
    assert options.tracking_uri in caplog.text
    caplog.clear()
    RunOptions.resolve("s3://lab/runs?region=us-east-1", tracking_uri="http://127.0.0.1:9")
    assert caplog.text == ""


def test_uris_stay_as_they_are(tmp_path):
    options = RunOptions.resolve(tmp_path, catalog="s3://lab/catalog", storage=tmp_path.as_uri())
    assert (options.catalog, options.storage) == ("s3://lab/catalog", tmp_path.as_uri())


def test_trials_do_not_get_the_tracking_uri_and_its_password(tmp_path):
    options = RunOptions.resolve(tmp_path, tracking_uri="http://me:secret@127.0.0.1:9", gpus_per_worker=0.5)
    given = options.without_tracking()
    assert "secret" not in repr(given)
    assert (given.workspace, given.gpus_per_worker) == (options.workspace, 0.5)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"workspace": "foo://x"}, CatalogError, "foo://x cannot be opened"),
        ({"storage": "foo://x"}, CatalogError, "foo://x cannot be opened"),
        ({"tracking_uri": "foo://bar"}, ConfigError, "tracking URI 'foo://bar'"),
    ],
)
def test_impossible_locations_are_refused(given, error, message, tmp_path):
    with pytest.raises(error, match=message):
        RunOptions.resolve(**{"workspace": tmp_path} | given)


@pytest.mark.parametrize("name", ["q?x=1", "p%20q", "a%3Fb"])
def test_workspace_whose_path_means_another_one_in_a_uri_is_refused(name, tmp_path):
    """SQLAlchemy would keep the databases of MLflow and of sweeps elsewhere."""
    with pytest.raises(ConfigError, match=r"have a meaning of their own in the URIs of its databases"):
        resolve_workspace(tmp_path / name)
    for usual in ("a b", "50%", "a#b", "a[b]"):
        assert resolve_workspace(tmp_path / usual).location == str(tmp_path / usual)
