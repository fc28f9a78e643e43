"""Go the whole way once on the embedded benchmark.

Draw it, ingest, masks, captions, text features, views, train, report.

    python experiments/demo.py              # what `make demo` runs
    python experiments/demo.py --floor 0.4  # fail if the mAP of U falls under 40 %

Nothing is done twice: tables that exist are reused, an interrupted training continues, a finished one
is shown. Every option of experiments/train.py is taken as well.
"""

import json
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_catalog.errors import CatalogError
from experiments import runner, train
from experiments.recipes import ConfigError
from experiments.report import print_report
from experiments.run_folder import RunFolderError
from stmi.clip import ClipFileError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = train.parser()
    options.description = __doc__
    options.add_argument(
        "--floor", type=float, default=0.0, help="least mAP of U, a fraction (default: none)"
    )
    given = options.parse_args(arguments)
    start = time.perf_counter()

    def narrate(step: str, result: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {step:14} {result}", file=sys.stderr)

    try:
        result = train.train(given, narrate)
    except (ConfigError, CatalogError, ClipFileError, RunFolderError, runner.RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    mean_average_precision = result["metrics"]["U"]["mAP"]
    narrate("train", f"mAP {mean_average_precision:.1%}, {_how(result)}")
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        print_report(result)
    if mean_average_precision < given.floor:
        print(
            f"error: mAP {mean_average_precision:.4f} of U is under the floor {given.floor}", file=sys.stderr
        )
        return 1
    return 0


def _how(result: dict) -> str:
    if result["reused"]:
        return "finished before"
    return "continued from a checkpoint" if result["resumed"] else "trained now"


if __name__ == "__main__":
    sys.exit(main())
