"""A contact sheet: images, masks and captions of some samples in one picture, to look at.

For each sample it shows the three modalities with the outline of the mask, the foreground tokens over the
mean of the modalities (visible light alone is dark at night), and the caption.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from pydantic import Field

from data_catalog.errors import CatalogError
from data_catalog.inspect.contact_sheet_drawing import Cell, arrange, draw_cell, encode_png
from data_catalog.records import Record
from data_catalog.samples.camera_numbers import first_camera, shown_camera
from data_catalog.samples.images import decode_mask, decode_triplets
from data_catalog.storage.filesystems import absolute, open_root, write_atomically
from data_catalog.tables.table import Table
from stmi.config import LARGEST_COUNT, LARGEST_SEED
from stmi.images import Mask, Pixels, foreground_share

MAX_SAMPLES = 400
"""On a sheet."""
PAGE_SAMPLES = 2000
"""On a web page, unless it is asked for more."""


class SampleChoice(Record):
    """Which samples are shown."""

    split: str | None = None
    identities: tuple[int, ...] = ()
    """Raw identities; all when empty."""
    ids: tuple[str, ...] = Field((), max_length=MAX_SAMPLES)
    """Exactly these samples, in this order; the other fields choose when empty."""
    lowest_score: bool = False
    """The samples whose masks score lowest, lowest first, instead of a random choice."""
    count: int = Field(PAGE_SAMPLES, ge=1, le=LARGEST_COUNT)
    """Largest number of samples."""
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Seed of the random choice, if there are more samples than `count`."""


class SheetSettings(SampleChoice):
    """Which samples a sheet shows, and how their masks become tokens."""

    count: int = Field(24, ge=1, le=MAX_SAMPLES)
    """Largest number of samples."""
    size: tuple[int, int] | None = None
    """Height and width of the model input; when None, each sample's own, in whole patches."""
    patch_size: int = Field(16, ge=1, le=LARGEST_COUNT)
    """Side of a token's patch at that size, in pixels. The command takes that of the CLIP of the newest text
    features, where there are any."""
    threshold: float = Field(0.5, ge=0, le=1)
    """Share of a patch that makes its token foreground; 0 means any overlap."""


class Sheet(Record):
    """A contact sheet that was written."""

    dataset: str
    out: str
    """The PNG file."""
    height: int
    """Height of the picture, pixels."""
    width: int
    masks: str | None
    """Key of the masks that are shown."""
    captions: str | None
    """Key of the captions that are shown."""
    samples: tuple[str, ...]
    """Ids of the samples, in the order of the sheet."""


def draw_sheet(
    samples: Table,
    masks: Table | None,
    captions: Table | None,
    out: str | Path,
    settings: SheetSettings | None = None,
) -> Sheet:
    """Draw a contact sheet as a PNG file.

    Args:
        samples: Images and labels.
        masks: Their masks; None leaves outlines and tokens out.
        captions: Their captions; None leaves them out.
        out: The file to write.
        settings: Which samples, and their tokens.

    Raises:
        CatalogError: If the settings select no sample or name a missing one, if scores or tokens are not
            possible, or if the file cannot be written.
    """
    settings = settings or SheetSettings()
    rows = choose_samples(samples, masks, settings)
    cells = _read_cells(samples, masks, captions, rows, settings)
    picture = arrange(
        [draw_cell(cell) for cell in cells], _title(samples, masks, captions, settings, len(rows))
    )
    filesystem, path = open_root(out)
    write_atomically(filesystem, path, encode_png(picture))
    return Sheet(
        dataset=samples.manifest.dataset,
        out=absolute(out),
        height=picture.height,
        width=picture.width,
        masks=masks.manifest.key if masks else None,
        captions=captions.manifest.key if captions else None,
        samples=tuple(cell.name for cell in cells),
    )


def token_grid(mask: Mask, size: tuple[int, int], patch_size: int, threshold: float) -> Mask:
    """Which tokens are foreground, bool `(height / patch_size, width / patch_size)`.

    Training does the same: the mask is averaged to the size of the model input, then over patches.

    Args:
        mask: Bool `(height, width)`.
        size: Height and width of the model input, multiples of the patch size.
        patch_size: Side of a patch, pixels.
        threshold: Share of a patch that makes it foreground; 0 means any overlap.
    """
    # These import torch, which takes seconds; other commands do without.
    import torch  # noqa: PLC0415

    from stmi.feature_modulation import token_mask  # noqa: PLC0415
    from stmi.training.augment import patch_foreground  # noqa: PLC0415

    share = torch.from_numpy(foreground_share(mask, size).copy())[None]
    tokens = token_mask(patch_foreground(share, patch_size), threshold)
    return np.asarray(tokens.reshape(size[0] // patch_size, size[1] // patch_size).numpy())


def choose_samples(samples: Table, masks: Table | None, settings: SampleChoice) -> npt.NDArray[np.int64]:
    """Row numbers of the samples to show, in the order in which they are shown.

    Raises:
        CatalogError: The settings select no sample, name a missing one, or want scores that are not there.
    """
    labels = samples.read(["sample_id", "split", "identity"])
    rows = np.arange(len(labels))
    if settings.lowest_score:
        if masks is None:
            raise CatalogError("the lowest scores need masks, and there are no masks; run `masks` first")
        # Equal scores stay in the order of the table.
        rows = np.argsort(masks.read(["score"])["score"].to_numpy(), kind="stable")
    if settings.ids:
        row_by_id = {sample_id: row for row, sample_id in enumerate(labels["sample_id"].to_pylist())}
        for sample_id in settings.ids:
            if sample_id not in row_by_id:
                raise CatalogError(
                    f"sample {sample_id!r} is not in {samples.path}; expected split/name as in "
                    f"{next(iter(row_by_id))!r}"
                )
        rows = np.array([row_by_id[sample_id] for sample_id in settings.ids])
    is_wanted = np.ones(len(labels), dtype=bool)
    if settings.split is not None:
        is_wanted &= np.array(labels["split"].to_pylist()) == settings.split
    if settings.identities:
        is_wanted &= np.isin(labels["identity"].to_numpy(), settings.identities)
    found = rows[is_wanted[rows]]
    if not len(found):
        raise CatalogError(
            f"no sample of {samples.path} is of split {settings.split or 'any'} and of the identities "
            f"{', '.join(map(str, settings.identities)) or 'any'}; splits: "
            f"{', '.join(samples.statistics['splits'])}"
        )
    if settings.ids:
        return found
    if settings.lowest_score or len(found) <= settings.count:
        return found[: settings.count]
    return found[
        np.sort(np.random.default_rng(settings.seed).choice(len(found), settings.count, replace=False))
    ]


def _read_cells(
    samples: Table,
    masks: Table | None,
    captions: Table | None,
    rows: npt.NDArray[np.int64],
    settings: SheetSettings,
) -> list[Cell]:
    """The content of the cells of these samples, in their order."""
    cells = {
        row: make_cell(values, triplet, settings)
        for row, values, triplet in read_samples(samples, masks, captions, rows)
    }
    return [cells[int(row)] for row in rows]


def read_samples(
    samples: Table, masks: Table | None, captions: Table | None, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[int, dict[str, Any], Pixels]]:
    """Some samples with what is known of them, in the order of the table; one shard in memory at a time.

    Args:
        samples: Images and labels.
        masks: Their masks; None leaves `mask`, `score` and `source` out.
        captions: Their captions; None leaves `caption` out.
        rows: Row numbers in the samples table.

    Yields:
        Row number, values by column with `camera` as people know it, and the images, uint8 `(modality,
        height, width, channel)`.
    """
    first = first_camera(samples)
    starts = np.cumsum([0, *(shard.rows for shard in samples.manifest.shards)])
    shards = np.searchsorted(starts, rows, side="right") - 1
    for number in map(int, np.unique(shards)):
        in_shard = rows[shards == number]
        taken = samples.read_rows(number, (in_shard - starts[number]).tolist())
        values = taken.select(["sample_id", "split", "identity", "camera_id", "scene_id"]).to_pylist()
        for table, names in ((masks, ["mask", "score", "source"]), (captions, ["caption"])):
            if table is not None:
                shard = table.read_shard(number, ["sample_id", *names])
                wanted = shard.filter(pc.is_in(shard["sample_id"], taken["sample_id"].combine_chunks()))
                by_id = {found["sample_id"]: found for found in wanted.to_pylist()}
                values = [value | by_id.get(value["sample_id"], {}) for value in values]
        for row, value, triplet in zip(in_shard, values, decode_triplets(taken), strict=True):
            value["camera"] = shown_camera(value["camera_id"], first)
            yield int(row), value, triplet


def make_cell(row: Mapping[str, Any], triplet: Pixels, settings: SheetSettings) -> Cell:
    """What a sheet shows of a sample, as `read_samples` gives it.

    Raises:
        CatalogError: The patches do not divide the size that was asked for.
    """
    labels = [f"identity {row['identity']}", f"camera {row['camera']}"]
    labels += [f"scene {row['scene_id']}"] if row["scene_id"] >= 0 else []
    mask = tokens = None
    if "mask" in row:
        labels += [f"mask: {row['source']}, score {row['score']:.2f}"]
        mask = decode_mask(row["mask"])
        patch = settings.patch_size
        size = settings.size or tuple(max(1, round(side / patch)) * patch for side in mask.shape)
        if size[0] % patch or size[1] % patch:
            raise CatalogError(
                f"patch size {patch} does not divide the image size {size[0]}x{size[1]} "
                f"(height x width, sample {row['sample_id']}); choose another --patch-size or --size"
            )
        labels += [f"{mask.mean():.0%} foreground"]
        tokens = token_grid(mask, size, patch, settings.threshold)
    return Cell(row["sample_id"], ", ".join(labels), triplet, mask, tokens, row.get("caption"))


def _title(
    samples: Table, masks: Table | None, captions: Table | None, settings: SheetSettings, shown: int
) -> str:
    parts = [f"{samples.manifest.dataset}: {shown} of {len(samples)} samples"]
    if settings.lowest_score:
        parts += ["lowest scores first"]
    elif not settings.ids:
        parts += [f"seed {settings.seed}"]
    if masks is None:
        parts += ["no masks"]
    else:
        parts += [
            f"masks {masks.manifest.settings['segmenter']} {masks.digest[:12]}",
            f"tokens of {settings.patch_size}x{settings.patch_size} pixels, foreground "
            + (f"from a share of {settings.threshold:g}" if settings.threshold else "at any overlap"),
        ]
    parts += ["no captions"] if captions is None else [f"captions {captions.digest[:12]}"]
    return "; ".join(parts)
