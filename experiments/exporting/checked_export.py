"""One file of a trained run, written and held against the model on test samples before it is kept."""

import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_catalog.views.view_reader import View, open_view
from experiments.evaluating.evaluation_target import EvaluationTarget
from experiments.exporting.export_result import ExportedModel, ExportResult
from experiments.exporting.exported_network import ExportedNetwork, describe_inputs, read_inputs
from experiments.exporting.model_files import FORMATS, Compute, trace
from experiments.run.evaluation import embed_rows
from stmi.checksums import file_digest
from stmi.modality import MODALITIES, Modality
from stmi.model import STMI
from stmi.training.augment import PIXEL_STATISTICS

TOLERANCE = 1e-4
"""Largest absolute difference between a feature of the file and of the model."""
ROWS = 16
"""Test samples that are compared."""
MISSING: tuple[tuple[Modality, ...], ...] = ((), (Modality.NIR, Modality.TIR))


def export(
    target: EvaluationTarget, fingerprint: str, digest: str, file: Path, form: str, rows: int = ROWS
) -> ExportResult:
    """Write the file, and keep it if it computes what the model does.

    Args:
        target: The model and its test view.
        fingerprint: Fingerprint of the run.
        digest: Digest of the model.
        file: Where it goes; it is replaced only by a file that was checked.
        form: A name in `FORMATS`.
        rows: How many test samples are compared.
    """
    view, model = open_view(target.table), target.model.eval()
    chosen = np.unique(np.linspace(0, len(view) - 1, rows).astype(np.int64))
    tower = model.image_tower
    context = 0 if target.captions is None else target.captions.shape[1]
    cameras = 0 if tower.camera_embedding is None else len(tower.camera_embedding)
    inputs = describe_inputs(model.config, tower.proj.shape[1], context, cameras)
    expected = [_features(model, target, view, chosen, absent) for absent in MISSING]
    about = _describe(target, fingerprint, digest, inputs, expected[0])
    write, load = FORMATS[form]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{uuid.uuid4().hex}{file.suffix}")
    try:
        example = read_inputs(view, np.resize(chosen, 2), target.captions, list(inputs))
        program = trace(ExportedNetwork(model), example)
        write(program, list(about.outputs), about.to_json(), partial)
        given = read_inputs(view, chosen, target.captions, list(inputs))
        differences = _compare(load(partial), given, expected)
        is_kept = all(difference <= TOLERANCE for difference in differences.values())
        size, sha256 = partial.stat().st_size, file_digest(partial)
        if is_kept:
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return ExportResult(
        file=str(file),
        format=form,
        is_kept=is_kept,
        bytes=size,
        sha256=sha256,
        checked_rows=len(chosen),
        differences=differences,
        tolerance=TOLERANCE,
        exported=about,
        notes=_notes(model, target, view, chosen, expected[0]),
    )


def _features(
    model: STMI,
    target: EvaluationTarget,
    view: View,
    rows: np.ndarray,
    missing: tuple[Modality, ...],
    autocast: bool = False,
) -> dict[str, np.ndarray]:
    """U, G and T of the model as evaluation computes them, in float32 unless `autocast`."""
    made = embed_rows(model, view, rows, autocast, target.captions, missing)
    return {name: made[name].numpy() for name in ("U", "G", "T") if name in made}


def _compare(
    compute: Compute, given: dict[str, Tensor], expected: list[dict[str, np.ndarray]]
) -> dict[str, float]:
    """The largest difference of each feature, over all samples in one batch, and the first one alone."""
    differences = dict.fromkeys(expected[0], 0.0)
    for absent, features in zip(MISSING, expected, strict=True):
        present = given["present"] & torch.tensor([name not in absent for name in MODALITIES])
        whole = given | {"present": present}
        first = {name: values[:1] for name, values in whole.items()}
        for inputs, count in ((whole, len(present)), (first, 1)):
            found = compute(inputs)
            for name in differences:
                difference = float(np.abs(found[name] - features[name][:count]).max())
                # NaN is no small difference.
                differences[name] = max(differences[name], difference if difference >= 0 else np.inf)
    return differences


def _describe(
    target: EvaluationTarget, fingerprint: str, digest: str, inputs: dict, features: dict[str, np.ndarray]
) -> ExportedModel:
    assert target.epoch is not None
    config = target.config
    mean, deviation = PIXEL_STATISTICS[config.model.pixels]
    return ExportedModel(
        run=target.name,
        fingerprint=fingerprint,
        model=digest,
        epoch=target.epoch,
        feature=config.report.feature,
        image_height=config.model.image.height,
        image_width=config.model.image.width,
        mean=mean,
        deviation=deviation,
        inputs=inputs,
        outputs={name: values.shape[1] for name, values in features.items()},
    )


def _notes(
    model: STMI, target: EvaluationTarget, view: View, rows: np.ndarray, expected: dict[str, np.ndarray]
) -> tuple[str, ...]:
    """By how much evaluation differs from the file, where it computes in bfloat16."""
    if not target.autocast:
        return ()
    own = _features(model, target, view, rows, (), autocast=True)
    difference = max(float(np.abs(own[name] - values).max()) for name, values in expected.items())
    return (
        "the file computes in float32; evaluate.py computes features of this run in bfloat16, which differ "
        f"by up to {difference:.2g}",
    )
