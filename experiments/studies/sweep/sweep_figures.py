"""Pictures of a sweep: its history, each setting, all settings at once, what mattered, and what it costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.figure_style import BLUE, GREY, PINK, RED, png_bytes
from experiments.studies.sweep.search_space import Dimension, Space
from experiments.studies.sweep.sweep_result import SweepResult, SweepTrial

FINISHED, BEST, PRUNED, FAILED = BLUE, RED, GREY, PINK
LOG_DECADES_OF_ZERO = 0.6
"""Distance of the zero of a log scale below its least value, in decades."""


def draw_all(result: SweepResult, space: Space) -> dict[str, bytes]:
    """Every picture that the trials so far give: name to PNG."""
    trials, best = result.trials, result.best
    validated = [trial for trial in trials if trial.curve]
    if not validated:
        return {}
    figures = {
        "history": history(trials, validated),
        "slice": slices(validated, best, space),
        "parallel_coordinates": parallel_coordinates(validated, best, space),
    }
    if result.importance:
        finished = sum(trial.value is not None for trial in trials)
        figures["importance"] = importance(result.importance, finished)
    if best is not None:
        figures["pareto"] = pareto(validated, result.pareto)
    return {name: png_bytes(figure) for name, figure in figures.items()}


def reached(trial: SweepTrial) -> float:
    """Validation mAP in percent: the value of a finished trial, the last validation of any other."""
    return 100 * (trial.curve[trial.epochs] if trial.value is None else trial.value)


def history(trials: Sequence[SweepTrial], validated: Sequence[SweepTrial]) -> Figure:
    """Every trial by its number, and the best so far."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    _points(axes, [trial.number for trial in validated], validated)
    finished = [(trial.number, reached(trial)) for trial in validated if trial.value is not None]
    if finished:
        numbers, values = zip(*finished, strict=True)
        best = np.maximum.accumulate(values)
        ends = [*numbers, max(trial.number for trial in trials)]
        axes.step(ends, [*best, best[-1]], where="post", color=BEST, linewidth=1.5, label="best so far")
    axes.set(xlabel="trial", ylabel="validation mAP, %", title="History")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


def slices(validated: Sequence[SweepTrial], best: SweepTrial | None, space: Space) -> Figure:
    """A panel for each setting: its value and what the trial reached."""
    names = space.dimensions
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for number, axes in enumerate(panels.flat):
        if number >= len(names):
            axes.set_axis_off()
            continue
        scale = Scale(names[number])
        _points(axes, [scale.position(trial) for trial in validated], validated)
        if best is not None:
            axes.plot(scale.position(best), reached(best), "o", color=BEST, markersize=8, label="best")
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if scale.wordy else {}
        axes.set_xticks(scale.ticks, scale.labels, **turned)
        axes.set(xlabel=names[number].name, xlim=scale.limits)
        axes.grid(axis="y", alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("validation mAP, %")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def parallel_coordinates(validated: Sequence[SweepTrial], best: SweepTrial | None, space: Space) -> Figure:
    """A line for each trial through its settings to what it reached, coloured by that."""
    scales = [Scale(dimension) for dimension in space.dimensions]
    figure = Figure(figsize=(2.1 * (len(scales) + 1) + 1, 4), layout="constrained")
    axes = figure.subplots()
    values = np.array([reached(trial) for trial in validated])
    low, high = values.min(), max(values.max(), values.min() + 1e-9)
    norm, colours = Normalize(low, high), colormaps["viridis"]
    order = np.argsort(values)
    for number in order:
        trial = validated[number]
        chosen = best is not None and trial.number == best.number
        heights = [scale.height(scale.position(trial)) for scale in scales]
        heights.append((values[number] - low) / (high - low))
        axes.plot(
            range(len(heights)),
            heights,
            color=colours(norm(values[number])),
            linestyle="-" if trial.value is not None else ":",
            linewidth=3 if chosen else 1.2,
            alpha=1 if chosen else 0.65,
        )
    for position, scale in enumerate(scales):
        axes.axvline(position, color="black", linewidth=0.8)
        for tick, label in zip(scale.ticks, scale.labels, strict=True):
            axes.annotate(
                label,
                (position, scale.height(tick)),
                (4, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
            )
    names = [dimension.name for dimension in space.dimensions]
    axes.set_xticks(range(len(names) + 1), [*names, "validation mAP"])
    axes.set(yticks=[], xlim=(-0.1, len(names) + 0.02), ylim=(-0.05, 1.05))
    axes.set_title("Trials (dotted: not finished; thick: the best)", fontsize=10)
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label="validation mAP, %", pad=0.01)
    return figure


def importance(shares: Mapping[str, float], finished: int) -> Figure:
    """Share of each parameter in what sets the best trials apart."""
    figure = Figure(figsize=(6, 0.45 * len(shares) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = list(shares)
    axes.barh(names, [100 * shares[name] for name in names], color=FINISHED, height=0.6)
    for position, name in enumerate(names):
        axes.annotate(
            f"{shares[name]:.0%}",
            (100 * shares[name], position),
            (3, 0),
            textcoords="offset points",
            va="center",
        )
    axes.invert_yaxis()
    axes.set(xlim=(0, 109), xlabel="share, %")
    figure.suptitle(f"Importance for validation mAP (PED-ANOVA, {finished} finished trials)", fontsize=10)
    return figure


def pareto(validated: Sequence[SweepTrial], front: Sequence[SweepTrial]) -> Figure:
    """Validation mAP over training cost, and the front of trials that none beats in both."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    _points(axes, [trial.cost for trial in validated], validated)
    costs, values = [trial.cost for trial in front], [reached(trial) for trial in front]
    axes.plot(costs, values, "o", color=BEST, markersize=7)
    axes.step(costs, values, where="post", color=BEST, linewidth=1.5, label="Pareto front")
    for trial in front:
        axes.annotate(
            str(trial.number),
            (trial.cost, reached(trial)),
            (4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xlabel="cost of the whole training, TFLOP", ylabel="validation mAP, %")
    axes.set_title("mAP and cost (numbers: trials on the front)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.1)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _points(axes: Axes, positions: Sequence[float], trials: Sequence[SweepTrial]) -> None:
    """Trials as points, by how they ended."""
    for state, colour, marker, label in (
        ("finished", FINISHED, "o", "finished"),
        ("pruned", PRUNED, "x", "stopped early, its last validation"),
        ("failed", FAILED, "s", "failed, its last validation"),
        ("crashed", FAILED, "+", "crashed, its last validation"),
        ("running", PRUNED, ".", "running"),
    ):
        chosen = [(x, reached(t)) for x, t in zip(positions, trials, strict=True) if t.state == state]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), marker, color=colour, markersize=6, alpha=0.85, label=label)


class Scale:
    """Positions of the values of a setting on an axis.

    Attributes:
        ticks: Positions on the axis.
        labels: Their values.
        limits: Ends of the axis.
        wordy: The labels are long.
    """

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension
        self.log = "log" in dimension.kind
        values = dimension.choices or self._tick_values()
        self.ticks = [self._on_axis(value) for value in values]
        self.labels = [str(value) if dimension.choices else f"{value:.3g}" for value in values]
        margin = 0.08 * (self.ticks[-1] - self.ticks[0])
        self.limits = (self.ticks[0] - margin, self.ticks[-1] + margin)
        self.wordy = max(map(len, self.labels)) > 6

    def position(self, trial: SweepTrial) -> float:
        """The position of a trial's value on the axis."""
        return self._on_axis(trial.values[self.dimension.name])

    def height(self, position: float) -> float:
        """A position on the axis as a number that is 0 at the first tick and 1 at the last one."""
        return (position - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])

    def _on_axis(self, value: Any) -> float:
        if self.dimension.choices:
            return self.dimension.choices.index(value)
        if self.log and value == 0:
            return float(np.log10(self.dimension.low)) - LOG_DECADES_OF_ZERO
        return float(np.log10(value)) if self.log else float(value)

    def _tick_values(self) -> list[float]:
        low, high = self.dimension.low, self.dimension.high
        if self.log:
            decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
            # The labels of the ends need room.
            room = (high / low) ** 0.15
            between = [value for value in decades.tolist() if low * room < value < high / room]
        else:
            values = np.linspace(low, high, 5)[1:-1]
            between = (np.unique(values.round()) if self.dimension.kind == "int" else values).tolist()
        return [*([0.0] if self.dimension.kind == "zero-or-log" else []), low, *between, high]
