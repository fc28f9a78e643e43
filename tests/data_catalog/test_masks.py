import io
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_catalog.errors import CatalogError
from data_catalog.grabcut import GrabCutSettings, ellipse
from data_catalog.images import decode_mask, encode_mask, foreground_share, intersection_over_union
from data_catalog.masks import make_masks
from data_catalog.synthetic import SyntheticSettings, draw_sample
from tests.data_catalog.folders import HEIGHT, WIDTH, sample_ids, true_mask_path


def drawn(kind: str, size: tuple[int, int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images and true masks of some validation identities of the benchmark."""
    settings = SyntheticSettings(kind=kind, height=size[0], width=size[1])
    samples = [
        draw_sample(settings, identity, camera, shot=0)
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
    unscored = make_masks(built.samples)
    assert not unscored.reused
    assert unscored.digest == built.masks.digest
    assert "mean_iou" not in unscored.statistics


def test_true_mask_of_another_size_is_named(built: Any, own_source: Path) -> None:
    path = true_mask_path(own_source, sample_ids()[0])
    Image.new("L", (3, 3)).save(path)
    with pytest.raises(CatalogError, match=rf"{path.name} is \(3, 3\), expected the size of its sample"):
        make_masks(built.samples, true_masks=own_source / "true_masks")


def test_folder_without_true_masks_is_refused(built: Any, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="holds no folder of a split; expected train_171, val, test"):
        make_masks(built.samples, true_masks=tmp_path)


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
    triplets, truths = drawn(kind, size)
    found = GrabCutSettings().build().segment(triplets)
    overlap = np.mean([intersection_over_union(a.mask, b) for a, b in zip(found, truths, strict=True)])
    # The half axes are those that overlap most with these masks.
    fixed = np.mean([intersection_over_union(ellipse(size, half_axes), truth) for truth in truths])
    assert overlap > fixed + 0.05


def test_grabcut_gives_the_same_mask_in_any_order() -> None:
    triplets, _ = drawn("person", (64, 32))
    segmenter = GrabCutSettings().build()
    masks = [segmentation.mask for segmentation in segmenter.segment(triplets)]
    backwards = [segmentation.mask for segmentation in segmenter.segment(triplets[::-1])]
    assert all(np.array_equal(a, b) for a, b in zip(masks, backwards[::-1], strict=True))


@pytest.mark.parametrize("size", [(64, 32), (2, 2), (1, 5)])
def test_grabcut_survives_an_image_without_content(size: tuple[int, int]) -> None:
    [found] = GrabCutSettings().build().segment([np.full((3, *size, 3), 128, dtype=np.uint8)])
    assert found.mask.shape == size
    assert found.score == 0
