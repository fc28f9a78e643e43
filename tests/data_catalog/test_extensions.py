from pathlib import Path

import pytest

from data_catalog.errors import CatalogError
from data_catalog.extensions import load_object


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that modules are imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def read_error(name: str) -> str:
    with pytest.raises(CatalogError) as caught:
        load_object(name, "format")
    return str(caught.value)


def test_object_of_a_module_in_a_package_is_found(folder: Path) -> None:
    (folder / "lab").mkdir()
    (folder / "lab" / "layouts.py").write_text("MARKET = [1, 2]\n")
    assert load_object("lab.layouts:MARKET", "format") == [1, 2]


@pytest.mark.parametrize("name", ["", ":", "module:", ":NAME", "a:b:c", "../module:NAME", "a..b:C", "a:b.c"])
def test_other_forms_of_names_are_refused(name: str) -> None:
    assert "is not of the form module:attribute; write for example my_module:MyName" in read_error(name)


def test_module_that_is_not_there_is_named_with_where_to_put_it() -> None:
    error = read_error("no_such_module_here:NAME")
    assert error == (
        "format no_such_module_here:NAME: module no_such_module_here cannot be imported "
        "(ModuleNotFoundError: No module named 'no_such_module_here'); call the command in the folder that "
        "holds it, or add that folder to PYTHONPATH"
    )
    assert "or add that folder to PYTHONPATH" in read_error("no_such_package_here.module:NAME")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("import no_such_library\n", "No module named 'no_such_library', in {} line 1)"),
        ("x = 1\nraise OSError('no disk')\n", "(OSError: no disk, in {} line 2)"),
        ("def f(:\n", "line 1)"),
    ],
)
def test_fault_in_the_module_is_named_with_its_line(folder: Path, text: str, fault: str) -> None:
    (folder / "broken_module.py").write_text(text)
    error = read_error("broken_module:NAME")
    assert fault.format(folder / "broken_module.py") in error
    assert error.endswith("; correct the module")


def test_missing_attribute_is_named_with_the_file_of_its_module(folder: Path) -> None:
    (folder / "sound_module.py").write_text("NAME = 1\n")
    assert f"({folder / 'sound_module.py'}) has no attribute OTHER" in read_error("sound_module:OTHER")
