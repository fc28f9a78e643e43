import re

import numpy as np
import pytest
import torch
from PIL import Image


def broken(tmp_path):
    file = tmp_path / "broken.jpg"
    file.write_bytes(b"\xff\xd8\xff\xe0 no image")
    return file


GOOD = np.zeros((32, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no images: give at least one of rgb, nir and tir"),
        ({"rgb": []}, "the lists are empty"),
        ({"rgb": [GOOD, None], "nir": [None, None]}, "sample 1 has no image"),
        (
            {"rgb": [GOOD], "nir": [GOOD] * 2},
            "lists of one length; there are rgb a list of 1, nir a list of 2",
        ),
        ({"rgb": GOOD, "caption": ["one"]}, "there are rgb one, caption a list of 1"),
        ({"rgb": [GOOD, broken]}, r"rgb[1] cannot be read as an image"),
        ({"rgb": "nowhere.jpg"}, "rgb[0] cannot be read as an image nowhere.jpg"),
        ({"rgb": GOOD / 255}, "rgb[0] is float64 (32, 16, 3), expected uint8 (height, width, 3)"),
        ({"rgb": GOOD.transpose(2, 0, 1)}, "rgb[0] is uint8 (3, 32, 16), expected uint8 (height, width, 3)"),
        ({"rgb": GOOD[..., 0]}, "rgb[0] has the Pillow mode L, expected RGB; a grey image can only be NIR"),
        (
            {"tir": Image.new("RGBA", (16, 32))},
            "tir[0] has the Pillow mode RGBA, expected RGB, or L for grey",
        ),
        (
            {"nir": torch.zeros(3)},
            "nir[0] is of type Tensor, expected a path, a Pillow image or a numpy array",
        ),
        ({"rgb": GOOD, "mask": GOOD}, "there are rgb one, mask a list of 32"),
        (
            {"rgb": [GOOD], "mask": [GOOD]},
            "mask[0] is uint8 (32, 16, 3), expected bool or uint8 (height, width)",
        ),
        ({"rgb": GOOD, "mask": np.full((32, 16), 7)}, "mask[0] holds the value 7, expected 0 and 1"),
        ({"rgb": GOOD, "mask": np.ones((16, 32), bool)}, "mask[0] is 16x32 (height x width), expected 32x16"),
        ({"rgb": GOOD, "caption": 5}, "caption[0] is 5, expected text, or None"),
        ({"rgb": GOOD, "camera": "cam1"}, "camera[0] is 'cam1', expected a whole number from 0, or None"),
    ],
)
@pytest.mark.filterwarnings("ignore:no sample has a")
def test_input_that_cannot_be_used_is_named_with_its_position(run, given, message, tmp_path):
    given = {
        name: [v(tmp_path) if callable(v) else v for v in value] if isinstance(value, list) else value
        for name, value in given.items()
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        run.embed(**given)
