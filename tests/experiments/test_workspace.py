"""A workspace at a URI, or one that was moved: runs and studies are found wherever the workspace is."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
from pyarrow import fs

from data_catalog.storage import filesystems, local_copies
from data_catalog.storage.folders import Folder
from experiments import ablate, evaluate, report, sweep_sfm, train
from experiments.run.run_folder import RunFolder
from tests.experiments import small_run

pytestmark = pytest.mark.slow

SPACE = ["--search", "str.tokens=int:1:16", "--search", "sfm.sharing=off", "--search", "sfm.perturbation=off"]


@pytest.fixture(params=["folder", "object storage"])
def place(request, object_storage, tmp_path):
    """An empty workspace."""
    if request.param == "folder":
        return str(tmp_path / "runs")
    return object_storage(f"workspace-{tmp_path.name}")


@pytest.fixture
def catalog(ray_session, clip, workspace):
    """The tables of the small run: making them anew would take seconds."""
    small_run.configured(clip, workspace)
    return str(workspace / "catalog")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A function that gives this machine an empty cache, as another machine has it."""

    def forget(name):
        monkeypatch.setenv(local_copies.FOLDER_VARIABLE, str(tmp_path / name))

    forget("cache")
    return forget


def printed(main, *arguments, status=0):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*map(str, arguments), "--json"]) == status
    return json.loads(out.getvalue())


def texts(folder):
    """All JSON files below a folder, by name, as text."""
    found = {name: folder.read(name).decode() for name in folder.list_files() if ".json" in name}
    for name in folder.list_folders():
        found |= {f"{name}/{inner}": text for inner, text in texts(folder / name).items()}
    return found


def test_run_is_the_same_wherever_the_workspace_is(place, catalog, cache, trained, capsys, clip):
    options = ["--workers", "2", "--catalog", catalog]
    result = small_run.run(capsys, clip, place, *options)
    assert result["metrics"] == trained["metrics"]
    assert result["losses"] == trained["losses"]
    run = RunFolder.open(result["folder"])
    assert run.parent.parent == Folder(place)
    assert Folder(result["checkpoint"]).parent == run
    assert small_run.run(capsys, clip, place, *options)["reused"]
    evaluated = printed(evaluate.main, "--run", run, "--workers", 0)
    assert evaluated["settings"][0]["metrics"]["U"]["mAP"] == pytest.approx(
        result["metrics"]["U"]["mAP"], abs=0.02
    )
    assert printed(report.main, "--workspace", place)["run"] == result["run"]
    assert report.main(["--run", str(run)]) == 0
    assert "rank_lists.png" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["object storage"], indirect=True)
def test_new_workspace_has_everything_in_it_and_no_state_names_its_place(
    place, cache, ray_session, capsys, clip
):
    result = small_run.run(capsys, clip, place, "--set", "train.epochs=1", "--workers", "1")
    assert {"catalog", "train"} <= set(Folder(place).list_folders())
    assert RunFolder(result["folder"]).view("test").catalog == Folder(place).file("catalog")
    for name, text in texts(Folder(place) / "train").items():
        assert place.partition("?")[0] not in text, name


def test_run_killed_after_any_epoch_ends_as_if_undisturbed(place, catalog, clip, workspace, tmp_path):
    class KilledError(Exception):
        pass

    def die_after(epoch):
        def on_report(facts):
            if facts["event"] == "epoch" and facts["epoch"] == epoch:
                raise KilledError

        return on_report

    undisturbed = small_run.alone(clip, workspace, runs=tmp_path / "undisturbed")
    for epoch in (1, 2):
        with pytest.raises(KilledError):
            small_run.alone(clip, workspace, runs=place, on_report=die_after(epoch))
    resumed = small_run.alone(clip, workspace, runs=place)
    assert resumed.result.resumed
    assert resumed.result.losses == undisturbed.result.losses
    assert resumed.result.metrics == undisturbed.result.metrics
    assert resumed.read_queries().equals(undisturbed.read_queries())
    assert sum(name.startswith("checkpoint_") for name in resumed.list_folders()) == 2


@pytest.mark.parametrize("place", ["object storage"], indirect=True)
def test_sweep_goes_on_from_another_machine_and_repeats_no_trial(place, catalog, cache, clip, tmp_path):
    options = [
        *small_run.options(clip),
        "--workspace",
        place,
        "--catalog",
        catalog,
        *SPACE,
        "--concurrent",
        "1",
    ]
    first = printed(sweep_sfm.main, *options, "--trials", 2)
    journals = {t["run"]: (Folder(place) / "train" / t["run"]).read("journal.jsonl") for t in first["trials"]}
    if "://" in place:
        cache("another machine")
    else:
        Path(first["storage"].removeprefix("sqlite:///")).unlink()
    second = printed(sweep_sfm.main, *options, "--trials", 3)
    assert second["resumed"]
    assert second["trials"][:2] == first["trials"]
    assert second["missing"] == 0
    for run, journal in journals.items():
        assert (Folder(place) / "train" / run).read("journal.jsonl") == journal
    cache("a third machine")
    page = printed(report.main, "--study", second["study"], "--workspace", place, "--catalog", catalog)
    assert page["missing"] == {}
    assert (Folder(place) / "studies" / second["study"]).has_file("report.html")


@pytest.mark.parametrize("place", ["object storage"], indirect=True)
def test_ablation_is_complete_in_object_storage(place, catalog, cache, clip):
    options = [
        *small_run.options(clip),
        "--workspace",
        place,
        "--catalog",
        catalog,
        "--set",
        "train.epochs=1",
    ]
    found = printed(ablate.main, *options, "--table", 3, "--seeds", 1)
    assert found["wrong"] == {}
    assert all(row["seeds"] == [0] for row in found["rows"])
    for path in found["files"].values():
        assert Folder(path).parent == Folder(place) / "studies" / found["study"]
    cache("another machine")
    again = printed(ablate.main, *options, "--table", 3, "--seeds", 1)
    assert again["rows"] == found["rows"]
    page = printed(report.main, "--study", found["study"], "--workspace", place, "--catalog", catalog)
    assert page["missing"] == {}


def move_to_another_bucket(old, new):
    (source, folder), (target, new_folder) = map(filesystems.open_root, (old, new))
    target.create_dir(new_folder.partition("/")[0])
    fs.copy_files(folder, new_folder, source_filesystem=source, destination_filesystem=target)
    source.delete_dir(folder)


def test_interrupted_run_goes_on_in_another_bucket(object_storage, cache, clip, workspace, tmp_path):
    class KilledError(Exception):
        pass

    def die(facts):
        if facts["event"] == "checkpoint":
            raise KilledError

    old = object_storage(f"workspace-{tmp_path.name}")
    new = old.replace("s3://lab/", "s3://other/", 1) + "&allow_bucket_creation=true"
    undisturbed = small_run.alone(clip, workspace, runs=tmp_path)
    with pytest.raises(KilledError):
        small_run.alone(clip, workspace, runs=old, on_report=die)
    move_to_another_bucket(old, new)
    cache("another machine")
    resumed = small_run.alone(clip, workspace, runs=new)
    assert resumed.result.resumed
    assert resumed.result.losses == undisturbed.result.losses
    assert resumed.read_queries().equals(undisturbed.read_queries())
    assert Folder(resumed.result.checkpoint).parent == resumed
    evaluated = printed(evaluate.main, "--run", resumed, "--workers", 0)
    assert evaluated["settings"][0]["metrics"]["U"]["mAP"] == pytest.approx(
        undisturbed.result.metrics["U"].mean_average_precision, abs=0.02
    )


def test_workspace_that_was_moved_has_everything(ray_session, clip, tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    settings = [*small_run.options(clip), "--set", "train.epochs=2"]
    trained = printed(train.main, *settings, "--workspace", old, "--workers", 1)
    swept = printed(sweep_sfm.main, *settings, "--workspace", old, *SPACE, "--trials", 2)
    shutil.move(old, new)
    assert printed(train.main, *settings, "--workspace", new, "--workers", 1)["reused"]
    again = printed(sweep_sfm.main, *settings, "--workspace", new, *SPACE, "--trials", 2, "--resume")
    assert again["trials"] == swept["trials"]
    evaluated = printed(evaluate.main, "--run", new / "train" / trained["run"], "--workers", 0)
    assert evaluated["samples"] > 0
    page = printed(report.main, "--study", swept["study"], "--workspace", new)
    assert page["missing"] == {}


def test_tables_that_moved_alone_are_looked_for_in_the_catalog_given(ray_session, clip, tmp_path, capsys):
    runs, moved = tmp_path / "runs", tmp_path / "moved"
    settings = [*small_run.options(clip), "--set", "train.epochs=1", "--workspace", runs, "--workers", 1]
    trained = printed(train.main, *settings, "--catalog", tmp_path / "catalog")
    shutil.move(tmp_path / "catalog", moved)
    run = ["--run", trained["folder"]]
    assert evaluate.main([*run, "--workers", "0"]) == 2
    assert "name the catalog that has it with --catalog" in capsys.readouterr().err
    assert printed(evaluate.main, *run, "--workers", 0, "--catalog", moved)["samples"] > 0
    assert printed(report.main, *run, "--catalog", moved)["run"] == trained["run"]
    shutil.rmtree(Path(trained["folder"]) / "pictures")
    assert printed(train.main, *settings, "--catalog", moved)["reused"]
