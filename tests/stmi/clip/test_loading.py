import gzip
import hashlib
import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from stmi.clip import architecture, clip_files
from stmi.clip.loading import load_clip
from stmi.errors import ClipFileError
from tests import tiny_clip
from tests.tolerances import ROUNDING_FLOAT32


def test_text_feature_is_the_projected_end_of_text_token(clip):
    tokens = clip.tokenize(["a man in a red jacket", "a woman"])
    assert tokens.shape == (2, 77)
    features = clip.encode_text(tokens)
    assert features.shape == (2, clip.embed_dim)
    longer = tokens.clone()
    longer[:, -5:] = 7  # behind the end of text
    assert torch.allclose(clip.encode_text(longer), features, atol=ROUNDING_FLOAT32)


def test_short_vocabulary_decodes_to_the_same_text(clip):
    tokens = clip.tokenize(["a striped red jacket"])[0]
    end = int(tokens.argmax())
    assert clip.tokenizer.decode(tokens[1:end].tolist()).strip() == "a striped red jacket"


def test_digest_depends_on_weights_config_and_vocabulary_not_on_the_folder(clip, tmp_path):
    digests = {clip.digest, load_clip(tiny_clip.write(tmp_path / "same")).digest}
    assert len(digests) == 1
    digests.add(load_clip(tiny_clip.write(tmp_path / "weights", seed=1)).digest)
    config = tiny_clip.write(tmp_path / "config") / clip_files.CONFIG_FILE
    config.write_text(config.read_text().replace('"quick_gelu": true', '"quick_gelu": false'))
    digests.add(load_clip(config.parent).digest)
    merges = tiny_clip.write(tmp_path / "merges") / clip_files.MERGES_FILE
    merges.write_bytes(gzip.compress(gzip.decompress(merges.read_bytes()) + b"\n"))
    digests.add(load_clip(merges.parent).digest)
    assert len(digests) == 4


def publish(monkeypatch, path: Path, **vision: object) -> str:
    """Make a file of weights known to open_clip by name."""
    config = tiny_clip.MODEL_CONFIG | {
        "vision_cfg": tiny_clip.MODEL_CONFIG["vision_cfg"] | vision,
        "text_cfg": tiny_clip.MODEL_CONFIG["text_cfg"] | {"vocab_size": 49408},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny", config)
    cfg = {"file": str(path), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny", {"own": cfg})
    return "Tiny/own"


def write_with_all_merges(folder: Path) -> Path:
    """A folder with the tokenizer that open_clip gives a model by name."""
    tiny_clip.write(folder)
    (folder / clip_files.MERGES_FILE).unlink()
    config = folder / clip_files.CONFIG_FILE
    settings = json.loads(config.read_text())
    settings["model_cfg"]["text_cfg"]["vocab_size"] = 49408
    config.write_text(json.dumps(settings))
    save_file(architecture.build_clip(folder).state_dict(), folder / clip_files.WEIGHTS_FILE)
    return folder


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"layers": [1, 1, 1, 1]}, r"layers=\[1, 1, 1, 1\]; a plain vision transformer is needed"),
        ({"pool_type": "avg"}, "the image tower has pool_type='avg'; a plain vision transformer is needed"),
        ({"norm_kwargs": {"eps": 0.1}}, "has norm_kwargs="),
        ({"no_ln_pre": True, "timm_model_name": "resnet50"}, "no_ln_pre=True, timm_model_name='resnet50'"),
    ],
)
def test_options_that_the_image_tower_does_not_support_are_refused(tmp_path, monkeypatch, vision, message):
    with pytest.raises(ClipFileError, match=message):
        load_clip(publish(monkeypatch, tmp_path / "none.safetensors", **vision))
    folder = tiny_clip.write(tmp_path / "clip")
    config = json.loads((folder / clip_files.CONFIG_FILE).read_text())
    config["model_cfg"]["vision_cfg"] |= vision
    (folder / clip_files.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ClipFileError, match=message):
        load_clip(folder)


def test_text_tower_of_another_kind_is_refused_before_its_config_is_downloaded(tmp_path):
    folder = tiny_clip.write(tmp_path / "clip")
    config = json.loads((folder / clip_files.CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "xlm-roberta-base"
    (folder / clip_files.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ClipFileError, match=r"open_clip_config\.json has towers that are not CLIP's own"):
        load_clip(folder)


def test_options_with_their_default_values_are_accepted(clip, tmp_path):
    folder = tiny_clip.write(tmp_path / "clip")
    config = json.loads((folder / clip_files.CONFIG_FILE).read_text())
    config["model_cfg"]["vision_cfg"] |= {"pool_type": "tok", "mlp_ratio": 4.0}
    (folder / clip_files.CONFIG_FILE).write_text(json.dumps(config))
    weights, others = clip.model.state_dict(), load_clip(folder).model.state_dict()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_same_weights_by_name_and_from_a_folder_give_the_same_tower(tmp_path, monkeypatch):
    clip = load_clip(write_with_all_merges(tmp_path / "clip"))
    path = tmp_path / "clip" / clip_files.WEIGHTS_FILE
    source = publish(monkeypatch, path)
    named = load_clip(source)
    tokens = clip.tokenize(["a man in a red jacket"])
    assert torch.equal(named.tokenize(["a man in a red jacket"]), tokens)
    assert torch.equal(named.encode_text(tokens), clip.encode_text(tokens))
    assert named.digest == load_clip(source).digest
    weights = load_file(path)
    save_file(weights | {"logit_scale": weights["logit_scale"] + 1}, path)
    assert named.digest != load_clip(source).digest


def test_weights_by_name_that_do_not_fit_are_all_named_and_never_resized(tmp_path, monkeypatch):
    path = write_with_all_merges(tmp_path / "clip") / clip_files.WEIGHTS_FILE
    weights = load_file(path)
    del weights["visual.proj"]
    others = {"logit_bias": (1,), "visual.positional_embedding": (5, 16), "positional_embedding": (32, 16)}
    save_file(weights | {name: torch.zeros(shape) for name, shape in others.items()}, path)
    with pytest.raises(ClipFileError) as error:
        load_clip(publish(monkeypatch, path))
    for part in (
        f"clip source 'Tiny/own': {path}: 4 weights do not fit: ",
        "missing visual.proj",
        "unknown logit_bias",
        "visual.positional_embedding is (5, 16), expected (9, 16)",
        "positional_embedding is (32, 16), expected (77, 16)",
    ):
        assert part in str(error.value)


def test_weights_saved_by_training_code_are_read_by_name(tmp_path, monkeypatch):
    path = write_with_all_merges(tmp_path / "clip") / clip_files.WEIGHTS_FILE
    weights = load_file(path)
    saved = {f"module.{name}": value for name, value in weights.items()}
    saved["module.logit_scale"] = saved["module.logit_scale"].reshape(1)
    torch.save({"epoch": 3, "state_dict": saved}, tmp_path / "own.pt")
    loaded = load_clip(publish(monkeypatch, tmp_path / "own.pt")).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights.items())


class Executed:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("name", ["own.safetensors", "own.pt"])
def test_damaged_or_hostile_weights_by_name_are_refused_with_their_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    for data in (b"", b"no weights at all", pickle.dumps({"a": Executed()}), pickle.dumps([1])):
        path.write_bytes(data)
        with pytest.raises(ClipFileError, match=rf"{name} cannot be read as weights \(.*restore the file"):
            load_clip(publish(monkeypatch, path))
    assert not (tmp_path / "executed").exists()


def test_failed_download_of_weights_is_reported(tmp_path, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(ClipFileError, match=r"cannot be fetched \(no network\); name a folder"):
        load_clip(publish(monkeypatch, tmp_path / "none.safetensors"))


def test_path_of_the_weights_file_loads_its_folder(tmp_path):
    folder = tiny_clip.write(tmp_path / "clip")
    assert load_clip(folder / clip_files.WEIGHTS_FILE).digest == load_clip(folder).digest


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ViT-B-16-quickgelu/", "has no weights '' of ViT-B-16-quickgelu; it has openai"),
        ("ViT-B-16-quickgelu/opneai", "has no weights 'opneai' of ViT-B-16-quickgelu; it has openai"),
        ("ViT-L-14/openai", "were trained with QuickGELU, .*; use ViT-L-14-quickgelu/openai"),
        ("ViT-B-16/openai", "use ViT-B-16-quickgelu/openai"),
    ],
)
def test_weights_that_open_clip_only_warns_about_are_refused(source, message):
    with pytest.raises(ClipFileError, match=message):
        load_clip(source)


def test_square_image_size_may_be_one_number(tmp_path):
    config = tiny_clip.write(tmp_path / "clip") / clip_files.CONFIG_FILE
    config.write_text(config.read_text().replace('"image_size": [32, 16]', '"image_size": 16'))
    model = architecture.build_clip(config.parent)
    assert model.visual.grid_size == (2, 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"heads": 2', '"heads": 3'),
        ('"image_size": [32, 16]', '"image_size": [32]'),
        ('"image_size": [32, 16]', '"image_size": "wide"'),
        ('"patch_size": 8', '"patch_size": 0'),
        ('"width": 16', '"width": "broad"'),
        ("{", b"\xff\xfe{"),
    ],
)
def test_config_that_makes_no_model_is_refused_with_its_file(tmp_path, old, new):
    config = tiny_clip.write(tmp_path / "clip") / clip_files.CONFIG_FILE
    new = new if isinstance(new, bytes) else new.encode()
    config.write_bytes(config.read_bytes().replace(old.encode(), new, 1))
    with pytest.raises(ClipFileError, match=r"open_clip_config\.json: not a model config of open_clip"):
        load_clip(config.parent)


def test_damaged_weights_are_refused_with_their_file(tmp_path):
    folder = tiny_clip.write(tmp_path / "clip")
    path = folder / clip_files.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ClipFileError, match=r"open_clip_model\.safetensors cannot be read as weights"):
        load_clip(folder)


def test_weights_that_do_not_fit_are_all_named(tmp_path):
    folder = tiny_clip.write(tmp_path / "clip")
    path = folder / clip_files.WEIGHTS_FILE
    weights = load_file(path)
    del weights["visual.proj"]
    weights["visual.extra"] = torch.zeros(1)
    weights["visual.class_embedding"] = torch.zeros(5)
    save_file(weights, path)
    with pytest.raises(ClipFileError) as error:
        load_clip(folder)
    for part in (
        "missing visual.proj",
        "unknown visual.extra",
        "visual.class_embedding is (5,), expected (16,)",
    ):
        assert part in str(error.value)


def test_missing_files_and_unknown_names_are_refused(tmp_path):
    with pytest.raises(ClipFileError, match="neither a folder nor an open_clip name"):
        load_clip(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipFileError, match=r"open_clip_config\.json is missing"):
        load_clip(tmp_path / "empty")
    folder = tiny_clip.write(tmp_path / "clip")
    (folder / clip_files.WEIGHTS_FILE).unlink()
    with pytest.raises(ClipFileError, match=r"open_clip_model\.safetensors is missing"):
        load_clip(folder)
    (folder / clip_files.CONFIG_FILE).write_text(json.dumps({"model_cfg": {"embed_dim": 3}}))
    with pytest.raises(ClipFileError, match="not a model config"):
        load_clip(folder)


def test_weights_with_another_digest_are_refused(tmp_path):
    folder = tiny_clip.write(tmp_path / "clip")
    digest = hashlib.sha256((folder / clip_files.WEIGHTS_FILE).read_bytes()).hexdigest()
    (folder / clip_files.DIGEST_FILE).write_text(f"{digest}  {clip_files.WEIGHTS_FILE}\n")
    load_clip(folder)
    tiny_clip.write(folder, seed=1)
    with pytest.raises(ClipFileError, match=r"not the one in .*SHA256SUMS; restore the file"):
        load_clip(folder)


def test_shipped_clip_is_small_and_has_its_stated_digest():
    folder = Path(architecture.__file__).parents[1] / "demo_clip"
    assert (folder / clip_files.DIGEST_FILE).is_file()
    assert (folder / clip_files.WEIGHTS_FILE).stat().st_size <= 4_000_000
    shipped = load_clip(folder)
    assert shipped.model.visual.grid_size == (8, 4)
    captions = ["A photo of a man, wearing a red coat.", "A photo of a man, wearing a blue coat."]
    first, second = shipped.encode_text(shipped.tokenize(captions))
    assert not torch.allclose(first, second, atol=0.01)
