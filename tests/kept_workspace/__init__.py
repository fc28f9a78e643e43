"""A small workspace of commit 287e0db: tables, a run, an ablation and a sweep that later code must find.

It was made by `train.py --workers 1`, `ablate.py --table 4 --seeds 2` and `sweep_sfm.py --trials 3`, with the
settings of `tests.experiments.small_run` and the CLIP in `CLIP`. Left out to keep it small: figures, MLflow's
store, Tune's folders, and all checkpoints but the run's last. What the commands printed is in
`tests/json_samples`. Absolute paths in it start with `/kept/ws`. All images have the same time of change, in
whole seconds, because that time is part of the key of the samples table.
"""

import tarfile
from pathlib import Path

CLIP = Path("tests/golden/tiny_clip")
"""From the project's root: the path is a setting of the runs, so it must be the same on every machine."""
KEPT = b"/kept/ws"
STATE_FILES = ("config.json", "result.json", "journal.jsonl")


def unpack(folder: Path, *, is_moved: bool = False) -> Path:
    """Unpack the workspace below a folder.

    Args:
        folder: An existing one.
        is_moved: Leave the paths in its runs and studies as they were, where there is nothing any more.

    Returns:
        Path of the workspace.
    """
    with tarfile.open(Path(__file__).with_name("workspace.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    workspace = folder / "ws"
    for path in workspace.rglob("*"):
        if path.name in STATE_FILES and not is_moved:
            path.write_bytes(path.read_bytes().replace(KEPT, str(workspace).encode()))
    return workspace
