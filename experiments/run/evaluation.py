"""Embeddings and metrics of a view, spread over the workers of a run."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from data_catalog.checks.findings import Finding, Findings
from data_catalog.checks.measurement_checks import check_measurement, check_missing
from data_catalog.errors import CatalogError
from data_catalog.views.joined_view import Rows
from data_catalog.views.view_reader import View
from experiments.run.run_result import FeatureMetrics
from stmi.incidence import FACTS
from stmi.modality import MODALITIES, Modality
from stmi.model import STMI, Features
from stmi.model_input import ModelInput, zeroed
from stmi.retrieval import metrics as retrieval_metrics
from stmi.retrieval.metrics import JunkRule, RerankVariant, RetrievalMetrics, RetrievalSet
from stmi.retrieval.reranking import rerank
from stmi.training.augment import normalise, patch_foreground

HYPEREDGES = "hyperedges"
QUERY_SCHEMA = pa.schema(
    [
        pa.field("sample_index", pa.int64(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("identity", pa.int64(), nullable=False),
        pa.field("camera_id", pa.int32(), nullable=False),
        pa.field("scene_id", pa.int32(), nullable=False),
        pa.field("feature", pa.string(), nullable=False),
        pa.field("average_precision", pa.float64()),
        pa.field("first_match_rank", pa.int64()),
    ]
)
"""One row for each feature and query. `average_precision` is a fraction, `first_match_rank` counts from 1
with junk left out; both are null for a query without a match in the gallery, which no mean includes."""


def model_input(
    model: STMI, view: Rows, rows: np.ndarray, device: torch.device, captions: Tensor | None = None
) -> ModelInput:
    """Rows of a view as they are, without augmentation.

    Args:
        model: The network that gets the input.
        view: The view of the samples.
        rows: Rows of the view, `(batch,)`.
        device: Device of the input.
        captions: Token numbers of the captions of the whole view, where the text tower is trained.
    """
    batch = view.batch(rows)
    missing = None if batch.missing is None else torch.from_numpy(batch.missing).to(device)
    return ModelInput(
        images=zeroed(normalise(torch.from_numpy(batch.pixels).to(device), model.config.pixels), missing),
        foreground=patch_foreground(torch.from_numpy(batch.mask).to(device), model.patch_size),
        text=torch.from_numpy(batch.text_feature).to(device),
        camera_id=torch.from_numpy(batch.camera_id.astype(np.int64)).to(device),
        caption=None if captions is None else captions[torch.from_numpy(rows)].to(device),
    )


@torch.no_grad()
def fill_untrained_cameras(model: STMI, trained: Sequence[int]) -> None:
    """Give every camera that no training sample is of the mean of the learned camera vectors.

    Nothing is learned of such a camera, so its own vector is a random one. The vectors of the others, and all
    that is computed in training, do not depend on it.

    Args:
        model: The network; one without a camera embedding is left as it is.
        trained: Numbers of the cameras of the training samples.
    """
    embedding = model.image_tower.camera_embedding
    if embedding is not None:
        others = sorted(set(range(len(embedding))) - set(trained))
        embedding[others] = embedding[list(trained)].mean(dim=0)


@dataclass(frozen=True)
class Embedded:
    """What a model makes of a view.

    Attributes:
        features: float32 `(rows, width)` by name, of every retrieval feature, in the order of the view.
        hyperedges: Means over the rows, as in `stmi.incidence.HyperedgeFacts`; None without a hypergraph.
    """

    features: dict[str, np.ndarray]
    hyperedges: dict[str, float] | None


@torch.no_grad()
def embed(
    model: STMI,
    view: Rows,
    batch: int,
    autocast: bool,
    captions: Tensor | None = None,
    missing: Collection[Modality] = (),
    before_batch: Callable[[], None] = lambda: None,
) -> Embedded:
    """Every retrieval feature of every row of a view, each row once, on any number of workers.

    Args:
        model: The network; put into evaluation mode meanwhile.
        view: What to embed.
        batch: Samples at a time on one worker.
        autocast: Run the network under bfloat16 autocast.
        captions: As in `model_input`.
        missing: Modalities whose images are replaced by zeros.
        before_batch: Called before each batch, equally often on every worker.

    Returns:
        The same on every worker.
    """
    spread = dist.is_initialized() and dist.get_world_size() > 1
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if spread else (0, 1)
    share = -(-len(view) // world_size)
    # Gathering needs equal shares: the last row is repeated to fill them, and cut off again.
    own = np.minimum(np.arange(rank * share, (rank + 1) * share), len(view) - 1)
    training = model.training
    model.eval()
    parts: list[Tensor] = []
    widths: dict[str, int] = {}
    for start in range(0, share, batch):
        before_batch()
        made = embed_rows(model, view, own[start : start + batch], autocast, captions, missing)
        widths = {name: values.shape[1] for name, values in made.items()}
        parts.append(torch.cat(list(made.values()), dim=1))
    model.train(training)
    embedded = torch.cat(parts)
    if spread:
        everything = [torch.empty_like(embedded) for _ in range(world_size)]
        dist.all_gather(everything, embedded)
        embedded = torch.cat(everything)
    columns = embedded[: len(view)].cpu().split(list(widths.values()), dim=1)
    made = dict(zip(widths, columns, strict=True))
    features, facts = retrieval_features(made), made.get(HYPEREDGES)
    if facts is None:
        return Embedded(features, None)
    return Embedded(features, dict(zip(FACTS, facts.double().mean(dim=0).tolist(), strict=True)))


@torch.no_grad()
def embed_rows(
    model: STMI,
    view: Rows,
    rows: np.ndarray,
    autocast: bool,
    captions: Tensor | None = None,
    missing: Collection[Modality] = (),
) -> dict[str, Tensor]:
    """U, G and, where the model has it, T of some rows; every retrieval feature is made of these.

    With a hypergraph there is also what the hyperedges of each row are like, by the name `HYPEREDGES`.

    Args:
        model: The network, in evaluation mode.
        view: The view of the samples.
        rows: Rows of the view, as many as fit into memory.
        autocast: As in `embed`.
        captions: As in `model_input`.
        missing: As in `embed`.

    Returns:
        float32 `(rows, width)` by name, on the model's device.
    """
    device = model.image_tower.proj.device
    inputs = model_input(model, view, rows, device, captions).without(missing)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        features = model(inputs)
    facts = None if features.hypergraph is None else features.hypergraph.facts.stacked()
    made = {"U": features.U, "G": features.G, "T": features.T, HYPEREDGES: facts}
    return {name: values for name, values in made.items() if values is not None}


def retrieval_features(made: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Every retrieval feature of a view, from the output of `embed_rows` for all its rows."""
    class_tokens = made["G"].unflatten(1, (len(MODALITIES), -1))
    features = Features(made["U"], made["G"], made.get("T"), class_tokens, hypergraph=None)
    return {name: values.numpy() for name, values in features.retrieval().items()}


def check_view(view: View, junk: JunkRule) -> tuple[Finding, ...]:
    """What is to be borne in mind of a measurement on a view.

    Raises:
        CatalogError: Nothing can be measured on it.
    """
    split, findings = view.table.manifest.settings["split"], Findings()
    names = ("sample_id", "identity", "camera_id", "scene_id", "is_query", "is_gallery")
    check_measurement(split, pd.DataFrame({name: getattr(view, name) for name in names}), junk, findings)
    if view.missing is not None:
        counts = view.missing.sum(axis=0).tolist()
        check_missing(split, dict(zip(MODALITIES, counts, strict=True)), findings)
    if findings.errors:
        found = "; ".join(finding.message for finding in findings.errors)
        raise CatalogError(f"view {view.table.path} is no measure of a model: {found}")
    return tuple(findings.warnings)


def score(
    view: View, embeddings: np.ndarray, junk: JunkRule, rerank_variant: RerankVariant | None = None
) -> RetrievalMetrics:
    """Metrics of one feature: the view's queries among its gallery, k-reciprocally re-ranked if asked for."""
    group = retrieval_metrics.junk_groups(junk, view.camera_id, view.scene_id)

    def chosen(rows: np.ndarray) -> RetrievalSet:
        return RetrievalSet(embeddings[rows], view.identity[rows], group[rows])

    query, gallery = chosen(view.is_query), chosen(view.is_gallery)
    if rerank_variant is None:
        return retrieval_metrics.evaluate(query, gallery)
    gallery_row = np.where(view.is_gallery, np.cumsum(view.is_gallery) - 1, -1)
    chunks = rerank(
        query.embedding, gallery.embedding, gallery_row=gallery_row[view.is_query], variant=rerank_variant
    )
    return retrieval_metrics.score(chunks, query, gallery)


def score_each(
    view: View, embeddings: dict[str, np.ndarray], junk: JunkRule, rerank_variant: RerankVariant | None = None
) -> dict[str, RetrievalMetrics]:
    """Metrics of every feature by name; `summarise` and `query_table` show them without scoring again."""
    return {name: score(view, values, junk, rerank_variant) for name, values in embeddings.items()}


def summarise(scored: dict[str, RetrievalMetrics]) -> dict[str, FeatureMetrics]:
    """Metrics of every feature by name; the CMC curve up to rank 20."""
    return {
        name: FeatureMetrics(
            **metrics.summary(), cmc=tuple(round(float(share), 6) for share in metrics.cmc[:20])
        )
        for name, metrics in scored.items()
    }


def query_table(view: View, scored: dict[str, RetrievalMetrics]) -> pa.Table:
    """Average precision and first match of every query with every feature: rows of `QUERY_SCHEMA`.

    Args:
        view: What was scored.
        scored: As `score_each` gives it.
    """
    query = view.is_query
    labels = ("sample_index", "sample_id", "identity", "camera_id", "scene_id")
    samples = {name: getattr(view, name)[query] for name in labels}
    tables = []
    for name, metrics in scored.items():
        unmatched = metrics.first_match_rank == 0
        columns = samples | {
            "feature": np.full(len(unmatched), name),
            "average_precision": pa.array(metrics.average_precision, mask=unmatched),
            "first_match_rank": pa.array(metrics.first_match_rank, mask=unmatched),
        }
        tables.append(pa.table(columns, schema=QUERY_SCHEMA))
    return pa.concat_tables(tables)
