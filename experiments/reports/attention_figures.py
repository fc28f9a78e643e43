"""The attention of a trained run before and after modulation by SFM; the learned alpha and beta."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional

from data_catalog.views.view_reader import View
from experiments.evaluating.evaluation_target import EvaluationTarget
from experiments.figure_style import BLUE, GREEN, RED
from experiments.run import evaluation
from experiments.run.checkpoints import fetched, read_arrays
from experiments.run.run_folder import RunFolder
from stmi.checkpoint_files import MODEL_FILE
from stmi.feature_modulation import ModulatedAttention, ModulationStrength, modulate, token_mask
from stmi.modality import MODALITIES

LAYERS = 6
"""A deeper tower shows this many layers, spread evenly."""
BATCH = 16
COLOURS = (RED, BLUE, GREEN)


@dataclass(frozen=True)
class ClassAttention:
    """The class token's attention to the patches, mean over heads.

    Attributes:
        before: Of the same layer without modulation, from the same tokens and weights,
            `(layers, samples, modalities, patches)`. The sum over patches is below 1, because the class
            token's attention to itself is not included.
        after: With modulation; the same shape.
        foreground: Token mask, `(samples, patches)`.
    """

    before: np.ndarray
    after: np.ndarray
    foreground: np.ndarray

    def foreground_share(self, attention: np.ndarray) -> np.ndarray:
        """The foreground's share of `before` or `after`, `(layers, samples, modalities)`."""
        inside = (attention * self.foreground[None, :, None]).sum(axis=-1)
        return inside / attention.sum(axis=-1)


@torch.no_grad()
def class_attention(target: EvaluationTarget, view: View, rows: np.ndarray) -> ClassAttention:
    """Attention of the class token in every layer, eq. 8 with and without S.

    Args:
        target: A run with SFM.
        view: The view of the samples.
        rows: Rows of the view.
    """
    model = target.model
    config = target.config.model.sfm
    parts, masks = [], []
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        inputs = evaluation.model_input(model, view, chosen, model.image_tower.proj.device, target.captions)
        with _recorded(target) as layers:
            model(inputs)
        both = torch.stack([torch.stack(layer) for layer in layers]).mean(dim=3)[..., 1:]
        parts.append(both.unflatten(2, (len(chosen), len(MODALITIES))).cpu().numpy())
        masks.append(token_mask(inputs.foreground, config.mask_threshold).cpu().numpy())
    attention = np.concatenate(parts, axis=2)
    return ClassAttention(attention[:, 0], attention[:, 1], np.concatenate(masks))


@contextmanager
def _recorded(target: EvaluationTarget) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While the block runs, record `class_rows` of each layer of the image tower."""
    recorded: list[tuple[Tensor, Tensor]] = []

    def record(attention: ModulatedAttention, inputs: tuple[Any, ...], output: Tensor) -> None:
        recorded.append(class_rows(attention, *inputs))

    layers = [part for part in target.model.image_tower.modules() if isinstance(part, ModulatedAttention)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def class_rows(
    attention: ModulatedAttention,
    tokens: Tensor,
    foreground: Tensor | None,
    strength: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The class token's row of the attention before and after modulation, each `(batch, heads, tokens)`.

    Args:
        attention: The attention of a layer.
        tokens: Its input, as are the next two.
        foreground: Token mask.
        strength: Alpha and beta; None for a layer without modulation, whose two rows are equal.
    """
    batch, count, _ = tokens.shape
    projected = functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    query, key, _ = projected.view(batch, count, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    logits = query * attention.scale @ key.transpose(-2, -1)
    before = logits[:, :, 0].softmax(dim=-1)
    if foreground is None or strength is None:
        return before, before
    return before, modulate(logits, foreground, *strength)[:, :, 0].softmax(dim=-1)


def spread_queries(view: View, count: int) -> np.ndarray:
    """The rows of some queries, spread evenly over the view."""
    queries = np.flatnonzero(view.is_query)
    return queries[np.linspace(0, len(queries) - 1, min(count, len(queries))).astype(int)]


def plot_attention_maps(target: EvaluationTarget, view: View, row: int) -> Figure:
    """A sample in its modalities, its masks, and its class token's attention by layer, before and after.

    Both maps of a layer and modality have one scale, from zero to the larger maximum of the two; the number
    above a map is the foreground's share of the attention to patches.
    """
    found = class_attention(target, view, np.array([row]))
    batch = view.batch([row])
    grid = target.model.grid
    height, width = view.image_size
    layers = np.linspace(0, len(found.after) - 1, min(LAYERS, len(found.after))).astype(int)
    columns = 2 * len(MODALITIES)
    # Cells have the shape of the image, and room for the number above.
    cell = 0.52 if height >= width else 1.0
    line = cell * height / width + 0.2
    figure = Figure(figsize=(cell * columns + 0.6, line * (len(layers) + 1) + 0.6), layout="constrained")
    axes = figure.subplots(len(layers) + 1, columns)
    mask = found.foreground[0].reshape(grid)
    _show_inputs(axes[0], batch.pixels[0], batch.mask[0], mask)
    shares = [found.foreground_share(values)[:, 0] for values in (found.before, found.after)]
    for line_axes, layer in zip(axes[1:], layers, strict=True):
        for modality, name in enumerate(MODALITIES):
            maps = [values[layer, 0, modality].reshape(grid) for values in (found.before, found.after)]
            highest = max(values.max() for values in maps)
            for side, (values, when) in enumerate(zip(maps, ("before", "after"), strict=True)):
                cell_axes = line_axes[2 * modality + side]
                share = f"{shares[side][layer, modality]:.0%}"
                title = f"{name}\n{when}\n{share}" if layer == layers[0] else share
                _format(cell_axes, title)
                cell_axes.imshow(values, cmap="viridis", vmin=0, vmax=highest, interpolation="nearest")
        line_axes[0].set_ylabel(f"layer {layer + 1}", fontsize=8)
    return figure


def _show_inputs(cells: np.ndarray, pixels: np.ndarray, mask: np.ndarray, tokens: np.ndarray) -> None:
    """Show three images, the mask and the token mask; the last cell stays empty."""
    for cell, image, modality in zip(cells, pixels, MODALITIES, strict=False):
        _format(cell, modality)
        cell.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    for cell, values, name in ((cells[3], mask / 255, "mask"), (cells[4], tokens, "token\nmask")):
        _format(cell, name)
        cell.imshow(values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    cells[5].set_axis_off()


def _format(axes: Axes, title: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8, pad=2)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#bbbbbb", linewidth=0.5)


def plot_foreground_shares(target: EvaluationTarget, view: View, count: int) -> Figure:
    """The foreground's share of the class token's attention to patches, by layer, mean over samples.

    Args:
        target: A run with SFM.
        view: The view of the samples.
        count: Number of samples, which are queries spread evenly over the view.
    """
    rows = spread_queries(view, count)
    found = class_attention(target, view, rows)
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    layers = np.arange(1, len(found.after) + 1)
    before, after = (
        100 * found.foreground_share(values).mean(axis=1) for values in (found.before, found.after)
    )
    for modality, (name, colour) in enumerate(zip(MODALITIES, COLOURS, strict=True)):
        axes.plot(layers, after[:, modality], "o-", color=colour, label=f"{name} after", markersize=5)
        axes.plot(
            layers,
            before[:, modality],
            "o--",
            color=colour,
            label=f"{name} before",
            markerfacecolor="white",
            markersize=5,
            linewidth=1,
        )
    area = 100 * found.foreground.mean()
    axes.axhline(area, color="grey", linewidth=1, linestyle=":", label="foreground's share of the patches")
    axes.set(
        xlabel="layer of the image tower",
        ylabel="attention on the foreground, %",
        ylim=(0, 100),
        title=f"Mean over {len(rows)} test queries",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False)
    return figure


def learned_strengths(run: RunFolder) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and beta after the last epoch of a run, each `(layers, heads or 1)`; NaN without modulation."""
    with fetched(run.finished_result.checkpoint) as folder:
        weights = read_arrays(folder / MODEL_FILE)
    pairs = [weights[f"image_tower.modulation.{name}"][..., 0, 0] for name in ("alpha", "beta")]
    blocks = [name for name in weights if name.startswith("image_tower.blocks.")]
    layers = len({name.split(".")[2] for name in blocks})
    heads = pairs[0].shape[1]
    pair_of_layer = ModulationStrength(run.config.model.sfm, layers, heads).pair_of_layer
    alpha, beta = (np.full((layers, heads), np.nan) for _ in pairs)
    for layer, pair in pair_of_layer.items():
        alpha[layer], beta[layer] = pairs[0][pair], pairs[1][pair]
    return alpha, beta
