"""The command line of the catalog: `python -m data_catalog synthesize|ingest|masks|captions|...`.

Each command makes one table from the newest tables that it needs, unless it exists already. The commands are
in `data_catalog/commands/`.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from data_catalog.interrupts import interruptible, printing
from data_catalog.process import begin_process

if __name__ == "__main__":
    begin_process()

from pydantic import ValidationError

from data_catalog.command_parser import CommandParser
from data_catalog.commands import COMMANDS
from data_catalog.errors import CatalogError
from data_catalog.records import add_json_options, describe_invalid
from data_catalog.synthetic import SynthesisConflictError
from stmi.errors import ClipFileError

UNSOUND_STATUS = 1
USAGE_STATUS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 1 if a check found errors, 2 if it could not run."""
    args = _parser().parse_args(arguments)
    command = args.command_run
    interrupted = (
        f"data_catalog {command.name}: interrupted; complete shards of a table are kept; run the same "
        "command again"
    )
    try:
        # Standard output holds the JSON document alone; what libraries print goes to standard error.
        with interruptible(interrupted), contextlib.redirect_stdout(sys.stderr):
            result = command.run(args)
    except (CatalogError, ClipFileError, SynthesisConflictError) as error:
        print(f"data_catalog {command.name}: {error}", file=sys.stderr)
        return USAGE_STATUS
    except ValidationError as error:
        first = error.errors()[0]
        # A rule across fields names the values itself.
        got = "" if first["type"] == "value_error" else f" (got {first['input']!r:.80})"
        print(f"data_catalog {command.name}: {describe_invalid(error)}{got}", file=sys.stderr)
        return USAGE_STATUS
    except OSError as error:
        print(
            f"data_catalog {command.name}: {error.filename or 'a file'} cannot be used "
            f"({error.strerror or error}); correct the path or the rights and run the same command again",
            file=sys.stderr,
        )
        return USAGE_STATUS
    with printing():
        if args.json:
            print(result.to_json())
        else:
            command.show(result)
    return 0 if command.succeeded(result) else UNSOUND_STATUS


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m data_catalog",
        description="Turns image folders into verified, versioned tables that training reads.",
        epilog="Order: synthesize or template, ingest, masks, captions, text-features, view, checks.",
    )
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = parsers.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            epilog=f"example:\n  python -m data_catalog {command.name} {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_options(subparser)
        add_json_options(subparser, command.result)
        subparser.set_defaults(command_run=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
