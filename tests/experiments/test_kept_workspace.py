"""What an older version stored is found and used as it is (see `tests.kept_workspace`)."""

import json
from pathlib import Path

import pytest

from experiments import ablate, evaluate, sweep_sfm, train
from experiments.run.run_folder import RunFolder
from experiments.studies.ablation.ablation_result import AblationResult
from experiments.studies.sweep.sweep_result import SweepResult
from tests import json_samples, kept_workspace
from tests.experiments import small_run
from tests.tolerances import GOLDEN_VALUE


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return kept_workspace.unpack(tmp_path_factory.mktemp("kept"))


PAPER = ("--rerank-variant", "paper")
"""The older code's re-ranking."""


def printed(name):
    return json.loads((json_samples.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def command(ray_session, capsys, kept):
    """Runs a script in the kept workspace and gives what it prints."""

    def call(main, *arguments):
        capsys.readouterr()
        status = main([*map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return json.loads(captured.out)

    return call


@pytest.fixture
def options(kept):
    return [*small_run.options(kept_workspace.CLIP), "--workspace", kept]


@pytest.fixture
def untouched(kept):
    """Fails the test if a run was trained, begun or removed."""

    def journals():
        return {path: path.stat().st_size for path in kept.glob("train/*/journal.jsonl")}

    before = journals()
    yield
    assert journals() == before


def test_tables_of_older_code_are_found(kept):
    config, tables = small_run.configured(kept_workspace.CLIP, kept)
    assert config.data.dataset == "synthetic_person"
    assert all(view.reused for view in tables.views.values())
    assert tables.digests == printed("train")["tables"]


@pytest.mark.parametrize(("name", "record"), [("ablate", AblationResult), ("sweep", SweepResult)])
def test_results_of_older_code_are_read_with_full_names_of_settings(tmp_path, name, record):
    studies = kept_workspace.unpack(tmp_path) / "studies"
    stored = (studies / printed(name)["study"] / "result.json").read_bytes()
    assert b'"sfm.perturbation":' in stored
    read = record.model_validate_json(stored).model_dump(mode="json")
    for field in ("rows", "trials", "best", "pareto", "space", "importance"):
        assert json_samples.missing(printed(name).get(field), read.get(field)) == []


@pytest.mark.usefixtures("untouched")
def test_a_run_of_older_code_is_found_with_its_result(command, options):
    found, then = command(train.main, *options, "--workers", 1), printed("train")
    assert found["reused"]
    for name in ("run", "metrics", "choices", "reported", "untrained", "validation", "losses", "seconds"):
        assert found[name] == then[name]


@pytest.mark.usefixtures("untouched")
def test_an_ablation_of_older_code_is_found_with_its_rows(command, options):
    # Table 4 had no rows for rules of hyperedges; where the rule is set for all rows, it has none now.
    as_then = ("--table", 4, "--seeds", 2, "--set", "model.chi.incidence=cosine")
    found, then = command(ablate.main, *options, *as_then), printed("ablate")
    assert found["study"] == then["study"]
    assert json_samples.missing(then["rows"], found["rows"]) == []
    compared = [row["mAP"] for row in found["rows"] if row["mAP"]["against"] is not None]
    assert {metric["verdict"] for metric in compared} == {"undecided"}
    assert all("2 seeds cannot decide" in metric["advice"] for metric in compared)
    assert found["wrong"] == {}


@pytest.mark.usefixtures("untouched")
def test_a_sweep_of_older_code_is_found_with_its_trials(command, options):
    found, then = command(sweep_sfm.main, *options, "--trials", 3), printed("sweep")
    assert found["resumed"]
    for name in ("study", "trials", "pareto", "missing"):
        assert found[name] == then[name]
    # It did not say all that makes the best trial.
    assert found["best"].pop("settings")
    assert found["best"] == then["best"]


@pytest.mark.usefixtures("untouched")
def test_weights_of_older_code_give_the_same_metrics(command, kept):
    then, run = printed("evaluate"), kept / "train" / printed("train")["run"]
    found = command(evaluate.main, "--run", run, "--missing", "all", "--rerank", *PAPER)
    assert len(found["settings"]) == len(then["settings"])
    for ours, theirs in zip(found["settings"], then["settings"], strict=True):
        assert (ours["missing"], ours["reranked"]) == (theirs["missing"], theirs["reranked"])
        for feature, metrics in theirs["metrics"].items():
            # Of black images all features of a camera are equal, and rounding ranks them.
            if feature in theirs["missing"]:
                continue
            assert ours["metrics"][feature] == {
                name: pytest.approx(value, abs=GOLDEN_VALUE) for name, value in metrics.items()
            }


def test_run_of_older_code_is_found_as_a_whole_after_its_workspace_was_moved(command, tmp_path):
    moved = kept_workspace.unpack(tmp_path, is_moved=True)
    assert not Path(kept_workspace.KEPT.decode()).exists()
    run = RunFolder.open(moved / "train" / printed("train")["run"])
    assert kept_workspace.KEPT.decode() in run.read("journal.jsonl").decode()
    assert Path(run.result.checkpoint).parent == Path(run.result.folder) == run.path
    assert run.last_checkpoint == run.result.checkpoint
    assert run.view("test").catalog == str(moved / "catalog")
    found = command(evaluate.main, "--run", run.path, "--workers", 0)
    assert found["settings"][0]["metrics"]["U"]["mAP"] == pytest.approx(
        printed("evaluate")["settings"][0]["metrics"]["U"]["mAP"], abs=GOLDEN_VALUE
    )
