"""A run of seconds: a tiny CLIP, a few drawn people at 32 x 16 pixels, three epochs."""

import json
from pathlib import Path

from experiments import train

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


def arguments(clip: Path, workspace: Path, *extra: str) -> list[str]:
    """Arguments of experiments/train.py for the small run."""
    settings = [*SETTINGS, f"model.clip.source={clip}"]
    return [
        *(part for s in settings for part in ("--set", s)),
        "--workspace",
        str(workspace),
        "--json",
        *extra,
    ]


def run(capsys, clip: Path, workspace: Path, *extra: str) -> dict:
    """The one JSON document that a successful training prints."""
    capsys.readouterr()
    assert train.main(arguments(clip, workspace, *extra)) == 0
    return json.loads(capsys.readouterr().out)
