"""Messages of errors are one line."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("cluster", "data_catalog", "experiments", "stmi")
LISTS = {
    "formats/manifest.py": "each wrong value of a manifest",
    "formats/source.py": "the tree of the folders that were expected",
    "local_cluster.py": "the end of a service's log",
    "stmi_upload.py": "the largest files of what is too large to submit",
}
"""Files whose errors have a list below their one line, and what is in it."""


def lines_of_raised_errors(source: str) -> Iterator[int]:
    """Where a source raises an error whose message is written with a line break."""
    for raised in ast.walk(ast.parse(source)):
        if isinstance(raised, ast.Raise) and raised.exc is not None:
            for part in ast.walk(raised.exc):
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and "\n" in part.value:
                    yield raised.lineno


def test_messages_of_errors_are_one_line_but_for_lists_below_it() -> None:
    found = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (lines := list(lines_of_raised_errors(path.read_text(encoding="utf-8"))))
    }
    odd = {name: lines for name, lines in found.items() if not name.endswith(tuple(LISTS))}
    assert odd == {}
    assert len(found) == len(LISTS), "an exception that is none any more"


def test_a_message_of_several_lines_would_be_found() -> None:
    assert list(lines_of_raised_errors("x = 1\nraise ValueError(f'{x} is wrong:\\n' + y)")) == [2]
