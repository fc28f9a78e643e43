import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_catalog.errors import CatalogError
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from data_catalog.views.placement import identities_by_shard
from data_catalog.views.training_view import ViewSettings, make_view
from data_catalog.views.view_reader import open_view
from tests.data_catalog.folders import HEIGHT, WIDTH, image_path, sample_ids
from tests.data_catalog.memory import no_copies

TRAIN = [sample_id for sample_id in sample_ids() if sample_id.startswith("train/")]


def pixels_by_pillow(source: Path, sample_id: str, size: tuple[int, int] | None = None) -> np.ndarray:
    images = []
    for modality in range(3):
        with Image.open(image_path(source, sample_id, modality)) as image:
            resized = image if size is None else image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
            images.append(np.asarray(resized).transpose(2, 0, 1))
    return np.stack(images)


def test_view_holds_what_pillow_decodes(built: Any) -> None:
    view = open_view(built.view)
    assert (len(view), view.image_size, view.text_dim) == (12, (HEIGHT, WIDTH), 6)
    assert view.sample_id.tolist() == TRAIN
    batch = view.batch(np.arange(len(view)))
    masks = dict(zip(*built.masks.read(["sample_id", "mask"]).to_pydict().values(), strict=True))
    features = dict(
        zip(*built.text_features.read(["sample_id", "text_feature"]).to_pydict().values(), strict=True)
    )
    for row, sample_id in enumerate(TRAIN):
        assert np.array_equal(batch.pixels[row], pixels_by_pillow(built.source, sample_id))
        mask = np.asarray(Image.open(io.BytesIO(masks[sample_id])))
        assert np.array_equal(batch.mask[row], mask * np.uint8(255))
        assert np.array_equal(batch.text_feature[row], np.float32(features[sample_id]))
        assert batch.identity[row] == int(sample_id.split("/")[1][:6])
        assert batch.camera_id[row] == int(sample_id.split("_cam")[1][0]) - 1
        assert not batch.is_query[row]
        assert not batch.is_gallery[row]
    assert batch.scene_id.tolist() == [-1] * 12
    assert batch.sample_index.tolist() == view.sample_index.tolist()


def test_rows_come_in_the_order_asked_for_across_shards(built: Any, rng: np.random.Generator) -> None:
    view = open_view(built.view)
    assert len(built.view.manifest.shards) == 3
    rows = rng.integers(0, len(view), 40)
    batch = view.batch(rows)
    for position, row in enumerate(rows):
        single = view.batch([row])
        for name in ("pixels", "mask", "text_feature", "identity", "camera_id", "sample_index"):
            assert np.array_equal(getattr(batch, name)[position], getattr(single, name)[0])
    assert view.batch([]).pixels.shape == (0, 3, 3, HEIGHT, WIDTH)


@pytest.mark.parametrize("rows", [[12], [-1], [[0]]])
def test_rows_outside_the_view_are_refused(built: Any, rows: list[Any]) -> None:
    with pytest.raises(IndexError):
        open_view(built.view).batch(rows)


def test_opening_copies_no_pixels(built: Any) -> None:
    with no_copies(len(built.view) * 9 * HEIGHT * WIDTH):
        view = open_view(built.view)
    assert len(view) == len(built.view)


def test_view_of_another_size_is_resized_and_its_mask_averaged(built: Any) -> None:
    size = (HEIGHT // 2, WIDTH // 2)
    settings = ViewSettings(split="test", height=size[0], width=size[1])
    view = open_view(make_view(built.samples, built.masks, None, settings))
    batch = view.batch(np.arange(len(view)))
    masks = dict(zip(*built.masks.read(["sample_id", "mask"]).to_pydict().values(), strict=True))
    for row, sample_id in enumerate(view.sample_id):
        assert np.array_equal(batch.pixels[row], pixels_by_pillow(built.source, sample_id, size))
        mask = np.asarray(Image.open(io.BytesIO(masks[sample_id])), dtype=float)
        mean = mask.reshape(size[0], 2, size[1], 2).mean(axis=(1, 3)) * 255
        assert np.abs(batch.mask[row] - mean).max() <= 1
    assert batch.is_query.all()
    assert batch.is_gallery.all()
    assert not batch.text_feature.any()
    assert batch.text_feature.shape == (8, 512)


def test_without_masks_everything_is_foreground(built: Any) -> None:
    settings = ViewSettings(split="val", height=HEIGHT, width=WIDTH)
    view = open_view(make_view(built.samples, None, built.text_features, settings))
    assert (view.batch([0, 7]).mask == 255).all()


def test_tables_of_other_samples_are_refused(built: Any, own_source: Path) -> None:
    other = ingest(own_source, built.catalog, "other", IngestSettings(samples_per_shard=28))
    with pytest.raises(CatalogError, match="was made from other samples"):
        make_view(other, built.masks, None, ViewSettings(split="val", height=HEIGHT, width=WIDTH))


def test_split_that_is_not_there_is_named(built: Any) -> None:
    with pytest.raises(CatalogError, match=r"split 'trian' is not in .*expected one of test, train, val"):
        make_view(built.samples, None, None, ViewSettings(split="trian", height=8, width=8))


def test_only_a_view_opens_as_one(built: Any) -> None:
    with pytest.raises(CatalogError, match="holds samples, expected a view"):
        open_view(built.samples)


def test_shards_hold_whole_identities_and_the_manifest_says_which(built: Any) -> None:
    assert built.view.statistics == {"identities": [[[1, 4]], [[2, 4]], [[3, 4]]], "cameras": [0, 1]}
    for number, identity in enumerate(identities_by_shard(built.view)):
        assert built.view.read_shard(number, ["identity"])["identity"].to_pylist() == identity.tolist()
    assert open_view(built.view).cameras == 2


def test_some_shards_are_a_view_of_their_rows(built: Any) -> None:
    whole, part = open_view(built.view), open_view(built.view, [2, 0])
    assert (part.shards, len(part), part.cameras) == ((0, 2), 8, 2)
    rows = np.flatnonzero(whole.identity != 2)
    assert part.sample_id.tolist() == whole.sample_id[rows].tolist()
    for name, values in vars(part.batch(np.arange(8))).items():
        assert np.array_equal(values, getattr(whole.batch(rows), name)), name


class Relabelled(Table):
    """A samples table whose neighbours are of other identities, as if names did not begin with them."""

    def read_shard(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        rows = super().read_shard(number)
        position = rows.column_names.index("identity")
        identity = pa.array(rows["sample_index"].to_numpy() * 5 % 3, pa.int64())
        rows = rows.set_column(position, rows.schema.field(position), identity)
        return rows if columns is None else rows.select(list(columns))


def test_rows_are_grouped_by_identity_where_sample_ids_are_not(built: Any) -> None:
    samples = Relabelled(built.samples.catalog, built.samples.manifest)
    settings = ViewSettings(split="train", height=HEIGHT, width=WIDTH, samples_per_shard=8)
    view = open_view(make_view(samples, built.masks, built.text_features, settings))
    by_sample_index = open_view(built.view)
    rows = sorted(range(12), key=lambda row: (by_sample_index.sample_index[row] * 5 % 3, row))
    assert rows != list(range(12))
    assert view.sample_id.tolist() == [TRAIN[row] for row in rows]
    assert [shard.rows for shard in view.table.manifest.shards] == [8, 4]
    batch, same = view.batch(np.arange(12)), by_sample_index.batch(rows)
    for name in ("sample_index", "pixels", "mask", "text_feature"):
        assert np.array_equal(getattr(batch, name), getattr(same, name)), name
