import io
import pickle
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_catalog.errors import CatalogError
from data_catalog.masks.mask_statistics import LOWEST, TrueMasks, describe_shard, describe_table
from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings, ellipse
from data_catalog.samples.images import (
    Segmentation,
    decode_mask,
    encode_mask,
    intersection_over_union,
)
from data_catalog.synthetic import SyntheticSettings, render_sample
from data_catalog.tables.building import share_machines
from data_catalog.tables.shards import ShardMaker
from stmi.images import foreground_share
from tests.data_catalog.folders import FOLDERS, HEIGHT, WIDTH, sample_ids, true_mask_path


def render(kind: str, size: tuple[int, int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images and true masks of some validation identities of the benchmark."""
    settings = SyntheticSettings(kind=kind, height=size[0], width=size[1])
    samples = [
        render_sample(settings, identity, camera, shot=0)
        for identity in settings.identities("val")[:10]
        for camera in range(settings.cameras)
    ]
    return [np.stack(list(sample.pixels)) for sample in samples], [sample.mask > 0 for sample in samples]


def test_every_sample_has_a_mask_of_its_own_size(built: Any) -> None:
    rows = built.masks.read().to_pylist()
    assert [row["sample_id"] for row in rows] == sample_ids()
    for row in rows:
        with Image.open(io.BytesIO(row["mask"])) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "1", (WIDTH, HEIGHT))
            assert np.asarray(image).mean() == pytest.approx(row["foreground_fraction"], abs=1e-6)
        assert 0 <= row["score"] <= 1


def test_mean_overlap_is_that_of_the_files(built: Any) -> None:
    ious: dict[str, list[float]] = {}
    for row in built.masks.read().to_pylist():
        mask = np.asarray(Image.open(io.BytesIO(row["mask"])))
        truth = np.asarray(Image.open(true_mask_path(built.source, row["sample_id"]))) > 127
        both, either = np.logical_and(mask, truth).sum(), np.logical_or(mask, truth).sum()
        camera_id = str(int(row["sample_id"].split("_cam")[1][0]) - 1)
        ious.setdefault(camera_id, []).append(both / either)
    statistics = built.masks.statistics
    assert statistics["mean_iou"] == pytest.approx(np.mean(list(chain(*ious.values()))))
    for camera_id, values in ious.items():
        assert statistics["mean_iou_by_camera"][camera_id] == pytest.approx(np.mean(values))
    assert statistics["scored"] == len(sample_ids())
    # The figure is far brighter than the noise around it.
    assert statistics["mean_iou"] > 0.8


def test_true_masks_score_but_do_not_shape(built: Any) -> None:
    unscored = make_masks(built.samples, GrabCutSettings())
    assert not unscored.reused
    assert unscored.digest == built.masks.digest
    assert "mean_iou" not in unscored.statistics


def test_true_mask_of_another_size_is_named(built: Any, own_source: Path) -> None:
    path = true_mask_path(own_source, sample_ids()[0])
    Image.new("L", (3, 3)).save(path)
    with pytest.raises(CatalogError, match=rf"{path.name} is \(3, 3\), expected the size of its sample"):
        make_masks(built.samples, GrabCutSettings(), true_masks=own_source / "true_masks")


def test_true_masks_are_read_once_and_then_need_no_folder(own_source: Path) -> None:
    truth = TrueMasks(own_source / "true_masks", FOLDERS)
    truth.load()
    path = true_mask_path(own_source, sample_ids()[0])
    expected = np.asarray(Image.open(path)) > 0
    shutil.rmtree(truth.root)
    # As an actor on another machine gets them.
    elsewhere = pickle.loads(pickle.dumps(truth))
    assert (elsewhere.read(sample_ids()[0], expected.shape) == expected).all()
    assert elsewhere.read("test/unknown", expected.shape) is None


def test_true_mask_that_is_no_png_is_named(built: Any, own_source: Path) -> None:
    path = true_mask_path(own_source, sample_ids()[0])
    path.write_bytes(b"no mask")
    with pytest.raises(CatalogError, match=rf"true mask .*{path.name} cannot be read .*expected a PNG"):
        make_masks(built.samples, GrabCutSettings(), true_masks=own_source / "true_masks")


def test_true_masks_in_folders_of_their_own_count_too(tmp_path: Path) -> None:
    path = tmp_path / "test" / "1" / "a.png"
    path.parent.mkdir(parents=True)
    Image.new("L", (4, 8)).save(path)
    truth = TrueMasks(tmp_path, {"test": "test"})
    truth.load()
    assert list(truth.files) == ["test/1/a"]
    assert list(truth.fingerprint()) == ["test/1/a.png"]


def test_folder_without_true_masks_is_refused(built: Any, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="holds no folder of a split; expected train_171, val, test"):
        make_masks(built.samples, GrabCutSettings(), true_masks=tmp_path)


def jpeg(level: int, size: tuple[int, int] = (4, 8)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(sink, format="JPEG", quality=100)
    return sink.getvalue()


def make_shard(ids: list[str], cameras: list[int], levels: list[int], together: bool = False) -> pa.Table:
    """Rows of a samples table of 8 x 4 pixels; RGB has the level given, NIR and TIR are bright."""
    if together:
        files = []
        for level in levels:
            joined = Image.new("RGB", (12, 8), (250, 250, 250))
            joined.paste((level, level, level), (0, 0, 4, 8))
            sink = io.BytesIO()
            joined.save(sink, format="JPEG", quality=100, subsampling=0)
            files.append(sink.getvalue())
        images: dict[str, Any] = {
            **{name: pa.nulls(len(ids), pa.binary()) for name in ("rgb", "nir", "tir")},
            "side_by_side": files,
        }
    else:
        images = {
            "rgb": [jpeg(level) for level in levels],
            "nir": [jpeg(250)] * len(ids),
            "tir": [jpeg(250)] * len(ids),
            "side_by_side": pa.nulls(len(ids), pa.binary()),
        }
    return pa.table({"sample_id": ids, "camera_id": pa.array(cameras, pa.int32()), **images})


@pytest.mark.parametrize("together", [False, True])
def test_statistics_are_those_of_a_count_over_all_samples(tmp_path: Path, together: bool) -> None:
    (tmp_path / "test").mkdir()
    rng = np.random.default_rng(5)
    truth = TrueMasks(tmp_path, {"test": "test"})
    shards, expected = [], []
    for shard in range(3):
        ids = [f"test/{shard}{number}" for number in range(12)]
        cameras = rng.integers(9, 12, 12).tolist()
        levels = [200 if camera < 11 else 5 for camera in cameras]
        found = []
        for number, sample_id in enumerate(ids):
            mask = rng.random((8, 4)) < (0.0, 1.1, 0.5, 0.3)[number % 4]
            found.append(Segmentation(mask, round(float(rng.random()), 2), str(rng.choice(["RGB", "TIR"]))))
            iou = None
            # Every other sample has a true mask, and camera 10 none at all.
            if number % 2 and cameras[number] != 10:
                true_mask = rng.random((8, 4)) < 0.5
                Image.fromarray(true_mask).save(tmp_path / f"{sample_id}.png")
                iou = (mask & true_mask).sum() / (mask | true_mask).sum()
            expected.append((sample_id, str(cameras[number]), found[-1], iou))
        truth.load()
        shards.append(describe_shard(make_shard(ids, cameras, levels, together), found, truth))
    statistics = describe_table(shards)
    assert statistics["foreground_fraction"] == pytest.approx(
        np.mean([one.mask.mean() for _, _, one, _ in expected])
    )
    assert statistics["score"] == pytest.approx(np.mean([one.score for _, _, one, _ in expected]))
    empty = [name for name, _, one, _ in expected if not one.mask.any()]
    full = [name for name, _, one, _ in expected if one.mask.all()]
    assert (statistics["empty"], statistics["empty_samples"]) == (9, empty)
    assert (statistics["full"], statistics["full_samples"]) == (9, full)
    lowest = sorted((one.score, name) for name, _, one, _ in expected)[:LOWEST]
    assert statistics["lowest_scores"] == [{"sample_id": name, "score": score} for score, name in lowest]
    # By number, not as text: 9 comes before 10.
    assert list(statistics["sources_by_camera"]) == ["9", "10", "11"]
    for camera, counts in statistics["sources_by_camera"].items():
        sources = [one.source for _, its_camera, one, _ in expected if its_camera == camera]
        assert counts == {source: sources.count(source) for source in sorted(set(sources))}
    assert list(statistics["mean_iou_by_camera"]) == list(statistics["brightness_by_camera"]) == ["9", "11"]
    for camera, level in (("9", 200), ("11", 5)):
        ious = [iou for _, its_camera, _, iou in expected if its_camera == camera and iou is not None]
        assert statistics["mean_iou_by_camera"][camera] == pytest.approx(np.mean(ious))
        assert statistics["brightness_by_camera"][camera] == pytest.approx(level / 255, abs=0.02)
    ious = [iou for _, _, _, iou in expected if iou is not None]
    assert (statistics["mean_iou"], statistics["scored"]) == (pytest.approx(np.mean(ious)), len(ious))


class _Maker(ShardMaker):
    gpus_per_actor = 1
    cpus_per_actor = 4

    def make(self, work: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        ([{"CPU": 16, "GPU": 2}, {"CPU": 64}, {"CPU": 8, "GPU": 1}], (3, {"num_gpus": 1})),
        ([{"CPU": 16}, {"CPU": 6}], (5, {"num_cpus": 4})),
        ([{"CPU": 2}], (1, {"num_cpus": 2})),
        ([{"CPU": 0}, {"CPU": 3}], (1, {"num_cpus": 3})),
        ([{}], (1, {"num_cpus": 1})),
    ],
)
def test_actors_take_gpus_where_there_are_any_and_cpus_otherwise(machines: Any, expected: Any) -> None:
    assert share_machines(machines, _Maker()) == expected


def test_overlap_by_hand() -> None:
    a = np.array([[1, 1, 0, 0]], dtype=bool)
    b = np.array([[0, 1, 1, 1]], dtype=bool)
    assert intersection_over_union(a, b) == 1 / 4
    assert intersection_over_union(a, a) == 1
    assert intersection_over_union(a, ~a) == 0
    assert intersection_over_union(~(a | ~a), ~(a | ~a)) == 1


def test_mask_survives_encoding(rng: np.random.Generator) -> None:
    mask = rng.random((37, 19)) < 0.5
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)


def test_foreground_share_is_the_mean_of_the_block(rng: np.random.Generator) -> None:
    mask = rng.random((32, 16)) < 0.5
    blocks = mask.reshape(8, 4, 4, 4).mean(axis=(1, 3)) * 255
    assert np.abs(foreground_share(mask, (8, 4)) - blocks).max() <= 1
    assert np.array_equal(foreground_share(mask, (32, 16)), mask * 255)


@pytest.mark.parametrize(
    ("kind", "size", "half_axes"),
    [
        ("person", (64, 32), (0.4, 0.25)),
        ("vehicle", (32, 64), (0.3, 0.4)),
    ],
)
def test_grabcut_beats_the_best_centre_ellipse(
    kind: str, size: tuple[int, int], half_axes: tuple[float, float]
) -> None:
    triplets, truths = render(kind, size)
    found = GrabCutSettings().build().segment(triplets)
    overlap = np.mean([intersection_over_union(a.mask, b) for a, b in zip(found, truths, strict=True)])
    # The half axes are those that overlap most with these masks.
    fixed = np.mean([intersection_over_union(ellipse(size, half_axes), truth) for truth in truths])
    assert overlap > fixed + 0.05


def test_grabcut_gives_the_same_mask_in_any_order() -> None:
    triplets, _ = render("person", (64, 32))
    segmenter = GrabCutSettings().build()
    masks = [segmentation.mask for segmentation in segmenter.segment(triplets)]
    backwards = [segmentation.mask for segmentation in segmenter.segment(triplets[::-1])]
    assert all(np.array_equal(a, b) for a, b in zip(masks, backwards[::-1], strict=True))


@pytest.mark.parametrize("size", [(64, 32), (2, 2), (1, 5)])
def test_grabcut_survives_an_image_without_content(size: tuple[int, int]) -> None:
    [found] = GrabCutSettings().build().segment([np.full((3, *size, 3), 128, dtype=np.uint8)])
    assert found.mask.shape == size
    assert found.score == 0


@pytest.mark.parametrize("high", [1, 255])
def test_true_masks_of_0_and_1_are_those_of_0_and_255(tmp_path: Path, high: int) -> None:
    truth = TrueMasks(tmp_path, {"test": "test"})
    mask = np.tri(8, 4, dtype=bool)
    (tmp_path / "test").mkdir()
    Image.fromarray(mask.astype(np.uint8) * high).save(tmp_path / "test" / "a.png")
    truth.load()
    assert np.array_equal(truth.read("test/a", (8, 4)), mask)


def test_soft_true_mask_is_refused_with_what_to_do(tmp_path: Path) -> None:
    truth = TrueMasks(tmp_path, {"test": "test"})
    (tmp_path / "test").mkdir()
    Image.linear_gradient("L").save(tmp_path / "test" / "a.png")
    truth.load()
    with pytest.raises(CatalogError, match=r"true mask .*a\.png holds the value 1, .*: use mask >= 128"):
        truth.read("test/a", (256, 256))
