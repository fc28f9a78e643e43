"""The help of every command and script says what each option is, and its default."""

import argparse
import re

import pytest

from cluster import local
from cluster.doctor import __main__ as doctor
from data_catalog import __main__ as catalog
from experiments import (
    ablate,
    benchmark,
    chaos,
    compare,
    convert_clip,
    demo,
    evaluate,
    export,
    pretrain_clip,
    report,
    reproduce,
    search,
    sweep_sfm,
    train,
    verify_run,
)

MAINS = {
    "data_catalog": catalog.main,
    "cluster/local.py": local.main,
    "cluster.doctor": doctor.main,
    **{
        module.__name__.rpartition(".")[2]: module.main
        for module in (
            ablate,
            benchmark,
            chaos,
            compare,
            convert_clip,
            demo,
            evaluate,
            export,
            pretrain_clip,
            report,
            reproduce,
            search,
            sweep_sfm,
            train,
            verify_run,
        )
    },
}


class ParsingError(Exception):
    """Raised instead of parsing; holds the parser."""


def all_parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from all_parsers(inner)


@pytest.fixture(params=MAINS)
def parsers(request, monkeypatch):
    """The parser of a script, and those of its commands."""

    def stop(parser, *_):
        raise ParsingError(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(ParsingError) as stopped:
        MAINS[request.param]([])
    return list(all_parsers(stopped.value.args[0]))


def options(parsers):
    """Parser and option of all that have a name or take a place, except for subcommands and `--help`."""
    for parser in parsers:
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
                yield parser, action


def test_every_option_has_a_help_text(parsers):
    without = [
        f"{prog} {action.option_strings or action.dest}"
        for prog, action in options(parsers)
        if not action.help
    ]
    assert without == []


def is_required(parser, action):
    """Whether the command line cannot do without it, or without one of its group."""
    groups = [group for group in parser._mutually_exclusive_groups if group.required]
    return action.required or any(action in group._group_actions for group in groups)


def test_every_option_with_a_value_says_its_default_or_that_it_is_needed(parsers):
    unsaid = [
        f"{parser.prog} {action.option_strings}: {action.help}"
        for parser, action in options(parsers)
        if action.nargs != 0
        # What is repeatable has nothing as its default.
        and not isinstance(action, argparse._AppendAction)
        and action.default != []
        and not is_required(parser, action)
        and not {"default", "needed"} & set(re.findall(r"\w+", action.help or ""))
    ]
    assert unsaid == []


@pytest.mark.parametrize(
    ("command", "default", "routes"),
    [
        ("masks", "grabcut", {"grabcut": "no weights", "sam2": "weights", "files": "exist already"}),
        ("captions", "readings", {"readings": "attributes", "llm": "endpoint", "files": "exist already"}),
    ],
)
def test_help_says_which_route_is_the_default_and_what_each_needs(command, default, routes, capsys):
    with pytest.raises(SystemExit):
        catalog.main([command, "--help"])
    shown = capsys.readouterr().out
    assert f"(default: {default})" in " ".join(shown.split())
    for route, need in routes.items():
        assert need in shown.partition(f"er {route}:\n")[2].partition("\n\n")[0]
