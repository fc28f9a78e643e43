from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.functional import normalize

from stmi.config import AugmentConfig
from stmi.training import augment
from stmi.training.augment import Geometry
from tests.stmi import golden
from tests.tolerances import ROUNDING_FLOAT32

SIZE = (16, 8)
KEY = (0, 0, 0)


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (count, 3, 3, *SIZE), dtype=np.uint8))
    mask = torch.from_numpy(random.integers(0, 256, (count, *SIZE), dtype=np.uint8))
    return pixels, mask


def still(count: int, padding: int) -> Geometry:
    return replace(
        augment.sample_geometry(AugmentConfig(), count, SIZE, *KEY),
        flip=np.zeros((count, 1), bool),
        offset=np.full((count, 1, 2), padding),
        erase=np.zeros((count, 1, 4), int),
    )


def test_centred_crop_without_flip_changes_nothing():
    pixels, mask = batch(3)
    images, moved = augment.augment(pixels, mask, still(3, 4), 4)
    assert torch.allclose(images, augment.normalise(pixels))
    assert torch.equal(moved, mask)


def test_pixels_and_mask_move_together():
    pixels, mask = batch(6)
    # Each modality's channels carry the mask itself: after any geometry they must still equal it.
    pixels = mask[:, None, None].expand_as(pixels).contiguous()
    config = AugmentConfig(flip=0.5, crop_padding=4, erase=0)
    geometry = augment.sample_geometry(config, 6, SIZE, *KEY)
    images, moved = augment.augment(pixels, mask, geometry, 4)
    assert torch.equal(images, augment.normalise(moved[:, None, None].expand_as(images)))
    assert not torch.equal(moved, mask)


def test_flip_and_crop_equal_a_naive_loop():
    pixels, mask = batch(8)
    geometry = augment.sample_geometry(AugmentConfig(crop_padding=3, erase=0), 8, SIZE, *KEY)
    images, _ = augment.augment(pixels, mask, geometry, 3)
    for i in range(8):
        padded = np.pad(pixels[i].numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)))
        top, left = geometry.offset[i, 0]
        expected = padded[..., top : top + 16, left : left + 8]
        expected = expected[..., ::-1] if geometry.flip[i, 0] else expected
        assert np.allclose(images[i].numpy(), expected / 127.5 - 1, atol=ROUNDING_FLOAT32)


@pytest.mark.parametrize("per_sample", ["shared", "per_modality"])
def test_a_workers_rows_are_augmented_as_in_the_global_batch(per_sample):
    pixels, mask = batch(8)
    config = AugmentConfig(geometry=per_sample, crop_padding=3, erase=1)
    geometry = augment.sample_geometry(config, 8, SIZE, *KEY)
    whole, _ = augment.augment(pixels, mask, geometry, 3)
    part, _ = augment.augment(pixels[4:], mask[4:], geometry.rows(slice(4, 8)), 3)
    assert torch.equal(whole[4:], part)


def test_erasing_fills_its_rectangle_with_noise_and_nothing_else():
    pixels, mask = torch.zeros(4, 3, 3, *SIZE, dtype=torch.uint8), torch.zeros(4, *SIZE, dtype=torch.uint8)
    geometry = augment.sample_geometry(AugmentConfig(flip=0, crop_padding=0, erase=1), 4, SIZE, *KEY)
    images, _ = augment.augment(pixels, mask, geometry, 0)
    for i, (top, left, tall, wide) in enumerate(geometry.erase[:, 0]):
        assert 0.01 < tall * wide / (16 * 8) < 0.4
        inside = torch.zeros(SIZE, dtype=torch.bool)
        inside[top : top + tall, left : left + wide] = True
        assert (images[i, ..., ~inside] == -1).all()
        assert (images[i, ..., inside] != -1).all()


@pytest.mark.parametrize("per_sample", ["shared", "per_modality"])
def test_erased_pixels_and_no_others_differ_from_the_same_batch_without_erasing(per_sample):
    pixels, mask = batch(8)
    config = AugmentConfig(geometry=per_sample, crop_padding=3, erase=0.7)
    geometry = augment.sample_geometry(config, 8, SIZE, *KEY)
    images, _ = augment.augment(pixels, mask, geometry, 3)
    whole = replace(geometry, erase=np.zeros_like(geometry.erase))
    unerased, _ = augment.augment(pixels, mask, whole, 3)
    erased = np.zeros(images.shape, bool)
    for i, group in np.ndindex(*geometry.flip.shape):
        top, left, tall, wide = geometry.erase[i, group]
        modalities = slice(None) if per_sample == "shared" else group
        erased[i, modalities, :, top : top + tall, left : left + wide] = True
    assert ((images != unerased).numpy() == erased).all()
    noise = images.numpy()[erased]
    # No number is used twice, but for chance: 16 bits make few of the 65,536 values equal.
    assert len(np.unique(noise)) > 0.95 * len(noise)


def test_erasing_noise_of_a_seed_epoch_step_and_row_is_that_of_every_machine():
    geometry = augment.sample_geometry(AugmentConfig(crop_padding=0), 8, SIZE, 1, 2, 3)
    geometry.erase[7, 0] = 3, 2, 4, 5
    images, _ = augment.augment(*batch(2), geometry.rows(slice(6, 8)), 0)
    assert images[1, 0, 0, 3, 2:7].tolist() == [
        -0.2333289533853531,
        1.034204363822937,
        -0.6018763184547424,
        1.9135371446609497,
        -1.9292834997177124,
    ]


@pytest.mark.parametrize("per_sample", ["shared", "per_modality"])
def test_rows_of_several_steps_are_augmented_as_in_the_batches_of_their_own(per_sample):
    pixels, mask = batch(12)
    config = AugmentConfig(geometry=per_sample, crop_padding=3, erase=1)
    geometries = [augment.sample_geometry(config, 8, SIZE, 0, 1, step).rows(slice(2, 6)) for step in range(3)]
    together, moved = augment.augment(pixels, mask, augment.join_geometries(geometries), 3)
    for step, geometry in enumerate(geometries):
        own = slice(4 * step, 4 * step + 4)
        images, own_mask = augment.augment(pixels[own], mask[own], geometry, 3)
        assert torch.equal(together[own], images)
        assert torch.equal(moved[own], own_mask)


@pytest.mark.parametrize("per_sample", ["shared", "per_modality"])
def test_augmentation_of_any_batch_takes_the_same_number_of_tensor_operations(per_sample):
    counts = []
    for count in (8, 72):
        geometry = augment.sample_geometry(AugmentConfig(geometry=per_sample), count, SIZE, *KEY)
        with CountedOperations() as counted:
            augment.augment(*batch(count), geometry, 10)
        counts.append(counted.count)
    assert counts[0] == counts[1] > 0


class CountedOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_flips_and_erasing_have_the_configured_rates():
    geometry = augment.sample_geometry(AugmentConfig(flip=0.5, erase=0.3), 4000, (64, 32), *KEY)
    assert abs(geometry.flip.mean() - 0.5) < 0.03
    assert abs((geometry.erase[..., 2] > 0).mean() - 0.3) < 0.03


def test_erased_aspect_is_uniform_or_has_a_uniform_logarithm():
    tall = {}
    for aspect in ("uniform", "log_uniform"):
        config = AugmentConfig(erase=1, erase_aspect=aspect)
        erase = augment.sample_geometry(config, 8000, (256, 256), *KEY).erase[:, 0]
        ratios = erase[:, 2] / erase[:, 3]
        assert 0.28 < ratios.min() < ratios.max() < 3.6
        tall[aspect] = (ratios > 1).mean()
    # 77 % of uniform ratios from 0.3 to 1 / 0.3 are above one; with a uniform logarithm it is half of them.
    assert abs(tall["uniform"] - (1 / 0.3 - 1) / (1 / 0.3 - 0.3)) < 0.03
    assert abs(tall["log_uniform"] - 0.5) < 0.03


@pytest.mark.parametrize("statistics", ["half", "clip"])
def test_pixels_are_normalised_as_torchvision_does(statistics):
    pixels, _ = batch(2)
    expected = normalize(pixels / 255, *map(list, augment.PIXEL_STATISTICS[statistics]))
    assert torch.allclose(augment.normalise(pixels, statistics), expected, atol=ROUNDING_FLOAT32)
    moved, _ = augment.augment(*batch(2), still(2, 0), 0, statistics)
    assert torch.equal(moved, augment.normalise(pixels, statistics))


def test_patch_foreground_is_the_mean_of_the_patch():
    arrays = golden.load("mask_pooling")
    mask = arrays["mask"].to(torch.uint8)[None] * 255
    share = augment.patch_foreground(mask, 16)
    assert torch.equal((share >= 0.5).view(16, 8), arrays["token_mask"].bool())


def test_geometry_per_modality_does_not_move_the_mask():
    pixels, mask = batch(8)
    config = AugmentConfig(geometry="per_modality", crop_padding=3, erase=0)
    geometry = augment.sample_geometry(config, 8, SIZE, *KEY)
    images, unmoved = augment.augment(pixels, mask, geometry, 3)
    assert torch.equal(unmoved, mask)
    assert (geometry.offset[:, 0] != geometry.offset[:, 1]).any()
    for i in range(8):
        for group in range(3):
            padded = np.pad(pixels[i, group].numpy(), ((0, 0), (3, 3), (3, 3)))
            top, left = geometry.offset[i, group]
            expected = padded[:, top : top + 16, left : left + 8]
            expected = expected[..., ::-1] if geometry.flip[i, group] else expected
            assert np.allclose(images[i, group].numpy(), expected / 127.5 - 1, atol=ROUNDING_FLOAT32)


def test_erasing_each_modality_on_its_own_leaves_the_others():
    pixels, mask = torch.zeros(6, 3, 3, *SIZE, dtype=torch.uint8), torch.zeros(6, *SIZE, dtype=torch.uint8)
    config = AugmentConfig(geometry="per_modality", flip=0, crop_padding=0, erase=0.5)
    geometry = augment.sample_geometry(config, 6, SIZE, *KEY)
    images, _ = augment.augment(pixels, mask, geometry, 0)
    touched = (images != -1).flatten(2).any(dim=2).numpy()
    assert (touched == (geometry.erase[..., 2] > 0)).all()
    assert 0 < touched.sum() < touched.size
