"""Attribute readings: what a multi-modal LLM says of a sample, from each modality and from all three at once.

A folder holds one file per split, named after the split or its folder (`train.jsonl`, `train_171.jsonl`).
A line is one sample:

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

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, TypeAdapter, ValidationError

from data_catalog.errors import CatalogError
from stmi.modality import MODALITIES

JOINT = "JOINT"
"""The source that saw the three images side by side."""

SOURCES: tuple[str, ...] = (JOINT, *(modality.value for modality in MODALITIES))
"""Where readings come from; of equal confidences the earlier one wins, since JOINT has seen the most."""

UNKNOWN = "unknown"
"""The value of a reading that could not be made."""


class Reading(BaseModel):
    """One attribute as one source reads it, with the source's confidence, 0 to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: str
    confidence: StrictFloat | StrictInt = Field(ge=0, le=1, allow_inf_nan=False)

    @property
    def known(self) -> bool:
        """Whether it says anything."""
        return self.value.strip().lower() not in ("", UNKNOWN)


Readings = Mapping[str, Mapping[str, Reading]]
"""Source to attribute to reading."""


@dataclass(frozen=True)
class Filled:
    """The value of an attribute after filling, and where it came from."""

    value: str
    confidence: float
    source: str


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    item: str
    readings: dict[str, dict[str, Reading]]


_LINE = TypeAdapter(_Line)


def fill(readings: Readings) -> dict[str, Filled]:
    """What is known of a sample: for each attribute the most confident reading over all sources.

    "unknown" never beats a value, however confident; of equal confidences the earlier of SOURCES wins. An
    attribute that no source knows is absent. Attributes come in the order in which they were first read.
    """
    filled: dict[str, Filled] = {}
    for source in SOURCES:
        for name, reading in readings.get(source, {}).items():
            if reading.known and (name not in filled or reading.confidence > filled[name].confidence):
                filled[name] = Filled(reading.value.strip(), float(reading.confidence), source)
    return filled


@dataclass(frozen=True)
class ReadingsFolder:
    """The readings of a data set.

    Attributes:
        samples: Sample id to its readings, as JSON values.
        digest: SHA-256 over splits and the files' bytes.
    """

    samples: Mapping[str, Any]
    digest: str


def load_readings(
    folder: Path, split_folders: Mapping[str, str], splits: Iterable[str], attributes: Iterable[str]
) -> ReadingsFolder:
    """Every line of the folder's files, checked.

    Args:
        folder: The folder.
        split_folders: Split to its folder's name, by which the file may be named as well.
        splits: Splits whose file must be there.
        attributes: Attributes that a reading may name.

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
            where = f"{path} line {number}"
            item, readings = _parse(line, where, frozenset(attributes))
            sample_id = f"{split}/{Path(item).stem}"
            if sample_id in samples:
                raise CatalogError(f"{where}: item {item!r} was read before; keep one line per item")
            samples[sample_id] = readings
    return ReadingsFolder(samples, sha256.hexdigest())


def _parse(line: bytes, where: str, attributes: frozenset[str]) -> tuple[str, Any]:
    try:
        value = json.loads(line)
        # JSON can write half a character, which no table can hold.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"{where} is not JSON in UTF-8 ({error}); write one JSON object a line") from None
    try:
        parsed = _LINE.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the line"
        raise CatalogError(
            f"{where}: {field}: {first['msg']}; expected "
            '{"item": name, "readings": {source: {attribute: {"value": text, "confidence": 0 to 1}}}}'
        ) from None
    for source, readings in parsed.readings.items():
        if source not in SOURCES:
            raise CatalogError(f"{where}: source {source!r} is not known; use {', '.join(SOURCES)}")
        for name in readings:
            if name not in attributes:
                raise CatalogError(
                    f"{where}: attribute {name!r} is not on the card; use {', '.join(sorted(attributes))}, "
                    "or choose another card (--card)"
                )
    return parsed.item, value["readings"]
