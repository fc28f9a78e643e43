"""The parser of every command: `~` is the home folder, text is UTF-8, and a closed pipe ends its help."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_catalog.interrupts import printing

# Shells replace `--catalog ~/x`, and leave `--catalog=~/x` and `--set model.clip.source=~/x` as they are.
_HOME = re.compile(r"((?:--)?[\w.-]+=)?(~(?:/.*)?)")


class CommandParser(argparse.ArgumentParser):
    """An argument parser as this module says."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As in `ArgumentParser`."""
        given = sys.argv[1:] if args is None else args
        for argument in given:
            try:
                argument.encode()
            except UnicodeEncodeError:
                # Records are UTF-8, and would fail when the work is done.
                self.error(f"{argument!r} is not UTF-8; rename it, or name it by a link")
        return super().parse_known_args([_expand(argument) for argument in given], namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        with printing():
            super()._print_message(message, file)


def local_path(text: str) -> Path:
    """A path on this machine, for an argument that may not be a URI.

    Raises:
        argparse.ArgumentTypeError: It is one, and `Path` would make folders of its parts.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: expected a path on this machine, not a URI")
    return Path(text)


def _expand(argument: str) -> str:
    found = _HOME.fullmatch(argument)
    return argument if found is None else (found[1] or "") + str(Path(found[2]).expanduser())
