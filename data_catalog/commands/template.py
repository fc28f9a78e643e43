"""`template`: writes a manifest to fill in."""

import argparse
from shlex import quote

from data_catalog.command_parser import local_path
from data_catalog.commands.command import Command
from data_catalog.formats.manifest_columns import COLUMNS, describe_columns
from data_catalog.formats.manifest_template import write_template
from data_catalog.records import Record


class TemplateColumn(Record):
    """A column of a manifest."""

    name: str
    about: str
    is_needed: bool


class Template(Record):
    """A manifest with an example."""

    path: str
    rows: int
    """Rows of the example, to be replaced."""
    columns: tuple[TemplateColumn, ...]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, type=local_path, metavar="FILE", help="new file: .csv, .jsonl or .parquet"
    )


def _run(args: argparse.Namespace) -> Template:
    rows = write_template(args.out)
    columns = (TemplateColumn(name=c.name, about=c.about, is_needed=c.is_needed) for c in COLUMNS)
    return Template(path=str(args.out), rows=rows, columns=tuple(columns))


def _show(result: Template) -> None:
    print(describe_columns())
    print(f"{result.path} has {result.rows} rows as an example; put yours in their place, then run")
    print(f"python -m data_catalog ingest --format manifest --source {quote(result.path)} --catalog URI")


COMMAND = Command(
    name="template",
    summary="Write a manifest to fill in, for a data set of your own (ingest --format manifest).",
    example="--out photos.csv",
    add_options=_add_options,
    run=_run,
    result=Template,
    show=_show,
)
