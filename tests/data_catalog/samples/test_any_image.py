"""Every type of image that a manifest may name: what is stored of it, against Pillow, OpenCV and numpy."""

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageOps

from data_catalog.__main__ import main
from data_catalog.captions.llm.prompts import PromptImage
from data_catalog.errors import CatalogError
from data_catalog.samples.any_image import read_range, scale, store_image
from data_catalog.samples.images import decode_image
from data_catalog.samples.ingestion import IngestSettings, ingest
from tests.data_catalog.manifests import rows_of, write_jsonl

HEIGHT, WIDTH = 8, 6
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = RANDOM.integers(7000, 9001, (HEIGHT, WIDTH), dtype=np.uint16)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def by_opencv(pixels: npt.NDArray[Any], ending: str) -> bytes:
    return cv2.imencode(ending, pixels)[1].tobytes()


def stored(data: bytes, is_grey: bool = True, thermal_range: str = "auto") -> npt.NDArray[np.uint8]:
    file, size = store_image(data, is_grey, thermal_range)
    pixels = decode_image(file)
    assert pixels.shape == (*size, 3)
    return pixels


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = orientation
    return found


LOSSLESS = [
    ("PNG", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("BMP", {}),
    ("WEBP", {"lossless": True}),
]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_no_pixel_of_eight_bits_changes(kind: str, options: dict[str, Any], orientation: int) -> None:
    tag = {} if kind == "BMP" else {"exif": exif(orientation)}
    lying = Image.fromarray(RGB)
    lying.getexif()[ExifTags.Base.Orientation] = 1 if kind == "BMP" else orientation
    expected = np.asarray(ImageOps.exif_transpose(lying))
    assert np.array_equal(stored(encoded(lying, kind, **options, **tag), is_grey=False), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG"])
def test_grey_images_are_repeated_in_three_channels(kind: str) -> None:
    data = encoded(Image.fromarray(GREY), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert kind == "JPEG" or np.array_equal(expected, GREY)
    assert np.array_equal(stored(data), np.dstack([expected] * 3))
    with pytest.raises(ValueError, match=r"^is greyscale, expected a colour image \(three channels\)$"):
        stored(data, is_grey=False)


def test_colour_jpeg_is_stored_byte_for_byte() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", quality=90, exif=exif(6))
    assert store_image(data, False, "auto") == (data, (WIDTH, HEIGHT))


def test_lossy_webp_is_stored_as_it_is_decoded() -> None:
    data = encoded(Image.fromarray(RGB), "WEBP", quality=50)
    assert np.array_equal(stored(data), np.asarray(Image.open(io.BytesIO(data))))


def test_palettes_and_opaque_alpha_are_the_colours_that_they_mean() -> None:
    palette = Image.fromarray(RGB).convert("P")
    assert np.array_equal(stored(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    opaque = Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)]))
    assert np.array_equal(stored(encoded(opaque, "PNG"), is_grey=False), RGB)
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (WIDTH, HEIGHT), 255)])
    assert np.array_equal(stored(encoded(grey, "PNG"))[..., 0], GREY)


DEEP_FILES = {
    "png": by_opencv(DEEP, ".png"),
    "tiff": by_opencv(DEEP, ".tiff"),
    "tiff, big-endian": encoded(
        Image.frombytes("I;16B", (WIDTH, HEIGHT), DEEP.astype(">u2").tobytes()), "TIFF"
    ),
    "tiff, 32 bits": encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    "tiff, floating point": by_opencv(DEEP.astype(np.float32), ".tiff"),
}


@pytest.mark.parametrize("data", DEEP_FILES.values(), ids=DEEP_FILES)
@pytest.mark.parametrize("thermal_range", ["auto", "percentile", "7000:9000", "8000:8500", "-10.5:20000"])
def test_sixteen_bits_are_scaled_as_the_range_says(data: bytes, thermal_range: str) -> None:
    values = DEEP.astype(np.float64)
    low, high = {
        "auto": (values.min(), values.max()),
        "percentile": tuple(np.percentile(values, [1, 99])),
    }.get(thermal_range) or map(float, thermal_range.split(":"))
    expected = np.round(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)
    found = stored(data, thermal_range=thermal_range)
    assert np.array_equal(found, np.dstack([expected] * 3))
    with pytest.raises(ValueError, match=r"^is greyscale, expected a colour"):
        stored(data, is_grey=False)


def test_scaling_has_known_values_at_its_ends() -> None:
    values = np.array([[7000, 7500, 8000, 6000, 9999]], dtype=np.uint16)
    assert scale(values, "7000:8000").tolist() == [[0, 128, 255, 0, 255]]
    assert scale(values, "auto").tolist() == [[64, 96, 128, 0, 255]]
    assert scale(np.full((2, 2), 5000, dtype=np.uint16), "auto").tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="values that are not finite"):
        scale(np.array([[1.0, np.nan]]), "auto")


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_upright(kind: str, orientation: int) -> None:
    data = encoded(Image.fromarray(DEEP), kind, exif=exif(orientation))
    upright = np.rot90(DEEP, {3: 2, 6: -1}[orientation])
    assert np.array_equal(stored(data)[..., 0], scale(upright, "auto"))


def test_images_of_eight_bits_are_never_scaled() -> None:
    dark = Image.fromarray(GREY // 4)
    assert np.array_equal(stored(encoded(dark, "PNG"), thermal_range="0:10")[..., 0], GREY // 4)


DEEP_RGB = RANDOM.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
PALETTE = Image.fromarray(RGB).convert("P")
FRAMES = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
REFUSED = [
    (by_opencv(DEEP_RGB, ".png"), "has 16 bits a channel, expected 8 bits of grey or RGB: `magick FILE"),
    (by_opencv(DEEP_RGB, ".tiff"), "has 16 bits a channel, expected 8 bits of grey or RGB: `magick FILE"),
    (encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "has the mode CMYK, expected 8 bits .*`magick"),
    (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "has the mode CMYK, expected 8 bits"),
    (encoded(Image.fromarray(GREY > 100), "PNG"), "has the mode 1, expected 8 bits of grey or RGB"),
    (
        encoded(Image.fromarray(np.dstack([RGB, GREY])), "PNG"),
        "has transparent pixels, expected none: `m",
    ),
    (encoded(PALETTE, "PNG", transparency=PALETTE.getpixel((0, 0))), "has transparent pixels"),
    (encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), r"holds 2 images \(TIFF\)"),
    (encoded(Image.fromarray(RGB), "GIF"), "is a GIF file, expected JPEG, PNG, TIFF, WEBP, BMP: `magick"),
    (b"", r"is empty \(zero bytes\)"),
    (b"nothing", "is not an image, expected JPEG, PNG, TIFF"),
    (encoded(Image.fromarray(RGB), "PNG")[:-30], "cannot be decoded"),
    (by_opencv(DEEP, ".tiff")[:60], "cannot be decoded|is not an image"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_what_cannot_be_stored_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^({message})"):
        store_image(data, True, "auto")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("auto", "auto"),
        ("percentile", "percentile"),
        ("7000:9500", "7000:9500"),
        ("7000.0:9500.50", "7000:9500.5"),
        ("-10:45", "-10:45"),
        *((text, None) for text in ("", "1", "9:7", "1:1", "7000:9e", "nan:2", "1:2:3")),
    ],
)
def test_ranges_have_one_spelling(text: str, read: str | None) -> None:
    if read is not None:
        assert read_range(text) == read
        return
    with pytest.raises(ValueError, match="is no range; expected auto, percentile, or two raw values as"):
        read_range(text)


@pytest.fixture
def mixed(own_source: Path) -> Path:
    """A manifest with a colour PNG, a grey WebP and a thermal TIFF of 16 bits for each sample."""
    rows = rows_of(own_source)
    for number, row in enumerate(rows):
        for name, ending in (("rgb", "png"), ("nir", "webp"), ("tir", "tiff")):
            path = own_source / row[name]
            row[name] = str(Path(row[name]).with_suffix(f".{ending}"))
            with Image.open(path) as image:
                if name == "tir":
                    deep = np.asarray(image)[..., 0].astype(np.uint16) * 40 + 7000 + number
                    cv2.imwrite(str(own_source / row[name]), deep)
                else:
                    image.save(own_source / row[name], **({"lossless": True} if ending == "webp" else {}))
    return write_jsonl(own_source / "mixed.jsonl", rows)


def test_the_range_is_in_the_settings_of_the_table_and_in_its_key(mixed: Path, tmp_path: Path) -> None:
    def made(**settings: Any) -> Any:
        return ingest(mixed, tmp_path / "c", "own", IngestSettings(format="manifest", **settings))

    auto, fixed = made(), made(thermal_range="7000:17200")
    assert auto.statistics["quarantined"] == []
    assert (auto.manifest.settings["thermal_range"], fixed.manifest.settings["thermal_range"]) == (
        "auto",
        "7000:17200",
    )
    assert auto.manifest.key != fixed.manifest.key
    assert made(thermal_range="7000.0:17200").reused
    rows = [json.loads(line) for line in mixed.read_text().splitlines()]
    for table, thermal_range in ((auto, "auto"), (fixed, "7000:17200")):
        for row, found in zip(rows, table.read().to_pylist(), strict=True):
            deep = cv2.imread(str(mixed.parent / row["tir"]), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(decode_image(found["tir"])[..., 0], scale(deep, thermal_range))
            with Image.open(mixed.parent / row["rgb"]) as image:
                assert np.array_equal(decode_image(found["rgb"]), np.asarray(image))
    # A language model gets JPEG, whatever is stored.
    shown = PromptImage((auto.read()["tir"][0].as_py(),)).jpeg()
    assert Image.open(io.BytesIO(shown)).format == "JPEG"


def test_published_layouts_have_no_range(
    own_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        CatalogError, match=r"thermal_range=percentile: format rgbnt201 has colour JPEG alone"
    ):
        ingest(own_source, tmp_path / "c", "own", IngestSettings(thermal_range="percentile"))
    settings = ingest(own_source, tmp_path / "c", "own", IngestSettings()).manifest.settings
    assert set(settings) == {"format", "size", "samples_per_shard", "validation_identities"}
    arguments = ["--source", str(own_source), "--catalog", str(tmp_path / "c"), "--thermal-range", "x"]
    assert main(["ingest", *arguments]) == 2
    assert "thermal_range: 'x' is no range; expected auto" in capsys.readouterr().err
