"""The example of a captioner: from the command line with actors; its keys and faults in this process."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_catalog.captions.image_captioner import make_image_captions
from data_catalog.errors import CatalogError
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, find_table
from tests.data_catalog.folders import HEIGHT, WIDTH, image_path, sample_ids
from tests.examples.command_line import EXAMPLES, call, read_json

TEMPLATE = ("--captioner", "template_captioner:TemplateSettings")
CAPTIONS = ("-m", "data_catalog", "captions", "--catalog", "catalog", "--json")
LOOKS = (
    ((200, 30, 30), "A photo of a vehicle by day, mostly red."),
    ((30, 200, 30), "A photo of a vehicle by day, mostly green."),
    ((20, 20, 60), "A photo of a vehicle by night, mostly blue."),
)


@pytest.mark.slow
def test_own_captioner_works_in_actors_of_ray(source: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "template_captioner.py", tmp_path)
    for number, sample_id in enumerate(sample_ids()):
        pixels = np.full((HEIGHT, WIDTH, 3), LOOKS[number % 3][0], dtype=np.uint8)
        Image.fromarray(pixels).save(image_path(source, sample_id, 0))
    ingest(source, tmp_path / "catalog", "small", IngestSettings(samples_per_shard=3))
    # The first shard is made by the process itself, the others by actors, however few they are.
    arguments = (*CAPTIONS, *TEMPLATE, "--set", "kind=vehicle")
    found = read_json(call(*arguments, folder=tmp_path, DATA_CATALOG_LOCAL_SECONDS="0"))
    assert (found["rows"], found["captioned"], found["empty"], found["too_long"]) == (28, 1, 0, 0)
    table = find_table(tmp_path / "catalog", "small", TableKind.CAPTIONS)
    assert table.manifest.settings == {"captioner": TEMPLATE[1], "version": 1, "kind": "vehicle"}
    captions = table.read(["caption"])["caption"].to_pylist()
    assert captions == [LOOKS[number % 3][1] for number in range(28)]


def test_settings_version_and_redaction_make_a_new_table(
    samples: Table, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from template_captioner import TemplateCaptioner, TemplateSettings  # noqa: PLC0415

    monkeypatch.setattr(
        TemplateCaptioner,
        "caption",
        lambda self, triplets: ["A car with the plate AB12 CDE."] * len(triplets),
    )
    tables = [make_image_captions(samples, TemplateSettings(kind=kind)) for kind in ("person", "vehicle")]
    assert make_image_captions(samples, TemplateSettings()).reused
    tables.append(make_image_captions(samples, TemplateSettings(), is_redacted=True))
    assert set(tables[0].read(["caption"])["caption"].to_pylist()) == {"A car with the plate AB12 CDE."}
    assert set(tables[2].read(["caption"])["caption"].to_pylist()) == {"A car with the plate."}
    monkeypatch.setattr(TemplateSettings, "version", 2)
    tables.append(make_image_captions(samples, TemplateSettings()))
    assert len({table.manifest.key for table in tables}) == 4


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (["a", "b"], "gave 2 texts for 3 samples"),
        (["a", None, "b"], "sample test/000021_cam1_0_01: the caption is None, expected a str"),
    ],
)
def test_what_is_no_text_of_each_sample_is_refused(
    samples: Table, examples: Path, monkeypatch: pytest.MonkeyPatch, captions: Any, message: str
) -> None:
    from template_captioner import TemplateCaptioner, TemplateSettings  # noqa: PLC0415

    monkeypatch.setattr(TemplateCaptioner, "caption", lambda self, triplets: captions)
    with pytest.raises(CatalogError, match=f"^captioner template_captioner:TemplateSettings,? {message}"):
        make_image_captions(samples, TemplateSettings())
