"""Cameras as people know them: by the number in the names of the files."""

from data_catalog.formats import FORMATS
from data_catalog.tables.table import Table


def first_camera(samples: Table) -> int:
    """What the files of a samples table call the camera whose `camera_id` is 0."""
    # Tables of earlier versions do not say it.
    known = FORMATS.get(samples.manifest.settings["format"])
    return int(samples.manifest.created.get("first_camera", known.first_camera if known else 0))


def shown_camera(camera_id: int, first: int) -> str:
    """The camera as people know it, `none` where there is none.

    Args:
        camera_id: As in tables.
        first: As `first_camera` gives it.
    """
    return "none" if camera_id < 0 else str(camera_id + first)
