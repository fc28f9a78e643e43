"""Layouts in which data sets are published: one file each, all giving the same `Listing`."""

from collections.abc import Mapping

from data_catalog.formats import rgbnt201
from data_catalog.formats.source import SPLITS, Listing, Rejected, SourceFormat, SourceSample

FORMATS: Mapping[str, SourceFormat] = {rgbnt201.FORMAT.name: rgbnt201.FORMAT}
"""Every layout by its name."""

__all__ = ["FORMATS", "SPLITS", "Listing", "Rejected", "SourceFormat", "SourceSample"]
