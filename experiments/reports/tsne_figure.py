"""t-SNE maps of the embeddings of some identities, one map for each row of a table (figure 4)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from experiments.figure_style import COLOURS

IDENTITIES = 10
SAMPLES = 40
"""Samples of an identity; more samples would hide each other."""
PERPLEXITY = 30.0
COLUMNS = 4
MARKERS = "osD^vP*X<>"
"""As many as identities: with colours alone some would look alike."""


def choose_samples(identity: np.ndarray) -> np.ndarray:
    """The rows of a few identities, spread evenly over all of them, with a few samples of each.

    Args:
        identity: Identity of every row, `(rows,)`.
    """
    names = np.unique(identity)
    chosen = names[_spread(len(names), IDENTITIES)]
    rows = [np.flatnonzero(identity == name) for name in chosen]
    return np.concatenate([some[_spread(len(some), SAMPLES)] for some in rows])


def _spread(count: int, wanted: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, wanted)).astype(int)


def plot_tsne(embeddings: Mapping[str, np.ndarray], identity: np.ndarray) -> Figure:
    """A map for each label, with the same samples and seed 0.

    Embeddings are normalised, as in retrieval. The number above a map is the mean silhouette of its samples,
    in [-1, 1], from cosine distances before the mapping. It can be compared between maps; positions and
    distances in them cannot.

    Args:
        embeddings: Label to embeddings `(samples, width)`, of the same samples.
        identity: Identity of every sample, at least two different ones; `(samples,)`.
    """
    columns = min(COLUMNS, len(embeddings))
    lines = -(-len(embeddings) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.2 * lines + 0.7), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    names = np.unique(identity)
    for axes, (label, vectors) in zip(panels, embeddings.items(), strict=False):
        directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        perplexity = min(PERPLEXITY, (len(directions) - 1) / 3)
        positions = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(directions)
        for number, name in enumerate(names):
            axes.scatter(
                *positions[identity == name].T,
                s=22,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linewidth=0,
                alpha=0.85,
                label=f"{name}",
            )
        silhouette = silhouette_score(directions, identity, metric="cosine")
        axes.set_title(f"{label}\nsilhouette {silhouette:+.2f}", fontsize=9)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=True, color="#bbbbbb")
    for unused in list(figure.axes)[len(embeddings) :]:
        unused.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="identity",
        loc="outside lower center",
        ncols=len(names),
        fontsize=8,
        frameon=False,
    )
    return figure
