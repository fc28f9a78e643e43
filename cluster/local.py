"""A place to submit to on this machine: a Ray head and an MLflow server that outlive the shell.

    python cluster/local.py up         # start what does not run; prints what to export
    eval "$(python cluster/local.py up)"
    python cluster/local.py status     # exit status 1 unless all is well
    python cluster/local.py down       # end what `up` started, and nothing else
    python cluster/local.py check-upload .   # what `ray job submit --working-dir .` would send

`up` is for doing again: what is well stays, what died is started on the same port. Everything is kept in
WORKSPACE/cluster: logs, MLflow's database and artifacts, and the token that Ray asks for.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster.place import HOOKS, Place
from cluster.state import ClusterError

ROOT = Path(__file__).resolve().parents[1]
NOT_WELL_STATUS = 1
USAGE_STATUS = 2


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = options.add_subparsers(dest="command", required=True)
    for name in ("up", "status", "down"):
        command = commands.add_parser(name)
        command.add_argument(
            "--workspace",
            type=Path,
            default=ROOT / "runs",
            help="folder of runs: those of submitted jobs go there (default: runs)",
        )
        command.add_argument("--json", action="store_true", help="print one JSON document")
        if name == "up":
            command.add_argument(
                "--backend-store-uri",
                default=os.environ.get("MLFLOW_BACKEND_STORE_URI"),
                help="MLflow's database, such as postgresql://user:password@host/mlflow (default: "
                "$MLFLOW_BACKEND_STORE_URI, which keeps the password off the command line, or a SQLite file)",
            )
            command.add_argument(
                "--timeout-seconds", type=float, default=120.0, help="time to answer (default: 120)"
            )
    check = commands.add_parser("check-upload")
    check.add_argument("folder", type=Path, nargs="?", default=Path(), help="working directory (default: .)")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    return options


def check_upload(folder: Path) -> dict[str, Any]:
    """What Ray would upload of a folder.

    Raises:
        ClusterError: It is no folder, or too large; names the largest files.
    """
    sys.path.insert(0, str(HOOKS))
    import stmi_upload  # noqa: PLC0415 - takes a second, as Ray's own rules are asked

    if not folder.is_dir():
        raise ClusterError(f"{folder} is no folder; name the one that is to be --working-dir")
    try:
        sizes = stmi_upload.check_upload(folder)
    except stmi_upload.UploadTooLargeError as error:
        raise ClusterError(str(error)) from None
    return {"folder": str(folder.resolve()), "files": len(sizes), "bytes": sum(sizes.values())}


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for; returns the result, JSON values only.

    Raises:
        ClusterError: It cannot be done; says why and what to do.
    """
    if given.command == "check-upload":
        return check_upload(given.folder)
    if given.command == "up":
        return Place(given.workspace, given.timeout_seconds).up(given.backend_store_uri)
    place = Place(given.workspace)
    return place.status() if given.command == "status" else place.down()


def show(command: str, result: dict[str, Any]) -> None:
    """Print a result for a person; what `up` prints is for `eval`, too."""
    if command == "check-upload":
        print(f"{result['folder']}: {result['files']} files, {result['bytes'] / 2**20:.1f} MiB; it fits")
    elif command == "down":
        counts = ", ".join(f"{count} of {name}" for name, count in result["ended"].items())
        print(f"ended processes: {counts}")
    else:
        for name, service in result["services"].items():
            print(f"# {name:7} {service['state']:13} log: {service['log']}")
    if command == "up":
        print(f"# dashboard {result['dashboard']} (asks for the token in $RAY_AUTH_TOKEN_PATH)")
        print(f"# MLflow    {result['mlflow']} ({result['backend']})")
        for name, value in result["environment"].items():
            print(f"export {name}={shlex.quote(value)}")
        ray = Path(sys.executable).parent / "ray"
        print("# Submit, in the folder of the project:")
        print(f"# {ray} job submit --address {result['dashboard']} --working-dir . \\")
        print("#     -- python experiments/train.py --recipe demo")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    given = parser().parse_args(arguments)
    try:
        result = run(given)
    except (ClusterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_STATUS
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        show(given.command, result)
    return NOT_WELL_STATUS if given.command == "status" and result["state"] != "up" else 0


if __name__ == "__main__":
    sys.exit(main())
