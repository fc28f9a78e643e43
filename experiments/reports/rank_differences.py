"""The queries on which two rows of a table disagree most, with both their rank lists."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyarrow import compute, parquet

from data_catalog.views.training_view import open_view
from experiments.run.run_figures import embeddings_of, show_nearest, show_sample
from experiments.run.run_folder import RunFolder, RunFolderError
from stmi.modality import MODALITIES

EACH_WAY = 3
RANKS = 7


@dataclass(frozen=True)
class Disagreement:
    """A query that two rows treat differently.

    Attributes:
        sample_index: Of the query.
        gain: Its average precision with the second row less that with the first, mean over seeds.
    """

    sample_index: int
    gain: float


def disagreements(
    first: Mapping[int, RunFolder], second: Mapping[int, RunFolder], feature: str, each_way: int = EACH_WAY
) -> list[Disagreement]:
    """The queries that gain most and that lose most from the first row to the second, in this order.

    Args:
        first: Seed to run.
        second: Seed to run; seeds of both count.
        feature: What ranks.
        each_way: How many that gain, and how many that lose.

    Raises:
        RunFolderError: They have no seed in common.
    """
    gains = _gains(first, second, feature)
    ordered = sorted((Disagreement(query, gain) for query, gain in gains.items()), key=lambda one: -one.gain)
    gained = [one for one in ordered if one.gain > 0][:each_way]
    lost = [one for one in ordered if one.gain < 0][-each_way:]
    return gained + lost


def disagreement(first: Mapping[int, RunFolder], second: Mapping[int, RunFolder], feature: str) -> float:
    """By how much the average precision of a query differs between two rows, mean over queries.

    Args:
        first: Seed to run.
        second: Seed to run; seeds of both count.
        feature: What ranks.

    Raises:
        RunFolderError: They have no seed in common.
    """
    return float(np.mean(np.abs(list(_gains(first, second, feature).values()))))


def _gains(first: Mapping[int, RunFolder], second: Mapping[int, RunFolder], feature: str) -> dict[int, float]:
    """Query to its average precision with the second row less that with the first, mean over seeds."""
    seeds = seeds_in_common([first, second])
    before = [_precision(first[seed], feature) for seed in seeds]
    after = [_precision(second[seed], feature) for seed in seeds]
    return {
        query: float(np.mean([b[query] - a[query] for a, b in zip(before, after, strict=True)]))
        for query in before[0]
    }


def seeds_in_common(arms: Collection[Mapping[int, RunFolder]]) -> list[int]:
    """The seeds that every row has a finished run of, in ascending order.

    Raises:
        RunFolderError: There is none.
    """
    shared = set.intersection(*(set(runs) for runs in arms))
    if not shared:
        finished = "; ".join(", ".join(map(str, sorted(runs))) for runs in arms)
        raise RunFolderError(
            f"the rows have no seed in common (finished are {finished}); run the command that made the study "
            "again"
        )
    return sorted(shared)


def embedding_of(run: RunFolder, feature: str) -> np.ndarray:
    """One feature of a finished run's test view, `(rows, width)`, after the last epoch."""
    result = run.result
    assert result is not None
    return embeddings_of(result)[feature]


def _precision(run: RunFolder, feature: str) -> dict[int, float]:
    """Average precision of every query with a match, after the last epoch, by `sample_index`."""
    table = parquet.read_table(run.queries)
    last = compute.max(table["epoch"])
    chosen = compute.and_(compute.equal(table["feature"], feature), compute.equal(table["epoch"], last))
    table = table.filter(chosen).drop_null()
    return dict(zip(table["sample_index"].to_pylist(), table["average_precision"].to_pylist(), strict=True))


def rank_differences(
    arms: Mapping[str, Mapping[int, RunFolder]], feature: str, found: list[Disagreement]
) -> Figure:
    """Each query's nearest gallery samples in both rows, of the lowest seed that both have.

    Args:
        arms: Label to seed to run, of two rows.
        feature: What ranks.
        found: Queries.

    Raises:
        RunFolderError: They have no seed in common.
    """
    seed = seeds_in_common(arms.values())[0]
    runs = {label: of_seed[seed] for label, of_seed in arms.items()}
    first = next(iter(runs.values()))
    view, junk = open_view(first.view("test")), first.config.data.junk
    embeddings = {label: embedding_of(run, feature) for label, run in runs.items()}
    precision = {label: _precision(run, feature) for label, run in runs.items()}
    height, width = view.image_size
    cell = 1.35
    row_height = cell * height / (width * len(MODALITIES)) + 0.22
    lines = len(arms) * len(found)
    figure = Figure(figsize=(cell * (RANKS + 2), row_height * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, RANKS + 2, squeeze=False)
    row_of = {index: row for row, index in enumerate(view.sample_index.tolist())}
    for number, one in enumerate(found):
        for place, label in enumerate(arms):
            cells = axes[len(arms) * number + place]
            query = row_of[one.sample_index]
            share = precision[label][one.sample_index]
            gain = f"\n\n{100 * one.gain:+.0f} points\nover seeds" if place else ""
            _describe(cells[0], f"{label}\nAP {share:.0%}{gain}")
            show_sample(cells[1], view, query, f"query {one.sample_index}", "black")
            show_nearest(cells[2:], view, embeddings[label], query, junk)
    figure.suptitle(f"Seed {seed}, each sample in {', '.join(MODALITIES)}", fontsize=10)
    return figure


def _describe(axes: Axes, text: str) -> None:
    axes.text(1, 0.5, text, ha="right", va="center", fontsize=8, wrap=True, transform=axes.transAxes)
    axes.set_axis_off()
