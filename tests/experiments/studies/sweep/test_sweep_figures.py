import pytest

from experiments.studies.sweep.search_space import Space, make_space, parse_dimension
from experiments.studies.sweep.sweep_figures import Scale, draw_all, reached
from tests.experiments import made_up
from tests.experiments.pictures import is_cut

SPACE = make_space(["optim.learning_rate=log:1e-6:3e-3"])


def trial(number, value, state="finished", **values):
    config = {
        "model.sfm.perturbation": 0.01,
        "model.str.tokens": 4,
        "model.sfm.sharing": "per_head",
        "optim.learning_rate": 1e-4,
    }
    return made_up.trial(
        number,
        state,
        value,
        values=config | values,
        cost=1.0 + number,
        epochs=8,
        curve={4: 0.3, 8: 0.4},
    )


def result(*trials, best=None, importance=None):
    chosen = None if best is None else made_up.best_trial(best)
    return made_up.sweep_result(*trials, best=chosen, importance=importance or {})


@pytest.mark.parametrize(
    "text",
    [
        "model.sfm.perturbation=zero-or-log:0.001:0.1",
        "optim.learning_rate=log:1e-6:3e-3",
        "optim.beta2=float:0.9:0.999",
        "model.str.tokens=int:1:16",
        "batch.size=int:8:64:8",
        "model.sfm.sharing=choice:per_layer,per_head,all_layers",
    ],
)
def test_values_stand_between_the_ends_of_their_axis_in_their_order(text):
    dimension = parse_dimension(text)
    scale = Scale(dimension)
    trials = [trial(0, 0.5, **{dimension.name: value}) for value in dimension.probes]
    heights = [scale.height(scale.position(one)) for one in trials]
    assert heights == sorted(heights)
    assert (heights[0], heights[-1]) == pytest.approx((0, 1))
    assert len(set(heights)) == len(heights)
    assert len(scale.labels) == len(scale.ticks)


def test_zero_of_a_log_scale_stands_apart_below_its_least_value():
    scale = Scale(parse_dimension("model.sfm.perturbation=zero-or-log:0.001:0.1"))
    trials = [trial(0, 0.5, **{"model.sfm.perturbation": p}) for p in (0.0, 0.001, 0.01)]
    zero, least, middle = (scale.height(scale.position(one)) for one in trials)
    assert least - zero > 0.1
    assert middle - least == pytest.approx(1 - middle)
    assert scale.labels == ["0", "0.001", "0.01", "0.1"]


def test_labels_of_a_log_scale_stand_apart():
    scale = Scale(parse_dimension("optim.learning_rate=log:1e-6:3e-3"))
    assert scale.labels == ["1e-06", "1e-05", "0.0001", "0.003"]


def test_a_stopped_trial_is_shown_by_its_last_validation():
    assert reached(trial(0, 0.5)) == 50
    assert reached(trial(1, None, "pruned")) == 40


def test_few_trials_give_the_figures_that_they_can():
    one = trial(0, 0.5)
    assert draw_all(result(), SPACE) == {}
    running = draw_all(result(trial(0, None, "running")), SPACE)
    assert set(running) == {"history", "slice", "parallel_coordinates"}
    alone = draw_all(result(one, best=one), SPACE)
    assert set(alone) == {"history", "slice", "parallel_coordinates", "pareto"}
    every = result(
        one, trial(1, 0.5), trial(2, None, "failed"), best=one, importance={"model.str.tokens": 1.0}
    )
    assert set(draw_all(every, SPACE)) == {
        "history",
        "slice",
        "parallel_coordinates",
        "pareto",
        "importance",
    }


def test_what_stands_beside_the_axes_fits_into_each_picture():
    shares = {"model.sfm.perturbation = 0": 0.9, "model.str.tokens": 0.1}
    states = ("pruned", "failed", "crashed")
    trials = [trial(0, 0.5), *(trial(number, None, state) for number, state in enumerate(states, start=1))]
    space = Space((parse_dimension("model.str.tokens=int:1:16"),))
    drawn = draw_all(result(*trials, best=trials[0], importance=shares), space)
    assert [name for name, picture in drawn.items() if is_cut(picture)] == []
