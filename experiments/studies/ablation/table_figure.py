"""Pictures of an ablation: its rows as points with intervals, or a curve over a hyper-parameter."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.ablation.ablation_result import TableRow
from experiments.studies.ablation.rows import Ablation

MEASURED, PAPER, BESIDE = "#0072b2", "#d55e00", "#7f7f7f"


def draw(ablation: Ablation, title: str, rows: Sequence[TableRow]) -> bytes:
    """Draw a finished table or figure as PNG."""
    finished = [row for row in rows if row.mean_average_precision.mean is not None]
    figure = _curve(finished) if ablation.is_figure else _points(ablation, finished)
    figure.suptitle(title, fontsize=10)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=200)
    return picture.getvalue()


def _points(ablation: Ablation, rows: Sequence[TableRow]) -> Figure:
    """Each row's mean with its interval and seeds; what the paper prints, if anything, in its own panel."""
    beside = {row.name for row in ablation.all_rows()} - {row.name for row in ablation.rows + ablation.added}
    printed = any(row.mean_average_precision.paper is not None for row in rows)
    columns = 1 + printed
    figure = Figure(figsize=(9.5 if printed else 6.5, 0.42 * len(rows) + 1.3), layout="constrained")
    panels = figure.subplots(1, columns, sharey=True, squeeze=False, width_ratios=(3, 2)[:columns])[0]
    measured = panels[0]
    for position, row in enumerate(rows):
        colour = BESIDE if row.name in beside else MEASURED
        precision = row.mean_average_precision
        if precision.interval is not None:
            measured.plot(
                [100 * end for end in precision.interval], [position] * 2, color=colour, linewidth=1.5
            )
        values = [100 * value for value in precision.values.values()]
        measured.plot(values, [position] * len(values), "|", color=colour, markersize=8)
        if precision.mean is not None:
            measured.plot(100 * precision.mean, position, "o", color=colour, markersize=6)
        if precision.paper is not None:
            panels[1].plot(100 * precision.paper, position, "D", color=PAPER, markersize=6)
    measured.set_yticks(range(len(rows)), [row.label for row in rows])
    measured.invert_yaxis()
    measured.set(xlabel="measured mAP, %: mean, 95 % interval over seeds, each seed")
    if printed:
        panels[1].set(xlabel="paper's mAP on RGBNT201, % (its own scale)")
    for axes in panels:
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.08)
    return figure


def _curve(rows: Sequence[TableRow]) -> Figure:
    """Draw mAP over a hyper-parameter, its values evenly spaced, with the interval over seeds as a band."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes: Axes = figure.subplots()
    positions = range(len(rows))
    axes.plot(
        positions,
        [100 * mean for row in rows if (mean := row.mean_average_precision.mean) is not None],
        "o-",
        color=MEASURED,
        label="mean over seeds",
    )
    intervals = [i for row in rows if (i := row.mean_average_precision.interval) is not None]
    if len(intervals) == len(rows):
        low, high = ([100 * interval[end] for interval in intervals] for end in (0, 1))
        axes.fill_between(
            positions, low, high, color=MEASURED, alpha=0.2, label="95 % over seeds", linewidth=0
        )
    for position, row in zip(positions, rows, strict=True):
        values = [100 * value for value in row.mean_average_precision.values.values()]
        axes.plot([position] * len(values), values, "_", color=MEASURED, markersize=7)
    axes.set_xticks(positions, [row.name for row in rows])
    axes.set(ylabel="mAP, % (test identities)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure
