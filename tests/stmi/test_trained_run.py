"""A run of an older version, loaded with `import stmi` alone."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import stmi
from data_catalog.samples.images import decode_mask
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import find_table
from data_catalog.views.view_reader import open_view
from experiments.evaluating.evaluation_target import load_run
from experiments.run import evaluation
from stmi.clip.clip_files import find_clip
from stmi.clip.loading import load_clip
from stmi.config import ModelConfig
from stmi.modality import MODALITIES
from stmi.model import STMI
from stmi.released import released_checkpoint
from stmi.retrieval.metrics import distance_chunks, rank_gallery
from stmi.stored_run import RunConfig
from tests import kept_workspace, tiny_clip
from tests.stmi.released import released_oracle
from tests.tolerances import GOLDEN_VALUE

DATASET = "synthetic_person"
FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
"""Folder of each modality in RGBNT201's layout."""


@pytest.fixture(scope="module")
def view(workspace):
    """The run's test view, as evaluate.py reads it."""
    settings = {"split": "test"}
    return open_view(find_table(str(workspace / "catalog"), DATASET, TableKind.VIEW, settings=settings))


@pytest.fixture(scope="module")
def files(workspace, view):
    """The three images of each row of the view, by the names of the arguments."""
    root = next((workspace / "data").glob("*/RGBNT201/test"))
    names = [f"{sample_id.rpartition('/')[2]}.jpg" for sample_id in view.sample_id]
    return {name: [root / sub / file for file in names] for name, sub in FOLDERS.items()}


@pytest.fixture(scope="module")
def extras(workspace, view):
    """The mask and the caption of each row, by the names of the arguments."""
    found = {}
    for name, kind in (("mask", TableKind.MASKS), ("caption", TableKind.CAPTIONS)):
        rows = find_table(str(workspace / "catalog"), DATASET, kind).read(["sample_index", name])
        by_index = dict(zip(rows["sample_index"].to_pylist(), rows[name].to_pylist(), strict=True))
        found[name] = [by_index[index] for index in view.sample_index.tolist()]
    return found | {"mask": [decode_mask(data) for data in found["mask"]]}


def assert_equal(embeddings, expected):
    assert set(embeddings.features) == set(expected)
    for name, values in expected.items():
        assert embeddings[name].dtype == np.float32
        assert np.allclose(embeddings[name], values, rtol=0, atol=GOLDEN_VALUE), name


def test_features_of_files_are_those_that_training_stored(run, files, extras, folder):
    [stored] = folder.glob("*/test_embeddings.safetensors")
    expected = {name: values.numpy() for name, values in load_file(stored).items()}
    assert_equal(run.embed(**files, **extras), expected)


@pytest.mark.parametrize("missing", [("nir",), ("rgb", "tir")])
def test_missing_images_are_those_of_evaluation(run, files, extras, view, folder, missing):
    absent = [name for name in MODALITIES if str(name).lower() in missing]
    target = load_run(folder)
    expected = evaluation.embed(target.model, view, 128, target.autocast, missing=absent).features
    given = files | dict.fromkeys(missing)
    assert_equal(run.embed(**given, **extras), expected)
    # A sample's missing images may differ from those of the others.
    mixed = {name: [None if name in missing else paths[0], paths[1]] for name, paths in files.items()}
    embedded = run.embed(**mixed, mask=extras["mask"][:2], caption=extras["caption"][:2])
    assert np.allclose(embedded["U"][0], expected["U"][0], atol=GOLDEN_VALUE)
    assert not np.allclose(embedded["U"][1], expected["U"][1], atol=GOLDEN_VALUE)


def test_without_masks_and_captions_the_input_is_that_of_such_a_view(run, files):
    with pytest.warns(UserWarning, match="no sample has a") as warned:
        bare = run.embed(**files)
    assert [str(one.message).split(",")[0].split()[-1] for one in warned] == ["mask", "caption"]
    assert not bare["T"].any()
    size = np.asarray(Image.open(files["rgb"][0])).shape[:2]
    with pytest.warns(UserWarning, match="no sample has a caption"):
        full = run.embed(**files, mask=[np.ones(size, dtype=bool)] * len(files["rgb"]))
    assert_equal(bare, full.features)


def test_one_sample_is_a_batch_of_one_whatever_its_images_are(run, files, extras):
    paths = {name: values[3] for name, values in files.items()}
    mask, caption = extras["mask"][3], extras["caption"][3]
    expected = run.embed(**{name: [path] for name, path in paths.items()}, mask=[mask], caption=[caption])
    assert len(expected) == 1
    images = {name: Image.open(path) for name, path in paths.items()}
    arrays = {name: np.asarray(image) for name, image in images.items()}
    for given, own_mask in (
        ({name: str(path) for name, path in paths.items()}, mask.astype(np.uint8)),
        (images, Image.fromarray(mask)),
        (arrays, mask.astype(np.uint8) * 255),
    ):
        assert_equal(run.embed(**given, mask=own_mask, caption=caption), expected.features)
    batches = {name: values[None] for name, values in arrays.items()}
    assert_equal(run.embed(**batches, mask=mask[None], caption=[caption]), expected.features)


def test_grey_infrared_images_have_their_channel_repeated(run, files, extras):
    grey = [np.asarray(Image.open(path).convert("L")) for path in files["nir"][:2]]
    more = {"rgb": files["rgb"][:2], "mask": extras["mask"][:2], "caption": extras["caption"][:2]}
    expected = run.embed(nir=[np.repeat(image[..., None], 3, axis=2) for image in grey], **more)
    for given in (grey, [image[..., None] for image in grey], [Image.fromarray(image) for image in grey]):
        assert_equal(run.embed(nir=given, **more), expected.features)


def test_ranking_gives_the_average_precisions_of_evaluation(run, files, extras, view):
    embeddings = run.embed(**files, **extras)
    for variant in (None, "field", "paper"):
        scored = evaluation.score(view, embeddings["U"], "camera", variant)
        query, gallery = np.flatnonzero(view.is_query), np.flatnonzero(view.is_gallery)
        row_of = {row: i for i, row in enumerate(gallery)}
        found = run.rank(
            *(stmi.Embeddings({"U": embeddings["U"][rows]}) for rows in (query, gallery)),
            rerank=variant is not None,
            rerank_variant=variant or "field",
            gallery_row=np.array([row_of.get(row, -1) for row in query]),
        )
        assert (np.diff(found.distance) >= 0).all()
        precisions = []
        for row, order in zip(query, found.order, strict=True):
            ranked = gallery[order]
            same = view.identity[ranked] == view.identity[row]
            hits = same[~(same & (view.camera_id[ranked] == view.camera_id[row]))]
            ranks = np.flatnonzero(hits) + 1
            precisions.append((np.arange(1, len(ranks) + 1) / ranks).mean())
        assert np.allclose(precisions, scored.average_precision, atol=GOLDEN_VALUE)


def test_embeddings_are_joined_and_stored(run, files, extras, tmp_path):
    halves = [
        run.embed(**{name: values[rows] for name, values in (files | extras).items()})
        for rows in (slice(0, 5), slice(5, None))
    ]
    joined = stmi.Embeddings.concatenate(halves)
    assert_equal(joined, run.embed(**files, **extras).features)
    np.savez(tmp_path / "gallery.npz", **joined.features)
    assert_equal(stmi.Embeddings(dict(np.load(tmp_path / "gallery.npz"))), joined.features)


GOOD = np.zeros((32, 16, 3), dtype=np.uint8)


def test_captions_need_the_clip_that_the_run_started_from(folder, tmp_path):
    own = kept_workspace.CLIP
    architecture = shutil.copytree(own, tmp_path / "architecture")
    (architecture / "open_clip_model.safetensors").unlink()
    run = stmi.load(folder, clip=architecture)
    with pytest.warns(UserWarning, match="no sample has a caption"):
        run.embed(GOOD, mask=np.ones((32, 16), bool))
    with pytest.raises(stmi.TrainedRunError, match=r"is missing.*clip=folder"):
        run.embed(GOOD, mask=np.ones((32, 16), bool), caption="a man")
    other = stmi.load(folder, clip=tiny_clip.write(tmp_path / "other", seed=1))
    with pytest.raises(stmi.TrainedRunError, match=r"is not the one that run .* started from"):
        other.embed(GOOD, mask=np.ones((32, 16), bool), caption="a man")


@pytest.fixture
def write_run(copied):
    """Writes a run of a fresh model with other settings, and gives that model."""

    def write(**changes):
        stored = json.loads((copied / "config.json").read_text())
        model = stored["config"]["model"] | changes.get("model", {})
        stored["config"] |= {"model": model, "train": stored["config"]["train"] | changes.get("train", {})}
        (copied / "config.json").write_text(json.dumps(stored))
        clip = load_clip(find_clip(model["clip"]["source"]))
        fresh = STMI(ModelConfig.model_validate(model), clip, 6, 2, seed=5).eval()
        [weights] = copied.glob("*/model.safetensors")
        save_file(fresh.state_dict(), weights)
        return fresh

    return write


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_run_with_a_text_tower_of_its_own_encodes_captions_with_it(
    write_run, copied, view, files, extras, precision
):
    model = write_run(model={"text": {"enabled": True, "fine_tune": True}}, train={"precision": precision})
    run = stmi.load(copied, device="cpu")
    tokens = run.tokenize(extras["caption"])
    autocast = precision == "bfloat16"
    expected = evaluation.embed(model, view, 128, autocast, tokens).features
    assert_equal(run.embed(**files, **extras), expected)
    with pytest.raises(ValueError, match=r"caption\[0\] is missing: run .* trained its text tower"):
        run.embed(GOOD, mask=np.ones((32, 16), bool))


def test_run_without_sfm_and_text_reads_neither_masks_nor_captions(write_run, copied, files, extras):
    write_run(model={"text": {"enabled": False}, "sfm": {"enabled": False}})
    run = stmi.load(copied, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = run.embed(**files)
    assert list(bare.features) == ["U", "G", *MODALITIES]
    assert_equal(run.embed(**files, **extras), bare.features)


def test_unknown_camera_has_the_mean_of_the_learned_vectors():
    model = released_checkpoint.load(released_oracle.small_checkpoint(), (64, 32))
    train = {"precision": "float32", "evaluation_batch": 2}
    config = RunConfig.model_validate({"model": model.config, "seed": 0, "train": train})
    run = stmi.TrainedRun("released", config, model, 1, "U", clip="", clip_digest=None)
    learned = model.image_tower.camera_embedding
    mask, images = np.ones((32, 16), bool), [GOOD] * 3
    with pytest.warns(UserWarning, match="no sample has a caption"):
        found = run.embed(images, mask=[mask] * 3, camera=[0, None, 1])["RGB"]
    with pytest.raises(ValueError, match=re.escape(f"camera[0] is {len(learned)}, expected 0 to")):
        run.embed(GOOD, camera=len(learned))
    with torch.no_grad():
        learned[0] = learned.mean(dim=0)
    with pytest.warns(UserWarning, match="no sample has a caption"):
        [mean] = run.embed(GOOD, mask=mask, camera=0)["RGB"]
    assert np.allclose(found[1], mean, atol=GOLDEN_VALUE)
    assert not np.allclose(found[0], mean, atol=GOLDEN_VALUE)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(ValueError, match=f"device='{device}': expected cpu, or cuda where there is a GPU"):
        stmi.load(folder, device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_on_a_gpu_are_those_of_a_cpu(run, folder, files, extras):
    on_gpu = stmi.load(folder)
    assert on_gpu.device.type == "cuda"
    found, expected = (one.embed(**files, **extras) for one in (on_gpu, run))
    for name, values in expected.features.items():
        assert np.allclose(found[name], values, atol=1e-4), name


def test_example_of_the_readme_prints_the_nearest_gallery_samples(
    run, folder, files, extras, tmp_path, monkeypatch, capsys
):
    text = (Path(stmi.__file__).parent / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(example.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    for name, paths in files.items():
        for path in paths[1:]:
            (tmp_path / "gallery" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "gallery" / name)
        shutil.copy(paths[0], tmp_path / f"{name}.jpg")
    Image.fromarray(extras["mask"][0]).save(tmp_path / "mask.png")
    (tmp_path / "gallery/mask").mkdir()
    for number, mask in enumerate(extras["mask"][1:]):
        Image.fromarray(mask).save(tmp_path / f"gallery/mask/{number:03}.png")
    (tmp_path / "gallery/captions.txt").write_text("\n".join(extras["caption"][1:]), encoding="utf-8")
    (tmp_path / "runs/train").mkdir(parents=True)
    (tmp_path / "runs/train/demo-seed0-1a2b3c4d").symlink_to(folder)
    exec(example, {})
    # The rank lists are those of evaluation's distance, for the same input.
    query = run.embed(
        **{name: paths[0] for name, paths in files.items()},
        mask=extras["mask"][0],
        caption=re.search(r'caption="(.*?)"', example)[1],
    )
    gallery = run.embed(
        **{name: paths[1:] for name, paths in files.items()},
        **{name: values[1:] for name, values in extras.items()},
    )
    order = rank_gallery(next(distance_chunks(query["U"], gallery["U"]))[1][0], np.zeros(len(gallery), bool))
    by_distance = [files["rgb"][1:][row].name for row in order[:5]]
    assert re.findall(r"gallery/rgb/(\S+)", capsys.readouterr().out) == by_distance
