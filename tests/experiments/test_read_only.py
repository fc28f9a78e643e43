"""A finished workspace on a read-only disk is shown: nothing that only shows needs to write, or needs Ray."""

import json

import pytest

from data_catalog import __main__ as catalog
from data_catalog.errors import NotWritableError
from experiments import ablate, evaluate, report, sweep_sfm, train
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.studies.study_folder import StoredRun, StudyFolder
from experiments.studies.sweep.sweep import SweepStudy
from tests import json_samples, kept_workspace, mounts
from tests.experiments import small_run


def printed(name):
    return json.loads((json_samples.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


RUN, STUDY = printed("train")["run"], printed("ablate")["study"]


TABLE_4 = ("--table", "4", "--set", "model.chi.incidence=cosine")
"""As it was in the older version, without rows for rules of hyperedges."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    kept = kept_workspace.unpack(tmp_path_factory.mktemp("kept"))
    names = {run for row in printed("ablate")["rows"] for run in row["runs"].values()}
    StudyFolder.of(kept, STUDY).write_runs({name: StoredRun(name=name) for name in names})
    with mounts.read_only(kept):
        with pytest.raises(OSError, match="Read-only"):
            (kept / "file").touch()
        yield kept


def test_report_of_a_run_says_where_its_pictures_could_go(workspace, tmp_path, capsys, caplog):
    run = ["--run", str(workspace / "train" / RUN)]
    assert report.main(run) == 0
    assert "U, fused" in capsys.readouterr().out
    (record,) = caplog.records
    assert "name a folder for them with --out" in record.getMessage()
    assert report.main([*run, "--out", str(tmp_path)]) == 0
    assert (
        f"{tmp_path}: cmc.png, hypergraphs.png, rank_lists.png, training_curves.png"
        in capsys.readouterr().out
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        *("cmc.png", "hypergraphs.png", "rank_lists.png", "training_curves.png")
    }


def test_finished_run_is_found(workspace, capsys, caplog):
    options = small_run.arguments(kept_workspace.CLIP, workspace, "--workers", "1")
    assert train.main(options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reused"]
    assert found["metrics"] == printed("train")["metrics"]
    assert "MLflow is not brought up to date" in caplog.text


@pytest.fixture
def dead_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


@pytest.mark.usefixtures("dead_cluster")
def test_finished_run_needs_no_cluster_and_one_that_is_not_is_refused(workspace, capsys):
    options = small_run.arguments(kept_workspace.CLIP, workspace, "--workers", "1")
    assert train.main(options) == 0
    assert json.loads(capsys.readouterr().out)["run"] == RUN
    assert train.main([*options, "--seed", "9"]) == 2
    assert "RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there" in capsys.readouterr().err


@pytest.mark.usefixtures("dead_cluster")
@pytest.mark.parametrize(
    ("script", "name", "asked", "more"),
    [
        (ablate, "ablate", [*TABLE_4, "--seeds", "2"], [*TABLE_4, "--seeds", "3"]),
        (sweep_sfm, "sweep", ["--trials", "3"], ["--trials", "4"]),
    ],
)
def test_finished_study_is_found_and_what_it_lacks_is_not(
    workspace, capsys, caplog, script, name, asked, more
):
    options = small_run.arguments(kept_workspace.CLIP, workspace)
    assert script.main([*options, *asked]) == 0
    found, then = json.loads(capsys.readouterr().out), printed(name)
    assert found["study"] == then["study"]
    for field in ("rows", "trials"):
        assert json_samples.missing(then.get(field), found.get(field)) == []
    assert all(path.startswith(f"{workspace}/studies/") for path in found["files"].values())
    assert "is shown as it was stored" in caplog.text
    assert script.main([*options, *more]) == 2
    assert "no Ray cluster answers there" in capsys.readouterr().err


def test_study_that_lacks_something_is_refused_where_nothing_can_be_written(workspace):
    options = RunOptions.resolve(workspace)
    _, tables = small_run.configured(kept_workspace.CLIP, workspace)
    spec = sweep_sfm.specify(
        sweep_sfm.parser().parse_args([*small_run.options(kept_workspace.CLIP), "--trials", "4"])
    )
    with pytest.raises(NotWritableError, match="Read-only file system"):
        SweepStudy(spec, tables, options).run()


def test_run_that_is_not_finished_is_refused_in_one_line(workspace, capsys):
    options = small_run.arguments(kept_workspace.CLIP, workspace, "--workers", "1", "--seed", "9")
    assert train.main(options) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"error: {workspace}/train/demo-seed9-")
    assert "Read-only file system" in line


def test_run_is_evaluated(workspace, capsys):
    run = str(workspace / "train" / RUN)
    assert evaluate.main(["--run", run, "--workers", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subject"] == RUN


@pytest.mark.usefixtures("dead_cluster")
def test_evaluation_without_its_cluster_says_how_to_do_without(workspace, capsys):
    run = str(workspace / "train" / RUN)
    assert evaluate.main(["--run", run]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no Ray cluster answers there" in line
    assert line.endswith("--workers 0 evaluates in this process, without Ray")
    assert evaluate.main(["--run", run, "--workers", "0"]) == 0


def test_page_of_a_study_goes_elsewhere(workspace, tmp_path, capsys):
    study = ["--study", STUDY, "--workspace", str(workspace)]
    assert report.main([*study, "--out", str(tmp_path / "page.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(tmp_path / "page.html")
    assert report.main(study) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "could not be written" in line
    assert "--out" in line


@pytest.mark.parametrize(
    "command", [["show"], ["show", "--lineage"], ["verify"], ["checks"], ["sheet", "--out"]]
)
def test_catalog_is_shown(workspace, tmp_path, capsys, command):
    name, *options = command
    if name == "sheet":
        options.append(str(tmp_path / "sheet.png"))
    where = ["synthetic_person", "--catalog", str(workspace / "catalog")]
    assert catalog.main([name, *where, *options]) == 0, capsys.readouterr().err
    if name == "checks":
        assert "duplicate images were not looked for" in capsys.readouterr().out


def test_tables_of_a_run_are_found(workspace):
    assert RunFolder.open(workspace / "train" / RUN).view("test").reused
