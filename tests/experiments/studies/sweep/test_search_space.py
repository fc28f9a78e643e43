import pytest

from experiments.experiment_config import ConfigError, full_name
from experiments.recipes import resolve
from experiments.studies.sweep.search_space import (
    check_space,
    check_switches,
    config_with,
    make_space,
    parse_dimension,
    trial_settings,
)


class Script:
    """Samples the values that a test gives, and records the ends of each range."""

    def __init__(self, **values):
        self.values = values
        self.asked = {}

    def suggest_float(self, name, low, high, *, log=False):
        self.asked[name] = (low, high, "log" if log else "even")
        return self.values.get(name, low)

    def suggest_int(self, name, low, high, *, step=1):
        self.asked[name] = (low, high, step)
        return self.values.get(name, low)

    def suggest_categorical(self, name, choices):
        self.asked[name] = tuple(choices)
        return self.values.get(name, choices[0])


def test_default_space_is_perturbation_tokens_and_sharing():
    script = Script(**{"sfm.perturbation = 0": False})
    sampled = make_space([]).sample(script)
    assert sampled == {
        "model.sfm.perturbation": 0.001,
        "model.str.tokens": 1,
        "model.sfm.sharing": "all_layers",
    }
    assert script.asked["sfm.perturbation"] == (0.001, 0.1, "log")
    assert script.asked["str.tokens"] == (1, 16, 1)
    assert len(script.asked["sfm.sharing"]) == 5


def test_zero_or_log_gives_exactly_zero_and_asks_for_nothing_else():
    script = Script(**{"sfm.perturbation = 0": True})
    assert parse_dimension("sfm.perturbation=zero-or-log:0.001:0.1").sample(script) == 0.0
    assert set(script.asked) == {"sfm.perturbation = 0"}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optim.learning_rate=log:1e-6:1e-4", {"optim.learning_rate": 3e-5}),
        ("sfm.perturbation=zero-or-log:0.001:0.1", {"model.sfm.perturbation": 0.0}),
        ("sfm.perturbation=zero-or-log:0.001:0.1", {"model.sfm.perturbation": 0.02}),
        ("batch.size=int:8:64:8", {"batch.size": 24}),
        ("model.chi=choice:on,off", {"model.chi.enabled": False}),
    ],
)
def test_parameters_of_a_value_give_the_value_back(text, values):
    space = make_space([text], defaults=[])
    assert space.sample(Script(**space.parameters(values))) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("batch.size=int:8:64:8", 20),
        ("optim.learning_rate=log:1e-6:1e-4", 1.0),
        ("chi.mixer=choice:mlp,x", "y"),
    ],
)
def test_value_outside_the_space_has_no_parameters(text, value):
    (dimension,) = make_space([text], defaults=[]).dimensions
    assert dimension.parameters(value) is None


def test_search_replaces_a_default_adds_a_setting_and_takes_one_out():
    space = make_space(["model.str.tokens=int:2:8", "optim.beta2=float:0.9:0.999", "sfm.sharing=off"])
    assert [d.name for d in space.dimensions] == ["model.sfm.perturbation", "model.str.tokens", "optim.beta2"]
    assert space.dimensions[1].text == "model.str.tokens=int:2:8"
    assert space.dimensions[1].stored_text == "str.tokens=int:2:8"


def test_a_step_ends_at_the_last_value_it_reaches():
    dimension = parse_dimension("batch.size=int:8:63:8")
    assert dimension.high == 56
    assert dimension.probes == [8, 16, 24, 32, 40, 48, 56]


def test_final_rate_is_never_above_a_sampled_rate():
    space = make_space(["optim.learning_rate=log:1e-6:1e-4"])
    check_space(space, "demo", [], lambda config: None)
    final = resolve("demo", []).optim.final_learning_rate
    assert config_with("demo", [], {"optim.learning_rate": 1e-6}).optim.final_learning_rate == 1e-6
    assert config_with("demo", [], {"optim.learning_rate": 1e-4}).optim.final_learning_rate == final
    both = {"optim.learning_rate": 1e-6, "optim.final_learning_rate": 1e-5}
    with pytest.raises(ConfigError, match="the schedule decays"):
        config_with("demo", [], both)


def test_settings_of_a_trial_are_all_that_makes_the_recipe_the_trial():
    given = ["train.epochs=3", "optim.final_learning_rate=1e-5"]
    settings = trial_settings("demo", given, {"optim.learning_rate": 5e-6, "model.str.tokens": 2})
    assert settings == [
        *given,
        "optim.learning_rate=5e-06",
        "model.str.tokens=2",
        "optim.final_learning_rate=5e-06",
    ]
    assert resolve("demo", settings).optim.learning_rate == 5e-6


def test_what_is_not_in_the_space_is_named():
    space = make_space(["train.epochs=int:2:8:2"])
    values = resolve("demo", ["sfm.perturbation=0.2", "train.epochs=3"]).flat()
    assert space.outside(values) == [
        "model.sfm.perturbation=0.2 is not in zero-or-log:0.001:0.1",
        "train.epochs=3 is not in int:2:8:2",
    ]
    assert space.outside(values | {"model.sfm.perturbation": 0.0, "train.epochs": 4}) == []


def test_values_become_settings_of_the_recipe():
    config = config_with(
        "demo", ["train.epochs=3"], {"model.sfm.perturbation": 1e-6, "model.chi": False, "optim.beta2": 0.9}
    )
    expected = ["train.epochs=3", "model.sfm.perturbation=0.000001", "model.chi=off", "optim.beta2=0.9"]
    assert config == resolve("demo", expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("str.tokens", "is not NAME=KIND:LOW:HIGH"),
        ("str.tokens=even:1:2", "is not NAME=KIND:LOW:HIGH"),
        ("str.tokens=int:1:2.5", "is not integers"),
        ("optim.beta2=float:0.1:b", "is not numbers"),
        ("optim.beta2=float:0.9:0.1", "LOW must be under HIGH"),
        ("optim.beta2=float:0.1:0.9:0.1", "only an int range has a STEP"),
        ("sfm.perturbation=log:0:0.1", "zero-or-log:LOW:HIGH adds exactly 0"),
        ("sfm.sharing=choice:per_head", "two or more different values"),
        ("sfm.sharing=choice:per_head,per_head,per_layer", "two or more different values"),
        ("optim.beta2=choice:[0.9,0.99", r"'\[0.9' is no number, no word and not on or off"),
        ("optim.beta2=choice:[1],[2]", r"'\[1\]' is no number"),
        ("optim.beta2=choice:@a,b", "'@a' is no number"),
        ("optim.beta2=float:nan:1", "'nan:1' is not numbers"),
        ("optim.beta2=float:0:inf", "'0:inf' is not numbers"),
        ("seed=int:0:9", "use the same seed"),
        ("data.junk=choice:camera,scene", "read the same tables"),
        ("train.workers=choice:1,2", "cannot be searched"),
        ("train.micro_batches=choice:1,2", "does not change the result, so all trials would be the same run"),
        ("train.checkpoint_steps=int:1:9", "does not change the result"),
    ],
)
def test_search_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        make_space([text])


@pytest.mark.parametrize("name", ["text", "sfm", "str", "model.chi", "chi.enabled"])
def test_module_is_searched_on_and_off_by_its_name(name):
    (dimension,) = make_space([f"{name}=choice:on,off"], []).dimensions
    module = name.removeprefix("model.").removesuffix(".enabled")
    assert (dimension.name, dimension.choices) == (f"model.{module}.enabled", (True, False))
    base = resolve("demo", [])
    assert make_space([f"{name}=choice:on,off"], []).parameters(base.flat()) == {f"{module}.enabled": True}
    assert not getattr(config_with("demo", [], {dimension.name: False}).model, module).enabled


def test_settings_of_a_module_that_is_off_are_not_searched():
    space = make_space(["sfm.perturbation=off"])
    check_switches(space, "demo", ["model.chi=off"])
    with pytest.raises(
        ConfigError, match=r"--search model\.sfm\.sharing: model\.sfm\.enabled is False, so all trials"
    ):
        check_switches(space, "demo", ["model.sfm=off"])
    check_switches(make_space(["sfm=choice:on,off"]), "demo", ["model.sfm=off"])


@pytest.mark.parametrize(
    "text",
    ["optim.beta2=float:0.12345671:0.2", "train.epochs=int:1:1234567", "optim.learning_rate=log:1e-06:0.1"],
)
def test_search_is_written_as_exactly_as_it_is_read(text):
    dimension = parse_dimension(text)
    assert dimension.text == text
    assert parse_dimension(dimension.text) == dimension


def test_nothing_left_to_search_is_refused():
    with pytest.raises(ConfigError, match="nothing is left to search"):
        make_space(["sfm.perturbation=off", "str.tokens=off", "sfm.sharing=off"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("str.tokenz=int:1:4", "did you mean model.str.tokens"),
        ("str.tokens=int:1:17", "less than or equal to 16"),
        ("sfm.sharing=choice:per_head,per_tail", "per_tail"),
        ("batch.size=int:8:64", "not a multiple of batch.samples_per_identity"),
        ("optim.final_learning_rate=log:1e-6:1e-1", "the schedule decays"),
        ("str.tokens=float:1:4", "would sample 2.854: model.str.tokens=2.854"),
    ],
)
def test_space_with_an_impossible_value_is_refused_before_anything_starts(text, message):
    with pytest.raises(ConfigError, match=message) as refused:
        check_space(make_space([text]), "demo", [], lambda config: None)
    assert f"--search {full_name(text).partition('=')[0]}" in str(refused.value)
