"""Refuses a working directory that is too large for `ray job submit`, and names its largest files.

Ray itself packs and sends the folder first, and then only says that it was too large. `cluster/local.py up`
exports RAY_JOB_SUBMIT_HOOK with `refuse_too_large`, which Ray calls before it packs anything. The module has
a folder of its own, because that folder must be in the PYTHONPATH of the user who submits.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT_BYTES = 100 * 2**20
"""Limit of the dashboard for one request; Ray packs without compression."""
BYTES_PER_ENTRY = 76
"""Bytes of the archive for each file besides its content and, twice, its name."""
_NAMED = 10


class UploadTooLargeError(ValueError):
    """A working directory that Ray would refuse; names its largest files."""


def files_to_upload(folder: Path, excludes: Sequence[str] = ()) -> dict[str, int]:
    """Bytes of each file that Ray uploads of a folder, by path in it.

    Ray leaves out what `.gitignore` and `.rayignore` files say (in every folder), `.git`, `.venv`, `venv` and
    `__pycache__`; its own functions apply these rules here too.

    Args:
        folder: The working directory.
        excludes: More patterns, as in the runtime environment's `excludes`.
    """
    from ray._private import ray_constants  # noqa: PLC0415 - takes a second
    from ray._private.runtime_env import packaging  # noqa: PLC0415

    folder = folder.absolute()
    sizes = {}

    def note(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(folder))] = path.stat().st_size

    patterns = [*ray_constants.get_runtime_env_default_excludes(), *excludes]
    quiet = logging.getLogger(__name__)
    quiet.setLevel(logging.WARNING)
    packaging._dir_travel(
        folder,
        [packaging._get_excludes(folder, patterns)],
        note,
        include_gitignore=os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
        logger=quiet,
    )
    return sizes


def check_upload(folder: Path, excludes: Sequence[str] = ()) -> dict[str, int]:
    """The files that Ray uploads of a folder, after a check of their total size.

    Args:
        folder: The working directory.
        excludes: More patterns to leave out.

    Raises:
        UploadTooLargeError: Names the largest files.
    """
    sizes = files_to_upload(folder, excludes)
    total = sum(size + BYTES_PER_ENTRY + 2 * len(name.encode()) for name, size in sizes.items())
    if total < LIMIT_BYTES:
        return sizes
    largest = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:_NAMED]
    rows = "\n".join(f"  {size / 2**20:8.1f} MiB  {name}" for name, size in largest)
    raise UploadTooLargeError(
        f"working directory {folder} is too large to submit: {total / 2**20:.1f} MiB in {len(sizes)} files, "
        f"the limit is {LIMIT_BYTES / 2**20:.0f} MiB. The largest:\n{rows}\n"
        "Move data out of it (a job reads data where it lies), or name it in .gitignore or .rayignore"
    )


def refuse_too_large(
    *,
    runtime_env: str | None = None,
    runtime_env_json: str | None = None,
    working_dir: str | None = None,
    **others: Any,
) -> None:
    """Exit from `ray job submit` before it packs a working directory that is too large.

    Args:
        runtime_env: Path of a YAML file, as given on the command line.
        runtime_env_json: The same as JSON text.
        working_dir: As given on the command line.
        others: Further arguments of a hook, not used.
    """
    from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args  # noqa: PLC0415

    given = parse_runtime_env_args(runtime_env, runtime_env_json, working_dir)
    folder = given.get("working_dir")
    # An archive or a URI is not packed.
    if folder is None or "://" in str(folder) or not Path(folder).is_dir():
        return
    try:
        check_upload(Path(folder), given.get("excludes") or ())
    except UploadTooLargeError as error:
        sys.exit(f"error: {error}")
