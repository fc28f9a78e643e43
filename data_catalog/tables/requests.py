"""Which tables of a kind were asked for, and in which order: later steps take the one asked for last.

`<catalog>/<dataset>/<kind>/requests.json` is the history. Every step that makes a table adds its key, whether
it had to make the table or found it. The order in the file counts, and no clock: whoever adds to it holds the
claim of the folder, and replaces the file as a whole. Tables that an earlier version made are in no history
until the first request after it; until then the one with the latest time counts as asked for last.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from data_catalog.errors import CatalogError
from data_catalog.records import Record, describe_invalid
from data_catalog.storage.claims import claim
from data_catalog.storage.folders import Folder
from data_catalog.tables.schemas import TableKind

REQUESTS = "requests.json"


class Request(Record):
    """A table that was asked for."""

    key: str
    time: str
    """When, ISO 8601; for people only."""


class _History(Record):
    requests: tuple[Request, ...]


def read_requests(catalog: str | Path, dataset: str, kind: TableKind) -> tuple[Request, ...]:
    """What was asked for of a kind, the last request last; a key may occur several times.

    Raises:
        CatalogError: The history is damaged.
    """
    return _read(Folder(catalog) / dataset / kind.value)


def add_request(
    catalog: str, dataset: str, kind: TableKind, key: str, earlier: Callable[[], Sequence[Request]]
) -> None:
    """Make a table the one that was asked for last.

    Args:
        catalog: Root of the catalog, folder or URI.
        dataset: Name of the data set.
        kind: Which table.
        key: Its key.
        earlier: Gives what stands for the history where there is none.

    Raises:
        CatalogError: The history is damaged.
        NotWritableError: The catalog cannot be written to.
    """
    folder = Folder(catalog) / dataset / kind.value
    if _is_last(key, _read(folder)):
        return
    with claim(folder.location, wait=lambda: True) as held:
        requests = _read(folder) or tuple(earlier())
        if not _is_last(key, requests):
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            requests += (Request(key=key, time=now),)
        with held.guarding():
            folder.write(REQUESTS, _History(requests=requests).model_dump_json(indent=1) + "\n")


def _is_last(key: str, requests: Sequence[Request]) -> bool:
    return bool(requests) and requests[-1].key == key


def _read(folder: Folder) -> tuple[Request, ...]:
    try:
        return _History.model_validate_json(folder.read(REQUESTS)).requests
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        raise CatalogError(
            f"{folder.file(REQUESTS)} is not the history of this version "
            f"({describe_invalid(error, 'the file')}); delete it, then run the step again whose table later "
            "steps should take"
        ) from None
