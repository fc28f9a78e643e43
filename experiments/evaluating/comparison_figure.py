"""Two models on the same queries, as a picture."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_catalog.storage import filesystems
from experiments.evaluating.query_scores import QueryScores
from experiments.figure_style import plain, png_bytes


def draw_comparison(first: QueryScores, second: QueryScores, location: str) -> None:
    """Draw each query's average precision with the second model over that with the first, as PNG.

    Args:
        first: Of the axis to the right.
        second: Of the axis upwards, for the same queries.
        location: File or URI.
    """
    figure = Figure(figsize=(6, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8)
    axes.scatter(100 * first.average_precision, 100 * second.average_precision, s=10, alpha=0.4)
    axes.set(xlim=(-2, 102), ylim=(-2, 102), title="average precision of each query, %")
    axes.set_xlabel(plain(f"{first.name}, {first.feature}"), wrap=True)
    axes.set_ylabel(plain(f"{second.name}, {second.feature}"), wrap=True)
    filesystems.write_atomically(*filesystems.open_root(location), png_bytes(figure, 120))
