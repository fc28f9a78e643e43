"""Open views of several data sets as one: the rows of the first one, then those of the next."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_catalog.errors import CatalogError
from data_catalog.tables.table import Table
from data_catalog.views.placement import identities_by_shard
from data_catalog.views.training_view import ViewSettings
from data_catalog.views.view_reader import View, ViewBatch, checked_rows


class Rows(Protocol):
    """Rows by number: a view, or several as one."""

    def __len__(self) -> int:
        """Number of rows."""

    def batch(self, rows: npt.ArrayLike) -> ViewBatch:
        """The rows with these numbers, as `View.batch` gives them."""


class JoinedView:
    """The rows of some views, whose identities and cameras are kept apart.

    Args:
        views: Views of one image size and one width of text features.
        first_cameras: For each view, the number that its camera 0 has here.

    Attributes:
        sample_id: str `(rows,)`; of several views with the name of the data set before it.

    Raises:
        CatalogError: The views differ in image size or width of text features; names the data sets.
    """

    def __init__(self, views: Sequence[View], first_cameras: Sequence[int]) -> None:
        check_alike([view.table for view in views])
        self._views = tuple(views)
        self._first_rows = np.cumsum([0, *map(len, views)])
        self._first_cameras = tuple(first_cameras)
        largest = [max(int(shard.max()) for shard in identities_by_shard(view.table)) for view in views[:-1]]
        self._first_identities = np.cumsum([0, *(number + 1 for number in largest)])
        names = [f"{view.table.manifest.dataset}/" if len(views) > 1 else "" for view in views]
        self.sample_id: npt.NDArray[np.str_] = np.concatenate(
            [np.char.add(name, view.sample_id) for name, view in zip(names, views, strict=True)]
        )

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def batch(self, rows: npt.ArrayLike) -> ViewBatch:
        """Copy the rows with these numbers, in this order; a number may be repeated.

        Identities are raised by as much as keeps those of two views apart, cameras as `first_cameras` says; a
        camera of -1 stays.

        Raises:
            IndexError: If a number is negative or not below `len(self)`.
        """
        rows = checked_rows(rows, len(self))
        owner = np.searchsorted(self._first_rows, rows, side="right") - 1
        numbers = np.unique(owner).tolist() or [0]
        parts = {number: self._part(number, rows[owner == number]) for number in numbers}
        if len(parts) == 1:
            return ViewBatch(**next(iter(parts.values())))
        joined = {}
        for field in fields(ViewBatch):
            values = {number: part[field.name] for number, part in parts.items()}
            joined[field.name] = _joined(values, owner)
        return ViewBatch(**joined)

    def _part(self, number: int, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Rows of one view by field of `ViewBatch`."""
        columns = dict(vars(self._views[number].batch(rows - self._first_rows[number])))
        camera = columns["camera_id"]
        columns["identity"] = columns["identity"] + self._first_identities[number]
        columns["camera_id"] = np.where(camera < 0, camera, camera + np.int32(self._first_cameras[number]))
        return columns


def check_alike(views: Sequence[Table]) -> None:
    """Refuse views that cannot be trained on together.

    Raises:
        CatalogError: Names two data sets, in what they differ, and what to do.
    """
    settings = [ViewSettings.model_validate(view.manifest.settings) for view in views]
    for view, own in zip(views, settings, strict=True):
        sizes = [(one.height, one.width, one.text_dim) for one in (own, settings[0])]
        if sizes[0] != sizes[1]:
            described = [f"images of {h}x{w} and text features of width {text}" for h, w, text in sizes]
            raise CatalogError(
                f"data set {view.manifest.dataset!r} has a view of {described[0]}, data set "
                f"{views[0].manifest.dataset!r} one of {described[1]}; those trained on together must be "
                f"alike: make the views of {view.manifest.dataset!r} again (`python -m data_catalog "
                f"text-features` with the other's CLIP, then `view --size {sizes[1][0]}x{sizes[1][1]}`)"
            )


def _joined(values: dict[int, Any], owner: npt.NDArray[np.int64]) -> Any:
    """One column of the rows of several views, in the order of the rows; None where no view has it."""
    known = [part for part in values.values() if part is not None]
    if not known:
        return None
    # A view of a data set that lacks no image has no column `missing`.
    joined = np.zeros((len(owner), *known[0].shape[1:]), dtype=known[0].dtype)
    for number, part in values.items():
        if part is not None:
            joined[owner == number] = part
    return joined
