"""A run of seconds: a tiny CLIP, a few rendered people at 32 x 16 pixels, three epochs."""

import json
import os
from dataclasses import replace
from pathlib import Path

from experiments import recipes, train
from experiments.experiment_config import ExperimentConfig
from experiments.run import lifecycle, run_data
from experiments.run.lifecycle import OnReport
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_tables import RunTables
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


def arguments(clip: Path, workspace: Path | str, *extra: str) -> list[str]:
    """Arguments of experiments/train.py for the small run."""
    return [*options(clip), "--workspace", str(workspace), "--json", *extra]


def run(capsys, clip: Path, workspace: Path | str, *extra: str) -> dict:
    """The one JSON document that a successful training prints."""
    capsys.readouterr()
    assert train.main(arguments(clip, workspace, *extra)) == 0
    return json.loads(capsys.readouterr().out)


def configured(clip: Path, workspace: Path, *changes: str) -> tuple[ExperimentConfig, RunTables]:
    """The small run with one worker, and its tables."""
    config = recipes.resolve("demo", [*settings(clip), *changes])
    loaded = load_clip(config.clip_source)
    return config, run_data.prepare_tables(config, loaded, RunOptions.resolve(workspace))


def alone(
    clip: Path,
    workspace: Path,
    *settings: str,
    runs: Path | str | None = None,
    storage: str | None = None,
    on_report: OnReport = lambda facts: None,
    patience_seconds: float = 900,
    skips_not_finite: bool = False,
    raises_micro_batches: bool = False,
) -> RunFolder:
    """The small run, trained in this process.

    Args:
        clip: Folder of its CLIP.
        workspace: Where its tables are.
        settings: Changes.
        runs: Another workspace, path or URI, for the run itself: making the tables anew takes seconds.
        storage: Folder or URI of its checkpoints.
        on_report: Called with each report.
        patience_seconds: How long another process may have the run without progress.
        skips_not_finite: As in `RunOptions`; so is `raises_micro_batches`.
        raises_micro_batches: As above.
    """
    config, tables = configured(clip, workspace, *settings)
    options = RunOptions.resolve(runs or workspace, storage=storage, skips_not_finite=skips_not_finite)
    result = lifecycle.run(
        config,
        tables,
        replace(options.without_tracking(), raises_micro_batches=raises_micro_batches),
        threads=len(os.sched_getaffinity(0)),
        on_report=on_report,
        patience_seconds=patience_seconds,
    )
    return RunFolder(result.folder)
