"""Layouts in which data sets are published, and manifests of one's own: all give the same `Listing`."""

from collections.abc import Mapping

from data_catalog.errors import CatalogError
from data_catalog.extensions import is_own, load_object
from data_catalog.formats import manifest, msvr310, rgbnt100, rgbnt201
from data_catalog.formats.source import (
    QUERY_SUFFIX,
    SIDE_BY_SIDE,
    SPLITS,
    Listing,
    Rejected,
    SourceFormat,
    SourceSample,
    Split,
)

FORMATS: Mapping[str, SourceFormat] = {
    module.FORMAT.name: module.FORMAT for module in (rgbnt201, rgbnt100, msvr310, manifest)
}
"""Every built-in layout by its name."""


def find_format(name: str) -> SourceFormat:
    """A layout by its name in FORMATS, or the user's own as `module:attribute`.

    Raises:
        CatalogError: If there is none of that name, or the attribute is no SourceFormat.
    """
    if name in FORMATS:
        return FORMATS[name]
    if not is_own(name):
        raise CatalogError(
            f"format {name!r} is not known; use one of {', '.join(sorted(FORMATS))}, or name your own as "
            "module:attribute"
        )
    found = load_object(name, "format")
    if not isinstance(found, SourceFormat):
        raise CatalogError(
            f"format {name}: expected a SourceFormat (data_catalog.formats), found {found!r:.80}"
        )
    return found


__all__ = [
    "FORMATS",
    "QUERY_SUFFIX",
    "SIDE_BY_SIDE",
    "SPLITS",
    "Listing",
    "Rejected",
    "SourceFormat",
    "SourceSample",
    "Split",
    "find_format",
]
