"""Arguments that several commands take, and the tables that they name."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from data_catalog.errors import CatalogError
from data_catalog.extensions import is_own
from data_catalog.records import Record
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, find_table, list_datasets, list_tables

OWN = "MODULE:ATTRIBUTE"
"""How help and messages call an object of a user's own module."""


def add_catalog(parser: argparse.ArgumentParser) -> None:
    """Declare --catalog."""
    parser.add_argument("--catalog", required=True, metavar="URI", help="folder or URI (s3://...) of tables")


def add_dataset(parser: argparse.ArgumentParser, samples_key: bool = True) -> None:
    """Declare the data set's name, its catalog and a samples table."""
    parser.add_argument("name", metavar="NAME", help="name of the data set")
    add_catalog(parser)
    if samples_key:
        parser.add_argument("--samples-key", metavar="KEY", help="default: the newest samples table")


def add_samples(parser: argparse.ArgumentParser) -> None:
    """Declare what `find_samples` reads: catalog, data set and samples table."""
    add_catalog(parser)
    parser.add_argument("--dataset", metavar="NAME", help="default: the only one of the catalog")
    parser.add_argument("--samples-key", metavar="KEY", help="default: the newest samples table")


def add_choice(
    parser: argparse.ArgumentParser, option: str, names: Sequence[str], about: str, default: str
) -> None:
    """Declare an option whose value is a built-in name, or a user's own object as module:attribute."""

    def built_in_or_own(text: str) -> str:
        if text not in names and not is_own(text):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not one of {', '.join(names)}; your own is named module:attribute"
            )
        return text

    metavar = f"{{{','.join(names)},{OWN}}}"
    parser.add_argument(option, type=built_in_or_own, metavar=metavar, default=default, help=about)


def find_samples(args: argparse.Namespace) -> Table:
    """The samples table of the named data set, or of the only one in the catalog."""
    return find_table(args.catalog, _dataset(args), TableKind.SAMPLES, key=args.samples_key)


def find_made_from(samples: Table, kind: TableKind, key: str | None) -> Table:
    """The newest table of a kind that was made of these samples, or the one with the key."""
    inputs = {"samples": samples.digest}
    return find_table(samples.catalog, samples.manifest.dataset, kind, key=key, inputs=inputs)


@dataclass(frozen=True)
class Option:
    """An option of a command; its value is None unless the user gives it.

    Attributes:
        name: Such as `--max-answer-tokens`.
        help: Its help, with the default of the settings.
        type: Reads the text; a tuple holds the values to choose from, and bool makes a flag.
        metavar: What stands for the value in the help.
        is_repeated: Whether it may be given several times; its value is then a list.
    """

    name: str
    help: str
    type: Callable[[str], Any] | tuple[str, ...] = str
    metavar: str | None = None
    is_repeated: bool = False

    @property
    def attribute(self) -> str:
        """Its name in the parsed arguments."""
        return self.name[2:].replace("-", "_")

    def add_to(self, group: argparse._ActionsContainer) -> None:
        """Declare it."""
        if self.type is bool:
            group.add_argument(self.name, help=self.help, action="store_true", default=None)
        elif isinstance(self.type, tuple):
            group.add_argument(self.name, help=self.help, choices=self.type)
        else:
            action = "append" if self.is_repeated else "store"
            group.add_argument(self.name, help=self.help, type=self.type, metavar=self.metavar, action=action)


OWN_SETTINGS = Option("--set", "one of its settings, repeatable", str, "NAME=VALUE", is_repeated=True)
"""The option of a user's own segmenter or captioner, whose settings the parser does not know."""


def given_options(
    args: argparse.Namespace, choice: str, options: Mapping[str, Sequence[Option]]
) -> dict[str, Any]:
    """The options that the user gave, by attribute, of the chosen captioner or segmenter.

    Args:
        args: The arguments.
        choice: Name of the option that chooses, such as `captioner`.
        options: What can be chosen, to its options; some may have the same. OWN stands for all that users
            add themselves.

    Raises:
        CatalogError: If an option was given that only another choice has: it would be ignored.
    """
    chosen = OWN if is_own(getattr(args, choice)) else getattr(args, choice)
    for option in [option for listed in options.values() for option in listed]:
        if getattr(args, option.attribute) is not None and option not in options[chosen]:
            owners = [name for name, listed in options.items() if option in listed]
            raise CatalogError(
                f"{option.name} is an option of --{choice} {' and '.join(owners)}, not of {chosen}; leave it "
                f"out or choose that {choice}"
            )
    return given_settings(args, *(option.attribute for option in options[chosen]))


def given_settings(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The values of these options that the user gave, by name."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def setting_options(settings: type[Record], *names: str) -> tuple[Option, ...]:
    """Options for fields of a settings model, with their types, defaults and descriptions.

    Args:
        settings: The model.
        names: Fields whose type is int, float, str or a Literal; `some_field` becomes `--some-field`.
    """
    return tuple(_setting_option(name, settings.model_fields[name]) for name in names)


def _setting_option(name: str, field: FieldInfo) -> Option:
    kinds: list[Any] = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    kind = tuple(kinds) if kinds and isinstance(kinds[0], str) else (kinds or [field.annotation])[0]
    about, default = field.description or "", field.default
    about = f"{about[:1].lower()}{about[1:].rstrip('.')}"
    about = " ".join(about.split())
    if default is PydanticUndefined:
        about += "; needed"
    elif default is not None:
        about += f" (default: {f'{default:g}' if kind is float else default})"
    elif "default" not in about:
        about += " (default: none)"
    metavar = "N" if kind is int else "X" if kind is float else None
    return Option(f"--{name.replace('_', '-')}", about.replace("%", "%%"), kind, metavar)


def add_setting_options(parser: argparse._ActionsContainer, settings: type[Record], *names: str) -> None:
    """Declare `setting_options`; `given_settings` reads them."""
    for option in setting_options(settings, *names):
        option.add_to(parser)


def image_size(text: str) -> tuple[int, int]:
    """Height and width of an argument like 256x128.

    Raises:
        argparse.ArgumentTypeError: If it is not of that form.
    """
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no image size; write height x width, for example 256x128"
        )
    return int(height), int(width)


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Name to value of arguments like `seed=3`; a value that is no JSON is text.

    Raises:
        CatalogError: If one is not of that form.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise CatalogError(f"--set {text!r} sets nothing; write name=value, for example seed=3")
        try:
            values[name] = json.loads(value)
        except ValueError:
            # No JSON, or a number of thousands of digits, which the setting's own type refuses.
            values[name] = value
    return values


def check_dataset(catalog: str, name: str) -> None:
    """Make sure that the catalog holds a data set of this name.

    Raises:
        CatalogError: If it does not.
    """
    found = list_datasets(catalog)
    if name not in found:
        expected = f"expected one of: {', '.join(found)}" if found else "it holds none; run ingest first"
        raise CatalogError(f"data set {name!r} is not in catalog {catalog}; {expected}")


def _dataset(args: argparse.Namespace) -> str:
    if args.dataset:
        return str(args.dataset)
    listed = list_datasets(args.catalog)
    # A folder without images is that of an ingest that failed.
    found = [name for name in listed if list_tables(args.catalog, name, TableKind.SAMPLES)] or listed
    if len(found) != 1:
        raise CatalogError(
            f"catalog {args.catalog} holds {len(found)} data sets ({', '.join(found) or 'none'}); name one "
            "with --dataset"
        )
    return found[0]
