"""The example of a segmenter: from the command line with actors; its keys and faults in this process."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_catalog.__main__ import main
from data_catalog.errors import CatalogError
from data_catalog.masks.mask_table import make_masks
from data_catalog.samples.images import decode_mask
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Table, find_table
from tests.data_catalog.folders import image_path
from tests.examples.command_line import EXAMPLES, call, read_json

WARM = ("--segmenter", "warm_segmenter:WarmSettings")
MASKS = ("masks", "--catalog", "catalog", "--json")


@pytest.mark.slow
def test_own_segmenter_works_in_actors_of_ray(samples: Table, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "warm_segmenter.py", tmp_path)
    # The first shard is made by the process itself, the others by actors, however few they are.
    done = call(
        *("-m", "data_catalog", *MASKS, *WARM, "--set", "level=0.4", "--true-masks", "source/true_masks"),
        folder=tmp_path,
        DATA_CATALOG_LOCAL_SECONDS="0",
    )
    found = read_json(done)
    # The figure is 120 grey levels brighter than the noise around it.
    assert (found["rows"], found["reused"]) == (28, False)
    assert found["mean_iou"] > 0.98
    assert found["sources_by_camera"] == {"0": {"TIR": 14}, "1": {"TIR": 14}}
    table = find_table(tmp_path / "catalog", "small", TableKind.MASKS)
    assert table.manifest.settings == {"segmenter": WARM[1], "version": 1, "level": 0.4}
    for row in table.read().to_pylist():
        with Image.open(image_path(tmp_path / "source", row["sample_id"], 2)) as image:
            heat = np.asarray(image).astype(float).mean(axis=2)
        expected = heat > 0.6 * heat.min() + 0.4 * heat.max()
        assert (decode_mask(row["mask"]) == expected).all()


def test_settings_and_version_make_a_new_table(
    samples: Table, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warm_segmenter import WarmSettings  # noqa: PLC0415 - the fixture makes it importable

    first = make_masks(samples, WarmSettings())
    assert make_masks(samples, WarmSettings(level=0.5)).reused
    warmer = make_masks(samples, WarmSettings(level=0.6))
    assert not warmer.reused
    monkeypatch.setattr(WarmSettings, "version", 2)
    newer = make_masks(samples, WarmSettings())
    assert not newer.reused
    assert len({table.manifest.key for table in (first, warmer, newer)}) == 3
    assert first.manifest.settings == newer.manifest.settings | {"version": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*WARM, "--set", "level=2"), "level: Input should be less than or equal to 1 (got 2); its settings"),
        ((*WARM, "--set", "levle=0.2"), "levle: Extra inputs are not permitted"),
        ((*WARM, "--set", "level"), "--set 'level' sets nothing; write name=value"),
        ((*WARM, "--masks", "m"), "--masks is an option of --segmenter files, not of MODULE:ATTRIBUTE"),
        (("--set", "level=1"), "--set is an option of --segmenter MODULE:ATTRIBUTE, not of grabcut"),
        (
            ("--segmenter", "warm_segmenter:WarmSegmenter"),
            "expected a subclass of SegmenterSettings (data_catalog.masks.mask_table), found <class",
        ),
        (
            ("--segmenter", "data_catalog.masks.mask_table:SegmenterSettings"),
            "the class lacks the method build; define it",
        ),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_in_one_line(
    samples: Table,
    examples: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert main(["masks", "--catalog", samples.catalog, *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[1:], "gave 2 masks for 3 samples"),
        (
            lambda found: [replace(one, mask=one.mask.T) for one in found],
            "the mask is bool (16, 32), expected",
        ),
        (lambda found: [replace(one, mask=one.mask * 1.0) for one in found], "the mask is float64 (32, 16)"),
        (lambda found: [replace(one, score=np.nan) for one in found], "the score is nan, expected 0 to 1"),
    ],
)
def test_what_is_no_mask_of_its_sample_is_refused(
    samples: Table, examples: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    from warm_segmenter import WarmSegmenter, WarmSettings  # noqa: PLC0415

    segment = WarmSegmenter.segment
    monkeypatch.setattr(WarmSegmenter, "segment", lambda self, triplets: change(segment(self, triplets)))
    with pytest.raises(CatalogError, match=r"^segmenter warm_segmenter:WarmSettings") as caught:
        make_masks(samples, WarmSettings())
    assert message in str(caught.value)


def test_fault_in_a_segmenter_is_named_with_its_line(
    samples: Table, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warm_segmenter import WarmSettings  # noqa: PLC0415

    monkeypatch.setattr(WarmSettings, "build", lambda self: 1 / 0)
    with pytest.raises(
        CatalogError, match=rf"\(ZeroDivisionError: division by zero, in {__file__} line \d+\)"
    ):
        make_masks(samples, WarmSettings())
