"""Makes the tables of a data set from a folder of images, in the order in which they need each other.

One function makes those of the demo's embedded benchmark, and of the published data sets of `reproduce.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_catalog.captions.text_feature_table import make_text_features
from data_catalog.formats import SPLITS
from data_catalog.progress import Progress, progress_bar
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from data_catalog.views.training_view import ViewSettings, make_view
from experiments.experiment_config import ExperimentConfig
from experiments.run.run_tables import OnStep
from stmi.clip.clip_files import find_clip

Tables = dict[str, Table]
"""The tables of a run by name: `samples`, `masks`, `captions`, `text_features`, `view/train`, ..."""
MakeTable = Callable[[Table, Progress], Table]
"""Makes a table of a samples table."""


@dataclass(frozen=True)
class TableSources:
    """Where the tables of a data set come from.

    Attributes:
        folder: Folder of the images.
        format: Layout of the folder.
        masks: Makes the masks.
        captions: Makes the captions; None for a data set without any.
    """

    folder: Path
    format: str
    masks: MakeTable
    captions: MakeTable | None


def make_tables(
    config: ExperimentConfig, sources: TableSources, catalog: str, text_dim: int, on_step: OnStep
) -> Tables:
    """Make every table that runs of a config read; one that exists is found, an interrupted one continued.

    Args:
        config: Names data set, CLIP and image size.
        sources: Where the tables come from.
        catalog: Root of the catalog.
        text_dim: Width of the CLIP's text features, which are zeros without captions.
        on_step: Called after each step.

    Raises:
        CatalogError: A step cannot be done; what is complete is kept.
    """
    dataset, settings = config.data.dataset, IngestSettings(format=sources.format)
    with progress_bar("ingest", "shard") as report:
        samples = ingest(sources.folder, catalog, dataset, settings, report)
    quarantined = len(samples.statistics["quarantined"])
    on_step("ingest", f"{len(samples)} samples, {quarantined} quarantined {again(samples.reused)}")
    with progress_bar("masks", "shard") as report:
        masks = sources.masks(samples, report)
    on_step("masks", f"{_describe_masks(masks)} {again(masks.reused)}")
    tables, features = {"samples": samples, "masks": masks}, None
    if sources.captions is not None:
        with progress_bar("captions", "shard") as report:
            captions = sources.captions(samples, report)
        on_step("captions", f"{_describe_captions(captions)} {again(captions.reused)}")
        with progress_bar("text-features", "shard") as report:
            features = make_text_features(captions, find_clip(config.model.clip.source), progress=report)
        known = features.statistics
        on_step(
            "text-features",
            f"{known['distinct']} captions, width {known['text_dim']} {again(features.reused)}",
        )
        tables |= {"captions": captions, "text_features": features}
    size = config.model.image
    splits = [split for split in SPLITS if split in samples.statistics["splits"]]
    for split in splits:
        view = ViewSettings(split=split, height=size.height, width=size.width, text_dim=text_dim)
        with progress_bar(f"view {split}", "shard") as report:
            tables[f"view/{split}"] = make_view(samples, masks, features, view, report)
    views = [tables[f"view/{split}"] for split in splits]
    on_step(
        "view",
        f"{' + '.join(str(len(view)) for view in views)} samples of {size.height}x{size.width} for "
        f"{' + '.join(splits)} {again(all(view.reused for view in views))}",
    )
    return tables


def again(reused: bool) -> str:
    """What a step's result says of a table that was there before."""
    return "(as before) " if reused else ""


def _describe_masks(masks: Table) -> str:
    # Only masks that were scored have an overlap; a table of an older version may lack it.
    overlap = masks.statistics.get("mean_iou")
    if overlap is not None:
        return f"mean IoU {overlap:.3f} against the true masks"
    return f"{len(masks)} masks, {masks.statistics['empty']} of them empty"


def _describe_captions(captions: Table) -> str:
    unknown = captions.statistics.get("unknown")
    if unknown is None:
        return f"{len(captions)} captions, {captions.statistics['empty']} of them empty"
    return (
        f"{unknown['RGB']:.0%} of attributes unknown from RGB alone, {unknown['JOINT']:.0%} from the three "
        f"side by side, {unknown['filled']:.0%} after filling"
    )
