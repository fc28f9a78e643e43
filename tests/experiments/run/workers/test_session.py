from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from data_catalog.errors import StorageAwayError
from experiments.run.stop_request import StopRequest
from experiments.run.workers.session import RayTrainSession


@pytest.fixture
def uploads(monkeypatch):
    """What Ray Train is given to write a checkpoint with, by a session that is the only worker's."""
    context = MagicMock(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("experiments.run.workers.session.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("ray.train.Checkpoint", MagicMock())
    given = []
    monkeypatch.setattr(
        "ray.train.report", lambda facts, checkpoint_upload_fn, **_: given.append(checkpoint_upload_fn)
    )
    return given


def test_checkpoint_that_storage_refused_is_not_written_again_and_keeps_its_error(uploads):
    """Ray Train calls the function up to three times where an error reads like one of S3."""
    stored = []

    def store(*_):
        stored.append(None)
        raise StorageAwayError("AWS Error UNKNOWN (HTTP status 503)")

    session = RayTrainSession(1, None, MagicMock(spec=StopRequest))
    session.report({"event": "checkpoint"}, SimpleNamespace(store=store))
    [write] = uploads
    for _ in range(3):
        with pytest.raises(StorageAwayError, match="status 503"):
            write(MagicMock(), "checkpoint_1")
    with pytest.raises(StorageAwayError, match="status 503"):
        session.wait()
    assert len(stored) == 1
