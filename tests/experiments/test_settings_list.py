import subprocess
import sys

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from experiments.experiment_config import ExperimentConfig
from experiments.recipes import RECIPES, resolve
from experiments.settings_list import as_typed, list_settings, print_settings


def models(section):
    """A model and all that its fields hold, with their dotted names."""
    yield "", section
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from ((f"{name}.{inner}", model) for inner, model in models(kind))


def test_every_setting_and_every_group_of_settings_says_what_it_means():
    unsaid = []
    for prefix, section in models(ExperimentConfig):
        assert section.__doc__
        for name, field in section.model_fields.items():
            is_group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            if not (is_group or field.description):
                unsaid.append(f"{prefix}{name}")
    assert unsaid == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_settings_of_a_recipe_are_listed_once_with_its_values(recipe):
    listed = [(setting.name, setting.value) for setting in list_settings(recipe, []).settings]
    expected = resolve(recipe).flat()
    for name in ("recipe", *(["data.synthetic"] if expected.get("data.synthetic", 0) is None else [])):
        del expected[name]
    assert sorted(listed) == sorted(expected.items())


def test_values_are_printed_as_set_takes_them():
    changes = ["model.sfm.perturbation={RGB: 0.01, NIR: 0, TIR: [0.02, 0, 0, 0.1]}", "model.chi=off"]
    for setting in list_settings("demo", changes).settings:
        assert resolve("demo", [*changes, f"{setting.name}={as_typed(setting.value)}"]) == resolve(
            "demo", changes
        )


@pytest.mark.parametrize(
    ("name", "expected", "wrong"),
    [
        ("model.sfm.enabled", "on or off", 3),
        ("model.sfm.sharing", "one of all_layers, early_half, late_half, per_head, per_layer", "none"),
        ("model.str.tokens", "integer from 1 to 16", 17),
        ("model.fusion.dropout", "number from 0 and below 1", 1.0),
        ("model.str.mlp_ratio", "number above 0", 0),
        ("loss.triplet_margin", "number from 0, or null", -1),
        ("model.clip.source", "text", 3),
        ("data.synthetic.person_height", "list of 2, each number", [0.5]),
        ("data.synthetic.darkness", "list, each number from 0 to 1", [2]),
    ],
)
def test_what_a_setting_accepts_is_said_in_words_and_holds(name, expected, wrong):
    (setting,) = [one for one in list_settings("demo", []).settings if one.name == name]
    assert setting.expected == expected
    section = ExperimentConfig
    *groups, field = name.split(".")
    for group in groups:
        annotation = section.model_fields[group].annotation
        kinds = (annotation, *getattr(annotation, "__args__", ()))
        section = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    with pytest.raises(ValidationError):
        TypeAdapter(section).validate_python({field: wrong})


@pytest.mark.parametrize("columns", [60, 80])
def test_settings_are_printed_within_the_width_of_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    print_settings(list_settings("demo", ["model.str.tokens=2"]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert "  model.str.tokens = 2  (recipe: 4)" in lines


def test_settings_are_listed_without_the_packages_that_take_seconds_to_import():
    heavy = ("torch", "ray", "mlflow", "open_clip", "optuna", "pyarrow", "matplotlib")
    code = (
        "import sys; from experiments import settings_list as s; "
        "s.print_settings(s.list_settings('demo', []));"
        f"sys.exit(', '.join(name for name in {heavy} if name in sys.modules) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
