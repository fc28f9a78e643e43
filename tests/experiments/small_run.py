"""A run of seconds: a tiny CLIP, a few drawn people at 32 x 16 pixels, three epochs."""

import json
from pathlib import Path

from experiments import recipes, train
from experiments.recipes import ExperimentConfig
from experiments.run import run_data
from experiments.run.run_data import RunTables
from experiments.run.run_folder import RunFolder
from experiments.studies.trial import Tell, train_run
from stmi.clip.loading import load_clip

SETTINGS = [
    "data.synthetic.height=32",
    "data.synthetic.width=16",
    "data.synthetic.train_identities=6",
    "data.synthetic.validation_identities=3",
    "data.synthetic.test_identities=4",
    "data.synthetic.cameras=2",
    "data.synthetic.shots=2",
    "model.image.height=32",
    "model.image.width=16",
    "model.str.heads=2",
    "model.sfm.perturbation=0.2",
    "batch.size=8",
    "batch.samples_per_identity=2",
    "train.epochs=3",
    "train.validate_every=2",
    "train.checkpoint_every=1",
]


def settings(clip: Path) -> list[str]:
    """What the small run with one worker changes in the demo recipe."""
    return [*SETTINGS, f"model.clip.source={clip}", "train.workers=1"]


def options(clip: Path, without: str | None = None) -> list[str]:
    """The small run's settings as options of a script, or all of them but one."""
    chosen = [s for s in [*SETTINGS, f"model.clip.source={clip}"] if s.partition("=")[0] != without]
    return [part for s in chosen for part in ("--set", s)]


def arguments(clip: Path, workspace: Path, *extra: str) -> list[str]:
    """Arguments of experiments/train.py for the small run."""
    return [*options(clip), "--workspace", str(workspace), "--json", *extra]


def run(capsys, clip: Path, workspace: Path, *extra: str) -> dict:
    """The one JSON document that a successful training prints."""
    capsys.readouterr()
    assert train.main(arguments(clip, workspace, *extra)) == 0
    return json.loads(capsys.readouterr().out)


def configured(clip: Path, workspace: Path, *changes: str) -> tuple[ExperimentConfig, RunTables]:
    """The small run with one worker, and its tables."""
    config = recipes.resolve("demo", [*settings(clip), *changes])
    folder, catalog = run_data.places(str(workspace), None)
    loaded = load_clip(run_data.clip_source(config))
    return config, run_data.tables_of(config, loaded, folder, catalog)


def alone(
    clip: Path,
    workspace: Path,
    *settings: str,
    runs: Path | None = None,
    storage: str | None = None,
    tell: Tell = lambda facts: None,
) -> RunFolder:
    """The small run, trained in this process.

    Args:
        clip: Folder of its CLIP.
        workspace: Where its tables are.
        settings: Changes.
        runs: Another workspace for the run itself: making the tables anew takes seconds.
        storage: Place of its checkpoints.
        tell: Called with each report.
    """
    config, tables = configured(clip, workspace, *settings)
    return train_run(config, tables, (runs or workspace).resolve(), storage, tell)
