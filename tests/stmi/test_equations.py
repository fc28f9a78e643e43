"""Every equation of the paper has one home in the code, and a row in the table of `stmi/README.md`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EQUATIONS = range(1, 21)
NUMBERS = r"\d+(?:-\d+)?(?:(?:, | and )\d+(?:-\d+)?)*"
REFERENCE = re.compile(rf"\b(?:equations?|eqs?\.) ({NUMBERS})", re.IGNORECASE)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Name, such as `STMI.forward`, and docstring of a module and of everything in it."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                yield f"{prefix}{child.name}", ast.get_docstring(child) or ""
                yield from walk(child, f"{prefix}{child.name}.")

    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield "", ast.get_docstring(tree) or ""
    yield from walk(tree, "")


def equations_in(docstring: str) -> Iterator[int]:
    """Numbers of the equations that a docstring names, as `equation 2` or `equations 3, 5-7 and 9`."""
    for reference in REFERENCE.findall(re.sub(r"\s+", " ", docstring)):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", reference):
            yield from range(int(first), int(last or first) + 1)


def homes() -> dict[int, list[str]]:
    """For each equation the docstrings that name it, such as `stmi/model.py::STMI.forward`."""
    found: dict[int, list[str]] = {number: [] for number in EQUATIONS}
    for path in sorted((ROOT / "stmi").rglob("*.py")):
        for name, docstring in docstrings(path):
            for number in equations_in(docstring):
                found.setdefault(number, []).append(f"{path.relative_to(ROOT)}::{name}")
    return found


@pytest.mark.parametrize("number", EQUATIONS)
def test_equation_is_named_in_exactly_one_docstring(number):
    assert len(homes()[number]) == 1, f"equation {number} is named in {homes()[number] or 'no docstring'}"


def test_no_docstring_names_an_equation_that_the_paper_does_not_have():
    assert homes().keys() == set(EQUATIONS)


def test_table_of_the_readme_names_the_function_and_an_existing_test():
    text = (ROOT / "stmi/README.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| ({NUMBERS}) \| `([\w/.:]+)`[^|]*\| `([\w/.:]+)` \|$", text, re.MULTILINE)
    table = {number: row[1:] for row in rows for number in equations_in(f"equations {row[0]}")}
    assert sorted(table) == list(EQUATIONS)
    for number, (function, test) in table.items():
        assert homes()[number] == [f"stmi/{function}"]
        path, name = f"tests/stmi/{test}".split("::")
        assert name in dict(docstrings(ROOT / path)), f"{test} does not exist"
