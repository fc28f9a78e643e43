"""Rank lists of two rows of a table, for the queries on which the rows disagree most."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyarrow import compute

from data_catalog.views.view_reader import open_view
from experiments.run.run_figures import load_test_embeddings, make_sample_grid, show_nearest, show_sample
from experiments.run.run_folder import RunFolder, RunFolderError
from stmi.modality import MODALITIES

EACH_WAY = 3
RANKS = 7


@dataclass(frozen=True)
class Disagreement:
    """A query whose average precision differs between two rows.

    Attributes:
        sample_index: Index of the query.
        gain: Average precision of the second row minus that of the first, mean over seeds.
    """

    sample_index: int
    gain: float


def find_disagreements(
    first: Mapping[int, RunFolder], second: Mapping[int, RunFolder], feature: str, each_way: int = EACH_WAY
) -> list[Disagreement]:
    """The queries that gain most and that lose most from the first row to the second, in this order.

    Args:
        first: Seed to run.
        second: Seed to run; only shared seeds are used.
        feature: The retrieval feature.
        each_way: Number of queries that gain, and of queries that lose.

    Raises:
        RunFolderError: They have no seed in common.
    """
    gains = _gains(first, second, feature)
    ordered = sorted((Disagreement(query, gain) for query, gain in gains.items()), key=lambda one: -one.gain)
    gained = [one for one in ordered if one.gain > 0][:each_way]
    lost = [one for one in ordered if one.gain < 0][-each_way:]
    return gained + lost


def mean_disagreement(first: Mapping[int, RunFolder], second: Mapping[int, RunFolder], feature: str) -> float:
    """Absolute difference of average precision between two rows, mean over queries.

    Args:
        first: Seed to run.
        second: Seed to run; only shared seeds are used.
        feature: The retrieval feature.

    Raises:
        RunFolderError: They have no seed in common.
    """
    return float(np.mean(np.abs(list(_gains(first, second, feature).values()))))


def _gains(first: Mapping[int, RunFolder], second: Mapping[int, RunFolder], feature: str) -> dict[int, float]:
    """Query to the gain of its average precision from the first row to the second, mean over seeds."""
    seeds = shared_seeds([first, second])
    before = [_average_precision(first[seed], feature) for seed in seeds]
    after = [_average_precision(second[seed], feature) for seed in seeds]
    return {
        query: float(np.mean([b[query] - a[query] for a, b in zip(before, after, strict=True)]))
        for query in before[0]
    }


def shared_seeds(rows: Collection[Mapping[int, RunFolder]]) -> list[int]:
    """The seeds for which every row has a finished run, in ascending order.

    Raises:
        RunFolderError: There is none.
    """
    shared = set.intersection(*(set(runs) for runs in rows))
    if not shared:
        finished = "; ".join(", ".join(map(str, sorted(runs))) for runs in rows)
        raise RunFolderError(
            f"the rows have no seed in common (finished are {finished}); run the command that made the study "
            "again"
        )
    return sorted(shared)


def load_embeddings(run: RunFolder, feature: str) -> np.ndarray:
    """One feature of a finished run's test view, `(rows, width)`, after the last epoch."""
    return load_test_embeddings(run.finished_result)[feature]


def _average_precision(run: RunFolder, feature: str) -> dict[int, float]:
    """The average precision after the last epoch of every query with a match, by `sample_index`."""
    table = run.read_queries()
    last = compute.max(table["epoch"])
    chosen = compute.and_(compute.equal(table["feature"], feature), compute.equal(table["epoch"], last))
    table = table.filter(chosen).drop_null()
    return dict(zip(table["sample_index"].to_pylist(), table["average_precision"].to_pylist(), strict=True))


def plot_rank_lists(
    rows: Mapping[str, Mapping[int, RunFolder]], feature: str, queries: list[Disagreement]
) -> Figure:
    """The nearest gallery samples of each query in both rows, for the lowest shared seed.

    Args:
        rows: Label to seed to run, of two rows.
        feature: The retrieval feature.
        queries: The queries to show.

    Raises:
        RunFolderError: They have no seed in common.
    """
    seed = shared_seeds(rows.values())[0]
    runs = {label: by_seed[seed] for label, by_seed in rows.items()}
    first = next(iter(runs.values()))
    view, junk = open_view(first.view("test")), first.config.data.junk
    embeddings = {label: load_embeddings(run, feature) for label, run in runs.items()}
    precision = {label: _average_precision(run, feature) for label, run in runs.items()}
    figure, axes = make_sample_grid(view.image_size, len(rows) * len(queries), RANKS + 2)
    view_row = {index: row for row, index in enumerate(view.sample_index.tolist())}
    for number, query in enumerate(queries):
        for position, label in enumerate(rows):
            cells = axes[len(rows) * number + position]
            row = view_row[query.sample_index]
            gain = f"\n\n{100 * query.gain:+.0f} points\nover seeds" if position else ""
            _describe(cells[0], f"{label}\nAP {precision[label][query.sample_index]:.0%}{gain}")
            show_sample(cells[1], view, row, f"query {query.sample_index}", "black")
            show_nearest(cells[2:], view, embeddings[label], row, junk)
    figure.suptitle(f"Seed {seed}, each sample in {', '.join(MODALITIES)}", fontsize=10)
    return figure


def _describe(axes: Axes, text: str) -> None:
    axes.text(1, 0.5, text, ha="right", va="center", fontsize=8, wrap=True, transform=axes.transAxes)
    axes.set_axis_off()
