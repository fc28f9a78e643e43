"""Pictures of one run: training curves, CMC curves, and rank lists in three modalities."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_catalog.storage.folders import Folder
from data_catalog.views.view_reader import View, open_view
from experiments.figure_style import BLACK, BLUE, GREEN, RED, SKY_BLUE, plain, png_bytes
from experiments.run import evaluation
from experiments.run.checkpoints import fetched, read_arrays
from experiments.run.run_folder import PICTURES, RunFolder
from experiments.run.run_result import FEATURE_NAMES, FeatureMetrics, RunResult
from experiments.tracking.journal import Event, Journal
from stmi.checkpoint_files import EMBEDDINGS_FILE
from stmi.images import Pixels, Size
from stmi.modality import MODALITIES
from stmi.retrieval import metrics as retrieval_metrics
from stmi.retrieval.metrics import JunkRule

QUERIES = 6
RANKS = 8
HYPEREDGE_CURVES = {
    "density": "density",
    "alone": "image tokens alone",
    "across": "join modalities by images",
    "by_text": "join them by text copies only",
}
"""Facts about hyperedges, which are shares, and their labels."""
HYPEREDGE_COLOURS = (BLACK, RED, BLUE, SKY_BLUE)
HIT, MISS = GREEN, RED
SCREEN_DPI = 130


mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})


def draw_all(folder: RunFolder, result: RunResult, pictures: Folder | None = None) -> list[str]:
    """Draw every picture of a finished run.

    Args:
        folder: The run's.
        result: Its result.
        pictures: Where they go; None for the run's own folder of pictures.

    Returns:
        Names of the pictures in the run's folder.
    """
    pictures = pictures or folder / PICTURES
    figures = {
        "training_curves": training_curves(folder.journal),
        "cmc": cmc_curves(result.metrics, result.untrained),
        "rank_lists": rank_lists(
            open_view(folder.view("test")), load_test_embeddings(result), folder.config.data.junk
        ),
    }
    for name, figure in figures.items():
        pictures.write(f"{name}.png", png_bytes(figure, SCREEN_DPI, tight=True))
    return find_pictures(folder)


def find_pictures(folder: RunFolder) -> list[str]:
    """Names of the pictures of a run that were drawn, in its folder."""
    return [f"{PICTURES}/{name}" for name in (folder / PICTURES).list_files() if name.endswith(".png")]


def load_test_embeddings(result: RunResult) -> dict[str, np.ndarray]:
    """The test embeddings of a finished run, `(rows, width)` by feature, in the order of the test view."""
    with fetched(result.checkpoint) as checkpoint:
        return read_arrays(checkpoint / EMBEDDINGS_FILE)


def training_curves(journal: Journal) -> Figure:
    """Losses, validation mAP, learning rate and, with a hypergraph, its hyperedges over the epochs.

    Losses that train nothing are dashed.
    """
    journal.find("epoch")
    epochs = journal.epochs()
    # Older versions have the density of the incidence among the losses.
    has_hyperedges = bool(epochs[0].get("hyperedges"))
    figure = Figure(figsize=(13.2 if has_hyperedges else 10, 3), layout="constrained")
    losses, validation, rate, *others = figure.subplots(1, 3 + has_hyperedges)
    for axes in others:
        _hyperedge_curves(axes, epochs)
    x = [event["epoch"] for event in epochs]
    trained = [name for name in epochs[0]["losses"] if name != "incidence_density"]
    for name in sorted(trained, key=lambda name: (name != "total", name)):
        style = {"color": "black", "linewidth": 2} if name == "total" else {"linewidth": 1}
        losses.plot(x, [event["losses"][name] for event in epochs], label=name, **style)
    for name in epochs[0].get("losses_without_gradient", {}):
        values = [event["losses_without_gradient"][name] for event in epochs]
        losses.plot(x, values, "--", color="grey", linewidth=1, label=f"{name}, trains nothing")
    losses.set(title="Training loss", xlabel="epoch", ylim=(0, None))
    losses.legend(fontsize=8, frameon=False)
    validated = [event for event in epochs if "validation" in event]
    for name in [one for one in ("U", "G", "T") if validated and one in validated[0]["validation"]]:
        values = [100 * event["validation"][name]["mAP"] for event in validated]
        validation.plot(
            [event["epoch"] for event in validated], values, marker=".", label=FEATURE_NAMES[name]
        )
    validation.set(title="Validation identities", xlabel="epoch", ylabel="mAP, %", ylim=(0, None))
    if validated:
        validation.legend(fontsize=8, frameon=False)
    rate.plot(x, [event["learning_rate"] for event in epochs], color="grey")
    rate.set(title="Learning rate", xlabel="epoch", ylim=(0, None))
    return figure


def _hyperedge_curves(axes: Axes, epochs: Sequence[Event]) -> None:
    """Shares of what hyperedges are like: on the training batches, and dashed on the test identities."""
    for split, style in (("train", "-"), ("test", "--")):
        points = [(e["epoch"], facts) for e in epochs if (facts := e["hyperedges"].get(split))]
        for (name, label), colour in zip(HYPEREDGE_CURVES.items(), HYPEREDGE_COLOURS, strict=True):
            values = [100 * facts[name] for _, facts in points]
            shown = label if split == "train" else None
            axes.plot([epoch for epoch, _ in points], values, style, marker=".", color=colour, label=shown)
    axes.set(title="Hyperedges (dashed: test)", xlabel="epoch", ylabel="%", ylim=(-3, 103))
    axes.legend(fontsize=8, frameon=False)


def cmc_curves(metrics: dict[str, FeatureMetrics], untrained: FeatureMetrics) -> Figure:
    """Share of queries with a match among the first k, for every feature and for U before training."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    measured = {name: label for name, label in FEATURE_NAMES.items() if name in metrics}
    for name, label in measured.items():
        _cmc(axes, metrics[name], label, linewidth=2.5 if name == "U" else 1.2)
    _cmc(axes, untrained, "U before training", linestyle="--", color="grey")
    axes.set(title="Test identities", xlabel="rank k", ylabel="matched within k, %", ylim=(0, 101))
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def _cmc(axes: Axes, metrics: FeatureMetrics, label: str, **style: Any) -> None:
    shares = 100 * np.array(metrics.cmc)
    axes.plot(
        np.arange(1, len(shares) + 1),
        shares,
        label=f"{label}: mAP {metrics.mean_average_precision:.1%}",
        **style,
    )


def rank_lists(view: View, embeddings: dict[str, np.ndarray], junk: JunkRule) -> Figure:
    """Some queries and their nearest gallery samples, each in three modalities, hits and misses marked.

    The queries are spread evenly from the best to the worst average precision.
    """
    metrics = evaluation.score(view, embeddings["U"], junk)
    queries = np.flatnonzero(view.is_query)
    scored = np.flatnonzero(~np.isnan(metrics.average_precision))
    by_precision = scored[np.argsort(-metrics.average_precision[scored], kind="stable")]
    chosen = by_precision[np.linspace(0, len(by_precision) - 1, min(QUERIES, len(by_precision))).astype(int)]
    figure, axes = make_sample_grid(view.image_size, len(chosen), RANKS + 1)
    for row, number in enumerate(chosen):
        title = f"query, AP {metrics.average_precision[number]:.0%}"
        show_sample(axes[row, 0], view, queries[number], title, "black")
        show_nearest(axes[row, 1:], view, embeddings["U"], queries[number], junk)
    figure.suptitle(
        f"Queries from the best to the worst average precision (AP), each sample in {', '.join(MODALITIES)}",
        fontsize=10,
    )
    return figure


def make_sample_grid(image_size: Size, lines: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure whose cells have room for a sample's three modalities, and its axes `(lines, columns)`."""
    height, width = image_size
    cell = 1.35
    line = cell * height / (width * len(MODALITIES)) + 0.22
    figure = Figure(figsize=(cell * columns, line * lines + 0.4), layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False)


def show_nearest(cells: np.ndarray, view: View, embedding: np.ndarray, query: int, junk: JunkRule) -> None:
    """Show a query's nearest gallery samples, junk left out, one a cell.

    Args:
        cells: Axes, from the first rank on.
        view: What was embedded.
        embedding: One feature of its rows, `(rows, width)`.
        query: Row of the query.
        junk: What a gallery sample of the query's identity shares with it to be junk.
    """
    gallery = np.flatnonzero(view.is_gallery)
    group = retrieval_metrics.junk_groups(junk, view.camera_id, view.scene_id)
    _, (distances,) = next(retrieval_metrics.distance_chunks(embedding[[query]], embedding[gallery]))
    same = view.identity[gallery] == view.identity[query]
    ranked = retrieval_metrics.rank_gallery(distances, same & (group[gallery] == group[query]))[: len(cells)]
    for rank, row in enumerate(ranked):
        kind, colour = ("hit", HIT) if same[row] else ("miss", MISS)
        show_sample(cells[rank], view, gallery[row], f"{kind} {rank + 1}", colour)
    for unused in cells[len(ranked) :]:
        unused.set_axis_off()


def show_sample(axes: Axes, view: View, row: int, title: str, colour: str) -> None:
    """Show a sample of a view: its three modalities side by side."""
    show_pixels(axes, view.batch([row]).pixels[0], title, colour)


def show_pixels(axes: Axes, pixels: Pixels, title: str, colour: str) -> None:
    """Show a sample's three modalities, uint8 `(modality, channel, height, width)`, side by side."""
    axes.imshow(np.concatenate(list(pixels.transpose(0, 2, 3, 1)), axis=1), interpolation="nearest")
    axes.set_title(plain(title), fontsize=8, color=colour, pad=4)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)
