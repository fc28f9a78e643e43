"""Layouts in which data sets are published: one file each, all giving the same `Listing`."""

from collections.abc import Mapping

from data_catalog.formats import msvr310, rgbnt100, rgbnt201
from data_catalog.formats.source import (
    SIDE_BY_SIDE,
    SPLITS,
    Listing,
    Rejected,
    SourceFormat,
    SourceSample,
    Split,
)

FORMATS: Mapping[str, SourceFormat] = {
    module.FORMAT.name: module.FORMAT for module in (rgbnt201, rgbnt100, msvr310)
}
"""Every layout by its name."""

__all__ = [
    "FORMATS",
    "SIDE_BY_SIDE",
    "SPLITS",
    "Listing",
    "Rejected",
    "SourceFormat",
    "SourceSample",
    "Split",
]
