"""Pictures of an ablation: its rows as points with intervals, or a curve over a hyper-parameter."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figure_style import BLUE, GREY, RED, png_bytes
from experiments.studies.ablation.ablation_result import SeedSpread, TableRow
from experiments.studies.ablation.rows import Ablation

MEASURED, PAPER, BESIDE = BLUE, RED, GREY
LEAST_SPAN = 2.0
"""Points of mAP that an axis has at least: rows that differ by hundredths should look alike."""


def draw(ablation: Ablation, title: str, rows: Sequence[TableRow]) -> bytes:
    """Draw a finished table or figure as PNG."""
    finished = [row for row in rows if row.mean_average_precision.mean is not None]
    if ablation.is_figure:
        figure = _curve(finished, with_hyperedges=not ablation.is_papers)
    else:
        figure = _points(ablation, finished)
    figure.suptitle(title, fontsize=10)
    return png_bytes(figure)


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
    measured.set_xlim(_widened(*measured.get_xlim()))
    return figure


def _widened(low: float, high: float) -> tuple[float, float]:
    """The limits of an axis of mAP, of at least `LEAST_SPAN`."""
    missing = max(0.0, LEAST_SPAN - (high - low)) / 2
    return low - missing, high + missing


def _curve(rows: Sequence[TableRow], with_hyperedges: bool) -> Figure:
    """Draw mAP over a hyper-parameter, its values evenly spaced; below it, the size of the hyperedges."""
    sizes = [size for row in rows if (size := row.hyperedge_size) is not None]
    panels = 1 + (with_hyperedges and len(sizes) == len(rows))
    figure = Figure(figsize=(5.5, 3.6 + 1.6 * (panels - 1)), layout="constrained")
    above, *below = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=(3, 2)[:panels])[
        :, 0
    ]
    _spread_curve(above, [row.mean_average_precision for row in rows], 100)
    above.set(ylabel="mAP, % (test identities)", ylim=_widened(*above.get_ylim()))
    above.legend(frameon=False, fontsize=8)
    for axes in below:
        _spread_curve(axes, sizes, 1)
        axes.set(ylabel="nodes in a hyperedge", ylim=(0, None))
    # Names of the axis: one symbol, and the values that have it.
    symbol = rows[0].name.partition(" = ")[0] if rows else ""
    last: Axes = [above, *below][-1]
    last.set_xticks(range(len(rows)), [row.name.partition(" = ")[2] for row in rows])
    last.set(xlabel=symbol)
    return figure


def _spread_curve(axes: Axes, spreads: Sequence[SeedSpread], scale: float) -> None:
    """A curve of means over seeds, with their interval as a band, and each seed."""
    positions = range(len(spreads))
    means = [scale * spread.mean for spread in spreads if spread.mean is not None]
    axes.plot(positions, means, "o-", color=MEASURED, label="mean over seeds")
    intervals = [spread.interval for spread in spreads if spread.interval is not None]
    if len(intervals) == len(spreads):
        low, high = ([scale * interval[end] for interval in intervals] for end in (0, 1))
        axes.fill_between(
            positions, low, high, color=MEASURED, alpha=0.2, label="95 % over seeds", linewidth=0
        )
    for position, spread in zip(positions, spreads, strict=True):
        values = [scale * value for value in spread.values.values()]
        axes.plot([position] * len(values), values, "_", color=MEASURED, markersize=7)
    axes.grid(axis="y", alpha=0.3)
