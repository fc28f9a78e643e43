"""The errors of the catalog that are meant for the person at the keyboard."""


class CatalogError(ValueError):
    """Something the user can put right; names the file or field, what was expected, and what to do."""


class NotWritableError(CatalogError):
    """A catalog that cannot be written to: it is for reading only, or its disk is full."""
