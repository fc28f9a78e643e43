"""Errors of the catalog that the user can correct."""


class CatalogError(ValueError):
    """Something the user can correct; names the file or field, what was expected, and what to do."""


class NotWritableError(CatalogError):
    """The catalog cannot be written to: it is read-only, or its disk is full."""
