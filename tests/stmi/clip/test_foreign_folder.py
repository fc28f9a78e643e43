"""Converted folders give the features that Hugging Face's architecture has by its own names."""

import gzip
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from stmi.clip.foreign_folder import convert_folder
from stmi.clip.loading import load_clip
from stmi.clip.towers import ImageTower
from stmi.config import ClipConfig, SfmConfig
from stmi.errors import ClipFileError
from tests.tolerances import ROUNDING_FLOAT32

TINY = Path(__file__).parents[2] / "golden" / "tiny_clip"
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
VISION = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
WIDTH, CONTEXT, PATCH, SIZE = 16, 12, 8, 16


def tower_shapes(name, config):
    """Shapes of a tower's layers by the names of `CLIPModel`."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    for layer in range(config["num_hidden_layers"]):
        start = f"{name}.encoder.layers.{layer}."
        for part in ("q", "k", "v", "out"):
            yield f"{start}self_attn.{part}_proj.weight", (width, width)
            yield f"{start}self_attn.{part}_proj.bias", (width,)
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{start}{norm}.weight", (width,)
            yield f"{start}{norm}.bias", (width,)
        yield f"{start}mlp.fc1.weight", (hidden, width)
        yield f"{start}mlp.fc1.bias", (hidden,)
        yield f"{start}mlp.fc2.weight", (width, hidden)
        yield f"{start}mlp.fc2.bias", (width,)


def merges():
    return gzip.decompress((TINY / "bpe_merges.txt.gz").read_bytes())


def vocabulary():
    return 512 + len(merges().split(b"\n")) - 1 + 2


def random_weights():
    text, vision = TEXT["hidden_size"], VISION["hidden_size"]
    shapes = {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (vocabulary(), text),
        "text_model.embeddings.position_embedding.weight": (CONTEXT, text),
        "text_model.final_layer_norm.weight": (text,),
        "text_model.final_layer_norm.bias": (text,),
        "text_projection.weight": (WIDTH, text),
        "vision_model.embeddings.class_embedding": (vision,),
        "vision_model.embeddings.patch_embedding.weight": (vision, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": ((SIZE // PATCH) ** 2 + 1, vision),
        "vision_model.pre_layrnorm.weight": (vision,),
        "vision_model.pre_layrnorm.bias": (vision,),
        "vision_model.post_layernorm.weight": (vision,),
        "vision_model.post_layernorm.bias": (vision,),
        "visual_projection.weight": (WIDTH, vision),
        **dict(tower_shapes("text_model", TEXT)),
        **dict(tower_shapes("vision_model", VISION)),
    }
    random = torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    towers = ("text_model", "vision_model")
    return weights | {f"{tower}.embeddings.position_ids": torch.arange(CONTEXT)[None] for tower in towers}


def write_folder(folder, weights=None, file="model.safetensors", **changes):
    """A folder as `CLIPModel.save_pretrained` writes it."""
    folder.mkdir()
    config = {
        "model_type": "clip",
        "projection_dim": WIDTH,
        "text_config": TEXT | {"max_position_embeddings": CONTEXT, "vocab_size": vocabulary()},
        "vision_config": VISION | {"image_size": SIZE, "patch_size": PATCH},
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "merges.txt").write_bytes(merges() + b"\n")
    weights = random_weights() if weights is None else weights
    if file.endswith(".safetensors"):
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / file)
    else:
        torch.save(weights, folder / file)
    return folder


def encode(x, weights, name, config, causal):
    """The layers of a tower as the documentation of `CLIPModel` has them; `(batch, tokens, width)`."""
    heads, width = config["num_attention_heads"], config["hidden_size"]

    def linear(x, part):
        return functional.linear(x, weights[f"{part}.weight"], weights[f"{part}.bias"])

    def norm(x, part):
        return functional.layer_norm(x, (width,), weights[f"{part}.weight"], weights[f"{part}.bias"])

    for layer in range(config["num_hidden_layers"]):
        start = f"{name}.encoder.layers.{layer}"
        normed = norm(x, f"{start}.layer_norm1")
        query, key, value = (
            linear(normed, f"{start}.self_attn.{part}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("q", "k", "v")
        )
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        x = x + linear(attended.transpose(1, 2).flatten(2), f"{start}.self_attn.out_proj")
        hidden = linear(norm(x, f"{start}.layer_norm2"), f"{start}.mlp.fc1")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{start}.mlp.fc2")
    return x, norm


def text_features(weights, tokens):
    x = weights["text_model.embeddings.token_embedding.weight"][tokens]
    x = x + weights["text_model.embeddings.position_embedding.weight"]
    x, norm = encode(x, weights, "text_model", TEXT, causal=True)
    x = norm(x, "text_model.final_layer_norm")
    ends = x[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    return functional.linear(ends, weights["text_projection.weight"])


def image_features(weights, images):
    patches = functional.conv2d(
        images, weights["vision_model.embeddings.patch_embedding.weight"], stride=PATCH
    )
    first = weights["vision_model.embeddings.class_embedding"].expand(len(images), 1, -1)
    x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + weights["vision_model.embeddings.position_embedding.weight"]
    width = (VISION["hidden_size"],)
    before = (weights[f"vision_model.pre_layrnorm.{kind}"] for kind in ("weight", "bias"))
    x, norm = encode(functional.layer_norm(x, width, *before), weights, "vision_model", VISION, causal=False)
    return functional.linear(
        norm(x[:, 0], "vision_model.post_layernorm"), weights["visual_projection.weight"]
    )


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@torch.no_grad()
def test_converted_hugging_face_folder_gives_the_features_of_its_own_forward_pass(tmp_path, file):
    weights = random_weights()
    result = convert_folder(write_folder(tmp_path / "theirs", weights, file), tmp_path / "clips" / "ours")
    clip = load_clip(tmp_path / "clips" / "ours")
    tokens = clip.tokenize(["a man in a red jacket", "a van", ""])
    assert tokens.shape == (3, CONTEXT)
    assert torch.allclose(clip.encode_text(tokens), text_features(weights, tokens), atol=ROUNDING_FLOAT32)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    tower = ImageTower(clip, ClipConfig(), (2, 2), SfmConfig(enabled=False))
    found = tower(images)[:, 0]
    assert torch.allclose(found, image_features(weights, images), atol=ROUNDING_FLOAT32)
    assert result["digest"] == clip.digest
    assert result["model_cfg"]["quick_gelu"]
    counted = sum(value.numel() for name, value in weights.items() if not name.endswith("position_ids"))
    assert result["parameters"] == counted


@pytest.mark.parametrize("file", ["open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"])
def test_converted_open_clip_folder_has_the_same_weights(tmp_path, file):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    weights = load_file(TINY / "open_clip_model.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, theirs / file)
    shutil.copy(TINY / "open_clip_config.json", theirs)
    shutil.copy(TINY / "bpe_merges.txt.gz", theirs)
    convert_folder(theirs, tmp_path / "ours")
    assert load_clip(tmp_path / "ours").digest == load_clip(TINY).digest


def test_default_sizes_of_a_config_are_those_of_hugging_face(tmp_path):
    folder = write_folder(tmp_path / "theirs", text_config={}, vision_config={}, projection_dim=512)
    with pytest.raises(
        ClipFileError, match=r"token_embedding.weight is \(\d+, 24\), expected \(49408, 512\)"
    ):
        convert_folder(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


class Hostile:
    def __reduce__(self):
        return pytest.fail, ("executed",)


def without(*names):
    return {name: value for name, value in random_weights().items() if name not in names}


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        (None, {"model_type": "siglip"}, "model_type is 'siglip', expected 'clip'"),
        (
            None,
            {"vision_config": VISION | {"hidden_act": "gelu"}},
            r"text_config\.hidden_act is 'quick_gelu'",
        ),
        (None, {"text_config": TEXT | {"layer_norm_eps": 1e-6}}, r"text_config\.layer_norm_eps is 1e-06"),
        (None, {"text_config": TEXT | {"hidden_size": "wide"}}, "a size is no number"),
        (
            None,
            {"text_config": TEXT | {"vocab_size": 600}},
            "merges, which make .* tokens; the config says 600",
        ),
        (without("logit_scale"), {}, "missing logit_scale"),
        (
            without("text_model.encoder.layers.1.self_attn.k_proj.bias"),
            {},
            "in_proj_bias lacks the projections k",
        ),
        (random_weights() | {"text_model.adapter": torch.zeros(2)}, {}, "unknown weight text_model.adapter"),
        (
            random_weights() | {"visual_projection.weight": torch.zeros(3, 32)},
            {},
            r"visual.proj is \(32, 3\)",
        ),
    ],
)
def test_folder_that_is_no_plain_clip_is_refused(tmp_path, weights, changes, message):
    folder = write_folder(tmp_path / "theirs", weights, **changes)
    with pytest.raises(ClipFileError, match=message):
        convert_folder(folder, tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has neither open_clip_config.json"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("123"), "is a int; expected a JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no file of weights; expected one of"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "cannot be read as weights"),
        (
            lambda folder: (folder / "merges.txt").unlink(),
            r"merges.txt is missing: a vocabulary of \d+ tokens",
        ),
        (lambda folder: (folder / "open_clip_config.json").write_text("{}"), "has no file of weights"),
    ],
)
def test_damaged_folder_is_refused(tmp_path, change, message):
    folder = write_folder(tmp_path / "theirs")
    change(folder)
    with pytest.raises(ClipFileError, match=message):
        convert_folder(folder, tmp_path / "ours")


def test_pickled_object_in_the_weights_is_refused_and_not_executed(tmp_path):
    folder = write_folder(tmp_path / "theirs")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"logit_scale": Hostile()}))
    with pytest.raises(ClipFileError, match="cannot be read as weights"):
        convert_folder(folder, tmp_path / "ours")


def test_existing_folder_is_kept(tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(ClipFileError, match="exists; name another folder"):
        convert_folder(write_folder(tmp_path / "theirs"), tmp_path / "ours")
