import hashlib
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from stmi.clip import clip_files, openai_archive
from stmi.clip.loading import load_clip
from stmi.clip.openai_archive import convert, model_config, published_digests
from stmi.clip.towers import ImageTower
from stmi.clip.weights import misfits
from stmi.config import ClipConfig, SfmConfig
from stmi.errors import ClipFileError
from tests.stmi.clip import torchscript
from tests.tolerances import ROUNDING_FLOAT32


@pytest.fixture(scope="module")
def model():
    return torchscript.tiny_clip()


@torch.no_grad()
def test_converted_archive_gives_the_features_of_the_original(model, tmp_path):
    digest = torchscript.archive(tmp_path / "tiny.pt", model)
    result = convert(tmp_path / "tiny.pt", tmp_path / "clips" / "tiny", digest)
    loaded = load_clip(tmp_path / "clips" / "tiny")
    texts = ["a man in a red jacket", "a white van"]
    tokens = open_clip.get_tokenizer("ViT-B-16")(texts)
    assert torch.equal(loaded.tokenize(texts), tokens)
    assert torch.allclose(loaded.encode_text(tokens), model.encode_text(tokens), atol=ROUNDING_FLOAT32)
    images = torch.randn(2, 3, 32, 32)
    tower = ImageTower(loaded, ClipConfig(), (2, 2), SfmConfig(enabled=False))
    assert torch.allclose(tower(images)[:, 0], model.encode_image(images), atol=ROUNDING_FLOAT32)
    assert result["digest"] == loaded.digest
    assert result["archive_sha256"] == digest
    assert result["published_as"] is None
    assert result["parameters"] == sum(value.numel() for value in model.state_dict().values())


def test_converted_weights_are_float32_and_nothing_but_weights(model, tmp_path):
    digest = torchscript.archive(tmp_path / "tiny.pt", model)
    convert(tmp_path / "tiny.pt", tmp_path / "tiny", digest.upper())
    weights = load_file(tmp_path / "tiny" / clip_files.WEIGHTS_FILE)
    assert set(weights) == set(model.state_dict())
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert len({path.stat().st_mode for path in (tmp_path / "tiny").iterdir()}) == 1


def test_another_digest_is_refused_before_the_file_is_read(model, tmp_path, monkeypatch):
    digest = torchscript.archive(tmp_path / "tiny.pt", model)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
    with pytest.raises(
        ClipFileError, match=rf"has SHA-256 {digest}, expected one of OpenAI's \(RN50, .*ViT-B-16"
    ):
        convert(tmp_path / "tiny.pt", tmp_path / "tiny")
    with pytest.raises(ClipFileError, match=rf"expected {'0' * 64}; nothing in it was read"):
        convert(tmp_path / "tiny.pt", tmp_path / "tiny", "0" * 64)
    with pytest.raises(ClipFileError, match="is not a SHA-256 in hex"):
        convert(tmp_path / "tiny.pt", tmp_path / "tiny", digest[:63])
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt"]


def test_published_digests_are_those_of_openai():
    names = {name: digest for digest, name in published_digests().items()}
    assert names["ViT-B-16"] == "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
    assert names["ViT-L-14"] == "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
    assert not any(name.endswith("quickgelu") for name in names)


def test_published_archive_needs_no_stated_digest(model, tmp_path, monkeypatch):
    digest = torchscript.archive(tmp_path / "tiny.pt", model)
    monkeypatch.setattr(openai_archive, "published_digests", lambda: {digest: "ViT-B-16"})
    assert convert(tmp_path / "tiny.pt", tmp_path / "tiny")["published_as"] == "ViT-B-16"


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-L-14-336"])
def test_sizes_of_published_models_follow_from_their_weights(name):
    with torch.device("meta"):
        weights = open_clip.CLIP(**open_clip.get_model_config(name), quick_gelu=True).state_dict()
        config = model_config(weights, name)
        rebuilt = open_clip.CLIP(**config).state_dict()
    assert misfits({name: value.shape for name, value in rebuilt.items()}, weights) == []
    expected = open_clip.get_model_config(name)
    assert config["text_cfg"] == expected["text_cfg"]
    assert config["embed_dim"] == expected["embed_dim"]
    assert config["vision_cfg"]["image_size"] == [expected["vision_cfg"]["image_size"]] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual.proj": None}, r"no visual\.proj as a vision transformer's CLIP has"),
        ({"ln_final.bias": None}, r"makes no CLIP: .*missing ln_final\.bias"),
        ({"visual.extra": torch.zeros(3)}, r"makes no CLIP: .*unknown visual\.extra"),
        ({"ln_final.bias": torch.zeros(5)}, r"ln_final\.bias is \(5,\), expected \(64,\)"),
        ({"positional_embedding": torch.zeros(77, 60)}, "has width 60, expected a multiple of 64"),
    ],
)
def test_archive_that_makes_no_clip_leaves_nothing_behind(model, tmp_path, changes, message):
    digest = torchscript.archive(tmp_path / "tiny.pt", model, **changes)
    with pytest.raises(ClipFileError, match=message):
        convert(tmp_path / "tiny.pt", tmp_path / "tiny", digest)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt"]


def test_file_that_is_not_an_archive_is_refused(tmp_path):
    path = tmp_path / "tiny.pt"
    path.write_bytes(b"not a zip")
    with pytest.raises(
        ClipFileError, match=r"not a TorchScript archive.*give a \.pt file as OpenAI serves it"
    ):
        convert(path, tmp_path / "tiny", hashlib.sha256(b"not a zip").hexdigest())


def test_folder_that_exists_is_left_alone(model, tmp_path):
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ClipFileError, match="tiny exists; name another folder"):
        convert(tmp_path / "tiny.pt", tmp_path / "tiny")
