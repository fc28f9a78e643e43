import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_catalog.storage.folders import Folder
from experiments import ablate, sweep_sfm
from experiments.planning import study_plan
from experiments.planning.cost import measure_cost
from experiments.planning.expected_tables import measure_extent
from experiments.planning.study_plan import StudyData
from experiments.recipes import resolve
from experiments.run.run_folder import RunFolder
from experiments.studies.sweep.stored_trials import StoredTrial, StoredTrials
from tests.experiments import small_run


def plan(capsys, script, *arguments, status=0):
    capsys.readouterr()
    assert script.main([*arguments, "--plan", "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def planned(clip, tmp_path_factory):
    """The plan of Table 3 with two seeds, in an empty workspace; and the workspace."""
    workspace = tmp_path_factory.mktemp("empty")
    asked = ["--table", "3", "--seeds", "2", *small_run.options(clip), "--workspace", str(workspace)]
    asked += ["--plan", "--devices", "1", "4", "--price", "2.5", "--hardware", "T4"]
    return ablate.make_plan(ablate.parser().parse_args(asked)), workspace


@pytest.fixture
def unmeasured(monkeypatch, planned):
    """Plans do not measure models anew, which takes seconds."""
    plan, _ = planned
    monkeypatch.setattr(study_plan, "pass_flops", lambda *_: (10**9, 2 * 10**9))
    monkeypatch.setattr(study_plan, "measure_cost", lambda *_: SimpleNamespace(memory=plan.memory))


def test_a_plan_of_an_ablation_needs_no_data_and_makes_nothing(planned):
    plan, workspace = planned
    assert plan.study is None
    assert {run.state for run in plan.runs} == {"to do"}
    # The paper's four rows and the one without text.
    assert len(plan.runs) == 2 * 5
    assert all(table.command == "the run itself makes it" for table in plan.tables)
    assert "masks" in {table.name for table in plan.tables}, "the rows with SFM read them"
    one, four = plan.times
    assert (one.hardware, one.devices, four.devices) == ("T4", 1, 4)
    assert four.price == pytest.approx(2.5 * four.device_hours)
    assert not any(workspace.iterdir())


def test_flops_of_a_planned_run_are_those_of_the_plan_of_that_run(planned, clip, tmp_path):
    plan, _ = planned
    config = resolve("demo", small_run.settings(clip))
    extent = measure_extent(config, StudyData(config, Folder(tmp_path), str(tmp_path)).tables)
    cost = measure_cost(config, extent.identities, extent.cameras)
    trained = extent.steps * config.batch.size * cost.flops.training_step.total
    full = next(run for run in plan.runs if run.parts == ["table3 D SFM + STR + CHI"])
    assert full.flops == pytest.approx(trained + extent.embedded * cost.flops.forward.total, rel=1e-3)


def test_a_printed_plan_has_a_line_for_each_row_and_each_number_of_devices(planned, capsys):
    ablate.show_plan(planned[0])
    shown = capsys.readouterr().out
    assert "10 runs, 0 finished, 0 begun, 10 to do" in shown
    assert "Assumed, not measured: 25% of T4" in shown
    assert "2.5 for a device in an hour" in shown
    lines = [line.split() for line in shown.splitlines() if line.startswith("T4 ")]
    assert [line[1] for line in lines] == ["1", "4"]
    rows = [line for line in shown.splitlines() if line.startswith("table3 ")]
    assert len(rows) == 5


def test_a_plan_finds_finished_runs_and_those_that_were_begun(
    trained, unmeasured, clip, workspace, tmp_path, capsys
):
    asked = ("--row", "two: model.str.tokens=2", "--seeds", "1", "--workers", "2", *small_run.options(clip))
    planned = plan(capsys, ablate, *asked, "--workspace", str(workspace))
    full, row = planned["runs"]
    assert (full["run"], full["state"], full["epochs"]) == (Path(trained["folder"]).name, "finished", 3)
    assert row["state"] == "to do"
    config = resolve("demo", [*small_run.settings(clip), "train.workers=2"])
    data = StudyData(config, Folder(tmp_path), str(workspace / "catalog"))
    assert data.look_up(config, ["row"]).state == "to do"
    assert not any(tmp_path.iterdir())
    folder = RunFolder.of(tmp_path, config, data.run_tables)
    for epoch in (1, 2):
        folder.journal.append("epoch", epoch=epoch)
    found = data.look_up(config, ["row"])
    assert (found.run, found.state, found.epochs) == (folder.name, "begun", 2)


def test_a_plan_of_a_sweep_counts_trials_that_have_ended(
    trained, unmeasured, clip, workspace, tmp_path, capsys
):
    asked = ("--trials", "5", *small_run.options(clip), "--catalog", str(workspace / "catalog"))
    before = plan(capsys, sweep_sfm, *asked, "--workspace", str(tmp_path))
    assert [run["state"] for run in before["runs"]] == ["to do"] * 5
    assert not any(tmp_path.iterdir())
    trials = StoredTrials(Folder(tmp_path) / "studies" / before["study"])
    states = (("COMPLETE", {}), ("PRUNED", {}), ("FAIL", {"crashed": "node lost"}), ("RUNNING", {}))
    for number, (state, attributes) in enumerate(states):
        trials.write(
            StoredTrial(
                number=number,
                state=state,
                values=None,
                params={},
                distributions={},
                user_attrs={"run": f"run{number}", **attributes},
                intermediate_values={},
            )
        )
    after = plan(capsys, sweep_sfm, *asked, "--workspace", str(tmp_path))
    assert [run["run"] for run in after["runs"]] == ["run0", "run1", None, None, None]
    assert [run["state"] for run in after["runs"]] == ["finished"] * 2 + ["to do"] * 3


def test_a_plan_of_what_would_be_stopped_names_it_and_ends_with_1(
    trained, unmeasured, clip, workspace, capsys, monkeypatch
):
    find = study_plan.look_up_tables

    def find_without_validation(*arguments):
        tables = find(*arguments)
        tables["samples"].statistics["splits"].pop("val", None)
        return tables

    monkeypatch.setattr(study_plan, "look_up_tables", find_without_validation)
    asked = (*small_run.options(clip), "--workspace", str(workspace))
    planned = plan(capsys, sweep_sfm, *asked, status=1)
    (error,) = planned["errors"]
    assert "has no val split, and a sweep never chooses on test" in error


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--over", "model.str.tokens=1,2"), "--over model.str.tokens=1,2: a plan is of one condition"),
        (("--devices", "0"), "--devices 0: expected a number from 1 on"),
        (("--price", "nan"), "--price nan: expected a number from 0 on"),
        (("--start-seconds", "-1"), "--start-seconds -1: expected a number from 0 on"),
        (("--hardware", "A1000"), "hardware 'A1000' is not known"),
    ],
)
def test_an_impossible_option_of_a_plan_is_refused_in_one_line(option, message, clip, tmp_path, capsys):
    asked = ["--row", "two: model.str.tokens=2", "--seeds", "1", *small_run.options(clip)]
    assert ablate.main([*asked, "--workspace", str(tmp_path), "--plan", *option]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_options_of_a_plan_without_a_plan_are_refused(capsys):
    with pytest.raises(SystemExit):
        ablate.main(["--table", "3", "--price", "2"])
    assert "--price belongs to --plan" in capsys.readouterr().err
