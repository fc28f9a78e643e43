import dataclasses

import pytest
import torch

from stmi.config import (
    ChiConfig,
    FusionConfig,
    ImageSize,
    ModelConfig,
    SfmConfig,
    StrConfig,
    TextConfig,
)
from stmi.modality import Modality
from stmi.model import FEATURES, STMI, IdentityHead
from stmi.model_input import ModelInput
from tests.stmi.gradients import gradients_agree
from tests.tolerances import ROUNDING_FLOAT32

SIZE = ImageSize(height=32, width=16)
SMALL_STR = StrConfig(tokens=2, heads=2)


def build(clip, seed=0, **sections) -> STMI:
    config = ModelConfig(**({"image": SIZE, "str": SMALL_STR} | sections))
    return STMI(config, clip, 5, 4, seed).eval()


def batch(count=3, size=SIZE) -> ModelInput:
    random = torch.Generator().manual_seed(0)
    return ModelInput(
        torch.randn(count, 3, 3, size.height, size.width, generator=random),
        torch.rand(count, size.height * size.width // 64, generator=random).round(),
        torch.randn(count, 16, generator=random),
        torch.arange(count),
    )


def test_features_have_the_shapes_of_the_paper(clip):
    features = build(clip)(batch()).retrieval()
    assert tuple(features) == FEATURES
    widths = {name: tuple(value.shape) for name, value in features.items()}
    single = dict.fromkeys(("T", "RGB", "NIR", "TIR"), (3, 16))
    assert widths == {"U": (3, 48), "G": (3, 48), "GTTT": (3, 96), **single}


def test_g_is_the_concatenated_class_tokens(clip):
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
    alone = ModelInput(inputs.images[1:2], inputs.foreground[1:2], inputs.text[1:2], inputs.camera_id[1:2])
    assert torch.allclose(model(alone).U, model(inputs).U[1:2], atol=ROUNDING_FLOAT32)


def test_initial_weights_are_a_function_of_the_seed_and_not_of_other_modules(clip):
    first, again, other = build(clip), build(clip), build(clip, seed=1)
    without_sfm = build(clip, sfm=SfmConfig(enabled=False))
    for name, value in first.fusion.state_dict().items():
        assert torch.equal(value, again.fusion.state_dict()[name])
        assert torch.equal(value, without_sfm.fusion.state_dict()[name])
    assert not torch.equal(first.fusion.query.weight, other.fusion.query.weight)


def test_random_draws_of_a_row_do_not_depend_on_the_wanted_rows(clip):
    model = build(clip)
    whole = model.random_draws(0, 1, 2, 8, slice(0, 8)).perturbation
    part = model.random_draws(0, 1, 2, 8, slice(4, 8)).perturbation
    assert whole.shape == (1, 8, 1, 8)
    assert torch.equal(whole[:, 4:], part)


def test_perturbation_can_differ_in_every_layer_and_modality(clip):
    model = build(clip, sfm=SfmConfig(perturbation=0.5, perturbation_draw="layer_and_modality"))
    draws = model.random_draws(0, 0, 0, 3, slice(0, 3))
    assert draws.perturbation.shape == (2, 3, 3, 8)
    assert not torch.allclose(model(batch(), draws).U, model(batch()).U, atol=1e-4)


def test_certain_perturbation_equals_an_all_foreground_mask(clip):
    model = build(clip, sfm=SfmConfig(perturbation=1.0))
    inputs = batch()
    full = ModelInput(inputs.images, torch.ones_like(inputs.foreground), inputs.text, inputs.camera_id)
    noisy = model(inputs, model.random_draws(0, 0, 0, 3, slice(0, 3)))
    assert torch.allclose(noisy.U, model(full).U, atol=ROUNDING_FLOAT32)


def record_masks(model, inputs) -> torch.Tensor:
    """Boolean `(layers, batch, modalities, patches)`, as the image tower sees them in a training step."""
    seen = []
    model.image_tower.register_forward_pre_hook(lambda tower, arguments: seen.append(arguments[1]))
    model(inputs, model.random_draws(0, 0, 0, 3, slice(0, 3)))
    return seen[0].expand(2, -1, -1).unflatten(1, (3, 3))


@pytest.mark.parametrize("draw", ["sample", "layer_and_modality"])
@pytest.mark.parametrize(
    ("perturbation", "certain"),
    [
        ((0, 1), {("RGB", 1), ("NIR", 1), ("TIR", 1)}),
        ({"RGB": 0, "NIR": 1, "TIR": 0}, {("NIR", 0), ("NIR", 1)}),
        ({"RGB": (1, 0), "NIR": 0, "TIR": (0, 1)}, {("RGB", 0), ("TIR", 1)}),
    ],
    ids=["layer", "modality", "layer and modality"],
)
def test_perturbation_of_each_layer_and_modality_is_its_own(clip, draw, perturbation, certain):
    inputs = batch()
    masks = record_masks(
        build(clip, sfm=SfmConfig(perturbation=perturbation, perturbation_draw=draw)), inputs
    )
    for layer in range(2):
        for column, modality in enumerate(Modality):
            expected = torch.ones(3, 8) if (modality, layer) in certain else inputs.foreground
            assert torch.equal(masks[layer, :, column], expected > 0)


def test_layers_with_the_same_random_numbers_have_nested_masks(clip):
    few, many = record_masks(build(clip, sfm=SfmConfig(perturbation=(0.2, 0.7))), batch())
    assert few.sum() < many.sum()
    assert not (few & ~many).any()


def test_list_of_p_that_does_not_fit_the_layers_is_refused(clip):
    with pytest.raises(ValueError, match=r"model\.sfm\.perturbation has a list of 3 numbers, expected 2"):
        build(clip, sfm=SfmConfig(perturbation={"RGB": 0.1, "NIR": (0.1, 0.2, 0.3), "TIR": 0}))


def test_gttt_is_the_class_tokens_and_three_times_the_text(clip):
    features = build(clip)(batch()).retrieval()
    parts = [features[name] for name in ("RGB", "NIR", "TIR", "T", "T", "T")]
    assert torch.equal(features["GTTT"], torch.cat(parts, dim=1))


def test_class_tokens_can_be_concatenated_where_chi_is_off(clip):
    sections = {"chi": ChiConfig(enabled=False), "fusion": FusionConfig(without_chi="concatenation")}
    model = build(clip, **sections)
    features = model(batch()).retrieval()
    assert torch.equal(features["U"], features["G"])
    assert set(model.heads) == {"G", "T"}
    assert not model.reallocation
    fused = build(clip, fusion=FusionConfig(without_chi="concatenation"))
    assert torch.equal(fused(batch()).U, build(clip)(batch()).U)


def test_nodes_are_the_semantic_tokens_of_the_modalities_in_order(clip):
    model, inputs, seen = build(clip), batch(), {}
    for name, module in (*model.reallocation.items(), ("CHI", model.interaction)):
        module.register_forward_hook(
            lambda _, arguments, output, name=name: seen.update({name: (arguments[0], output)})
        )
    model(inputs)
    semantic_tokens = [seen[name][1] for name in ("RGB", "NIR", "TIR")]
    assert torch.equal(seen["CHI"][0], torch.cat(semantic_tokens, dim=1))


@pytest.mark.parametrize("missing", [("RGB",), ("NIR", "TIR")])
def test_missing_modalities_are_zeros_and_the_others_stay(clip, missing):
    model, inputs = build(clip), batch()
    features = model(inputs).retrieval()
    without = model(inputs.without({Modality(name) for name in missing})).retrieval()
    zeros = model(dataclasses.replace(inputs, images=torch.zeros_like(inputs.images))).retrieval()
    for name in ("RGB", "NIR", "TIR"):
        expected = zeros if name in missing else features
        assert torch.allclose(without[name], expected[name], atol=ROUNDING_FLOAT32)


def test_density_is_the_share_of_pairs_that_meet_in_a_hyperedge(clip):
    everything = build(clip, chi=ChiConfig(similarity_threshold=-1))(batch())
    assert torch.equal(everything.hypergraph.facts.density, torch.ones(3))
    alone = build(clip, chi=ChiConfig(similarity_threshold=1))(batch())
    assert torch.allclose(alone.hypergraph.facts.density, torch.full((3,), 1 / 9))
    assert build(clip, chi=ChiConfig(mixer="mlp"))(batch()).hypergraph is None


def test_trained_text_tower_starts_as_the_frozen_one_and_gets_gradients(clip):
    captions = clip.tokenize(["a man in a red coat", "a woman", ""])
    model = build(clip, text=TextConfig(fine_tune=True))
    with pytest.raises(ValueError, match="the batch has no captions"):
        model(batch())
    features = model(dataclasses.replace(batch(), caption=captions))
    assert torch.allclose(features.T, clip.encode_text(captions), atol=ROUNDING_FLOAT32)
    features.T.square().sum().backward()
    weights = [p for name, p in model.named_parameters() if name.startswith("text_tower")]
    assert weights
    assert all(p.grad is not None for p in weights)
    assert not any(p.requires_grad for p in clip.model.parameters())


NO_TEXT = {"text": TextConfig(enabled=False)}


def test_without_text_there_is_neither_t_nor_gttt(clip):
    model, features = build(clip, **NO_TEXT), build(clip, **NO_TEXT)(batch())
    assert features.T is None
    assert list(features.retrieval()) == [name for name in FEATURES if name not in ("T", "GTTT")]
    assert features.U.shape == (3, 48)
    assert set(model.heads) == {"U", "G"}
    assert set(build(clip, str=StrConfig(enabled=False), chi=ChiConfig(enabled=False), **NO_TEXT).heads) == {
        "G"
    }


@pytest.mark.parametrize("sections", [{}, {"str": StrConfig(enabled=False)}], ids=["queries", "patches"])
def test_without_text_the_nodes_are_those_of_the_images(clip, sections):
    model, usual = build(clip, **sections, **NO_TEXT), build(clip, **sections)
    image_nodes = 3 * (8 if sections else SMALL_STR.tokens)
    assert (model.nodes, usual.nodes) == (image_nodes, image_nodes + (1 if sections else 3))
    assert len(model.interaction.node_bias) == image_nodes


@pytest.mark.parametrize("sections", [{}, {"str": StrConfig(enabled=False)}], ids=["queries", "patches"])
def test_without_text_a_caption_has_no_influence(clip, sections):
    other = dataclasses.replace(batch(), text=batch().text + 1)
    model, usual = build(clip, **sections, **NO_TEXT), build(clip, **sections)
    assert torch.equal(model(other).U, model(batch()).U)
    assert not torch.allclose(usual(other).U, usual(batch()).U, atol=1e-4)


def test_without_text_gradients_reach_every_weight_before_the_heads(clip):
    model = build(clip, **NO_TEXT)
    model(batch()).U.square().sum().backward()
    missed = [name for name, p in model.named_parameters() if p.grad is None]
    assert {name.split(".")[0] for name in missed} == {"heads"}


def test_head_without_a_neck_classifies_the_feature_itself(clip):
    model = build(clip, neck="none")
    features = model(batch()).retrieval()
    for name, logits in model.logits(features).items():
        assert torch.equal(logits, features[name] @ model.heads[name].classifier.weight.T)
    assert not any(name.startswith("heads") and "norm" in name for name in model.state_dict())


def test_head_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    head = IdentityHead(4, 3).train()
    feature = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert gradients_agree(head, feature)


class Heads(torch.nn.Module):
    """Every retrieval feature and every head's logits of a model, from its inputs one by one."""

    def __init__(self, model: STMI) -> None:
        super().__init__()
        self.model = model

    def forward(self, images, foreground, text, camera_id, caption=None):
        features = self.model(ModelInput(images, foreground, text, camera_id, caption)).retrieval()
        return *features.values(), *self.model.logits(features).values()


RELEASED = {
    "sfm": SfmConfig(perturbation=0.5, perturbation_draw="layer_and_modality", mask_threshold=0.5),
    "chi": ChiConfig(convolution="released", incidence="euclidean", activation="silu"),
    "fusion": FusionConfig(dropout=0.1),
    "camera_embedding": True,
}


TRAINED_TEXT = {"text": TextConfig(fine_tune=True)}


@pytest.mark.parametrize("sections", [{}, RELEASED, TRAINED_TEXT], ids=["paper", "released", "trained text"])
def test_gradients_of_the_whole_model_agree_with_finite_differences(clip, sections):
    torch.manual_seed(0)
    model, inputs = build(clip, **sections).train(), batch()
    images, text = (x.double().requires_grad_() for x in (inputs.images, inputs.text))
    given = [images, inputs.foreground, text, inputs.camera_id]
    if sections is TRAINED_TEXT:
        given += [clip.tokenize(["a man in a red jacket", "a woman", "a man"])]
    assert gradients_agree(Heads(model), *given, fast=True)


# The attention is compiled as expressions up to 256 tokens, and beyond as an operator.
FEW, MANY = SIZE, ImageSize(height=128, width=128)
PAPER = {"sfm": SfmConfig(perturbation=0.5)}


@pytest.mark.parametrize(
    ("sections", "size", "autocast"),
    [
        pytest.param(PAPER, FEW, False, id="paper, 9 tokens, float32"),
        pytest.param(PAPER, FEW, True, id="paper, 9 tokens, bfloat16"),
        pytest.param(PAPER, MANY, False, id="paper, 257 tokens, float32"),
        pytest.param(PAPER, MANY, True, id="paper, 257 tokens, bfloat16"),
        pytest.param(RELEASED, FEW, False, id="released, 9 tokens, float32"),
        pytest.param(RELEASED, MANY, True, id="released, 257 tokens, bfloat16"),
        pytest.param(TRAINED_TEXT, FEW, True, id="trained text, 9 tokens, bfloat16"),
        pytest.param(TRAINED_TEXT, MANY, False, id="trained text, 257 tokens, float32"),
    ],
)
def test_training_step_compiles_whole_and_once_with_the_same_gradients(clip, sections, size, autocast):
    captions = clip.tokenize(["a man in a red jacket", "a woman", "a man"])

    def run(model: STMI, step: int) -> torch.Tensor:
        inputs = dataclasses.replace(batch(size=size), caption=captions)
        inputs = dataclasses.replace(inputs, images=inputs.images + step)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(inputs, model.random_draws(0, 0, step, 3, slice(0, 3))).U

    model = build(clip, image=size, **sections).train()
    torch.compiler.reset()
    model.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    for step in range(3):
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            compiled = run(model, step)
        model.zero_grad()
        compiled.square().mean().backward()
    other = build(clip, image=size, **sections).train()
    eager = run(other, 2)
    eager.square().mean().backward()
    if not autocast:
        assert torch.allclose(compiled, eager, atol=ROUNDING_FLOAT32)
    assert (compiled - eager).norm() < 0.02 * eager.norm()
    tolerance = 0.1 if autocast else 1e-3
    expected = {name: x.grad for name, x in other.named_parameters() if x.grad is not None}
    gradients = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    assert gradients.keys() == expected.keys()
    # The bias of a key does not change a softmax: its gradient is rounding alone.
    for name in gradients.keys() - {"fusion.key.bias"}:
        assert (gradients[name] - expected[name]).norm() <= tolerance * expected[name].norm(), name


def test_image_that_is_not_whole_patches_is_refused(clip):
    with pytest.raises(ValueError, match=r"model\.image=30x16 is not a whole number of 8x8 patches"):
        STMI(ModelConfig(image=ImageSize(height=30, width=16)), clip, 5, 4, 0)
