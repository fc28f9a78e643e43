"""The manifest of a samples table, read again for the masks and captions that it names."""

from pathlib import Path

from data_catalog.errors import CatalogError
from data_catalog.formats import Listing
from data_catalog.samples.layout import layout_of
from data_catalog.tables.table import Table


def read_manifest_again(samples: Table, given: str | Path | None, option: str) -> Listing | None:
    """What the manifest of a data set lists now; None if the data set has none, or a folder is given.

    Args:
        samples: The samples table.
        given: What the user names in place of the manifest that was ingested.
        option: The option with which the user does so.

    Raises:
        CatalogError: The manifest is not there, or wrong.
    """
    source_format = layout_of(samples)
    if not source_format.is_manifest or (given is not None and Path(given).is_dir()):
        return None
    path = Path(given if given is not None else samples.manifest.created["source"])
    if not path.is_file():
        raise CatalogError(
            f"manifest {path} of data set {samples.manifest.dataset!r} is not there; name it with {option}"
        )
    return source_format.read(path)
