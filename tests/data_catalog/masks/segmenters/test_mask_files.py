import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_catalog.errors import CatalogError
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.masks.segmenters.mask_reading import MAX_PIXELS, fit_mask, read_mask
from data_catalog.samples.images import decode_mask
from tests.data_catalog.folders import FOLDERS, HEIGHT, WIDTH, sample_ids, true_mask_path


def mask_path(root: Path, sample_id: str) -> Path:
    """Where RGBNT201 has the mask of a sample."""
    split, name = sample_id.split("/")
    return root / FOLDERS[split] / "mask" / f"{name}.npy"


def write_masks(root: Path, dtype: Any = np.uint8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    masks = {sample_id: rng.random((HEIGHT, WIDTH)) < 0.4 for sample_id in sample_ids()}
    for sample_id, mask in masks.items():
        path = mask_path(root, sample_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, mask.astype(dtype))
    return masks


def assert_masks(table: Any, masks: dict[str, np.ndarray]) -> None:
    rows = table.read().to_pylist()
    assert [row["sample_id"] for row in rows] == sample_ids()
    for row in rows:
        assert np.array_equal(decode_mask(row["mask"]), masks[row["sample_id"]])
        assert row["foreground_fraction"] == pytest.approx(masks[row["sample_id"]].mean())
        assert (row["score"], row["source"]) == (1.0, "file")


def test_masks_beside_the_images_are_found_and_kept(built: Any, tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "RGBNT201")
    empty, full = sample_ids()[3], sample_ids()[5]
    masks[empty][:], masks[full][:] = False, True
    for name in (empty, full):
        np.save(mask_path(tmp_path / "RGBNT201", name), masks[name])
    # A PNG stands where an array does not.
    as_png = mask_path(tmp_path / "RGBNT201", sample_ids()[7])
    as_png.unlink()
    Image.fromarray(masks[sample_ids()[7]].astype(np.uint8) * 255).save(as_png.with_suffix(".png"))
    table = import_masks(built.samples, tmp_path)
    assert_masks(table, masks)
    statistics = table.statistics
    assert (statistics["coverage"], statistics["missing"], statistics["faults"]) == (1.0, 0, [])
    assert (statistics["empty"], statistics["empty_samples"]) == (1, [empty])
    assert (statistics["full"], statistics["full_samples"]) == (1, [full])
    assert import_masks(built.samples, tmp_path).reused

    changed = sample_ids()[0]
    masks[changed] = ~masks[changed]
    np.save(mask_path(tmp_path / "RGBNT201", changed), masks[changed].astype(np.uint8))
    other = import_masks(built.samples, tmp_path)
    assert other.manifest.key != table.manifest.key
    assert other.digest != table.digest
    assert_masks(other, masks)


def test_default_folder_is_that_of_the_samples(built: Any) -> None:
    expected = f"masks {built.source / 'RGBNT201'}: 28 of 28 samples have no mask that can be used"
    with pytest.raises(CatalogError, match=expected):
        import_masks(built.samples)


def test_plain_folders_and_true_masks_are_read(built: Any) -> None:
    table = import_masks(built.samples, built.source / "true_masks", true_masks=built.source / "true_masks")
    masks = {
        sample_id: np.asarray(Image.open(true_mask_path(built.source, sample_id))) > 127
        for sample_id in sample_ids()
    }
    assert_masks(table, masks)
    assert table.statistics["mean_iou"] == 1.0


def test_missing_and_broken_masks_stop_unless_allowed(built: Any, tmp_path: Path) -> None:
    masks = write_masks(tmp_path)
    gone, broken = sample_ids()[2], sample_ids()[9]
    np.save(mask_path(tmp_path, broken), np.full((HEIGHT, WIDTH), 2))
    with pytest.raises(
        CatalogError, match=rf"1 of 28 samples .*{broken.split('/')[1]}.npy holds the value 2.*--allow-"
    ):
        import_masks(built.samples, tmp_path)
    mask_path(tmp_path, gone).unlink()
    with pytest.raises(CatalogError, match=rf"1 of 28 samples .*{gone.split('/')[1]}.npy is not there"):
        import_masks(built.samples, tmp_path)

    table = import_masks(built.samples, tmp_path, allow_missing=True)
    by_id = {row["sample_id"]: row for row in table.read().to_pylist()}
    for name in (gone, broken):
        assert decode_mask(by_id[name]["mask"]).all()
        assert (by_id[name]["score"], by_id[name]["source"]) == (0.0, "missing")
    statistics = table.statistics
    assert (statistics["coverage"], statistics["missing"]) == (pytest.approx(26 / 28), 2)
    assert {fault["sample_id"]: fault["reason"] for fault in statistics["faults"]} == {
        gone: "is not there",
        broken: "holds the value 2, expected 0 and 1 (or 0 and 255): use mask > 0 if 0 is the background",
    }
    assert statistics["lowest_scores"][0]["score"] == 0
    # What was allowed once is not allowed from then on.
    with pytest.raises(CatalogError, match="is not there"):
        import_masks(built.samples, tmp_path)
    del masks[gone], masks[broken]
    assert all(np.array_equal(decode_mask(by_id[name]["mask"]), mask) for name, mask in masks.items())


def test_folder_that_is_not_there_is_named(built: Any, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"nowhere is not a folder on this machine; say where .* --masks"):
        import_masks(built.samples, tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int64, ">i4", np.uint64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_integer_type_reads_alike(tmp_path: Path, dtype: Any, order: Any) -> None:
    mask = np.random.default_rng(0).random((12, 7)) < 0.5
    np.save(tmp_path / "mask.npy", np.asarray(mask.astype(dtype), order=order))
    assert np.array_equal(read_mask(tmp_path / "mask.npy"), mask)
    assert read_mask(tmp_path / "mask.npy").dtype == np.bool_


@pytest.mark.parametrize("mode", ["1", "0/1", "0/255"])
def test_every_grey_png_reads_alike(tmp_path: Path, mode: str) -> None:
    mask = np.random.default_rng(0).random((12, 7)) < 0.5
    image = Image.fromarray(mask if mode == "1" else mask.astype(np.uint8) * (1 if mode == "0/1" else 255))
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)


def npy(array: Any, **options: Any) -> bytes:
    import io  # noqa: PLC0415

    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def claiming(shape: tuple[int, ...], kind: str = "'|u1'") -> bytes:
    """A .npy file whose header claims a shape that its data does not have."""
    return with_header(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}")


def with_header(text: str) -> bytes:
    """A .npy file with this header and 64 bytes of data."""
    header = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


ZEROS = np.zeros((8, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"nothing like it", "is not a .npy file"),
        (pickle.dumps(_Bomb()), r"is not a .npy file \(a pickle is never read\)"),
        (
            npy(np.array([[_Bomb()]], dtype=object), allow_pickle=True),
            "holds Python objects, which are never",
        ),
        (
            npy(np.zeros((8, 4), dtype=[("a", "u1"), ("b", object)]), allow_pickle=True),
            "holds Python objects",
        ),
        (npy(np.where(np.eye(4), np.nan, 0.0)), "holds NaN, expected bool or integers: use mask == 1"),
        (npy(np.eye(4, dtype=np.float32)), "is of type float32, expected bool or integers: use mask == 1"),
        # `astype(numpy.uint8)` would make all of these background, or foreground.
        (npy(np.linspace(0, 1, 12).reshape(3, 4)), "is of type float64, .*: use mask >= 0.5"),
        (npy(np.linspace(0, 255, 12, dtype=np.float32).reshape(3, 4)), "is of .*: use mask >= 128"),
        (npy(np.linspace(-9, 9, 12, dtype=np.float16).reshape(3, 4)), "is of .*: use mask > 0"),
        (npy(np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4)), "holds the value 17.*: use mask >= 128"),
        (npy(np.zeros((8, 4), dtype=complex)), "is of type complex128"),
        (npy(np.full((8, 4), "1")), "is of type <U1"),
        (npy(np.full((8, 4), 2)), "holds the value 2, expected 0 and 1"),
        (npy(np.full((8, 4), -1)), "holds the value -1, expected 0 and 1"),
        (npy(np.array([[0, 1, 255]])), "holds the value 1, expected 0 and 1"),
        (npy(np.zeros((8, 4, 3), dtype=np.uint8)), r"has the shape \(8, 4, 3\), expected \(height, width\)"),
        (npy(np.zeros((0, 4), dtype=np.uint8)), r"has the shape \(0, 4\)"),
        (npy(ZEROS)[:-1], r"has 31 bytes of data, not those of shape \(8, 4\)"),
        (claiming((2**20, 2**20)), f"has {2**40} pixels, expected at most {MAX_PIXELS}"),
        (claiming((4000, 4000)), "has 64 bytes of data"),
        (claiming((-8, -8)), r"has the shape \(-8, -8\), expected \(height, width\)"),
        (claiming((2**62, 4), "'<f8'"), "is of type float64, expected bool or integers"),
        (claiming((8, 8), "()"), "is not a .npy file"),
        (claiming((8, 8), "[('a',)]"), "is not a .npy file"),
        (claiming((8, 8), f"'|u{'9' * 40}'"), "is not a .npy file"),
        (with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8"), "is not a .npy file"),
        (with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8)}}"), "is not a .npy file"),
        (with_header("{'descr"), "is not a .npy file"),
        (with_header("{[]: 1}"), "is not a .npy file"),
        (with_header("{1: 2, 'descr': 3}"), "is not a .npy file"),
        (with_header("-" * 9000 + "1"), "is not a .npy file"),
        (with_header("(" * 9000), "is not a .npy file"),
    ],
)
def test_array_that_is_not_a_mask_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask.npy").write_bytes(data)
    with pytest.raises(ValueError, match=f"^{reason}"):
        read_mask(tmp_path / "mask.npy")
    assert not (tmp_path / "executed").exists()


def png(mode: str, size: tuple[int, int] = (4, 8), value: Any = 0) -> bytes:
    import io  # noqa: PLC0415

    stream = io.BytesIO()
    Image.new(mode, size, value).save(stream, format="PNG")
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG file whose header claims a size that its data does not have."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(b"")]
    framed = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png("RGB"), "is a PNG of mode RGB, expected 1-bit or 8-bit grey"),
        (png("P"), "is a PNG of mode P"),
        (png("L", value=128), "holds the value 128, expected 0 and 1 .*: use mask >= 128"),
        (png("L", size=(64, 64), value=1)[:-40], "cannot be decoded as PNG"),
        (npy(ZEROS), "cannot be decoded as PNG"),
        (png_claiming(5000, 5000), "has 25000000 pixels, expected at most"),
        (png_claiming(12000, 10000), "decodes to far more than"),
        (png_claiming(50000, 50000), "decodes to far more than"),
    ],
)
def test_png_that_is_not_a_mask_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        read_mask(tmp_path / "mask.png")


def test_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "mask.npy").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(ValueError, match=f"has {2**34} bytes, expected at most"):
        read_mask(tmp_path / "mask.npy")


def test_multiples_are_resized_by_the_nearest_pixel() -> None:
    mask = np.random.default_rng(1).random((8, 4)) < 0.5
    larger = np.repeat(np.repeat(mask, 3, axis=0), 3, axis=1)
    assert np.array_equal(fit_mask(mask, (24, 12), None), larger)
    assert np.array_equal(fit_mask(larger, (8, 4), None), mask)
    assert fit_mask(mask, (8, 4), None) is mask
    # Of any shape where models are given that size: twice as wide, then.
    assert np.array_equal(fit_mask(mask, (8, 8), (8, 4)), np.repeat(mask, 2, axis=1))


@pytest.mark.parametrize(("size", "image_size"), [((9, 4), None), ((4, 8), None), ((16, 9), (8, 5))])
def test_masks_of_another_shape_are_refused(
    size: tuple[int, int], image_size: tuple[int, int] | None
) -> None:
    with pytest.raises(ValueError, match=rf"is 8x4 \(height x width\), expected {size[0]}x{size[1]} as its"):
        fit_mask(np.ones((8, 4), dtype=bool), size, image_size)


def test_masks_at_the_size_of_models_fit_samples_of_any_shape(built: Any, tmp_path: Path) -> None:
    write_masks(tmp_path)
    name = sample_ids()[0]
    np.save(mask_path(tmp_path, name), np.eye(24, dtype=np.uint8))
    table = import_masks(built.samples, tmp_path, image_size=(24, 24))
    rows = {row["sample_id"]: row for row in table.read().to_pylist()}
    assert decode_mask(rows[name]["mask"]).shape == (HEIGHT, WIDTH)
