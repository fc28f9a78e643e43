"""A picture of an ablation under several conditions: the gain of each row over the condition."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figure_style import COLOURS, MARKERS, png_bytes
from experiments.studies.ablation.ablation_result import TableRow

SIDEWAYS = 0.1
"""Of a value's place on the axis, so that intervals do not hide each other."""


def draw_grid(
    title: str,
    over: Mapping[str, Sequence[str]],
    tables: Sequence[tuple[Mapping[str, str], Sequence[TableRow]]],
    gains: Sequence[str],
) -> bytes:
    """Draw the gain of rows over the condition, with intervals over seeds, as PNG.

    Args:
        title: Above the picture.
        over: Setting to its values; the first one is the axis, the second one has a panel for each value.
        tables: Condition and the rows of its table.
        gains: Names of the rows to show, those that are compared with another one.
    """
    axis, *second = over
    panels: Sequence[str | None] = over[second[0]] if second else [None]
    figure = Figure(figsize=(1.2 + 4.3 * len(panels), 4.4), layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(every, panels, strict=True):
        chosen = [rows for given, rows in tables if not second or given[second[0]] == panel]
        _draw_panel(axes, chosen, gains)
        axes.set_xticks(range(len(over[axis])), list(over[axis]))
        axes.set_xlim(-0.5, len(over[axis]) - 0.5)
        axes.set(xlabel=axis.removeprefix("model."))
        if panel is not None:
            axes.set_title(f"{second[0].removeprefix('model.')} = {panel}", fontsize=9)
    every[0].set(ylabel="gain of mAP on test identities, points")
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(f"{title}\ngain, and 95 % interval over seeds (filled: real)", fontsize=10)
    return png_bytes(figure)


def _draw_panel(axes: Axes, tables: Sequence[Sequence[TableRow]], gains: Sequence[str]) -> None:
    """The gains of one panel, whose tables stand in the order of the axis."""
    by_name = [{row.name: row for row in rows} for rows in tables]
    compared = [name for name in gains if any(rows[name].mean_average_precision.against for rows in by_name)]
    axes.axhline(0, color="black", linewidth=0.8)
    for number, name in enumerate(compared):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        offset = SIDEWAYS * (number - (len(compared) - 1) / 2)
        points = [
            (x + offset, metric)
            for x, rows in enumerate(by_name)
            if (metric := rows[name].mean_average_precision).difference is not None
        ]
        against = by_name[0][name].mean_average_precision.against
        axes.plot(
            [x for x, _ in points],
            [100 * (metric.difference or 0) for _, metric in points],
            marker,
            linestyle="-",
            color=colour,
            markerfacecolor="white",
            linewidth=1,
            label=f"{name} minus {against}",
        )
        for x, metric in points:
            if metric.difference_interval is not None:
                ends = [100 * end for end in metric.difference_interval]
                axes.plot([x, x], ends, color=colour, linewidth=1.5, zorder=1.9)
            if metric.real:
                axes.plot(x, 100 * (metric.difference or 0), marker, color=colour)
    axes.grid(axis="y", alpha=0.3)
