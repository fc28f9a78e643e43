"""What users add in modules of their own, named `module:attribute` as uvicorn names applications."""

import importlib
import inspect
import traceback
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from data_catalog.errors import CatalogError
from data_catalog.records import Record, describe_invalid


class ActorSettings(Record):
    """Everything that determines the results of a segmenter or captioner; builds it.

    Settings are sent to Ray's actors and stored with the table, so a model that takes long to load belongs
    into what `build` returns.
    """

    version: ClassVar[int] = 1
    """Version of the code of a user's own class. To be raised when results change though no setting does;
    otherwise a table made before is found again."""
    gpus_per_actor: ClassVar[float] = 0
    """GPUs that one actor uses where the cluster has any."""
    cpus_per_actor: ClassVar[float] = 1
    """CPUs that one actor uses otherwise."""

    @abstractmethod
    def build(self) -> Any:
        """What does the work; called once in every actor."""

    def stored(self, role: str) -> dict[str, Any]:
        """What a table stores of these settings, as part of its key.

        Args:
            role: `segmenter` or `captioner`. The built-in ones have a field of this name; the settings of a
                user's own class get the class's name there, and its version.
        """
        own = type(self)
        if own.__module__.partition(".")[0] == __package__:
            return self.model_dump()
        values = self.model_dump(mode="json", exclude={role, "version"})
        return {role: f"{own.__module__}:{own.__qualname__}", "version": own.version} | values


S = TypeVar("S", bound=ActorSettings)


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


def load_settings(name: str, role: str, base: type[S], values: Mapping[str, Any]) -> S:
    """Settings of a user's own class.

    Args:
        name: The class, as `module:attribute`.
        role: What it is used as, such as `segmenter`; begins messages.
        base: The class that it must extend.
        values: Its fields, by name.

    Raises:
        CatalogError: If there is no such class, it lacks a method, or a value is impossible.
    """
    found = load_object(name, role)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CatalogError(
            f"{role} {name}: expected a subclass of {base.__name__} ({base.__module__}), found {found!r:.80}"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise CatalogError(f"{role} {name}: the class lacks the method {missing}; define it")
    try:
        return found(**values)
    except ValidationError as error:
        settings = ", ".join(found.model_fields) or "none"
        raise CatalogError(
            f"{role} {name}: {describe_invalid(error)} (got {error.errors()[0]['input']!r}); its settings "
            f"are: {settings}"
        ) from None


def _position(error: Exception) -> str:
    """File and line of the imported module where an import failed, for a message."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen")
    ]
    return f", in {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
