"""Figures of a study's numbers: differences with intervals, curves by epoch, alpha and beta by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.figure_style import BLUE, COLOURS, GREY, MARKERS, RED, SKY_BLUE
from experiments.reports.recorded_study import RecordedRun
from experiments.studies.ablation.ablation_result import ComparedMetric, TableRow

REAL, OTHER, PAPER = BLUE, SKY_BLUE, RED


def plot_differences(rows: Sequence[TableRow]) -> Figure | None:
    """Forest plot of the differences of a table with both intervals; the paper's have their own panel.

    Args:
        rows: Rows of one table.

    Returns:
        None where no row is compared with another.
    """
    compared = [row for row in rows if row.mean_average_precision.difference is not None]
    if not compared:
        return None
    metrics = [row.mean_average_precision for row in compared]
    printed = any(metric.paper_difference is not None for metric in metrics)
    figure = Figure(figsize=(9.5 if printed else 7, 0.55 * len(compared) + 1.5), layout="constrained")
    columns = 1 + printed
    panels = figure.subplots(1, columns, sharey=True, squeeze=False, width_ratios=(3, 2)[:columns])[0]
    for position, metric in enumerate(metrics):
        _plot_difference(panels[0], position, metric)
        if metric.paper_difference is not None:
            panels[1].plot(100 * metric.paper_difference, position, "D", color=PAPER, markersize=6)
    labels = [f"{row.name}\nminus {row.mean_average_precision.against}" for row in compared]
    panels[0].set_yticks(range(len(compared)), labels, fontsize=8)
    panels[0].set(xlabel="measured difference of mAP, percentage points")
    if printed:
        panels[1].set(xlabel="paper's difference on RGBNT201, points\n(one seed, no interval; its own scale)")
    for axes in panels:
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.1)
    panels[0].set_ylim(len(compared) - 0.5, -0.5)
    _add_difference_legend(panels[0])
    return figure


def _plot_difference(axes: Axes, position: int, metric: ComparedMetric) -> None:
    """One difference: the interval over seeds above, over queries below; filled where it is real."""
    colour = REAL if metric.real else OTHER
    for interval, offset, width in (
        (metric.difference_interval, -0.1, 2.5),
        (metric.query_interval, 0.1, 1.0),
    ):
        if interval is not None:
            axes.plot([100 * end for end in interval], [position + offset] * 2, color=colour, linewidth=width)
    face = colour if metric.real else "white"
    assert metric.difference is not None
    axes.plot(100 * metric.difference, position, "o", color=colour, markerfacecolor=face, markersize=7)


def _add_difference_legend(axes: Axes) -> None:
    axes.plot([], [], "o", color=REAL, label="real")
    axes.plot([], [], "o", color=OTHER, markerfacecolor="white", label="not real, or undecided")
    axes.plot([], [], color="grey", linewidth=2.5, label="95 % over seeds")
    axes.plot([], [], color="grey", linewidth=1.0, label="95 % over queries")
    axes.figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)


def plot_curves(rows: Mapping[str, Sequence[RecordedRun]]) -> Figure:
    """Validation mAP and training loss by epoch: a row's mean over seeds, its band from lowest to highest.

    Without validation identities the first panel shows the test identities, as its title says.

    Args:
        rows: Label to the runs of all seeds.
    """
    figure, (precision, loss) = _two_panels()
    validated = any("validation" in run.curves for runs in rows.values() for run in runs)
    split = "validation" if validated else "test"
    for number, (label, runs) in enumerate(rows.items()):
        # Where two curves are equal, the lower one shows through the dashes.
        style = _style(number) | {"label": label, "linestyle": "--" if number % 2 else "-"}
        _plot_mean_and_band(precision, [run.curves.get(split, {}) for run in runs], 100, style)
        _plot_mean_and_band(loss, [run.curves.get("loss", {}) for run in runs], 1, style)
    _label_curves(precision, loss, f"{split.capitalize()} identities")
    _add_legend_below(figure, precision)
    return figure


def plot_trial_curves(runs: Sequence[RecordedRun], best: str) -> Figure:
    """Validation mAP and training loss of every run of a sweep by epoch.

    Args:
        runs: The runs.
        best: Folder name of the best run, which is emphasised.
    """
    figure, panels = _two_panels(height=3.6)
    for axes, name, scale in zip(panels, ("validation", "loss"), (100, 1), strict=True):
        # The best run is plotted last, over the others.
        for run in sorted(runs, key=lambda run: run.run == best):
            values = run.curves.get(name, {})
            colour, width = (REAL, 2.2) if run.run == best else (GREY, 0.9)
            scaled = [scale * value for value in values.values()]
            axes.plot(list(values), scaled, marker=".", color=colour, linewidth=width)
    _label_curves(*panels, "Validation identities; the best trial in blue")
    return figure


def plot_strengths(rows: Mapping[str, tuple[np.ndarray, np.ndarray]], initial: float) -> Figure:
    """Learned alpha and beta by layer: a row's mean over seeds and heads, bars from lowest to highest.

    Args:
        rows: Label to alpha and beta, each `(seeds, layers, heads or 1)`; NaN in layers without modulation.
        initial: Mean of both at the start.
    """
    figure, panels = _two_panels(sharey=True)
    for number, (label, both) in enumerate(rows.items()):
        # Side by side within a layer: equal values would hide each other.
        offset = 0.12 * (number - (len(rows) - 1) / 2)
        for axes, values in zip(panels, both, strict=True):
            layers = np.flatnonzero(~np.isnan(values[0, :, 0]))
            mean, low, high = (reduce(values[:, layers], axis=(0, 2)) for reduce in (np.mean, np.min, np.max))
            axes.errorbar(
                layers + 1 + offset,
                mean,
                yerr=(mean - low, high - mean),
                label=label,
                markersize=5,
                linewidth=1,
                elinewidth=1,
                **_style(number),
            )
    for axes, name in zip(panels, ("alpha: foreground enhanced", "beta: background suppressed"), strict=True):
        axes.axhline(initial, color="grey", linestyle="--", linewidth=1, label="mean at the start")
        axes.set(title=name, xlabel="layer of the image tower")
    panels[0].set(ylabel="strength (no unit)")
    _add_legend_below(figure, panels[0])
    return figure


def _two_panels(height: float = 3.8, sharey: bool = False) -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure with two panels, whose x axes count."""
    figure = Figure(figsize=(10, height), layout="constrained")
    first, second = figure.subplots(1, 2, sharey=sharey)
    for axes in (first, second):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, (first, second)


def _style(number: int) -> dict[str, Any]:
    """Colour and marker of a row."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def _label_curves(precision: Axes, loss: Axes, title: str) -> None:
    precision.set(title=title, xlabel="epoch", ylabel="mAP, %")
    loss.set(title="Training", xlabel="epoch", ylabel="loss (sum of eq. 20, no unit)")


def _add_legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _plot_mean_and_band(
    axes: Axes, seeds: Sequence[Mapping[int, float]], scale: float, style: Mapping[str, Any]
) -> None:
    """The mean over seeds and a band from lowest to highest, for the epochs that every seed has."""
    epochs = sorted(set.intersection(*(set(values) for values in seeds)))
    values = scale * np.array([[one[epoch] for epoch in epochs] for one in seeds])
    # Fewer markers than epochs in a long run, because they would overlap.
    every = max(1, len(epochs) // 10)
    axes.plot(epochs, values.mean(axis=0), markersize=4, markevery=every, linewidth=1.3, **style)
    if len(seeds) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
