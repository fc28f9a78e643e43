"""Show a finished run, write the page of a finished study, or log a workspace to MLflow again.

    python experiments/report.py                                  # the run finished last
    python experiments/report.py --run runs/train/demo-seed0-1a2b3c4d
    python experiments/report.py --study demo-table3-3seeds-1a2b3c4d
    python experiments/report.py --study demo-sweep-1a2b3c4d --tracking-uri http://mlflow:5000 --out page.html
    python experiments/report.py --study demo-table3-3seeds-1a2b3c4d --table runs.parquet    # or .csv
    python experiments/report.py --mlflow-again --workspace s3://bucket/runs --tracking-uri http://mlflow:5000

For a run: a table of its metrics, what was published on its data set, its times, its figures, and the paths
of its files. For a study: one HTML
page that needs no other file, and the same as Markdown, from the data in MLflow. Figures of weights or
embeddings need access to the folders of the runs. With --table, in place of the page: a row for each run of
the study, with its row or trial, seed, status, seconds, metrics, and the settings in which it differs from
its recipe. With --mlflow-again: all runs and studies of the workspace that have ended, or the one that is
named, are sent to a new or emptied MLflow store, from the files of the workspace.
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

from pydantic import RootModel
from rich.console import Console

from data_catalog.command_parser import CommandParser
from data_catalog.errors import NotWritableError
from data_catalog.records import add_json_options
from data_catalog.storage.folders import Folder
from experiments.command_line import add_workspace, metrics_table, print_notes, run_command
from experiments.experiment_config import ConfigError
from experiments.reports.report_files import LoggedAgain, StudyReport
from experiments.run.run_folder import PICTURES, RunFolder
from experiments.run.run_options import RunOptions, resolve_workspace
from experiments.run.run_result import (
    FEATURE_NAMES,
    DatasetMetrics,
    EpochChoices,
    LoggedRunResult,
    ReportedEpoch,
)
from experiments.studies.published import (
    PublishedMethod,
    PublishedResult,
    find_stmi_result,
    published_methods,
)
from experiments.studies.run_table import RunTable, write_run_table
from experiments.studies.study_folder import STUDIES
from experiments.terminal_tables import print_facts, print_marked, print_table, text_console, text_table
from experiments.tracking.journal_folder import JOURNAL
from experiments.tracking.mlflow_store import MlflowRun

logger = logging.getLogger(__name__)


class RunReport(LoggedRunResult):
    """A finished run, and what was published on its data set."""

    paper: PublishedResult | None = None
    """Of STMI."""
    published: tuple[PublishedMethod, ...] = ()
    """Of all methods, the highest mAP first; `train.py` leaves it empty."""


class PrintedReport(RootModel[RunReport | StudyReport | RunTable | LoggedAgain]):
    """What this script prints: of a run, of a study (`--study`, `--table`), or after `--mlflow-again`."""


def print_report(result: RunReport, out: str | None = None) -> None:
    """Print the metrics, the times and the paths of a finished run for a terminal.

    Args:
        result: Result of the run.
        out: Where its pictures are; None for the run's own folder.
    """
    console = text_console()
    # A run finished by an older version has fewer features, and only the last epoch.
    rows = {label: result.metrics[name] for name, label in FEATURE_NAMES.items() if name in result.metrics}
    first, *others = result.datasets or [""]
    title = f"{result.run}: test identities{first and f' of {first}'}, %"
    print_table(console, metrics_table(title, rows | {"U before training": result.untrained}))
    for name in others:
        _print_other(console, name, result.datasets[name])
    if result.choices is not None and result.reported is not None:
        _print_choices(console, result.choices, result.reported)
    if result.paper is not None:
        console.print(result.paper.describe())
    if result.published:
        _print_published(console, result)
    for split, facts in result.hyperedges.items():
        console.print(f"hyperedges, {split}  {facts.describe()}", soft_wrap=True)
    _print_idle_losses(console, result)
    print_notes(console, result.notes)
    seconds = result.seconds
    parts = ", ".join(
        f"{name.replace('_', ' ')} {seconds[name]:.1f}"
        for name in (
            "start_workers",
            "setup",
            "input",
            "steps",
            "evaluation",
            "checkpoint",
            "report",
            "other",
        )
        if name in seconds
    )
    console.print(
        f"seconds  {parts} ({seconds['share_in_steps_and_evaluation']:.0%} in steps and evaluation)"
    )
    folder = Folder(result.folder)
    pictures = Folder(out) if out else folder / PICTURES
    figures = ", ".join(name for name in pictures.list_files() if name.endswith(".png"))
    paths = {
        "run": _shown(folder.location),
        "pictures": f"{_shown(pictures.location)}: {figures}",
        "journal": _shown(folder.file(JOURNAL)),
        "MLflow": _mlflow(result.mlflow),
    }
    print_facts(console, paths, width=8)


def _print_other(console: Console, name: str, measured: DatasetMetrics) -> None:
    """Print the metrics of a data set beside the first one."""
    rows = {label: measured.metrics[key] for key, label in FEATURE_NAMES.items() if key in measured.metrics}
    title = f"test identities of {name}, %"
    print_table(console, metrics_table(title, rows | {"U before training": measured.untrained}))


def _print_choices(console: Console, choices: EpochChoices, reported: ReportedEpoch) -> None:
    """Print the mAP of the reported feature at each choice of epoch, and the choice of this run."""
    feature = reported.feature
    labels = {"last": "last", "validation": "chosen on validation", "best_on_test": "best on test (flatters)"}
    parts = [
        f"{label} {choice.metrics[feature].mean_average_precision:.1%} (epoch {choice.epoch})"
        for name, label in labels.items()
        if (choice := choices.get(name)) is not None
    ]
    console.print(f"mAP of {feature}  {'; '.join(parts)}; reported: {labels[reported.chosen_by]}")


def _print_published(console: Console, result: RunReport) -> None:
    """Print what was published on the run's data set, and the run where its mAP puts it."""
    reported = result.reported
    own = result.metrics["U"] if reported is None else reported.metrics
    rows = [
        (
            own.mean_average_precision,
            "this run",
            "measured",
            "",
            own.value("rank1"),
        ),
        *(
            (
                method.metrics["mAP"],
                method.name,
                ", ".join(
                    filter(None, [method.source, "to check" if method.to_check else None, method.note])
                ),
                method.kind or "",
                method.metrics.get("rank1"),
            )
            for method in result.published
        ),
    ]
    table = text_table(
        "published on this data set, %", "method", "source", "backbone", "mAP", "rank 1", left=3
    )
    for precision, *texts, rank1 in sorted(rows, key=lambda row: -row[0]):
        shown = "" if rank1 is None else f"{100 * rank1:.1f}"
        table.add_row(*texts, f"{100 * precision:.1f}", shown)
    print_table(console, table)


def _print_idle_losses(console: Console, result: RunReport) -> None:
    """Print which losses of the last epoch train nothing."""
    if not result.losses_without_gradient:
        return
    *_, last = result.losses_without_gradient
    parts = ", ".join(f"{name} {value:.2f}" for name, value in last.items() if name != "epoch")
    total = result.losses[-1]["total"]
    sentence = f"losses that train nothing  {parts}, of a total of {total:.2f}"
    console.print(sentence, soft_wrap=True)


def _mlflow(run: MlflowRun | None) -> str:
    """How to open a run in MLflow's UI."""
    if run is None or run.run_id is None:
        return "has nothing yet; the journal keeps it, and the same command logs it when the server answers"
    if not run.uri.startswith("sqlite:///"):
        return run.page or f"{run.uri}, run {run.run_id}"
    store = _shown(run.uri.removeprefix("sqlite:///"))
    served = run.model_copy(update={"uri": "http://127.0.0.1:5000"})
    program = f"{_shown(str(Path(sys.executable).parent))}/mlflow"
    command = [program, "server", "--host", "127.0.0.1", "--port", "5000"]
    command += ["--backend-store-uri", f"sqlite:///{store}"]
    return f"{shlex.join(command)}\n         then open {served.page}"


def _shown(location: str) -> str:
    """A path relative to the current folder, where possible; a URI as it is."""
    try:
        return location if "://" in location else str(Path(location).relative_to(Path.cwd()))
    except ValueError:
        return location


def _study_report(given: argparse.Namespace) -> StudyReport:
    """Write the report of the study that the command line names."""
    workspace = resolve_workspace(given.workspace)
    from experiments.reports.study_report import write_report
    from experiments.reports.study_sources import find_study

    if given.out and given.out.endswith(".md"):
        raise ConfigError(f"--out={given.out}: name the page, .html; its Markdown is written beside it")
    study = find_study(given.tracking_uri, workspace, given.study, given.catalog)
    try:
        return write_report(study, given.out or (workspace / STUDIES / given.study).file("report.html"))
    except NotWritableError as error:
        if given.out:
            raise
        raise NotWritableError(f"{error}; or name another place for the page with --out") from None


def print_study_report(report: StudyReport) -> None:
    """Print the paths of a study's report, and its missing figures, for a terminal."""
    console = text_console()
    paths = {"page": _shown(report.page), "markdown": _shown(report.markdown)}
    print_facts(console, {**paths, "pictures": len(report.pictures)}, width=9)
    for section, reason in report.missing.items():
        print_marked(console, "not drawn", "yellow", f"{section}: {reason}")


def print_run_table(table: RunTable) -> None:
    """Print where the table of a study is, for a terminal."""
    size = f"{table.runs} runs, {len(table.columns)} columns"
    print_facts(text_console(), {"table": _shown(table.table), "size": size}, width=6)


def _log_again(given: argparse.Namespace) -> LoggedAgain:
    """Send the workspace, or the run or study that the command line names, to MLflow."""
    if given.out is not None:
        raise ConfigError(f"--out={given.out} belongs to the page of a study; leave it or --mlflow-again out")
    run = RunFolder.open(given.run, given.catalog) if given.run else None
    workspace = resolve_workspace(given.workspace) if run is None else run.parent.parent
    options = RunOptions.resolve(workspace, given.catalog, tracking_uri=given.tracking_uri)
    if not workspace.list_folders():
        raise ConfigError(f"--workspace={workspace} does not exist or is empty; name one that has runs")
    from experiments.reports import mlflow_again

    if run is not None:
        return mlflow_again.send_run(options, run)
    if given.study:
        return mlflow_again.send_study(options, given.study)
    return mlflow_again.send_workspace(options)


def print_logged_again(sent: LoggedAgain) -> None:
    """Print what was sent to MLflow, and what could not be sent, for a terminal."""
    console = text_console()
    facts = {"MLflow": sent.tracking_uri, "runs": len(sent.runs)}
    studies = {f"study {name}": f"{children} runs" for name, children in sent.studies.items()}
    print_facts(console, facts | studies, width=max(map(len, [*facts, *studies])) + 1)
    for name, reason in sent.wrong.items():
        print_marked(console, "not sent", "yellow", f"{name}: {reason}")


def _draw_hypergraphs(folder: RunFolder, pictures: Folder) -> None:
    """Draw the hypergraphs of some test queries, where the run's weights and its CLIP are there."""
    from experiments.figure_style import png_bytes
    from experiments.reports.hypergraph_figure import plot_run
    from experiments.run.run_figures import SCREEN_DPI
    from stmi.errors import ClipFileError, TrainedRunError

    try:
        figure = plot_run(folder)
    except (TrainedRunError, ClipFileError) as error:
        logger.warning("its hypergraphs are not drawn: %s", error)
        return
    if figure is not None:
        pictures.write("hypergraphs.png", png_bytes(figure, SCREEN_DPI))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reported = parser.add_mutually_exclusive_group()
    reported.add_argument(
        "--run", metavar="DIR", help="a run's folder or URI (default: the run finished last)"
    )
    reported.add_argument(
        "--study",
        metavar="NAME",
        help="a study, by the name that ablate.py or sweep_sfm.py printed (default: a run)",
    )
    parser.add_argument(
        "--mlflow-again",
        action="store_true",
        help="send the workspace, or the --run or --study named, to an MLflow store that lacks it; what "
        "the store has already is not sent twice (default: print a report)",
    )
    parser.add_argument(
        "--tracking-uri",
        help="with --study, the MLflow server that has it; with --mlflow-again, that gets it (default: "
        "$MLFLOW_TRACKING_URI, or SQLite in the workspace)",
    )
    parser.add_argument(
        "--out",
        help="with --study, its page (default: WORKSPACE/studies/NAME/report.html); of a run, the folder of "
        "its pictures (default: that in the run's folder)",
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="with --study, write the table of its runs in place of its page: a file or URI that ends with "
        ".parquet or .csv (default: the page)",
    )
    parser.add_argument(
        "--catalog",
        help="folder or URI of the catalog, for tables that are not where the runs found them (default: "
        "where they found them, or WORKSPACE/catalog)",
    )
    add_workspace(parser)
    add_json_options(parser, PrintedReport)
    given = parser.parse_args(arguments)
    if given.table and (given.study is None or given.mlflow_again or given.out or given.tracking_uri):
        parser.error(
            "--table goes with --study NAME (and --workspace) alone: the files of the workspace have it all"
        )
    if given.mlflow_again:
        return run_command(
            lambda: _log_again(given), given.json, print_logged_again, lambda sent: 1 if sent.wrong else 0
        )
    if given.table:
        return run_command(
            lambda: write_run_table(resolve_workspace(given.workspace), given.study, given.table),
            given.json,
            print_run_table,
        )
    if given.study:
        return run_command(lambda: _study_report(given), given.json, print_study_report)

    def show_run() -> RunReport:
        if given.tracking_uri is not None:
            raise ConfigError(
                f"--tracking-uri={given.tracking_uri} belongs to a study; add --study NAME, or leave it out"
            )
        if given.run:
            folder = RunFolder.open(given.run, given.catalog)
        else:
            folder = RunFolder.finished_last(resolve_workspace(given.workspace), given.catalog)
        result = folder.finished_result
        from experiments.run.run_figures import draw_all

        pictures = Folder(given.out) if given.out else None
        try:
            draw_all(folder, result, pictures)
            _draw_hypergraphs(folder, pictures or folder / PICTURES)
        except NotWritableError as error:
            if pictures is not None:
                raise
            logger.warning("its pictures are not drawn: %s; or name a folder for them with --out", error)
        dataset = folder.config.data.dataset
        return RunReport(
            **dict(result),
            mlflow=folder.mlflow,
            paper=find_stmi_result(dataset),
            published=published_methods(dataset),
        )

    return run_command(show_run, given.json, lambda result: print_report(result, given.out))


if __name__ == "__main__":
    sys.exit(main())
