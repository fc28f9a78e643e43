"""What every README shows: commands that the scripts accept, links that lead somewhere, Python that runs."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from tests.test_help_texts import MAINS

ROOT = Path(__file__).parents[1]
READMES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md"))
    if not any(part.startswith(".") or part == "runs" for part in path.relative_to(ROOT).parts)
)
COMMAND = re.compile(
    r"python (?:-m (data_catalog|cluster\.doctor)|experiments/(\w+)\.py|(cluster/local\.py))"
    r"(?=[ `\n])([^\n`]*)"
)


class ParsedError(Exception):
    """Raised once a command's arguments were accepted."""


def commands(readme: Path) -> list[tuple[str, list[str]]]:
    """Script and arguments of every command line that a README shows."""
    text = (ROOT / readme).read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for catalog, script, cluster, rest in COMMAND.findall(text):
        # What ends a shell's substitution is no argument.
        arguments = shlex.split(rest.replace(')"', ""), comments=True)
        found.append((catalog or script or cluster, arguments))
    return found


def stop_after_parsing(monkeypatch):
    """Let scripts raise `ParsedError` where they would begin."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        parse(parser, *arguments)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_commands_of_a_readme_are_accepted_by_their_scripts(readme, monkeypatch):
    stop_after_parsing(monkeypatch)
    for script, arguments in commands(readme):
        if arguments and arguments != ["COMMAND", "--help"]:
            with pytest.raises(ParsedError):
                MAINS[script](arguments)


def test_readmes_show_the_commands_of_all_scripts():
    shown = {script for readme in READMES for script, arguments in commands(readme) if arguments}
    assert shown == set(MAINS) - {"demo", "pretrain_clip"}


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_of_a_readme_lead_to_files_and_headings(readme):
    folder, text = (ROOT / readme).parent, (ROOT / readme).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        file, _, heading = link.partition("#")
        target = folder / file if file else ROOT / readme
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings]
            assert heading in slugs, link


def test_first_readme_has_the_python_example_that_a_test_runs():
    examples = [
        re.findall(r"```python\n.*?```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
        for name in ("README.md", "stmi/README.md")
    ]
    assert examples[0] == examples[1]


def test_first_readme_is_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180
