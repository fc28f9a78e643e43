"""What MLflow is given to describe a run: its settings, tables, code and machine."""

from experiments.recipes import RECIPES, ExperimentConfig, differences
from experiments.run.code_version import code_version
from experiments.run.run_folder import RunFolder
from experiments.tracking.mlflow_logger import Description

MACHINE = ("python", "platform", "processors", "accelerators")


def describe_run(config: ExperimentConfig, folder: RunFolder) -> Description:
    """The description of a run that has begun."""
    name = " ".join([config.recipe, *_changes(config), f"seed={config.seed}"])
    started, checks = folder.journal.last("started"), folder.journal.last("checks") or {"warnings": []}
    assert started is not None
    machine = started["environment"]
    tags = {
        "stmi.run": folder.name,
        "stmi.recipe": config.recipe,
        "stmi.warnings": ", ".join(sorted({found["check"] for found in checks["warnings"]})) or "none",
        **{name: value for name, value in started.items() if name.startswith("code.")},
        **{f"environment.{fact}": str(machine[fact]) for fact in MACHINE},
        **{f"environment.{package}": number for package, number in machine["packages"].items()},
    }
    return Description(config.recipe, name, config.flat(), tags, folder.digests)


def other_code_digests(folder: RunFolder) -> list[str]:
    """Digests of other code that started a run; its name depends on settings and data, but not on code."""
    now = code_version()["code.digest"]
    started = [event["code.digest"] for event in folder.journal.read() if event["event"] == "started"]
    return [digest for digest in dict.fromkeys(started) if digest != now]


def _changes(config: ExperimentConfig) -> list[str]:
    """What a config changes in its recipe, as `name=value`, without the seed."""
    if config.recipe not in RECIPES:
        return []
    changed = differences(RECIPES[config.recipe](), config)
    return [f"{name}={value}" for name, (_, value) in changed.items() if name != "seed"]
