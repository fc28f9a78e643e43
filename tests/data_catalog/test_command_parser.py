"""What every command line has: `~` is the home folder, and who reads only the first lines ends it quietly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_catalog.command_parser import CommandParser
from data_catalog.storage.local_copies import FOLDER_VARIABLE, copies_folder
from stmi.clip.clip_files import clip_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_is_found_in_every_form_of_an_argument(home: Path) -> None:
    parser = CommandParser()
    for option in ("--catalog", "--set", "--run"):
        parser.add_argument(option)
    inner = parser.add_subparsers(dest="command").add_parser("show")
    inner.add_argument("--out", type=Path)
    given = parser.parse_args(
        ["--catalog=~/x", "--set", "model.clip.source=~/clip", "--run", "~", "show", "--out=~/sheet.png"]
    )
    assert (given.catalog, given.set, given.run) == (f"{home}/x", f"model.clip.source={home}/clip", str(home))
    assert given.out == home / "sheet.png"


def test_text_that_is_not_utf8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Records are UTF-8: what names it could not be stored when the work is done."""
    parser = CommandParser()
    parser.add_argument("--out")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--out", os.fsdecode(b"caf\xe9.png")])
    assert r"'caf\udce9.png' is not UTF-8; rename it, or name it by a link" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["s3://bucket/~/x", "a~b", "caption=a ~ b", "--name=x~", "~~", "x = ~/y"])
def test_other_tildes_stay_as_they_are(text: str) -> None:
    parser = CommandParser()
    parser.add_argument("text")
    assert parser.parse_args(["--", text]).text == text


def test_home_is_found_in_environment_variables_and_settings(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "~/cache")
    assert copies_folder() == home / "cache"
    (home / "clip").mkdir()
    assert clip_folder("~/clip") == home / "clip"
    code = "from experiments import recipes; print(recipes.WORKSPACE)"
    for given, found in {"~/runs": f"{home}/runs", "s3://lab/runs": "s3://lab/runs"}.items():
        environment = os.environ | {"STMI_WORKSPACE": given, "PYTHONPATH": str(ROOT)}
        printed = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert printed.stdout.strip() == found


@pytest.mark.parametrize(
    "command",
    [
        ["experiments/report.py", "--json-schema"],
        ["experiments/train.py", "--list-settings", "--json"],
        ["cluster/local.py", "check-upload", ".", "--json"],
        ["-m", "data_catalog", "show", "--json-schema"],
        ["-m", "data_catalog", "ingest", "--help"],
    ],
)
def test_reader_that_closes_the_pipe_ends_a_command_quietly(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_every_command_has_this_parser() -> None:
    scripts = [*ROOT.glob("experiments/*.py"), *ROOT.glob("cluster/*.py"), ROOT / "data_catalog/__main__.py"]
    parsers = [path.name for path in scripts if "CommandParser(" in path.read_text(encoding="utf-8")]
    others = [path.name for path in scripts if "argparse.ArgumentParser(" in path.read_text(encoding="utf-8")]
    assert len(parsers) >= 8
    assert others == []
