"""Pictures of a study's numbers: differences with intervals, curves over epochs, alpha and beta by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.reports.study_records import StudyRun
from experiments.studies.ablation.ablation_result import ComparedMetric, TableRow

COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#999999")
"""Colours that the colour-blind tell apart (Okabe and Ito 2008), for arms from the first on."""
MARKERS = "osD^vPX*"
REAL, NOT_SHOWN, PAPER = "#0072b2", "#56b4e9", "#d55e00"


def differences(rows: Sequence[TableRow]) -> Figure | None:
    """Forest plot of the differences of a table with both their intervals, the paper's in a panel of its own.

    Args:
        rows: Of one table, as `ablation_table.table_rows` gives them.

    Returns:
        None where no row is compared with another.
    """
    compared = [row for row in rows if row.mean_average_precision.difference is not None]
    if not compared:
        return None
    printed = any(row.mean_average_precision.paper_difference is not None for row in compared)
    figure = Figure(figsize=(9.5 if printed else 7, 0.55 * len(compared) + 1.5), layout="constrained")
    panels = figure.subplots(1, 1 + printed, sharey=True, squeeze=False, width_ratios=(3, 2)[: 1 + printed])[
        0
    ]
    for place, row in enumerate(compared):
        _difference(panels[0], place, row.mean_average_precision)
        if printed and row.mean_average_precision.paper_difference is not None:
            panels[1].plot(
                100 * row.mean_average_precision.paper_difference, place, "D", color=PAPER, markersize=6
            )
    panels[0].set_yticks(
        range(len(compared)),
        [f"{row.name}\nless {row.mean_average_precision.against}" for row in compared],
        fontsize=8,
    )
    panels[0].set(xlabel="measured difference of mAP, percentage points")
    if printed:
        panels[1].set(xlabel="paper's difference on RGBNT201, points\n(one seed, no interval; its own scale)")
    for axes in panels:
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.1)
    panels[0].set_ylim(len(compared) - 0.5, -0.5)
    _explain(panels[0])
    return figure


def _difference(axes: Axes, place: int, precision: ComparedMetric) -> None:
    """One difference: the interval over seeds above, over queries below, filled where it is real."""
    colour = REAL if precision.real else NOT_SHOWN
    for interval, offset, width in (
        (precision.difference_interval, -0.1, 2.5),
        (precision.query_interval, 0.1, 1.0),
    ):
        if interval is not None:
            axes.plot([100 * end for end in interval], [place + offset] * 2, color=colour, linewidth=width)
    face = colour if precision.real else "white"
    assert precision.difference is not None
    axes.plot(100 * precision.difference, place, "o", color=colour, markerfacecolor=face, markersize=7)


def _explain(axes: Axes) -> None:
    axes.plot([], [], "o", color=REAL, label="real")
    axes.plot([], [], "o", color=NOT_SHOWN, markerfacecolor="white", label="not shown to be real")
    axes.plot([], [], color="grey", linewidth=2.5, label="95 % over seeds")
    axes.plot([], [], color="grey", linewidth=1.0, label="95 % over queries")
    axes.figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)


def curves(arms: Mapping[str, Sequence[StudyRun]]) -> Figure:
    """Validation mAP and training loss by epoch: an arm's mean over seeds, its band from lowest to highest.

    Data sets without validation identities show the test identities, and say so.

    Args:
        arms: Label to the runs of its seeds.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    precision, loss = figure.subplots(1, 2)
    validated = any("validation" in run.curves for runs in arms.values() for run in runs)
    split = "validation" if validated else "test"
    for number, (label, runs) in enumerate(arms.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        # Where two arms run alike, the lower one shows through.
        style["linestyle"] = "--" if number % 2 else "-"
        _banded(precision, [run.curves.get(split, {}) for run in runs], 100, label, style)
        _banded(loss, [run.curves.get("loss", {}) for run in runs], 1, label, style)
    precision.set(title=f"{split.capitalize()} identities", xlabel="epoch", ylabel="mAP, %")
    loss.set(title="Training", xlabel="epoch", ylabel="loss (sum of eq. 20, no unit)")
    for axes in (precision, loss):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = precision.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def trial_curves(runs: Sequence[StudyRun], best: str) -> Figure:
    """Validation mAP and training loss of every run by epoch.

    Args:
        runs: Of a sweep.
        best: The one to be seen at once, by the name of its folder.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, scale in zip(panels, ("validation", "loss"), (100, 1), strict=True):
        # The best is drawn last, over the others.
        for run in sorted(runs, key=lambda run: run.run == best):
            values = run.curves.get(name, {})
            style = (
                {"color": REAL, "linewidth": 2.2}
                if run.run == best
                else {"color": "#999999", "linewidth": 0.9}
            )
            axes.plot(list(values), [scale * value for value in values.values()], marker=".", **style)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set(title="Validation identities; the best trial in blue", xlabel="epoch", ylabel="mAP, %")
    panels[1].set(title="Training", xlabel="epoch", ylabel="loss (sum of eq. 20, no unit)")
    return figure


def _banded(
    axes: Axes,
    by_seed: Sequence[Mapping[int, float]],
    scale: float,
    label: str,
    style: Mapping[str, Any],
) -> None:
    """A line of means over seeds and a band from lowest to highest, over the epochs that every seed has."""
    epochs = sorted(set.intersection(*(set(values) for values in by_seed)))
    values = scale * np.array([[one[epoch] for epoch in epochs] for one in by_seed])
    # A long run's markers would run into each other.
    every = max(1, len(epochs) // 10)
    axes.plot(epochs, values.mean(axis=0), label=label, markersize=4, markevery=every, linewidth=1.3, **style)
    if len(by_seed) > 1:
        axes.fill_between(
            epochs, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, linewidth=0
        )


def strengths(arms: Mapping[str, tuple[np.ndarray, np.ndarray]], initial: float) -> Figure:
    """Learned alpha and beta by layer: an arm's mean over seeds and heads, bars from lowest to highest.

    Args:
        arms: Label to alpha and beta, each `(seeds, layers, heads or 1)`, NaN where a layer is not modulated.
        initial: Mean that both began at.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, (label, both) in enumerate(arms.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        # Beside each other within a layer: arms that learn alike would hide each other.
        beside = 0.12 * (number - (len(arms) - 1) / 2)
        for axes, values in zip(panels, both, strict=True):
            there = np.flatnonzero(~np.isnan(values[0, :, 0]))
            known = values[:, there]
            mean, low, high = (take(known, axis=(0, 2)) for take in (np.mean, np.min, np.max))
            axes.errorbar(
                there + 1 + beside,
                mean,
                yerr=(mean - low, high - mean),
                marker=marker,
                color=colour,
                label=label,
                markersize=5,
                linewidth=1,
                elinewidth=1,
            )
    for axes, name in zip(panels, ("alpha: foreground enhanced", "beta: background suppressed"), strict=True):
        axes.axhline(initial, color="grey", linestyle="--", linewidth=1, label="mean at the start")
        axes.set(title=name, xlabel="layer of the image tower")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="strength (no unit)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure
