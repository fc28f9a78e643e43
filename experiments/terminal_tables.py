"""Tables and facts for a terminal: nothing in them is cut off, whatever its width."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text


def text_console(**options: Any) -> Console:
    """A console that prints text as it is: names and values of users may be `[none]` or `:car:`.

    Args:
        **options: Options of rich's `Console`.
    """
    return Console(markup=False, emoji=False, highlight=False, **options)


def text_table(title: str, *columns: str, left: int = 1) -> Table:
    """An empty table whose first columns are text, which is wrapped between words, and the others numbers.

    Args:
        title: Above the table.
        columns: Headers.
        left: Number of columns of text.
    """
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.collapse_padding = True
    for number, column in enumerate(columns):
        is_text = number < left
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    return table


def print_table(console: Console, table: Table, wide: bool = False) -> None:
    """Print a table and an empty line.

    Where its numbers and the longest words of its text need more room than a line has, its lines are longer.

    Args:
        console: Where to.
        table: What `text_table` made.
        wide: Wrap no text either.
    """
    for column in table.columns:
        if column.no_wrap:
            lines = [line for cell in (column.header, *column.cells) for line in str(cell).splitlines()]
            column.min_width = max(map(cell_len, lines))
    needed = console.measure(table, options=console.options.update(width=10_000))
    width = max(console.width, needed.maximum if wide else needed.minimum)
    # A title of its own would be wrapped to the width of the table.
    console.print(table.title, style="italic")
    table.title = None
    text_console(file=console.file, width=width).print(table, "")


def print_facts(console: Console, facts: Mapping[str, object], width: int = 22) -> None:
    """Print a line for each fact; long ones are not wrapped.

    Args:
        console: Where to.
        facts: Name to value.
        width: Width of the column of names.
    """
    for name, value in facts.items():
        console.print(f"{name:{width}} {value}", soft_wrap=True)


def print_marked(console: Console, mark: str, style: str, text: str) -> None:
    """Print a line that begins with a mark in a style of its own: `not drawn embeddings: no weights`."""
    console.print(Text.assemble((mark, style), " ", text), soft_wrap=True)
