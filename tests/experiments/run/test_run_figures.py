import numpy as np
from matplotlib.figure import Figure

from experiments.run import run_figures
from experiments.run.run_result import FEATURE_NAMES, FeatureMetrics
from experiments.tracking.journal import Journal


def test_curves_show_every_loss_and_every_validation(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    look = {name: {"mAP": 0.3} for name in "UGT"}
    for epoch in (1, 2, 3):
        extra = {"validation": look} if epoch == 2 else {}
        journal.append(
            "epoch", epoch=epoch, losses={"total": 1.0, "triplet/U": 0.5}, learning_rate=0.1, **extra
        )
    losses, validation, rate = run_figures.training_curves(journal).axes
    assert [line.get_label() for line in losses.lines] == ["total", "triplet/U"]
    assert [line.get_xydata().tolist() for line in validation.lines] == [[[2.0, 30.0]]] * 3
    assert len(rate.lines[0].get_xdata()) == 3


def test_losses_that_train_nothing_are_dashed_and_hyperedges_have_a_panel_of_their_own(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    facts = {"size": 3.0, "density": 0.2, "alone": 0.5, "across": 0.3, "by_text": 0.1}
    for epoch in (1, 2):
        splits = {"train": facts, **({"test": facts} if epoch == 2 else {})}
        journal.append(
            "epoch",
            epoch=epoch,
            losses={"total": 3.0, "triplet/U": 0.5},
            losses_without_gradient={"triplet/T": 2.0},
            learning_rate=0.1,
            hyperedges=splits,
        )
    losses, _, _, hyperedges = run_figures.training_curves(journal).axes
    styles = {line.get_label(): line.get_linestyle() for line in losses.lines}
    assert styles == {"total": "-", "triplet/U": "-", "triplet/T, trains nothing": "--"}
    alone = [line for line in hyperedges.lines if line.get_color() == "#d55e00"]
    assert [line.get_xydata().tolist() for line in alone] == [[[1.0, 50.0], [2.0, 50.0]], [[2.0, 50.0]]]


def test_cmc_curves_carry_the_map_of_every_feature():
    low, high = (
        FeatureMetrics(mean_average_precision=value, rank1=0.1, rank5=0.2, rank10=0.2, cmc=(0.1, 0.2))
        for value in (0.05, 0.25)
    )
    metrics = dict.fromkeys(FEATURE_NAMES, high)
    figure = run_figures.cmc_curves(metrics, low)
    assert isinstance(figure, Figure)
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert "U, fused: mAP 25.0%" in labels
    assert "U before training: mAP 5.0%" in labels
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), [10, 20])
