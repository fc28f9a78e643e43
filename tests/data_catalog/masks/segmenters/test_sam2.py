"""A tiny, randomly initialised SAM2 of the real architecture, in the real checkpoint format."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from data_catalog.errors import CatalogError
from data_catalog.masks.mask_table import list_below_gate, make_masks
from data_catalog.masks.segmenters.mask_choice import Candidate, choose
from data_catalog.masks.segmenters.sam2 import Sam2Segmenter, Sam2Settings, sam2_settings
from data_catalog.masks.segmenters.sam2_checkpoint import SAM2_MODELS, build_sam2_model
from data_catalog.samples.images import decode_triplets

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = "sam2.1_hiera_t"
NARROW = (
    "++model.image_encoder.trunk.embed_dim=8",
    "++model.image_encoder.neck.backbone_channel_list=[64,32,16,8]",
    "++model.memory_attention.num_layers=1",
)
IMAGE_SIZE = 64
TINY: dict[str, Any] = {"model": MODEL, "overrides": NARROW, "image_size": IMAGE_SIZE, "precision": "float32"}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found: dict[str, torch.Tensor] = build_sam2_model(MODEL, IMAGE_SIZE, NARROW).state_dict()
    return found


@pytest.fixture(scope="module")
def checkpoint(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam2_weights") / "tiny.pt"
    torch.save({"model": weights}, path)
    return path


@pytest.fixture(scope="module")
def triplets() -> list[np.ndarray]:
    """Five samples of noise with a figure, so that masks are neither empty nor full."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 80, (5, 3, 32, 16, 3), dtype=np.uint8)
    for number in range(5):
        images[number, :, 4:28, 4 + number % 3 : 12] += rng.integers(60, 170, 3, dtype=np.uint8)
    return list(images)


class OneCpuSettings(Sam2Settings):
    """For actors of one thread each: so small a model is slower on more."""

    cpus_per_actor: ClassVar[float] = 1


def tiny(checkpoint: Path, **changes: Any) -> Sam2Settings:
    return sam2_settings(checkpoint, **(TINY | changes))


def test_every_published_size_can_be_built() -> None:
    families = {"sam2", "sam2.1"}
    assert {name.split("_hiera_")[0] for name in SAM2_MODELS} == families
    assert {name.split("_hiera_")[1] for name in SAM2_MODELS} == {"t", "s", "b+", "l"}
    # Embedding width and number of blocks, as published.
    published = {"t": (96, 12), "s": (96, 16), "b+": (112, 24), "l": (144, 48)}
    for name in ("sam2_hiera_t", "sam2.1_hiera_s", "sam2_hiera_b+", "sam2.1_hiera_l"):
        trunk = build_sam2_model(name, 1024).image_encoder.trunk
        size = name.split("_hiera_")[1]
        assert (trunk.patch_embed.proj.out_channels, len(trunk.blocks)) == published[size]


@pytest.mark.parametrize("prompt", ["point", "box", "both"])
def test_batch_of_one_equals_batch_of_many(checkpoint: Path, triplets: list[np.ndarray], prompt: str) -> None:
    one = Sam2Segmenter(tiny(checkpoint, prompt=prompt, images_per_batch=1)).segment(triplets)
    # Seven images a batch: batches end in the middle of samples.
    many = Sam2Segmenter(tiny(checkpoint, prompt=prompt, images_per_batch=7)).segment(triplets)
    assert len(one) == len(many) == len(triplets)
    for a, b in zip(one, many, strict=True):
        assert a.mask.shape == (32, 16)
        assert a.source == b.source
        assert a.score == pytest.approx(b.score, abs=1e-5)
        # A logit may be zero within rounding.
        assert (a.mask != b.mask).mean() < 0.005


def test_same_images_give_the_same_masks_in_any_order(checkpoint: Path, triplets: list[np.ndarray]) -> None:
    settings = tiny(checkpoint, precision="bfloat16", images_per_batch=3)
    forwards = settings.build().segment(triplets)
    backwards = settings.build().segment(triplets[::-1])[::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert np.array_equal(a.mask, b.mask)
        assert (a.score, a.source) == (b.score, b.source)


@pytest.mark.parametrize("prompt", ["point", "box", "both"])
def test_masks_are_the_best_of_what_the_library_predicts(
    checkpoint: Path, weights: dict[str, torch.Tensor], triplets: list[np.ndarray], prompt: str
) -> None:
    from sam2.sam2_image_predictor import SAM2ImagePredictor  # noqa: PLC0415

    settings = tiny(checkpoint, prompt=prompt)
    model = build_sam2_model(MODEL, IMAGE_SIZE, NARROW)
    model.load_state_dict(weights)
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(16, 16), (8, 8), (4, 4)]
    prompts: dict[str, Any] = {}
    if prompt != "box":
        prompts |= {"point_coords": np.array([[8.0, 16.0]]), "point_labels": np.array([1])}
    if prompt != "point":
        margin = settings.box_margin
        prompts["box"] = np.array([16 * margin, 32 * margin, 16 * (1 - margin), 32 * (1 - margin)])
    found = settings.build().segment(triplets)
    for triplet, segmentation in zip(triplets, found, strict=True):
        candidates = []
        for image, source in zip(triplet, ("RGB", "NIR", "TIR"), strict=True):
            predictor.set_image(image)
            masks, ious, _ = predictor.predict(**prompts, multimask_output=True)
            assert masks.shape == (3, 32, 16)
            candidates += [
                Candidate(mask > 0, float(iou), source) for mask, iou in zip(masks, ious, strict=True)
            ]
        expected = choose(candidates, settings.choice)
        assert segmentation.source == expected.source
        assert segmentation.score == pytest.approx(expected.score, abs=1e-5)
        assert (segmentation.mask != expected.mask).mean() < 0.005


def test_other_image_sizes_work(checkpoint: Path, triplets: list[np.ndarray]) -> None:
    found = tiny(checkpoint, image_size=96).build().segment(triplets[:1])
    assert found[0].mask.shape == (32, 16)


@pytest.mark.slow
def test_table_says_where_its_masks_come_from(
    built: Any, checkpoint: Path, tmp_path: Path, actors: None
) -> None:
    settings = OneCpuSettings(**dict(tiny(checkpoint)))
    table = make_masks(built.samples, settings)
    manifest = table.manifest
    assert manifest.settings["checkpoint_sha256"] == settings.checkpoint_sha256
    assert (manifest.settings["model"], manifest.settings["prompt"]) == (MODEL, "point")
    assert {"torch", "sam2"} <= manifest.created["versions"].keys()
    assert str(checkpoint.parent) not in json.dumps(manifest.settings)
    rows = table.read().to_pylist()
    assert {row["source"] for row in rows} <= {"RGB", "NIR", "TIR"}
    assert [row["sample_id"] for row in rows] == built.samples.read(["sample_id"])["sample_id"].to_pylist()
    counted: dict[str, int] = {}
    for counts in table.statistics["sources_by_camera"].values():
        for source, count in counts.items():
            counted[source] = counted.get(source, 0) + count
    assert counted == {name: sum(row["source"] == name for row in rows) for name in counted}

    # The same as without Ray, and the same weights under another name are the same request.
    expected = settings.build().segment(decode_triplets(built.samples.read_shard(0)))
    shard = table.read_shard(0).to_pylist()
    assert [row["source"] for row in shard] == [one.source for one in expected]
    assert [row["score"] for row in shard] == pytest.approx([one.score for one in expected], abs=1e-5)
    moved = Path(shutil.copy(checkpoint, tmp_path / "moved.pt"))
    assert make_masks(built.samples, OneCpuSettings(**dict(tiny(moved, images_per_batch=2)))).reused

    scores = [row["score"] for row in rows]
    gate = float(np.median(scores))
    below = [row["sample_id"] for row in rows if row["score"] < gate]
    assert 0 < len(below) < len(rows)
    assert list_below_gate(table, gate) == below
    assert list_below_gate(table, 0.0) == []


def test_checkpoint_that_was_replaced_is_not_used(checkpoint: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(checkpoint, tmp_path / "tiny.pt"))
    settings = tiny(path, prompt="box")
    torch.manual_seed(1)
    torch.save({"model": build_sam2_model(MODEL, IMAGE_SIZE, NARROW).state_dict()}, path)
    with pytest.raises(CatalogError, match=r"tiny.pt has SHA-256 .* it was replaced after it was checked"):
        settings.build()


class _Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_checkpoint_with_code_is_refused_and_not_executed(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "code.pt", tmp_path / "executed"
    content = {"model": {"weight": torch.zeros(2), "extra": _Bomb(trace)}}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(_Bomb(trace)))
    with pytest.raises(CatalogError, match=r"code.pt is not a file of weights alone and was not executed"):
        tiny(path)
    assert not trace.exists()


def test_file_that_is_not_a_checkpoint_is_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(CatalogError, match=r"no.pt is not there or is not a file"):
        tiny(tmp_path / "no.pt")
    with pytest.raises(CatalogError, match="is not there or is not a file"):
        tiny(tmp_path)
    data = checkpoint.read_bytes()
    for content in (
        b"",
        data[: len(data) // 2],
        b"PK\x03\x04" + bytes(100),
        b"\x89PNG not weights",
        data[:3],
    ):
        path = tmp_path / "damaged.pt"
        path.write_bytes(content)
        with pytest.raises(CatalogError, match=r"checkpoint .*damaged.pt (cannot be read|is not a file of)"):
            tiny(path)
    torch.save({"state": 1, "epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(CatalogError, match=r"other.pt holds a dict of state, epoch, expected \{\"model\""):
        tiny(tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CatalogError, match=r"tensor.pt holds Tensor, expected"):
        tiny(tmp_path / "tensor.pt")


def test_weights_that_do_not_fit_are_listed(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    changed = dict(weights)
    del changed["no_mem_embed"]
    changed["surplus.weight"] = torch.zeros(1)
    changed["maskmem_tpos_enc"] = torch.zeros(7, 1, 1, 2)
    changed["no_mem_pos_enc"] = torch.full_like(weights["no_mem_pos_enc"], float("nan"))
    path = tmp_path / "other.pt"
    torch.save({"model": changed}, path)
    with pytest.raises(CatalogError) as error:
        tiny(path)
    for part in (
        "other.pt does not fit --model sam2.1_hiera_t",
        "1 missing (no_mem_embed)",
        "1 unknown (surplus.weight)",
        "1 of another shape (maskmem_tpos_enc (7, 1, 1, 2) instead of (7, 1, 1, 64))",
        "1 with NaN or infinity (no_mem_pos_enc)",
    ):
        assert part in str(error.value)


def test_weights_of_another_size_are_refused(checkpoint: Path) -> None:
    with pytest.raises(
        CatalogError, match=r"does not fit --model sam2.1_hiera_s: weights \d+ missing .* more"
    ):
        tiny(checkpoint, model="sam2.1_hiera_s", overrides=())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model": "sam2_hiera_xl"}, "use one of sam2.1_hiera_t"),
        ({"image_size": 100}, "multiple of 32"),
        ({"prompt": "mask"}, "'point', 'box' or 'both'"),
        ({"box_margin": 0.5}, "less than 0.5"),
    ],
)
def test_impossible_settings_are_refused(checkpoint: Path, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny(checkpoint, **setting)


def test_images_of_several_sizes_share_a_batch(checkpoint: Path, triplets: list[np.ndarray]) -> None:
    small = np.stack([np.asarray(Image.fromarray(image).resize((8, 24))) for image in triplets[1]])
    found = tiny(checkpoint).build().segment([triplets[0], small])
    assert [one.mask.shape for one in found] == [(32, 16), (24, 8)]
