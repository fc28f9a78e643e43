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
        # Three arguments, so that it can be sent to another process.
        super().__init__(str(file), reason, remedy)

    def __str__(self) -> str:
        file, reason, remedy = self.args
        return f"{file} is damaged ({reason}); {remedy}"


def describe_cause(error: BaseException) -> str:
    """What an error of a library came from, in one line: the first of the exceptions that it wraps.

    A wrapper guesses ("typically invalid data"), or prints a statement of SQL; the first one says what
    happened (`database is locked`, `No space left on device`).
    """
    causes = [error]
    # Two may name each other.
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    first = causes[-1]
    text = str(first).strip() or str(error).strip() or type(first).__name__
    if "Traceback (" in text:
        # The last line of the first of its causes; what was being handled meanwhile is none.
        text = text.rpartition("another exception occurred:")[2]
        text = text.partition("The above exception was the direct cause")[0].strip().rpartition("\n")[2]
    # What a KeyError says is nothing without its name.
    return " ".join(f"KeyError: {text}".split() if isinstance(first, KeyError) else text.split())


class StorageAwayError(CatalogError, OSError):
    """Storage that had answered before does not any more, for as long as one was willing to wait."""


def name_first(values: Sequence[Any], most: int = NAMED) -> str:
    """The first of many values for a message, and how many more there are: `a, b and 3 more`."""
    more = len(values) - most
    return ", ".join(map(str, values[:most])) + (f" and {more} more" if more > 0 else "")
