"""Train the first steps of a recorded run anew, and say whether they come out as recorded.

    python experiments/verify_run.py runs/train/demo-seed0-1a2b3c4d --steps 20
    python experiments/verify_run.py s3://lab/runs/train/demo-seed0-1a2b3c4d --workspace s3://lab/runs --json

The repetition has as many workers, and as many threads in each, as the run began with. The loss of every
step and the weights of every checkpoint within these steps are compared to the last bit, and the first
difference is named. The exit status is 0 where all is equal, and 1 where something differs: on other
hardware, or with another PyTorch, sums are rounded otherwise. A run that was forced onto CPUs is repeated
there with --gpus-per-worker 0.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from pydantic import BaseModel

from data_catalog.command_parser import CommandParser
from data_catalog.records import add_json_options
from experiments.command_line import add_gpus_per_worker, add_workspace, run_command
from experiments.run.run_folder import RunFolder
from experiments.run.run_options import RunOptions
from experiments.run.workers.ray_train import prepare_ray

if TYPE_CHECKING:
    from experiments.evaluating.verification import Verification


def printed() -> type[BaseModel]:
    """What this script prints with `--json`."""
    from experiments.evaluating.verification import Verification

    return Verification


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", metavar="RUN", help="folder or URI of a run, finished or not")
    options.add_argument(
        "--steps", type=int, default=10, metavar="K", help="how many of its steps (default: 10)"
    )
    options.add_argument("--catalog", help="folder or URI of its tables (default: where it found them)")
    add_workspace(options)
    add_gpus_per_worker(options)
    add_json_options(options, printed)
    return options


def verify_run(given: argparse.Namespace) -> "Verification":
    """Verify the run that a command line names."""
    run = RunFolder.open(given.run, given.catalog)
    options = RunOptions.resolve(given.workspace, given.catalog, gpus_per_worker=given.gpus_per_worker)
    prepare_ray()
    from experiments.evaluating.verification import verify

    return verify(run, given.steps, options)


def show(result: "Verification") -> None:
    """Print a verification for a terminal."""
    print(f"run {result.run}: {result.steps} steps on {result.workers} workers of {result.threads} threads")
    print(f"losses as recorded: {result.equal_losses} of {result.steps}", end="")
    print(
        f", largest relative difference {result.largest_difference:.1e}" if result.largest_difference else ""
    )
    equal = sum(result.weights.values())
    print(f"weights as recorded: {equal} of {len(result.weights)} checkpoints within these steps")
    if result.first_difference is not None:
        first = result.first_difference
        print(
            f"first difference: {first.what} of step {first.step}, "
            f"{first.recorded} recorded, {first.found} found"
        )
    for note in result.notes:
        print(f"note: {note}")
    print("verified" if result.verified else "NOT verified")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    given = parser().parse_args(arguments)
    return run_command(
        lambda: verify_run(given), given.json, show, lambda result: 0 if result.verified else 1
    )


if __name__ == "__main__":
    sys.exit(main())
