import json
import shlex

import pytest

from experiments.studies.sweep.sweep_result import SweepResult
from tests import json_samples
from tests.experiments import made_up


def test_printed_sweep_keeps_its_keys():
    json_samples.check("sweep", SweepResult)


@pytest.mark.parametrize(("recipe", "named"), [("demo", "demo"), ("of-the-lab", "of-the-lab.yaml")])
def test_best_trial_is_trained_by_its_recipe_and_all_its_settings(recipe, named):
    best = made_up.best_trial(made_up.trial(0, values={"model.str.tokens": 2}))
    sweep = made_up.sweep_result(best, best=best, recipe=recipe)
    # Studies of older versions have the sampled values alone.
    assert sweep.best_options == f"--recipe {named} --set=model.str.tokens=2"
    best = best.model_copy(update={"settings": ("model.clip.source=a b", "model.str.tokens=2")})
    sweep = made_up.sweep_result(best, best=best, recipe=recipe)
    assert shlex.split(sweep.best_options) == [
        *("--recipe", named, "--set=model.clip.source=a b", "--set=model.str.tokens=2")
    ]


def test_sweep_of_the_first_version_is_read():
    sample = json.loads((json_samples.FOLDER / "sweep.json").read_text())
    del sample["missing"]
    assert SweepResult.model_validate(sample).is_complete
