"""Run the whole pipeline once on the embedded benchmark.

It generates the benchmark, ingests it, makes masks, captions, text features and views, trains, and reports.

    python experiments/demo.py              # what `make demo` runs
    python experiments/demo.py --floor 0.4  # fail if the mAP of U falls under 40 %

Nothing is done twice: tables that exist are reused, an interrupted training continues, a finished one
is shown. It has the options of experiments/train.py, except for those of --plan.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from experiments import train
from experiments.command_line import print_recipe_settings, run_command, step_printer
from experiments.report import RunReport, print_report

FLOOR = 0.56
"""The least mAP of U, a fraction, that CI accepts from the demo."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = train.training_parser(__doc__)
    options.add_argument(
        "--floor",
        type=float,
        nargs="?",
        default=0.0,
        const=FLOOR,
        help="fail if the mAP of U is below this fraction; without a number, below the one that CI demands, "
        f"{FLOOR} (default: no floor)",
    )
    given = options.parse_args(arguments)
    if given.list_settings:
        return print_recipe_settings(given)
    show_step = step_printer()

    def train_demo() -> RunReport:
        result = train.train(given, show_step)
        show_step("train", f"mAP {result.metrics['U'].mean_average_precision:.1%}, {_how(result)}")
        return result

    def status(result: RunReport) -> int:
        reached = result.metrics["U"].mean_average_precision
        if reached >= given.floor:
            return 0
        print(f"error: mAP {reached:.4f} of U is under the floor {given.floor}", file=sys.stderr)
        return 1

    return run_command(train_demo, given.json, print_report, status)


def _how(result: RunReport) -> str:
    if result.reused:
        return "finished before"
    return "continued from a checkpoint" if result.resumed else "trained now"


if __name__ == "__main__":
    sys.exit(main())
