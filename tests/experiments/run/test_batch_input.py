import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.planning.dry_run import untrained_clip
from experiments.recipes import resolve
from experiments.run.workers.batch_input import BatchInput, one_ahead
from stmi.model import STMI
from stmi.training.batch_plan import rows_of_rank

SAMPLES = 60
CONFIG = resolve("demo", ["batch.size=8", "batch.samples_per_identity=2", "model.fusion.dropout=0.1"])


def made_up_view(config):
    """Random rows, read as those of a `View` are."""
    random, image = np.random.default_rng(0), config.model.image
    columns = {
        "pixels": random.integers(0, 256, (SAMPLES, 3, 3, image.height, image.width), dtype=np.uint8),
        "mask": random.integers(0, 256, (SAMPLES, image.height, image.width), dtype=np.uint8),
        "text_feature": random.standard_normal((SAMPLES, 128), dtype=np.float32),
        "camera_id": random.integers(0, 4, SAMPLES, dtype=np.int32),
        "missing": random.random((SAMPLES, 3)) < 0.1,
    }
    return SimpleNamespace(
        batch=lambda rows: SimpleNamespace(**{name: values[rows] for name, values in columns.items()})
    )


def batch_input(rank=0, workers=1, device="cpu"):
    model = STMI(CONFIG.model, untrained_clip(CONFIG), identities=20, cameras=4, seed=0).to(device)
    labels = np.arange(SAMPLES) // 3
    return BatchInput(CONFIG, model, made_up_view(CONFIG), labels, None, rows_of_rank(8, rank, workers))


def plan(steps):
    return np.random.default_rng(1).permutation(SAMPLES)[: steps * 8].reshape(steps, 8)


def test_steps_of_an_epoch_have_their_own_input_wherever_the_epoch_begins():
    given = batch_input()
    whole = list(given.steps(plan(4), epoch=2))
    assert len(whole) == 4
    for step, later in enumerate(given.steps(plan(4), epoch=2, first=2), start=2):
        [again] = given.make(plan(4)[[step]], 2, step)
        for one, two, three in zip(whole[step].tensors(), later.tensors(), again.tensors(), strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)
    assert not torch.equal(whole[0].batch.images, whole[1].batch.images)


@pytest.mark.parametrize(("height", "together"), [(64, [4, 1]), (128, [2, 2, 1]), (1024, [1, 1, 1, 1, 1])])
def test_input_of_several_steps_is_made_in_one_go_where_images_are_small(monkeypatch, height, together):
    # 24 samples of three images of 64 x 32 pixels are 1.7 MiB of float32.
    config = resolve("demo", ["batch.size=24", f"model.image.height={height}"])
    model = SimpleNamespace(image_tower=SimpleNamespace(proj=torch.empty(0)))
    given, made = BatchInput(config, model, None, np.empty(0), None, slice(0, 24)), []
    monkeypatch.setattr(given, "make", lambda plan, epoch, first: made.append((first, len(plan))) or plan)
    assert [int(rows[0]) for rows in given.steps(np.arange(7 * 24).reshape(7, 24), 0, 2)] == [
        24 * step for step in range(2, 7)
    ]
    assert [count for _, count in made] == together
    assert [first for first, _ in made] == list(2 + np.cumsum([0, *together[:-1]]))


def test_workers_share_the_input_of_one():
    (whole,) = batch_input().steps(plan(1), epoch=0)
    parts = [
        next(batch_input(rank, 2).steps(plan(1)[:, rows_of_rank(8, rank, 2)], epoch=0)) for rank in range(2)
    ]
    assert torch.equal(whole.batch.images, torch.cat([part.batch.images for part in parts]))
    assert torch.equal(whole.draws.fusion, torch.cat([part.draws.fusion for part in parts]))
    assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))


def test_next_item_is_made_while_one_is_used():
    made = [threading.Event() for _ in range(3)]

    def make():
        for number, event in enumerate(made):
            event.set()
            yield number

    used = []
    for number in one_ahead(make()):
        used.append(number)
        assert all(event.wait(timeout=10) for event in made[: number + 2])
        assert not any(event.is_set() for event in made[number + 2 :])
    assert used == [0, 1, 2]


def test_fault_in_making_an_item_is_raised_where_that_item_is_wanted():
    def make():
        yield 1
        raise OSError("a broken shard")

    items = one_ahead(make())
    assert next(items) == 1
    with pytest.raises(OSError, match="a broken shard"):
        next(items)
