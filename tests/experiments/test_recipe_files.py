import pytest

from experiments import train
from experiments.experiment_config import ConfigError, differences
from experiments.recipe_files import name_recipe, read_recipe
from experiments.recipes import RECIPES, resolve
from tests.examples.command_line import EXAMPLES


@pytest.fixture(autouse=True)
def recipes_as_they_were(monkeypatch):
    """A recipe file is known only until the test ends."""
    for name in ("mine", "small_recipe"):
        monkeypatch.setitem(RECIPES, name, RECIPES["demo"])


def test_file_changes_what_set_would_change():
    config = read_recipe(EXAMPLES / "small_recipe.yaml")
    by_hand = resolve(
        "demo",
        [
            "data.synthetic.train_identities=6",
            "data.synthetic.validation_identities=3",
            "data.synthetic.test_identities=4",
            "data.synthetic.shots=2",
            "model.str.tokens=2",
            "model.sfm.perturbation=0.02",
            "batch.size=8",
            "batch.samples_per_identity=2",
            "train.epochs=2",
            "train.workers=1",
        ],
    )
    assert config.recipe == "small_recipe"
    assert config == by_hand.model_copy(update={"recipe": "small_recipe"})
    assert differences(config, by_hand) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1e-5", 1e-5), ("0.00001", 1e-5), ("8.0e-4", 8e-4)],
)
def test_small_numbers_may_be_written_in_any_way(value, expected, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"base: demo\nsettings:\n  optim.learning_rate: {value}\n  model.chi: off\n"
        "  model.sfm.perturbation: {RGB: 0, NIR: 0.01, TIR: 0.02}\n"
    )
    config = read_recipe(file)
    assert config.model.sfm.perturbation == {"RGB": 0, "NIR": 0.01, "TIR": 0.02}
    assert config.optim.learning_rate == expected
    assert not config.model.chi.enabled


def test_command_line_takes_a_file_and_changes_it_further(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: rgbnt201-paper\nsettings: {train.epochs: 7}\n")
    given = train.parser().parse_args(["--recipe", str(file), "--set", "batch.size=48", "--seed", "2"])
    config = train.configure(given)
    assert (config.recipe, config.seed, config.train.epochs, config.batch.size) == ("mine", 2, 7, 48)
    assert config.data == resolve("rgbnt201-paper").data
    # What is changed is told apart from what the recipe is.
    assert differences(resolve("mine"), config).keys() == {"seed", "batch.size"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine", "base: demos", "base: recipe 'demos' is unknown; there are benchmark, "),
        ("mine", "settings: {}", "base: Field required; expected the fields base and settings"),
        ("mine", "base: demo\nsetings: {}", "setings: Extra inputs are not permitted; expected the fields"),
        ("mine", "base: demo\nsettings: [1]", "settings: Input should be a valid dictionary"),
        ("mine", "just text", "the file: Input should be a valid dictionary"),
        ("mine", "a: b: c", "it is not YAML in UTF-8 (mapping values are not allowed here"),
        ("mine", "base: demo\nsettings: {train.epoch: 3}", "setting train.epoch is unknown; did you mean"),
        ("mine", "base: demo\nsettings: {train.epochs: many}", "train.epochs='many': Input should be"),
        ("mine", "base: demo\nsettings: {train: {epochs: 3}}", "this is a group; set one of its fields"),
        ("mine", "base: demo\nsettings: {recipe: x}", "recipe is not a setting"),
        (
            "mine",
            "base: demo\nsettings: {seed: 2026-01-01}",
            "seed='2026-01-01': Input should be a valid int",
        ),
        (
            "mine",
            "base: demo\nsettings: {seed: !!binary aGk=}",
            "bytes is not JSON serializable; expected text",
        ),
        ("mine", "base: demo\nbase: demo", "base stands in lines 1 and 2; remove one of them"),
        (
            "mine",
            "base: demo\nsettings:\n  str.tokens: 2\n  model.str.tokens: 4",
            "model.str.tokens stands in lines 3 and 4; remove one of them",
        ),
        ("demo", "base: demo", "its name 'demo' is that of a built-in recipe; rename it"),
        ("my recipe", "base: demo", "its name 'my recipe' cannot be part of a folder's name; rename it"),
    ],
)
def test_wrong_file_is_named_with_its_field(name, text, message, tmp_path, capsys):
    file = tmp_path / f"{name}.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as stop:
        train.main(["--recipe", str(file)])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument --recipe: file {file}: " in error
    assert message in error


def test_text_beyond_the_first_plane_is_read_as_it_is(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: rgbnt201-paper\nsettings: {model.clip.source: /clips/😀}")
    assert read_recipe(tmp_path / "mine.yaml").model.clip.source == "/clips/😀"


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\); correct the path"):
        read_recipe(tmp_path / "mine.yaml")
    assert name_recipe("demo") == "demo"
