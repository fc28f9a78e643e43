"""Compare two models on the same test queries: runs, or embeddings that anybody's code made.

    python experiments/compare.py runs/train/demo-seed0-1a2b3c4d runs/train/demo-seed0-5e6f7a8b
    python experiments/compare.py runs/train/rgbnt201-paper-seed0-1a2b3c4d theirs.npz --feature U
    python experiments/compare.py ours.parquet theirs.parquet --junk scene --picture scatter.png --json

Prints mAP and CMC of both, the difference of each metric with a 95 % interval from a bootstrap of test
identities, and the queries on which the two disagree most. An interval says by how much these two models may
differ on other identities, not what a second training would give: for that `ablate.py` trains several seeds.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

if __package__ in (None, ""):  # run as a file: the tree around it is the code that runs
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from data_catalog.process import begin_process

    begin_process()

import numpy as np

from data_catalog.command_parser import CommandParser
from data_catalog.records import Record, add_json_options
from experiments.command_line import run_command
from experiments.evaluating.query_scores import (
    FORMAT,
    SUFFIXES,
    QueryScores,
    is_file,
    scores_of_file,
    scores_of_run,
)
from experiments.evaluating.split_labels import check_same_split
from experiments.experiment_config import ConfigError
from experiments.run.run_folder import RunFolder
from experiments.studies.significance import bootstrap_over_queries
from experiments.terminal_tables import print_table, text_console, text_table
from stmi.retrieval.metrics import JunkRule

RANKS = (1, 5, 10)
JUNK: dict[JunkRule, str] = {
    "camera": "gallery samples of the query's identity and camera do not count",
    "scene": "gallery samples of the query's identity and scene do not count",
    "none": "only the query itself does not count in the gallery",
}
TEST_VIEW = "view/test"
OTHER_IMAGES = "the two runs read different samples tables: images of the same name may differ"
DISAGREEMENT = ("query", "AP first", "AP second", "rank first", "rank second")


class ComparedModel(Record):
    """Metrics of one side over the queries that both have; fractions."""

    name: str
    feature: str
    metrics: dict[str, float]
    """mAP, rank1, rank5, rank10."""


class MetricDifference(Record):
    """Second minus first, as fractions."""

    difference: float
    interval: tuple[float, float] | None
    """95 %, over test identities; None with a single one."""
    p_value: float | None


class Disagreement(Record):
    """A query that the two rank differently: first side, second side."""

    sample_id: str
    average_precision: tuple[float, float]
    first_match_rank: tuple[int, int]


class ModelComparison(Record):
    """Two models on the same queries."""

    models: tuple[ComparedModel, ComparedModel]
    junk: JunkRule
    queries: int
    """With a match in both galleries."""
    identities: int
    differences: dict[str, MetricDifference]
    """By metric."""
    disagreements: tuple[Disagreement, ...]
    """The queries with the largest differences of average precision, these first."""
    notes: tuple[str, ...] = ()
    """What to know before the numbers are believed."""


def compare(first: QueryScores, second: QueryScores, junk: JunkRule, top: int = 10) -> ModelComparison:
    """Compare how two models rank the queries of one test split.

    Raises:
        ConfigError: Queries, gallery, or which samples share an identity, camera or scene, are not the same.
        data_catalog.errors.CatalogError: The test view of a run is needed to know this, and not to be found.
    """
    views, samples = (
        {scores.tables.get(name) for scores in (first, second)} for name in (TEST_VIEW, "samples")
    )
    if len(views) > 1 or None in views:
        check_same_split(first.read_labels(), second.read_labels(), (first.name, second.name))
    values = [_by_metric(scores) for scores in (first, second)]
    differences = {}
    for metric, ours in values[0].items():
        found = bootstrap_over_queries(values[1][metric], ours, first.identity)
        differences[metric] = MetricDifference(
            difference=found.difference, interval=found.interval, p_value=found.p_value
        )
    gaps = np.abs(second.average_precision - first.average_precision)
    return ModelComparison(
        models=tuple(
            ComparedModel(
                name=scores.name,
                feature=scores.feature,
                metrics={metric: float(of_each.mean()) for metric, of_each in by_metric.items()},
            )
            for scores, by_metric in zip((first, second), values, strict=True)
        ),
        junk=junk,
        queries=len(gaps),
        identities=len(np.unique(first.identity)),
        differences=differences,
        disagreements=tuple(
            Disagreement(
                sample_id=str(first.sample_id[i]),
                average_precision=(float(first.average_precision[i]), float(second.average_precision[i])),
                first_match_rank=(int(first.first_match_rank[i]), int(second.first_match_rank[i])),
            )
            for i in np.argsort(-gaps, kind="stable")[:top]
            if gaps[i] > 0
        ),
        notes=(OTHER_IMAGES,) if len(samples) > 1 and None not in samples else (),
    )


def _by_metric(scores: QueryScores) -> dict[str, np.ndarray]:
    """What each metric is the mean of over the queries."""
    return {"mAP": scores.average_precision} | {
        f"rank{rank}": (scores.first_match_rank <= rank).astype(float) for rank in RANKS
    }


def show(result: ModelComparison) -> None:
    """Print a comparison for a terminal."""
    console = text_console()
    names = [f"{model.name}, {model.feature}" for model in result.models]
    table = text_table(
        f"{result.queries} queries of {result.identities} identities, %",
        "metric", "first", "second", "difference", "95 % interval", "p",
    )  # fmt: skip
    for metric, found in result.differences.items():
        interval = "" if found.interval is None else "{:+.1f} to {:+.1f}".format(*_percent(found.interval))
        table.add_row(
            metric.replace("rank", "rank "),
            *(f"{100 * model.metrics[metric]:.1f}" for model in result.models),
            f"{100 * found.difference:+.1f}",
            interval,
            "" if found.p_value is None else f"{found.p_value:.3f}",
        )
    for side, name in zip(("first", "second"), names, strict=True):
        console.print(f"{side:8}{name}", soft_wrap=True)
    console.print(f"{'junk':8}{JUNK[result.junk]}", soft_wrap=True)
    print_table(console, table)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if not result.disagreements:
        return
    table = text_table("largest differences: average precision in %, rank of the first match", *DISAGREEMENT)
    for query in result.disagreements:
        precisions = [f"{value:.1f}" for value in _percent(query.average_precision)]
        table.add_row(query.sample_id, *precisions, *map(str, query.first_match_rank))
    print_table(console, table)


def _percent(values: tuple[float, float]) -> tuple[float, float]:
    return 100 * values[0], 100 * values[1]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in ("first", "second"):
        parser.add_argument(
            side,
            metavar=side.upper(),
            help=f"a finished run's folder or URI, or a file {' or '.join(SUFFIXES)} of embeddings: {FORMAT}",
        )
    parser.add_argument(
        "--feature",
        help="which feature of both (default: the one that a run reports; U, or the only one, of a file)",
    )
    parser.add_argument(
        "--junk",
        choices=get_args(JunkRule),
        help="which gallery samples of the query's identity do not count in a file of embeddings: those of "
        "its camera or its scene, or none but the query itself (default: the rule of the run that is "
        "compared, or camera)",
    )
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="disagreements to print (default: 10)"
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="draw every query to a PNG file (default: not drawn)"
    )
    parser.add_argument("--catalog", help="catalog of the runs' test views (default: where they found them)")
    add_json_options(parser, ModelComparison)
    given = parser.parse_args(arguments)

    def command() -> ModelComparison:
        if given.top < 0:
            raise ConfigError(f"--top={given.top}: expected 0 or more")
        sides = (given.first, given.second)
        runs = {side: RunFolder.open(side, given.catalog) for side in sides if not is_file(side)}
        rules = {run.config.data.junk for run in runs.values()}
        if len(rules) > 1 or (given.junk and rules - {given.junk}):
            raise ConfigError(
                f"--junk={given.junk or 'camera'}: a run has the rule {' and another '.join(sorted(rules))}; "
                "two models are compared by one rule"
            )
        junk = next(iter(rules), given.junk or "camera")
        first, second = (
            scores_of_run(runs[side], given.feature)
            if side in runs
            else scores_of_file(side, given.feature, junk)
            for side in sides
        )
        result = compare(first, second, junk, given.top)
        if given.picture:
            from experiments.evaluating.comparison_figure import draw_comparison

            draw_comparison(first, second, given.picture)
        return result

    return run_command(command, given.json, show)


if __name__ == "__main__":
    sys.exit(main())
