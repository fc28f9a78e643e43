"""`masks` and `sheet` as they are called."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_catalog.__main__ import main
from data_catalog.masks.segmenters.sam2_checkpoint import build_sam2_model
from tests.data_catalog.folders import sample_ids
from tests.data_catalog.masks.segmenters.test_mask_files import mask_path, write_masks


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    status = main([*map(str, arguments), "--json"])
    output = capsys.readouterr()
    assert status == 0, output.err
    return json.loads(output.out)


def read_text(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command prints for a person."""
    status = main(list(map(str, arguments)))
    output = capsys.readouterr()
    assert status == 0, output.err
    return output.out


def read_error(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(list(map(str, arguments))) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err.strip().splitlines()[-1]


@pytest.fixture
def masks(built: Any) -> tuple[str, ...]:
    return ("masks", "--catalog", str(built.catalog), "--dataset", "small")


def test_overlap_is_printed_by_camera_with_its_light(
    built: Any, masks: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*masks, "--true-masks", built.source / "true_masks", "--quality-gate", "1")
    statistics = run(capsys, *arguments)
    assert statistics["reused"]
    brightness = statistics["brightness_by_camera"]
    assert brightness.keys() == {"0", "1"}
    # Noise from 20 to 90, and 120 more on a third of it.
    assert all(0.25 < value < 0.45 for value in brightness.values())
    assert statistics["quality_gate"]["samples"] == sample_ids()
    text = read_text(capsys, *arguments)
    for camera, iou in statistics["mean_iou_by_camera"].items():
        # The number in the files' names.
        number, light = int(camera) + 1, f"{brightness[camera]:.2f} (day)"
        expected = f"{number}  IoU {iou:.4f}  RGB brightness {light}  RGB+NIR+TIR 14"
        assert expected in text
    assert "and 18 more" in text
    assert sample_ids()[-1] not in text


@pytest.mark.usefixtures("one_thread")
def test_published_size_works_from_the_command_line(
    masks: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # SAM2 in actors is tested with a smaller model.
    torch.manual_seed(0)
    checkpoint = tmp_path / "sam2_hiera_tiny.pt"
    torch.save({"model": build_sam2_model("sam2_hiera_t", 1024).state_dict()}, checkpoint)
    sam2 = (*masks, "--segmenter", "sam2", "--checkpoint", checkpoint, "--image-size", "64")
    assert "does not fit --model sam2.1_hiera_t: weights" in read_error(
        capsys, *sam2, "--model", "sam2.1_hiera_t"
    )
    found = run(capsys, *sam2, "--model", "sam2_hiera_t", "--prompt", "both", "--quality-gate", "0.5")
    assert found["rows"] == 28
    assert sum(sum(counts.values()) for counts in found["sources_by_camera"].values()) == 28
    gate = found["quality_gate"]
    assert (gate["score"], gate["count"]) == (0.5, len(gate["samples"]))
    lowest = found["lowest_scores"]
    assert [entry["score"] for entry in lowest] == sorted(entry["score"] for entry in lowest)
    assert set(gate["samples"]) >= {entry["sample_id"] for entry in lowest if entry["score"] < 0.5}


def test_files_are_imported_from_the_command_line(
    masks: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_masks(tmp_path)
    gone = sample_ids()[4]
    mask_path(tmp_path, gone).unlink()
    files = (*masks, "--segmenter", "files", "--masks", tmp_path)
    assert "pass --allow-missing" in read_error(capsys, *files)
    found = run(capsys, *files, "--allow-missing", "--quality-gate", "0.5")
    assert (found["missing"], found["coverage"]) == (1, pytest.approx(27 / 28))
    assert found["quality_gate"]["samples"] == [gone]
    assert found["sources_by_camera"]["0"].keys() | found["sources_by_camera"]["1"].keys() == {
        "file",
        "missing",
    }
    assert "is not there" in read_text(capsys, *files, "--allow-missing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--segmenter", "sam2"), "--segmenter sam2 needs --checkpoint FILE"),
        (("--segmenter", "sam2", "--checkpoint", "no.pt"), "no.pt is not there or is not a file"),
        (
            ("--segmenter", "sam2", "--checkpoint", "no.pt", "--image-size", "100"),
            "image_size: Input should be",
        ),
        (
            ("--checkpoint", "no.pt"),
            "--checkpoint is an option of --segmenter sam2, not of grabcut; leave it out",
        ),
        (
            ("--segmenter", "sam2", "--allow-missing"),
            "--allow-missing is an option of --segmenter files, not of sam2",
        ),
        (("--segmenter", "files", "--masks", "nowhere"), "nowhere is not a folder on this machine"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    masks: tuple[str, ...], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in read_error(capsys, *masks, *arguments)


@pytest.mark.parametrize("score", ["1.5", "-1", "good", "nan"])
def test_quality_gate_is_a_score(
    masks: tuple[str, ...], capsys: pytest.CaptureFixture[str], score: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*masks, f"--quality-gate={score}"])
    assert stop.value.code == 2
    assert "is not a score; write a number from 0 to 1" in capsys.readouterr().err


def test_sheet_shows_the_newest_tables(
    built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = ("sheet", "small", "--catalog", built.catalog, "--out", tmp_path / "new" / "sheet.png")
    key = ("--masks-key", built.masks.manifest.key, "--patch-size", "8")
    found = run(capsys, *sheet, *key, "--split", "val", "--count", "3", "--seed", "5")
    assert len(found["samples"]) == 3
    assert all(name.startswith("val/") for name in found["samples"])
    assert (found["masks"], found["captions"]) == (built.masks.manifest.key, built.captions.manifest.key)
    with Image.open(found["out"]) as image:
        assert (image.height, image.width) == (found["height"], found["width"])
    ids = sample_ids()[3:5]
    assert run(capsys, *sheet, *key, "--ids", *ids)["samples"] == ids
    scores = built.masks.read(["score"])["score"].to_numpy()
    worst = run(capsys, *sheet, *key, "--lowest-score", "1")["samples"]
    assert worst == [sample_ids()[int(np.argmin(scores))]]
    assert "give one of them" in read_error(capsys, *sheet, "--lowest-score", "1", "--count", "2")
    assert "has no masks table" in read_error(capsys, *sheet, "--masks-key", "none")
    assert "data set 'big' is not in catalog" in read_error(
        capsys, "sheet", "big", "--catalog", built.catalog, "--out", tmp_path / "a.png"
    )


def test_help_of_sheet_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sheet", "--help"])
    assert stop.value.code == 0
    assert "example:\n  python -m data_catalog sheet " in capsys.readouterr().out
