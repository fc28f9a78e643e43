"""The columns of a manifest: what each means, and what a cell of it may hold."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from data_catalog.formats.source import QUERY_SUFFIX, SPLITS
from stmi.modality import MODALITIES

URI_SCHEMES = ("s3", "gs", "file")
IMAGES = tuple(modality.value.lower() for modality in MODALITIES)
"""The columns of the three images, in the order of MODALITIES."""

_LONGEST_NAME = 200
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Column:
    """A column of a manifest.

    Attributes:
        name: As it stands in the file.
        about: What it holds, for people.
        read: The value of a cell that is not empty; a ValueError says what is expected there.
        is_needed: Whether every manifest has it, and every row a value in it.
    """

    name: str
    about: str
    read: Callable[[str], Any]
    is_needed: bool = False


def _name(text: str) -> str:
    is_path = re.search(r"[/\\\x00-\x1f]", text) or text.startswith(".")
    if is_path or len(text) > _LONGEST_NAME or text.endswith(QUERY_SUFFIX):
        raise ValueError(
            f"expected at most {_LONGEST_NAME} characters without slashes, no dot as the first and no "
            f"{QUERY_SUFFIX} as the last of them"
        )
    return text


def _split(text: str) -> str:
    if text not in SPLITS:
        raise ValueError(f"expected one of {', '.join(SPLITS)}")
    return text


def _whole_number(digits: int, remedy: str = "") -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(rf"\d{{1,{digits}}}", text, re.ASCII):
            raise ValueError(f"expected a whole number from 0 to {'9' * digits}{remedy}")
        return int(text)

    return read


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError(f"expected one of {', '.join(_FLAGS)}, or nothing")
    return _FLAGS[text.lower()]


def _path(text: str) -> str:
    if re.search(r"[\\\x00-\x1f]", text):
        raise ValueError("expected a path with forward slashes and without control characters")
    return text


def _image(text: str) -> str:
    scheme, is_uri, _ = text.partition("://")
    if is_uri and scheme not in URI_SCHEMES:
        raise ValueError(f"expected a path, or a URI that begins with {'://, '.join(URI_SCHEMES)}://")
    return unquote(urlsplit(text).path) if scheme == "file" and is_uri else _path(text)


def _mask(text: str) -> str:
    if "://" in text or not text.endswith((".npy", ".png")):
        raise ValueError("expected the path of a .npy or .png file on this machine")
    return _path(text)


COLUMNS = (
    Column("name", "needed; name of the sample, its own within its split", _name, is_needed=True),
    Column("split", f"needed; {', '.join(SPLITS)}: no identity is in two of them", _split, is_needed=True),
    Column(
        "identity",
        "needed; number of the person or vehicle, from 0",
        _whole_number(18, "; give every person or vehicle a number"),
        is_needed=True,
    ),
    Column("rgb", "visible image: path, relative to this file or absolute, or URI", _image),
    Column("nir", "near infrared image, of the same size, in the same form", _image),
    Column("tir", "thermal image, of the same size, in the same form", _image),
    Column("camera", "number of the camera, from 0, in every row or in none", _whole_number(4)),
    Column("scene", "number of the scene, from 0, in every row or in none", _whole_number(9)),
    Column("query", "true or false; where empty, true in val and test", _flag),
    Column("gallery", "true or false; where empty, true in val and test", _flag),
    Column("mask", "path of a .npy or .png file, for masks --segmenter files", _mask),
    Column("caption", "text about the person or vehicle, for captions --captioner files", str),
)
"""All of them, in the order of a template."""


def describe_columns() -> str:
    """What a manifest is, and what its columns hold; for people."""
    columns = [f"  {column.name:<9}{column.about}" for column in COLUMNS]
    return "\n".join(["A CSV, JSON Lines or Parquet file with a row for each sample; its columns:", *columns])
