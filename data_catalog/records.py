"""Records: immutable models of what is stored and of what a command prints with `--json`."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from data_catalog.interrupts import printing

FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""What may name a data set, and so a folder of the catalog."""
NO_FOLDER_NAME = "cannot name a folder; use letters, digits, '.', '_' and '-'"


class Record(BaseModel):
    """Base of every model that is stored as JSON or printed as JSON.

    A field whose JSON key is no Python name (`mAP`, `95 %`) has that key as its alias.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> str:
        """The record as one JSON document; numbers that are not finite are refused.

        Raises:
            ValueError: A number is NaN or infinite, which JSON does not have.
        """
        return json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False)


def describe_invalid(error: ValidationError, whole: str = "") -> str:
    """The first fault that a model found: the field, and what was expected there.

    Args:
        error: What the model raised.
        whole: Name of the value, for a fault that belongs to no single field.
    """
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or whole
    return f"{field}{': ' if field else ''}{first['msg'].removeprefix('Value error, ')}"


Printed = type[BaseModel] | Callable[[], type[BaseModel]]
"""A model, or a function that gives it where its import takes seconds."""


def model_of(printed: Printed) -> type[BaseModel]:
    """The model itself."""
    # A model can be called, too.
    return cast(type[BaseModel], printed if isinstance(printed, type) else printed())


class _PrintSchema(argparse.Action):
    """Prints a schema and exits, whatever else the command line lacks, as `--help` does."""

    def __init__(self, option_strings: Sequence[str], dest: str, record: Printed, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)
        self.record = record

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the schema."""
        with printing():
            print(json.dumps(model_of(self.record).model_json_schema(mode="serialization"), indent=2))  # noqa: T201
        parser.exit()


def add_json_options(parser: argparse.ArgumentParser, record: Printed) -> None:
    """Add `--json` and `--json-schema` to a command.

    Args:
        parser: The command's parser.
        record: What the command prints with `--json`; a function is called for `--json-schema` only.
    """
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument(
        "--json-schema", action=_PrintSchema, record=record, help="print the JSON schema of that document"
    )
