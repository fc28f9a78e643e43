from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.studies.sweep import sweep_result
from experiments.studies.sweep.optuna_study import SweepTrial
from experiments.studies.sweep.search_space import space_of
from experiments.studies.sweep.sweep_spec import Sweep

TRIAL = SweepTrial(0, "finished", {}, "run", 1.0, {2: 0.5, 4: 0.6}, 0.6, None)
STUDY = SimpleNamespace(name="s", url="sqlite://", trials=lambda: [TRIAL], importance=dict)


def choice(epoch):
    return {"epoch": epoch, "metrics": {"U": {"mAP": 0.1 * epoch, "rank1": 0.2}}}


@pytest.mark.parametrize(("reported", "epoch"), [("last", 4), ("validation", 2), ("best_on_test", 2)])
def test_test_metrics_are_of_the_epoch_that_gave_the_value_and_never_chosen_on_test(
    reported, epoch, monkeypatch
):
    choices = {"last": choice(4), "validation": choice(2), "best_on_test": choice(3)}
    chosen = choices[reported]
    run = {"choices": choices, "reported": chosen | {"metrics": chosen["metrics"]["U"]}}
    monkeypatch.setattr(sweep_result.RunFolder, "of", lambda *given: SimpleNamespace(result=run))
    sweep = Sweep("demo", (f"report.epoch={reported}",), space_of([]), 1)
    found = sweep_result.sweep_result(sweep, STUDY, None, Path(), resumed=False)
    assert found["best"]["test"] == {"epoch": epoch, "mAP": pytest.approx(0.1 * epoch), "rank1": 0.2}
