"""What a run would do, before it does anything: its settings, and what sets it apart."""

from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from experiments.recipes import RECIPES, ExperimentConfig, differences, resolve


def plan(config: ExperimentConfig) -> dict[str, Any]:
    """Settings of a run and their differences, as JSON values.

    Returns:
        `recipe`, `config` (by flat name), `changed` (from the recipe: name to `recipe` and `here`),
        `counterpart` (of a paper recipe the released one, and the other way round; None for others)
        and `differences` (to the counterpart: name to `here` and `there`).
    """
    changed = differences(resolve(config.recipe), config)
    other = counterpart(config.recipe)
    apart = differences(config, resolve(other)) if other else {}
    return {
        "recipe": config.recipe,
        "config": config.flat(),
        "changed": {name: {"recipe": old, "here": new} for name, (old, new) in changed.items()},
        "counterpart": other,
        "differences": {name: {"here": here, "there": there} for name, (here, there) in apart.items()},
    }


def counterpart(recipe: str) -> str | None:
    """The other recipe of the same data set: the released code's for the paper's, and the other way round."""
    dataset, _, kind = recipe.rpartition("-")
    other = {"paper": f"{dataset}-released", "released": f"{dataset}-paper"}.get(kind)
    return other if other in RECIPES else None


def print_plan(planned: dict[str, Any], console: Console | None = None) -> None:
    """Print a plan for a terminal."""
    console = console or Console()
    settings = RichTable(title=f"{planned['recipe']}: settings", title_justify="left")
    for column in ("setting", "value", "changed from"):
        settings.add_column(column)
    for name, value in planned["config"].items():
        changed = planned["changed"].get(name)
        settings.add_row(name, str(value), str(changed["recipe"]) if changed else "")
    console.print(settings)
    if planned["counterpart"] is None:
        return
    apart = RichTable(
        title=f"where {planned['recipe']} and {planned['counterpart']} differ", title_justify="left"
    )
    for column in ("setting", planned["recipe"], planned["counterpart"]):
        apart.add_column(column)
    for name, values in planned["differences"].items():
        apart.add_row(name, str(values["here"]), str(values["there"]))
    console.print(apart)
