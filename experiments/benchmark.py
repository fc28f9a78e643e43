"""Speed and memory of the parts on which a run spends its time.

    python experiments/benchmark.py train-step --json
    python experiments/benchmark.py all --repeats 5

Matrix products are in bfloat16, as in recipes, where the CPU has instructions for it, otherwise in float32.

Machines differ and are noisy: compare the ratios, which come from one run, not the seconds.
"""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from pydantic import RootModel

from data_catalog.command_parser import CommandParser
from data_catalog.interrupts import interruptible, printing
from data_catalog.records import Record, add_json_options
from experiments.benchmarks.measuring import BenchmarkReport
from experiments.benchmarks.startup_benchmark import StartupReport
from experiments.experiment_config import ConfigError
from stmi.kernels.host_memory import keep_freed_memory

THREADS = 2
REPEATS = 5

Report = BenchmarkReport | StartupReport

BENCHMARKS = {
    "train-step": "training_benchmarks.train_step",
    "attention": "training_benchmarks.attention",
    "augment": "training_benchmarks.augmentation",
    "retrieval": "retrieval_benchmarks.retrieve",
    "view-read": "view_read_benchmark.view_read",
    "startup": "startup_benchmark.startup",
}
"""Name to function. Its module is imported when it runs: Ray's memory must not count for the others."""
LONG_BENCHMARKS = {
    "retrieval-large": "retrieval_benchmarks.retrieve_large",
    "search": "search_benchmark.search",
    "sweep": "sweep_benchmark.sweep",
    "contention": "contention_benchmark.contention",
    "data-parallel": "data_parallel_benchmark.data_parallel",
    "ingest": "ingest_benchmark.ingest_images",
    "view-build": "ingest_benchmark.build_view",
}
"""These take minutes each, so `all` does not include them."""
MEASURED_ONCE = ("retrieval-large", "sweep")


class AllReports(Record):
    """The results of `all`."""

    name: str = "all"
    benchmarks: tuple[Report, ...]


class PrintedReport(RootModel[Report | AllReports]):
    """What this script prints: one report, or with `all` several."""


def find_benchmark(name: str) -> Callable[[int], Report]:
    """The benchmark with this name, a function of the number of repeats."""
    module, function = (BENCHMARKS | LONG_BENCHMARKS)[name].split(".")
    found = getattr(importlib.import_module(f"experiments.benchmarks.{module}"), function)
    return cast(Callable[[int], Report], found)


def _measure(names: Sequence[str], repeats: int) -> list[Report]:
    from data_catalog.progress import open_progress

    reports: list[Report] = []
    with open_progress("measuring", "benchmark", len(names), line_each=True) as show:
        for name in names:
            show(len(reports), title=f"measuring {name}")
            reports.append(find_benchmark(name)(repeats))
            show(len(reports))
    return reports


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*BENCHMARKS, *LONG_BENCHMARKS, "all"], help="what to measure")
    parser.add_argument(
        "--repeats",
        type=int,
        help=f"runs that are measured, after one warm-up (default: {REPEATS}); not for "
        f"{' and '.join(MEASURED_ONCE)}, which are measured once",
    )
    add_json_options(parser, PrintedReport)
    given = parser.parse_args(arguments)
    if given.repeats is not None and given.name in MEASURED_ONCE:
        parser.error(f"--repeats={given.repeats}: {given.name} is measured once; leave it out")
    repeats = REPEATS if given.repeats is None else given.repeats
    if repeats < 1:
        parser.error(f"--repeats={repeats}: at least 1 is needed")
    names = list(BENCHMARKS) if given.name == "all" else [given.name]

    import torch

    torch.set_num_threads(THREADS)
    keep_freed_memory()
    # Not through `run_command`: the memory of what it imports would be counted.
    try:
        with interruptible("error: interrupted"), contextlib.redirect_stdout(sys.stderr):
            reports = _measure(names, repeats)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with printing():
        if given.json:
            document = AllReports(benchmarks=tuple(reports)) if given.name == "all" else reports[0]
            print(document.to_json())
        else:
            for report in reports:
                if isinstance(report, StartupReport):
                    _print_startup(report)
                else:
                    _print(report)
    return 0


def _print_startup(report: StartupReport) -> None:
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    print(f"{report.name} ({settings})\n  {'import torch':34} {report.import_torch_seconds:.2f} s")
    for one in report.scripts:
        print(
            f"  {one.script:34} help {one.help_seconds:.2f} s ({one.help_ratio:.2f} x import torch)  "
            f"refusal {one.refusal_seconds:.2f} s ({one.refusal_ratio:.2f} x)"
        )


def _print(report: BenchmarkReport) -> None:
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    print(f"{report.name} ({settings})")
    for result in report.results:
        line = (
            f"  {result.variant:34} {result.median_seconds:.4f} s "
            f"({result.fastest_seconds:.4f} to {result.slowest_seconds:.4f})"
        )
        if result.samples_per_second is not None:
            line += f"  {result.samples_per_second:.0f} samples/s"
        if result.seconds_outside_training_per_trial is not None:
            line += f"  {result.seconds_outside_training_per_trial:.2f} s a trial outside training"
        if result.peak_memory_bytes is not None:
            line += f"  {result.peak_memory_bytes / 1e9:.2f} GB"
        if result.kept_bytes is not None:
            line += f"  keeps {result.kept_bytes / 1e6:.0f} MB"
        if result.times_faster is not None:
            line += f"  {result.times_faster:.2f} times as fast"
        if result.ratio is not None:
            line += f"  {result.ratio:.2f} x {result.ratio_to}"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
