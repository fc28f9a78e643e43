from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data_catalog.__main__ import main
from data_catalog.errors import CatalogError
from data_catalog.inspect.contact_sheet import SheetSettings, draw_sheet, make_cell, read_samples, token_grid
from data_catalog.inspect.contact_sheet_drawing import LONG_SIDE, Cell, arrange, draw_cell
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.samples.images import decode_mask
from data_catalog.storage.filesystems import absolute, open_root
from tests.data_catalog.folders import HEIGHT, WIDTH, names, sample_ids

GREEN = (0, 255, 80)


def sheet(built: Any, out: Path | str, **settings: Any) -> Any:
    return draw_sheet(
        built.samples, built.masks, built.captions, out, SheetSettings(patch_size=8, **settings)
    )


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_settings_select_the_samples(built: Any, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    test = [f"test/{name}" for name in names("test")]
    assert sheet(built, out, split="test").samples == tuple(test)
    assert sheet(built, out, identities=(2, 21)).samples == tuple(
        sample_id for sample_id in sample_ids() if sample_id.split("/")[1][:6] in ("000002", "000021")
    )
    ids = (test[3], sample_ids()[-1], test[0])
    assert sheet(built, out, ids=ids).samples == ids
    rows = built.masks.read(["sample_id", "score"]).to_pylist()
    lowest = sorted(rows, key=lambda row: row["score"])[:5]
    found = sheet(built, out, lowest_score=True, count=5)
    assert found.samples == tuple(row["sample_id"] for row in lowest)
    assert all(name.startswith("val/") for name in sheet(built, out, lowest_score=True, split="val").samples)


def test_named_samples_are_shown_in_the_given_order(built: Any, tmp_path: Path) -> None:
    ids = tuple(sample_ids()[::-1])
    assert len(ids) > SheetSettings().count
    assert sheet(built, tmp_path / "sheet.png", ids=ids).samples == ids
    with pytest.raises(ValidationError, match="at most 400"):
        SheetSettings(ids=("test/a",) * 401)


def test_options_that_contradict_each_other_are_refused(
    built: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["sheet", "small", "--catalog", str(built.catalog), "--out", str(tmp_path / "sheet.png")]
    for more, message in (
        (["--ids", "test/a", "--count", "3"], "--ids says which samples and how many; leave out --count"),
        (["--ids", "test/a", "--lowest-score", "3"], "leave out --lowest-score"),
        (["--ids", *["test/a"] * 401], "--ids names 401 samples, expected at most 400"),
    ):
        assert main([*start, *more]) == 2
        assert message in capsys.readouterr().err
    assert main([*start, "--patch-size", "8", "--ids", *sample_ids()]) == 0


def test_chosen_samples_depend_on_the_seed_alone(built: Any, tmp_path: Path) -> None:
    one = sheet(built, tmp_path / "a.png", count=6, seed=1)
    again = sheet(built, tmp_path / "b.png", count=6, seed=1)
    other = sheet(built, tmp_path / "c.png", count=6, seed=2)
    assert one.samples == again.samples != other.samples
    assert len(set(one.samples)) == 6
    assert list(one.samples) == sorted(one.samples)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert read_pixels(tmp_path / "a.png").shape == (one.height, one.width, 3)


def test_without_masks_and_captions_the_images_are_shown(built: Any, tmp_path: Path) -> None:
    found = draw_sheet(built.samples, None, None, tmp_path / "sheet.png", SheetSettings(count=2))
    assert len(found.samples) == 2
    assert not (read_pixels(tmp_path / "sheet.png") == GREEN).all(axis=2).any()
    sheet(built, tmp_path / "masked.png", count=2)
    assert (read_pixels(tmp_path / "masked.png") == GREEN).all(axis=2).sum() > 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"ids": ("test/nobody",)},
            r"sample 'test/nobody' is not in .*; expected split/name as in 'test/0000",
        ),
        ({"identities": (99,)}, "no sample of .* is of split any and of the identities 99; splits: test, tr"),
        ({"identities": (21,), "split": "train"}, "is of split train and of the identities 21"),
        ({"size": (20, 16)}, r"patch size 8 does not divide the image size 20x16 \(height x width"),
    ],
)
def test_impossible_subset_is_named(
    built: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CatalogError, match=message):
        sheet(built, tmp_path / "sheet.png", **settings)
    assert not list(tmp_path.iterdir())


def test_lowest_scores_need_masks(built: Any, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="there are no masks; run `masks` first"):
        draw_sheet(built.samples, None, None, tmp_path / "a.png", SheetSettings(lowest_score=True))
    with pytest.raises(ValidationError, match="count"):
        SheetSettings(count=0)


def test_masks_that_came_later_are_matched_by_sample(built: Any, tmp_path: Path) -> None:
    # True masks instead of GrabCut's: another picture of the same samples.
    masks = import_masks(built.samples, built.source / "true_masks")
    settings = SheetSettings(count=3, patch_size=8)
    a = draw_sheet(built.samples, masks, built.captions, tmp_path / "a.png", settings)
    b = draw_sheet(built.samples, built.masks, built.captions, tmp_path / "b.png", settings)
    assert a.samples == b.samples
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_tokens_are_those_of_a_loop_over_patches(threshold: float, rng: np.random.Generator) -> None:
    mask = rng.random((32, 16)) < 0.06
    mask[8:17, 3:14] = True
    tokens = token_grid(mask, (32, 16), 4, threshold)
    assert tokens.shape == (8, 4)
    for row in range(8):
        for column in range(4):
            share = mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean()
            assert tokens[row, column] == (share > 0 if threshold == 0 else share >= threshold)


@pytest.mark.parametrize(("patch", "grid"), [(8, (HEIGHT // 8, WIDTH // 8)), (7, (5, 2)), (64, (1, 1))])
def test_images_of_any_size_have_whole_patches(built: Any, patch: int, grid: tuple[int, int]) -> None:
    """Otherwise photographs of 67 x 100 pixels would have no sheet."""
    assert (HEIGHT, WIDTH) == (32, 16)
    _, values, triplet = next(iter(read_samples(built.samples, built.masks, None, np.array([0]))))
    cell = make_cell(values, triplet, SheetSettings(patch_size=patch))
    assert cell.tokens is not None
    assert cell.tokens.shape == grid


def test_sheet_may_be_written_to_object_storage(
    built: Any, object_storage: Callable[[str], str], tmp_path: Path
) -> None:
    uri = object_storage("sheets").replace("sheets", "sheets/a.png")
    assert sheet(built, uri, count=2).out == absolute(uri)
    sheet(built, tmp_path / "a.png", count=2)
    filesystem, path = open_root(uri)
    with filesystem.open_input_file(path) as file:
        assert file.read() == (tmp_path / "a.png").read_bytes()


def test_tokens_follow_the_size_of_the_model_input(built: Any) -> None:
    mask = decode_mask(built.masks.read_shard(0)["mask"][0].as_py())
    large = token_grid(mask, (2 * HEIGHT, 2 * WIDTH), 8, 0.5)
    assert np.array_equal(large, token_grid(mask, (HEIGHT, WIDTH), 4, 0.5))


@pytest.mark.parametrize("size", [(32, 16), (16, 32)])
def test_outline_runs_along_the_mask(size: tuple[int, int]) -> None:
    mask = np.zeros(size, dtype=bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = True
    triplet = np.full((3, *size, 3), 90, dtype=np.uint8)
    cell = Cell("test/a", "", triplet, mask, None, None)
    picture = np.asarray(draw_cell(cell))
    scale = LONG_SIDE // max(size)
    rows, columns = np.nonzero((picture == GREEN).all(axis=2))
    # The first of three panels; images stand under three lines of text.
    first = columns < size[1] * scale
    top = 3 * 18
    assert {rows[first].min() - top, rows[first].max() - top + 1} == {
        size[0] // 4 * scale,
        size[0] // 2 * scale,
    }
    assert {columns[first].min(), columns[first].max() + 1} == {size[1] // 4 * scale, size[1] // 2 * scale}


def test_long_captions_and_names_stay_within_the_cell() -> None:
    triplet = np.zeros((3, 32, 16, 3), dtype=np.uint8)
    short = draw_cell(Cell("test/a", "", triplet, None, None, "A photo."))
    long = draw_cell(
        Cell("test/" + "a" * 500, "b" * 500, triplet, None, None, "very long " * 200 + "x" * 500)
    )
    assert long.width == short.width
    assert long.height <= short.height + 3 * 18
    # Nothing touches the right border, so no text was cut by it.
    assert (np.asarray(long)[:, -1] == 250).all()
    empty = draw_cell(Cell("test/a", "", triplet, None, None, ""))
    assert (np.asarray(empty)[-18:] < 100).any()


def test_cells_stand_side_by_side_as_many_as_fit() -> None:
    cell = Image.new("RGB", (500, 300))
    one, four = arrange([cell], "title"), arrange([cell] * 4, "title")
    assert 500 < one.width < 600
    assert 3 * 500 < four.width < 2000
    assert 2 * 300 < four.height < 2 * 300 + 150
