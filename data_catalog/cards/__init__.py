"""Cards: what is published about a data set, one YAML file each."""

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from data_catalog.errors import CatalogError
from data_catalog.records import Record

_FOLDER = Path(__file__).parent


class Counts(Record):
    """Published size of a split; None for what the publication does not say."""

    samples: int
    identities: int
    queries: int | None = None
    gallery: int | None = None


class Protocol(Record):
    """How retrieval is measured.

    Attributes:
        query: Which samples are queries, in words.
        gallery: Which samples can be retrieved, in words.
        junk: Gallery samples with the query's identity and the same camera (or scene) do not count.
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
        citation: What to cite; empty for nothing.
        licence: Terms under which it may be used.
        format: Layout on disk, see `data_catalog.formats`.
        kind: What the images show; also the name of the template of captions.
        image_size: Usual height and width of an image, in pixels.
        cameras: Number of cameras; None if it is not published.
        counts: Published size of each split; empty if it depends on settings.
        protocol: How retrieval is measured.
        attributes: The values that captions can mention, by attribute.
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
