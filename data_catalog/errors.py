"""The one error of the catalog that is meant for the person at the keyboard."""


class CatalogError(ValueError):
    """Something the user can put right; names the file or field, what was expected, and what to do."""
