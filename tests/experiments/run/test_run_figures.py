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
