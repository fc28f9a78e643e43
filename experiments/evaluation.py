"""Embeddings and metrics of a view, spread over the workers of a run."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data_catalog.view import View
from stmi import retrieval
from stmi.augment import normalise, patch_foreground
from stmi.modality import MODALITIES, Modality
from stmi.model import STMI, Features, ModelInput
from stmi.reranking import rerank
from stmi.retrieval import JunkRule, RetrievalMetrics, RetrievalSet


def model_input(
    view: View, rows: np.ndarray, patch_size: int, device: torch.device, captions: Tensor | None = None
) -> ModelInput:
    """Rows of a view as they are, without augmentation.

    Args:
        view: Where from.
        rows: Which.
        patch_size: Of the image tower.
        device: Where to.
        captions: Token numbers of the captions of the whole view, where the text tower is trained.
    """
    batch = view.batch(rows)
    return ModelInput(
        images=normalise(torch.from_numpy(batch.pixels).to(device)),
        foreground=patch_foreground(torch.from_numpy(batch.mask).to(device), patch_size),
        text=torch.from_numpy(batch.text_feature).to(device),
        camera_id=torch.from_numpy(batch.camera_id.astype(np.int64)).to(device),
        caption=None if captions is None else captions[torch.from_numpy(rows)].to(device),
    )


@torch.no_grad()
def embed(
    model: STMI,
    view: View,
    batch: int,
    autocast: bool,
    captions: Tensor | None = None,
    missing: Collection[Modality] = (),
) -> dict[str, np.ndarray]:
    """Every retrieval feature of every row of a view, each row once, on any number of workers.

    Args:
        model: The network; put into evaluation mode meanwhile.
        view: What to embed.
        batch: Samples at a time on one worker.
        autocast: Run the network under bfloat16 autocast.
        captions: As in `model_input`.
        missing: Modalities whose images are replaced by zeros.

    Returns:
        float32 `(rows, width)` by feature name, in the order of the view, on every worker.
    """
    spread = dist.is_initialized() and dist.get_world_size() > 1
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if spread else (0, 1)
    share = -(-len(view) // world_size)
    # Equal shares, as gathering asks; the last rows are repeated to fill them, and cut off again.
    own = np.minimum(np.arange(rank * share, (rank + 1) * share), len(view) - 1)
    device = model.image_tower.proj.device
    training = model.training
    model.eval()
    parts: list[Tensor] = []
    widths: list[int] = []
    for start in range(0, share, batch):
        rows = own[start : start + batch]
        inputs = model_input(view, rows, model.patch_size, device, captions).without(missing)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            features = model(inputs)
        # The other features are made of these, so only these are sent.
        sent = (features.U, features.G, features.T)
        widths = [values.shape[1] for values in sent]
        parts.append(torch.cat(sent, dim=1))
    model.train(training)
    embedded = torch.cat(parts)
    if spread:
        everything = [torch.empty_like(embedded) for _ in range(world_size)]
        dist.all_gather(everything, embedded)
        embedded = torch.cat(everything)
    fused, class_tokens, text = embedded[: len(view)].cpu().split(widths, dim=1)
    features = Features(fused, class_tokens, text, class_tokens.unflatten(1, (len(MODALITIES), -1)), None)
    return {name: values.numpy() for name, values in features.retrieval().items()}


def score(view: View, embeddings: np.ndarray, junk: JunkRule, reranked: bool = False) -> RetrievalMetrics:
    """Metrics of one feature: the view's queries among its gallery, k-reciprocally re-ranked if asked for."""
    group = view.camera_id if junk == "camera" else view.scene_id

    def chosen(rows: np.ndarray) -> RetrievalSet:
        return RetrievalSet(embeddings[rows], view.identity[rows], group[rows])

    query, gallery = chosen(view.is_query), chosen(view.is_gallery)
    if not reranked:
        return retrieval.evaluate(query, gallery)
    place = np.where(view.is_gallery, np.cumsum(view.is_gallery) - 1, -1)
    chunks = rerank(
        query.embedding,
        gallery.embedding,
        # A data set of fewer samples has no more neighbours.
        k1=min(20, len(view)),
        k2=min(6, len(view)),
        gallery_row=place[view.is_query],
    )
    return retrieval.score(chunks, query, gallery)


def score_all(
    view: View, embeddings: dict[str, np.ndarray], junk: JunkRule, reranked: bool = False
) -> dict[str, Any]:
    """Metrics of every feature, as JSON: `{"U": {"mAP": ..., "rank1": ..., ..., "cmc": [...]}, ...}`."""
    scored = {}
    for name, values in embeddings.items():
        metrics = score(view, values, junk, reranked)
        scored[name] = {**metrics.summary(), "cmc": [round(float(share), 6) for share in metrics.cmc[:20]]}
    return scored
