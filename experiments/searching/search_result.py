"""What a search gives."""

from data_catalog.records import Record


class Match(Record):
    """A sample of the gallery."""

    rank: int
    """From 1."""
    sample_id: str
    """Of a folder: the name of its files without the ending."""
    distance: float
    """Euclidean between normalised features, 0 to 2."""
    identity: int | None
    """None in a folder."""
    camera_id: int | None
    """None where it is not known."""


class SearchResult(Record):
    """The samples of a gallery that are nearest to a query."""

    run: str
    epoch: int
    feature: str
    """The retrieval feature by which the samples were compared."""
    gallery: str
    samples: int
    """Number of samples in the gallery."""
    embedded: int
    """How many of them were embedded now; features of the others were kept."""
    index: str
    is_exact: bool
    """Whether every sample was compared; otherwise the index may miss some of the nearest."""
    search_seconds: float
    """From the feature of the query to the nearest samples, with the kept index open."""
    kept_in: str
    """Folder of the embeddings and the index."""
    left_out: dict[str, str]
    """Samples that cannot be used, and why."""
    matches: tuple[Match, ...]
    picture: str | None
    notes: tuple[str, ...]
