import logging

import open_clip
import pytest
import torch

from experiments import recipes
from stmi.incidence import euclidean_incidence
from stmi.model_input import ModelInput
from stmi.released.parameter_names import modality_major
from stmi.released.released_checkpoint import ReleasedCheckpointError, load, read, text_weights, unused_names
from tests.stmi import golden
from tests.stmi.released import released_oracle
from tests.tolerances import EXACT_FLOAT64, GOLDEN_VALUE, ROUNDING_FLOAT32

SIZE = released_oracle.IMAGE_SIZE
ALWAYS = {"U": ("bottleneck_visual", "visual_classifier"), "T": ("bottleneck_t", "classifier_t")}
HEADS = {
    "one head on G": ALWAYS | {"G": ("bottleneck_v", "classifier_v")},
    "a head for each modality": ALWAYS
    | {
        name: (f"bottleneck_v_{name.lower()}", f"classifier_v_{name.lower()}")
        for name in ("RGB", "NIR", "TIR")
    },
}


@pytest.fixture
def kind():
    return "one head on G"


@pytest.fixture
def checkpoint(kind):
    return released_oracle.small_checkpoint(kind=kind)


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(1)
    return ModelInput(
        images=torch.randn(3, 3, 3, *SIZE, generator=random).double(),
        foreground=torch.tensor([0.0, 0.2, 0.5, 1.0, 0.49, 0.9, 0.0, 1.0]).repeat(3, 1).double(),
        text=0.5 * torch.randn(3, 32, generator=random).double(),
        camera_id=torch.tensor([3, 0, 2]),
    )


def oracle(inputs, checkpoint, heads):
    weights = {name: value.double() for name, value in checkpoint.items()}
    expected = released_oracle.features(
        inputs.images, inputs.foreground, inputs.text, inputs.camera_id, weights
    )
    return expected, {name: released_oracle.logits(expected[name], weights, *heads[name]) for name in heads}


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_features_and_logits_are_those_of_the_released_forward_pass(kind, checkpoint, inputs):
    expected, expected_logits = oracle(inputs, checkpoint, HEADS[kind])
    assert 0.2 < expected["density"].mean() < 0.8  # the hypergraph neither empty nor full
    model = load(checkpoint, SIZE).double()
    features = model(inputs)
    assert torch.allclose(features.G, expected["G"], atol=EXACT_FLOAT64)
    released_order = features.U.view(3, 3, 32).transpose(1, 2).flatten(1)
    assert torch.allclose(released_order, expected["U"], atol=EXACT_FLOAT64)
    logits = model.logits(features.retrieval())
    assert set(logits) == set(HEADS[kind])
    for name, value in logits.items():
        assert torch.allclose(value, expected_logits[name], atol=EXACT_FLOAT64), name


@torch.no_grad()
def test_checkpoint_of_data_parallel_training_gives_the_same_model(checkpoint, inputs):
    wrapped = {f"module.{name}": value for name, value in checkpoint.items()}
    assert torch.equal(load(wrapped, SIZE).double()(inputs).U, load(checkpoint, SIZE).double()(inputs).U)
    assert unused_names(wrapped) == [f"module.{name}" for name in unused_names(checkpoint)]
    assert set(text_weights(wrapped)) == set(text_weights(checkpoint))


@pytest.mark.parametrize(
    ("kind", "head", "width", "identities", "cameras"),
    [("one head on G", "G", 1536, 171, 4), ("a head for each modality", "NIR", 512, 50, 8)],
)
def test_every_published_name_is_read_or_text_or_unused(kind, head, width, identities, cameras):
    published = {
        name: torch.empty(shape, device="meta")
        for name, shape in released_oracle.published_shapes(kind).items()
    }
    model = load(published)
    unused, text = set(unused_names(published)), {f"BACKBONE.base.{n}" for n in text_weights(published)}
    assert not unused & text
    read = [value for name, value in published.items() if name not in unused | text]
    assert sum(value.numel() for value in read) == sum(v.numel() for v in model.state_dict().values())
    modules = {name.split(".")[1] if name.startswith("STR_CHI") else name.split(".")[0] for name in unused}
    assert modules == {
        *("inp_block", "inp_self_attn", "cross_attn", "mlp_proj", "proj_q", "proj_k", "proj_v", "proj_out"),
        *("textual_classifier", "bottleneck_textual", "BACKBONE"),
    }
    assert {name for name in unused if name.startswith("BACKBONE")} == {
        "BACKBONE.base.logit_scale",
        "BACKBONE.base.visual.new_positional_embedding",
        *(
            f"BACKBONE.base.transformer.resblocks.{i}.adapter_{x}"
            for i in range(12)
            for x in ("alpha", "beta")
        ),
    }
    assert model.heads["U"].classifier.weight.shape == (identities, 1536)
    assert model.heads[head].classifier.weight.shape == (identities, width)
    assert model.image_tower.camera_embedding.shape == (cameras, 768)
    assert model.image_tower.blocks[0].attn.heads == 12


@pytest.mark.parametrize(
    ("dataset", "size", "kind"),
    [
        ("rgbnt201", (256, 128), "one head on G"),
        ("msvr310", (128, 256), "one head on G"),
        ("rgbnt100", (128, 256), "a head for each modality"),
    ],
)
def test_model_is_the_released_recipes(dataset, size, kind):
    published = released_oracle.published_shapes(kind)
    config = load({name: torch.empty(shape, device="meta") for name, shape in published.items()}, size).config
    recipe = recipes.released(dataset).model
    # p depends on the data set, and has no effect in evaluation.
    same_p = recipe.sfm.model_copy(update={"perturbation": config.sfm.perturbation})
    assert config == recipe.model_copy(update={"sfm": same_p})


def test_sizes_follow_from_the_shapes(checkpoint):
    for name in ("rgb", "nir", "tir"):
        checkpoint[f"STR_CHI.inp_tokens_{name}"] = torch.randn(1, 6, 32)
    checkpoint["BACKBONE.cv_embed"] = torch.randn(8, 1, 128)
    model = load(checkpoint, SIZE)
    assert model.config.str.tokens == 6
    assert model.image_tower.camera_embedding.shape == (8, 128)
    assert [head.classifier.out_features for head in model.heads.values()] == [5, 5, 5]
    assert len(model.image_tower.blocks) == 2
    assert not model.training


@torch.no_grad()
def test_path_from_patch_tokens_to_u_gives_the_values_measured_on_the_released_modules(checkpoint):
    arrays = golden.load("str_chi_fusion_whole")
    measured = golden.weights(arrays, leave_out="no name has this")
    model = load(checkpoint | {f"STR_CHI.{name}": value for name, value in measured.items()}, SIZE)
    class_tokens, text = arrays["globals"][:, :3], arrays["globals"][:, 3]
    nodes = torch.cat(
        [model.reallocation[name](arrays[f"patches_{name.lower()}"], text) for name in ("RGB", "NIR", "TIR")],
        dim=1,
    )
    assert torch.allclose(nodes, arrays["nodes"], atol=GOLDEN_VALUE)
    mixed = model.interaction(nodes, euclidean_incidence(nodes, 6.0))
    assert torch.allclose(mixed, arrays["mixed"], atol=GOLDEN_VALUE)
    fused = model.fusion(class_tokens, mixed).flatten(1)
    assert torch.allclose(fused, arrays["u"][:, modality_major(32)], atol=GOLDEN_VALUE)


@torch.no_grad()
def test_text_weights_encode_captions_as_their_tower_does(checkpoint):
    text = {"context_length": 77, "vocab_size": 60, "width": 64, "heads": 1, "layers": 2}
    vision = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 16}
    source, copy = (open_clip.CLIP(32, vision, text, quick_gelu=True).eval() for _ in range(2))
    for name, value in source.state_dict().items():
        if not name.startswith("visual."):
            checkpoint[f"BACKBONE.base.{name}"] = value
    load(checkpoint, SIZE)
    missing, unknown = copy.load_state_dict(text_weights(checkpoint), strict=False)
    assert not unknown
    assert {name.split(".")[0] for name in missing} == {"visual", "logit_scale"}
    tokens = torch.randint(1, 59, (2, 77))
    assert torch.allclose(copy.encode_text(tokens), source.encode_text(tokens), atol=ROUNDING_FLOAT32)


def test_weights_that_do_not_fit_are_all_named(checkpoint):
    for name in ("STR_CHI.proj_q_cross.bias", "BACKBONE.base.visual.transformer.resblocks.1.adapter_beta"):
        del checkpoint[name]
    del checkpoint["BACKBONE.base.ln_final.weight"]
    checkpoint["STR_CHI.gate.weight"] = torch.zeros(3)
    checkpoint["classifier_v.weight"] = torch.zeros(5, 95)
    with pytest.raises(ReleasedCheckpointError) as error:
        load(checkpoint, SIZE)
    for part in (
        "5 weights do not fit",
        "missing STR_CHI.proj_q_cross.bias",
        "missing BACKBONE.base.visual.transformer.resblocks.1.adapter_beta",
        "missing BACKBONE.base.ln_final.weight",
        "unknown STR_CHI.gate.weight",
        "classifier_v.weight is (5, 95), expected (5, 96)",
    ):
        assert part in str(error.value)


def test_checkpoint_with_other_heads_is_refused_with_their_names(checkpoint):
    renamed = {name.replace("_v.", "_r."): value for name, value in checkpoint.items()}
    with pytest.raises(
        ReleasedCheckpointError, match=r"missing bottleneck_v\.weight.*unknown bottleneck_r\."
    ):
        load(renamed, SIZE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"BACKBONE.cv_embed": None}, r"missing BACKBONE\.cv_embed \(cameras, 1, width\)"),
        (
            {"BACKBONE.cv_embed": torch.zeros(4, 128)},
            r"cv_embed is \(4, 128\), expected \(cameras, 1, width\)",
        ),
        ({"classifier_t.weight": torch.zeros(0, 32)}, r"classifier_t\.weight is \(0, 32\), expected"),
        (
            {"BACKBONE.base.visual.conv1.weight": torch.zeros(100, 3, 16, 16)},
            "width 100, expected a multiple of 64",
        ),
        ({"STR_CHI.inp_tokens_rgb": torch.zeros(1, 40, 32)}, "its sizes make no model"),
        ({"state_dict": {}}, "state_dict is a dict, expected a tensor"),
    ],
)
def test_checkpoint_whose_sizes_cannot_be_read_is_refused(checkpoint, change, message):
    changed = {name: value for name, value in (checkpoint | change).items() if value is not None}
    with pytest.raises(ReleasedCheckpointError, match=message):
        load(changed, SIZE)


def test_empty_checkpoint_is_refused():
    with pytest.raises(ReleasedCheckpointError, match="10 weights do not fit: missing"):
        load({})


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(1), {0: torch.zeros(1)}])
def test_content_that_is_not_a_state_dict_is_refused(content):
    with pytest.raises(ReleasedCheckpointError, match="expected a state dict, names to tensors"):
        load(content)


def test_image_size_that_the_position_embedding_does_not_fit_is_refused(checkpoint):
    with pytest.raises(
        ReleasedCheckpointError, match=r"has 9 rows, but image_size=\(256, 128\) makes 16 x 8"
    ):
        load(checkpoint)
    with pytest.raises(ReleasedCheckpointError, match="60x32 is not a whole number of 16x16 patches"):
        load(checkpoint, (60, 32))


def test_unused_weights_are_logged(checkpoint, caplog):
    with caplog.at_level(logging.INFO, logger="stmi"):
        load(checkpoint, SIZE)
    assert all(name in caplog.text for name in unused_names(checkpoint))
    assert len(unused_names(checkpoint)) == 66


def test_model_owns_its_weights(checkpoint):
    model = load(checkpoint, SIZE)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for value in checkpoint.values():
        value.zero_()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad != name.endswith("norm.bias") for name, p in model.heads.named_parameters())


@pytest.mark.parametrize(("content", "reason"), [(b"", "it ends too early"), (b"hi", ""), (b"\x80", "")])
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content, reason):
    path = tmp_path / "released.pth"
    path.write_bytes(content)
    with pytest.raises(ReleasedCheckpointError, match=rf"not a file of weights alone \(.*{reason}"):
        read(path)
