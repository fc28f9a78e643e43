import pytest
import torch

from stmi.config import ChiConfig, ImageSize, ModelConfig, SfmConfig, StrConfig
from stmi.model import FEATURES, STMI, ModelInput
from tests.tolerances import ROUNDING_FLOAT32

SIZE = ImageSize(height=32, width=16)
SMALL_STR = StrConfig(tokens=2, heads=2)


def build(clip, seed=0, **sections) -> STMI:
    return STMI(ModelConfig(image=SIZE, **({"str": SMALL_STR} | sections)), clip, 5, 4, seed).eval()


def batch(count=3) -> ModelInput:
    random = torch.Generator().manual_seed(0)
    return ModelInput(
        torch.randn(count, 3, 3, 32, 16, generator=random),
        torch.rand(count, 8, generator=random).round(),
        torch.randn(count, 16, generator=random),
        torch.arange(count),
    )


def test_features_have_the_shapes_of_the_paper(clip):
    features = build(clip)(batch()).retrieval()
    assert tuple(features) == FEATURES
    widths = {name: tuple(value.shape) for name, value in features.items()}
    assert widths == {"U": (3, 48), "G": (3, 48), **dict.fromkeys(("T", "RGB", "NIR", "TIR"), (3, 16))}


def test_g_is_the_class_tokens_side_by_side(clip):
    features = build(clip)(batch()).retrieval()
    assert torch.equal(features["G"], torch.cat([features[m] for m in ("RGB", "NIR", "TIR")], dim=1))


def test_baseline_without_the_three_modules_is_the_pretrained_tower(clip):
    off = {"sfm": SfmConfig(enabled=False), "str": StrConfig(enabled=False), "chi": ChiConfig(enabled=False)}
    model, inputs = build(clip, **off), batch()
    features = model(inputs).retrieval()
    assert torch.equal(features["U"], features["G"])
    assert set(model.heads) == {"G", "T"}
    expected = clip.model.encode_image(inputs.images[:, 1])
    assert torch.allclose(features["NIR"], expected, atol=ROUNDING_FLOAT32)


@pytest.mark.parametrize("off", ["sfm", "str", "chi"])
def test_each_module_can_be_switched_off_and_changes_the_result(clip, off):
    kinds = {"sfm": SfmConfig, "str": StrConfig, "chi": ChiConfig}
    reduced = build(clip, **{off: kinds[off](enabled=False)})(batch()).U
    assert reduced.shape == (3, 48)
    assert not torch.allclose(reduced, build(clip)(batch()).U, atol=1e-4)


def test_a_sample_does_not_see_the_others_in_its_batch(clip):
    model, inputs = build(clip), batch()
    alone = ModelInput(*(getattr(inputs, name)[1:2] for name in inputs.__dataclass_fields__))
    assert torch.allclose(model(alone).U, model(inputs).U[1:2], atol=ROUNDING_FLOAT32)


def test_initial_weights_are_a_function_of_the_seed_and_not_of_other_modules(clip):
    first, again, other = build(clip), build(clip), build(clip, seed=1)
    without_sfm = build(clip, sfm=SfmConfig(enabled=False))
    for name, value in first.fusion.state_dict().items():
        assert torch.equal(value, again.fusion.state_dict()[name])
        assert torch.equal(value, without_sfm.fusion.state_dict()[name])
    assert not torch.equal(first.fusion.query.weight, other.fusion.query.weight)


def test_noise_of_a_row_does_not_depend_on_the_rows_asked_for(clip):
    model = build(clip)
    whole = model.noise(0, 1, 2, 8, slice(0, 8)).perturbation
    part = model.noise(0, 1, 2, 8, slice(4, 8)).perturbation
    assert whole.shape == (1, 8, 1, 8)
    assert torch.equal(whole[:, 4:], part)


def test_perturbation_can_be_drawn_anew_in_every_layer_and_modality(clip):
    model = build(clip, sfm=SfmConfig(perturbation=0.5, perturbation_draw="layer_and_modality"))
    noise = model.noise(0, 0, 0, 3, slice(0, 3))
    assert noise.perturbation.shape == (2, 3, 3, 8)
    assert not torch.allclose(model(batch(), noise).U, model(batch()).U, atol=1e-4)


def test_certain_perturbation_equals_an_all_foreground_mask(clip):
    model = build(clip, sfm=SfmConfig(perturbation=1.0))
    inputs = batch()
    full = ModelInput(inputs.images, torch.ones_like(inputs.foreground), inputs.text, inputs.camera_id)
    noisy = model(inputs, model.noise(0, 0, 0, 3, slice(0, 3)))
    assert torch.allclose(noisy.U, model(full).U, atol=ROUNDING_FLOAT32)


def test_image_that_is_not_whole_patches_is_refused(clip):
    with pytest.raises(ValueError, match=r"model\.image=30x16 is not a whole number of 8x8 patches"):
        STMI(ModelConfig(image=ImageSize(height=30, width=16)), clip, 5, 4, 0)
