import json

import pytest

from experiments.experiment_config import ConfigError, ExperimentConfig, differences, full_name, parse
from experiments.recipes import RECIPES, resolve
from stmi.config import ModelConfig


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_knows_its_name(name):
    config = resolve(name)
    assert config.recipe == name
    assert parse(config.model_dump(mode="json")) == config


def test_settings_change_what_they_name_and_nothing_else():
    config = resolve("demo", ["optim.learning_rate=2e-3", "model.str.tokens=2"])
    assert (config.optim.learning_rate, config.model.str.tokens) == (2e-3, 2)
    usual = resolve("demo").flat()
    changed = {name for name, value in config.flat().items() if usual[name] != value}
    assert changed == {"optim.learning_rate", "model.str.tokens"}


@pytest.mark.parametrize("module", ["text", "sfm", "str", "chi"])
def test_a_module_is_switched_off_and_on_by_its_name(module):
    off = resolve("demo", [f"model.{module}=off"])
    assert not getattr(off.model, module).enabled
    assert resolve("demo", [f"model.{module}=off", f"model.{module}=on"]) == resolve("demo")


def test_perturbation_is_given_for_each_modality_and_layer_and_flat_by_modality():
    config = resolve("demo", ["model.sfm.perturbation={RGB: 0.01, NIR: 0, TIR: [0.02, 0, 0, 0.1]}"])
    assert config.model.sfm.perturbation == {"RGB": 0.01, "NIR": 0.0, "TIR": (0.02, 0.0, 0.0, 0.1)}
    assert parse(config.model_dump(mode="json")) == config
    flat = config.flat()
    assert flat["model.sfm.perturbation.RGB"] == 0.01
    assert flat["model.sfm.perturbation.TIR"] == [0.02, 0.0, 0.0, 0.1]
    assert "model.sfm.perturbation" not in flat


@pytest.mark.parametrize(
    "settings",
    [[], ["model.sfm.perturbation={RGB: 0.01, NIR: 0, TIR: [0.02, 0, 0, 0.1]}", "model.chi=off"]],
    ids=["recipe", "changed"],
)
def test_settings_are_listed_by_names_that_set_takes(settings):
    config = resolve("demo", settings)
    listed = {name: value for name, value in config.flat().items() if name != "recipe"}
    assert (
        resolve("demo", [*settings, *(f"{name}={json.dumps(value)}" for name, value in listed.items())])
        == config
    )
    for name, value in listed.items():
        assert resolve("demo", [*settings, f"{name}={json.dumps(value)}"]) == config


def test_no_setting_of_the_model_has_the_name_of_another_section():
    assert not ModelConfig.model_fields.keys() & ExperimentConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("sfm.perturbation", "model.sfm.perturbation"),
        ("sfm.perturbation = 0", "model.sfm.perturbation = 0"),
        ("pixels=clip", "model.pixels=clip"),
        ("model.sfm=off", "model.sfm=off"),
        ("optim.beta2=0.9", "optim.beta2=0.9"),
        ("sfmm.sharing=off", "sfmm.sharing=off"),
    ],
)
def test_a_name_without_model_is_that_of_a_setting_of_the_model(text, full):
    assert full_name(text) == full
    assert full_name(full) == full


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.sfm.perturbation=1.5", r"model\.sfm\.perturbation=1\.5: expected a probability from 0 to 1"),
        ("model.sfm.perturbation=[]", r"model\.sfm\.perturbation=\[\]: .* a list with one for each layer"),
        (
            "model.sfm.perturbation={RGB:0.1}",
            r"model\.sfm\.perturbation=.*: .* a mapping of RGB, NIR and TIR",
        ),
        ("augment.flip=1.5", r"augment\.flip=1\.5: .*less than or equal to 1"),
        ("trian.epochs=3", r"setting trian\.epochs is unknown; did you mean train\.epochs\?"),
        ("model.sfm.pertubation=0.1", r"did you mean model\.sfm\.perturbation\?"),
        ("optim.lr=0.1", r"setting optim\.lr is unknown; there are optimizer, learning_rate, "),
        ("batch.size=50", r"batch\.size=50 is not a multiple of batch\.samples_per_identity=4"),
        ("train.workers=5", r"train\.workers=5 does not divide batch\.size=48; use one of 1, 2, 3, 4, 6"),
        ("model.str.tokens=17", r"model\.str\.tokens=17: .*less than or equal to 16"),
        ("model.sfm.sharing=often", r"model\.sfm\.sharing='often'"),
        ("train.epochs=many", r"train\.epochs='many': .*valid integer"),
        ("optim.learning_rate=.nan", r"optim\.learning_rate=nan"),
        ("model.sfm=0.5", r"this is a group; set one of its fields \(enabled, .*\) or on/off"),
        ("data.synthetic=none", r"set one of its fields \(.*\), or leave it out with data\.synthetic=null"),
        (
            "model.sfm.perturbation={RGB: 0, NIR: 0, TIR: 0}|model.sfm.perturbation.RBG=0.1",
            r"model\.sfm\.perturbation=.*RBG.*: .* a mapping of RGB, NIR and TIR",
        ),
        ("model.sfm.perturbation.RGB=0.1", r"model\.sfm\.perturbation\.RGB: perturbation is no group"),
        ("train.epochs.more=1", r"train\.epochs\.more: epochs is no group"),
        (
            "optim.schedule=released|optim.learning_rate=1e-3",
            r"optim\.warmup_epochs=1\.0 has no effect where optim\.schedule=released",
        ),
        ("optim.warmup_epochs=30", r"optim\.warmup_epochs=30\.0 is more than train\.epochs=10"),
        (
            "data.dataset=rgbnt201",
            r"data\.dataset=rgbnt201, but data\.synthetic renders .*; set data\.dataset=synthetic_person",
        ),
        ("train.epochs=[1", r"train\.epochs=\[1: not a value"),
        ("model.text.fine_tune=on|model.text=off", r"model\.text\.fine_tune=True .* model\.text is off"),
        ("report.feature=T|model.text=off", r"report\.feature=T needs the text, .* use one of U, G, RGB"),
        ("report.feature=GTTT|model.text=off", r"report\.feature=GTTT needs the text"),
        ("recipe=other", r"recipe is not a setting"),
        ("model.sfm", r"setting 'model\.sfm' is not name=value"),
        ("=1", r"setting '=1' names nothing before =; write for example model\.sfm=off"),
        (" = 1", r"setting ' = 1' names nothing before ="),
        ("train.epochs=99999999999999999999", r"train\.epochs=9{20}: .*less than or equal to 1000000"),
        ("train.workers=99999999999999999999", r"train\.workers=9{20}: .*less than or equal to 1000000"),
        ("batch.size=1000004", r"batch\.size=1000004: .*less than or equal to 1000000"),
        ("seed=99999999999999999999", r"seed=9{20}: .*less than or equal to 9223372036854775807"),
        ("data.synthetic.seed=9e99", r"data\.synthetic\.seed="),
        (f"train.epochs={'9' * 5000}", r"train\.epochs=9{40}: not a value"),
        ("train.epochs=2020-01-01", r"train\.epochs='2020-01-01': Input should be a valid integer"),
        ("train.epochs=on", r"train\.epochs=True: Input should be a number, not on or off$"),
        (
            "train.checkpoint_minutes=1:30",
            r"train\.checkpoint_minutes='1:30': Input should be a valid number",
        ),
        ("loss.triplet_margin=off", r"Input should be a number, not on or off; or null"),
        (
            "data.synthetic=null|data.dataset=../../etc",
            r"data\.dataset='\.\./\.\./etc': cannot name a folder",
        ),
        ("data.synthetic=null|data.dataset=/etc", r"data\.dataset='/etc': cannot name a folder"),
        ("data.synthetic=null|data.dataset=", r"data\.dataset=None"),
    ],
)
def test_wrong_settings_are_refused_by_name(setting, message):
    with pytest.raises(ConfigError, match=message):
        resolve("demo", setting.split("|"))


@pytest.mark.parametrize("text", ["models/a #1", "2024_05", "201", "no", "2024-05-01", "1e3", "~x", "a: b"])
def test_text_is_taken_as_it_is_typed(text):
    assert resolve("rgbnt201-paper", [f"model.clip.source={text}"]).model.clip.source == text
    assert resolve("rgbnt201-paper", [f'model.clip.source="{text}"']).model.clip.source == text


def test_numbers_are_decimal():
    assert resolve("demo", ["seed=010"]).seed == 10
    assert resolve("demo", ["optim.learning_rate=1e-3"]).optim.learning_rate == 0.001
    assert resolve("demo", ["optim.learning_rate=2.5e-3"]).optim.learning_rate == 0.0025


def test_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="recipe 'dmeo' is unknown; there are demo"):
        resolve("dmeo")


@pytest.mark.parametrize(
    ("dataset", "more"),
    [
        ("rgbnt201", {}),
        ("rgbnt100", {"model.separate_modality_heads": (False, True), "report.feature": ("U", "GTTT")}),
        ("msvr310", {"report.feature": ("U", "GTTT")}),
    ],
)
def test_released_recipe_differs_from_the_paper_in_nothing_that_is_not_listed(dataset, more):
    paper, released = resolve(f"{dataset}-paper"), resolve(f"{dataset}-released")
    found = differences(paper, released)
    assert {name: found.pop(name) for name in more} == more
    assert found == {
        "seed": (0, 1111),
        "model.camera_embedding": (False, True),
        "model.sfm.mask_threshold": (0.0, 0.5),
        "model.sfm.perturbation_draw": ("sample", "layer_and_modality"),
        "model.chi.convolution": ("paper", "released"),
        "model.chi.incidence": ("cosine", "euclidean"),
        "model.chi.activation": ("gelu", "silu"),
        "model.fusion.dropout": (0.0, 0.1),
        "loss.identity_weight": (1.0, 0.25),
        "augment.geometry": ("shared", "per_modality"),
        "augment.erase_aspect": ("uniform", "log_uniform"),
        "optim.schedule": ("cosine", "released"),
        "train.validate_every": (5, 1),
        "report.epoch": ("last", "best_on_test"),
    }


def test_recipe_of_the_benchmark_takes_a_data_set_of_ones_own_once_it_renders_nothing():
    with pytest.raises(ConfigError, match=r"or data\.synthetic=null for a data set of your own"):
        resolve("demo", ["data.dataset=market"])
    config = resolve("demo", ["data.synthetic=null", "data.dataset=market"])
    assert (config.data.synthetic, config.data.dataset) == (None, "market")
    with pytest.raises(ConfigError, match="this is a group"):
        resolve("demo", ["model.sfm=null"])


def test_settings_that_only_save_memory_name_no_other_run():
    saving = resolve("demo", ["train.micro_batches=4", "train.checkpoint_activations=on"])
    assert saving != resolve("demo")
    assert saving.deciding() == resolve("demo").deciding()
    assert resolve("demo", ["train.workers=4"]).deciding() != resolve("demo").deciding()


def test_settings_that_older_versions_lacked_name_another_run_only_where_they_are_set():
    assert set(resolve("demo").deciding()["model"]["chi"]) == {
        *("enabled", "mixer", "convolution", "incidence", "similarity_threshold", "distance_threshold"),
        "activation",
    }
    other = resolve("demo", ["chi.neighbours=3", "chi.exclude_text_copies=on"]).deciding()["model"]["chi"]
    assert (other["neighbours"], other["exclude_text_copies"]) == (3, True)
    assert "density" not in other


def test_several_data_sets_take_the_place_of_one():
    config = resolve("demo", ["data.synthetic=null", "data.datasets=[a,b]", "data.shares=[0.25,0.75]"])
    assert (config.data.dataset, config.data.names) == ("a", ("a", "b"))
    assert parse(config.model_dump(mode="json")) == config
    apart = config.by_dataset()
    assert list(apart) == ["a", "b"]
    for name, one in apart.items():
        assert one == resolve("demo", ["data.synthetic=null", f"data.dataset={name}"])
    assert {*config.deciding()["data"]} - {*resolve("demo").deciding()["data"]} == {"datasets", "shares"}
    assert resolve("demo").by_dataset() == {"synthetic_person": resolve("demo")}


def test_each_kind_of_the_benchmark_is_rendered_for_its_data_set():
    config = resolve("demo", ["data.datasets=[synthetic_person,synthetic_vehicle]"])
    kinds = {name: one.data.synthetic.kind for name, one in config.by_dataset().items()}
    assert kinds == {"synthetic_person": "person", "synthetic_vehicle": "vehicle"}
    config.by_dataset()["synthetic_vehicle"].model_validate(
        config.by_dataset()["synthetic_vehicle"].model_dump(mode="json")
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.datasets=[a]", r"data\.datasets=\[a\]: expected two or more different ones"),
        ("data.datasets=[a,b,a]", r"data\.datasets=\[a,b,a\]: expected two or more different"),
        ("data.datasets=[a,../b]", r"data\.datasets=.*'\.\./b' cannot name a folder"),
        ("data.datasets=a", r"data\.datasets='a'"),
        ("data.shares=[0.5,0.5]", r"data\.shares=\[0\.5, 0\.5\]: expected one number for each .* \(0\)"),
        ("data.datasets=[a,b]|data.shares=[0.5,0.4]", r"data\.shares=.*: expected .* which add up to 1"),
        ("data.datasets=[a,b]|data.shares=[0.2,0.3,0.5]", r"data\.shares=.*one number for each"),
        ("data.datasets=[a,b]|data.shares=[0,1]", r"data\.shares.*greater than 0"),
        ("data.datasets=[a,b]|data.placement=by_identity", r"goes with data\.placement=replicated"),
    ],
)
def test_impossible_data_sets_and_shares_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve("demo", ["data.synthetic=null", *settings.split("|")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.datasets=[synthetic_person,market]", r"not market; set data\.synthetic=null"),
        ("data.datasets=[synthetic_vehicle,synthetic_person]", r"set data\.synthetic\.kind=vehicle"),
    ],
)
def test_benchmark_and_several_data_sets_must_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        resolve("demo", [settings])


def test_micro_batches_that_do_not_divide_a_workers_samples_are_refused_with_those_that_do():
    with pytest.raises(
        ConfigError, match=r"micro_batches=5 does not divide the 24 samples .* use one of 1, 2, 3"
    ):
        resolve("demo", ["train.micro_batches=5"])


@pytest.mark.parametrize(("recipe", "size"), [("benchmark", (64, 32)), ("benchmark-vehicle", (32, 64))])
def test_recipe_of_the_benchmark_is_the_demo_with_more_identities_and_steps(recipe, size):
    config = resolve(recipe)
    synthetic, image = config.data.synthetic, config.model.image
    assert (synthetic.test_identities, synthetic.cameras) == (100, 4)
    assert (image.height, image.width) == (synthetic.height, synthetic.width) == size
    changed = {
        name for name in differences(config, resolve("demo")) if not name.startswith(("data.", "train."))
    }
    assert changed <= {"model.image.height", "model.image.width"}
