"""What a file says beside its pixels, wherever one is decoded: EXIF orientation, profiles, frames, depth."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from data_catalog.captions.llm.llm_settings import LlmCaptionSettings
from data_catalog.captions.llm.prompts import ROW_COLUMNS, prompt_images
from data_catalog.captions.llm.questions import Questions
from data_catalog.cards import load_card
from data_catalog.checks.image_hashes import make_image_hashes, read_hashes
from data_catalog.inspect.contact_sheet import SheetSettings, draw_sheet
from data_catalog.masks.segmenters.mask_reading import read_mask
from data_catalog.samples.images import decode_image, decode_triplets, is_upright
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.samples.source_images import image_size
from data_catalog.tables.table import Table
from data_catalog.views.training_view import ViewSettings, make_view
from data_catalog.views.view_reader import open_view
from stmi.images import read_image
from stmi.images import read_mask as read_any_mask
from tests.data_catalog.folders import HEIGHT, WIDTH, image_path, sample_ids
from tests.data_catalog.vehicle_folders import write_rgbnt100

ORIENTATIONS = range(1, 9)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = orientation
    return found


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def by_pillow(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image))


def turn(path: Path, orientation: int) -> bytes:
    """Give a file an orientation, as a camera does that was held otherwise; its pixels stay as they lie."""
    with Image.open(path) as image:
        path.write_bytes(encoded(image, quality=95, exif=exif(orientation)))
    return path.read_bytes()


@pytest.fixture
def own(own_source: Path) -> Path:
    return own_source


def ingest_small(source: Path, **settings: Any) -> Table:
    return ingest(source, source.parent / "catalog", "small", IngestSettings(**settings))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_decoder_applies_the_orientation(tmp_path: Path, orientation: int) -> None:
    data = encoded(noise(20, 12), quality=95, exif=exif(orientation))
    (tmp_path / "a.jpg").write_bytes(data)
    expected = by_pillow(data)
    size = expected.shape[:2]
    assert size == ((20, 12) if orientation < 5 else (12, 20))
    assert np.array_equal(decode_image(data), expected)
    assert image_size(data) == size
    assert is_upright(data) == (orientation == 1)
    for given in (tmp_path / "a.jpg", Image.open(io.BytesIO(data))):
        pixels, found = read_image(given, size, grey=False)
        assert np.array_equal(pixels, expected)
        assert found == size

    mask = Image.fromarray(np.asarray(noise(20, 12))[..., 0] > 128)
    (tmp_path / "mask.png").write_bytes(encoded(mask, "PNG", exif=exif(orientation)))
    turned = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "mask.png")))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), turned)
    assert np.array_equal(read_any_mask(tmp_path / "mask.png"), turned)


@pytest.mark.parametrize("modalities", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_images_upside_down_are_upright_in_all_tables(own: Path, modalities: tuple[int, ...]) -> None:
    plain = ingest_small(own)
    turned_id = "train/000001_cam1_0_00"
    files = [image_path(own, turned_id, modality) for modality in range(3)]
    for modality in modalities:
        turn(files[modality], 3)
    expected = [by_pillow(path.read_bytes()) for path in files]
    samples = ingest_small(own)
    assert samples.statistics["quarantined"] == []
    assert samples.digest != plain.digest
    row = samples.read(["sample_id"])["sample_id"].to_pylist().index(turned_id)
    assert np.array_equal(decode_triplets(samples.read().slice(row, 1))[0], np.stack(expected))
    view = open_view(make_view(samples, None, None, ViewSettings(split="train", height=HEIGHT, width=WIDTH)))
    pixels = view.batch([view.sample_id.tolist().index(turned_id)]).pixels[0]
    assert np.array_equal(pixels.transpose(0, 2, 3, 1), np.stack(expected))
    # The hashes are of the pixels: a copy that was saved upright is found.
    hashes = read_hashes(make_image_hashes(samples))
    for modality, path in enumerate(files):
        path.write_bytes(encoded(Image.fromarray(expected[modality]), "JPEG", quality=100, subsampling=0))
    again = read_hashes(make_image_hashes(ingest_small(own)))
    assert (hashes.bits[row] != again.bits[row]).mean() < 0.1


def test_triplet_whose_sizes_then_differ_is_quarantined_with_the_reason(own: Path) -> None:
    turn(image_path(own, "train/000001_cam1_0_00", 0), 6)
    turn(image_path(own, "val/000011_cam1_0_00", 2), 8)
    for size in ("most common", "any"):
        table = ingest_small(own, size=size)
        found = {fault["file"]: fault["reason"] for fault in table.statistics["quarantined"]}
        turned = f"is {WIDTH}x{HEIGHT} (height x width, turned by its EXIF orientation "
        assert found["val/TI/000011_cam1_0_00.jpg"] == f"{turned}8), expected {HEIGHT}x{WIDTH}"
        if size == "most common":
            reason = found["train_171/RGB/000001_cam1_0_00.jpg"]
            assert reason == f"{turned}6), expected {HEIGHT}x{WIDTH}"
        assert len(table) == len(sample_ids()) - 2


def test_data_set_that_is_turned_as_a_whole_has_its_upright_size(own: Path) -> None:
    for sample_id in sample_ids():
        for modality in range(3):
            turn(image_path(own, sample_id, modality), 6)
    table = ingest_small(own)
    assert table.manifest.settings["size"] == [WIDTH, HEIGHT]
    rows = table.read(["height", "width"]).to_pylist()
    assert rows == [{"height": WIDTH, "width": HEIGHT}] * len(sample_ids())


def test_images_side_by_side_are_cut_upright(tmp_path: Path) -> None:
    images = write_rgbnt100(tmp_path) / "rgbir"
    data = turn(images / "bounding_box_train" / "0001_c0001_000.jpg", 4)
    samples = ingest(tmp_path, tmp_path / "catalog", "cars", IngestSettings(format="rgbnt100"))
    ids = samples.read(["sample_id"])["sample_id"].to_pylist()
    [triplet] = decode_triplets(samples.read().slice(ids.index("train/0001_c0001_000"), 1))
    assert np.array_equal(np.concatenate(list(triplet), axis=1), by_pillow(data))


def shown(row: dict[str, Any], source: str) -> npt.NDArray[np.uint8]:
    """What a question shows to a model, decoded without regard to EXIF data."""
    card = load_card("synthetic_person")
    question = Questions(card, LlmCaptionSettings(model="tiny")).about(row)[source]
    url = question.request()["messages"][1]["content"][0]["image_url"]["url"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_language_model_is_shown_upright_images_and_asked_anew() -> None:
    plain = [encoded(noise(seed=seed), quality=95) for seed in range(3)]
    row = dict(zip(ROW_COLUMNS, ("train/a", *plain, None), strict=True))
    upside_down = {**row, "nir": encoded(noise(seed=1), quality=95, exif=exif(3))}
    assert prompt_images(row)["RGB"].jpeg() == plain[0]
    expected = by_pillow(upside_down["nir"]).astype(int)
    assert np.abs(shown(upside_down, "NIR") - expected).mean() < 4
    joint = shown(upside_down, "JOINT")[:, WIDTH : 2 * WIDTH]
    assert np.abs(joint - expected).mean() < 8
    # An answer about the file as it lies is not one about the image.
    lying, turned = (
        {**row, "nir": encoded(noise(seed=1), quality=95, exif=exif(number))} for number in (1, 3)
    )
    assert prompt_images(lying)["NIR"].digest != prompt_images(turned)["NIR"].digest


def test_contact_sheet_shows_images_upright(own: Path, tmp_path: Path) -> None:
    ids = ("train/000001_cam1_0_00",)
    path = image_path(own, ids[0], 0)
    with Image.open(path) as image:
        upright = image.transpose(Image.Transpose.ROTATE_180)
        path.write_bytes(encoded(upright, quality=100, subsampling=0))
    draw_sheet(ingest_small(own), None, None, tmp_path / "a.png", SheetSettings(ids=ids))
    path.write_bytes(encoded(image_of(path).transpose(Image.Transpose.ROTATE_180), quality=100, exif=exif(3)))
    draw_sheet(ingest_small(own), None, None, tmp_path / "b.png", SheetSettings(ids=ids))
    first, second = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    assert np.abs(first - second).mean() < 1


def image_of(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize(
    "block",
    [b"Exif\0\0nothing", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM"],
)
def test_exif_data_that_cannot_be_read_turns_nothing(block: bytes) -> None:
    data = encoded(noise(), quality=95)
    broken = data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    assert image_size(broken) == (HEIGHT, WIDTH)
    assert np.array_equal(decode_image(broken), decode_image(data))


@pytest.mark.parametrize("value", [0, 9, 2**15])
def test_orientation_that_there_is_not_turns_nothing(value: int) -> None:
    data = encoded(noise(), quality=95, exif=exif(value))
    assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))


def test_colour_profile_changes_no_pixel_in_any_decoder(tmp_path: Path) -> None:
    # A profile whose red and blue are exchanged would be seen.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain, tagged = encoded(noise(), quality=95), encoded(noise(), quality=95, icc_profile=profile)
    assert plain != tagged
    (tmp_path / "a.jpg").write_bytes(tagged)
    expected = np.asarray(Image.open(io.BytesIO(plain)))
    assert np.array_equal(decode_image(tagged), expected)
    assert np.array_equal(read_image(tmp_path / "a.jpg", (HEIGHT, WIDTH), grey=False)[0], expected)


def frames(kind: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        noise().save(path, format=kind, save_all=True, append_images=[noise(seed=1), noise(seed=2)])

    return write


@pytest.mark.parametrize("kind", ["MPO", "TIFF", "PNG", "WEBP"])
def test_file_of_several_images_is_refused_and_not_read_in_part(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.jpg"
    frames(kind)(path)
    reason = rf"^holds 3 images \({kind}\), expected one$"
    with pytest.raises(ValueError, match=reason):
        image_size(path.read_bytes())
    with pytest.raises(ValueError, match=reason):
        read_image(path, (HEIGHT, WIDTH), grey=False)


def test_mask_of_several_images_is_refused(tmp_path: Path) -> None:
    masks = [Image.new("L", (4, 4), value) for value in (0, 255)]
    masks[0].save(tmp_path / "mask.png", save_all=True, append_images=masks[1:])
    for read in (read_mask, read_any_mask):
        with pytest.raises(ValueError, match="holds 2 images"):
            read(tmp_path / "mask.png")


@pytest.mark.parametrize(
    ("image", "kind", "mode"),
    [
        (Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)), "PNG", "I;16"),
        (Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)), "TIFF", "F"),
        (noise().convert("P"), "PNG", "P"),
        (noise().convert("CMYK"), "JPEG", "CMYK"),
        (noise().convert("RGBA"), "PNG", "RGBA"),
    ],
    ids=["16 bit", "float", "palette", "CMYK", "alpha"],
)
def test_pixels_of_another_form_are_refused_and_not_converted(
    tmp_path: Path, image: Image.Image, kind: str, mode: str
) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(image, kind))
    with pytest.raises(ValueError, match=f"has the Pillow mode {mode}, expected RGB, or L for grey"):
        read_image(tmp_path / "photo.jpg", (HEIGHT, WIDTH), grey=True)
    with pytest.raises(ValueError, match="is CMYK, expected" if kind == "JPEG" else "is a (PNG|TIFF) file"):
        image_size((tmp_path / "photo.jpg").read_bytes())


@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_colours_of_16_bits_are_scaled_to_8(tmp_path: Path, ending: str) -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / f"deep{ending}"), deep[..., ::-1])
    pixels, _ = read_image(tmp_path / f"deep{ending}", (HEIGHT, WIDTH), grey=False)
    assert np.array_equal(pixels, deep >> 8)
