"""A step whose whole output is unknown, empty or of one value is refused, and made again once corrected."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from data_catalog.__main__ import main
from data_catalog.captions import caption_texts
from data_catalog.captions.caption_table import CaptionSettings, make_captions
from data_catalog.captions.image_captioner import CaptionerSettings, make_image_captions
from data_catalog.captions.imported_captions import CaptionFileSettings, import_captions
from data_catalog.errors import CatalogError
from data_catalog.masks.mask_table import SegmenterSettings, make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.samples.images import Pixels, Segmentation
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import MANIFEST, Table, list_tables
from tests.data_catalog.folders import FOLDERS, HEIGHT, WIDTH, names, sample_ids


class Fickle(SegmenterSettings):
    """A segmenter of the user's, which a test corrects without a new version."""

    foreground: ClassVar[slice] = slice(0)

    def build(self) -> "Fickle":
        return self

    def segment(self, triplets: Sequence[Pixels]) -> list[Segmentation]:
        masks = [np.zeros(triplet.shape[1:3], dtype=bool) for triplet in triplets]
        for mask in masks:
            mask[self.foreground] = True
        return [Segmentation(mask, 0.5, "RGB") for mask in masks]


class Silent(CaptionerSettings):
    """A captioner of the user's, likewise."""

    text: ClassVar[str] = ""

    def build(self) -> "Silent":
        return self

    def caption(self, triplets: Sequence[Pixels]) -> list[str]:
        return [self.text for _ in triplets]


@pytest.fixture
def samples(source: Path, tmp_path: Path) -> Table:
    return ingest(source, tmp_path / "catalog", "small", IngestSettings(samples_per_shard=10))


@pytest.mark.parametrize(("foreground", "what"), [(slice(0), "28 all back"), (slice(None), "28 all fore")])
def test_masks_of_one_value_are_refused_and_made_again(
    samples: Table, monkeypatch: pytest.MonkeyPatch, foreground: slice, what: str
) -> None:
    monkeypatch.setattr(Fickle, "foreground", foreground)
    for _ in range(2):
        with pytest.raises(
            CatalogError, match=rf"all 28 masks are of one value \(.*{what}.*`view --no-masks`"
        ):
            make_masks(samples, Fickle())
    assert not list_tables(samples.catalog, "small", TableKind.MASKS)
    monkeypatch.setattr(Fickle, "foreground", slice(3))
    assert make_masks(samples, Fickle()).statistics["foreground_fraction"] == pytest.approx(3 / HEIGHT)


def test_mask_files_of_one_value_are_refused(samples: Table, tmp_path: Path) -> None:
    for number, sample_id in enumerate(sample_ids()):
        split, name = sample_id.split("/")
        path = tmp_path / "masks" / FOLDERS[split] / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((HEIGHT, WIDTH), number % 2, dtype=np.uint8))
    with pytest.raises(CatalogError, match="14 all background, 14 all foreground"):
        import_masks(samples, tmp_path / "masks")


def from_readings(samples: Table, folder: Path) -> Table:
    for split, name in FOLDERS.items():
        known = {"RGB": {"hair": {"value": "Unknown ", "confidence": 1.0}}}
        lines = [json.dumps({"item": f"{item}.jpg", "readings": known}) for item in names(split)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return make_captions(samples, folder, CaptionSettings())


def from_files(samples: Table, folder: Path) -> Table:
    for split in FOLDERS:
        entries = [{"item": f"{name}.jpg", "description": "  "} for name in names(split)]
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return import_captions(samples, folder, CaptionFileSettings())


@pytest.mark.parametrize(
    "make", [from_readings, from_files, lambda samples, _: make_image_captions(samples, Silent())]
)
def test_captions_that_are_all_empty_are_refused(
    samples: Table, tmp_path: Path, make: Callable[[Table, Path], Any]
) -> None:
    with pytest.raises(
        CatalogError, match=re.escape("all 28 captions are empty, so no table is made of them")
    ):
        make(samples, tmp_path)
    assert not list_tables(samples.catalog, "small", TableKind.CAPTIONS)


def test_own_captioner_is_asked_again_once_it_is_corrected(
    samples: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CatalogError, match="all 28 captions are empty"):
        make_image_captions(samples, Silent())
    monkeypatch.setattr(Silent, "text", "A person.")
    assert make_image_captions(samples, Silent()).statistics["captioned"] == 1


def test_table_of_an_earlier_version_that_says_nothing_is_no_success(
    samples: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(caption_texts, "refuse_empty", lambda samples, empty: None)
        captions = from_files(samples, tmp_path)
        masks = make_masks(samples, GrabCutSettings())
        rewrite(masks, empty=28, full=0)
    for table, more in (
        (captions, ["captions", "--captioner", "files", "--captions", str(tmp_path)]),
        (masks, ["masks"]),
    ):
        arguments = [*more, "--catalog", samples.catalog, "--dataset", "small"]
        assert main(arguments) == 2
        assert f"{table.path}: all 28 rows are" in capsys.readouterr().err.splitlines()[-1]
        shutil.rmtree(table.path)
    assert main(["masks", "--catalog", samples.catalog, "--dataset", "small"]) == 0


def rewrite(table: Table, **statistics: Any) -> None:
    """Give a table other statistics, as if its rows were others."""
    manifest = table.manifest.model_copy(update={"statistics": table.statistics | statistics})
    (Path(table.path) / MANIFEST).write_bytes(manifest.sealed().to_bytes())
