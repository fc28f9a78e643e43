"""A camera that no training sample is of gets the mean of the trained cameras wherever it is tested."""

from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch

from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.samples.ingestion import ingest
from data_catalog.views.training_view import ViewSettings, make_view
from experiments.evaluating import evaluation_target, verification
from experiments.recipes import resolve
from experiments.run import evaluation, lifecycle, preflight
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from stmi import load as load_trained
from stmi.clip.loading import load_clip
from stmi.config import ModelConfig
from stmi.model import STMI
from tests.data_catalog.folders import write_data_set

SETTINGS = [
    "data.synthetic=null",
    "data.dataset=small",
    "model.image.height=32",
    "model.image.width=16",
    "model.str.heads=2",
    "model.text=off",
    "model.camera_embedding=true",
    "batch.size=4",
    "batch.samples_per_identity=2",
    "train.epochs=2",
    "train.validate_every=1",
    "train.checkpoint_every=1",
    "train.precision=float32",
    "train.workers=1",
]


@pytest.fixture
def model(clip: Path) -> STMI:
    config = ModelConfig.model_validate(
        {
            "image": {"height": 32, "width": 16},
            "str": {"heads": 2},
            "clip": {"source": str(clip)},
            "camera_embedding": True,
        }
    )
    return STMI(config, load_clip(str(clip)), identities=3, cameras=5, seed=0)


def cameras(model: STMI) -> np.ndarray:
    assert model.image_tower.camera_embedding is not None
    return model.image_tower.camera_embedding.detach().numpy().copy()


@pytest.mark.parametrize("trained", [(0, 1, 2, 3, 4), (0, 1), (0, 2, 4), (3,)])
def test_untrained_cameras_get_the_mean_of_the_trained_ones(trained: tuple[int, ...], model: STMI) -> None:
    before = cameras(model)
    evaluation.fill_untrained_cameras(model, trained)
    after = cameras(model)
    for camera in range(5):
        expected = before[camera] if camera in trained else before[list(trained)].mean(axis=0)
        assert np.allclose(after[camera], expected, atol=1e-7)
    # So has a camera without a number, whose vector is the mean of all.
    assert np.allclose(after.mean(axis=0), before[list(trained)].mean(axis=0), atol=1e-7)


def test_cameras_beyond_those_of_a_released_checkpoint_get_its_mean(
    model: STMI, caplog: pytest.LogCaptureFixture
) -> None:
    before = cameras(model)
    evaluation_target.add_cameras(model, 5)
    assert np.array_equal(cameras(model), before)
    assert caplog.text == ""
    evaluation_target.add_cameras(model, 7)
    assert np.array_equal(cameras(model)[:5], before)
    assert np.allclose(cameras(model)[5:], before.mean(axis=0), atol=1e-7)
    assert "cameras up to camera_id 6, the checkpoint knows 5" in caplog.text


def test_run_tests_an_untrained_camera_with_the_mean_and_notes_it(clip: Path, tmp_path: Path) -> None:
    write_data_set(tmp_path / "source")
    rmtree(tmp_path / "source" / "RGBNT201" / "val")
    # The second camera is the fourth one in the test split, and no sample is of the third.
    for path in list((tmp_path / "source" / "RGBNT201" / "test").rglob("*_cam2_*.jpg")):
        path.rename(path.with_name(path.name.replace("_cam2_", "_cam4_")))
    catalog = str(tmp_path / "catalog")
    samples = ingest(tmp_path / "source" / "RGBNT201", catalog, "small")
    masks = make_masks(samples, GrabCutSettings())
    for split in ("train", "test"):
        make_view(samples, masks, None, ViewSettings(split=split, height=32, width=16))
    config = resolve("demo", [*SETTINGS, f"model.clip.source={clip}"])
    options = RunOptions.resolve(tmp_path / "runs", catalog).without_tracking()
    tables = preflight.preflight(
        config, options, lambda check: check(config), lambda: None, lambda tables: False
    )
    result = lifecycle.run(config, tables, options, threads=1)
    assert any(
        "4 samples of split 'test' are of cameras that no training sample" in note for note in result.notes
    )
    run = load_trained(result.folder, device="cpu")
    learned = cameras(run.model)
    assert len(learned) == 4
    for camera in (2, 3):
        assert np.allclose(learned[camera], learned[:2].mean(axis=0), atol=1e-6)
    # Moved from where they began, and from each other.
    assert not np.allclose(learned[0], learned[1], atol=1e-3)
    # A repetition that ends at the end of an epoch is not evaluated then.
    found = verification.verify(RunFolder(result.folder), 3, options)
    assert found.weights == {3: True}
    target = evaluation_target.load_run(result.folder)
    with torch.no_grad():
        assert np.allclose(cameras(target.model), learned)
    again = lifecycle.run(config, tables, options, threads=1)
    assert again.reused
    assert again.notes == result.notes
