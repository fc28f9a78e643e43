"""Recipes in YAML files of the user: a built-in recipe with some settings changed.

    base: rgbnt201-paper
    settings:
      data.dataset: market
      train.epochs: 20

The file's name without its ending is the recipe's name, in the names of its runs too.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from data_catalog.records import Record, describe_invalid
from experiments.experiment_config import ConfigError, ExperimentConfig, full_name
from experiments.recipes import RECIPES, ValueLoader, resolve

ENDINGS = (".yaml", ".yml")
BUILT_IN = frozenset(RECIPES)


class _LoaderOfDistinctNames(ValueLoader):
    """Refuses a name that stands twice in a group, of which YAML would silently take the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = full_name(str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(f"{name} stands in lines {lines[name]} and {line}; remove one of them")
            lines[name] = line
        return super().construct_mapping(node, deep)


class RecipeFile(Record):
    """What a recipe file holds."""

    base: str
    """The built-in recipe whose settings hold where the file has none."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Value by dotted name, as `--set` has it: `model.str.tokens: 2`."""


def name_recipe(text: str) -> str:
    """The name of the recipe that `--recipe` asks for; a file is read, and known by its name from then on.

    Args:
        text: Name of a recipe, or path of a file.

    Raises:
        argparse.ArgumentTypeError: The file is not there or not of the form; names file and field.
    """
    if not text.endswith(ENDINGS):
        return text
    path = Path(text)
    try:
        config = read_recipe(path)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"file {path}: {error}") from None
    RECIPES[config.recipe] = lambda: config
    return config.recipe


def read_recipe(path: Path) -> ExperimentConfig:
    """The settings that a recipe file gives.

    Raises:
        ConfigError: The file cannot be read, its name cannot name a recipe, or a field is wrong.
    """
    name = path.stem
    if name in BUILT_IN or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        wrong = "is that of a built-in recipe" if name in BUILT_IN else "cannot be part of a folder's name"
        raise ConfigError(
            f"its name {name!r} {wrong}; rename it, with letters, digits, '_' and '-' before {path.suffix}"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _LoaderOfDistinctNames)
    except OSError as error:
        raise ConfigError(f"it cannot be read ({error.strerror}); correct the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"it is not YAML in UTF-8 ({' '.join(str(error).split())})") from None
    try:
        recipe = RecipeFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            f"{describe_invalid(error, 'the file')}; expected the fields base and settings"
        ) from None
    if recipe.base not in BUILT_IN:
        raise ConfigError(f"base: recipe {recipe.base!r} is unknown; there are {', '.join(sorted(BUILT_IN))}")
    try:
        changes = [
            f"{setting}={json.dumps(value, ensure_ascii=False)}" for setting, value in recipe.settings.items()
        ]
    except TypeError as error:
        raise ConfigError(f"settings: {error}; expected text, numbers, on or off, or lists of them") from None
    return resolve(recipe.base, changes).model_copy(update={"recipe": name})
