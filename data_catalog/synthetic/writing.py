"""Writing of a synthetic data set to disk, in the RGBNT201 layout.

out/RGBNT201/{train_171,val,test}/{RGB,NI,TI}/000028_cam1_0_02.jpg  the images
out/RGBNT201/{train_171,val,test}/mask/000028_cam1_0_02.png         masks, if made from the true ones
out/true_masks/{train_171,val,test}/000028_cam1_0_02.png            visible pixels of the target
out/readings/{train_171,val,test}.jsonl                             simulated attribute predictions
out/synthesis.json                                                  settings and counts, written last
"""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_catalog.errors import CatalogError, NotWritableError
from data_catalog.formats.rgbnt201 import MODALITY_FOLDERS, SPLIT_FOLDERS, SYNTHESIS_MANIFEST
from data_catalog.progress import Progress, no_progress
from data_catalog.records import Record
from data_catalog.synthetic.attributes import attribute_values
from data_catalog.synthetic.perturbed_masks import perturb
from data_catalog.synthetic.rendering import RenderedSample, render_sample
from data_catalog.synthetic.simulated_predictions import predict_attributes
from data_catalog.synthetic.synthetic_settings import SPLITS, Split, SyntheticSettings

RENDERING_VERSION = 1
"""Increased whenever the same settings give other pixels or predictions than before."""
UNFINISHED = f"{SYNTHESIS_MANIFEST}.unfinished"
"""The manifest while samples are being written; renamed when all are complete."""


class SynthesisConflictError(CatalogError):
    """The folder holds other files than those of these settings."""


class SynthesisReport(Record):
    """What `synthesize` did."""

    out: Path
    """Folder of the data set."""
    samples: dict[Split, int]
    """Number of samples in each split."""
    identities: dict[Split, int]
    """Number of identities in each split."""
    reused: bool
    """Whether the data set was there already."""
    seconds: float
    """Time taken."""


def synthesize(settings: SyntheticSettings, out: Path, progress: Progress = no_progress) -> SynthesisReport:
    """Write the data set of these settings, unless it exists already.

    An interrupted call leaves no `synthesis.json`; the next one writes the same bytes again.

    Args:
        settings: What to render.
        out: Folder for it: absent, empty, or written by this function with the same settings.
        progress: Called after every sample with (samples written, samples in all).

    Raises:
        SynthesisConflictError: If the folder holds other files, or a data set of other settings.
    """
    started, out = time.monotonic(), Path(out)
    identities = {split: len(settings.identities(split)) for split in SPLITS}
    samples = {split: identities[split] * settings.cameras * settings.shots for split in SPLITS}
    manifest = {
        "drawing_version": RENDERING_VERSION,
        "settings": settings.deciding(),
        "artifacts": settings.artifacts(),
        "attributes": {name: list(values) for name, values in attribute_values(settings.kind).items()},
        "identities": {SPLIT_FOLDERS[split]: count for split, count in identities.items()},
        "samples": {SPLIT_FOLDERS[split]: count for split, count in samples.items()},
    }
    try:
        # What is complete may be on a disk that is read-only.
        reused = _is_there(out, manifest)
        if not reused:
            reused = _write_once(settings, out, manifest, sum(samples.values()), progress)
    except (OSError, NotWritableError) as error:
        raise SynthesisConflictError(f"{out} cannot be written: {error}; choose another folder.") from error
    return SynthesisReport(
        out=out,
        samples=samples,
        identities=identities,
        reused=reused,
        seconds=round(time.monotonic() - started, 3),
    )


def _write_once(
    settings: SyntheticSettings, out: Path, manifest: Mapping[str, Any], total: int, progress: Progress
) -> bool:
    """Write the data set, or wait for another process that does; returns whether another one did."""
    from data_catalog.storage.claims import claim  # noqa: PLC0415 - imports PyArrow, which settings do without

    with claim(out.parent / f".{out.name}.claim", wait=lambda: True):
        is_there = _is_there(out, manifest)
        if not is_there:
            _write(settings, out, manifest, total, progress)
    return is_there


def _write(
    settings: SyntheticSettings,
    out: Path,
    manifest: Mapping[str, Any],
    total: int,
    progress: Progress,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    (out / UNFINISHED).write_text(text, encoding="utf-8")
    done = 0
    for split in SPLITS:
        for _ in _write_split(settings, split, out):
            done += 1
            progress(done, total)
    (out / UNFINISHED).replace(out / SYNTHESIS_MANIFEST)


def sample_name(identity: int, camera: int, shot: int) -> str:
    """The file name of a sample without its ending; camera and shot are 0-based."""
    return f"{identity:06d}_cam{camera + 1}_0_{shot:02d}"


def _is_there(out: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the data set is complete; refuses a folder that holds something else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise SynthesisConflictError(f"{out} is a file: choose a folder.")
    held = sorted(path.name for path in out.iterdir())
    for name in (SYNTHESIS_MANIFEST, UNFINISHED):
        if name not in held:
            continue
        try:
            found = json.loads((out / name).read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            if held == [UNFINISHED]:  # Interrupted before the first sample.
                return False
            raise SynthesisConflictError(
                f"{out / name} is not valid JSON: delete {out} and run again."
            ) from None
        _refuse_other(out, found, wanted)
        # An older version did not note the artifacts, by which the tables of equal images are kept apart.
        return name == SYNTHESIS_MANIFEST and found.get("artifacts", {}) == wanted["artifacts"]
    if held:
        raise SynthesisConflictError(
            f"{out} holds files that are not a synthetic data set ({', '.join(held[:3])}): "
            "choose an empty or new folder."
        )
    return False


def _refuse_other(out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise, naming every difference, unless the folder was written for the wanted data set."""
    before, now = dict(found.get("settings", {})), dict(wanted["settings"])
    before["drawing_version"], now["drawing_version"] = (
        found.get("drawing_version"),
        wanted["drawing_version"],
    )
    differences = [
        f"{name} is {before.get(name)!r} there and {now.get(name)!r} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise SynthesisConflictError(
            f"{out} holds a synthetic data set with other settings: {'; '.join(differences)}. "
            "Choose another folder, delete this one, or use its settings."
        )


def _write_split(settings: SyntheticSettings, split: Split, out: Path) -> Iterator[str]:
    """Write a split's files; gives the name of each sample once its images are written."""
    folder = SPLIT_FOLDERS[split]
    images, masks, predictions = out / "RGBNT201" / folder, out / "true_masks" / folder, out / "readings"
    inside = [*MODALITY_FOLDERS.values(), *(["mask"] if settings.masks != "grabcut" else [])]
    for path in (*(images / name for name in inside), masks, predictions):
        path.mkdir(parents=True, exist_ok=True)
    lines = []
    for identity in settings.identities(split):
        for camera in range(settings.cameras):
            for shot in range(settings.shots):
                sample = render_sample(settings, identity, camera, shot)
                name = sample_name(identity, camera, shot)
                _write_sample(sample, name, images, masks, settings.jpeg_quality)
                if settings.masks != "grabcut":
                    _write_mask(perturb(sample.mask, settings.masks), images / "mask" / f"{name}.png")
                predicted = predict_attributes(settings, sample, identity, camera, shot)
                lines.append(json.dumps({"item": f"{name}.jpg", "readings": predicted}))
                yield name
    # Identities, cameras and shots are rendered in the order of the file names, so the lines are sorted.
    (predictions / f"{folder}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_sample(sample: RenderedSample, name: str, images: Path, masks: Path, quality: int) -> None:
    for pixels, modality in zip(sample.pixels, MODALITY_FOLDERS.values(), strict=True):
        # Full colour resolution, because a garment is only a few pixels wide at 64 x 32 pixels.
        Image.fromarray(pixels).save(images / modality / f"{name}.jpg", quality=quality, subsampling=0)
    _write_mask(sample.mask, masks / f"{name}.png")


def _write_mask(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask * 255).save(path, compress_level=1)
