"""The synthetic data set: the same bytes everywhere, true masks, plausible predictions, safe writing."""

import hashlib
import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data_catalog.captions.predicted_attributes import UNKNOWN
from data_catalog.masks.mask_table import make_masks
from data_catalog.masks.segmenters.grabcut import GrabCutSettings
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.samples.ingestion import ingest
from data_catalog.synthetic import (
    SOURCES,
    SPLITS,
    SynthesisConflictError,
    SyntheticSettings,
    attribute_values,
    find_twin,
    predict_attributes,
    render_sample,
    synthesize,
    true_attributes,
)
from data_catalog.synthetic.canvas import NIR, TIR
from data_catalog.synthetic.identities import make_identity
from data_catalog.synthetic.perturbed_masks import perturb
from data_catalog.synthetic.rendering import compose

DAY, NIGHT = 0, 3
FEW = {"train_identities": 3, "validation_identities": 1, "test_identities": 2, "cameras": 4, "shots": 2}
ALONE = {"clutter": 0, "bystander": 0, "bystander_in_front": 0, "occlusion": 0}
EASY = ALONE | {"shift": 0, "person_height": (0.85, 0.9)}


def make_settings(**changes) -> SyntheticSettings:
    return SyntheticSettings(**(FEW | changes))


def digest_of_samples(settings: SyntheticSettings) -> str:
    digest = hashlib.sha256()
    for identity in (1, 2, 117):
        for camera in range(4):
            sample = render_sample(settings, identity, camera, 1)
            digest.update(sample.pixels.tobytes() + sample.mask.tobytes())
    return digest.hexdigest()


def digest_of_files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "persons"
    synthesize(make_settings(), out)
    return out


@pytest.mark.parametrize(
    ("changes", "digest"),
    [
        ({}, "8e779d2c1bdea9bf9136aa2d6d76584432010af3affd2fea234b3f39e8b003fe"),
        (
            {"kind": "vehicle", "height": 32, "width": 64, "seed": 7},
            "e210939be869ce78ce576bde2d50ad910b00d037d46c2b4c2728b88d2d511079",
        ),
    ],
)
def test_pixels_are_the_same_on_every_machine(changes, digest):
    """Pinned: whoever changes the rendering changes RENDERING_VERSION and these digests together."""
    assert digest_of_samples(SyntheticSettings(**changes)) == digest


def test_a_sample_does_not_depend_on_what_was_rendered_before():
    first = render_sample(make_settings(), 5, 2, 1)
    render_sample(make_settings(seed=1), 9, 0, 0)
    again = render_sample(make_settings(), 5, 2, 1)
    np.testing.assert_array_equal(first.pixels, again.pixels)


def test_another_seed_gives_other_people_in_other_scenes():
    here, there = make_settings(**EASY), make_settings(**EASY, seed=1)
    assert [true_attributes(here, i) for i in range(1, 6)] != [true_attributes(there, i) for i in range(1, 6)]
    # The corner of an uncluttered frame shows the scene alone.
    corners = [render_sample(settings, 1, DAY, 0).pixels[0, :8, :4] for settings in (here, there)]
    assert not np.array_equal(*corners)


@pytest.mark.parametrize("change", [{"camera": 1}, {"shot": 1}, {"identity": 2}])
def test_every_counter_changes_the_sample(change):
    counters = {"identity": 1, "camera": 0, "shot": 0}
    sample, other = (render_sample(make_settings(), **which) for which in (counters, counters | change))
    assert not np.array_equal(sample.pixels, other.pixels)


@pytest.mark.parametrize(
    ("kind", "height", "width"), [("person", 256, 128), ("vehicle", 128, 256), ("person", 31, 17)]
)
def test_images_of_any_size_and_kind_have_the_documented_shapes(kind, height, width):
    sample = render_sample(make_settings(kind=kind, height=height, width=width), 1, DAY, 0)
    assert sample.pixels.shape == (3, height, width, 3)
    assert sample.pixels.dtype == sample.mask.dtype == np.uint8
    assert sample.mask.shape == (height, width)
    assert set(np.unique(sample.mask)) == {0, 1}
    assert 0.05 < sample.mask.mean() < 0.8


def test_infrared_images_are_grey():
    pixels = render_sample(make_settings(), 1, DAY, 0).pixels
    for modality in (1, 2):
        assert (pixels[modality] == pixels[modality, ..., :1]).all()
    assert (pixels[0] != pixels[0, ..., :1]).any()


def test_rgb_is_dark_at_night_and_thermal_infrared_is_not():
    settings = make_settings(**EASY)
    for identity in range(1, 6):
        day, night = (render_sample(settings, identity, camera, 0) for camera in (DAY, NIGHT))
        assert night.pixels[0].mean() < 16
        assert day.pixels[0].mean() > 40
        on_target = [sample.pixels[2][sample.mask > 0].mean() for sample in (day, night)]
        assert on_target[1] > 0.7 * on_target[0]
        assert night.pixels[1][night.mask > 0].mean() > 40


@pytest.mark.parametrize("kind", ["person", "vehicle"])
def test_the_mask_is_where_the_target_is_visible(kind):
    """Repainting the target changes the picture inside the mask and nowhere else."""
    settings = make_settings(kind=kind, occlusion=1.0, bystander=1.0, bystander_in_front=1.0)
    for identity in range(1, 9):
        mask = render_sample(settings, identity, DAY, 0).mask
        composition = compose(settings, identity, DAY, 0)
        before = composition.canvas.colours()
        for material in range(composition.first, composition.last):
            composition.canvas.table[material] = (255, 0, 255, 255, 0)
        changed = (composition.canvas.colours() != before).any(axis=-1)
        quarters = changed.reshape(settings.height, 2, settings.width, 2).sum(axis=(1, 3))
        np.testing.assert_array_equal(mask, quarters >= 2)


@pytest.mark.parametrize(("dead", "modality"), [("RGB", 0), ("NIR", 1), ("TIR", 2)])
def test_a_dead_image_is_black_at_its_cameras_and_nothing_is_read_from_it(dead, modality):
    settings = make_settings(dead=("none", dead))
    for camera in range(4):
        sample = render_sample(settings, 1, camera, 0)
        whole = render_sample(make_settings(), 1, camera, 0)
        is_dead = camera % 2 == 1
        assert sample.pixels[modality].any() != is_dead
        others = [other for other in range(3) if other != modality]
        np.testing.assert_array_equal(sample.pixels[others], whole.pixels[others])
        np.testing.assert_array_equal(sample.mask, whole.mask)
        read = predict_attributes(settings, sample, 1, camera, 0)
        if is_dead:
            assert {prediction["value"] for prediction in read[dead].values()} == {UNKNOWN}
        else:
            assert read == predict_attributes(make_settings(), whole, 1, camera, 0)


@pytest.mark.parametrize("dead", ["RGB", "NIR", "TIR"])
def test_all_images_together_show_what_one_of_the_living_shows(dead):
    """By day RGB shows everything and NIR and TIR all but colours."""
    settings = make_settings(dead=(dead,), occlusion=0.0, readings_dropped=0.0, readings_wrong=0.0)
    for identity in range(1, 21):
        sample = render_sample(settings, identity, DAY, 0)
        read = predict_attributes(settings, sample, identity, DAY, 0)["JOINT"]
        for name in sample.visible:
            expected = UNKNOWN if dead == "RGB" and "colour" in name else sample.attributes[name]
            assert read[name]["value"] == expected, name


def test_perturbed_masks_are_the_true_ones_moved_by_what_is_documented():
    mask = np.zeros((64, 32), dtype=np.uint8)
    mask[20:40, 10:20] = 1
    rows, columns = np.nonzero(perturb(mask, "eroded"))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (22, 37, 12, 17)
    rows, columns = np.nonzero(perturb(mask, "dilated"))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 41, 8, 21)
    np.testing.assert_array_equal(perturb(mask, "shifted"), np.roll(mask, 4, axis=1))
    np.testing.assert_array_equal(perturb(mask, "exact"), mask)
    # What leaves the image on one side does not come back on the other, and outside there is nothing.
    assert perturb(np.ones((64, 32), np.uint8), "shifted").sum() == 64 * 28
    assert perturb(np.ones((64, 32), np.uint8), "eroded").sum() == 60 * 28


@pytest.mark.parametrize(("wrong", "reused"), [(0.15, True), (0.5, False)])
def test_data_set_of_an_older_version_notes_its_artifacts_once_asked_for_again(wrong, reused, tmp_path):
    settings = make_settings(readings_wrong=wrong)
    synthesize(settings, tmp_path / "persons")
    path = tmp_path / "persons/synthesis.json"
    now = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in now.items() if name != "artifacts"}))
    assert synthesize(settings, tmp_path / "persons").reused == reused
    assert json.loads(path.read_text()).get("artifacts", {}) == settings.artifacts()


@pytest.mark.parametrize("how", ["exact", "shifted"])
def test_mask_files_are_written_and_imported(how, tmp_path):
    settings = make_settings(masks=how)
    synthesize(settings, tmp_path / "persons")
    samples = ingest(tmp_path / "persons", tmp_path / "catalog", "persons")
    masks = import_masks(samples, true_masks=tmp_path / "persons/true_masks")
    assert (masks.statistics["mean_iou"] == 1) == (how == "exact")
    assert masks.statistics["mean_iou"] > 0.3


def test_a_setting_that_older_versions_lacked_changes_no_name_at_its_default():
    assert not {"masks", "dead"} & make_settings().deciding().keys()
    assert make_settings(masks="exact", dead=("RGB",)).deciding()["masks"] == "exact"
    assert SyntheticSettings(**make_settings(masks="exact").deciding()) == make_settings(masks="exact")


def test_an_occluder_hides_a_part_of_the_mask():
    free, hidden = (make_settings(**(EASY | {"occlusion": share})) for share in (0.0, 1.0))
    areas = [[render_sample(s, i, DAY, 0).mask.sum() for i in range(1, 9)] for s in (free, hidden)]
    assert all(less < full for full, less in zip(*areas, strict=True))


def test_an_identity_number_below_one_is_refused():
    with pytest.raises(ValueError, match="identity is 0: expected a number from 1 up"):
        render_sample(make_settings(), 0, 0, 0)


@pytest.mark.parametrize(("kind", "count"), [("person", 13), ("vehicle", 6)])
def test_every_identity_has_every_attribute_of_its_kind(kind, count):
    vocabulary = attribute_values(kind)
    assert len(vocabulary) == count
    for identity in (1, 2, 1_000_000):
        truth = true_attributes(make_settings(kind=kind), identity)
        assert list(truth) == list(vocabulary)
        assert all(value in vocabulary[name] for name, value in truth.items())


@pytest.mark.parametrize("kind", ["person", "vehicle"])
def test_twins_look_the_same_in_rgb_and_differ_in_exactly_one_other_spectrum(kind):
    settings = make_settings(kind=kind, look_alikes=1.0)
    differing = set()
    for identity in range(1, 41, 2):
        assert (find_twin(settings, identity), find_twin(settings, identity + 1)) == (identity + 1, identity)
        one, other = (make_identity(settings, number) for number in (identity, identity + 1))
        assert one.attributes == other.attributes
        assert (one.build, one.pattern) == (other.build, other.pattern)
        channels = {
            at
            for part in one.materials
            for at in range(5)
            if one.materials[part][at] != other.materials[part][at]
        }
        assert channels in ({NIR}, {TIR})
        assert {patch.channel for patch in set(one.patches) ^ set(other.patches)} <= channels
        differing |= channels
    assert differing == {NIR, TIR}


def test_the_share_of_look_alikes_is_as_set():
    none, some = make_settings(look_alikes=0.0), make_settings(look_alikes=0.6)
    assert all(find_twin(none, identity) is None for identity in range(1, 50))
    assert 0.5 < np.mean([find_twin(some, identity) is not None for identity in range(1, 1001)]) < 0.7


@pytest.mark.parametrize("train", [3, 4])
def test_splits_share_neither_identities_nor_twins(train):
    settings = make_settings(train_identities=train, look_alikes=1.0)
    numbers = [set(settings.identities(split)) for split in SPLITS]
    assert [len(each) for each in numbers] == [train, 1, 2]
    reach = [each | {find_twin(settings, identity) for identity in each} for each in numbers]
    for one, other in combinations(reach, 2):
        assert not one & other


def predict(settings: SyntheticSettings, identity: int, camera: int, shot: int):
    sample = render_sample(settings, identity, camera, shot)
    return sample, predict_attributes(settings, sample, identity, camera, shot)


@pytest.mark.parametrize("kind", ["person", "vehicle"])
def test_every_source_predicts_every_attribute_as_a_value_or_unknown(kind):
    vocabulary = attribute_values(kind)
    for camera in range(4):
        _, predictions = predict(make_settings(kind=kind), 1, camera, 0)
        assert tuple(predictions) == SOURCES
        for read in predictions.values():
            assert list(read) == list(vocabulary)
            for name, reading in read.items():
                assert reading["value"] in (*vocabulary[name], UNKNOWN)
                assert 0.0 <= reading["confidence"] <= 1.0


def test_invisible_attributes_are_unknown_with_low_confidence():
    settings = make_settings(readings_dropped=0.0, readings_wrong=0.0, occlusion=0.6)
    blind, hidden = 0, 0
    for identity in range(1, 13):
        for camera in (DAY, NIGHT):
            sample, predictions = predict(settings, identity, camera, 0)
            for source, read in predictions.items():
                for name, reading in read.items():
                    by_day = source in ("RGB", "JOINT") and camera == DAY
                    if (source == "RGB" and camera == NIGHT) or ("colour" in name and not by_day):
                        blind += 1
                    elif name not in sample.visible:
                        hidden += 1
                    else:
                        assert reading["value"] == sample.attributes[name]
                        continue
                    assert reading["value"] == UNKNOWN
                    assert reading["confidence"] < 0.3
    assert blind
    assert hidden


def test_shoes_behind_a_low_wall_are_not_visible():
    settings = make_settings(**(EASY | {"occlusion": 1.0}))
    samples = [render_sample(settings, identity, DAY, shot) for identity in range(1, 11) for shot in range(2)]
    without = [sample for sample in samples if "shoes" not in sample.visible]
    assert 0 < len(without) < len(samples)
    for sample in without:
        assert not sample.mask[-settings.height // 12 :].any()


def test_wrong_predictions_are_the_same_in_most_images_of_an_identity():
    settings = make_settings(shots=12, readings_dropped=0.2, readings_wrong=0.3)
    agreeing = []
    for identity in range(1, 9):
        values = [
            predict(settings, identity, DAY, shot)[1]["RGB"]["upper_colour"]["value"] for shot in range(12)
        ]
        agreeing.append(max(values.count(value) for value in values) / len(values))
    # If they were independent for every image, only about half of them would agree.
    assert np.mean(agreeing) > 0.8


def _tally(settings: SyntheticSettings, identities: range) -> dict[str, list[tuple[bool, bool, float]]]:
    """For every source (known, right, confidence) of the visible attributes."""
    tally: dict[str, list[tuple[bool, bool, float]]] = {source: [] for source in SOURCES}
    for identity in identities:
        sample, predictions = predict(settings, identity, DAY, 0)
        for source, read in predictions.items():
            for name in sample.visible:
                if "colour" in name and source in ("NIR", "TIR"):
                    continue
                value, confidence = read[name]["value"], read[name]["confidence"]
                tally[source].append((value != UNKNOWN, value == sample.attributes[name], confidence))
    return tally


def test_errors_are_as_frequent_as_set_and_joint_predictions_are_the_best():
    tally = _tally(make_settings(), range(1, 121))
    right = {source: np.mean([entry[1] for entry in entries]) for source, entries in tally.items()}
    assert right["RGB"] == pytest.approx(1 - 0.4 - 0.15, abs=0.05)
    assert max(right["RGB"], right["NIR"], right["TIR"]) < right["JOINT"] < 0.75
    confidence = {
        was_right: [entry[2] for entry in tally["RGB"] if entry[0] and entry[1] == was_right]
        for was_right in (True, False)
    }
    assert np.mean(confidence[True]) > np.mean(confidence[False]) + 0.1
    assert min(confidence[True]) < max(confidence[False])


def test_the_same_settings_write_the_same_bytes(written, tmp_path):
    synthesize(make_settings(), tmp_path / "again")
    assert digest_of_files(written) == digest_of_files(tmp_path / "again")


def test_another_machine_that_renders_the_same_files_finds_the_tables_of_the_first(written, tmp_path):
    synthesize(make_settings(), tmp_path / "again")
    made = []
    for rendered in (written, tmp_path / "again"):
        samples = ingest(rendered / "RGBNT201", tmp_path / "catalog", "people")
        masks = make_masks(samples, GrabCutSettings(), true_masks=rendered / "true_masks")
        made.append((samples, masks))
    assert [table.reused for table in made[0]] == [False, False]
    assert [table.reused for table in made[1]] == [True, True]
    assert "mean_iou" in made[1][1].statistics


def test_files_are_in_the_rgbnt201_format(written):
    name_format = re.compile(r"\d{6}_cam[1-9]_0_\d{2}\.jpg")
    expected = {"train_171": (3, "train"), "val": (1, "val"), "test": (2, "test")}
    for folder, (identities, split) in expected.items():
        listings = [
            sorted(path.name for path in (written / "RGBNT201" / folder / modality).iterdir())
            for modality in ("RGB", "NI", "TI")
        ]
        assert listings[0] == listings[1] == listings[2]
        assert len(listings[0]) == identities * 4 * 2
        assert all(name_format.fullmatch(name) for name in listings[0])
        assert {int(name[:6]) for name in listings[0]} == set(make_settings().identities(split))
        masks = sorted(path.name for path in (written / "true_masks" / folder).iterdir())
        assert masks == [name.replace(".jpg", ".png") for name in listings[0]]
        lines = (written / "readings" / f"{folder}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["item"] for line in lines] == listings[0]


def test_files_hold_the_sample_that_is_rendered_in_memory(written):
    sample = render_sample(make_settings(), 2, 1, 1)
    name = "000002_cam2_0_01"
    for pixels, modality in zip(sample.pixels, ("RGB", "NI", "TI"), strict=True):
        image = np.asarray(Image.open(written / "RGBNT201" / "train_171" / modality / f"{name}.jpg"))
        assert image.shape == pixels.shape
        assert np.abs(image.astype(int) - pixels).mean() < 6
    mask = np.asarray(Image.open(written / "true_masks" / "train_171" / f"{name}.png"))
    np.testing.assert_array_equal(mask, sample.mask * 255)


def test_progress_counts_every_sample(tmp_path):
    seen = []
    report = synthesize(
        make_settings(kind="vehicle"), tmp_path / "out", lambda done, total: seen.append((done, total))
    )
    assert seen == [(count, 48) for count in range(1, 49)]
    assert report.samples == {"train": 24, "val": 8, "test": 16}
    assert report.identities == {"train": 3, "val": 1, "test": 2}
    assert not report.reused


def test_a_complete_data_set_is_reused(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    report = synthesize(
        make_settings(), written, progress=lambda done, total: pytest.fail("rendered a sample")
    )
    assert report.reused
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused(written):
    with pytest.raises(SynthesisConflictError, match=r"seed is 0 there and 5 here.*Choose another folder"):
        synthesize(make_settings(seed=5), written)


def test_a_folder_with_foreign_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SynthesisConflictError, match=r"thesis\.txt"):
        synthesize(make_settings(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_synthesis_is_redone(written, tmp_path):
    class PowerCutError(Exception):
        pass

    def fail_in_the_middle(done: int, total: int) -> None:
        if done == total // 2:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        synthesize(make_settings(), tmp_path, fail_in_the_middle)
    assert not (tmp_path / "synthesis.json").exists()
    with pytest.raises(SynthesisConflictError):
        synthesize(make_settings(seed=5), tmp_path)
    report = synthesize(make_settings(), tmp_path)
    assert not report.reused
    assert digest_of_files(tmp_path) == digest_of_files(written)


def test_manifest_holds_settings_attribute_values_and_counts(written):
    manifest = json.loads((written / "synthesis.json").read_text(encoding="utf-8"))
    assert SyntheticSettings(**manifest["settings"]) == make_settings()
    assert manifest["attributes"] == {
        name: list(values) for name, values in attribute_values("person").items()
    }
    assert manifest["samples"] == {"train_171": 24, "val": 8, "test": 16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"person_height": (0.9, 0.7)}, "expected \\(smallest, largest\\)"),
        ({"readings_dropped": 0.7, "readings_wrong": 0.5}, "lower one until the sum is at most 1"),
        ({"train_identities": 999_999}, "a file name holds six digits"),
        ({"cameras": 10}, "less than or equal to 9"),
        ({"darkness": ()}, "darkness"),
        ({"darkness": (0.0, 1.5)}, "less than or equal to 1"),
        ({"kind": "ship"}, "'person' or 'vehicle'"),
        ({"cluter": 1.0}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_settings_are_refused_with_a_reason(changes, message):
    with pytest.raises(ValidationError, match=message):
        SyntheticSettings(**changes)
