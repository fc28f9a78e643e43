"""Messages of errors are one line, and documentation needs no other text to be understood."""

import ast
import re
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


LEANING = re.compile(r"(Meanwhile|That|Those|With which|In which|Of which)\b(?! of\b)")
"""How half a sentence begins, which needs the name of its class or argument to be read."""


def documentation(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of everything that documents a module, class, function or attribute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.lineno, str(node.value.value)


def test_no_documentation_begins_as_half_a_sentence() -> None:
    odd = [
        f"{path.relative_to(ROOT)}:{line}: {text[:60]}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for line, text in documentation(path.read_text(encoding="utf-8"))
        if LEANING.match(text)
    ]
    assert odd == []


def test_half_a_sentence_would_be_found() -> None:
    source = 'class Samples:\n    count: int\n    """That were embedded."""\n'
    assert [line for line, text in documentation(source) if LEANING.match(text)] == [3]
