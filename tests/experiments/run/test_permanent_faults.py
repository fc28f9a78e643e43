"""A fault that every retry would find again ends a run at once, with one line."""

from pathlib import Path

import pytest

from data_catalog.errors import CatalogError
from experiments.run import lifecycle
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.run_result import RunError
from experiments.run.workers.worker import JournalCallback
from experiments.tracking.journal import Journal
from tests.experiments import small_run


def test_shard_of_a_view_that_was_cut_off_is_refused_before_workers_start(ray_session, clip, workspace):
    _, tables = small_run.configured(clip, workspace)
    shard = Path(tables.views["test"].path) / tables.views["test"].manifest.shards[0].file
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(CatalogError, match=f"shard {shard} cannot be read .*delete the folder"):
            small_run.configured(clip, workspace)
    finally:
        shard.write_bytes(content)


@pytest.mark.slow
def test_file_that_a_worker_finds_damaged_ends_the_run_at_once(ray_session, clip, workspace, tmp_path):
    """As where another node has another copy of it."""
    config, tables = small_run.configured(clip, workspace, "train.workers=2")
    shard = Path(tables.views["test"].path) / tables.views["test"].manifest.shards[0].file
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(RunError, match=f"shard {shard} cannot be read"):
            lifecycle.run(config, tables, RunOptions.resolve(tmp_path).without_tracking())
    finally:
        shard.write_bytes(content)
    [folder] = (tmp_path / "train").iterdir()
    events = [event["event"] for event in RunFolder(folder).journal.read()]
    assert events == ["started", "checks", "worker_failed", "failed"]


@pytest.mark.parametrize(
    ("error", "is_retried"), [(CatalogError("x is damaged"), False), (OSError("x"), True)]
)
def test_crash_of_a_worker_is_retried_and_a_damaged_file_is_not(tmp_path, error, is_retried):
    callback = JournalCallback(Journal(tmp_path / "journal.jsonl"), None)
    if is_retried:
        callback.after_exception(None, {1: error})
    else:
        with pytest.raises(CatalogError, match="x is damaged"):
            callback.after_exception(None, {0: OSError("its peer has gone"), 1: error})
    assert [event["event"] for event in callback.journal.read()] == ["worker_failed"]
