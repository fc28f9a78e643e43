import pytest
import torch

from stmi.clip.towers import ImageTower, TextTower, resize_position_embedding
from stmi.config import ClipConfig, SfmConfig
from tests.stmi import golden
from tests.stmi.gradients import gradients_agree
from tests.tolerances import GOLDEN_VALUE, ROUNDING_FLOAT32


def tower(clip, grid=(4, 2), sfm=None, cameras=0) -> ImageTower:
    return ImageTower(clip, ClipConfig(), grid, sfm or SfmConfig(enabled=False), cameras)


def test_class_token_equals_the_image_feature_of_open_clip(clip):
    images = torch.randn(3, 3, 32, 16)
    with torch.no_grad():
        tokens = tower(clip)(images)
        expected = clip.model.encode_image(images)
    assert tokens.shape == (3, 9, 16)
    assert torch.allclose(tokens[:, 0], expected, atol=ROUNDING_FLOAT32)


def test_modulation_without_strength_does_not_change_the_tower(clip):
    sfm = SfmConfig(initial_strength=0, initial_strength_std=0)
    images, foreground = torch.randn(2, 3, 32, 16), torch.rand(1, 2, 8) > 0.5
    with torch.no_grad():
        modulated = tower(clip, sfm=sfm)(images, foreground)
        plain = tower(clip)(images)
    assert torch.allclose(modulated, plain, atol=ROUNDING_FLOAT32)


def test_mask_changes_the_tokens_where_strength_is_not_zero(clip):
    images = torch.randn(2, 3, 32, 16)
    module = tower(clip, sfm=SfmConfig())
    with torch.no_grad():
        all_foreground = module(images, torch.ones(1, 2, 8, dtype=torch.bool))
        no_foreground = module(images, torch.zeros(1, 2, 8, dtype=torch.bool))
    assert not torch.allclose(all_foreground, no_foreground, atol=1e-3)


def test_tower_under_autocast_is_near_the_one_in_float32(clip):
    module = tower(clip, (4, 3))
    images = torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = module(images)
    with torch.no_grad():
        plain = module(images)
    assert (rounded - plain).norm() < 0.02 * plain.norm()


def test_camera_vector_reaches_the_class_token(clip):
    images = torch.randn(1, 3, 32, 16).expand(2, -1, -1, -1)
    with torch.no_grad():
        tokens = tower(clip, cameras=4)(images, None, torch.tensor([0, 3]))
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-4)


@pytest.mark.parametrize("sharing", ["per_layer", "per_head", "all_layers", "early_half", "late_half"])
def test_image_tower_gradients_agree_with_finite_differences(clip, sharing):
    torch.manual_seed(0)
    module = tower(clip, grid=(2, 1), sfm=SfmConfig(sharing=sharing), cameras=2)
    images = torch.randn(2, 3, 16, 8, dtype=torch.float64, requires_grad=True)
    foreground = torch.tensor([[[True, False], [False, True]]])
    assert gradients_agree(module, images, foreground, torch.tensor([0, 1]), fast=True)


def test_text_tower_gradients_agree_with_finite_differences(clip):
    torch.manual_seed(0)
    tokens = clip.tokenize(["a man in a red jacket", "a woman"])
    assert gradients_agree(TextTower(clip), tokens, fast=True)


@pytest.mark.parametrize("grid", [(16, 8), (8, 16)])
def test_position_embedding_is_resized_as_released(grid):
    arrays = golden.load("pos_embed")
    resized = resize_position_embedding(arrays["pos_embed_14x14"], (14, 14), grid, "bilinear")
    assert torch.allclose(resized, arrays[f"pos_embed_{grid[0]}x{grid[1]}"], atol=GOLDEN_VALUE)
