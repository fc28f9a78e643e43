"""How many tokens a prompt can take at most, told before it is sent: what a budget sets aside for it.

No tokenizer is asked, since it is the endpoint's. A token of text is a byte at least, so text takes at most
as many tokens as it has bytes in UTF-8. What an image takes follows from its size, by a rule of the model.
"""

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

# What the endpoint's template puts around a conversation and around each of its messages.
_TEMPLATE_TOKENS, _TOKENS_OF_MESSAGE = 256, 16

# The dearest published rule, that of gpt-4o-mini: the image is scaled until its short side has 768 pixels and
# its long one at most 2048, then cut into tiles.
_SHORT_SIDE, _LONG_SIDE, _TILE_SIDE = 768, 2048, 512
_TOKENS_OF_IMAGE, _TOKENS_OF_TILE = 2833, 5667
# Open models take an image as it is, in patches of 14 x 14 pixels or more.
_PATCH_SIDE = 14

ImageSize = tuple[int, int]
"""Width and height, in pixels."""


@dataclass(frozen=True)
class PromptSize:
    """What a prompt is counted by.

    Attributes:
        text_tokens: Tokens of its text and of the answer's schema, at most.
        images: Size of each of its images.
    """

    text_tokens: int
    images: tuple[ImageSize, ...] = ()


def prompt_size(request: Mapping[str, Any]) -> PromptSize:
    """The size of a request's prompt.

    Args:
        request: Arguments of `chat.completions.create`, with images as data URLs.
    """
    tokens, images = _TEMPLATE_TOKENS, []
    for message in request["messages"]:
        content = message["content"]
        tokens += _TOKENS_OF_MESSAGE
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "image_url":
                images.append(_size_of(part["image_url"]["url"]))
            else:
                tokens += _bytes_of(part["text"])
    tokens += _bytes_of(json.dumps(request.get("response_format"), ensure_ascii=False))
    return PromptSize(tokens, tuple(images))


def image_tokens(size: ImageSize) -> int:
    """Tokens that an image of this size takes at most, by any rule that is published."""
    short, long = sorted(size)
    scaled = min(_SHORT_SIDE * long / short, _LONG_SIDE)
    tiles = math.ceil(_SHORT_SIDE / _TILE_SIDE) * math.ceil(scaled / _TILE_SIDE)
    patches = math.ceil(short / _PATCH_SIDE) * math.ceil(long / _PATCH_SIDE)
    return max(_TOKENS_OF_IMAGE + tiles * _TOKENS_OF_TILE, patches)


def _size_of(url: str) -> ImageSize:
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return image.size


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
