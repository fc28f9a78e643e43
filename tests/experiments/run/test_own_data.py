"""A data set of one's own, from a manifest to a trained model: without cameras, and with images missing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_catalog.captions.imported_captions import import_captions
from data_catalog.captions.llm.prompts import ROW_COLUMNS, prompt_images
from data_catalog.captions.text_feature_table import make_text_features
from data_catalog.checks.image_hashes import make_image_hashes
from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.samples.images import decode_image
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from data_catalog.views.training_view import ViewSettings, make_view
from data_catalog.views.view_reader import View, open_view
from experiments import evaluate
from experiments.evaluating import evaluation_target
from experiments.recipes import resolve
from experiments.run import evaluation, lifecycle, preflight
from experiments.run.run_options import RunOptions
from experiments.run.workers.batch_input import BatchInput
from stmi import load as load_trained
from stmi.clip.loading import load_clip
from stmi.modality import Modality
from stmi.model import STMI
from tests.data_catalog.folders import write_data_set
from tests.data_catalog.manifests import Rows, rows_of, write_jsonl
from tests.experiments.run.test_untrained_cameras import SETTINGS

TEXT_SETTINGS = [setting for setting in SETTINGS if setting != "model.text=off"]
MISSING = {"train": {"NIR": 1, "TIR": 2}, "test": {"NIR": 1, "RGB": 2}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_data_set(tmp_path / "source")
    return tmp_path / "source"


def own_rows(source: Path) -> Rows:
    """Rows without cameras, of which some lack images as MISSING says."""
    rows = [row for row in rows_of(source, with_cameras=False) if row["split"] != "val"]
    for split, counts in MISSING.items():
        numbers = iter([row for row in rows if row["split"] == split])
        for modality, count in counts.items():
            for _ in range(count):
                del next(numbers)[modality.lower()]
    return rows


def ingested(source: Path, rows: Rows, name: str = "small", **settings: bool) -> Table:
    path = write_jsonl(source / f"{name}.jsonl", rows)
    return ingest(path, source.parent / "catalog", name, IngestSettings(format="manifest", **settings))


def views(samples: Table, clip: Path) -> dict[str, View]:
    text_features = make_text_features(import_captions(samples), str(clip))
    masks = import_masks(samples)
    return {
        split: open_view(
            make_view(samples, masks, text_features, ViewSettings(split=split, height=32, width=16))
        )
        for split in ("train", "test")
    }


def test_without_the_option_a_sample_that_lacks_an_image_is_left_out(source: Path) -> None:
    rows = own_rows(source)
    samples = ingested(source, rows)
    assert len(samples) == len(rows) - 6
    reasons = [fault["reason"] for fault in samples.statistics["quarantined"]]
    assert sorted(set(reasons)) == [
        f"has no {name} image; with --allow-missing zeros take its place" for name in ("NIR", "RGB", "TIR")
    ]
    allowed = ingested(source, rows, allow_missing=True)
    assert allowed.manifest.key != samples.manifest.key
    assert (len(allowed), allowed.statistics["quarantined"]) == (len(rows), [])
    assert allowed.statistics["missing"] == MISSING
    for row, found in zip(rows, allowed.read().to_pylist(), strict=True):
        assert {name for name in ("rgb", "nir", "tir") if found[name] is not None} == row.keys() & {
            "rgb",
            "nir",
            "tir",
        }


def test_published_layouts_may_lack_images_too_and_keep_their_keys(source: Path) -> None:
    catalog = source.parent / "catalog"
    whole = ingest(source, catalog, "a", IngestSettings())
    assert ingest(source, catalog, "a", IngestSettings(allow_missing=False)).reused
    allowed = ingest(source, catalog, "a", IngestSettings(allow_missing=True))
    assert "missing" not in allowed.statistics
    assert [shard.content for shard in allowed.manifest.shards] == [s.content for s in whole.manifest.shards]
    next((source / "RGBNT201" / "test" / "NI").iterdir()).unlink()
    lacking = ingest(source, catalog, "a", IngestSettings(allow_missing=True))
    assert lacking.statistics["missing"] == {"test": {"NIR": 1}}


def test_missing_images_are_those_of_an_evaluation_without_the_modality(source: Path, clip: Path) -> None:
    rows = rows_of(source)
    whole = views(ingested(source, rows, "whole"), clip)["test"]
    lacking_rows = [{k: v for k, v in r.items() if k != "nir" or r["split"] != "test"} for r in rows]
    lacking = views(ingested(source, lacking_rows, "lacking", allow_missing=True), clip)
    config = resolve("demo", [*TEXT_SETTINGS, f"model.clip.source={clip}"])
    model = STMI(config.model, load_clip(str(clip)), identities=3, cameras=2, seed=0)
    expected = evaluation.embed(model, whole, 3, False, missing=[Modality.NIR]).features
    found = evaluation.embed(model, lacking["test"], 3, False).features
    other = evaluation.embed(model, whole, 3, False).features
    for name, values in found.items():
        assert np.array_equal(values, expected[name]), name
    assert not np.allclose(found["U"], other["U"], atol=1e-3)
    # The training split lacks none, and says so.
    assert not lacking["train"].missing.any()
    assert whole.missing is None


def test_a_training_step_has_zeros_for_missing_images_alone(source: Path, clip: Path) -> None:
    view = views(ingested(source, own_rows(source), allow_missing=True), clip)["train"]
    config = resolve("demo", [*TEXT_SETTINGS, "augment.erase=1", f"model.clip.source={clip}"])
    model = STMI(config.model, load_clip(str(clip)), identities=3, cameras=view.cameras, seed=0)
    labels = np.unique(view.identity, return_inverse=True)[1]
    rows = np.array([int(row) for row in np.argsort(~view.missing.any(axis=1), kind="stable")[:4]])
    [made] = BatchInput(config, model, view, labels, None, slice(0, 4)).make(rows[None], 0, 0)
    is_zero = (made.batch.images == 0).flatten(2).all(dim=2).numpy()
    assert np.array_equal(is_zero, view.missing[rows])
    assert is_zero.sum() == 3


def test_a_model_is_trained_and_every_result_says_what_was_missing(source: Path, clip: Path) -> None:
    rows = own_rows(source)
    samples = ingested(source, rows, allow_missing=True)
    made = views(samples, clip)
    catalog = str(source.parent / "catalog")
    config = resolve("demo", [*TEXT_SETTINGS, f"model.clip.source={clip}"])
    options = RunOptions.resolve(source.parent / "runs", catalog).without_tracking()
    tables = preflight.preflight(
        config, options, lambda check: check(config), lambda: None, lambda tables: False
    )
    result = lifecycle.run(config, tables, options, threads=1)
    said = [
        "split 'test': the junk rule is none, so of a query's identity only the query itself is left out",
        "split 'test': samples lack 3 images (RGB 2, NIR 1); zeros take their place",
        "split 'train': samples lack 3 images (NIR 1, TIR 2); zeros take their place",
    ]
    for text in said:
        assert any(text in note for note in result.notes), text
    target = evaluation_target.load_run(result.folder)
    evaluated = evaluate.evaluate(target, [()], workers=0)
    assert evaluated.junk == "none"
    assert any(said[0] in note for note in evaluated.notes)
    assert any("split 'test': samples lack 3 images (RGB 2, NIR 1)" in note for note in evaluated.notes)
    assert evaluated.settings[0].metrics["U"].mean_average_precision == pytest.approx(
        result.metrics["U"].mean_average_precision, abs=1e-6
    )
    # The same features as from the files, None where there is none.
    run = load_trained(result.folder, device="cpu")
    test = [row for row in rows if row["split"] == "test"]
    images = [
        [str(source / row[name]) if name in row else None for row in test] for name in ("rgb", "nir", "tir")
    ]
    masks, captions = [str(source / row["mask"]) for row in test], [row["caption"] for row in test]
    found = run.embed(*images, mask=masks, caption=captions)
    with torch.no_grad():
        features = evaluation.embed(target.model, made["test"], 3, target.autocast).features
    assert np.allclose(found["U"], features["U"], atol=1e-4)


def test_steps_that_look_at_images_take_samples_that_lack_some(source: Path) -> None:
    samples = ingested(source, own_rows(source), allow_missing=True)
    assert len(make_image_hashes(samples)) == len(samples)
    assert len(make_masks(samples, GrabCutSettings())) == len(samples)
    for row in samples.read(ROW_COLUMNS).to_pylist():
        images = prompt_images(row)
        there = [name for name in ("RGB", "NIR", "TIR") if row[name.lower()] is not None]
        assert list(images) == ["JOINT", *there]
        shown = decode_image(images["JOINT"].jpeg())
        assert shown.shape == (32, 3 * 16, 3)
        for number, name in enumerate(("RGB", "NIR", "TIR")):
            part = shown[:, number * 16 : (number + 1) * 16]
            assert (part.max() < 60) == (name not in there)
