"""Predicted attributes: what a multi-modal language model sees in each image of a sample and in all three.

A folder holds one file per split, named after the split or its folder (`train.jsonl`, `train_171.jsonl`).
A line holds the predictions of one sample, under the key `readings`:

    {"item": "000028_cam1_0_02.jpg",
     "readings": {"RGB": {"hair": {"value": "long", "confidence": 0.9}},
                  "NIR": {...}, "TIR": {...}, "JOINT": {...}}}
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError

from data_catalog.captions.item_names import file_stem
from data_catalog.errors import CatalogError
from data_catalog.records import Record, describe_invalid
from stmi.modality import MODALITIES

JOINT = "JOINT"
"""The source that shows the three images side by side."""

SOURCES: tuple[str, ...] = (JOINT, *(modality.value for modality in MODALITIES))
"""The sources of predictions. Of two with equal confidence the earlier one wins: JOINT shows the most."""

UNKNOWN = "unknown"
"""The value of an attribute that a source does not show."""


class AttributePrediction(Record):
    """The value of one attribute as predicted from one source."""

    value: str
    confidence: StrictFloat | StrictInt = Field(ge=0, le=1, allow_inf_nan=False)
    """The model's own confidence, 0 to 1."""

    @property
    def is_known(self) -> bool:
        """Whether there is a value."""
        return self.value.strip().lower() not in ("", UNKNOWN)


Predictions = Mapping[str, Mapping[str, AttributePrediction]]
"""The predictions for one sample, by source and attribute."""


@dataclass(frozen=True)
class FilledAttribute:
    """The value of an attribute after filling, and the source and confidence that it comes with."""

    value: str
    confidence: float
    source: str


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    item: str
    readings: dict[str, dict[str, AttributePrediction]]


def fill(predictions: Predictions) -> dict[str, FilledAttribute]:
    """The most confident prediction of each attribute, over all sources of a sample.

    "unknown" never beats a value, however confident; of equal confidences the earlier of SOURCES wins. An
    attribute that no source knows is absent. Attributes come in the order in which SOURCES name them first.
    """
    filled: dict[str, FilledAttribute] = {}
    for source in SOURCES:
        for name, found in predictions.get(source, {}).items():
            if found.is_known and (name not in filled or found.confidence > filled[name].confidence):
                filled[name] = FilledAttribute(found.value.strip(), float(found.confidence), source)
    return filled


@dataclass(frozen=True)
class PredictionFiles:
    """The predictions of a data set.

    Attributes:
        samples: The predictions for each sample, by sample id, as JSON values.
        digest: SHA-256 over splits and the files' bytes.
    """

    samples: Mapping[str, Any]
    digest: str


def load_predictions(
    folder: Path, split_folders: Mapping[str, str], splits: Iterable[str], attributes: Iterable[str]
) -> PredictionFiles:
    """Read and check every line of the folder's files.

    Args:
        folder: The folder.
        split_folders: Name of each split's folder; its file may have this name too.
        splits: Splits whose file must be there.
        attributes: Attributes that a prediction may name.

    Raises:
        CatalogError: If a file is missing or a line malformed; names file and line.
    """
    samples: dict[str, Any] = {}
    sha256 = hashlib.sha256()
    for split in sorted(splits):
        names = dict.fromkeys((f"{split}.jsonl", f"{split_folders.get(split, split)}.jsonl"))
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            raise CatalogError(
                f"readings {folder} holds no {' or '.join(names)}; put one line per sample there"
            )
        data = path.read_bytes()
        sha256.update(f"{split}\0{len(data)}\0".encode() + data)
        for number, line in enumerate(data.splitlines(), start=1):
            if not line.strip():
                continue
            position = f"{path} line {number}"
            item, predictions = _parse(line, position, frozenset(attributes))
            sample_id = f"{split}/{file_stem(item)}"
            if sample_id in samples:
                raise CatalogError(f"{position}: item {item!r} was read before; keep one line per item")
            samples[sample_id] = predictions
    return PredictionFiles(samples, sha256.hexdigest())


def _parse(line: bytes, position: str, attributes: frozenset[str]) -> tuple[str, Any]:
    try:
        value = json.loads(line)
        # JSON can hold half of a surrogate pair, which no table can store.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CatalogError(
            f"{position} is not JSON in UTF-8 ({error}); write one JSON object a line"
        ) from None
    try:
        parsed = _Line.model_validate(value)
    except ValidationError as error:
        raise CatalogError(
            f"{position}: {describe_invalid(error, 'the line')}; expected "
            '{"item": name, "readings": {source: {attribute: {"value": text, "confidence": 0 to 1}}}}'
        ) from None
    for source, predictions in parsed.readings.items():
        if source not in SOURCES:
            raise CatalogError(f"{position}: source {source!r} is not known; use {', '.join(SOURCES)}")
        for name in predictions:
            if name not in attributes:
                raise CatalogError(
                    f"{position}: attribute {name!r} is not on the card; use "
                    f"{', '.join(sorted(attributes))}, or choose another card (--card)"
                )
    return parsed.item, value["readings"]
