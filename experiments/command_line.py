"""What the scripts share: errors meant for the user in one line, and one JSON document on request."""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

from data_catalog.errors import CatalogError
from experiments.recipes import ConfigError
from experiments.run.folder import RunFolderError
from experiments.run.result import RunError
from stmi.clip import ClipFileError
from stmi.retrieval import RetrievalError

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130


def run_command(
    work: Callable[[], dict[str, Any]], as_json: bool, show: Callable[[dict[str, Any]], None]
) -> int:
    """Do a script's work and print its result; returns the exit status.

    Args:
        work: Gives the result, JSON values only.
        as_json: Print it as one JSON document, and nothing else on standard output.
        show: Print it for a person.
    """
    try:
        # What a library prints must not get between the reader and the one JSON document.
        with contextlib.redirect_stdout(sys.stderr):
            result = work()
    except (
        ConfigError,
        CatalogError,
        ClipFileError,
        RunFolderError,
        RunError,
        RetrievalError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_STATUS
    except KeyboardInterrupt:
        print(
            "error: interrupted; what is complete is kept, so run the same command again to continue",
            file=sys.stderr,
        )
        return INTERRUPTED_STATUS
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0
