"""A local cluster to submit jobs to: a Ray head and an MLflow server that outlive the shell.

    python cluster/local.py up         # start what does not run; prints what to export
    eval "$(python cluster/local.py up)"
    python cluster/local.py status     # exit status 1 unless all services are well
    eval "$(python cluster/local.py down)"     # end what `up` started, and unset what is for it alone
    python cluster/local.py check-upload .   # what `ray job submit --working-dir .` would send

`up` may be repeated: services that are well keep running, others are started again on the same port.
WORKSPACE/cluster has the logs and the token that Ray asks for. MLflow's database is that of the workspace,
WORKSPACE/mlflow.db, so runs that were submitted and runs that were not are in one place, also after `down`.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from cluster.cluster_state import ClusterError
from cluster.cluster_status import ClusterStatus, EndedProcesses, StartedCluster
from cluster.local_cluster import EXPORTED, HOOKS, LocalCluster
from data_catalog.command_parser import CommandParser, local_path
from data_catalog.interrupts import interruptible, printing
from data_catalog.records import Record, add_json_options

ROOT = Path(__file__).resolve().parents[1]
NOT_WELL_STATUS = 1
USAGE_STATUS = 2
INTERRUPTED = "error: interrupted; run the same command again, or `down` to end what was started"


class Upload(Record):
    """What Ray would upload of a folder."""

    folder: str
    files: int
    bytes: int


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    results: dict[str, type[Record]] = {"up": StartedCluster, "status": ClusterStatus, "down": EndedProcesses}
    for name, result in results.items():
        command = commands.add_parser(name)
        command.add_argument(
            "--workspace",
            type=_folder,
            default=os.environ.get("STMI_WORKSPACE") or str(ROOT / "runs"),
            help="folder of runs, also those of submitted jobs (default: $STMI_WORKSPACE, or runs)",
        )
        add_json_options(command, result)
        if name == "up":
            command.add_argument(
                "--backend-store-uri",
                default=os.environ.get("MLFLOW_BACKEND_STORE_URI") or None,
                help="MLflow's database, such as postgresql://user:password@host/mlflow (default: "
                "$MLFLOW_BACKEND_STORE_URI, which keeps the password off the command line, or "
                "WORKSPACE/mlflow.db)",
            )
            command.add_argument(
                "--timeout-seconds", type=float, default=120.0, help="time to answer (default: 120)"
            )
    check = commands.add_parser("check-upload")
    check.add_argument(
        "folder", type=local_path, nargs="?", default=Path(), help="working directory (default: .)"
    )
    add_json_options(check, Upload)
    return options


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} (--workspace, or $STMI_WORKSPACE): the services need a folder of this machine; name one "
            "with --workspace, and the URI to the scripts that are submitted"
        )
    return Path(text).expanduser()


def check_upload(folder: Path) -> Upload:
    """What Ray would upload of a folder.

    Raises:
        ClusterError: It is no folder, or too large; names the largest files.
    """
    if not folder.is_dir():
        raise ClusterError(f"{folder} is no folder; name the one that is to be --working-dir")
    sys.path.insert(0, str(HOOKS))
    import stmi_upload  # noqa: PLC0415 - takes a second, because it loads Ray's own rules

    try:
        sizes = stmi_upload.check_upload(folder)
    except stmi_upload.UploadTooLargeError as error:
        raise ClusterError(str(error)) from None
    return Upload(folder=str(folder.resolve()), files=len(sizes), bytes=sum(sizes.values()))


def run(given: argparse.Namespace) -> Record:
    """Run the command of the command line.

    Raises:
        ClusterError: It failed; says why and what to do.
    """
    if given.command == "check-upload":
        return check_upload(given.folder)
    if given.command == "up":
        return LocalCluster(given.workspace, given.timeout_seconds).up(given.backend_store_uri)
    cluster = LocalCluster(given.workspace)
    return cluster.status() if given.command == "status" else cluster.down()


def show(result: Record, exports: bool) -> None:
    """Print a result for people.

    Args:
        result: What `run` returned.
        exports: Print the exports of a started cluster too; a shell may `eval` the whole text.
    """
    if isinstance(result, Upload):
        print(f"{result.folder}: {result.files} files, {result.bytes / 2**20:.1f} MiB; it fits")
    elif isinstance(result, EndedProcesses):
        counts = ", ".join(f"{count} of {name}" for name, count in result.ended.items())
        print(f"# ended processes: {counts}")
        print("# A shell that has what `up` exported forgets it with this line, or with `eval` of this text:")
        print(f"unset {' '.join(EXPORTED)}")
    elif isinstance(result, ClusterStatus):
        for name, service in result.services.items():
            print(f"# {name:7} {service.state:13} log: {service.log}")
    if isinstance(result, StartedCluster) and exports:
        print(f"# dashboard {result.dashboard} (asks for the token in $RAY_AUTH_TOKEN_PATH)")
        print(f"# MLflow    {result.mlflow} ({result.backend})")
        if result.earlier_backend is not None:
            earlier = shlex.quote(result.earlier_backend)
            print(f"# Runs that an older version logged are in {result.earlier_backend};")
            print(f"# to see them: `down`, then `up --backend-store-uri {earlier}`")
        for name, value in result.environment.items():
            print(f"export {name}={shlex.quote(value)}")
        ray = shlex.quote(str(Path(sys.executable).parent / "ray"))
        print("# Submit, in the folder of the project:")
        print(f"# {ray} job submit --address {result.dashboard} --working-dir . \\")
        print("#     -- python experiments/train.py --recipe demo")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    given = parser().parse_args(arguments)
    try:
        with interruptible(INTERRUPTED):
            result = run(given)
    except (ClusterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_STATUS
    with printing():
        if given.json:
            print(result.to_json())
        else:
            show(result, exports=given.command == "up")
    # `up` has waited for an answer of each service; a later one that is slow does not undo that.
    is_well = given.command != "status" or (isinstance(result, ClusterStatus) and result.state == "up")
    return 0 if is_well else NOT_WELL_STATUS


if __name__ == "__main__":
    sys.exit(main())
