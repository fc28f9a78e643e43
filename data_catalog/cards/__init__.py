"""Cards: what is known of a data set before a file of it is read. One YAML file each."""

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from data_catalog.errors import CatalogError
from data_catalog.records import Record

_FOLDER = Path(__file__).parent


class Counts(Record):
    """Published size of a split; what the publication does not say is None."""

    samples: int
    identities: int
    queries: int | None = None
    gallery: int | None = None


class Protocol(Record):
    """How retrieval is measured.

    Attributes:
        query: Which samples are queries, in words.
        gallery: Which samples can be retrieved, in words.
        junk: A sample of the query's identity is left out of its ranking where this is the same, too.
    """

    query: str
    gallery: str
    junk: Literal["camera", "scene"]


class Card(Record):
    """A data set's card.

    Attributes:
        name: Name of the card and of its file.
        title: What the data set is, in one line.
        source: Where it comes from.
        citation: Whom to cite; empty where nobody need be.
        licence: Terms under which it may be used.
        format: Layout on disk, see `data_catalog.formats`.
        kind: What is seen; also the name of the template that captions are written with.
        image_size: Usual height and width of an image, in pixels.
        cameras: How many cameras it was taken with; None where that is not said.
        counts: Split to its published size; empty where it depends on settings.
        protocol: How retrieval is measured.
        attributes: Name to the values that a caption may tell of.
    """

    name: str
    title: str
    source: str
    citation: str = ""
    licence: str
    format: str
    kind: Literal["person", "vehicle"]
    image_size: tuple[int, int]
    cameras: int | None = None
    counts: dict[str, Counts] = Field({})
    protocol: Protocol
    attributes: dict[str, tuple[str, ...]]


def card_names() -> list[str]:
    """Names of all cards, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache
def load_card(name: str) -> Card:
    """The card of this name.

    Raises:
        CatalogError: If there is none, or it is malformed.
    """
    if name not in card_names():
        raise CatalogError(f"card {name!r} is not known; use one of {', '.join(card_names())}")
    path = _FOLDER / f"{name}.yaml"
    try:
        return Card.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise CatalogError(f"card {path} is malformed: {error}") from error
