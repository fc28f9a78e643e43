"""The samples of a gallery that are nearest to a query, by a feature that both have."""

import time
import warnings
from collections.abc import Mapping
from pathlib import Path

from experiments.evaluating.image_folder import CAPTION, effects_of_missing
from experiments.experiment_config import ConfigError
from experiments.searching.galleries import Gallery, read_pixels
from experiments.searching.kept_gallery import EXACT, keep, new_index
from experiments.searching.rank_list_sheet import draw_rank_list
from experiments.searching.search_result import Match, SearchResult
from stmi.config import ModelConfig
from stmi.errors import TrainedRunError
from stmi.model import FEATURES
from stmi.retrieval.ranking import Embeddings
from stmi.trained_run import TrainedRun

NEED_TEXT = ("U", "T", "GTTT")
"""Features that text changes, where the model has it."""


def choose_feature(
    asked: str | None, run: TrainedRun, query_has_text: bool, gallery_has_text: bool
) -> tuple[str, tuple[str, ...]]:
    """The feature by which to compare, and what is to be said about it.

    It is the one that the run reports, as in evaluation; or G where that one needs text and a side has none.

    Raises:
        ConfigError: The model has no such feature.
    """
    has_text = run.config.model.text.enabled
    known = [name for name in FEATURES if has_text or name not in ("T", "GTTT")]
    if asked is not None:
        if asked not in known:
            raise ConfigError(f"--feature={asked}: run {run.name} has {', '.join(known)}")
        return asked, ()
    if not has_text or run.feature not in NEED_TEXT or (query_has_text and gallery_has_text):
        return run.feature, ()
    lacking = " and ".join(
        side for side, has in (("the query", query_has_text), ("the gallery", gallery_has_text)) if not has
    )
    return "G", (f"compared by G, which needs no text, in place of {run.feature}: no captions of {lacking}",)


def describe_missing(
    query: Mapping[str, object], gallery: Gallery, model: ModelConfig, feature: str
) -> list[str]:
    """What the query and samples of the gallery lack of what the compared feature needs."""
    effects = effects_of_missing(model)
    if feature not in NEED_TEXT:
        effects.pop(CAPTION, None)
    notes = [f"the query has no {effect}" for name, effect in effects.items() if name not in query]
    return notes + [
        f"{count} of {len(gallery)} samples of the gallery have no {effects[name]}"
        for name, count in gallery.lacks.items()
        if name in effects
    ]


def embed_query(run: TrainedRun, query: Mapping[str, object]) -> Embeddings:
    """Features of the query.

    Raises:
        ConfigError: An image, the mask or the caption cannot be used.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="no sample has a")
            return run.embed(**query)  # type: ignore[arg-type]
    except TrainedRunError:
        raise
    except ValueError as error:
        raise ConfigError(f"--query: {error}") from None


def search(
    run: TrainedRun,
    gallery: Gallery,
    query: Mapping[str, object],
    root: Path,
    top: int = 20,
    feature: str | None = None,
    kind: str = "Flat",
    picture: str | None = None,
) -> SearchResult:
    """The samples of a gallery that are nearest to a query.

    Args:
        run: The model.
        gallery: The samples.
        query: Arguments of `run.embed`.
        root: Where galleries of the run are kept.
        top: How many samples at most.
        feature: By which to compare; None for the choice of `choose_feature`.
        kind: Kind of the index, as `faiss.index_factory` takes it.
        picture: File or URI of a contact sheet; None for none.
    """
    # Whatever is wrong with the query or the index is found before the gallery is embedded.
    embedded = embed_query(run, query)
    name, notes = choose_feature(feature, run, CAPTION in query, CAPTION not in gallery.lacks)
    new_index(embedded[name].shape[1], kind)
    kept = keep(gallery, run.digest, root)
    index = kept.open_index(name, kind)
    start = time.perf_counter()
    rows, distances = kept.search(index, embedded[name], top)
    seconds = time.perf_counter() - start
    labels = kept.labels(rows)
    cameras = labels.get("camera_id", [-1] * len(rows))
    matches = tuple(
        Match(
            rank=number + 1,
            sample_id=labels["sample_id"][number],
            distance=round(float(distance), 6),
            identity=labels["identity"][number] if "identity" in labels else None,
            camera_id=None if cameras[number] < 0 else cameras[number],
        )
        for number, distance in enumerate(distances)
    )
    if picture is not None:
        _draw(picture, run, query, gallery, matches, f"{run.name}, {name}")
    return SearchResult(
        run=run.name,
        epoch=run.epoch,
        feature=name,
        gallery=gallery.name,
        samples=kept.record.samples,
        embedded=kept.embedded,
        index=kind,
        is_exact=kind == EXACT,
        search_seconds=round(seconds, 6),
        kept_in=str(kept.folder),
        left_out=kept.record.left_out,
        matches=matches,
        picture=picture,
        notes=(*notes, *describe_missing(query, gallery, run.config.model, name)),
    )


def _draw(
    location: str,
    run: TrainedRun,
    query: Mapping[str, object],
    gallery: Gallery,
    matches: tuple[Match, ...],
    title: str,
) -> None:
    found = [
        (f"{match.rank}: {match.distance:.3f}\n{match.sample_id[-20:]}", gallery.pixels(match.sample_id))
        for match in matches
    ]
    draw_rank_list(location, read_pixels(run, query), found, title)
