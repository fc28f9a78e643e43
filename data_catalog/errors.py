"""Errors of the catalog that the user can correct."""

from collections.abc import Sequence
from typing import Any

NAMED = 5
"""How many values a message names, unless it says otherwise."""


class CatalogError(ValueError):
    """Something the user can correct; names the file or field, what was expected, and what to do."""


class NotWritableError(CatalogError):
    """The catalog cannot be written to: it is read-only, or its disk is full."""


class DamagedFileError(CatalogError):
    """A stored file whose content is not what was written; names the file, and what to do."""

    def __init__(self, file: object, reason: str, remedy: str) -> None:
        super().__init__(f"{file} is damaged ({reason}); {remedy}")


def name_first(values: Sequence[Any], most: int = NAMED) -> str:
    """The first of many values for a message, and how many more there are: `a, b and 3 more`."""
    more = len(values) - most
    return ", ".join(map(str, values[:most])) + (f" and {more} more" if more > 0 else "")
