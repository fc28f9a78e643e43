import io
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments.reports.recorded_study import RecordedRun, RecordedStudy
from experiments.reports.report_tables import sweep_table
from experiments.reports.study_report import write_report
from experiments.run.run_folder import RunFolder
from experiments.tracking.mlflow_store import MlflowRun
from tests.experiments import made_up


def trial(number, state, value, **values):
    return made_up.trial(number, state, value, values=values, cost=1.5e9 + number)


def mlflow_run(run_id):
    return MlflowRun(uri="http://mlflow:5000", run_id=run_id, experiment_id="1")


@pytest.fixture
def sweep():
    trials = [
        trial(0, "finished", 0.41, **{"model.sfm.perturbation": 0.0, "model.str.tokens": 4}),
        trial(1, "pruned", None, **{"model.sfm.perturbation": 0.0312345, "model.str.tokens": 16}),
        trial(2, "finished", 0.52, **{"model.sfm.perturbation": 0.002, "model.str.tokens": 1}),
    ]
    runs = tuple(
        RecordedRun(
            mlflow=mlflow_run(f"mlflow{one.number}"),
            name=f"trial {one.number}",
            run=one.run,
            seed=0,
            folder=RunFolder(Path("/elsewhere") / one.run),
            status="FINISHED",
            parameters={"seed": "0", "model.str.tokens": str(one.values["model.str.tokens"])},
            digests={"view/test": "abc"},
            tags={"code.digest": "c0de"},
            curves={"validation": {1: 0.1, 2: 0.2}, "loss": {1: 3.0, 2: 2.0}},
        )
        for one in trials
    )
    picture = io.BytesIO()
    Figure(figsize=(3, 2)).savefig(picture, format="png", dpi=100)
    best = made_up.best_trial(trials[2], mean_average_precision=0.44)
    result = made_up.sweep_result(*trials, best=best, pareto=trials[:1])
    return RecordedStudy(
        "demo-sweep-1",
        mlflow_run("parent"),
        result,
        {"slice.png": picture.getvalue()},
        runs,
    )


def test_best_trial_comes_first_and_stopped_ones_last(sweep):
    table = sweep_table(sweep)
    assert [row.cells[0] for row in table.rows] == ["2", "0", "1"]
    columns = dict(zip(table.header, zip(*(row.cells for row in table.rows), strict=True), strict=True))
    assert columns["validation mAP, %"] == ("52.00", "41.00", "")
    assert columns["model.sfm.perturbation"] == ("0.002", "0", "0.03123")
    assert columns["model.str.tokens"] == ("1", "4", "16")
    assert columns["on the Pareto front"] == ("", "yes", "")
    assert [row.separate for row in table.rows] == [False, False, True]
    assert table.verdict.startswith(
        "Best: trial 2 (model.sfm.perturbation=0.002, model.str.tokens=1), 52.00 % validation mAP"
    )


def test_sweep_without_a_finished_trial_says_so(sweep):
    unfinished = sweep.result.model_copy(update={"best": None})
    assert sweep_table(replace(sweep, result=unfinished)).verdict == "No trial could be finished."


def test_page_shows_the_sweeps_figures_and_links_to_mlflow(sweep, tmp_path):
    written = write_report(sweep, tmp_path / "report.html")
    assert [Path(path).name for path in written.pictures] == ["slice.png", "trial_curves.svg"]
    assert (tmp_path / "report_pictures" / "slice.png").read_bytes() == sweep.pictures["slice.png"]
    assert list(written.missing) == ["Best trial: learned alpha and beta", "What SFM did to attention"]
    page = Path(written.page).read_text(encoding="utf-8")
    assert "AAAI" not in page
    assert 'width="288"' in page
    for run_id in ("parent", "mlflow0", "mlflow1", "mlflow2"):
        assert f'href="http://mlflow:5000/#/experiments/1/runs/{run_id}"' in page


def test_html_in_a_setting_is_escaped(sweep, tmp_path):
    sweep.result.trials[0].values["model.clip.source"] = "<script>alert(1)</script>"
    page = Path(write_report(sweep, tmp_path / "report.html").page).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
