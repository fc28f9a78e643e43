"""Views of several data sets as one, against a naive concatenation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_catalog.errors import CatalogError
from data_catalog.views.joined_view import JoinedView, check_alike
from data_catalog.views.training_view import ViewSettings, make_view
from data_catalog.views.view_reader import View, open_view
from tests.data_catalog.folders import HEIGHT, WIDTH


@pytest.fixture(scope="module")
def views(built: Any) -> list[View]:
    """Three splits, as if they were three data sets; the third lacks an image and a camera number."""
    size = {"height": HEIGHT, "width": WIDTH}
    others = [
        make_view(built.samples, built.masks, built.text_features, ViewSettings(split=split, **size))
        for split in ("test", "val")
    ]
    opened = [open_view(table) for table in (built.view, *others)]
    opened[2].missing = np.zeros((len(opened[2]), 3), dtype=bool)
    opened[2].missing[1, 2] = True
    opened[2].camera_id = opened[2].camera_id.copy()
    opened[2].camera_id[0] = -1
    for view, name in zip(opened, ("a", "b", "c"), strict=True):
        view.table = replace(view.table, manifest=view.table.manifest.model_copy(update={"dataset": name}))
    return opened


def test_rows_are_those_of_the_views_one_after_the_other(views: list[View], rng: np.random.Generator) -> None:
    joined = JoinedView(views, [0, 5, 9])
    whole = [view.batch(np.arange(len(view))) for view in views]
    rows = rng.integers(0, len(joined), 50)
    batch = joined.batch(rows)
    assert len(joined) == sum(map(len, views)) == 28
    for name in ("pixels", "mask", "text_feature", "scene_id", "is_query", "is_gallery", "sample_index"):
        assert np.array_equal(getattr(batch, name), np.concatenate([getattr(w, name) for w in whole])[rows])
    cameras = [
        -1 if camera < 0 else first + camera
        for first, part in zip((0, 5, 9), whole, strict=True)
        for camera in part.camera_id.tolist()
    ]
    assert batch.camera_id.tolist() == [cameras[row] for row in rows]
    missing = [False] * (len(views[0]) + len(views[1])) * 3 + whole[2].missing.ravel().tolist()  # type: ignore[union-attr]
    assert batch.missing is not None
    assert np.array_equal(batch.missing, np.reshape(missing, (-1, 3))[rows])
    names = [f"{name}/{sample}" for name, view in zip("abc", views, strict=True) for sample in view.sample_id]
    assert joined.sample_id.tolist() == names


def test_no_identity_of_one_view_is_one_of_another(views: list[View]) -> None:
    same = [views[0], views[0]]
    joined = JoinedView(same, [0, 2])
    batch = joined.batch(np.arange(len(joined)))
    first, second = np.split(batch.identity, 2)
    assert np.array_equal(first, views[0].identity)
    assert not set(first) & set(second)
    assert np.array_equal(np.unique(first, return_inverse=True)[1], np.unique(second, return_inverse=True)[1])
    assert set(batch.camera_id[: len(views[0])]) == {0, 1}
    assert set(batch.camera_id[len(views[0]) :]) == {2, 3}


def test_one_view_alone_is_itself(views: list[View]) -> None:
    joined, rows = JoinedView(views[:1], [0]), [3, 0, 3]
    for name, values in vars(views[0].batch(rows)).items():
        assert np.array_equal(getattr(joined.batch(rows), name), values)
    assert joined.sample_id.tolist() == views[0].sample_id.tolist()
    assert joined.batch([]).pixels.shape == (0, 3, 3, HEIGHT, WIDTH)


@pytest.mark.parametrize("rows", [[28], [-1]])
def test_rows_outside_are_refused(views: list[View], rows: list[int]) -> None:
    with pytest.raises(IndexError, match="expected 0 to 27"):
        JoinedView(views, [0, 5, 9]).batch(rows)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"height": 64}, "'b' has a view of images of 64x16 and text features of width 6, data set 'a'"),
        ({"text_dim": 512}, r"'b' .* width 512, data set 'a' .* width 6; .*make the views of 'b' again"),
    ],
)
def test_views_that_are_not_alike_are_refused_by_name(
    views: list[View], changed: dict[str, int], message: str
) -> None:
    tables = [view.table for view in views[:2]]
    settings = tables[1].manifest.settings | changed
    other = replace(tables[1], manifest=tables[1].manifest.model_copy(update={"settings": settings}))
    check_alike(tables)
    with pytest.raises(CatalogError, match=message):
        check_alike([tables[0], other])
