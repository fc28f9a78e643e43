"""Say whether a cluster is what a run needs, before anything is submitted.

    python -m cluster.doctor             # the cluster of RAY_ADDRESS, or a Ray on this machine
    python -m cluster.doctor --address 10.0.0.5:6379 --workspace s3://lab/runs --recipe rgbnt201-paper
    ray job submit ... -- python -m cluster.doctor --workspace s3://lab/runs --json

Looked at: on every node versions, the project's code, GPUs and who uses them, disk and /dev/shm, clock,
limits, proxies; workspace, storage and catalog, written and read from every node; MLflow and its artifacts;
what the recipe needs of the catalog; who can reach Ray without a token; the sum of a tensor over all nodes.

Each finding is a line: what, where, what to do. Exit status 0: no errors; 1: errors; 2: the cluster cannot be
examined.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from data_catalog.process import begin_process

if __name__ == "__main__":
    begin_process()

from pydantic import BaseModel

from data_catalog.command_parser import CommandParser
from data_catalog.records import add_json_options
from experiments.command_line import add_workspace, run_command
from experiments.recipe_files import name_recipe
from experiments.recipes import resolve
from experiments.run.run_options import RunOptions

if TYPE_CHECKING:
    from cluster.doctor.examination import Diagnosis

ERRORS_STATUS = 1


def printed() -> type[BaseModel]:
    """What this command prints with `--json`."""
    from cluster.doctor.examination import Diagnosis

    return Diagnosis


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = CommandParser(
        prog="python -m cluster.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--address", help="host and port of Ray's head (default: $RAY_ADDRESS)")
    add_workspace(options)
    options.add_argument("--catalog", help="folder or URI (default: WORKSPACE/catalog)")
    options.add_argument("--storage", help="folder or URI for checkpoints (default: the workspace)")
    options.add_argument(
        "--tracking-uri", help="MLflow's (default: $MLFLOW_TRACKING_URI, or the workspace's)"
    )
    options.add_argument(
        "--recipe",
        type=name_recipe,
        help="the recipe of a run, or its YAML file: check what it needs (default: none)",
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="one of the recipe's settings, as for experiments/train.py; repeatable",
    )
    add_json_options(options, printed)
    return options


def examine(given: argparse.Namespace) -> "Diagnosis":
    """Examine the cluster that a command line names."""
    if given.address is not None:
        os.environ["RAY_ADDRESS"] = given.address
    config = None if given.recipe is None else resolve(given.recipe, given.settings)
    options = RunOptions.resolve(given.workspace, given.catalog, given.storage, given.tracking_uri)
    from cluster.doctor.examination import Request, examine

    return examine(
        Request(options, config, given.catalog is not None),
        lambda step: print(f"{step} ...", file=sys.stderr, flush=True),
    )


def show(found: "Diagnosis") -> None:
    """Print a diagnosis for a person."""
    for node in found.nodes:
        shared = node.shared_memory_free_bytes
        memory = "" if shared is None else f", {shared / 2**30:.1f} GiB of /dev/shm"
        print(
            f"node    {node.node}: {node.ray_gpus:g} GPUs; free: {node.disk_free_bytes / 2**30:.0f} GiB of "
            f"disk{memory}"
        )
    if (sum_ := found.all_reduce) is not None:
        print(
            f"network {sum_.bytes_per_second / 1e6:.0f} MB/s, by a sum of {sum_.bytes / 2**20:.0f} MiB over "
            f"{sum_.nodes} nodes ({sum_.backend})"
        )
    for check, reason in found.not_checked.items():
        print(f"not checked: {check}, since {reason}")
    from data_catalog.commands.command import print_findings

    print_findings(found)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    given = parser().parse_args(arguments)
    return run_command(
        lambda: examine(given), given.json, show, lambda found: ERRORS_STATUS if found.errors else 0
    )


if __name__ == "__main__":
    sys.exit(main())
