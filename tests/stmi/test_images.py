import io

import numpy as np
import pytest
from PIL import Image

from data_catalog.samples.images import decode_image
from stmi.images import foreground_share, read_image, resize_image

SIZE = (32, 16)


@pytest.fixture
def photo(rng):
    """A JPEG file of another size than the model's."""
    sink = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(sink, format="JPEG")
    return sink.getvalue()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("size", [SIZE, (50, 40), (100, 90)])
def test_a_file_gives_the_pixels_that_a_view_has(photo, size, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photo)
    pixels, own = read_image(tmp_path / "photo.jpg", size, grey=False)
    assert own == (50, 40)
    assert np.array_equal(pixels, decode_image(photo, size))
    assert np.array_equal(read_image(Image.open(io.BytesIO(photo)), size, grey=False)[0], pixels)


def test_resizing_is_that_of_pillow_with_bicubic_interpolation(rng):
    image = Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8))
    assert np.array_equal(
        resize_image(image, SIZE), np.asarray(image.resize((16, 32), Image.Resampling.BICUBIC))
    )
    assert np.array_equal(resize_image(image, (50, 40)), np.asarray(image))


def test_foreground_share_is_the_mean_over_each_new_pixel(rng):
    mask = rng.random((64, 48)) < 0.5
    expected = 255 * mask.reshape(32, 2, 16, 3).mean(axis=(1, 3))
    assert np.allclose(foreground_share(mask, SIZE), expected, atol=1)
