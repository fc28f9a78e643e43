import numpy as np
import pytest
from matplotlib.colors import to_hex

from experiments.reports import study_figures
from experiments.reports.recorded_study import RecordedRun
from experiments.run.run_folder import RunFolder
from experiments.tracking.mlflow_store import MlflowRun
from tests.experiments import made_up


def row(name, difference, real, paper=None, against="baseline"):
    low, high = (None, None) if difference is None else (difference - 0.02, difference + 0.02)
    if difference is None:
        return made_up.table_row(name, paper_difference=paper)
    return made_up.table_row(
        name,
        against=against,
        difference=difference,
        difference_interval=(low, high),
        query_interval=(low / 2, high / 2),
        paper_difference=paper,
        real=real,
    )


def run(seed, validation, loss=(3.0, 2.0), split="validation"):
    curves = {
        split: dict(enumerate(validation, start=1)),
        "loss": dict(enumerate(loss, start=1)),
    }
    return RecordedRun(
        *(MlflowRun(uri=""), f"row, seed {seed}", f"run{seed}", seed),
        RunFolder("there"),
        "FINISHED",
        {},
        {},
        {},
        curves,
    )


def line(axes, label):
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found.get_xydata().tolist()


def test_differences_are_in_points_and_filled_where_real():
    rows = [row("baseline", None, None), row("SFM", 0.05, True, 0.058), row("STR", -0.01, False, 0.02)]
    measured, paper = study_figures.plot_differences(rows).axes
    markers = [one for one in measured.lines if one.get_marker() == "o" and len(one.get_xdata()) == 1]
    assert [one.get_xdata()[0] for one in markers] == pytest.approx([5, -1])
    assert [to_hex(one.get_markerfacecolor()) for one in markers] == [study_figures.REAL, "#ffffff"]
    ends = [sorted(one.get_xdata()) for one in measured.lines if len(set(one.get_xdata())) == 2]
    assert np.allclose(ends, [[3, 7], [1.5, 3.5], [-3, 1], [-1.5, 0.5]])
    diamonds = [one.get_xdata()[0] for one in paper.lines if one.get_marker() == "D"]
    assert diamonds == pytest.approx([5.8, 2.0])


def test_differences_without_the_papers_have_one_panel():
    rows = [row("baseline", None, None), row("no text", -0.2, True)]
    assert len(study_figures.plot_differences(rows).axes) == 1
    assert study_figures.plot_differences(rows[:1]) is None


def test_curve_is_the_mean_and_its_band_spans_all_seeds():
    rows = {"A": [run(0, (0.1, 0.3)), run(1, (0.2, 0.5))]}
    precision, loss = study_figures.plot_curves(rows).axes
    assert np.allclose(line(precision, "A"), [[1, 15], [2, 40]])
    (band,) = precision.collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((10, 50))
    assert precision.get_title() == "Validation identities"
    assert np.allclose(line(loss, "A"), [[1, 3], [2, 2]])


def test_curve_ends_with_the_seed_that_ends_first():
    rows = {"A": [run(0, (0.1, 0.3)), run(1, (0.2,))]}
    assert np.allclose(line(study_figures.plot_curves(rows).axes[0], "A"), [[1, 15]])


def test_curves_without_validation_show_the_test_identities():
    precision = study_figures.plot_curves({"A": [run(0, (0.1, 0.3), split="test")]}).axes[0]
    assert precision.get_title() == "Test identities"
    assert np.allclose(line(precision, "A"), [[1, 10], [2, 30]])


def test_strengths_omit_layers_without_modulation():
    alpha = np.array([[[0.1], [0.3], [np.nan]], [[0.3], [0.5], [np.nan]]])
    panels = study_figures.plot_strengths({"early half": (alpha, alpha + 1)}, initial=0.1).axes
    for axes, shift in zip(panels, (0, 1), strict=True):
        data, _, (bars,) = axes.containers[0].lines
        assert np.allclose(data.get_xydata(), [[1, 0.2 + shift], [2, 0.4 + shift]])
        ends = [segment[:, 1] for segment in bars.get_segments()]
        assert np.allclose(ends, [[0.1 + shift, 0.3 + shift], [0.3 + shift, 0.5 + shift]])


def test_best_trial_is_drawn_over_the_others():
    runs = [run(0, (0.1, 0.3)), run(1, (0.2, 0.5)), run(2, (0.1,))]
    precision = study_figures.plot_trial_curves(runs, best="run1").axes[0]
    assert [len(one.get_xdata()) for one in precision.lines] == [2, 1, 2]
    assert precision.lines[-1].get_color() == study_figures.REAL
    assert np.allclose(precision.lines[-1].get_ydata(), [20, 50])
