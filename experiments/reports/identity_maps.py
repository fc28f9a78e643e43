"""Where each row of a table puts the samples of some identities: t-SNE of their embeddings (figure 4)."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

IDENTITIES = 10
SAMPLES = 40
"""Of an identity; more hide each other."""
PERPLEXITY = 30.0
COLUMNS = 4
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
MARKERS = "osD^vP*X<>"


def shown_rows(identity: np.ndarray) -> np.ndarray:
    """Rows of a few identities, spread evenly over all of them, and of a few samples of each.

    Args:
        identity: Of every embedding, `(rows,)`.
    """
    names = np.unique(identity)
    chosen = names[_spread(len(names), IDENTITIES)]
    rows = [np.flatnonzero(identity == name) for name in chosen]
    return np.concatenate([of_one[_spread(len(of_one), SAMPLES)] for of_one in rows])


def _spread(count: int, wanted: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, wanted)).astype(int)


def identity_maps(arms: Mapping[str, np.ndarray], identity: np.ndarray, seed: int = 0) -> Figure:
    """A map for each arm, of the same samples and drawn with the same seed.

    Embeddings are normalised, as retrieval does it. Above each map stands the mean silhouette of the samples
    shown, by cosine distance before the mapping, in [-1, 1]: what may be compared between maps, as places and
    distances in them may not.

    Args:
        arms: Label to embeddings `(rows, width)`, the same rows in each.
        identity: Of every row, at least two different ones; `(rows,)`.
        seed: Of t-SNE.
    """
    columns = min(COLUMNS, len(arms))
    lines = -(-len(arms) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.2 * lines + 0.7), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    names = np.unique(identity)
    for axes, (label, embeddings) in zip(panels, arms.items(), strict=False):
        directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        perplexity = min(PERPLEXITY, (len(directions) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(directions)
        for number, name in enumerate(names):
            axes.scatter(
                *places[identity == name].T,
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
    for unused in list(figure.axes)[len(arms) :]:
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
