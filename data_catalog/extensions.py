"""Objects of a user's own modules, named `module:attribute` as uvicorn and gunicorn name applications."""

import importlib
import traceback
from typing import Any

from data_catalog.errors import CatalogError


def is_own(name: str) -> bool:
    """Whether a name means an object of a module and not one of the built-in ones."""
    return ":" in name


def load_object(name: str, role: str) -> Any:
    """The object that `module:attribute` names.

    The module is imported from the current folder (with `python -m`), from `PYTHONPATH` or from an installed
    package. Ray's workers import it from the same places.

    Args:
        name: For example `market_layout:MARKET`.
        role: What it is used as, such as `segmenter`; begins messages.

    Raises:
        CatalogError: If the name has another form, or the module cannot be imported or lacks the attribute.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise CatalogError(
            f"{role} {name!r} is not of the form module:attribute; write for example my_module:MyName"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        is_absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        remedy = (
            "call the command in the folder that holds it, or add that folder to PYTHONPATH"
            if is_absent
            else "correct the module"
        )
        raise CatalogError(
            f"{role} {name}: module {module_name} cannot be imported "
            f"({type(error).__name__}: {error}{_position(error)}); {remedy}"
        ) from error
    if not hasattr(module, attribute):
        raise CatalogError(
            f"{role} {name}: module {module_name} ({module.__file__}) has no attribute {attribute}; "
            "correct the name"
        )
    return getattr(module, attribute)


def _position(error: Exception) -> str:
    """File and line of the imported module where an import failed, for a message."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen")
    ]
    return f", in {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
